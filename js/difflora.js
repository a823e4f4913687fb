// @ts-check
/**
 * The face of the pack: widgets that show and edit what ordinary ComfyUI widgets hold. The only state is in those, so
 * saved workflows, copy and paste, undo and API prompts need nothing from here.
 */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { readMessage } from "./lib/messages.js";
import { css, inkOn, ramp } from "./lib/heat.js";
import { viewPath } from "./lib/player.js";
import { Selection, SelectionError } from "./lib/selection.js";
import { retellError, setWords } from "./lib/words.js";
import { blockGrid } from "./widgets/block_grid.js";
import { blockTiles } from "./widgets/block_tiles.js";
import { el } from "./widgets/dom.js";
import { playerView } from "./widgets/player.js";
import { reportView } from "./widgets/report.js";
import { spectrumChart } from "./widgets/spectrum.js";
import { strengthSlider } from "./widgets/strength_slider.js";

/** @typedef {any} Node a LiteGraph node; its types differ between the frontends that this must run on */
/** @typedef {{ element: HTMLElement, refresh: () => void, remove?: () => void, isReport?: boolean, quiet?: "lines" | "problems" }} View */

/** @typedef {{ node: Node, draw: () => void, seen: boolean }} Shown a view on a node, and whether it can be seen */

/** Every view on the page, by the element it is in. @type {Map<Element, Shown>} */
const views = new Map();

/** The nodes are drawn by Vue now, not on the canvas. */
const isVue = () => Boolean(/** @type {any} */ (window).LiteGraph.vueNodesMode);

/** What a node said in its last run. @param {Node} node */
const messageOf = (node) => {
  const outputs = /** @type {Record<string, any>} */ (app.nodeOutputs ?? {});
  const graph = node?.graph;
  const inside = graph && graph !== graph.rootGraph && graph.id ? outputs[`${graph.id}:${node.id}`] : null;
  const raw = (inside ?? outputs[String(node?.id)] ?? node?.diffloraOutput)?.difflora;
  if (typeof raw !== "object" || raw === null) return null;
  if (!read.has(raw)) read.set(raw, readMessage(raw));
  return read.get(raw) ?? null;
};

/** Messages that have been checked already: they can be large, and are asked for whenever a widget is drawn. @type {WeakMap<object, ReturnType<typeof readMessage>>} */
const read = new WeakMap();

/** What went wrong in the last run, by node. @type {WeakMap<Node, string>} */
let failures = new WeakMap();

/** A node by the id it has in a run: inside subgraphs, the ids of all the nodes that it is in come first. @param {string} id @returns {Node | null} */
const nodeOfRun = (id) => {
  const path = id.split(":");
  const last = /** @type {string} */ (path.pop());
  /** @type {any} */
  let graph = app.graph;
  for (const outer of path) graph = graph?.getNodeById?.(outer)?.subgraph;
  return graph?.getNodeById?.(last) ?? null;
};

/** The report of a node's last run; if that failed, why. @param {Node} node @returns {import("./lib/messages.js").Report | null} */
const reportOf = (node) => {
  const failure = failures.get(node);
  if (failure) return { title: { text: node.title ?? "" }, lines: [{ text: retellError(failure), level: "error" }] };
  return messageOf(node)?.report ?? null;
};

/** The node at the other end of an input's wire. @param {Node} node @param {number} index @returns {Node | null} */
const before = (node, index) => node.getInputNode?.(index) ?? null;

/** The nodes at the other ends of an output's wires. @param {Node} node @returns {Node[]} */
const after = (node) =>
  (node.outputs ?? []).flatMap((/** @type {any} */ output) =>
    (output.links ?? []).flatMap((/** @type {number} */ id) => {
      const link = node.graph?.getLink?.(id) ?? node.graph?.links?.[id];
      return node.graph?.getNodeById?.(link?.target_id) ?? [];
    }),
  );

/** Nodes of this pack from which LoRAs come, the nearest first. @param {Node} node */
const sourcesOf = (node) => {
  /** @type {Node[]} */
  const sources = [];
  const waiting = [node];
  while (waiting.length) {
    const here = /** @type {Node} */ (waiting.shift());
    for (let index = 0; index < (here.inputs?.length ?? 0); index++) {
      const source = here.inputs[index].type === "LORA_DELTA" ? before(here, index) : null;
      if (!source || sources.includes(source)) continue;
      sources.push(source);
      waiting.push(source);
    }
  }
  return sources;
};

