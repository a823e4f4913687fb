// @ts-check
/** Notes and titles of the pack's workflows, and nobody else's. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { translateNote, translateWorkflow } from "../../js/lib/workflow_texts.js";

const TEXTS = { "# A slider": "# スライダー", "Press **Run**.": "**実行**を押します。", "Video": "動画", "Style LoRA": "スタイル LoRA" };
const note = (/** @type {string} */ text) => ({ type: "MarkdownNote", title: "Read me", widgets_values: [text] });

test("a note is translated paragraph by paragraph, and what somebody has changed stays", () => {
  assert.equal(translateNote("# A slider\n\nPress **Run**.\n", TEXTS), "# スライダー\n\n**実行**を押します。");
  assert.equal(translateNote("# A slider\r\n\r\nPress **Run** twice.", TEXTS), "# スライダー\n\nPress **Run** twice.");
});

test("titles of groups and nodes follow the note", () => {
  const workflow = {
    nodes: [note("# A slider\n\nPress **Run**."), { type: "LoraLoaderModelOnly", title: "Style LoRA" }, { type: "KSampler" }],
    groups: [{ title: "Video" }, { title: "My own" }],
  };
  translateWorkflow(workflow, TEXTS);
  assert.deepEqual(workflow.nodes, [
    { type: "MarkdownNote", title: "Read me", widgets_values: ["# スライダー\n\n**実行**を押します。"] },
    { type: "LoraLoaderModelOnly", title: "スタイル LoRA" },
    { type: "KSampler" },
  ]);
  assert.deepEqual(workflow.groups, [{ title: "動画" }, { title: "My own" }]);
});

test("another workflow stays as it is, also one that holds a word of ours or is none at all", () => {
  const other = { nodes: [note("# Mine\n\nPress **Run**."), { type: "KSampler", title: "Video" }], groups: [{ title: "Video" }] };
  const before = structuredClone(other);
  translateWorkflow(other, TEXTS);
  assert.deepEqual(other, before);
  for (const nothing of [undefined, null, {}, { nodes: 3 }, { nodes: [{}] }, { nodes: [{ type: "MarkdownNote", widgets_values: {} }] }]) translateWorkflow(nothing, TEXTS);
  translateWorkflow({ nodes: [note("constructor")] }, {});
});
