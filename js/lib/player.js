// @ts-check
/** The A/B player without the page: messages, frames and times, keys, and the order of the blind test. */

/**
 * @typedef {object} VideoFile
 * @property {string} filename
 * @property {string} subfolder
 * @property {string} type
 *
 * @typedef {object} Clip
 * @property {number} video which of the videos it is in
 * @property {[number, number, number, number]} box left, top, width and height in that video's pictures
 * @property {string} label usually a strength
 * @property {string} text
 * @property {boolean} baseline
 * @property {string | null} key of the clip at full size, where the server keeps it
 *
 * @typedef {object} Player
 * @property {VideoFile[]} videos
 * @property {Clip[]} clips
 * @property {number} fps
 * @property {number} frames
 *
 * @typedef {"one" | "wipe" | "difference" | "all"} Mode
 */

export const MODES = /** @type {const} */ (["one", "wipe", "difference", "all"]);
export const SPEEDS = [0.1, 0.25, 0.5, 1, 2];
export const GAINS = [1, 2, 4, 8, 16];

/** @param {unknown} value @returns {value is Record<string, any>} */
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** A file that a node has written. @param {Record<string, any>} value @returns {VideoFile} */
export const readFile = ({ filename, subfolder, type }) => ({
  filename: String(filename), subfolder: String(subfolder ?? ""), type: String(type ?? "temp"),
});

/** What a node said, if it can be played; null otherwise. @param {unknown} value @returns {Player | null} */
export const readPlayer = (value) => {
  if (!isObject(value) || !Array.isArray(value.videos) || !Array.isArray(value.clips)) return null;
  const videos = value.videos.filter(isObject).map(readFile);
  const clips = value.clips.filter(isObject).map((clip) => ({
    video: Number(clip.video),
    box: /** @type {[number, number, number, number]} */ (Array.isArray(clip.box) ? clip.box.map(Number) : []),
    label: String(clip.label ?? ""),
    text: String(clip.text ?? ""),
    baseline: Boolean(clip.baseline),
    key: typeof clip.key === "string" ? clip.key : null,
  }));
  const sound = clips.every(({ video, box }) => videos[video] && box.length === 4 && box.every((n) => Number.isFinite(n) && n >= 0) && box[2] > 0 && box[3] > 0);
  const [fps, frames] = [Number(value.fps), Number(value.frames)];
  return clips.length && sound && fps > 0 && frames >= 1 ? { videos, clips, fps, frames } : null;
};

/** Where a video is fetched. @param {VideoFile} video */
export const viewPath = ({ filename, subfolder, type }) => `/view?${new URLSearchParams({ filename, subfolder, type })}`;

/** The number of the frame shown at a time in seconds. @param {number} time @param {Player} player */
export const frameAt = (time, { fps, frames }) => Math.min(frames - 1, Math.max(0, Math.floor(time * fps + 1e-3)));

/** A time in the middle of a frame: browsers round times, and at its edge they may show the one before. @param {number} frame @param {Player} player */
export const timeOf = (frame, { fps, frames }) => ((((frame % frames) + frames) % frames) + 0.5) / fps;

/** The clip to begin with, and the one to compare it with: the last and the baseline, or the first two. @param {Clip[]} clips @returns {[number, number]} */
export const firstPair = (clips) => {
  const baseline = clips.findIndex((clip) => clip.baseline);
  if (baseline < 0) return [0, Math.min(1, clips.length - 1)];
  const other = clips.length - 1 === baseline ? 0 : clips.length - 1;
  return [other, baseline];
};

/** 0 … count-1 in random order. @param {number} count @param {() => number} random @returns {number[]} */
export const shuffled = (count, random = Math.random) => {
  const order = Array.from({ length: count }, (_, index) => index);
  for (let index = count - 1; index > 0; index--) {
    const other = Math.floor(random() * (index + 1));
    [order[index], order[other]] = [order[other], order[index]];
  }
  return order;
};

/** A, B, … Z, AA, … @param {number} index @returns {string} */
export const letter = (index) => (index < 26 ? "" : letter(Math.floor(index / 26) - 1)) + String.fromCharCode(65 + (index % 26));

/** How many columns come nearest to a screen's shape. @param {number} count @param {number} width @param {number} height */
export const columnsFor = (count, width, height) => {
  const badness = (/** @type {number} */ columns) => {
    const rows = Math.ceil(count / columns);
    return Math.abs(Math.log((columns * width) / (rows * height) / (16 / 9))) + (columns * rows - count) / count;
  };
  return Array.from({ length: count }, (_, index) => index + 1).reduce((best, columns) => (badness(columns) < badness(best) ? columns : best));
};

/**
 * What a key does in the player: [act, amount]; null if it means nothing here.
 * @param {string} key @param {boolean} shift @returns {[string, number | string] | null}
 */
export const keyed = (key, shift) => {
  /** @type {Record<string, [string, number | string]>} */
  const acts = {
    " ": ["play", 0], k: ["play", 0],
    ArrowLeft: [shift ? "b" : "a", -1], ArrowRight: [shift ? "b" : "a", 1],
    ",": ["step", -1], ".": ["step", 1], "<": ["step", -1], ">": ["step", 1],
    "[": ["speed", -1], "]": ["speed", 1],
    "-": ["wipe", -0.05], "+": ["wipe", 0.05], "=": ["wipe", 0.05],
    u: ["use", 0], s: ["save", "png"], c: ["copy", 0],
    o: ["mode", "one"], w: ["mode", "wipe"], d: ["mode", "difference"], g: ["mode", "all"],
    x: ["swap", 0], l: ["loop", 0], b: ["blind", 0], f: ["large", 0], Enter: ["choose", 0],
  };
  if (/^[1-9]$/.test(key)) return ["show", Number(key) - 1];
  const name = key.length === 1 ? key.toLowerCase() : key;
  return Object.hasOwn(acts, name) ? acts[name] : null;
};

export const FORMATS = /** @type {const} */ (["png", "mp4", "webp", "gif"]);

/** The strength in a clip's label; null if there is none. @param {string} label */
export const strengthOf = (label) => {
  const text = label.trim().replace("\u2212", "-");
  const strength = Number(text);
  return text && Number.isFinite(strength) && Math.abs(strength) <= 10 ? strength : null;
};

/** A name for a file of what is shown: letters, digits and signs that every system allows. @param {string[]} labels @param {Mode} mode @param {string} format @param {number} frame */
export const fileName = (labels, mode, format, frame) => {
  const plain = labels.map((label) => label.replace("\u2212", "-").replace(/[^\p{L}\p{N}+.-]+/gu, "_").replace(/^[._]+|[._]+$/g, "").slice(0, 40));
  const shown = mode === "all" ? "all" : [...plain, ...(mode === "one" ? [] : [mode])].filter(Boolean).join("_");
  return `${["slider", shown, format === "png" ? `frame${frame + 1}` : ""].filter(Boolean).join("_")}.${format}`;
};