/** @typedef {Record<string, import("./lib/messages.js").ModuleNumbers>} Modules */

/**
 * Which modules come into a node: told by the nearest node before it that knows.
 * @param {Node} node @param {Node[]} seen behind it @returns {Modules | null}
 */
const modulesInto = (node, seen = []) => {
  for (let index = 0; index < (node.inputs?.length ?? 0); index++) {
    const source = node.inputs[index].type === "LORA_DELTA" ? before(node, index) : null;
    const list = source && !seen.includes(source) ? modulesOutOf(source, [...seen, node]) : null;
    if (list) return list;
  }
  return messageOf(node)?.modules ?? null;
};

/** Which modules come out of a node. What Select Blocks leaves out follows its text at once, without a run. @param {Node} node @param {Node[]} seen @returns {Modules | null} */
const modulesOutOf = (node, seen) => {
  if (node.comfyClass !== "DiffLoraSelectBlocks") return messageOf(node)?.modules ?? modulesInto(node, seen);
  const list = modulesInto(node, seen);
  const value = (/** @type {string} */ name) => node.widgets.find((/** @type {any} */ w) => w.name === name)?.value;
  const text = isLinked(node, "selection") ? messageOf(node)?.selection : String(value("selection"));
  if (!list || text === undefined || value("rest") !== "leave out") return list;
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
 * @param {Node} node
 */
const modulesBefore = (node) => {
  const list = modulesInto(node);
  if (!list) return null;
  const sources = sourcesOf(node);
  // A file may call a module __proto__: only a map without a prototype takes that for a name like any other.
  /** @type {Record<string, any>} */
  const known = Object.create(null);
  for (const [name, numbers] of Object.entries(list)) known[name] = { ...numbers };
  const behind = after(node);
  const measured = [...behind.flatMap(after), ...behind, ...sources.flatMap(after)].filter((other) => other !== node);
  for (const other of measured) {
    for (const [name, numbers] of Object.entries(messageOf(other)?.modules ?? {})) if (name in known) Object.assign(known[name], numbers);
  }
  return known;
};

/** Whether a widget's value comes from a wire. @param {Node} node @param {string} name */
const isLinked = (node, name) => {
  const input = node.inputs?.find((/** @type {any} */ i) => i.widget?.name === name);
  return input?.link !== undefined && input?.link !== null;
};

/** An ordinary widget of a node, as a value to read, write and watch. @param {Node} node @param {string} name @param {() => void} changed */
const field = (node, name, changed) => {
  const widget = node.widgets.find((/** @type {any} */ w) => w.name === name);
  const callback = widget.callback;
  widget.callback = function (/** @type {any[]} */ ...values) {
    const result = callback?.apply(this, values);
    changed();
    return result;
  };
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
 * Put a view on a node. It is made when it is seen first. Its height is that of its content, in both renderers.
 * @param {Node} node @param {string} name @param {number} width smallest width of the node
 * @param {(changed: () => void) => View} make makes the view; `changed` is to be called when what it shows has changed
 * @param {number} least its height before that is known
 */
const attach = (node, name, width, make, least = 60) => {
  const inner = el("div", { class: "difflora-inner" });
  const outer = el("div", { class: "difflora-outer", "aria-busy": "true" }, inner);
  let height = 0;
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
    // A node that somebody has made larger keeps its room; a loaded one keeps its size.
    const room = (height || !least) && node.size[1] + now - height;
    height = now;
    if (isVue()) return; // there, nodes grow with their content
    node.setSize([node.size[0], Math.max(room || node.size[1], node.computeSize()[1])]);
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
          failures.delete(node);
          shown.draw();
        });
        parts = view.isReport ? [view] : [view, reportView({ report: () => reportOf(node), quiet: view.quiet ?? "lines" })];
        inner.append(...parts.map(({ element }) => element));
        grown.observe(inner);
      }
      for (const part of parts) part.refresh();
    },
    seen: false,
  };
  views.set(outer, shown);
  sight.observe(outer);
  const { onRemoved, onConfigure, onConnectionsChange, onExecuted } = node;
  node.onRemoved = function (/** @type {any[]} */ ...values) {
    views.delete(outer);
    sight.unobserve(outer);
    grown.disconnect();
    for (const part of parts) part.remove?.();
    return onRemoved?.apply(this, values);
  };
  node.onConfigure = function (/** @type {any[]} */ ...values) {
    const result = onConfigure?.apply(this, values);
    later([outer]);
    return result;
  };
  node.onConnectionsChange = function (/** @type {any[]} */ ...values) {
    const result = onConnectionsChange?.apply(this, values);
    later();
    return result;
  };
  node.onExecuted = function (/** @type {any} */ output, /** @type {any[]} */ ...values) {
    const result = onExecuted?.call(this, output, ...values);
    node.diffloraOutput = output;
    later();
    return result;
  };
  if (node.size[0] < width) node.setSize([width, node.size[1]]);
};

