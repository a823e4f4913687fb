// @ts-check
/**
 * What nodes tell the page. A node's `ui` output has one key, `difflora`: a list with one message (an object, or the
 * same as JSON text). Every part is optional. Numbers and texts come from files that anyone may have made, so each
 * message is checked here, once, and shown as plain text only.
 */

import { readFile, readPlayer } from "./player.js";

/**
 * @typedef {"info" | "warning" | "error"} Level
 *
 * @typedef {object} Sentence
 * @property {string} text in English; or a name, a number
 * @property {string} [template] the English sentence with {0}, {1} … in it: the key of its translations
 * @property {Sentence[]} [values] what fills it in
 *
 * @typedef {Sentence & { level: Level }} ReportLine
 *
 * @typedef {object} Report
 * @property {Sentence} title usually a file name
 * @property {ReportLine[]} lines
 *
 * @typedef {object} ModuleNumbers How large one module's change is. Norms are Frobenius norms at strength 1.
 * @property {number} [norm] of the node's result (for Subtract: of A - B)
 * @property {number} [norm_a]
 * @property {number} [norm_b]
 * @property {number} [cosine] between A and B, -1 to 1
 * @property {number} [energy] share of the energy that the chosen rank keeps, 0 to 1
 *
 * @typedef {object} Spectrum Singular values before the cut, largest first. Long lists may be cut short.
 * @property {Record<string, number[]>} values
 * @property {Record<string, number>} energy the sum of all squares, of those left out too
 * @property {Record<string, [number, number]>} shape outputs and inputs: a rank costs their sum
 *
 * @typedef {object} MapPreview the weights of a map, as pictures of few places
 * @property {number} width
 * @property {number} height
 * @property {string[]} frames one hexadecimal digit a place, row by row
 *
 * @typedef {object} Side one LoRA of a pair
 * @property {string} name
 * @property {string[]} words that it listens to
 * @property {number} folder which of the loras folders it is in
 *
 * @typedef {object} Pair
 * @property {string[]} offers files that are likely to be the other side
 * @property {Side[]} sides
 * @property {{ noise: "high" | "low", files: string[] } | null} twins the same pair for the other model of Wan2.2
 *
 * @typedef {object} Message
 * @property {Report} [report]
 * @property {Record<string, ModuleNumbers>} [modules] every module of the LoRA that went into the node, in its order
 * @property {Spectrum} [spectrum]
 * @property {string} [selection] the text that picked some of the modules
 * @property {[number, number]} [strength_range] recommended by the file's metadata
 * @property {import("./player.js").Player} [player] clips to play in sync
 * @property {MapPreview} [map]
 * @property {Pair} [pair]
 * @property {import("./player.js").VideoFile[]} [pictures] that the node shows
 * @property {Record<string, unknown>} [ran] the widgets' values in the run, where the widget shows more than that run
 * @property {string} [key] what the server keeps the message under
 * @property {string} [waiting] clips are still to come from other servers: what to ask for them by
 */

const LEVELS = ["info", "warning", "error"];
const MODULE_KEYS = /** @type {const} */ (["norm", "norm_a", "norm_b", "cosine", "energy"]);

