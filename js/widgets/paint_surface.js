// @ts-check
/**
 * Painting over a table of cells by mouse, pen, finger or keyboard. It knows nothing about LoRAs: it asks its owner for a
 * cell's value, sets it, and reports when a stroke is done.
 *
 * Lines of headers are row -1 (columns), row -2 (groups of columns) and column -1 (rows).
 */
import { indexAt, line, rectangle } from "../lib/grid.js";
import { hideTip, used } from "./dom.js";

/**
 * @typedef {import("../lib/grid.js").Spot} Spot
 *
 * @typedef {object} Owner
 * @property {HTMLElement} element everything, focusable cells included
 * @property {(row: number) => { rows: number, columns: number, loose?: boolean }} size how many rows there are, and columns
 *   in this one; loose: its cells do not stand in the columns of the table
 * @property {(spot: Spot) => HTMLElement | null} cell the element of a cell or header; null if there is none
 * @property {(spot: Spot) => Spot[]} members the cells behind a cell or header, without absent ones
 * @property {(spot: Spot) => number} get
 * @property {(spot: Spot, weight: number) => void} set
 * @property {() => number} brush the weight that painting gives
 * @property {() => boolean} frozen nothing can be painted now
 * @property {() => void} done a stroke has ended
 * @property {(spot: Spot) => void} tell show what is known about a cell
 */

