// @ts-check
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { ENGLISH, say, setWords } from "../../js/lib/words.js";

/** @param {string} language */
const words = (language) => JSON.parse(readFileSync(new URL(`../../locales/${language}/main.json`, import.meta.url), "utf-8")).difflora;

test("the English that is built in is that of the locale file", () => {
  assert.deepEqual(words("en"), ENGLISH);
});

test("words are filled in, and a missing translation falls back to English", () => {
  assert.equal(say("selected", 3, 400), "3 of 400 modules");
  setWords({ ...words("ja"), keeps: undefined });
  assert.match(say("selected", 3, 400), /400 .* 3/);
  assert.equal(say("keeps", 95), "95 % kept");
  setWords(null);
  assert.equal(say("all"), "All");
});