/** Nothing is drawn that cannot be seen: a graph with many grids loads as fast as one without. */
const sight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const shown = views.get(target);
    if (shown) shown.seen = isIntersecting;
  }
  draw();
});

let waiting = false;

/** Draw what is busy and can be seen, when the page has nothing else to do, and a part at a time. */
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
const replaceStale = () => {
  if (!isVue()) return;
  for (const [outer, { node }] of views) {
    if (outer.isConnected || node.graph !== app.canvas.graph) continue;
    const stale = document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"] .difflora-outer`);
    if (stale && !views.has(stale)) stale.replaceWith(outer);
  }
};

/** Show views anew, soon. @param {Iterable<Element>} which */
const later = (which = views.keys()) => {
  for (const outer of which) outer.setAttribute("aria-busy", "true");
  draw();
};

/** @param {Node} node */
const withGrid = (node) =>
  attach(node, "difflora_grid", 360, (changed) => {
    const [text] = ["selection", "rest"].map((name) => field(node, name, () => {
      changed();
      later([...views].flatMap(([outer, shown]) => (sourcesOf(shown.node).includes(node) ? [outer] : [])));
    }));
    return blockGrid({
      read: () => String(text.read() ?? ""),
      write: text.write,
      linked: text.linked,
      lastRun: () => messageOf(node)?.selection ?? null,
      modules: () => modulesBefore(node),
    });
  });

/** @param {Node} node */
const withTiles = (node) =>
  attach(node, "difflora_blocks", 300, (changed) => {
    const text = field(node, "blocks", changed);
    return blockTiles({ read: () => String(text.read() ?? ""), write: text.write, linked: text.linked });
  });

/** @param {Node} node */
const withSlider = (node) =>
  attach(node, "difflora_strength", 300, (changed) => {
    const strength = field(node, "strength", changed);
    return strengthSlider({
      read: () => Number(strength.read()) || 0,
      write: strength.write,
      linked: strength.linked,
      recommended: () => messageOf(node)?.strength_range ?? null,
    });
  });

/** @param {Node} node */
const withSpectrum = (node) =>
  attach(node, "difflora_spectrum", 340, (changed) => {
    const [rule, rank, energy, ratio, most] = ["rule", "rank", "energy", "ratio", "max_rank"].map((name) => field(node, name, changed));
    const kinds = /** @type {const} */ (["energy", "ratio", "knee"]);
    return spectrumChart({
      spectrum: () => messageOf(node)?.spectrum ?? null,
      rule: () => ({
        kind: kinds.find((kind) => kind === rule.read()) ?? "rank",
        rank: Number(rank.read()),
        energy: Number(energy.read()),
        ratio: Number(ratio.read()),
        most: Number(most.read()),
      }),
      writeRank: rank.write,
      linked: rank.linked,
    });
  });

/** @param {Node} node */
const withReport = (node) => attach(node, "difflora_report", 300, () => reportView({ report: () => reportOf(node) }));

/** Nothing, until something has gone wrong. @param {Node} node */
const withProblems = (node) =>
  attach(node, "difflora_report", 0, () => reportView({ report: () => reportOf(node), quiet: "problems" }), 0);

/** @param {Node} node */
const withPlayer = (node) =>
  attach(node, "difflora_player", 460, () =>
    playerView({ player: () => messageOf(node)?.player ?? null, url: (video) => api.apiURL(viewPath(video)) }),
  );

