// @ts-check
/** Curves as text, with the cases that the Python tests read too. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { added, curveText, keyedPoint, moved, parseCurve, pointAt, without } from "../../js/lib/curve.js";
import { readMessage } from "../../js/lib/messages.js";

const CASES = JSON.parse(readFileSync(new URL("../data/curves.json", import.meta.url), "utf8"));

for (const { text, points } of CASES.curves) {
  test(`reads ${JSON.stringify(text)} as Python does`, () => {
    const read = parseCurve(text);
    assert.deepEqual(read?.map((point) => [point.at, point.weight]), points);
    assert.deepEqual(parseCurve(curveText(read ?? [])), read, "what the editor writes is the same curve");
  });
}

test("refuses what Python refuses", () => {
  for (const text of CASES.errors) assert.equal(parseCurve(text), null, text);
  assert.equal(parseCurve(Array.from({ length: 101 }, (_, n) => `${n / 2}:1`).join()), null);
});

test("a point moves between its neighbours, and within 0 and 1", () => {
  const points = parseCurve("10:0, 50:0.5, 90:1") ?? [];
  assert.equal(curveText(moved(points, 1, { at: 70, weight: 0.2 })), "10:0, 70:0.2, 90:1");
  assert.equal(curveText(moved(points, 1, { at: 99, weight: 7 })), "10:0, 90:1, 90:1");
  assert.equal(curveText(moved(points, 0, { at: -5, weight: -1 })), "0:0, 50:0.5, 90:1");
  assert.equal(curveText(points), "10:0, 50:0.5, 90:1", "the curve that was there stays as it was");
});

test("points are added where they belong and taken away, but for the last", () => {
  const points = parseCurve("10:0, 50:0.5") ?? [];
  assert.deepEqual(added(points, { at: 30, weight: 1 })[1], 1);
  assert.equal(curveText(added(points, { at: 30, weight: 1 })[0]), "10:0, 30:1, 50:0.5");
  assert.equal(added(points, { at: 60, weight: 1 })[1], 2);
  assert.equal(curveText(without(points, 0)), "50:0.5");
  assert.equal(curveText(without(without(points, 0), 0)), "50:0.5");
});

test("keys and presses land on whole steps", () => {
  const point = { at: 50, weight: 0.5 };
  assert.deepEqual(keyedPoint("ArrowRight", point, false), { at: 51, weight: 0.5 });
  assert.deepEqual(keyedPoint("ArrowUp", point, true), { at: 50, weight: 0.51 });
  assert.equal(keyedPoint("x", point, false), null);
  assert.deepEqual(pointAt(0.503, 0.52, false), { at: 50, weight: 0.5 });
  assert.deepEqual(pointAt(2, -1, false), { at: 100, weight: 0 });
});

test("a map's preview is taken only in the right shape", () => {
  const map = { width: 2, height: 1, frames: ["0f", "ff"] };
  assert.deepEqual(readMessage([{ map }])?.map, map);
  for (const wrong of [{ ...map, width: 3 }, { ...map, frames: ["zz"] }, { ...map, frames: [] }, { ...map, height: 1e9 }, { frames: map.frames }, "x"]) {
    assert.equal(readMessage([{ map: wrong }])?.map, undefined);
  }
});
