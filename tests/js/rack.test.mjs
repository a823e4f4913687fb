// @ts-check
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { fileFor, matching, readFacts, readRack, writeRack } from "../../js/lib/rack.js";

const { cases } = JSON.parse(readFileSync(new URL("../data/rack.json", import.meta.url), "utf-8"));

for (const { why, text, rows, written = text, bad } of cases) {
  test(why, () => {
    const read = readRack(text);
    const isBad = (/** @type {any} */ row) => "bad" in row;
    if (bad) {
      assert.equal(read.findIndex(isBad) + 1, bad);
      // What cannot be read is kept while the other rows are edited.
      assert.deepEqual(readRack(writeRack(read)), read);
      return;
    }
    assert.deepEqual(read.map((row) => (isBad(row) ? row : [/** @type {any} */ (row).on, /** @type {any} */ (row).strength, /** @type {any} */ (row).name])), rows);
    assert.equal(writeRack(read), written);
    assert.deepEqual(readRack(written), read);
  });
}

test("a row takes its twin for the other model, and itself where its name says neither", () => {
  const facts = readFacts({ h: { noise: "high", twin: "l" }, alone: { noise: "low" }, plain: {}, odd: { noise: "loud", twin: 3 } });
  const file = (/** @type {string} */ name, /** @type {string} */ model) => fileFor(name, facts.get(name), model);
  assert.deepEqual([file("h", "as named"), file("h", "high"), file("h", "low")], ["h", "h", "l"]);
  assert.deepEqual([file("alone", "low"), file("alone", "high")], ["alone", null]);
  assert.deepEqual([file("plain", "high"), file("odd", "low"), file("unknown", "low")], ["plain", "odd", "unknown"]);
});

test("facts of strangers are checked", () => {
  const facts = readFacts({ a: { strength_range: [-20, 3], rank: 4, base: null }, b: { strength_range: [3, 1] }, c: "text", d: null });
  assert.deepEqual(facts.get("a")?.range, [-10, 3]);
  assert.equal(facts.get("a")?.rank, "4");
  for (const name of ["b", "c", "d"]) assert.equal(facts.get(name)?.range, null);
  assert.equal(readFacts(null).size, 0);
});

test("a search finds names with all of its words", () => {
  const names = ["people/Age_slider.safetensors", "people/hair.safetensors", "cat.safetensors"];
  assert.deepEqual(matching(names, " slider PEOPLE"), [names[0]]);
  assert.deepEqual(matching(names, ""), names);
  assert.deepEqual(matching(names, "dog"), []);
  assert.deepEqual(matching([...names, "x/hairy_cat.safetensors", "hat.safetensors"], "ha"), [names[1], "x/hairy_cat.safetensors", "hat.safetensors"]);
  assert.deepEqual(matching(["old_age.safetensors", "people/age.safetensors"], "age"), ["people/age.safetensors", "old_age.safetensors"]);
  assert.deepEqual(matching(names, "safe"), [], "every name ends in .safetensors");
});
