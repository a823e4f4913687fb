// @ts-check
/** The parts that every strength has: a number to type, a track to drag with bands for safe and risky strengths, a switch and a menu. */
import { LIMIT, SAFE, STRETCHED, keyed, positionOf, reachOf, signed, turned, typed, valueAt, zoneOf } from "../lib/strength.js";
import { say } from "../lib/words.js";
import { el, used } from "./dom.js";
import { openMenu } from "./menu.js";
import { below } from "./popup.js";

/** @typedef {import("./menu.js").Item} Item */

/**
 * @typedef {object} Host
 * @property {() => number} read
 * @property {(value: number) => void} write
 * @property {() => boolean} linked the strength comes from a wire
 * @property {() => { range: [number, number], measured: boolean } | null} recommended measured: by Sweep Response, not told by the file
 * @property {{ read: () => boolean, write: (on: boolean) => void } | null} on the switch, where the node has one
 * @property {(change: () => void) => void} asOneStep of undo
 * @property {() => { name: string, value: number | null } | null} remembered what is the default for the LoRA that comes in
 * @property {(value: number) => void} remember
 * @property {() => (Item | null)[]} more further choices of the menu
 */

/** A strength that was copied on one slider, to be pasted on another. @type {number | null} */
let copied = null;

/** @typedef {{ strength: number, linked: boolean, off: boolean, zone: "safe" | "stretched" | "risky", reach: number }} Shown */

/**
 * @param {Host} host
 * @param {HTMLElement} element that the parts are put into; the menu opens anywhere on it
 * @param {(now: Shown) => void} shown called with what the parts show
 */
