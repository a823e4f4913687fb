// @ts-check
/** Slider Map: a curve over the steps, one over the frames, and what came out in the last run as a strip of pictures. */
import { say } from "../lib/words.js";
import { curveEditor } from "./curve_editor.js";
import { el } from "./dom.js";

/**
 * @typedef {object} Field a text widget
 * @property {() => any} read
 * @property {(text: string) => void} write
 * @property {() => boolean} linked
 *
 * @typedef {object} Host
 * @property {Field} steps
 * @property {Field} frames
 * @property {() => import("../lib/messages.js").MapPreview | null} preview of the last run
 */

/** @param {Host} host */
export const mapView = (host) => {
  const editor = (/** @type {Field} */ text, /** @type {string} */ title, /** @type {string} */ from, /** @type {string} */ to) =>
    curveEditor({ title, from, to, read: () => String(text.read() ?? ""), write: text.write, linked: text.linked });
  const steps = editor(host.steps, say("mapSteps"), say("mapNoise"), say("mapClean"));
  const frames = editor(host.frames, say("mapFrames"), say("mapFirst"), say("mapLast"));
  const strip = el("canvas", { class: "strip", role: "img", "aria-label": say("mapStrip") });
  const caption = el("div", { class: "note", text: say("mapStrip") });
  const element = el("div", { class: "difflora difflora-map" }, steps.element, frames.element, strip, caption);
  /** @type {unknown} */
  let drawn = null;

  const refresh = () => {
    steps.refresh();
    frames.refresh();
    const preview = host.preview();
    strip.hidden = caption.hidden = !preview;
    if (preview && preview !== drawn) draw(preview);
    drawn = preview;
  };

  /** @param {import("../lib/messages.js").MapPreview} preview */
  const draw = ({ width, height, frames: pictures }) => {
    const scale = 3;
    const columns = Math.min(7, pictures.length);
    strip.width = columns * (width * scale + 2);
    strip.height = Math.ceil(pictures.length / columns) * (height * scale + 2);
    const context = strip.getContext("2d");
    if (!context) return;
    pictures.forEach((digits, index) => {
      const left = (index % columns) * (width * scale + 2);
      const top = Math.floor(index / columns) * (height * scale + 2);
      context.fillStyle = "#888"; // a frame, by which white is seen on a light node, and black on a dark one
      context.fillRect(left, top, width * scale + 2, height * scale + 2);
      for (let place = 0; place < width * height; place++) {
        const grey = 17 * parseInt(digits[place], 16);
        context.fillStyle = `rgb(${grey} ${grey} ${grey})`;
        context.fillRect(left + 1 + (place % width) * scale, top + 1 + Math.floor(place / width) * scale, scale, scale);
      }
    });
  };

  return { element, refresh };
};
