// @ts-check
/** Where a strength lies and how the slider moves. */

export const SAFE = 3;
export const STRETCHED = 4;
export const LIMIT = 10;

/** How far a strength is from the range that the method is meant for. @param {number} value @returns {"safe" | "stretched" | "risky"} */
export const zoneOf = (value) => {
  const size = Math.abs(value);
  return size <= SAFE ? "safe" : size <= STRETCHED ? "stretched" : "risky";
};

/** The track shows -5 to 5, or everything once the value is beyond. @param {number} value */
export const reachOf = (value) => (Math.abs(value) > 5 ? LIMIT : 5);

/** Position on the track, 0 to 1. @param {number} value @param {number} reach */
export const positionOf = (value, reach) => (Math.min(reach, Math.max(-reach, value)) + reach) / (2 * reach);

/** Value at a position on the track, in steps, snapped to 0 when near it. @param {number} position @param {number} reach @param {number} step */
export const valueAt = (position, reach, step) => {
  const raw = Math.min(1, Math.max(0, position)) * 2 * reach - reach;
  return Math.abs(raw) < reach * 0.02 ? 0 : rounded(raw, step);
};

/** To a whole number of steps, without the rounding errors of binary fractions. @param {number} value @param {number} step */
export const rounded = (value, step) => {
  const clean = Number((Math.round(value / step) * step).toFixed(6));
  return clean === 0 ? 0 : clean; // never -0
};

/** What a key does to the value; null if the key means nothing here. @param {string} key @param {number} value @param {boolean} fine */
export const keyed = (key, value, fine) => {
  const step = fine ? 0.01 : 0.1;
  /** @type {Record<string, number>} */
  const targets = {
    ArrowRight: value + step, ArrowUp: value + step, ArrowLeft: value - step, ArrowDown: value - step,
    PageUp: value + 1, PageDown: value - 1, Home: -SAFE, End: SAFE, Delete: 0, Backspace: 0, 0: 0, "-": -value,
  };
  return key in targets ? Math.min(LIMIT, Math.max(-LIMIT, rounded(targets[key], 0.01))) : null;
};

/** A typed strength; null if it is not one. @param {string} text */
export const typed = (text) => {
  const plain = text.trim().replace("\u2212", "-").replace(",", ".");
  const value = Number(plain);
  return plain && Number.isFinite(value) ? Math.min(LIMIT, Math.max(-LIMIT, rounded(value, 0.001))) : null;
};

/** What a turn of the wheel does to the value. @param {number} delta of the event, down is positive @param {number} value @param {boolean} fine */
export const turned = (delta, value, fine) => Math.min(LIMIT, Math.max(-LIMIT, rounded(value - Math.sign(delta) * (fine ? 0.01 : 0.1), 0.01)));

/** A range as Save LoRA takes it. @param {[number, number]} range */
export const rangeText = ([low, high]) => `${Number(low.toFixed(3))} to ${Number(high.toFixed(3))}`;

/** A name for a slider made of these files: the beginning that both names share, and "slider". @param {string[]} files */
export const fileStem = (files) => {
  const stems = files.map((file) => file.replace(/^.*[\\/]/, "").replace(/\.safetensors$/, ""));
  const [first = "", ...others] = stems;
  let length = first.length;
  for (const other of others) while (length && !other.startsWith(first.slice(0, length))) length -= 1;
  const plain = first.slice(0, length).replace(/[^\p{L}\p{N}._-]+/gu, "_").replace(/^[._-]+|[._-]+$/g, "");
  return plain ? `${plain}_slider` : "";
};

/** Strengths remembered for each LoRA, the latest last; bounded, and numbers only. @param {unknown} stored @param {string} lora @param {number} [value] to remember @returns {{ kept: [string, number][], value: number | null }} */
export const remembered = (stored, lora, value) => {
  const list = /** @type {[string, number][]} */ (Array.isArray(stored) ? stored.filter((entry) => Array.isArray(entry) && typeof entry[0] === "string" && Number.isFinite(entry[1]) && Math.abs(entry[1]) <= LIMIT) : []);
  const found = list.find(([name]) => name === lora)?.[1] ?? null;
  if (value === undefined) return { kept: list, value: found };
  return { kept: [...list.filter(([name]) => name !== lora), /** @type {[string, number]} */ ([lora, value])].slice(-200), value };
};

/** A strength as people write it: +2.5, 0, −1 (with a real minus). @param {number} value */
export const signed = (value) => {
  const text = String(Number(Math.abs(value).toFixed(3)));
  return value > 0 ? `+${text}` : value < 0 ? `\u2212${text}` : "0";
};
