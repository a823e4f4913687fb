// @ts-check
/** The blocks of a model as numbered tiles, on Wan Block Toggle. The text names the blocks that are switched off. */
import { SHOWN } from "../lib/family_tables.js";
import { Selection, SelectionError } from "../lib/selection.js";
import { write } from "../lib/selection_writer.js";
import { retellError, say } from "../lib/words.js";
import { el, hideTip, keepKeys } from "./dom.js";
import { paintable } from "./paint_surface.js";

const ACROSS = 10;
const MODELS = Object.fromEntries(SHOWN.map(({ size, blocks }) => [size, blocks]));

/** @param {{ read: () => string, write: (text: string) => void, linked: () => boolean }} host linked: the text comes from a wire */
export const blockTiles = (host) => {
  let blocks = 40;
  /** @type {Map<string, number>} */
  let off = new Map();
  /** @type {HTMLElement[][]} */
  let tiles = [];
  // One name stands for a whole block, so that the same reader and writer serve here.
  const nameOf = (/** @type {number} */ block) => `blocks.${block}.block`;
  const names = () => Array.from({ length: blocks }, (_, block) => nameOf(block));
  /** @param {import("../lib/grid.js").Spot} spot */
  const blockAt = ({ row, column }) => row * ACROSS + column;

  const table = el("div", { class: "tiles", role: "grid", "aria-multiselectable": "true", "aria-label": say("blocks"), "aria-description": say("gridHelp") });
  const count = el("span", { class: "count" });
  const problem = el("div", { class: "problem", role: "status", "aria-live": "polite", hidden: true });
  const modelField = keepKeys(el("select", { class: "field", "aria-label": say("model"), title: say("model"), change: (event) => {
    blocks = Number(event.target.value);
    build();
    refresh();
  } }, ...Object.entries(MODELS).map(([name, number]) => el("option", { value: number, text: `${name} · ${number}` }))));
  const chips = ["none", "invert"].map((word) => el("button", { type: "button", class: "chip", text: say(/** @type {any} */ (word)), click: () => {
    if (word === "none") host.write("none");
    else host.write(write(new Map(names().filter((name) => !off.has(name)).map((name) => [name, 1])), names()));
  } }));
  const element = el("div", { class: "difflora difflora-tiles" }, table, el("div", { class: "foot" }, count, el("span", { class: "pair" }, ...chips, modelField)), problem);

  const surface = paintable({
    element: table,
    size: () => ({ rows: tiles.length, columns: ACROSS }),
    cell: ({ row, column }) => tiles[row]?.[column] ?? null,
    members: (spot) => (tiles[spot.row]?.[spot.column] ? [spot] : []),
    get: (spot) => off.get(nameOf(blockAt(spot))) ?? 0,
    set: (spot, weight) => {
      const name = nameOf(blockAt(spot));
      if (weight) off.set(name, 1);
      else off.delete(name);
      show(blockAt(spot));
    },
    brush: () => 1,
    frozen: host.linked,
    done: () => host.write(write(off, names())),
    tell: () => {},
  });

  /** @param {number} block */
  const show = (block) => {
    const tile = tiles[Math.floor(block / ACROSS)][block % ACROSS];
    const isOff = off.has(nameOf(block));
    tile.setAttribute("aria-selected", String(isOff));
    tile.setAttribute("aria-label", `${say("block", block)}: ${say(isOff ? "off" : "on")}`);
    count.textContent = host.linked() ? say("blocksFromWire") : off.size ? say("blocksOff", off.size, blocks) : say("noneOff", blocks);
  };

  const build = () => {
    tiles = [];
    const rows = [];
    for (let start = 0; start < blocks; start += ACROSS) {
      const row = Array.from({ length: Math.min(ACROSS, blocks - start) }, (_, column) =>
        el("div", { class: "tile", role: "gridcell", tabindex: "-1", "data-row": start / ACROSS, "data-column": column, text: start + column }),
      );
      tiles.push(row);
      rows.push(el("div", { role: "row", class: "row" }, ...row));
    }
    table.replaceChildren(...rows);
    surface.reset();
  };

  const refresh = () => {
    if (surface.busy()) return;
    let wrong = "";
    try {
      const selection = Selection.parse(host.linked() ? "none" : host.read());
      off = selection.chosen(names());
      const unmatched = selection.unmatched(names());
      if (unmatched.length) wrong = say("unmatched", unmatched.join(", "));
    } catch (error) {
      if (!(error instanceof SelectionError)) throw error;
      off = new Map();
      wrong = retellError(error.message);
    }
    problem.textContent = wrong;
    problem.hidden = !wrong;
    table.setAttribute("aria-readonly", String(host.linked()));
    for (const chip of chips) chip.toggleAttribute("disabled", host.linked());
    for (let block = 0; block < blocks; block++) show(block);
  };

  build();
  return { element, refresh, remove: hideTip };
};