/** @type {Record<string, (node: Node) => void>} */
const FACES = {
  DiffLoraLoad: withReport,
  DiffLoraSubtract: withReport,
  DiffLoraAnalyze: withReport,
  DiffLoraSave: withReport,
  DiffLoraExtract: withReport,
  DiffLoraSliderResponse: withReport,
  DiffLoraLoadCheckpoints: withReport,
  DiffLoraCompareCheckpoints: withReport,
  DiffLoraCheckPairs: withReport,
  DiffLoraTrainingRecipe: withReport,
  DiffLoraEmptyText: withProblems,
  DiffLoraImageFolder: withProblems,
  DiffLoraSavePair: withProblems,
  DiffLoraStrengthSweep: withProblems,
  DiffLoraSelectBlocks: withGrid,
  DiffLoraRerank: withSpectrum,
  DiffLoraSliderModel: withSlider,
  DiffLoraSliderWanVideo: withSlider,
  DiffLoraSweepGrid: withPlayer,
  DiffLoraABCompare: withPlayer,
  DiffLoraBlockToggle: withTiles,
  DiffLoraBlockToggleWanVideo: withTiles,
};

/** The same for a node's labels, where they still show the id. @param {Node} node */
const label = (node) => {
  const texts = nodeTexts[node.comfyClass];
  if (!texts) return;
  for (const widget of node.widgets ?? []) {
    const text = texts.inputs?.[widget.name]?.name;
    if (text && (!widget.label || widget.label === widget.name)) widget.label = text;
    if (text && widget.element?.placeholder === widget.name) widget.element.placeholder = text;
  }
  for (const input of node.inputs ?? []) {
    const text = texts.inputs?.[input.name]?.name;
    if (text && (!input.localized_name || input.localized_name === input.name)) input.localized_name = text;
  }
};

/** The style sheet, and for both themes the heat colours with what can be read on them. */
const addStyle = () => {
  const variables = (/** @type {boolean} */ dark) => ramp(dark).map((rgb, step) => `--dl-heat-${step}: ${css(rgb)}; --dl-on-heat-${step}: ${css(inkOn(rgb))};`).join(" ");
  document.head.append(
    el("link", { rel: "stylesheet", href: new URL("./difflora.css", import.meta.url).href }),
    el("style", { text: `:root { ${variables(false)} } .dark-theme { ${variables(true)} }` }),
  );
};

/** Texts of nodes in the user's language, as in `locales/<language>/nodeDefs.json`. @type {Record<string, any>} */
let nodeTexts = {};

/** Words in the user's language, from `locales/`. English is built in, so nothing is missing if this fails. */
const loadWords = async () => {
  const language = app.ui.settings.getSettingValue("Comfy.Locale");
  if (!language || language === "en") return;
  const answer = await api.fetchApi("/i18n");
  if (!answer.ok) return;
  const all = await answer.json();
  const own = all[language] ?? all[language.split("-")[0]];
  setWords(own?.difflora, own?.diffloraSentences, own?.diffloraErrors);
  nodeTexts = own?.nodeDefs ?? {};
};

/** Older frontends (1.32) lose the translations of packs when they load their own. @param {Record<string, any>} defs */
const translate = (defs) => {
  for (const [id, texts] of Object.entries(nodeTexts)) {
    const def = id.startsWith("DiffLora") ? defs[id] : null;
    if (!def) continue;
    Object.assign(def, { display_name: texts.display_name, description: texts.description });
    for (const group of [def.input?.required, def.input?.optional]) {
      for (const [name, spec] of Object.entries(group ?? {})) {
        const text = texts.inputs?.[name];
        if (text) spec[1] = { ...spec[1], display_name: text.name, tooltip: text.tooltip };
      }
    }
    for (const [index, text] of Object.entries(texts.outputs ?? {})) {
      if (text.name && def.output_name) def.output_name[index] = text.name;
      if (text.tooltip && def.output_tooltips) def.output_tooltips[index] = text.tooltip;
    }
  }
};

app.registerExtension({
  name: "DifferentialLora",
  async init() {
    addStyle();
    await loadWords();
  },
  setup() {
    api.addEventListener("execution_start", () => {
      failures = new WeakMap();
      later();
    });
    api.addEventListener("execution_error", (/** @type {any} */ { detail }) => {
      const node = nodeOfRun(String(detail?.node_id));
      if (node) failures.set(node, String(detail.exception_message ?? "").trim());
      later();
    });
  },
  addCustomNodeDefs(/** @type {Record<string, any>} */ defs) {
    translate(defs);
  },
  nodeCreated(/** @type {Node} */ node) {
    label(node);
    FACES[node.comfyClass]?.(node);
  },
  afterConfigureGraph() {
    later();
    // Two frames: by then Vue has drawn what it does draw anew.
    requestAnimationFrame(() => requestAnimationFrame(replaceStale));
  },
});
