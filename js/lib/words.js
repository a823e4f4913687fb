// @ts-check
/**
 * The words on the widgets, in English. Other languages are in `locales/<language>/main.json` under "difflora"; a test
 * keeps them complete. `{0}`, `{1}` are filled in. What nodes say comes with its own English (`difflora/sentence.py`);
 * its translations are there under "diffloraSentences". Of an error only the English text arrives; its translations are
 * under "diffloraErrors", with {0}, {1} where the text differs from time to time.
 */
export const ENGLISH = {
  all: "All",
  none: "None",
  attention: "Attention",
  self: "Self",
  cross: "Cross",
  feedForward: "FFN",
  selfAttention: "self attention",
  crossAttention: "cross attention",
  early: "Early",
  middle: "Middle",
  late: "Late",
  invert: "Invert",
  strongest: "Strongest",
  strongestTip: "The modules whose difference is largest",
  strongestLater: "Run the workflow once: then it is known which modules are strongest",
  percent: "Percent of the modules that were measured",
  weights: "Weights",
  weightsTip: "Paint a weight instead of on and off",
  brush: "Weight to paint",
  grid: "Blocks and projections",
  gridHelp: "Arrow keys move, Space toggles, Shift and arrows extend, Enter paints the weight",
  block: "Block {0}",
  blocks: "Blocks",
  column: "{0}, every block",
  outside: "Outside the blocks",
  selected: "{0} of {1} modules",
  on: "on",
  off: "off",
  weight: "weight {0}",
  absent: "not in this LoRA",
  size: "‖ΔW‖ {0}",
  sizes: "A {0} · B {1}",
  cosine: "cos(A, B) {0}",
  energyKept: "{0} % of the energy kept",
  legend: "Size of the difference",
  noHeat: "Run once to see sizes",
  model: "Model",
  unmatched: "Fits nothing: {0}",
  blocksOff: "{0} of {1} blocks switched off",
  noneOff: "All {0} blocks are on",
  strength: "Strength",
  safe: "safe",
  stretched: "stretched",
  risky: "risky",
  flip: "Flip the sign",
  recommended: "The file recommends {0} to {1}",
  measured: "Sweep Response recommends {0} to {1}",
  typeStrength: "Type a strength",
  switch: "Switched on",
  switchTip: "Switch off or on; the strength is kept",
  sliderOff: "off: the base model",
  more: "More",
  copyStrength: "Copy {0}",
  pasteStrength: "Paste",
  remember: "Remember {0} for {1}",
  recall: "The default for this LoRA: {0}",
  saveSlider: "Save this slider as a LoRA",
  fromWire: "The strength comes from the wire",
  selectionFromWire: "The selection comes from the wire",
  selectionLater: "The selection comes from the wire; it is shown here after a run",
  blocksFromWire: "The blocks come from the wire",
  mapSteps: "Steps",
  mapFrames: "Frames",
  mapNoise: "noise",
  mapClean: "clean",
  mapFirst: "first",
  mapLast: "last",
  mapStrip: "Weights of the last run, one picture for each latent frame",
  resetCurve: "Reset",
  resetCurveTip: "Weight 1 everywhere",
  curveHelp: "Press to add a point, drag to move it, double-click to remove it. Keys: arrows (with Shift finer), Enter adds, Delete removes",
  curvePoint: "{0}, point {1} of {2}",
  curveValue: "{0} %: weight {1}",
  curveFromWire: "The curve comes from the wire",
  noCurve: "This is no curve. Write 0:0, 40:1, or press Reset",
  spectrum: "Singular values and the cut",
  average: "All modules",
  module: "Module",
  rank: "Rank {0}",
  ranks: "Ranks {0} to {1}",
  keeps: "{0} % kept",
  budget: "the size of rank {0} everywhere, which would keep {1} %",
  noSpectrum: "Run once to see the singular values",
  dragCut: "Drag, or use the arrow keys, to move the rank",
  lastRun: "The last run:",
  copy: "Copy",
  copied: "Copied",
  enlarge: "Enlarge",
  rangeToSave: "Range into Save LoRA",
  report: "Report",
  info: "Note",
  warning: "Warning",
  error: "Problem",
  player: "Clips in sync",
  playerHelp: "Space plays, arrows change the clip, comma and full stop step frames",
  playerLater: "The clips appear here after a run",
  playOne: "One",
  playWipe: "Wipe",
  playDifference: "Difference",
  playAll: "All",
  clipShown: "Clip shown",
  clipCompared: "Clip compared with",
  left: "Left",
  right: "Right",
  swap: "Swap left and right",
  play: "Play",
  pause: "Pause",
  stepBack: "One frame back",
  stepOn: "One frame on",
  frame: "Frame",
  speed: "Speed",
  gain: "How many times a difference is enlarged",
  loop: "Repeat",
  blind: "Blind",
  blindHelp: "The clips are shuffled and nameless. Choose the best to see which it is.",
  choose: "This one",
  chosen: "You chose {0}: {1}",
  large: "Full screen",
  baseline: "baseline",
  showsPair: "{0} and {1}",
  noVideo: "The video is gone. Run the workflow again.",
  use: "Use this strength",
  useTip: "Use strength {0}",
  used: "{0} is now at {1}. The sweep's wire was taken off and its grid muted; Ctrl+Z brings both back.",
  saveAs: "Save…",
  saveFrame: "Save this frame (png)",
  copyFrame: "Copy this frame",
  saveClip: "Save what is shown as {0}",
  saving: "Encoding {0}",
  saved: "Saved: {0}",
  pictureCopied: "The frame is on the clipboard",
  stop: "Stop encoding",
  stopped: "Stopped",
  noClipboard: "The browser copies pictures on https or localhost only. Save the frame instead.",
  pair: "The pair",
  swapPair: "Swap",
  swapPairTip: "Swap A and B: the slider turns around",
  offers: "B could be:",
  takeAsB: "Take {0} as B",
  highPair: "High-noise pair",
  lowPair: "Low-noise pair",
  takePair: "Take the same pair for the other model of Wan2.2: {0}",
  triggerWords: "Trigger words, or the most frequent captions of the training",
  rack: "Sliders of the rack",
  noRows: "No LoRA yet",
  addLora: "Add LoRA",
  searchLora: "Search the LoRAs",
  noLoras: "There is no file in the loras folder",
  nothingFits: "Nothing fits",
  moreFiles: "{0} more: search for them",
  otherFile: "Another file…",
  moveUp: "Move up",
  moveDown: "Move down",
  removeRow: "Remove",
  takeTwin: "Take its twin {0}",
  rowsOn: "{0} of {1} on",
  allOn: "All on",
  allOff: "All off",
  asText: "Text",
  asTextTip: "Show the rows as text, to edit or copy them all",
  rowsFromWire: "The rows come from the wire",
  badRow: "This row cannot be read: write a strength and a file, such as 1.5 folder/name.safetensors",
  missingFile: "not in the loras folder",
  highHalf: "the high-noise half",
  lowHalf: "the low-noise half",
  twinIs: "its twin is {0}",
  noTwin: "its twin is not there",
  noHighTwin: "its twin for high noise is not there",
  noLowTwin: "its twin for low noise is not there",
  takes: "takes {0}",
  noReport: "The report appears here after a run",
};

