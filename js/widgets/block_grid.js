// @ts-check
/**
 * The block grid on Select Blocks. The selection text is the only state: the grid shows what the text means and, when a
 * stroke ends, writes the shortest text that means the picture.
 */
import { MODELS, STEPS, cellText, groupsOf, heatStep, inverted, layoutOf, presets, rowLabel, short, strongest, namesOf } from "../lib/grid.js";
import { Selection, SelectionError } from "../lib/selection.js";
import { write } from "../lib/selection_writer.js";
import { retellError, say } from "../lib/words.js";
import { el, hideTip, keepKeys, showTip } from "./dom.js";
import { paintable } from "./paint_surface.js";

/**
 * @typedef {object} Host
 * @property {() => string} read the selection text
 * @property {(text: string) => void} write
 * @property {() => boolean} linked the text comes from a wire
 * @property {() => string | null} lastRun the text of the last run
 * @property {() => Record<string, import("../lib/messages.js").ModuleNumbers> | null} modules what the LoRA holds, once known
 */

/** @typedef {import("../lib/grid.js").Spot} Spot */

const LABEL = 34;

/** A group of columns as people call it, as far as there is room. @param {string} group @param {number} columns */
const groupName = (group, columns) => {
  if (columns > 2 && group === "self_attn") return say("selfAttention");
  if (columns > 2 && group === "cross_attn") return say("crossAttention");
  // Attention between two streams: audio_to_video_attn is a→v.
  return group.replace("_attn", "").replace(/^([a-z])[a-z]*_to_([a-z])[a-z]*$/, "$1→$2");
};

