// @ts-check
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { Selection, SelectionError } from "../../js/lib/selection.js";
import { write } from "../../js/lib/selection_writer.js";

const DATA = JSON.parse(readFileSync(new URL("../data/selection.json", import.meta.url), "utf-8"));

/** @param {string} text */
const numbers = (text) =>
  text.split(",").flatMap((part) => {
    const [low, high = low] = part.split("-").map(Number);
    return Array.from({ length: high - low + 1 }, (_, n) => low + n);
  });

/** As a shell does: a{b,c{0..1}} is ab, ac0 and ac1. @param {string} template @returns {string[]} */
const spelledOut = (template) => {
  /** @type {{ words: string[], ends: string[] }[]} */
  const outer = [];
  /** @type {{ words: string[], ends: string[] }} */
  let now = { words: [], ends: [""] };
  for (const piece of template.split(/([{},])/)) {
    if (piece === "{") {
      outer.push(now);
      now = { words: [], ends: [""] };
    } else if (piece === ",") now = { words: [...now.words, ...now.ends], ends: [""] };
    else {
      const [low, high] = piece.split("..");
      let inside = high ? numbers(`${low}-${high}`).map(String) : [piece];
      if (piece === "}") {
        inside = [...now.words, ...now.ends];
        now = /** @type {typeof now} */ (outer.pop());
      }
      now = { words: now.words, ends: now.ends.flatMap((start) => inside.map((word) => start + word)) };
    }
  }
  return now.ends;
};

/** @param {string} model @returns {string[]} */
const namesOf = (model) => {
  const rule = DATA.models[model];
  if (rule.names) return rule.names;
  if (rule.templates) return rule.templates.flatMap(spelledOut);
  const inside = Object.entries(rule.stacks).flatMap(([stack, count]) =>
    Array.from({ length: Number(count) }, (_, n) => rule.modules.map((/** @type {string} */ m) => `${stack}.${n}.${m}`)).flat(),
  );
  return [...inside, ...rule.outside];
};

/** @param {any[][]} groups @param {string[]} names */
const expand = (groups, names) => {
  const weights = new Map();
  for (const group of groups) {
    if (group.length === 2) weights.set(group[0], group[1]);
    else {
      const [stack, blocks, modules, weight] = group;
      for (const name of names) {
        const [, s, n, rest] = /^(\w+)\.(\d+)\.(.+)$/.exec(name) ?? [];
        if (s === stack && numbers(blocks).includes(Number(n)) && (modules === "*" || modules.includes(rest))) weights.set(name, weight);
      }
    }
  }
  return new Map(names.filter((name) => weights.get(name)).map((name) => [name, weights.get(name)]));
};

for (const item of DATA.cases) {
  test(`${item.why}: ${item.text}`, () => {
    const names = namesOf(item.names);
    if (item.error) {
      assert.throws(
        () => Selection.parse(item.text).weights(names),
        (error) => error instanceof SelectionError && item.error.every((/** @type {string} */ piece) => error.message.includes(piece)),
      );
      return;
    }
    const selection = Selection.parse(item.text);
    if ("count" in item) {
      assert.deepEqual([...selection.weights(names).values()], Array(item.count).fill(1));
      return;
    }
    const expected =
      "all" in item
        ? new Map(names.map((name) => [name, item.all]))
        : "weights" in item
          ? new Map(names.filter((name) => name in item.weights).map((name) => [name, item.weights[name]]))
          : expand(item.groups, names);
    assert.deepEqual([...selection.weights(names)], [...expected]);
    assert.deepEqual(selection.unmatched(names), item.unmatched ?? []);
  });
}

for (const item of DATA.round_trips) {
  test(`the grid writes: ${item.text}`, () => {
    const names = namesOf(item.names);
    assert.equal(write(expand(item.paint, names), names), item.text);
  });
}

/** A small repeatable source of random numbers. @param {number} seed */
const random = (seed) => () => {
  seed = (seed * 1103515245 + 12345) % 2147483648;
  return seed / 2147483648;
};

