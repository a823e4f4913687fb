// @ts-check
/** How an example workflow of the pack opens: as a whole, and so that it can be read. */

/** @typedef {{ scale: number, offset: ArrayLike<number> }} View */

/** @param {View} one @param {View} other */
const same = (one, other) =>
  Math.abs(one.scale - other.scale) < 1e-3 && [0, 1].every((axis) => Math.abs(one.offset[axis] - other.offset[axis]) < 1);

/**
 * The view that an example was saved with, where ComfyUI has put its own in the place of it; otherwise null. Newer versions
 * leave a quarter of the page empty around a template, and text that is so small is not drawn any more.
 * @param {any} extra of the saved workflow @param {View} before it was loaded @param {View} now
 * @returns {{ scale: number, offset: [number, number] } | null}
 */
export const savedView = (extra, before, now) => {
  const view = extra?.difflora_example === true ? extra.ds : null;
  const numbers = [view?.scale, view?.offset?.[0], view?.offset?.[1]];
  if (!numbers.every((number) => Number.isFinite(number)) || view.scale <= 0) return null;
  // An undo loads the graph anew too, and leaves the view alone.
  if (same(before, now) || same(view, now)) return null;
  return { scale: view.scale, offset: [view.offset[0], view.offset[1]] };
};
