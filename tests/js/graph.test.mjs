// @ts-check
/** Walking along wires, and what the page concludes from what the nodes around said. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { nodeOfRun, sourcesOf } from "../../js/lib/graph.js";
import { modulesBefore } from "../../js/lib/modules.js";

/** Nodes in a row or as given: id -> [class, ids that its LoRAs come from, widgets]. @param {Record<string, [string, string[], Record<string, any>?]>} plan */
const graphOf = (plan) => {
  /** @type {Record<string, any>} */
  const nodes = {};
  const graph = { getNodeById: (/** @type {any} */ id) => nodes[String(id)], links: /** @type {Record<number, any>} */ ({}) };
  for (const [id, [comfyClass, , widgets]] of Object.entries(plan)) {
    nodes[id] = { id, comfyClass, graph, inputs: [], outputs: [{ links: [] }], widgets: Object.entries(widgets ?? {}).map(([name, value]) => ({ name, value })) };
    nodes[id].getInputNode = (/** @type {number} */ index) => nodes[nodes[id].inputs[index].from];
  }
  let link = 0;
  for (const [id, [, from]] of Object.entries(plan)) {
    for (const source of from) {
      link += 1;
      graph.links[link] = { target_id: id };
      nodes[id].inputs.push({ type: "LORA_DELTA", link, from: source });
      nodes[source].outputs[0].links.push(link);
    }
  }
  return { nodes, graph };
};

const PAIR = /** @type {Record<string, [string, string[], Record<string, any>?]>} */ ({
  1: ["DiffLoraLoad", []],
  2: ["DiffLoraLoad", []],
  3: ["DiffLoraSubtract", ["1", "2"]],
  4: ["DiffLoraSelectBlocks", ["3"], { selection: "attn", rest: "leave out" }],
  5: ["DiffLoraSelectBlocks", ["4"], { selection: "all", rest: "leave out" }],
  6: ["DiffLoraRerank", ["4"]],
});

test("sources come nearest first and once, even in a circle", () => {
  const { nodes } = graphOf({ ...PAIR, 1: ["DiffLoraLoad", ["6"]] });
  assert.deepEqual(sourcesOf(nodes[4]).map(({ id }) => id), ["3", "1", "2", "6", "4"]);
});

test("what comes into a node is told by the nearest that knows; what an earlier selection leaves out is gone", () => {
  const { nodes } = graphOf(PAIR);
  /** @type {Record<string, any>} */
  const said = { 3: { modules: { "blocks.0.self_attn.q": {}, "blocks.0.ffn.0": {}, "blocks.1.self_attn.q": {} } } };
  const told = (/** @type {any} */ node) => said[node.id] ?? null;
  assert.deepEqual(Object.keys(modulesBefore(nodes[4], told) ?? {}), ["blocks.0.self_attn.q", "blocks.0.ffn.0", "blocks.1.self_attn.q"]);
  assert.deepEqual(Object.keys(modulesBefore(nodes[5], told) ?? {}), ["blocks.0.self_attn.q", "blocks.1.self_attn.q"]);
  assert.equal(modulesBefore(nodes[3], () => null), null);
});

test("sizes come from what measured them, also under a name that every object has", () => {
  const { nodes } = graphOf(PAIR);
  const modules = JSON.parse('{"__proto__": {}, "blocks.0.self_attn.q": {}}');
  const measured = JSON.parse('{"__proto__": {"norm": 2}, "blocks.0.self_attn.q": {"norm": 3}, "other": {"norm": 9}}');
  const known = modulesBefore(nodes[4], (node) => (node.id === "3" ? { modules } : node.id === "6" ? { modules: measured } : null));
  assert.deepEqual(Object.entries(known ?? {}), [["__proto__", { norm: 2 }], ["blocks.0.self_attn.q", { norm: 3 }]]);
});

test("a node inside subgraphs is found by the id it has in a run", () => {
  const inner = { getNodeById: (/** @type {any} */ id) => (String(id) === "2" ? { id: 2 } : undefined) };
  const root = { getNodeById: (/** @type {any} */ id) => (String(id) === "7" ? { id: 7, subgraph: inner } : undefined) };
  assert.deepEqual(nodeOfRun(root, "7:2"), { id: 2 });
  assert.equal(nodeOfRun(root, "2"), null);
  assert.equal(nodeOfRun(root, "2:7"), null);
});
