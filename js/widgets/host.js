// @ts-check
/** Putting the pack's widgets on nodes: when they are drawn, how high they are, and which ordinary widgets they edit. */
import { app } from "../../../scripts/app.js";
import { isLinked, widgetOf } from "../lib/graph.js";
import { el } from "./dom.js";
import { reportView } from "./report.js";
import { forgetFailure, reportOf } from "./said.js";

/** @typedef {import("../../../scripts/app.js").Node} Node */
/** @typedef {{ element: HTMLElement, refresh: () => void, remove?: () => void, isReport?: boolean, quiet?: "lines" | "problems", isOld?: () => boolean }} View */

/** @typedef {{ node: Node, draw: () => void, seen: boolean }} Shown a view on a node, and whether it can be seen */

/** Every view on the page, by the element it is in. @type {Map<Element, Shown>} */
const views = new Map();

/** The nodes are drawn by Vue now, not on the canvas. */
const isVue = () => Boolean(/** @type {any} */ (window).LiteGraph.vueNodesMode);

/** Run something after a node's own callback. @param {any} node @param {string} name @param {(...values: any[]) => void} act */
export const afterwards = (node, name, act) => {
  const own = node[name];
  node[name] = function (/** @type {any[]} */ ...values) {
    const result = own?.apply(this, values);
    act(...values);
    return result;
  };
};

/** An ordinary widget of a node, as a value to read, write and watch. @param {Node} node @param {string} name @param {() => void} changed */
export const field = (node, name, changed) => {
  const widget = widgetOf(node, name);
  afterwards(widget, "callback", changed);
  return {
    read: () => widget.value,
    /** @param {any} value */
    write: (value) => {
      if (widget.value === value) return;
      widget.value = value;
      widget.callback(value, app.canvas, node);
      app.graph?.setDirtyCanvas(true, true);
    },
    linked: () => isLinked(node, name),
  };
};

/**
 * A node that is as high as what it shows is no step of undo: otherwise the next undo would take back nothing but the height.
 * The state that ComfyUI compares with gets the new height. @param {Node} node
 */
const heightIsNoStep = (node) => {
  const state = /** @type {any} */ (app.extensionManager)?.workflow?.activeWorkflow?.changeTracker?.activeState;
  const graphs = [state, ...(state?.definitions?.subgraphs ?? [])];
  const id = node.graph?.rootGraph === node.graph ? state?.id : node.graph?.id;
  const known = graphs.find((graph) => graph?.id === id)?.nodes?.find((/** @type {any} */ other) => other.id === node.id);
  if (known?.size) known.size = [known.size[0], node.size[1]];
};

/** Before a key press, when ComfyUI looks for changes. It has already seen what a pointer changed, when the button was released. */
export const heightsAreNoStep = () => new Set([...views.values()].map(({ node }) => node)).forEach(heightIsNoStep);

/** The size functions of hidden widgets, from before they were hidden. @type {WeakMap<object, any>} */
const sizes = new WeakMap();

/** Heights that nodes were saved with, in which hidden widgets had no room; LiteGraph has just given them some. @type {WeakMap<Node, number>} */
const loaded = new WeakMap();

/** The canvas leaves room for hidden widgets too; -4 cancels the gap that it adds to each. @param {any} widget @param {boolean} hidden */
const takeNoRoom = (widget, hidden) => {
  if (hidden) {
    sizes.set(widget, widget.computeSize);
    widget.computeSize = () => [0, -4];
  } else widget.computeSize = sizes.get(widget);
};

/**
 * Keep some of a node's widgets out of sight, and show its others. Their values stay, and are sent and saved. Vue's nodes
 * look only when a node is made which of its widgets are hidden, so the style sheet hides their rows: beside an element
 * that says which. @param {Node} node @param {string[]} names
 */
export const hideWidgets = (node, names) => {
  const before = node.computeSize()[1];
  let changed = false;
  const rows = (node.widgets ?? []).filter((/** @type {any} */ widget) => !widget.options?.hidden && !widget.options?.canvasOnly);
  const unseen = rows.flatMap(({ name }, index) => (names.includes(name) ? [index + 1] : [])).join(" ");
  for (const [outer, shown] of views) if (shown.node === node) outer.setAttribute("data-unseen", unseen);
  for (const widget of node.widgets ?? []) {
    const hidden = names.includes(widget.name);
    if (Boolean(widget.hidden) === hidden) continue;
    changed = true;
    widget.hidden = hidden;
    takeNoRoom(widget, hidden);
  }
  const saved = loaded.get(node);
  loaded.delete(node);
  if (!changed || isVue()) return;
  const now = node.computeSize()[1];
  node.setSize([node.size[0], Math.max(saved ?? node.size[1] + now - before, now)]);
  heightIsNoStep(node);
  app.graph?.setDirtyCanvas(true, true);
};

/**
 * Put a view on a node. It is made when it is seen first. Its height is that of its content, in both renderers.
 * @param {Node} node @param {string} name @param {number} width smallest width of the node
 * @param {(changed: () => void) => View} make makes the view; `changed` is to be called when what it shows has changed
 * @param {number} least its height before that is known
 */
