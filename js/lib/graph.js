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
export const after = (node) =>
  (node.outputs ?? []).flatMap((output) =>
    (output.links ?? []).flatMap((/** @type {number} */ id) => {
      const link = node.graph?.getLink?.(id) ?? node.graph?.links?.[id];
      return node.graph?.getNodeById?.(link?.target_id) ?? [];
    }),
  );

/** The nodes that a node's LoRAs come from directly. @param {Node} node @returns {Node[]} */
export const loraInputs = (node) =>
  (node.inputs ?? []).flatMap((input, index) => (input.type === "LORA_DELTA" ? (before(node, index) ?? []) : []));

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
