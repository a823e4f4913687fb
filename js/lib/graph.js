// @ts-check
/** Walking along the wires of a graph. Only those parts of LiteGraph's nodes are used that every frontend has. */

/**
 * @typedef {object} Widget
 * @property {string} name
 * @property {any} value
 *
 * @typedef {object} Slot
 * @property {string} name
 * @property {any} type
 * @property {number | null} [link]
 * @property {number[] | null} [links]
 * @property {{ name: string }} [widget]
 *
 * @typedef {object} Graph
 * @property {string} [id]
 * @property {Graph | null} [rootGraph]
 * @property {(id: any) => any} getNodeById
 * @property {(id: any) => any} [getLink]
 * @property {Record<number, any>} [links]
 *
 * @typedef {object} Node
 * @property {string | number} id
 * @property {string} [comfyClass]
 * @property {string} [title]
 * @property {any} [graph]
 * @property {any[]} [inputs] of Slot
 * @property {any[]} [outputs] of Slot
 * @property {any[]} [widgets] of Widget
 * @property {(index: number) => any} [getInputNode]
 */

/** A node by the id it has in a run: inside subgraphs, the ids of all the nodes that it is in come first. @param {any} root @param {string} id @returns {any} */
export const nodeOfRun = (root, id) => {
  const path = id.split(":");
  const last = path.pop();
  let graph = root;
  for (const outer of path) graph = graph?.getNodeById?.(outer)?.subgraph;
  return graph?.getNodeById?.(last) ?? null;
};

/**
 * All nodes by the ids they have in a run. @param {any} graph @param {string} [outer] what the ids in a subgraph begin with
 * @returns {[string, any][]}
 */
export const nodesByRunId = (graph, outer = "") =>
  (graph?._nodes ?? []).flatMap((/** @type {any} */ node) => [
    /** @type {[string, any]} */ ([`${outer}${node.id}`, node]),
    ...(node.subgraph ? nodesByRunId(node.subgraph, `${outer}${node.id}:`) : []),
  ]);

/** A node's widget by its name. @param {Node} node @param {string} name @returns {any} */
export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** Whether a widget's value comes from a wire. @param {Node} node @param {string} name */
export const isLinked = (node, name) => {
  const input = node.inputs?.find((slot) => slot.widget?.name === name);
  return input?.link !== undefined && input?.link !== null;
};

/** The node at the other end of an input's wire. @param {Node} node @param {number} index @returns {Node | null} */
const before = (node, index) => node.getInputNode?.(index) ?? null;

/** The nodes at the other ends of an output's wires. @param {Node} node @returns {Node[]} */
export const after = (node) => targets(node).map(({ node: target }) => target);

/** The nodes that a node's LoRAs come from directly. @param {Node} node @param {string} [name] of an input: only that @returns {Node[]} */
export const loraInputs = (node, name) =>
  (node.inputs ?? []).flatMap((input, index) => (input.type === "LORA_DELTA" && (!name || input.name === name) ? (before(node, index) ?? []) : []));

/** Nodes of this pack from which LoRAs come, the nearest first. @param {Node} node @returns {Node[]} */
export const sourcesOf = (node) => {
  /** @type {Node[]} */
  const sources = [];
  const waiting = [node];
  for (let here = waiting.shift(); here; here = waiting.shift()) {
    for (const source of loraInputs(here)) {
      if (sources.includes(source)) continue;
      sources.push(source);
      waiting.push(source);
    }
  }
  return sources;
};

/** The widgets that name files, by node. @type {Record<string, string[]>} */
const FILE_WIDGETS = { DiffLoraLoad: ["lora_name"], DiffLoraLoadPair: ["lora_a", "lora_b"] };

/** Names of the files that a node's LoRA is made of. @param {Node} node @returns {string[]} */
export const filesBefore = (node) =>
  sourcesOf(node).flatMap((load) => (FILE_WIDGETS[load.comfyClass ?? ""] ?? []).map((name) => String(widgetOf(load, name)?.value ?? "")));

/**
 * Where the strength of a sweep arrives: the widgets that its Strength Sweep feeds, reroute nodes in between or not.
 * @param {Node} grid the node that shows the clips @returns {{ node: Node, index: number, name: string }[]} node, input and widget
 */
export const fedBySweep = (grid) => {
  const sweep = upstream(grid, "images").find((node) => node.comfyClass === "DiffLoraStrengthSweep");
  /** @type {{ node: Node, index: number, name: string }[]} */
  const fed = [];
  const waiting = sweep ? [sweep] : [];
  const seen = new Set(waiting);
  for (let here = waiting.shift(); here; here = waiting.shift()) {
    for (const { node, index } of targets(here)) {
      const name = node.inputs?.[index]?.widget?.name;
      if (name && widgetOf(node, name)) fed.push({ node, index, name });
      else if (node.inputs?.length === 1 && !seen.has(node)) {
        seen.add(node); // a reroute
        waiting.push(node);
      }
    }
  }
  return fed;
};

/** The inputs at the other ends of an output's wires. @param {Node} node @returns {{ node: Node, index: number }[]} */
const targets = (node) =>
  (node.outputs ?? []).flatMap((output) =>
    (output.links ?? []).flatMap((/** @type {number} */ id) => {
      const link = node.graph?.getLink?.(id) ?? node.graph?.links?.[id];
      const target = node.graph?.getNodeById?.(link?.target_id);
      return target ? [{ node: target, index: link.target_slot }] : [];
    }),
  );

/** Every node behind the clips that a Sweep Response measures: its sliders are among them. @param {Node} response @returns {Node[]} */
export const makersOf = (response) =>
  (response.inputs ?? []).flatMap(({ name }) => (name.startsWith("sweep") ? upstream(response, name).slice(0, 1) : [])).flatMap((grid) => upstream(grid, "images"));

/** The Save LoRA nodes that take the same LoRA as a slider does. @param {Node} slider @returns {Node[]} */
export const savesOf = (slider) =>
  loraInputs(slider, "lora").flatMap((source) => after(source).filter((node) => node.comfyClass === "DiffLoraSave" && loraInputs(node).includes(source)));

/** Every node that an input depends on, the nearest first. @param {Node} node @param {string} input @returns {Node[]} */
const upstream = (node, input) => {
  const first = before(node, node.inputs?.findIndex(({ name }) => name === input) ?? -1);
  const found = first ? [first] : [];
  for (const here of found) {
    for (let index = 0; index < (here.inputs?.length ?? 0); index++) {
      const source = before(here, index);
      if (source && !found.includes(source)) found.push(source);
    }
  }
  return found;
};

/** A node and everything that depends on it. @param {Node} node @returns {Node[]} */
export const andAllBehind = (node) => {
  const found = [node];
  for (const here of found) for (const next of after(here)) if (!found.includes(next)) found.push(next);
  return found;
};
