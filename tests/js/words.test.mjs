// @ts-check
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { ENGLISH, retell, say, setWords } from "../../js/lib/words.js";

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

test("what nodes say is put together in the user's language, and in English where there is no translation", () => {
  const none = { text: "none stored", template: "none stored", values: [] };
  const sentence = { text: "rank 4, alpha none stored", template: "rank {0}, alpha {1}", values: [{ text: "4" }, none] };
  assert.equal(retell(sentence), sentence.text);
  setWords(null, { "rank {0}, alpha {1}": "alpha {1} · Rang {0}", "none stored": "keines" });
  assert.equal(retell(sentence), "alpha keines · Rang 4");
  assert.equal(retell({ text: "rank {0}.safetensors" }), "rank {0}.safetensors");
  assert.equal(retell({ text: "constructor", template: "constructor", values: [] }), "constructor");
  assert.equal(retell({ text: "x {1}", template: "x {0}", values: [{ text: "{1}" }] }), "x {1}");
  setWords(null);
});
