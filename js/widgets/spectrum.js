// @ts-check
/** Singular values on Re-rank, with the cut that the widgets above ask for: live, from the numbers of the last run. */
import { average, kept, outcome } from "../lib/spectrum.js";
import { short } from "../lib/grid.js";
import { say } from "../lib/words.js";
import { el, keepKeys, svg, used } from "./dom.js";

/**
 * @typedef {object} Host
 * @property {() => import("../lib/messages.js").Spectrum | null} spectrum
 * @property {() => import("../lib/spectrum.js").Rule} rule
 * @property {(rank: number) => void} writeRank
 * @property {() => boolean} linked the rank comes from a wire
 * @property {() => boolean} isOld the widgets have been changed since the last run
 */

const WIDTH = 320;
const HEIGHT = 128;
const LEFT = 30;
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 18;
const DECADES = 4;

/** @param {Host} host */
export const spectrumChart = (host) => {
  let chosen = "";
  let dragging = false;
  let across = 1;
  let listKey = "";

  const moduleField = keepKeys(el("select", { class: "field wide", "aria-label": say("module"), title: say("module"), change: (event) => {
    chosen = event.target.value;
    refresh();
  } }));
  const chart = /** @type {SVGSVGElement} */ (svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "slider", tabindex: "0" }));
  const headline = el("div", { class: "headline", "aria-live": "polite" });
  const empty = el("div", { class: "empty", text: say("noSpectrum") });
  const body = el("div", { class: "body", hidden: true }, el("div", { class: "top" }, headline, moduleField), chart);
  const element = el("div", { class: "difflora difflora-spectrum" }, empty, body);

  const steps = () => Math.max(1, across);
  const xOf = (/** @type {number} */ index) => LEFT + ((WIDTH - LEFT - RIGHT) * index) / steps();
  /** Four decades below the largest value. @param {number} share */
  const yOf = (share) => TOP + (HEIGHT - TOP - BOTTOM) * Math.min(1, -Math.log10(Math.max(share, 1e-9)) / DECADES);

  /** @param {PointerEvent} event */
  const rankAt = (event) => {
    const box = chart.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDTH;
    return Math.max(1, Math.min(across, Math.round(((x - LEFT) / (WIDTH - LEFT - RIGHT)) * steps())));
  };
  const movable = () => host.rule().kind === "rank" && !host.linked() && host.spectrum() !== null;
  chart.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.stopPropagation(); // no preventDefault: ComfyUI records undo steps on mouseup
    chart.focus({ preventScroll: true });
    if (!movable()) return;
    dragging = true;
    chart.setPointerCapture(event.pointerId);
    host.writeRank(rankAt(event));
  });
  chart.addEventListener("pointermove", (event) => {
    if (!dragging) return;
    used(event);
    host.writeRank(rankAt(event));
  });
  for (const name of ["pointerup", "lostpointercapture"]) chart.addEventListener(name, () => (dragging = false));
  chart.addEventListener("keydown", (event) => {
    const rank = host.rule().rank;
    const next = { ArrowRight: rank + 1, ArrowUp: rank + 1, ArrowLeft: rank - 1, ArrowDown: rank - 1, PageUp: rank + 8, PageDown: rank - 8, Home: 1, End: across }[event.key];
    if (next === undefined || !movable()) return;
    used(event);
    host.writeRank(Math.max(1, Math.min(across, next)));
  });

  const refresh = () => {
    const spectrum = host.spectrum();
    const names = spectrum ? Object.keys(spectrum.values) : [];
    empty.hidden = names.length > 0;
    body.hidden = names.length === 0;
    if (!spectrum || !names.length) return;
    if (listKey !== names.join()) {
      listKey = names.join();
      if (!names.includes(chosen)) chosen = "";
      moduleField.replaceChildren(el("option", { value: "", text: say("average") }), ...names.map((name) => el("option", { value: name, text: name })));
      /** @type {HTMLSelectElement} */ (moduleField).value = chosen;
    }
    const rule = host.rule();
    const { values, energy } = chosen ? { values: spectrum.values[chosen], energy: spectrum.energy[chosen] } : average(spectrum);
    across = Math.max(1, values.filter((value) => value > 0).length);
    const all = outcome(spectrum, rule);
    const cut = chosen ? (all.ranks.get(chosen) ?? 1) : Math.max(1, Math.min(across, all.mean));
    const share = chosen ? kept(values, energy, cut) : all.kept;
    draw(values, cut);
    const ranks = chosen || all.lowest === all.highest ? say("rank", chosen ? cut : all.lowest) : say("ranks", all.lowest, all.highest);
    headline.replaceChildren(el("b", { text: say("keeps", (100 * share).toFixed(share > 0.9995 ? 2 : 1)) }), ` · ${ranks}`);
    if (rule.kind === "budget") {
      const even = outcome(spectrum, { ...rule, kind: "rank" }).kept;
      headline.append(` · ${say("budget", rule.rank, (100 * even).toFixed(1))}`);
    }
    chart.setAttribute("aria-label", say("spectrum"));
    chart.setAttribute("aria-valuemin", "1");
    chart.setAttribute("aria-valuemax", String(across));
    chart.setAttribute("aria-valuenow", String(Math.round(cut)));
    chart.setAttribute("aria-valuetext", headline.textContent ?? "");
    chart.setAttribute("aria-disabled", String(!movable()));
    chart.toggleAttribute("data-movable", movable());
  };

  /** @param {number[]} values @param {number} cut */
  const draw = (values, cut) => {
    const top = values[0] || 1;
    const base = HEIGHT - BOTTOM;
    const bars = values.slice(0, across).map((value, index) => {
      const y = yOf(value / top);
      const width = (WIDTH - LEFT - RIGHT) / steps();
      return svg("rect", { x: xOf(index) + width * 0.1, y, width: Math.max(0.4, width * 0.8), height: Math.max(1, base - y), rx: Math.min(1.5, width * 0.3), class: index < Math.round(cut) ? "bar keep" : "bar" });
    });
    const grid = Array.from({ length: DECADES + 1 }, (_, decade) => {
      const y = yOf(10 ** -decade);
      return [
        svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y, class: "rule" }),
        svg("text", { x: LEFT - 4, y: y + 3, class: "mark end", text: decade === 0 ? short(top) : decade % 2 ? "" : `10⁻${"⁰¹²³⁴"[decade]}` }),
      ];
    }).flat();
    const every = Math.max(1, 2 ** Math.ceil(Math.log2(steps() / 8)));
    const marks = values.slice(0, across).flatMap((_, index) =>
      (index + 1) % every === 0 ? [svg("text", { x: xOf(index + 0.5), y: HEIGHT - 5, class: "mark middle", text: index + 1 })] : [],
    );
    const x = xOf(cut);
    chart.replaceChildren(
      ...grid, ...bars, ...marks,
      svg("line", { x1: x, x2: x, y1: TOP - 4, y2: base, class: "cut" }),
      svg("circle", { cx: x, cy: TOP - 2, r: 4, class: "grip" }),
    );
    const title = svg("title", { text: movable() ? say("dragCut") : say("spectrum") });
    chart.prepend(title);
  };

  return { element, refresh, isOld: host.isOld };
};
