// @ts-check
/** Rank rules on lists of singular values, the same as `difflora/rerank.py`, for the picture on the Re-rank node. */

/** @typedef {{ kind: "rank" | "energy" | "ratio" | "knee", rank: number, energy: number, ratio: number, most: number }} Rule */

/** The rank that a rule gives one module; at least 1, at most what there is. @param {number[]} values @param {number} energy @param {Rule} rule */
export const rankOf = (values, energy, rule) => {
  const limit = Math.max(1, rule.kind === "rank" ? values.length : Math.min(values.length, rule.most > 0 ? rule.most : Infinity));
  return Math.max(1, Math.min(limit, wanted(values, energy, rule)));
};

/** @param {number[]} values @param {number} energy @param {Rule} rule */
const wanted = (values, energy, rule) => {
  if (rule.kind === "rank") return rule.rank;
  if (rule.kind === "ratio") return values.filter((value) => value > values[0] / rule.ratio).length;
  if (rule.kind === "knee") return knee(values);
  // What would be missing, summed from the small end: rounding then never asks for a value of size zero.
  let missing = Math.max(0, energy - values.reduce((sum, value) => sum + value * value, 0));
  if (missing <= 1e-12 * energy) missing = 0; // rounding, not values that were not sent
  const allowed = (1 - rule.energy) * energy * (1 + 1e-9); // at a tie, the last bits must not decide
  let rank = values.length;
  while (rank > 1 && missing + values[rank - 1] ** 2 <= allowed) missing += values[--rank] ** 2;
  return rank;
};

/** How many values come before the one that lies furthest below the straight line from the first to the last. @param {number[]} values */
export const knee = (values) => {
  const positive = values.filter((value) => value > 0);
  const last = positive.length - 1;
  if (last < 2) return positive.length;
  const below = positive.map((value, index) => positive[0] + ((positive[last] - positive[0]) * index) / last - value);
  const deepest = below.indexOf(Math.max(...below));
  return below[deepest] > 1e-12 * positive[0] ? deepest : positive.length;
};

/** Share of the energy in the first `rank` values. @param {number[]} values @param {number} energy @param {number} rank */
export const kept = (values, energy, rank) =>
  energy > 0 ? Math.min(1, values.slice(0, rank).reduce((sum, value) => sum + value * value, 0) / energy) : 1;

/**
 * All modules as one curve: the root mean square of each singular value, so that energy shares stay right.
 * @param {import("./messages.js").Spectrum} spectrum
 */
export const average = (spectrum) => {
  const lists = Object.values(spectrum.values);
  const length = Math.max(0, ...lists.map((list) => list.length));
  const values = Array.from({ length }, (_, index) =>
    Math.sqrt(lists.reduce((sum, list) => sum + (list[index] ?? 0) ** 2, 0) / Math.max(1, lists.length)),
  );
  const energy = Object.values(spectrum.energy).reduce((sum, value) => sum + value, 0) / Math.max(1, lists.length);
  return { values, energy };
};

/** What a rule does to all modules: smallest and largest rank, and the share of all energy that stays. @param {import("./messages.js").Spectrum} spectrum @param {Rule} rule */
export const outcome = (spectrum, rule) => {
  let lowest = Infinity;
  let highest = 0;
  let ranks = 0;
  let stays = 0;
  let total = 0;
  const names = Object.keys(spectrum.values);
  for (const name of names) {
    const values = spectrum.values[name];
    const energy = spectrum.energy[name];
    const rank = rankOf(values, energy, rule);
    lowest = Math.min(lowest, rank);
    highest = Math.max(highest, rank);
    ranks += rank;
    stays += kept(values, energy, rank) * energy;
    total += energy;
  }
  return { lowest: names.length ? lowest : 0, highest, mean: names.length ? ranks / names.length : 0, kept: total > 0 ? stays / total : 1 };
};
