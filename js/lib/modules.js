// @ts-check
/** What the page knows about the LoRA on a node's input, from the messages of the nodes around it. */
import { after, isLinked, loraInputs, sourcesOf, widgetOf } from "./graph.js";
import { Selection, SelectionError } from "./selection.js";

/** @typedef {import("./graph.js").Node} Node */
/** @typedef {Record<string, import("./messages.js").ModuleNumbers>} Modules */
/** @typedef {(node: Node) => import("./messages.js").Message | null} Said what a node said last */

/**
 * The modules on a node's input, from the nearest node before it that knows them.
 * @param {Node} node @param {Said} said @param {Node[]} seen behind it @param {string} [input] only what comes in there @returns {Modules | null}
 */
const modulesInto = (node, said, seen = [], input = undefined) => {
  for (const source of loraInputs(node, input)) {
    const list = seen.includes(source) ? null : modulesOutOf(source, said, [...seen, node]);
    if (list) return list;
  }
  return input ? null : (said(node)?.modules ?? null);
};

/**
 * The modules on a node's output. Subtract, Select Blocks and Re-rank follow their inputs and widgets at once: their last
 * run may have been on other files. @param {Node} node @param {Said} said @param {Node[]} seen @returns {Modules | null}
 */
const modulesOutOf = (node, said, seen) => {
  if (node.comfyClass === "DiffLoraSelectBlocks") return selected(node, said, modulesInto(node, said, seen));
  if (node.comfyClass === "DiffLoraRerank") return modulesInto(node, said, seen);
  if (node.comfyClass === "DiffLoraSubtract") {
    const [a, b] = ["a", "b"].map((input) => modulesInto(node, said, seen, input));
    if (a && b) {
      const drop = widgetOf(node, "unmatched")?.value === "drop";
      const names = drop ? Object.keys(a).filter((name) => Object.hasOwn(b, name)) : [...Object.keys(a), ...Object.keys(b)];
      return joined(names.map((name) => [name, {}])); // the numbers of one side are not the difference's
    }
  }
  return said(node)?.modules ?? modulesInto(node, said, seen);
};

/** @param {Node} node @param {Said} said @param {Modules | null} list */
const selected = (node, said, list) => {
  const text = isLinked(node, "selection") ? said(node)?.selection : String(widgetOf(node, "selection")?.value);
  if (!list || text === undefined || widgetOf(node, "rest")?.value !== "leave out") return list;
  try {
    const chosen = Selection.parse(text).weights(Object.keys(list));
    return only(list, (name) => chosen.has(name));
  } catch (error) {
    if (!(error instanceof SelectionError)) throw error;
    return list; // that node reports the error
  }
};

// A file may call a module __proto__: only a map without a prototype takes that for a name like any other.

/** @param {Modules} list @param {(name: string) => boolean} wanted @returns {Modules} */
const only = (list, wanted) => joined(Object.entries(list).filter(([name]) => wanted(name)));

/** @param {...(Modules | [string, any][])} lists @returns {Modules} */
const joined = (...lists) => {
  /** @type {Modules} */
  const all = Object.create(null);
  for (const list of lists) for (const [name, numbers] of Array.isArray(list) ? list : Object.entries(list)) all[name] = { ...numbers };
  return all;
};

/**
 * The modules on a node's input, with all that is known about them. Their numbers come from the nodes that measured them:
 * those after this one (Re-rank) or, preferably, those on the same wires (Analyze).
 * @param {Node} node @param {Said} said @returns {Modules | null}
 */
export const modulesBefore = (node, said) => {
  const list = modulesInto(node, said);
  if (!list) return null;
  const sources = sourcesOf(node);
  const known = joined(list);
  const behind = after(node);
  const measured = [...behind.flatMap(after), ...behind, ...sources.flatMap(after)].filter((other) => other !== node);
  for (const other of measured) {
    for (const [name, numbers] of Object.entries(said(other)?.modules ?? {})) if (name in known) Object.assign(known[name], numbers);
  }
  return known;
};