export const strengthTrack = (host, element, shown = () => {}) => {
  let reach = 5;
  let dragging = false;

  /** @param {number} next */
  const put = (next) => host.asOneStep(() => host.write(next));
  const toggle = () => host.asOneStep(() => host.on?.write(!host.on.read()));

  const value = el("input", {
    type: "text", class: "value", inputmode: "decimal", autocomplete: "off", spellcheck: "false", "aria-label": say("strength"), title: say("typeStrength"),
    focus: () => value.select(),
    blur: () => refresh(),
    change: () => {
      const next = typed(value.value);
      if (next !== null && !host.linked()) put(next);
      refresh();
    },
    keydown: (event) => {
      event.stopPropagation(); // typing must not reach the canvas
      if (event.key === "Enter" || event.key === "Escape") {
        if (event.key === "Escape") value.value = signed(host.read());
        track.focus({ preventScroll: true });
      }
    },
  });
  const power = el("button", { type: "button", class: "power", role: "switch", title: say("switchTip"), "aria-label": say("switch"), hidden: !host.on, click: toggle });
  const more = el("button", { type: "button", class: "chip more", text: "⋯", title: say("more"), "aria-label": say("more"), "aria-haspopup": "menu", click: () => openMenu(below(more), choices(), more) });

  /** @returns {(Item | null)[]} */
  const choices = () => {
    const strength = host.read();
    const disabled = host.linked();
    const own = host.remembered();
    const others = host.more();
    const to = (/** @type {number} */ target) => ({ text: signed(target), act: () => put(target), disabled });
    return [
      to(0), to(1), to(-1), to(3), to(-3), null,
      { text: say("flip"), act: () => put(-strength || 0), disabled: disabled || strength === 0 },
      { text: say("copyStrength", signed(strength)), act: () => void (copied = strength) },
      { text: copied === null ? say("pasteStrength") : `${say("pasteStrength")} (${signed(copied)})`, act: () => copied !== null && put(copied), disabled: disabled || copied === null },
      ...(own
        ? [
            null,
            { text: say("remember", signed(strength), own.name), act: () => host.remember(strength) },
            ...(own.value === null ? [] : [{ text: say("recall", signed(own.value)), act: () => own.value !== null && put(own.value), disabled }]),
          ]
        : []),
      ...(host.on ? [null, { text: say("switch"), act: toggle, checked: host.on.read() }] : []),
      ...(others.length ? [null, ...others] : []),
    ];
  };
  const fill = el("div", { class: "fill" });
  const advice = el("div", { class: "advice", hidden: true });
  const thumb = el("div", { class: "thumb" });
  const bands = el("div", { class: "bands" });
  const track = el("div", {
    class: "track", role: "slider", tabindex: "0", "aria-label": say("strength"), "aria-valuemin": -LIMIT, "aria-valuemax": LIMIT, "aria-orientation": "horizontal",
  }, bands, advice, fill, thumb);

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
    if (!host.linked()) put(0);
  });
  element.addEventListener("contextmenu", (event) => {
    if (event.target === value) return; // the browser's own, for text
    used(event);
    openMenu(event, choices(), track);
  });
  // The wheel zooms the page: it moves the slider only when the track has focus.
  track.addEventListener("focus", () => (track.dataset.captureWheel = "true")); // otherwise Vue's nodes pass it on
  track.addEventListener("blur", () => delete track.dataset.captureWheel);
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let turning;
  track.addEventListener("wheel", (event) => {
    if (document.activeElement !== track || host.linked()) return;
    used(event);
    host.write(turned(event.deltaY || event.deltaX, host.read(), event.shiftKey));
    clearTimeout(turning);
    turning = setTimeout(() => host.asOneStep(() => {}), 400); // turning the wheel is one undo step
  }, { passive: false });
  track.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Delete" || event.key === "Backspace") event.stopPropagation(); // must not remove the node
    if (host.linked()) return;
    const next = keyed(event.key, host.read(), event.shiftKey);
    if (next === null) return;
    used(event);
    put(next);
  });

  /** Bands for the part of the axis that is shown. */
  const scale = () => {
    const at = (/** @type {number} */ strength) => `${100 * positionOf(strength, reach)}%`;
    const band = (/** @type {number} */ from, /** @type {number} */ to, /** @type {string} */ kind) =>
      el("i", { class: kind, style: `left: ${at(from)}; width: ${100 * (positionOf(to, reach) - positionOf(from, reach))}%` });
    bands.replaceChildren(
      band(-reach, -STRETCHED, "risky"), band(-STRETCHED, -SAFE, "stretched"), band(-SAFE, SAFE, "safe"), band(SAFE, STRETCHED, "stretched"), band(STRETCHED, reach, "risky"),
    );
  };

  const refresh = () => {
    const strength = host.read();
    const linked = host.linked();
    const needed = reachOf(strength);
    // During a drag the axis only grows, so that the thumb does not jump.
    if (!bands.childElementCount || (needed !== reach && (!dragging || needed > reach))) {
      reach = needed;
      scale();
    }
    const zone = zoneOf(strength);
    const position = positionOf(strength, reach);
    const off = host.on !== null && !host.on.read();
    element.dataset.zone = linked ? "linked" : zone;
    element.dataset.off = String(off);
    value.hidden = linked;
    if (document.activeElement !== value) value.value = signed(strength);
    power.setAttribute("aria-checked", String(!off));
    track.setAttribute("aria-valuenow", String(strength));
    track.setAttribute("aria-valuetext", `${signed(strength)}, ${say(off ? "sliderOff" : zone)}`);
    track.setAttribute("aria-disabled", String(linked));
    thumb.style.left = `${100 * position}%`;
    fill.style.left = `${100 * Math.min(0.5, position)}%`;
    fill.style.width = `${100 * Math.abs(position - 0.5)}%`;
    const { range } = host.recommended() ?? { range: null };
    advice.hidden = !range;
    if (range) {
      advice.style.left = `${100 * positionOf(range[0], reach)}%`;
      advice.style.width = `${100 * (positionOf(range[1], reach) - positionOf(range[0], reach))}%`;
    }
    shown({ strength, linked, off, zone, reach });
  };

  return { value, power, more, track, put, refresh };
};
