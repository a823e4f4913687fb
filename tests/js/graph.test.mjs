// @ts-check
/** Walking along wires, and what the page concludes from what the nodes around said. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { andAllBehind, fedBySweep, filesBefore, makersOf, nodeOfRun, nodesByRunId, savesOf, sourcesOf } from "../../js/lib/graph.js";
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

test("all nodes are listed by the ids they have in a run, those inside subgraphs too", () => {
  const inner = { _nodes: [{ id: 2 }, { id: 3, subgraph: { _nodes: [{ id: 2, deep: true }] } }] };
  const listed = nodesByRunId({ _nodes: [{ id: 7, subgraph: inner }, { id: 2, outer: true }] });
  assert.deepEqual(listed.map(([id]) => id), ["7", "7:2", "7:3", "7:3:2", "2"]);
  assert.deepEqual(Object.fromEntries(listed)["7:3:2"], { id: 2, deep: true });
  assert.deepEqual(nodesByRunId(undefined), []);
});

/** A sweep that feeds a slider directly and a primitive through a reroute, and the grid that ends it. */
const sweepGraph = () => {
  /** @type {Record<string, any>} */
  const nodes = {};
  const graph = { getNodeById: (/** @type {any} */ id) => nodes[String(id)], links: /** @type {Record<number, any>} */ ({}) };
  const add = (/** @type {string} */ id, /** @type {string} */ comfyClass, /** @type {string[]} */ widgets = []) => {
    nodes[id] = { id, comfyClass, title: comfyClass, graph, inputs: [], outputs: [{ links: [] }], widgets: widgets.map((name) => ({ name, value: 1 })) };
    nodes[id].getInputNode = (/** @type {number} */ index) => nodes[graph.links[nodes[id].inputs[index]?.link]?.origin_id];
  };
  let last = 0;
  const wire = (/** @type {string} */ from, /** @type {string} */ to, /** @type {string} */ name, widget = false) => {
    last += 1;
    graph.links[last] = { origin_id: from, target_id: to, target_slot: nodes[to].inputs.length };
    nodes[from].outputs[0].links.push(last);
    nodes[to].inputs.push({ name, type: "*", link: last, ...(widget ? { widget: { name } } : {}) });
  };
  add("1", "DiffLoraStrengthSweep");
  add("2", "DiffLoraSliderModel", ["strength"]);
  add("3", "Reroute");
  add("4", "PrimitiveFloat", ["value"]);
  add("5", "DiffLoraSliderModel", ["strength"]);
  add("6", "KSampler");
  add("7", "DiffLoraSweepGrid");
  add("8", "DiffLoraSliderResponse");
  add("9", "SaveImage");
  wire("1", "2", "strength", true);
  wire("1", "3", "");
  wire("3", "4", "value", true);
  wire("4", "5", "strength", true);
  wire("2", "6", "model");
  wire("5", "6", "other");
  wire("6", "7", "images");
  wire("7", "8", "sweep");
  wire("6", "9", "images");
  return nodes;
};

test("a sweep's strength arrives at widgets, through reroutes, and not beyond a primitive", () => {
  const nodes = sweepGraph();
  assert.deepEqual(fedBySweep(nodes[7]).map(({ node, index, name }) => [node.id, index, name]), [["2", 0, "strength"], ["4", 0, "value"]]);
  nodes[7].inputs[0].link = null;
  assert.deepEqual(fedBySweep(nodes[7]), []);
});

test("behind a grid is all that depends on it, and nothing beside", () => {
  assert.deepEqual(andAllBehind(sweepGraph()[7]).map(({ id }) => id), ["7", "8"]);
});

test("a Sweep Response knows the sliders that made its clips, and a slider the node that saves its LoRA", () => {
  const nodes = sweepGraph();
  nodes[8].inputs[0].name = "sweep";
  assert.deepEqual(makersOf(nodes[8]).map(({ id }) => id).sort(), ["1", "2", "3", "4", "5", "6"]);
  nodes[7].inputs[0].name = "else";
  assert.deepEqual(makersOf(nodes[8]), []);
  const { nodes: pair } = graphOf({ ...PAIR, 7: ["DiffLoraSliderModel", ["6"]], 8: ["DiffLoraSave", ["6"]], 9: ["DiffLoraSave", ["3"]] });
  pair[7].inputs[0].name = "lora";
  assert.deepEqual(savesOf(pair[7]).map(({ id }) => id), ["8"]);
  assert.deepEqual(filesBefore(pair[7]), ["", ""]);
});