/** Reads the `difflora` part of a node's output; what does not have the right shape is left out. @param {unknown} output @returns {Message | null} */
export const readMessage = (output) => {
  const raw = Array.isArray(output) ? output[0] : output;
  const value = typeof raw === "string" ? parseJson(raw) : raw;
  if (!isObject(value)) return null;
  /** @type {Message} */
  const message = {};
  if (isObject(value.report) && Array.isArray(value.report.lines)) {
    message.report = {
      title: readSentence(value.report.title),
      lines: value.report.lines.filter(isObject).map((line) => ({
        ...readSentence(line),
        level: /** @type {Level} */ (LEVELS.includes(String(line.level)) ? String(line.level) : "info"),
      })),
    };
  }
  if (isObject(value.modules)) {
    message.modules = Object.create(null);
    for (const [name, numbers] of Object.entries(value.modules)) {
      if (!isObject(numbers)) continue;
      /** @type {ModuleNumbers} */
      const checked = {};
      for (const key of MODULE_KEYS) if (Number.isFinite(numbers[key])) checked[key] = Number(numbers[key]);
      /** @type {Record<string, ModuleNumbers>} */ (message.modules)[name] = checked;
    }
  }
  if (isObject(value.spectrum) && isObject(value.spectrum.values)) {
    /** @type {Spectrum} */
    const spectrum = { values: Object.create(null), energy: Object.create(null), shape: Object.create(null) };
    const energies = isObject(value.spectrum.energy) ? value.spectrum.energy : {};
    const shapes = isObject(value.spectrum.shape) ? value.spectrum.shape : {};
    for (const [name, values] of Object.entries(value.spectrum.values)) {
      if (!Array.isArray(values) || !values.every((v) => Number.isFinite(v) && v >= 0)) continue;
      const sum = values.reduce((total, v) => total + v * v, 0);
      const shape = shapes[name];
      const known = Array.isArray(shape) && shape.length === 2 && shape.every((side) => Number.isInteger(side) && side > 0);
      spectrum.shape[name] = known ? [shape[0], shape[1]] : [1, 1];
      spectrum.values[name] = values;
      spectrum.energy[name] = Math.max(sum, Number.isFinite(energies[name]) ? Number(energies[name]) : 0);
    }
    message.spectrum = spectrum;
  }
  if (isObject(value.ran)) message.ran = value.ran;
  if (typeof value.key === "string") message.key = value.key;
  if (typeof value.waiting === "string") message.waiting = value.waiting;
  if (typeof value.selection === "string") message.selection = value.selection;
  const range = value.strength_range;
  if (Array.isArray(range) && range.length === 2 && range.every((v) => Number.isFinite(v)) && range[0] < range[1]) {
    message.strength_range = [Math.max(-10, range[0]), Math.min(10, range[1])];
  }
  if (Array.isArray(value.pictures)) message.pictures = value.pictures.filter((picture) => isObject(picture) && picture.filename).map(readFile);
  const player = readPlayer(value.player);
  if (player) message.player = player;
  const map = readMap(value.map);
  if (map) message.map = map;
  const pair = readPair(value.pair);
  if (pair) message.pair = pair;
  return message;
};

/** @param {unknown} value @returns {MapPreview | null} */
const readMap = (value) => {
  if (!isObject(value) || !Array.isArray(value.frames)) return null;
  const { width, height, frames } = value;
  const isSide = (/** @type {unknown} */ side) => Number.isInteger(side) && Number(side) > 0 && Number(side) <= 64;
  if (!isSide(width) || !isSide(height) || !frames.length || frames.length > 64) return null;
  const fits = (/** @type {unknown} */ frame) => typeof frame === "string" && frame.length === width * height && /^[0-9a-f]+$/.test(frame);
  return frames.every(fits) ? { width, height, frames } : null;
};

/** @param {unknown} value @returns {Pair | null} */
const readPair = (value) => {
  if (!isObject(value) || !Array.isArray(value.sides) || value.sides.length !== 2 || !value.sides.every(isObject)) return null;
  const texts = (/** @type {unknown} */ list) => (Array.isArray(list) ? list.filter((text) => typeof text === "string").slice(0, 20) : []);
  const sides = value.sides.map(({ name, words, folder }) => ({ name: String(name ?? ""), words: texts(words), folder: Number.isInteger(folder) && folder >= 0 ? folder : 0 }));
  const files = isObject(value.twins) ? texts(value.twins.files) : [];
  const twins = files.length === 2 ? { noise: /** @type {"high" | "low"} */ (value.twins.noise === "high" ? "high" : "low"), files } : null;
  return { offers: texts(value.offers), sides, twins };
};

/** A text, or a text with its template and values. @param {unknown} value @param {number} depth how many sentences it is in @returns {Sentence} */
const readSentence = (value, depth = 0) => {
  if (!isObject(value)) return { text: String(value ?? "") };
  const text = String(value.text ?? "");
  if (typeof value.template !== "string" || !Array.isArray(value.values) || depth > 3) return { text };
  return { text, template: value.template, values: value.values.map((part) => readSentence(part, depth + 1)) };
};

/** @param {string} text @returns {unknown} */
const parseJson = (text) => {
  try {
    return JSON.parse(text);
  } catch {
    return null; // not ours: another pack may use the same key
  }
};

/** @param {unknown} value @returns {value is Record<string, any>} */
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
