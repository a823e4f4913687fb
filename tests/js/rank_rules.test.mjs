// @ts-check
/** The rank rules of the page, by the worked cases that the library's tests read too. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { outcome, ranksOf, RULES } from "../../js/lib/spectrum.js";

/** @typedef {{ values: number[], energy?: number, repeat?: number, times?: number, shape?: [number, number] }} Module */
/** @typedef {Module & { why: string, rule: string, settings?: object, max_rank?: number, rank?: number, modules?: Record<string, Module>, ranks?: Record<string, number> }} Case */
/** @type {Case[]} */
const CASES = JSON.parse(readFileSync(new URL("../data/rank_rules.json", import.meta.url), "utf-8")).cases;

/** @param {Case} given */
const spectrumOf = (given) => {
  /** @type {import("../../js/lib/messages.js").Spectrum} */
  const spectrum = { values: {}, energy: {}, shape: {} };
  for (const [name, module] of Object.entries(given.modules ?? { it: given })) {
    const values = [...module.values, ...Array.from({ length: module.times ?? 0 }, () => Number(module.repeat))];
    spectrum.values[name] = values;
    spectrum.energy[name] = module.energy ?? values.reduce((sum, value) => sum + value * value, 0);
    spectrum.shape[name] = module.shape ?? [100, 100];
  }
  return spectrum;
};

for (const given of CASES) {
  test(`${given.rule}: ${given.why}`, () => {
    const rule = { kind: given.rule, rank: 4, energy: 0.9, ratio: 10, most: given.max_rank ?? 4096, ...given.settings };
    const ranks = ranksOf(spectrumOf(given), rule);
    assert.deepEqual(Object.fromEntries(ranks), given.ranks ?? { it: given.rank });
  });
}

test("every rule has cases, and a rule that the page does not know is a plain rank", () => {
  assert.deepEqual(new Set(CASES.map(({ rule }) => rule)), new Set(Object.keys(RULES)));
  const spectrum = spectrumOf(CASES[0]);
  for (const kind of ["newer", "constructor", "undefined"]) {
    assert.equal(ranksOf(spectrum, { kind, rank: 2, energy: 0.9, ratio: 10, most: 1 }).get("it"), 2);
  }
});

test("the noise of factors is no rank: ten, five, four, three and twenty of 1e-7", () => {
  const noisy = CASES.find(({ rule, times }) => rule === "knee" && times === 20);
  assert.ok(noisy);
  assert.equal(outcome(spectrumOf(noisy), { kind: "knee", rank: 4, energy: 0.9, ratio: 10, most: 64 }).highest, 1);
});
