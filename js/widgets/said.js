// @ts-check
/** What nodes said in their last run, as ComfyUI's page keeps it, and what went wrong in it. */
import { app } from "../../../scripts/app.js";
import { nodeOfRun } from "../lib/graph.js";
import { readMessage } from "../lib/messages.js";
import { retellError } from "../lib/words.js";

/** @typedef {import("../../../scripts/app.js").Node} Node */

/** Messages that have been checked already: they can be large, and are asked for whenever a widget is drawn. @type {WeakMap<object, ReturnType<typeof readMessage>>} */
const read = new WeakMap();

/** What went wrong in the last run, by node. @type {WeakMap<Node, string>} */
let failures = new WeakMap();

/** What a node said in its last run. @param {import("../lib/graph.js").Node & { diffloraOutput?: any }} node */
export const messageOf = (node) => {
  const outputs = app.nodeOutputs ?? {};
  const graph = node?.graph;
  const inside = graph && graph !== graph.rootGraph && graph.id ? outputs[`${graph.id}:${node.id}`] : null;
  const raw = (inside ?? outputs[String(node?.id)] ?? node?.diffloraOutput)?.difflora;
  if (typeof raw !== "object" || raw === null) return null;
  if (!read.has(raw)) read.set(raw, readMessage(raw));
  return read.get(raw) ?? null;
};

/** The report of a node's last run; if that failed, why. @param {Node} node @returns {import("../lib/messages.js").Report | null} */
export const reportOf = (node) => {
  const failure = failures.get(node);
  if (failure) return { title: { text: node.title ?? "" }, lines: [{ text: retellError(failure), level: "error" }] };
  return messageOf(node)?.report ?? null;
};

/** A run begins: what went wrong before no longer counts. */
export const forgetFailures = () => (failures = new WeakMap());

/** @param {Node} node */
export const forgetFailure = (node) => failures.delete(node);

/** @param {string} id the node's, in the run @param {string} text */
export const rememberFailure = (id, text) => {
  const node = nodeOfRun(app.graph, id);
  if (node) failures.set(node, text);
};
