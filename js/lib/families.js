// @ts-check
/** What is known of a module from its name, as in `difflora/names/families`: roles, stack, place in the model. */
import { MODULES } from "./family_tables.js";

/** What selections know a module as. */
export const ROLES = ["attn", "self_attn", "cross_attn", "ffn", "audio", "text", "image"];

/**
 * @typedef {object} Own
 * @property {string[]} parts of its template, "#" for numbers of blocks
 * @property {Set<string>} roles
 * @property {number} order
 * @property {number[]} numbered which parts are numbers of blocks
 * @property {string} stack what stands before the number of its innermost block, without the numbers before that
 * @property {boolean} isInner whether "blocks 3" is not this stack, although it is called blocks
 */

/** Name with "#" for every number -> what it may be. @type {Map<string, Own[]>} */
const TABLE = new Map();

MODULES.forEach(([template, words], order) => {
  const parts = template.split(".");
  const inside = parts.flatMap((part, at) => (part === "#" && at < parts.length - 1 ? [at] : []));
  const numbered = inside.filter((at) => !inside.includes(at - 1));
  const roles = new Set(words.split(" ").filter(Boolean));
  const isInner = roles.delete("inner");
  const stack = inside.length ? parts.slice(0, inside[inside.length - 1]).join(".") : "";
  const key = parts.map((part) => (isNumber(part) ? "#" : part)).join(".");
  TABLE.set(key, [...(TABLE.get(key) ?? []), { parts, roles, order, numbered, stack, isInner }]);
});

/** Names are few and are looked up again and again while somebody paints. @type {Map<string, Own | null>} */
const asked = new Map();

/** What is known of a module of some family; null for other names. @param {string} name @returns {Own | null} */
export const ownOf = (name) => {
  const before = asked.get(name);
  if (before !== undefined) return before;
  const parts = name.split(".");
  const entries = TABLE.get(parts.map((part) => (isNumber(part) ? "#" : part)).join(".")) ?? [];
  const found = entries.find((own) => own.parts.every((part, at) => part === "#" || part === parts[at])) ?? null;
  if (asked.size > 20_000) asked.clear();
  asked.set(name, found);
  return found;
};

/** @param {string} part */
function isNumber(part) {
  return part === "#" || /^(?:0|[1-9][0-9]{0,3})$/.test(part);
}