export const attach = (node, name, width, make, least = 60) => {
  const inner = el("div", { class: "difflora-inner" });
  const outer = el("div", { class: "difflora-outer", "aria-busy": "true" }, inner);
  let height = 0;
  let asSaved = false; // what comes now was there when the node was saved: there is room for it
  let saved = 0; // the height that the node was loaded with
  let given = 0; // and the height that it has been given since, for what was not known then, such as Wan's forty blocks
  const widget = node.addDOMWidget(name, "difflora", outer, {
    serialize: false,
    hideOnZoom: false,
    getValue: () => "",
    setValue: () => {},
    getMinHeight: () => height || least,
    getMaxHeight: () => height || least,
    margin: least ? 8 : 0,
  });
  widget.serialize = false;
  widget.label = "";

  const grown = new ResizeObserver(() => {
    const content = inner.offsetHeight;
    const now = Math.ceil(content) + (least ? 16 : 0);
    if ((content === 0 && least) || now === height) return;
    // A node that somebody has enlarged keeps its size, and so does a loaded one.
    const room = asSaved ? (node.size[1] === given ? saved : 0) : (height || !least) && node.size[1] + now - height;
    height = now;
    if (isVue()) {
      for (const wait of [100, 600]) setTimeout(() => heightIsNoStep(node), wait); // Vue's nodes grow with their content, a little later
      return;
    }
    const before = node.size[1];
    node.setSize([node.size[0], Math.max(room || node.size[1], node.computeSize()[1])]);
    if (asSaved && node.size[1] > before) [saved, given] = [room || before, node.size[1]];
    heightIsNoStep(node);
    app.graph?.setDirtyCanvas(true, true);
  });

  // On the classic canvas this element lies over the canvas: hand on what is meant for the canvas. Vue nodes do it themselves.
  /** @param {string} type @param {(event: any) => boolean} meant @param {(event: any) => void} hand */
  const forward = (type, meant, hand) =>
    outer.addEventListener(type, (event) => !isVue() && meant(event) && hand(event), { passive: false });
  forward("wheel", (event) => event.target !== document.activeElement, (event) => app.canvas.processMouseWheel(event));
  forward("pointerdown", (event) => event.button === 1, (event) => app.canvas.processMouseDown(event));
  forward("pointermove", (event) => (event.buttons & 4) > 0, (event) => app.canvas.processMouseMove(event));
  forward("pointerup", (event) => event.button === 1, (event) => app.canvas.processMouseUp(event));

  /** @type {View[]} the view, and the report below it */
  let parts = [];
  const shown = {
    node,
    draw: () => {
      if (!parts.length) {
        const view = make(() => {
          asSaved = false;
          forgetFailure(node);
          shown.draw();
        });
        parts = view.isReport ? [view] : [view, reportView({ report: () => reportOf(node), quiet: view.quiet ?? "lines", isOld: view.isOld })];
        inner.append(...parts.map(({ element }) => element));
        grown.observe(inner);
      }
      for (const part of parts) part.refresh();
    },
    seen: false,
  };
  views.set(outer, shown);
  sight.observe(outer);
  afterwards(node, "onRemoved", () => {
    views.delete(outer);
    sight.unobserve(outer);
    grown.disconnect();
    for (const part of parts) part.remove?.();
  });
  afterwards(node, "onConfigure", (data) => {
    if (data?.size) loaded.set(node, data.size[1]);
    asSaved = true;
    later([outer]);
  });
  afterwards(node, "onConnectionsChange", () => later());
  afterwards(node, "onExecuted", (output) => {
    asSaved = false;
    node.diffloraOutput = output;
    later();
  });
  if (node.size[0] < width) node.setSize([width, node.size[1]]);
};

/** Only what can be seen is drawn: a graph with many grids loads as fast as one without. */
const sight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const shown = views.get(target);
    if (shown) shown.seen = isIntersecting;
  }
  draw();
});

let waiting = false;

/** Draw visible views that have changed, in idle time, one part at a time. */
const draw = () => {
  const due = [...views].filter(([outer, { seen }]) => seen && outer.hasAttribute("aria-busy"));
  if (waiting || !due.length) return;
  waiting = true;
  const now = () => {
    waiting = false;
    const end = performance.now() + 10;
    for (const [outer, shown] of due) {
      if (!views.has(outer)) continue;
      outer.removeAttribute("aria-busy");
      shown.draw();
      if (performance.now() > end) break;
    }
    draw();
  };
  // Safari has no idle callbacks.
  if (window.requestIdleCallback) window.requestIdleCallback(now, { timeout: 300 });
  else setTimeout(now, 20);
};

/**
 * After an undo, Vue keeps what stands for a node of the same id, and in it the element of the node that is gone: painting
 * in that would change nothing. Put the new node's element in its place.
 */
export const replaceStale = () => {
  if (!isVue()) return;
  for (const [outer, { node }] of views) {
    if (outer.isConnected || node.graph !== app.canvas.graph) continue;
    const stale = document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"] .difflora-outer`);
    if (stale && !views.has(stale)) stale.replaceWith(outer);
  }
};

/** Draw views again soon. @param {Iterable<Element>} which */
export const later = (which = views.keys()) => {
  for (const outer of which) outer.setAttribute("aria-busy", "true");
  draw();
};

/** Draw the views on all nodes that fit again. @param {(node: Node) => boolean} fits */
export const laterOn = (fits) => later([...views].flatMap(([outer, { node }]) => (fits(node) ? [outer] : [])));
