// @ts-check
/** Rank rules on lists of singular values, the same as `difflora/rank/rules.py`, for the picture on the Re-rank node. */
import { countingFor, idleFor } from "./choices.js";

/**
 * What the Re-rank node is set to: a rule, and the numbers of all of them.
 * @typedef {{ kind: string, rank: number, energy: number, ratio: number, most: number }} Rule
 * @typedef {import("./messages.js").Spectrum} Spectrum
 */

const NOISE = 1e-6; // below this share of the largest value, there is only rounding of the factors
const TIE = 1e-9; // numbers this close are equal: rounding must not decide

/** A rule that judges each module by itself. @param {(values: number[], energy: number, rule: Rule) => number} count */
const eachModule = (count) => (/** @type {Spectrum} */ { values, energy }, /** @type {Rule} */ rule) =>
  Object.entries(values).map(([name, list]) => [name, count(list, energy[name], rule)]);

/** The smallest rank that keeps a share of the energy. @param {number[]} values @param {number} energy @param {Rule} rule */
const byEnergy = (values, energy, rule) => {
  // The missing energy, summed from the small end: rounding then never asks for one more value.
  let missing = Math.max(0, energy - values.reduce((sum, value) => sum + value * value, 0));
  if (missing <= 1e-12 * energy) missing = 0; // rounding, not values that were not sent
  const allowed = (1 - rule.energy) * energy * (1 + TIE);
  let rank = values.length;
  while (rank > 1 && missing + values[rank - 1] ** 2 <= allowed) missing += values[--rank] ** 2;
  return rank;
};

/** @param {number[]} values @param {number} _ @param {Rule} rule */
const byRatio = (values, _, rule) => {
  const bound = values[0] * Math.max(1 / rule.ratio, NOISE) * (1 + TIE);
  return values.filter((value) => value > bound).length;
};

/** How many values come before the first of those farthest below the line from the first to the last. @param {number[]} values */
const byKnee = (values) => {
  const spectrum = values.filter((value) => value > NOISE * values[0]);
  const last = spectrum.length - 1;
  if (last < 2) return spectrum.length;
  const below = spectrum.map((value, index) => spectrum[0] + ((spectrum[last] - spectrum[0]) * index) / last - value);
  const most = below.reduce((one, other) => Math.max(one, other));
  return most > NOISE * spectrum[0] ? below.findIndex((depth) => depth >= most - TIE * spectrum[0]) : spectrum.length;
};

/**
 * The numbers that one rank would take everywhere, spent on the largest σ² / (out + in) of all modules; each keeps one.
 * @param {Spectrum} spectrum @param {Rule} rule
 */
const byBudget = ({ values, shape }, rule) => {
  const ranks = new Map(Object.keys(values).map((name) => [name, 1]));
  let left = 0;
  /** @type {{ worth: number, cost: number, name: string }[]} */
  const offers = [];
  for (const [name, list] of Object.entries(values)) {
    const cost = shape[name][0] + shape[name][1];
    const most = Math.min(list.length, rule.most > 0 ? rule.most : Infinity);
    left += (Math.min(rule.rank, most) - 1) * cost;
    for (const value of list.slice(1, most)) if (value > NOISE * list[0]) offers.push({ worth: value ** 2 / cost, cost, name });
  }
  for (const { cost, name } of offers.sort((one, other) => other.worth - one.worth)) {
    if (cost > left) continue;
    ranks.set(name, (ranks.get(name) ?? 1) + 1);
    left -= cost;
  }
  return [...ranks];
};

/**
 * Every rule by its name in the node's list: the rank that it gives each module, before limits.
 * @type {Record<string, (spectrum: Spectrum, rule: Rule) => (string | number)[][]>}
 */
export const RULES = {
  rank: eachModule((_values, _energy, rule) => rule.rank),
  energy: eachModule(byEnergy),
  ratio: eachModule(byRatio),
  knee: eachModule(byKnee),
  budget: byBudget,
};

/**
 * The rank of every module: at least 1, at most what there is and what `max_rank` says. An unknown rule is none: `rank`.
 * @param {Spectrum} spectrum @param {Rule} rule @returns {Map<string, number>}
 */
export const ranksOf = (spectrum, rule) => {
  const kind = Object.hasOwn(RULES, rule.kind) ? rule.kind : "rank";
  const most = kind !== "rank" && rule.most > 0 ? rule.most : Infinity;
  return new Map(RULES[kind](spectrum, rule).map(([name, rank]) => [
    String(name),
    Math.max(1, Math.min(Number(rank), most, spectrum.values[name].length)),
  ]));
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

/** What a rule does to all modules: smallest, largest and mean rank, and the share of all energy that stays. @param {Spectrum} spectrum @param {Rule} rule */
export const outcome = (spectrum, rule) => {
  let lowest = Infinity;
  let highest = 0;
  let sum = 0;
  let stays = 0;
  let total = 0;
  const ranks = ranksOf(spectrum, rule);
  for (const [name, rank] of ranks) {
    const energy = spectrum.energy[name];
    lowest = Math.min(lowest, rank);
    highest = Math.max(highest, rank);
    sum += rank;
    stays += kept(spectrum.values[name], energy, rank) * energy;
    total += energy;
  }
  return { ranks, lowest: ranks.size ? lowest : 0, highest, mean: ranks.size ? sum / ranks.size : 0, kept: total > 0 ? stays / total : 1 };
};

/** The widgets that a rule uses. @type {Record<string, string[]>} */
const COUNTS = { rank: ["rank"], energy: ["energy", "max_rank"], ratio: ["ratio", "max_rank"], knee: ["max_rank"], budget: ["rank", "max_rank"] };

/** The widgets that a rule does not use. */
export const idle = idleFor(COUNTS);

const counting = countingFor(COUNTS);

/** Whether a run would cut at other ranks than the last one. @param {Record<string, unknown> | undefined} ran @param {Record<string, unknown>} now */
export const isOtherCut = (ran, now) =>
  ran !== undefined && (ran.rule !== now.rule || counting(now.rule).some((name) => Number(ran[name]) !== Number(now[name])));
