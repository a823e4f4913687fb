// @ts-check
/** The strength slider: where it is safe, where it is not, and how far the file itself recommends to go. */
import { LIMIT, SAFE, STRETCHED, keyed, positionOf, reachOf, signed, valueAt, zoneOf } from "../lib/strength.js";
import { say } from "../lib/words.js";
import { el, used } from "./dom.js";

/**
 * @typedef {object} Host
 * @property {() => number} read
 * @property {(value: number) => void} write
 * @property {() => boolean} linked the strength comes from a wire
 * @property {() => [number, number] | null} recommended
 */

/** @param {Host} host */
export const strengthSlider = (host) => {
  let reach = 5;
  let dragging = false;

  const value = el("span", { class: "value", "aria-hidden": "true" });
  const zone = el("span", { class: "zone" });
  const flip = el("button", { type: "button", class: "chip", text: "±", title: say("flip"), "aria-label": say("flip"), click: () => host.write(-host.read() || 0) });
  const fill = el("div", { class: "fill" });
  const advice = el("div", { class: "advice", hidden: true });
  const thumb = el("div", { class: "thumb" });
  const bands = el("div", { class: "bands" });
  const ticks = el("div", { class: "ticks", "aria-hidden": "true" });
  const track = el("div", {
    class: "track", role: "slider", tabindex: "0", "aria-label": say("strength"), "aria-valuemin": -LIMIT, "aria-valuemax": LIMIT, "aria-orientation": "horizontal",
  }, bands, advice, fill, thumb);
  const note = el("div", { class: "note" });
  const element = el("div", { class: "difflora difflora-slider" }, el("div", { class: "top" }, value, zone, flip), track, ticks, note);

  /** @param {PointerEvent} event */
  const follow = (event) => {
    const box = track.getBoundingClientRect();
    host.write(valueAt((event.clientX - box.left) / box.width, reach, event.shiftKey ? 0.01 : 0.1));
  };
  track.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.stopPropagation(); // no preventDefault: ComfyUI records undo steps on mouseup
    track.focus({ preventScroll: true });
    if (host.linked()) return;
    dragging = true;
    track.setPointerCapture(event.pointerId);
    follow(event);
  });
  track.addEventListener("pointermove", (event) => {
    if (!dragging) return;
    used(event);
    follow(event);
  });
  const end = () => {
    dragging = false;
    refresh();
  };
  track.addEventListener("pointerup", end);
  track.addEventListener("lostpointercapture", end);
  track.addEventListener("dblclick", (event) => {
    used(event);
    if (!host.linked()) host.write(0);
  });
  track.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Delete" || event.key === "Backspace") event.stopPropagation(); // not the node's end
    if (host.linked()) return;
    const next = keyed(event.key, host.read(), event.shiftKey);
    if (next === null) return;
    used(event);
    host.write(next);
  });

  /** Bands and ticks for the part of the axis that is shown. */
  const scale = () => {
    const at = (/** @type {number} */ strength) => `${100 * positionOf(strength, reach)}%`;
    const band = (/** @type {number} */ from, /** @type {number} */ to, /** @type {string} */ kind) =>
      el("i", { class: kind, style: `left: ${at(from)}; width: ${100 * (positionOf(to, reach) - positionOf(from, reach))}%` });
    bands.replaceChildren(
      band(-reach, -STRETCHED, "risky"), band(-STRETCHED, -SAFE, "stretched"), band(-SAFE, SAFE, "safe"), band(SAFE, STRETCHED, "stretched"), band(STRETCHED, reach, "risky"),
    );
    const marks = reach === LIMIT ? [-10, -4, 0, 4, 10] : [-4, -3, -2, -1, 0, 1, 2, 3, 4];
    ticks.replaceChildren(...marks.map((mark) => el("span", { class: mark === 0 ? "zero" : "", style: `left: ${at(mark)}`, text: signed(mark) })));
  };

  const refresh = () => {
    const strength = host.read();
    const linked = host.linked();
    const needed = reachOf(strength);
    // While the hand is on it, the axis only ever grows, so that the thumb does not jump.
    if (!bands.childElementCount || (needed !== reach && (!dragging || needed > reach))) {
      reach = needed;
      scale();
    }
    const kind = zoneOf(strength);
    const position = positionOf(strength, reach);
    element.dataset.zone = linked ? "linked" : kind;
    value.textContent = linked ? "" : signed(strength);
    zone.textContent = linked ? say("fromWire") : say(kind);
    track.setAttribute("aria-valuenow", String(strength));
    track.setAttribute("aria-valuetext", `${signed(strength)}, ${say(kind)}`);
    track.setAttribute("aria-disabled", String(linked));
    flip.toggleAttribute("disabled", linked || strength === 0);
    thumb.style.left = `${100 * position}%`;
    fill.style.left = `${100 * Math.min(0.5, position)}%`;
    fill.style.width = `${100 * Math.abs(position - 0.5)}%`;
    const range = host.recommended();
    advice.hidden = !range;
    if (range) {
      advice.style.left = `${100 * positionOf(range[0], reach)}%`;
      advice.style.width = `${100 * (positionOf(range[1], reach) - positionOf(range[0], reach))}%`;
    }
    note.textContent = range ? say("recommended", signed(range[0]), signed(range[1])) : "";
  };

  return { element, refresh };
};
