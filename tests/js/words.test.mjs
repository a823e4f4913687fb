// @ts-check
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";

import { Selection } from "../../js/lib/selection.js";
import { ENGLISH, retell, retellError, say, setWords } from "../../js/lib/words.js";

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

/** @param {string} language */
const errors = (language) => JSON.parse(readFileSync(new URL(`../../locales/${language}/main.json`, import.meta.url), "utf-8")).diffloraErrors;

test("an error is put together in the user's language, and so is the error in it", () => {
  setWords(null, null, { "{0}: {1}.": "short {0} {1}", "{0}: no such file.": "{0} manque", "in {0}, {1}: {2}": "{2} ({1}, {0})", "the end": "fin", "count {{0},{1}}": "{1}-{0}" });
  assert.equal(retellError("a: b: no such file."), "a: b manque");
  assert.equal(retellError("in x, 3: the end"), "fin (3, x)");
  assert.equal(retellError("count {2,5}"), "5-2");
  assert.equal(retellError("in the end"), "in the end");
  assert.equal(retellError("something else"), "something else");
  setWords(null);
});

test("an error full of what stands between values is read in no time", () => {
  setWords(null, null, { "{0}: {1} is {2}: {3} and {4}: {5}!": "x" });
  const start = performance.now();
  assert.match(retellError(": is and ".repeat(20_000)), /^: is/);
  assert.ok(performance.now() - start < 1000);
  setWords(null);
});

/** What the page itself finds wrong, with {0}, {1} … for the values. */
const found = ["selection", "patterns"].flatMap((name) => {
  const source = readFileSync(new URL(`../../js/lib/${name}.js`, import.meta.url), "utf-8");
  const calls = [...source.matchAll(/(?:\.error|SelectionError|PatternError)\(\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`)/g)];
  return calls.map(([, literal]) => {
    let count = 0;
    const marked = literal.startsWith("`") ? literal.replace(/\$\{[^}]*\}/g, () => `{${count++}}`) : literal;
    return String(new Function(`return ${marked}`)());
  });
});

for (const language of readdirSync(new URL("../../locales", import.meta.url)).filter((code) => code !== "en")) {
  test(`what is wrong with a selection is said in ${language}`, () => {
    assert.ok(found.length > 25, `${found.length} errors`);
    const translated = errors(language);
    assert.deepEqual(found.filter((text) => !Object.hasOwn(translated, text)), []);
  });
}

test("the grid's errors keep their place and what was typed", () => {
  setWords(null, null, errors("zh"));
  const wrong = (/** @type {string} */ text) => {
    try {
      Selection.parse(text);
    } catch (error) {
      return retellError(/** @type {Error} */ (error).message);
    }
    return "";
  };
  assert.equal(wrong("attn ffn"), '选择 "attn ffn"，第 6 个字符：此处是 "ffn"，只能是 ","（以及）、"&"（仅限）或 "="（权重）。');
  assert.equal(wrong("/a{3,1}/"), '选择 "/a{3,1}/"，第 3 个字符：次数 {3,1} 前后颠倒。');
  assert.equal(wrong("attn,ffn="), '选择 "attn,ffn="，第 10 个字符："=" 之后应是 0.5 或 -1 这样的权重，此处是 结尾。');
  setWords(null);
});
