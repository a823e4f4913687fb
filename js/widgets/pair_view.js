// @ts-check
/** The two LoRAs of a pair: their pictures and words, a button that swaps them, and what would fit as the other side. */
import { say } from "../lib/words.js";
import { el } from "./dom.js";

/** @typedef {import("../lib/messages.js").Pair} Pair */
/** @typedef {import("../lib/messages.js").Side} Side */

/**
 * @typedef {object} Host
 * @property {() => Pair | null} pair what the server says of the files that are picked
 * @property {() => string[]} picked their names
 * @property {() => boolean} linked one of them comes from a wire
 * @property {(side: Side) => string} picture its address; there may be none
 * @property {() => void} swap
 * @property {(name: string) => void} take as the other side
 * @property {(files: string[]) => void} takeBoth
 */

/** @param {Host} host */
export const pairView = (host) => {
  let known = "";
  const sides = el("div", { class: "sides" });
  const swap = el("button", { type: "button", class: "chip swap", text: `⇄ ${say("swapPair")}`, title: say("swapPairTip"), click: host.swap });
  const twins = el("button", { type: "button", class: "chip twins", click: () => host.pair()?.twins && host.takeBoth(host.pair()?.twins?.files ?? []) });
  const offers = el("div", { class: "offers" });
  const element = el("div", { class: "difflora difflora-pair", role: "group", "aria-label": say("pair") }, sides, el("div", { class: "foot" }, swap, twins, offers));

  /** @param {Side} side @param {string} letter */
  const shown = (side, letter) => {
    const picture = el("img", { alt: "", src: host.picture(side), hidden: true, load: () => (picture.hidden = false), error: () => picture.remove() });
    const words = side.words.length ? [el("div", { class: "words", text: side.words.join(" · "), title: say("triggerWords") })] : [];
    return el("div", { class: "side" }, el("b", { text: letter }), picture, el("div", { class: "what" }, el("div", { class: "file", text: side.name, title: side.name }), ...words));
  };

  const refresh = () => {
    const pair = host.pair();
    const [a, b] = host.picked();
    const now = JSON.stringify([pair, a, b, host.linked()]);
    if (now === known) return;
    known = now;
    const isOfThese = pair?.sides[0].name === a && pair?.sides[1].name === b;
    sides.hidden = !pair || !isOfThese;
    if (pair && isOfThese) sides.replaceChildren(...pair.sides.map((side, index) => shown(side, "AB"[index])));
    swap.toggleAttribute("disabled", host.linked() || a === b);
    const other = isOfThese && !host.linked() ? pair?.twins : null;
    twins.hidden = !other;
    if (other) {
      twins.textContent = say(other.noise === "high" ? "highPair" : "lowPair");
      twins.title = say("takePair", other.files.join(" − "));
    }
    const fitting = pair && isOfThese && !host.linked() ? pair.offers : [];
    offers.hidden = !fitting.length;
    offers.replaceChildren(
      el("span", { class: "count", text: say("offers") }),
      ...fitting.map((name) => el("button", { type: "button", class: "chip offer", text: name.replace(/^.*[\\/]/, "").replace(/\.safetensors$/, ""), title: say("takeAsB", name), click: () => host.take(name) })),
    );
  };
  return { element, refresh };
};
