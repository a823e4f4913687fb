// @ts-check
/** The rows of a rack as text, one LoRA a line. `difflora/lora/rack.py` reads the same. */
import { LIMIT } from "./strength.js";

/**
 * @typedef {object} Row
 * @property {boolean} on
 * @property {number} strength
 * @property {string} name of the file, relative to a loras folder
 *
 * @typedef {{ bad: string }} BadRow a line that cannot be read; it is kept as it is
 *
 * @typedef {object} Facts what the server knows of a file
 * @property {boolean} missing
 * @property {string} error why it cannot be read
 * @property {string} base
 * @property {string} rank
 * @property {[number, number] | null} range that the file recommends
 * @property {"high" | "low" | null} noise which model of Wan2.2 it is for, by its name
 * @property {string | null} twin the file for the other model
 */

/** The longest rack. */
export const MOST = 100;

const ROW = /^(?:(off)[ \t]+)?([+\u2212-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)[ \t]+(.+)$/is;

/** @param {string} text @returns {(Row | BadRow)[]} */
export const readRack = (text) =>
  text.split(/\r?\n/).map((line) => line.replace(/^[ \t]+|[ \t]+$/g, "")).filter(Boolean).map(readRow);

/** @param {string} line @returns {Row | BadRow} */
const readRow = (line) => {
  const found = ROW.exec(line);
  const name = found ? readName(found[3]) : null;
  const strength = found ? Number(found[2].replace("\u2212", "-")) : NaN;
  if (!found || !name || !(Math.abs(strength) <= LIMIT)) return { bad: line };
  return { on: !found[1], strength: strength + 0, name };
};

/** @param {string} text @returns {string | null} */
const readName = (text) => {
  if (!text.startsWith('"')) return text;
  try {
    const name = JSON.parse(text);
    return typeof name === "string" ? name : null;
  } catch {
    return null; // shown as a row that cannot be read
  }
};

/** @param {(Row | BadRow)[]} rows @returns {string} */
export const writeRack = (rows) =>
  rows.map((row) => ("bad" in row ? row.bad : `${row.on ? "" : "off "}${row.strength} ${writeName(row.name)}`)).join("\n");

/** @param {string} name */
const writeName = (name) => (/^["\s]|\s$|[\n\r]/.test(name) ? JSON.stringify(name) : name);

/** The file that a row means for one of the two models of Wan2.2. @param {string} name @param {Facts | undefined} facts @param {string} model "high", "low", or "as named" @returns {string | null} null: its twin is not there */
export const fileFor = (name, facts, model) =>
  !facts?.noise || facts.noise === model || (model !== "high" && model !== "low") ? name : facts.twin;

/** Checks what the server says of files: their texts may come from anywhere. @param {unknown} answer @returns {Map<string, Facts>} */
export const readFacts = (answer) =>
  new Map(
    Object.entries(typeof answer === "object" && answer !== null ? answer : {}).map(([name, facts]) => {
      const range = facts?.strength_range;
      const isRange = Array.isArray(range) && range.length === 2 && range.every((end) => Number.isFinite(end)) && range[0] < range[1];
      return [name, {
        missing: facts?.missing === true, error: String(facts?.error ?? ""), base: String(facts?.base ?? ""), rank: String(facts?.rank ?? ""),
        range: isRange ? /** @type {[number, number]} */ ([Math.max(-LIMIT, range[0]), Math.min(LIMIT, range[1])]) : null,
        noise: facts?.noise === "high" || facts?.noise === "low" ? facts.noise : null, twin: typeof facts?.twin === "string" ? facts.twin : null,
      }];
    }),
  );

/** The files that fit what is searched for: all its words, in any order. Names that begin with it come first. @param {string[]} names @param {string} search @returns {string[]} */
export const matching = (names, search) => {
  const wanted = search.trim().toLowerCase();
  const words = wanted.split(/\s+/).filter(Boolean);
  const plain = (/** @type {string} */ name) => name.replace(/\.safetensors$/, "").toLowerCase();
  const begins = (/** @type {string} */ name) => plain(name).replace(/^.*[\\/]/s, "").startsWith(wanted);
  const found = names.filter((name) => words.every((word) => plain(name).includes(word)));
  return [...found.filter(begins), ...found.filter((name) => !begins(name))];
};