/** @param {Host} host */
export const blockGrid = (host) => {
  let model = Object.keys(MODELS)[0];
  let layout = layoutOf(namesOf(MODELS[model]));
  let layoutKey = "";
  let largest = 0;
  /** @type {Record<string, import("../lib/messages.js").ModuleNumbers> | null} */
  let modules = null;
  /** @type {Map<string, number>} */
  let weights = new Map();
  /** @type {(HTMLElement | null)[][]} */
  let cells = [];
  /** @type {Map<string, HTMLElement>} */
  const headers = new Map();
  /** @type {Map<HTMLElement, string>} what a cell shows now, to write to the page only what changes */
  const shown = new Map();

  const toolbar = el("div", { class: "bar" });
  const table = el("div", { class: "table", role: "grid", "aria-multiselectable": "true", "aria-label": say("grid"), "aria-description": say("gridHelp") });
  const count = el("span", { class: "count" });
  const note = el("div", { class: "note" });
  const problem = el("div", { class: "problem", role: "status", "aria-live": "polite", hidden: true });
  const legend = el("div", { class: "legend" });
  const element = el("div", { class: "difflora difflora-grid" }, toolbar, table, el("div", { class: "foot" }, count, legend), note, problem);

  const brushField = /** @type {HTMLInputElement} */ (keepKeys(el("input", { type: "number", class: "number", step: "0.1", value: "0.5", "aria-label": say("brush"), title: say("brush"), hidden: true })));
  const weightMode = el("button", {
    type: "button", class: "chip mode", text: say("weights"), title: say("weightsTip"), "aria-pressed": "false",
    click: () => {
      const on = weightMode.getAttribute("aria-pressed") !== "true";
      weightMode.setAttribute("aria-pressed", String(on));
      brushField.hidden = !on;
      if (on) brushField.focus();
    },
  });
  const percentField = /** @type {HTMLInputElement} */ (keepKeys(el("input", { type: "number", class: "number", min: "1", max: "100", value: "25", "aria-label": say("percent"), title: say("percent") })));
  const strongestChip = el("button", {
    type: "button", class: "chip", text: say("strongest"),
    click: () => modules && replace(strongest(modules, layout.names, Math.max(1, Math.min(100, Number(percentField.value) || 25)))),
  });
  percentField.addEventListener("keydown", (event) => event.key === "Enter" && strongestChip.click());
  const modelField = keepKeys(el("select", { class: "field", "aria-label": say("model"), title: say("model"), change: (event) => {
    model = event.target.value;
    refresh();
  } }, ...Object.keys(MODELS).map((name) => el("option", { value: name, text: name }))));

  const brush = () => {
    const value = Number(brushField.value);
    return weightMode.getAttribute("aria-pressed") === "true" && brushField.value.trim() && Number.isFinite(value) ? value : 1;
  };

  /** @param {Spot} spot */
  const nameAt = ({ row, column }) => (row === layout.rows.length ? layout.outside[column] : layout.rows[row]?.cells[column]) ?? null;

  /** @param {Spot} spot */
  const members = ({ row, column }) => {
    const rows = row >= 0 ? [row] : layout.rows.map((_, index) => index);
    let columns = layout.columns.map((_, index) => index);
    if (row === -2) {
      const group = groupsOf(layout.columns).find(({ first, count: n }) => column >= first && column < first + n);
      columns = group ? columns.slice(group.first, group.first + group.count) : [];
    } else if (column >= 0) columns = [column];
    if (row === layout.rows.length && column < 0) columns = layout.outside.map((_, index) => index);
    return rows.flatMap((r) => columns.map((c) => ({ row: r, column: c }))).filter((spot) => nameAt(spot) !== null);
  };

  const surface = paintable({
    element: table,
    size: (row) => {
      const loose = row === layout.rows.length;
      return { rows: cells.length, columns: loose ? layout.outside.length : layout.columns.length, loose };
    },
    cell: ({ row, column }) => (row >= 0 && column >= 0 ? cells[row]?.[column] ?? null : headers.get(`${row},${column}`) ?? null),
    members,
    get: (spot) => weights.get(nameAt(spot) ?? "") ?? 0,
    set: (spot, weight) => {
      const name = nameAt(spot);
      if (name === null) return;
      if (weight) weights.set(name, weight);
      else weights.delete(name);
      const cell = cells[spot.row]?.[spot.column];
      if (cell) show(cell, name);
      showCount();
    },
    brush,
    frozen: host.linked,
    done: () => host.write(write(weights, layout.names)),
    tell: (spot) => {
      const target = spot.row >= 0 && spot.column >= 0 ? cells[spot.row]?.[spot.column] : headers.get(`${spot.row},${spot.column}`);
      if (target) showTip(target, facts(spot));
    },
  });

  /** What is known about a cell or a line, in words. @param {Spot} spot */
  const facts = (spot) => {
    if (spot.row < 0 || spot.column < 0) {
      const within = members(spot);
      const on = within.filter((member) => weights.has(nameAt(member) ?? "")).length;
      return [lineName(spot), say("selected", on, within.length)];
    }
    const name = nameAt(spot);
    if (name === null) return [`${layout.rows[spot.row].stack}.${layout.rows[spot.row].block}.${layout.columns[spot.column].rest}`, say("absent")];
    const weight = weights.get(name) ?? 0;
    const numbers = modules?.[name] ?? {};
    const lines = [name, weight === 0 ? say("off") : weight === 1 ? say("on") : say("weight", weight)];
    if (numbers.norm !== undefined) lines.push(say("size", short(numbers.norm)));
    if (numbers.norm_a !== undefined && numbers.norm_b !== undefined) lines.push(say("sizes", short(numbers.norm_a), short(numbers.norm_b)));
    if (numbers.cosine !== undefined) lines.push(say("cosine", numbers.cosine.toFixed(3)));
    if (numbers.energy !== undefined) lines.push(say("energyKept", (100 * numbers.energy).toFixed(1)));
    return lines;
  };

  /** @param {Spot} spot */
  const lineName = ({ row, column }) => {
    if (row === layout.rows.length) return say("outside");
    if (row === -2) return say("column", layout.columns[column].group);
    if (row === -1) return column < 0 ? say("blocks") : say("column", layout.columns[column].rest);
    const { stack, block } = layout.rows[row];
    return stack === "blocks" ? say("block", block) : `${stack} ${block}`;
  };

  /** @param {Map<string, number>} next */
  const replace = (next) => host.write(write(next, layout.names));

  /** @param {HTMLElement} cell @param {string} name */
  const show = (cell, name) => {
    const weight = weights.get(name) ?? 0;
    const norm = modules?.[name]?.norm;
    const heat = norm === undefined || !largest ? "" : String(heatStep(norm, largest, STEPS));
    const state = `${weight} ${heat} ${norm}`;
    if (shown.get(cell) === state) return;
    shown.set(cell, state);
    cell.setAttribute("aria-selected", String(weight !== 0));
    cell.setAttribute("aria-label", [
      name, ...(weight === 0 || weight === 1 ? [] : [say("weight", weight)]), ...(norm === undefined ? [] : [say("size", short(norm))]),
    ].join(", "));
    cell.dataset.heat = heat;
    cell.textContent = weight === 0 || weight === 1 ? "" : cellText(weight);
    cell.classList.toggle("minus", weight < 0);
  };

  const showCount = () => {
    count.textContent = say("selected", weights.size, layout.names.length);
  };

  /** Build the table for the current layout. */
  const build = () => {
    headers.clear();
    shown.clear();
    cells = [];
    const groups = groupsOf(layout.columns);
    const starts = new Set(groups.map(({ first }) => first));
    const tracks = layout.columns.map((_, index) => (index && starts.has(index) ? "6px " : "") + "minmax(0, 1fr)");
    const longest = Math.max(0, ...layout.rows.map(({ stack, block }) => rowLabel(stack, block).length));
    table.style.gridTemplateColumns = `${Math.max(LABEL, 10 + 6 * longest)}px ${tracks.join(" ")}`;
    /** Grid line of a column: one for the labels, one for each gap before it. @param {number} column */
    const lineOf = (column) => column + 2 + groups.filter(({ first }) => first > 0 && first <= column).length;
    /** @param {Spot} spot @param {string} role @param {string} label @param {string} text @param {string} area */
    const header = (spot, role, label, text, area) => {
      const made = el("div", { class: `head ${role}`, role, tabindex: "-1", "aria-label": label, "data-row": spot.row, "data-column": spot.column, text, style: area });
      headers.set(`${spot.row},${spot.column}`, made);
      return made;
    };

    const top = el("div", { role: "row", class: "row" });
    for (const { group, first, count: n } of groups) {
      if (!group) continue;
      const made = header({ row: -2, column: first }, "columnheader", say("column", group), groupName(group, n), `grid-row: 1; grid-column: ${lineOf(first)} / span ${n}`);
      made.classList.add("group");
      for (let column = first; column < first + n; column++) headers.set(`-2,${column}`, made);
      top.append(made);
    }
    const names = el("div", { role: "row", class: "row" }, header({ row: -1, column: -1 }, "columnheader", say("all"), "", "grid-row: 2; grid-column: 1"));
    layout.columns.forEach(({ label, rest }, column) => {
      names.append(header({ row: -1, column }, "columnheader", say("column", rest), label.replace("_img", "ᵢ"), `grid-row: 2; grid-column: ${lineOf(column)}`));
    });

    let at = 3;
    const family = (/** @type {string} */ stack) => stack.split(".")[0];
    let stack = family(layout.rows[0]?.stack ?? "");
    const rows = layout.rows.map(({ stack: own, block, cells: named }, row) => {
      if (family(own) !== stack) {
        stack = family(own);
        at += 1; // an empty line between stacks
      }
      const area = at++;
      const built = el("div", { role: "row", class: "row" });
      built.append(header({ row, column: -1 }, "rowheader", lineName({ row, column: -1 }), rowLabel(own, block), `grid-row: ${area}; grid-column: 1`));
      cells.push(named.map((name, column) => {
        const cell = el("div", {
          class: name === null ? "cell absent" : "cell", role: "gridcell", tabindex: "-1", "data-row": row, "data-column": column,
          "aria-label": name ?? `${own}.${block}.${layout.columns[column].rest}, ${say("absent")}`, style: `grid-row: ${area}; grid-column: ${lineOf(column)}`,
          ...(name === null ? { "aria-disabled": "true" } : {}),
        });
        built.append(cell);
        return cell;
      }));
      return built;
    });
    if (layout.outside.length) {
      const row = layout.rows.length;
      const strip = el("div", { class: "strip", style: `grid-row: ${at + 1}; grid-column: 2 / -1` });
      cells.push(layout.outside.map((name, column) => el("div", { class: "cell", role: "gridcell", tabindex: "-1", "aria-label": name, "data-row": row, "data-column": column })));
      strip.append(.../** @type {HTMLElement[]} */ (cells[row]));
      rows.push(el("div", { role: "row", class: "row" }, header({ row, column: -1 }, "rowheader", say("outside"), "…", `grid-row: ${at + 1}; grid-column: 1`), strip));
    }
    table.replaceChildren(top, names, ...rows);
    buildToolbar();
    surface.reset();
  };

  const buildToolbar = () => {
    const chips = presets(layout).map(([word, text]) =>
      el("button", { type: "button", class: "chip", text: say(/** @type {any} */ (word)), title: text, click: () => replace(Selection.parse(text).chosen(layout.names)) }),
    );
    const invert = el("button", { type: "button", class: "chip", text: say("invert"), click: () => replace(inverted(weights, layout.names)) });
    toolbar.replaceChildren(...chips, invert, el("span", { class: "pair" }, strongestChip, percentField, "%"), el("span", { class: "pair" }, weightMode, brushField));
  };

  const buildLegend = () => {
    if (largest) {
      const scale = el("span", { class: "scale", "aria-hidden": "true" }, ...Array.from({ length: STEPS }, (_, step) => el("i", { "data-heat": step })));
      legend.replaceChildren("0", scale, short(largest));
      legend.title = say("legend");
    } else {
      legend.replaceChildren(modules ? "" : modelField);
      legend.title = say("noHeat");
    }
    for (const part of toolbar.querySelectorAll("button, input")) part.toggleAttribute("disabled", host.linked());
    if (!largest) strongestChip.toggleAttribute("disabled", true);
    strongestChip.title = say(largest ? "strongestTip" : "strongestLater");
  };

  /** Read the text and what is known about the LoRA, and show both. */
  const refresh = () => {
    if (surface.busy()) return;
    modules = host.modules();
    const names = modules ? Object.keys(modules) : namesOf(MODELS[model]);
    const key = names.join();
    if (key !== layoutKey) {
      layoutKey = key;
      layout = layoutOf(names);
      build();
    }
    largest = Math.max(0, ...names.map((name) => modules?.[name]?.norm ?? 0));
    let wrong = "";
    const linked = host.linked();
    const text = linked ? host.lastRun() : host.read();
    table.setAttribute("aria-readonly", String(linked));
    note.textContent = linked ? say(text === null ? "selectionLater" : "selectionFromWire") : "";
    try {
      const selection = Selection.parse(text ?? "none");
      weights = selection.chosen(names);
      const unmatched = selection.unmatched(names);
      if (unmatched.length) wrong = say("unmatched", unmatched.join(", "));
    } catch (error) {
      if (!(error instanceof SelectionError)) throw error;
      weights = new Map();
      wrong = retellError(error.message);
    }
    problem.textContent = wrong;
    problem.hidden = !wrong;
    cells.forEach((row, r) => row.forEach((cell, c) => {
      const name = nameAt({ row: r, column: c });
      if (cell && name !== null) show(cell, name);
    }));
    showCount();
    count.hidden = text === null;
    buildLegend();
  };

  return {
    element,
    refresh,
    quiet: /** @type {const} */ ("problems"), // the grid counts modules itself
    remove: hideTip,
  };
};
