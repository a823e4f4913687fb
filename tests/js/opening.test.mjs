// @ts-check
/** Which view an example workflow opens with. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { savedView } from "../../js/lib/opening.js";

const ds = { scale: 0.6, offset: [100, 180] };
const example = { ds, difflora_example: true };
const [before, fitted] = [{ scale: 1, offset: [0, 0] }, { scale: 0.48, offset: [700, 300] }];

test("where ComfyUI has fitted an example into the page, its own view counts", () => {
  assert.deepEqual(savedView(example, before, fitted), ds);
  assert.deepEqual(savedView(example, before, { scale: 0.6, offset: new Float32Array([700, 300]) }), ds);
});

test("after an undo, or where the saved view is there already, nothing moves", () => {
  assert.equal(savedView(example, fitted, fitted), null);
  assert.equal(savedView(example, before, { scale: 0.6, offset: new Float32Array([100.2, 180]) }), null);
});

test("another workflow, and a view that is none, are left alone", () => {
  for (const extra of [undefined, null, {}, { ds }, { difflora_example: true }, { ...example, ds: { scale: "1", offset: [0, 0] } }, { ...example, ds: { scale: 0, offset: [0, 0] } }, { ...example, ds: { scale: 1, offset: [NaN, 0] } }])
    assert.equal(savedView(extra, before, fitted), null);
});