/** @param {Owner} owner */
export const paintable = (owner) => {
  /** The cell, and the header, from which Shift extends. @type {Spot} */
  let anchor = { row: 0, column: 0 };
  /** @type {Spot | null} */
  let headerAnchor = null;
  /** @type {HTMLElement | null} */
  let stop = null;
  /** @type {{ last: Spot, weight: number, edges: { rows: number[], columns: number[] } | null, header: boolean } | null} */
  let stroke = null;

  /** @param {EventTarget | null} target @returns {Spot | null} */
  const spotOf = (target) => {
    const cell = target instanceof Element ? /** @type {HTMLElement | null} */ (target.closest("[data-row]")) : null;
    return cell && owner.element.contains(cell) ? { row: Number(cell.dataset.row), column: Number(cell.dataset.column) } : null;
  };

  /** Tab stops at one cell only: the one used last. @param {Spot} spot @param {boolean} focus */
  const stopAt = (spot, focus) => {
    const cell = owner.cell(spot);
    if (!cell) return;
    if (stop) stop.tabIndex = -1;
    stop = cell;
    cell.tabIndex = 0;
    if (focus) cell.focus({ preventScroll: true });
  };

  /** @param {Spot} spot */
  const isHeader = ({ row, column }) => row < 0 || column < 0;

  /** @param {Spot} spot */
  const remember = (spot) => {
    if (isHeader(spot)) headerAnchor = spot;
    else anchor = spot;
  };

  /** Whether a rectangle between two places has only places of their kind in it. @param {Spot} one @param {Spot} other */
  const alike = (one, other) => {
    if (isHeader(one) || isHeader(other)) return one.row === other.row ? one.row < 0 : one.column === -1 && other.column === -1;
    return Boolean(owner.size(one.row).loose) === Boolean(owner.size(other.row).loose);
  };

  /** @param {Spot} spot @param {number} weight */
  const give = (spot, weight) => {
    for (const member of owner.members(spot)) if (owner.get(member) !== weight) owner.set(member, weight);
  };

  /** A cell or line that is not wholly painted is painted; otherwise it is cleared. @param {Spot} spot */
  const toggled = (spot) => {
    const brush = owner.brush();
    const members = owner.members(spot);
    const full = members.every((member) => (brush === 1 ? owner.get(member) !== 0 : owner.get(member) === brush));
    return members.length && full ? 0 : brush;
  };

  /**
   * Bottom edges of the rows and right edges of the columns, for a stroke that starts in a row; null in a row whose cells
   * do not stand in the columns. @param {number} start
   */
  const edges = (start) => {
    if (start >= 0 && owner.size(start).loose) return null;
    const { rows, columns } = owner.size(-1);
    // Absent cells are elements too, so the first row and the first column give every edge.
    const bottoms = Array.from({ length: rows }, (_, row) => owner.cell({ row, column: 0 })?.getBoundingClientRect().bottom ?? 0);
    const rights = Array.from({ length: columns }, (_, column) => owner.cell({ row: 0, column })?.getBoundingClientRect().right ?? 0);
    return { rows: bottoms, columns: rights };
  };

  /** The cell under the pointer, for a stroke that began elsewhere. @param {PointerEvent} event @returns {Spot | null} */
  const spotUnder = (event) => {
    const { last, edges: borders } = /** @type {NonNullable<typeof stroke>} */ (stroke);
    if (!borders) {
      const spot = spotOf(document.elementFromPoint(event.clientX, event.clientY));
      return spot?.row === last.row && spot.column >= 0 ? spot : null;
    }
    const row = indexAt(borders.rows, event.clientY);
    const column = indexAt(borders.columns, event.clientX);
    // A stroke that starts on a header stays on that line of headers, and one among columns stays among them.
    return { row: last.row < 0 || owner.size(row).loose ? last.row : row, column: last.column < 0 ? -1 : column };
  };

  owner.element.addEventListener("pointerdown", (event) => {
    const spot = event.button === 0 ? spotOf(event.target) : null;
    if (!spot) return;
    event.stopPropagation(); // no preventDefault: it would suppress mouseup, on which ComfyUI records undo steps
    hideTip();
    stopAt(spot, true);
    owner.tell(spot);
    if (owner.frozen()) return;
    const header = isHeader(spot);
    const from = header ? headerAnchor : anchor;
    if (event.shiftKey && from && alike(from, spot)) {
      const weight = header ? (owner.members(from).some((member) => owner.get(member) !== 0) ? owner.brush() : 0) : owner.get(from);
      for (const covered of rectangle(from, spot)) give(covered, weight);
      stroke = { last: spot, weight, edges: edges(spot.row), header };
    } else {
      const weight = toggled(spot);
      give(spot, weight);
      stroke = { last: spot, weight, edges: edges(spot.row), header };
      remember(spot);
    }
    owner.tell(spot);
    owner.element.setPointerCapture(event.pointerId);
  });

  owner.element.addEventListener("pointermove", (event) => {
    if (!stroke) return;
    used(event);
    const spot = spotUnder(event);
    if (!spot || stroke.last.row < -1 || (spot.row === stroke.last.row && spot.column === stroke.last.column)) return;
    for (const crossed of line(stroke.last, spot)) give(crossed, stroke.weight);
    stroke.last = spot;
  });

  const end = (/** @type {PointerEvent} */ event) => {
    if (!stroke) return;
    used(event);
    stroke = null;
    owner.done();
  };
  owner.element.addEventListener("pointerup", end);
  owner.element.addEventListener("pointercancel", end);
  owner.element.addEventListener("lostpointercapture", end);

  owner.element.addEventListener("pointerover", (event) => {
    const spot = stroke || event.pointerType === "touch" ? null : spotOf(event.target);
    if (spot) owner.tell(spot);
  });
  owner.element.addEventListener("pointerleave", hideTip);
  owner.element.addEventListener("focusout", hideTip);
  owner.element.addEventListener("focusin", (event) => {
    const spot = spotOf(event.target);
    if (spot && !stroke) {
      stopAt(spot, false);
      owner.tell(spot);
    }
  });

  owner.element.addEventListener("keydown", (event) => {
    const spot = spotOf(event.target);
    if (!spot || event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-10, 0], PageDown: [10, 0], Home: [0, -1e3], End: [0, 1e3] };
    if (event.key in moves) {
      used(event);
      const [down, right] = moves[/** @type {keyof typeof moves} */ (event.key)];
      const next = reachable(spot, down, right);
      if (event.shiftKey && !owner.frozen() && spot.row >= 0 && spot.column >= 0 && next.row >= 0 && next.column >= 0) {
        give(next, owner.get(spot));
        owner.done();
      } else remember(next);
      stopAt(next, true);
    } else if (event.key === " " || event.key === "Enter" || event.key === "Delete" || event.key === "Backspace") {
      used(event); // Delete must not remove the node
      if (owner.frozen()) return;
      remember(spot);
      give(spot, event.key === " " ? toggled(spot) : event.key === "Enter" ? owner.brush() : 0);
      owner.done();
      owner.tell(spot);
    }
  });

  /** The next existing cell or header in a direction. @param {Spot} from @param {number} down @param {number} right */
  const reachable = (from, down, right) => {
    const row = Math.max(-2, Math.min(owner.size(from.row).rows - 1, from.row + down));
    const to = { row, column: Math.max(-1, Math.min(owner.size(row).columns - 1, from.column + right)) };
    if (!right && down < -1) to.row = Math.max(0, to.row);
    while (!owner.cell(to) && to.row < 0) to.row += 1; // no groups above this column
    return owner.cell(to) ? to : from;
  };

  return {
    /** Forget the elements: the owner has built new ones. */
    reset: () => {
      anchor = { row: 0, column: 0 };
      headerAnchor = null;
      stop = null;
      stopAt(anchor, false);
    },
    busy: () => stroke !== null,
  };
};
