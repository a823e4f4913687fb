// @ts-check
/** A curve to draw: press to add a point, drag to move it, double-click or Delete to remove it. Points also work by keyboard. */
import { added, curveText, keyedPoint, moved, parseCurve, pointAt, without } from "../lib/curve.js";
import { say } from "../lib/words.js";
import { el, svg, used } from "./dom.js";

/**
 * @typedef {object} Host
 * @property {string} title
 * @property {string} from what stands below the left end
 * @property {string} to and below the right end
 * @property {() => string} read
 * @property {(text: string) => void} write
 * @property {() => boolean} linked the curve comes from a wire
 */

const WIDTH = 280;
const HEIGHT = 70;
const MARGIN = 7;

/** @param {Host} host */
export const curveEditor = (host) => {
  let dragged = -1;

  const area = svg("path", { class: "area" });
  const lineOf = svg("path", { class: "line" });
  const dots = svg("g");
  const frame = svg("rect", { class: "frame", x: MARGIN, y: MARGIN, width: WIDTH - 2 * MARGIN, height: HEIGHT - 2 * MARGIN });
  const chart = /** @type {SVGSVGElement} */ (svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": host.title }, frame, area, lineOf, dots));
  const title = el("span", { class: "title", text: host.title });
  const reset = el("button", { type: "button", class: "chip", text: say("resetCurve"), title: say("resetCurveTip"), click: () => host.write("") });
  const note = el("div", { class: "note" });
  const ends = el("div", { class: "ends", "aria-hidden": "true" }, el("span", { text: host.from }), el("span", { text: host.to }));
  const element = el("div", { class: "difflora difflora-curve", title: say("curveHelp") }, el("div", { class: "top" }, title, reset), chart, ends, note);

  const xOf = (/** @type {number} */ at) => MARGIN + ((WIDTH - 2 * MARGIN) * at) / 100;
  const yOf = (/** @type {number} */ weight) => MARGIN + (HEIGHT - 2 * MARGIN) * (1 - weight);
  const points = () => parseCurve(host.read());

  /** @param {MouseEvent} event */
  const under = (event) => {
    const box = chart.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDTH;
    const y = ((event.clientY - box.top) / box.height) * HEIGHT;
    return pointAt((x - MARGIN) / (WIDTH - 2 * MARGIN), 1 - (y - MARGIN) / (HEIGHT - 2 * MARGIN), event.shiftKey);
  };
  const focusOn = (/** @type {number} */ index) => /** @type {SVGElement | undefined} */ (dots.children[index])?.focus({ preventScroll: true });

  chart.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.stopPropagation(); // no preventDefault: ComfyUI records undo steps on mouseup
    const now = points();
    if (host.linked() || !now) return;
    dragged = [...dots.children].indexOf(/** @type {Element} */ (event.target));
    if (dragged < 0) {
      const [more, index] = added(now, under(event));
      host.write(curveText(more));
      refresh();
      dragged = index;
    }
    focusOn(dragged);
    chart.setPointerCapture(event.pointerId);
  });
  chart.addEventListener("pointermove", (event) => {
    const now = points();
    if (dragged < 0 || !now?.[dragged]) return;
    used(event);
    host.write(curveText(moved(now, dragged, under(event))));
  });
  const end = () => {
    dragged = -1;
  };
  chart.addEventListener("pointerup", end);
  chart.addEventListener("lostpointercapture", end);
  chart.addEventListener("dblclick", (event) => {
    used(event);
    const index = [...dots.children].indexOf(/** @type {Element} */ (document.activeElement));
    remove(index);
  });

  const remove = (/** @type {number} */ index) => {
    const now = points();
    if (host.linked() || !now?.[index]) return;
    host.write(curveText(without(now, index)));
    focusOn(Math.max(0, index - 1));
  };

  dots.addEventListener("keydown", (/** @type {any} */ event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const index = [...dots.children].indexOf(event.target);
    const now = points();
    const isRemoval = event.key === "Delete" || event.key === "Backspace";
    if (isRemoval) event.stopPropagation(); // not the node's end
    if (host.linked() || !now?.[index]) return;
    if (isRemoval) {
      used(event);
      return remove(index);
    }
    if (event.key === "Enter" || event.key === "Insert") {
      used(event);
      const next = now[index + 1] ?? { at: 100, weight: now[index].weight };
      const [more, added_] = added(now, { at: (now[index].at + next.at) / 2, weight: (now[index].weight + next.weight) / 2 });
      host.write(curveText(more));
      return focusOn(added_);
    }
    const to = keyedPoint(event.key, now[index], event.shiftKey);
    if (!to) return;
    used(event);
    host.write(curveText(moved(now, index, to)));
  });

  const refresh = () => {
    const now = points();
    const linked = host.linked();
    element.toggleAttribute("data-linked", linked);
    note.textContent = linked ? say("curveFromWire") : now ? "" : say("noCurve");
    reset.toggleAttribute("disabled", linked || !host.read().trim());
    const shown = now ?? [];
    while (dots.children.length > shown.length) dots.lastElementChild?.remove();
    while (dots.children.length < shown.length) dots.append(svg("circle", { class: "point", r: 5, role: "slider", tabindex: "0", "aria-orientation": "vertical", "aria-valuemin": 0, "aria-valuemax": 1 }));
    shown.forEach((point, index) => {
      const dot = dots.children[index];
      dot.setAttribute("cx", String(xOf(point.at)));
      dot.setAttribute("cy", String(yOf(point.weight)));
      dot.setAttribute("aria-label", say("curvePoint", host.title, String(index + 1), String(shown.length)));
      dot.setAttribute("aria-valuenow", String(point.weight));
      dot.setAttribute("aria-valuetext", say("curveValue", String(point.at), String(point.weight)));
      dot.setAttribute("aria-disabled", String(linked));
    });
    if (!shown.length) return [area, lineOf].forEach((path) => path.setAttribute("d", ""));
    const last = shown[shown.length - 1];
    const path = [[0, shown[0].weight], ...shown.map(({ at, weight }) => [at, weight]), [100, last.weight]].map(([at, weight]) => `${xOf(at)} ${yOf(weight)}`).join(" L ");
    lineOf.setAttribute("d", `M ${path}`);
    area.setAttribute("d", `M ${xOf(0)} ${yOf(0)} L ${path} L ${xOf(100)} ${yOf(0)} Z`);
  };

  return { element, refresh };
};
