// @ts-check
/** What the widgets do outside their own node: write into other nodes, and have clips encoded. */
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { andAllBehind, fedBySweep, filesBefore, isLinked, makersOf, savesOf, widgetOf } from "../lib/graph.js";
import { fileStem, rangeText, signed } from "../lib/strength.js";
import { say } from "../lib/words.js";

/** @typedef {import("../../../scripts/app.js").Node} Node */

/** LiteGraph's mode of a node that is not run. */
const MUTED = 2;

/** Several changes of the graph as one undo step. @param {() => void} change */
export const asOneStep = (change) => {
  app.canvas.emitBeforeChange();
  try {
    change();
  } finally {
    app.canvas.emitAfterChange();
    app.graph?.setDirtyCanvas(true, true);
  }
};

/** @param {any} node @param {string} name @param {unknown} value */
export const setWidget = (node, name, value) => {
  const widget = widgetOf(node, name);
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
};

/**
 * Write a strength into what a sweep feeds. Its wire is removed, and the sweep's grid, which then has nothing to show, is muted
 * with everything that depends on it. @param {Node} grid @param {number} strength @returns {string} what was done, in words
 */
export const useStrength = (grid, strength) => {
  const fed = fedBySweep(grid);
  asOneStep(() => {
    for (const { node, index, name } of fed) {
      /** @type {any} */ (node).disconnectInput(index);
      setWidget(node, name, strength);
    }
    for (const node of andAllBehind(grid)) /** @type {any} */ (node).mode = MUTED;
  });
  return say("used", fed.map(({ node }) => node.title ?? "").join(", "), signed(strength));
};

/** The Save LoRA nodes for the sliders whose clips a Sweep Response measures, as far as their range is not wired. @param {import("../lib/graph.js").Node} response */
export const savesBehind = (response) =>
  [...new Set(makersOf(response).filter(({ comfyClass }) => comfyClass?.startsWith("DiffLoraSlider")).flatMap(savesOf))].filter((save) => !isLinked(save, "recommended_strength"));

/**
 * Add a Save LoRA after a slider's LoRA, or use the existing one, and fill in what is known. Nothing is written before
 * the next run. @param {Node} slider @param {[number, number] | null} range that is recommended
 */
export const saveSlider = (slider, range) => {
  const index = slider.inputs.findIndex(({ name }) => name === "lora");
  const source = slider.getInputNode(index);
  const link = slider.getInputLink(index);
  if (!source || !link) return;
  const graph = /** @type {any} */ (slider.graph);
  asOneStep(() => {
    let [save] = savesOf(slider);
    if (!save) {
      const made = /** @type {any} */ (window).LiteGraph.createNode("DiffLoraSave");
      made.pos = [slider.pos[0], slider.pos[1] + slider.size[1] + 60];
      graph.add(made);
      source.connect(link.origin_slot, made, 0);
      const name = fileStem(filesBefore(slider));
      if (name) setWidget(made, "filename_prefix", name);
      setWidget(made, "dtype", "bfloat16");
      save = made;
    }
    const text = widgetOf(/** @type {any} */ (save), "recommended_strength");
    if (range && text && !isLinked(/** @type {any} */ (save), "recommended_strength")) setWidget(save, "recommended_strength", rangeText(range));
    app.canvas.selectNode(/** @type {any} */ (save));
    app.canvas.centerOnNode(/** @type {any} */ (save));
  });
};

let exports = 0;

/**
 * Ask the server to encode what a player shows. @param {Record<string, unknown>} view @param {(share: number) => void} moved
 * @param {AbortSignal} signal @returns {Promise<Blob>}
 */
export const encode = async (view, moved, signal) => {
  const id = String(++exports);
  const told = (/** @type {any} */ { detail }) => {
    if (detail?.id === id && detail.max > 0) moved(Math.min(1, detail.value / detail.max));
  };
  const events = /** @type {EventTarget} */ (api);
  events.addEventListener("difflora.export", told);
  try {
    const answer = await api.fetchApi("/differential_lora/export", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ...view, id, client_id: api.clientId }), signal,
    });
    if (answer.ok) return answer.blob();
    const { error } = await answer.json().catch(() => ({}));
    throw new Error(String(error ?? say("noVideo")));
  } finally {
    events.removeEventListener("difflora.export", told);
  }
};
