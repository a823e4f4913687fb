// @ts-check
/** The arithmetic behind the widgets: grid, colours, strength, spectrum, messages. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { STEPS, heatStep, indexAt, inverted, layoutOf, MODELS, line, namesOf, presets, rectangle, short, strongest } from "../../js/lib/grid.js";
import { readMessage } from "../../js/lib/messages.js";
import { Selection } from "../../js/lib/selection.js";
import { idleForUnit } from "../../js/lib/choices.js";
import { RULES, average, idle, isOtherCut, kept, outcome } from "../../js/lib/spectrum.js";
import { fileStem, keyed, positionOf, rangeText, reachOf, remembered, rounded, signed, turned, typed, valueAt, zoneOf } from "../../js/lib/strength.js";

const T2V = namesOf(MODELS["Wan 14B T2V"]);
const I2V = namesOf(MODELS["Wan 14B I2V"]);

test("a Wan LoRA has a row for each block and a column for each projection, in the model's order", () => {
  const shuffled = [...I2V].sort();
  const layout = layoutOf([...shuffled, "head.head"]);
  assert.equal(layout.rows.length, 40);
  assert.deepEqual(layout.rows.map((row) => row.block), Array.from({ length: 40 }, (_, n) => n));
  assert.deepEqual(
    layout.columns.map((column) => column.rest),
    ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.o", "cross_attn.k_img", "cross_attn.v_img", "ffn.0", "ffn.2"],
  );
  assert.deepEqual(layout.outside, ["head.head"]);
});

test("numbers that tell columns apart are not cut off", () => {
  const { columns } = layoutOf(["single_blocks.0.linear1", "single_blocks.0.linear2"]);
  assert.deepEqual(columns.map(({ label }) => label), ["lin1", "lin2"]);
});

test("every name is in exactly one cell, absent ones are holes", () => {
  const names = T2V.filter((_, index) => index % 7).concat("vace_blocks.3.ffn.0", "patch_embedding", "blocks.03.odd");
  const layout = layoutOf(names);
  const found = [...layout.rows.flatMap((row) => row.cells.filter((cell) => cell !== null)), ...layout.outside];
  assert.deepEqual([...found].sort(), [...names].sort());
  assert.ok(layout.rows.some((row) => row.cells.includes(null)));
});

test("every preset is a selection that picks something, and early, middle and late share all blocks", () => {
  for (const names of [T2V, namesOf(MODELS["Wan 1.3B / 5B"]), Array.from({ length: 19 }, (_, n) => `double_blocks.${n}.img_attn.qkv`)]) {
    const texts = new Map(presets(layoutOf(names)));
    for (const [word, text] of texts) assert.equal(Selection.parse(text).chosen(names).size > 0, word !== "none", text);
    const parts = ["early", "middle", "late"].map((word) => Selection.parse(texts.get(word) ?? "").chosen(names).size);
    assert.equal(parts[0] + parts[1] + parts[2], names.length);
  }
  assert.equal(new Map(presets(layoutOf(T2V))).get("early"), "blocks 0-10");
});

test("a fast stroke leaves no holes", () => {
  const cells = line({ row: 2, column: 9 }, { row: 30, column: 0 });
  for (let index = 1; index < cells.length; index++) {
    assert.ok(Math.abs(cells[index].row - cells[index - 1].row) <= 1 && Math.abs(cells[index].column - cells[index - 1].column) <= 1);
  }
  assert.deepEqual(cells[cells.length - 1], { row: 30, column: 0 });
  assert.deepEqual(line({ row: 1, column: 1 }, { row: 1, column: 1 }), [{ row: 1, column: 1 }]);
  assert.equal(rectangle({ row: 5, column: 1 }, { row: 3, column: 2 }).length, 6);
});

test("positions find their row", () => {
  const ends = [10, 21, 32];
  assert.deepEqual([-5, 0, 9.9, 10, 21, 500].map((at) => indexAt(ends, at)), [0, 0, 0, 1, 2, 2]);
});

test("the strongest are those with the largest norms; the inverse is the rest", () => {
  const modules = Object.fromEntries(T2V.map((name, index) => [name, { norm: (index * 37) % 400 }]));
  const chosen = strongest(modules, T2V, 10);
  assert.equal(chosen.size, 40);
  const least = Math.min(...[...chosen.keys()].map((name) => modules[name].norm));
  assert.ok(T2V.every((name) => chosen.has(name) || modules[name].norm <= least));
  assert.equal(inverted(chosen, T2V).size, 360);
  assert.equal(strongest(modules, T2V, 0.001).size, 1);
});

const CSS = readFileSync(new URL("../../js/difflora.css", import.meta.url), "utf8");

/** Colours of the style sheet, 0 to 1 each: the scale, or what is written on it. @param {boolean} dark @param {"heat" | "on-heat"} name */
const ramp = (dark, name = "heat") => {
  const block = CSS.slice(CSS.indexOf(dark ? ".dark-theme {" : ":root {")).split("}")[0];
  return Array.from({ length: STEPS }, (_, step) => {
    const hex = /** @type {RegExpMatchArray} */ (block.match(new RegExp(`--dl-${name}-${step}: #([0-9a-f]+);`)))[1];
    return [0, 1, 2].map((part) => (hex.length === 3 ? parseInt(hex[part], 16) / 15 : parseInt(hex.slice(2 * part, 2 * part + 2), 16) / 255));
  });
};