/** @typedef {keyof typeof ENGLISH} Word */

/** @type {Record<string, unknown>} */
let translated = {};
/** Translations of what nodes say, under the English sentence. @type {Record<string, unknown>} */
let sentences = {};
/** Translations of errors: the English text between its values, which values they are, and the translation. @type {{ pieces: string[], places: number[], text: string }[]} */
let errors = [];

/** Use these words, sentences and errors where they are given. @param {unknown} words @param {unknown} [said] @param {unknown} [wrong] */
export const setWords = (words, said, wrong) => {
  translated = record(words);
  sentences = record(said);
  errors = Object.entries(record(wrong)).map(([english, text]) => ({
    pieces: english.split(/\{\d+\}/), places: [...english.matchAll(/\{(\d+)\}/g)].map((found) => Number(found[1])), text: String(text),
  }));
  // If two fit an error, the one with more words of its own counts.
  const length = (/** @type {string[]} */ pieces) => pieces.join("").length;
  errors.sort((a, b) => length(b.pieces) - length(a.pieces));
};

/** A word or sentence in the user's language. @param {Word} word @param {...(string | number)} values */
export const say = (word, ...values) => fill(own(translated, word) ?? ENGLISH[word], values);

/** What a node says, in the user's language; in English where there is no translation. @param {import("./messages.js").Sentence} sentence @returns {string} */
export const retell = ({ text, template, values = [] }) =>
  template === undefined ? text : fill(own(sentences, template) ?? template, values.map(retell));

/** An error in the user's language; as it is where there is no translation. @param {string} error @param {number} depth how many errors it is in @returns {string} */
export const retellError = (error, depth = 0) => {
  if (depth > 3) return error;
  for (const { pieces, places, text } of errors) {
    const found = between(pieces, error);
    if (!found) continue;
    /** @type {string[]} */
    const values = [];
    found.forEach((value, index) => (values[places[index]] = retellError(value, depth + 1)));
    return fill(text, values);
  }
  return error;
};

/** What stands between the pieces of a text, null if it has others. Never searches the same place twice: file names are in it. @param {string[]} pieces @param {string} text */
const between = (pieces, text) => {
  const last = pieces[pieces.length - 1];
  if (pieces.length === 1) return text === last ? [] : null;
  if (!text.startsWith(pieces[0]) || !text.endsWith(last)) return null;
  const end = text.length - last.length;
  let at = pieces[0].length;
  const values = [];
  for (const piece of pieces.slice(1, -1)) {
    const next = text.indexOf(piece, at);
    if (next < 0 || next + piece.length > end) return null;
    values.push(text.slice(at, next));
    at = next + piece.length;
  }
  if (at > end) return null;
  return [...values, text.slice(at, end)];
};

/** @param {string} text @param {(string | number)[]} values */
const fill = (text, values) => (values.length ? text.replace(/\{(\d+)\}/g, (_, index) => String(values[Number(index)] ?? "")) : text);

/** @param {unknown} value @returns {Record<string, unknown>} */
const record = (value) => (typeof value === "object" && value !== null ? /** @type {Record<string, unknown>} */ (value) : {});

/** A text of the list itself, not a property that every object has, such as "constructor". @param {Record<string, unknown>} list @param {string} key */
const own = (list, key) => (Object.hasOwn(list, key) && typeof list[key] === "string" ? /** @type {string} */ (list[key]) : null);
