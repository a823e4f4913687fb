// @ts-check
/** What the page knows about the LoRA that comes into a node: from what the nodes around it said. */
import { after, isLinked, loraInputs, sourcesOf, widgetOf } from "./graph.js";
import { Selection, SelectionError } from "./selection.js";

/** @typedef {import("./graph.js").Node} Node */
/** @typedef {Record<string, import("./messages.js").ModuleNumbers>} Modules */
/** @typedef {(node: Node) => import("./messages.js").Message | null} Said what a node said last */

/**
 * Which modules come into a node: told by the nearest node before it that knows.
 * @param {Node} node @param {Said} said @param {Node[]} seen behind it @returns {Modules | null}
 */
const modulesInto = (node, said, seen = []) => {
  for (const source of loraInputs(node)) {
    const list = seen.includes(source) ? null : modulesOutOf(source, said, [...seen, node]);
    if (list) return list;
  }
  return said(node)?.modules ?? null;
};

/** Which modules come out of a node. What Select Blocks leaves out follows its text at once, without a run. @param {Node} node @param {Said} said @param {Node[]} seen @returns {Modules | null} */
const modulesOutOf = (node, said, seen) => {
  if (node.comfyClass !== "DiffLoraSelectBlocks") return said(node)?.modules ?? modulesInto(node, said, seen);
  const list = modulesInto(node, said, seen);
  const text = isLinked(node, "selection") ? said(node)?.selection : String(widgetOf(node, "selection")?.value);
  if (!list || text === undefined || widgetOf(node, "rest")?.value !== "leave out") return list;
  try {
    const chosen = Selection.parse(text).weights(Object.keys(list));
    return Object.fromEntries(Object.entries(list).filter(([name]) => chosen.has(name)));
  } catch (error) {
    if (!(error instanceof SelectionError)) throw error;
    return list; // that node says what is wrong
  }
};

/**
 * The modules of the LoRA that comes into a node, and all that is known about them. Their numbers are told by whatever has
 * measured them: the nodes behind this one (Re-rank), and better still those beside it on the same wires (Analyze).
 * @param {Node} node @param {Said} said @returns {Modules | null}
 */
export const modulesBefore = (node, said) => {
  const list = modulesInto(node, said);
  if (!list) return null;
  const sources = sourcesOf(node);
  // A file may call a module __proto__: only a map without a prototype takes that for a name like any other.
  /** @type {Modules} */
  const known = Object.create(null);
  for (const [name, numbers] of Object.entries(list)) known[name] = { ...numbers };
  const behind = after(node);
  const measured = [...behind.flatMap(after), ...behind, ...sources.flatMap(after)].filter((other) => other !== node);
  for (const other of measured) {
    for (const [name, numbers] of Object.entries(said(other)?.modules ?? {})) if (name in known) Object.assign(known[name], numbers);
  }
  return known;
};