/** @param {number[]} rgb */
const linear = (rgb) => rgb.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
/** Lightness L* of the CIE. @param {number[]} rgb linear */
const lightness = ([r, g, b]) => {
  const y = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return y > 0.008856 ? 116 * Math.cbrt(y) - 16 : 903.3 * y;
};
/** How people without one kind of cone see a linear colour (Viénot, Brettel and Mollon 1999). */
const BLIND = {
  nothing: [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
  red: [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
  green: [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
};

for (const dark of [true, false]) {
  for (const [missing, matrix] of Object.entries(BLIND)) {
    test(`heat colours rise evenly on a ${dark ? "dark" : "light"} page for eyes that miss ${missing}`, () => {
      const seen = ramp(dark).map((rgb) => lightness(matrix.map((row) => row.reduce((sum, part, index) => sum + part * linear(rgb)[index], 0))));
      const steps = seen.slice(1).map((value, index) => (dark ? 1 : -1) * (value - seen[index]));
      const mean = steps.reduce((sum, step) => sum + step, 0) / steps.length;
      assert.ok(mean > 4, `steps of ${mean.toFixed(1)} L*`);
      for (const step of steps) assert.ok(step > 0.4 * mean && step < 1.8 * mean, steps.map((s) => s.toFixed(1)).join(" "));
    });
  }
}

test("a weight can be read on every heat colour", () => {
  for (const dark of [true, false]) {
    const ink = ramp(dark, "on-heat");
    ramp(dark).forEach((rgb, step) => {
      const [low, high] = [rgb, ink[step]].map((colour) => [0.2126, 0.7152, 0.0722].reduce((sum, part, index) => sum + part * linear(colour)[index], 0)).sort((a, b) => a - b);
      assert.ok((high + 0.05) / (low + 0.05) >= 4.5, `${dark ? "dark" : "light"} ${step}`);
    });
  }
});

test("heat steps stay within the scale", () => {
  assert.equal(heatStep(0, 2, STEPS), 0);
  assert.equal(heatStep(2, 2, STEPS), STEPS - 1);
  assert.equal(heatStep(5, 0, STEPS), 0);
  assert.ok(heatStep(0.5, 2, STEPS) === STEPS / 2);
});

test("strengths: zones, axis, keys and signs", () => {
  assert.deepEqual([0, 3, -3, 3.01, -4, 4.01, 10].map(zoneOf), ["safe", "safe", "safe", "stretched", "stretched", "risky", "risky"]);
  assert.deepEqual([5, 5.01, -10].map(reachOf), [5, 10, 10]);
  for (let value = -5; value <= 5; value = rounded(value + 0.1, 0.1)) assert.equal(valueAt(positionOf(value, 5), 5, 0.1), Math.abs(value) < 0.1001 ? 0 : value);
  assert.equal(keyed("-", 2.5, false), -2.5);
  assert.equal(keyed("ArrowRight", 9.95, false), 10);
  assert.equal(keyed("ArrowLeft", 0.1, false), 0);
  assert.equal(keyed("Home", 1, false), -3);
  assert.equal(keyed("x", 1, false), null);
  assert.ok(Object.is(keyed("-", 0, false), 0), "no minus zero");
  assert.deepEqual([2.5, -1, 0, -0].map(signed), ["+2.5", "\u22121", "0", "0"]);
});

const VALUES = [8, 4, 2, 1, 0.5];
const ENERGY = VALUES.reduce((sum, value) => sum + value * value, 0);
/** @param {Partial<import("../../js/lib/spectrum.js").Rule>} rule @returns {import("../../js/lib/spectrum.js").Rule} */
const rule = (rule) => ({ kind: "rank", rank: 4, energy: 0.9, ratio: 10, most: 64, ...rule });

test("kept energy counts what was cut off the list", () => {
  assert.equal(kept(VALUES, 2 * ENERGY, 5), 0.5);
  assert.equal(kept([0, 0], 0, 1), 1);
});

test("the average curve keeps energy shares", () => {
  /** @type {import("../../js/lib/messages.js").Spectrum} */
  const spectrum = { values: { a: [3, 4], b: [1] }, energy: { a: 25, b: 1 }, shape: { a: [2, 2], b: [1, 1] } };
  const { values, energy } = average(spectrum);
  assert.ok(Math.abs(values[0] ** 2 - 5) < 1e-12 && Math.abs(energy - 13) < 1e-12);
  const all = outcome(spectrum, rule({ rank: 1 }));
  assert.deepEqual([all.lowest, all.highest], [1, 1]);
  assert.ok(Math.abs(all.kept - 10 / 26) < 1e-12);
});

test("messages are taken apart with care", () => {
  assert.equal(readMessage(undefined), null);
  assert.equal(readMessage(["not json"]), null);
  assert.equal(readMessage([[1]]), null);
  const hostile = readMessage([{
    report: { title: "<b>", lines: [{ text: "<script>", level: "boom" }, "x", null, { text: "5 a", template: "{0} a", values: [{ text: "5", values: 1 }] }] },
    modules: { a: { norm: "9", cosine: 0.5 }, b: 3, ...JSON.parse('{"__proto__": {"norm": 1}}') },
    spectrum: { values: { a: [1, NaN], b: [2, 1], c: [1] }, energy: { b: 1 }, shape: { b: [3, 4], c: ["<b>", -1] } },
    strength_range: [3, -3],
  }]);
  assert.deepEqual(hostile?.report, {
    title: { text: "<b>" },
    lines: [{ text: "<script>", level: "info" }, { text: "5 a", template: "{0} a", values: [{ text: "5" }], level: "info" }],
  });
  assert.deepEqual({ ...hostile?.modules }, { a: { cosine: 0.5 }, ["__proto__"]: { norm: 1 } }); // a name like any other
  assert.equal(/** @type {any} */ ({}).norm, undefined);
  assert.deepEqual({ ...hostile?.spectrum?.values }, { b: [2, 1], c: [1] });
  assert.deepEqual({ ...hostile?.spectrum?.shape }, { b: [3, 4], c: [1, 1] });
  assert.equal(hostile?.spectrum?.energy.b, 5);
  assert.equal(hostile?.strength_range, undefined);
  assert.deepEqual(readMessage('{"strength_range": [-99, 2]}')?.strength_range, [-10, 2]);
});

test("numbers are short", () => {
  assert.deepEqual([0, 1.23456, 0.00012, 123456, -0.5].map(short), ["0", "1.23", "1.2e-4", "1.2e+5", "-0.5"]);
});

test("only widgets that count for the rule are asked for, and only those make a run old", () => {
  assert.deepEqual(idle("rank"), ["energy", "max_rank", "ratio"]);
  assert.deepEqual(idle("energy"), ["rank", "ratio"]);
  assert.deepEqual(idle("knee"), ["rank", "energy", "ratio"]);
  assert.deepEqual(Object.keys(RULES).filter((name) => idle(name).length === 0), [], "each rule says what it needs");
  assert.deepEqual([idle("a rule of tomorrow"), idle("constructor")], [[], []]);
  assert.deepEqual(idleForUnit("norm"), ["change", "percent", "noise", "samples"]);
  assert.deepEqual(idleForUnit("safe range"), ["norm", "change", "percent", "noise", "samples"]);
  assert.deepEqual(idleForUnit("prediction"), ["norm", "change"]);
  assert.deepEqual(idleForUnit("a unit of tomorrow"), []);
  const ran = { rule: "energy", rank: 4, energy: 0.9, ratio: 10, max_rank: 64 };
  assert.equal(isOtherCut(ran, { ...ran }), false);
  assert.equal(isOtherCut(ran, { ...ran, rank: 9, ratio: 3 }), false);
  assert.equal(isOtherCut(ran, { ...ran, energy: 0.8 }), true);
  assert.equal(isOtherCut(ran, { ...ran, max_rank: 32 }), true);
  assert.equal(isOtherCut(ran, { ...ran, rule: "rank" }), true);
  assert.equal(isOtherCut(undefined, ran), false);
});

test("a strength can be typed, turned and remembered", () => {
  assert.deepEqual(["+2.5", "\u22121", " 0,75 ", "99", "-1e9", "", "x", "1 2"].map(typed), [2.5, -1, 0.75, 10, -10, null, null, null]);
  assert.deepEqual([turned(-100, 1, false), turned(3, 0.1, false), turned(1, 0, true), turned(-1, 10, false)], [1.1, 0, -0.01, 10]);
  const once = remembered(null, "a − b", 2).kept;
  assert.deepEqual(remembered(once, "a − b").value, 2);
  assert.deepEqual(remembered(once, "other").value, null);
  assert.deepEqual(remembered(remembered(once, "a − b", -1).kept, "a − b"), { kept: [["a − b", -1]], value: -1 });
  assert.deepEqual(remembered([["evil", "<b>"], ["far", 1e9], 3, null, ["good", 1]], "good"), { kept: [["good", 1]], value: 1 });
  let list = /** @type {[string, number][]} */ ([]);
  for (let n = 0; n < 300; n++) list = remembered(list, `lora ${n}`, 1).kept;
  assert.equal(list.length, 200);
  assert.equal(remembered(list, "lora 299").value, 1);
});

test("a saved slider is named after what its files have in common", () => {
  assert.equal(fileStem(["sub/density_pos.safetensors", "sub\\density_neg.safetensors"]), "density_slider");
  assert.equal(fileStem(["dense.safetensors", "sparse.safetensors"]), "");
  assert.equal(fileStem(["one.safetensors"]), "one_slider");
  assert.equal(fileStem([]), "");
  assert.equal(rangeText([-2.8, 1.1]), "-2.8 to 1.1");
});
