// @ts-check
/** The strength slider of a node: the track with its ticks, what the strength means, and the range that is recommended. */
import { LIMIT, positionOf, signed } from "../lib/strength.js";
import { say } from "../lib/words.js";
import { el } from "./dom.js";
import { strengthTrack } from "./strength_track.js";

/** @param {import("./strength_track.js").Host} host */
export const strengthSlider = (host) => {
  const element = el("div", { class: "difflora difflora-slider" });
  const { value, power, more, track, put, refresh } = strengthTrack(host, element, (now) => {
    mark(now.reach);
    zone.textContent = now.off ? say("sliderOff") : now.linked ? say("fromWire") : say(now.zone);
    flip.toggleAttribute("disabled", now.linked || now.strength === 0);
    const { range, measured } = host.recommended() ?? { range: null, measured: false };
    note.textContent = range ? say(measured ? "measured" : "recommended", signed(range[0]), signed(range[1])) : "";
  });
  const zone = el("span", { class: "zone" });
  const flip = el("button", { type: "button", class: "chip", text: "±", title: say("flip"), "aria-label": say("flip"), click: () => put(-host.read() || 0) });
  const ticks = el("div", { class: "ticks", "aria-hidden": "true" });
  const note = el("div", { class: "note" });
  element.append(el("div", { class: "top" }, value, zone, power, flip, more), track, ticks, note);
  let marked = 0;

  /** @param {number} reach */
  const mark = (reach) => {
    if (reach === marked) return;
    marked = reach;
    const marks = reach === LIMIT ? [-10, -4, 0, 4, 10] : [-4, -3, -2, -1, 0, 1, 2, 3, 4];
    ticks.replaceChildren(...marks.map((at) => el("span", { class: at === 0 ? "zero" : "", style: `left: ${100 * positionOf(at, reach)}%`, text: signed(at) })));
  };

  return { element, refresh };
};