const PAINTS = {
  "single cells": (/** @type {() => number} */ next) => (next() < 0.5 ? 1 : 0),
  "few cells": (/** @type {() => number} */ next) => (next() < 0.02 ? 1 : 0),
  weights: (/** @type {() => number} */ next) => [0, 1, 0.5, -2, 1e-7][Math.floor(next() * 5)],
};

for (const model of Object.keys(DATA.models)) {
  for (const [kind, paint] of Object.entries(PAINTS)) {
    test(`what the grid writes selects exactly what was painted: ${kind} on ${model}`, () => {
      const names = namesOf(model);
      const next = random(7);
      for (let round = 0; round < 5; round++) {
        /** @type {Map<string, number>} */
        const weights = new Map();
        for (const name of names) {
          const weight = paint(next);
          if (weight) weights.set(name, weight);
        }
        const text = write(weights, names);
        assert.deepEqual(Selection.parse(text).chosen(names), weights, text);
      }
    });
  }

  test(`what the grid writes for lines and rectangles is exact and short: ${model}`, () => {
    const names = namesOf(model);
    const next = random(3);
    for (let round = 0; round < 20; round++) {
      const weights = new Map();
      for (let stroke = 0; stroke < 4; stroke++) {
        const [from, to] = [next() * 40, next() * 40].sort((a, b) => a - b);
        const column = ["q", "self_attn", "ffn", "", "cross_attn.o"][Math.floor(next() * 5)];
        const weight = [1, 1, 0, 0.5][Math.floor(next() * 4)];
        for (const name of names) {
          const [, , n, rest] = /^(\w+)\.(\d+)\.(.+)$/.exec(name) ?? [];
          if (rest === undefined || Number(n) < from || Number(n) > to || !rest.includes(column)) continue;
          if (weight) weights.set(name, weight);
          else weights.delete(name);
        }
      }
      const text = write(weights, names);
      const inOrder = new Map(names.filter((name) => weights.has(name)).map((name) => [name, weights.get(name)]));
      assert.deepEqual(Selection.parse(text).chosen(names), inOrder, text);
      assert.ok(text.length <= (model.startsWith("sdxl") ? 600 : 400), `${text.length} characters: ${text}`);
      assert.equal(write(inOrder, names), text, "the same picture gives the same text");
    }
  });
}

test("the grid writes a U-Net's blocks by their places", () => {
  const names = namesOf("sdxl-own");
  const texts = [
    "attn", "attn2", "ff", "input_blocks.4.1.transformer_blocks 1", "input_blocks.7.1.transformer_blocks 0-4 & attn",
    "middle_block.1.transformer_blocks", "input_blocks.4.1.proj_in", "attn, !input_blocks.4.1.transformer_blocks",
  ];
  for (const text of texts) assert.equal(write(Selection.parse(text).chosen(names), names), text);
});

test("names that no word can spell are written as patterns", () => {
  const names = ["a b/c", "a", "a.b", "été.x", "blocks.0.q", "blocks.0.q.bias", "x*y", "9"];
  for (const name of names) {
    const weights = new Map([[name, 0.25]]);
    const text = write(weights, names);
    assert.deepEqual(Selection.parse(text).chosen(names), weights, text);
  }
});

const MANY = Array.from({ length: 400 }, (_, n) => `blocks.${n}.self_attn.q`);
const LONG = ["x".repeat(20_000), `${"a.".repeat(10_000)}q`];
for (const [at, [text, names]] of /** @type {[string, string[]][]} */ ([
  ["q,".repeat(49_000), MANY],
  [`blocks ${"0 ".repeat(49_000)}`, MANY],
  ['"x",'.repeat(24_000), MANY],
  ["a 1,b 2,".repeat(12_000), LONG],
  ["/(x?){100}x*y/", LONG],
  [Array(20).fill("/(x?){30}[a-c]z/").join(), LONG],
  [Array(20).fill("*?*?*?*?*?*?*?y").join(), LONG],
]).entries()) {
  test(`a selection has a budget of work: ${at}`, () => {
    const selection = Selection.parse(text);
    assert.throws(() => selection.chosen(names), /take too long/);
    assert.throws(() => selection.unmatched(names), /take too long/);
  });
}
