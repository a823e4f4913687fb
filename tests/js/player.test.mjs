// @ts-check
/** The A/B player's arithmetic. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { readMessage } from "../../js/lib/messages.js";
import { keyed, letter, shuffled, columnsFor, fileName, firstPair, frameAt, readPlayer, strengthOf, timeOf, viewPath } from "../../js/lib/player.js";

const clip = (/** @type {object} */ more = {}) => ({ video: 0, box: [0, 0, 64, 48], label: "+1", text: "", baseline: false, key: null, ...more });
const sound = { videos: [{ filename: "a b.mp4", subfolder: "x", type: "temp" }], clips: [clip(), clip({ box: [64, 0, 64, 48], label: "0", baseline: true })], fps: 16, frames: 81 };
const player = /** @type {import("../../js/lib/player.js").Player} */ (readPlayer(sound));

test("a message is read as it was sent, and what cannot be played is not there", () => {
  assert.deepEqual(readPlayer(sound), sound);
  assert.deepEqual(readMessage([{ player: sound }])?.player, sound);
  for (const wrong of [null, 3, {}, { ...sound, clips: [] }, { ...sound, fps: 0 }, { ...sound, frames: NaN }, { ...sound, videos: [] }]) assert.equal(readPlayer(wrong), null);
  for (const box of [[0, 0, 0, 48], [0, 0, 64], "whole", [0, NaN, 64, 48], [-1, 0, 64, 48]]) assert.equal(readPlayer({ ...sound, clips: [clip({ box })] }), null);
  assert.equal(readPlayer({ ...sound, clips: [clip({ video: 1 })] }), null);
});

test("a video's address is escaped", () => {
  assert.equal(viewPath({ filename: "a&b c.mp4", subfolder: "d", type: "temp" }), "/view?filename=a%26b+c.mp4&subfolder=d&type=temp");
});

test("the time of a frame leads back to it, at every rate", () => {
  for (const fps of [8, 16, 23.976, 30, 120]) {
    for (let frame = 0; frame < 81; frame++) {
      const sheet = { ...player, fps };
      assert.equal(frameAt(timeOf(frame, sheet), sheet), frame);
      assert.equal(frameAt(Math.fround(frame / fps), sheet), frame); // rounded by the browser, at the edge
    }
  }
  assert.equal(frameAt(timeOf(-1, player), player), 80);
  assert.equal(frameAt(timeOf(81, player), player), 0);
  assert.equal(frameAt(1000, player), 80);
});

test("the first pair is the last clip and the baseline", () => {
  assert.deepEqual(firstPair(player.clips), [0, 1]);
  assert.deepEqual(firstPair([...player.clips, ...player.clips.slice(0, 1)]), [2, 1]);
  assert.deepEqual(firstPair([player.clips[0], player.clips[0]]), [0, 1]);
  assert.deepEqual(firstPair([player.clips[0]]), [0, 0]);
});

test("a shuffle has everyone once, and every order is as likely", () => {
  let state = 1;
  const random = () => (state = (state * 16807) % 2147483647) / 2147483647;
  /** @type {Record<string, number>} */
  const seen = {};
  for (let round = 0; round < 6000; round++) {
    const order = shuffled(3, random);
    assert.deepEqual([...order].sort(), [0, 1, 2]);
    seen[order.join("")] = (seen[order.join("")] ?? 0) + 1;
  }
  assert.equal(Object.keys(seen).length, 6);
  for (const count of Object.values(seen)) assert.ok(Math.abs(count - 1000) < 130, JSON.stringify(seen));
});

test("letters go on behind Z", () => {
  assert.deepEqual([0, 25, 26, 51, 52].map(letter), ["A", "Z", "AA", "AZ", "BA"]);
});

test("keys", () => {
  assert.deepEqual(keyed("ArrowRight", false), ["a", 1]);
  assert.deepEqual(keyed("ArrowRight", true), ["b", 1]);
  assert.deepEqual(keyed("W", true), ["mode", "wipe"]);
  assert.deepEqual(keyed("3", false), ["show", 2]);
  for (const key of ["q", "Tab", "Escape", "F5", "constructor", "0"]) assert.equal(keyed(key, false), null);
});

test("clips side by side come near to a screen's shape", () => {
  assert.deepEqual([1, 4, 7, 9].map((count) => columnsFor(count, 640, 480)), [1, 2, 4, 3]);
  for (let count = 1; count < 30; count++) assert.ok(columnsFor(count, 480, 640) <= count);
});

test("a label says a strength or it does not", () => {
  assert.deepEqual(["\u22123", "+2.5", "0", " 1 "].map(strengthOf), [-3, 2.5, 0, 1]);
  assert.deepEqual(["", "dense", "11", "NaN", "3 steps", "1e9"].map(strengthOf), [null, null, null, null, null, null]);
});

test("files are named by what they show, in signs that every system takes", () => {
  assert.equal(fileName(["\u22123"], "one", "mp4", 0), "slider_-3.mp4");
  assert.equal(fileName(["+3", "0"], "wipe", "png", 11), "slider_+3_0_wipe_frame12.png");
  assert.equal(fileName(["a", "b", "c"], "all", "gif", 0), "slider_all.gif");
  assert.equal(fileName(["../../etc/<b>pass:wd</b>\u0000"], "one", "webp", 0), "slider_etc_b_pass_wd_b.webp");
  assert.equal(fileName(["密度"], "one", "mp4", 0), "slider_密度.mp4");
});
