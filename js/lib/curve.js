// @ts-check
/** Curves as text, as `difflora/steering/curve.py` reads them: `0:0, 40:1, 80:1`. Positions and weights per point. */

/** @typedef {{ at: number, weight: number }} Point position in per cent, weight from 0 to 1 */

const NUMBER = "[+-]?(?:\\d+\\.?\\d*|\\.\\d+)";
const POINT = new RegExp(`^(${NUMBER})\\s*%?\\s*:\\s*(${NUMBER})$`);
const ALONE = new RegExp(`^${NUMBER}$`);
const MOST_POINTS = 100;
/** @type {Record<string, string>} as Japanese and Chinese keyboards write them */
const WIDE = { "，": ",", "；": ";", "：": ":", "％": "%" };

/** The points of a text, or null if it is no curve. An empty text is 1 everywhere. @param {string} text @returns {Point[] | null} */
export const parseCurve = (text) => {
  const plain = text.replace(/[，；：％]/g, (sign) => WIDE[sign]);
  let words = plain.split(/[,;\n]/).map((word) => word.trim()).filter(Boolean);
  if (!words.length) return [{ at: 0, weight: 1 }];
  if (words.length > MOST_POINTS) return null;
  if (words.length === 1 && ALONE.test(words[0])) words = [`0:${words[0]}`];
  /** @type {Point[]} */
  const points = [];
  for (const word of words) {
    const match = POINT.exec(word);
    if (!match) return null;
    const point = { at: Number(match[1]), weight: Number(match[2]) };
    const last = points.at(-1);
    if (!(point.at >= 0 && point.at <= 100 && point.weight >= 0 && point.weight <= 1)) return null;
    if (last && point.at < last.at) return null;
    points.push(point);
  }
  return points;
};

/** @param {Point[]} points */
export const curveText = (points) => points.map(({ at, weight }) => `${clean(at)}:${clean(weight)}`).join(", ");

/** Without the rounding errors of binary fractions. @param {number} value */
const clean = (value) => Number(value.toFixed(3));

/** Move a point, but keep it between its neighbours. @param {Point[]} points @param {number} index @param {Point} to @returns {Point[]} */
export const moved = (points, index, to) => {
  const least = points[index - 1]?.at ?? 0;
  const most = points[index + 1]?.at ?? 100;
  const point = { at: clean(Math.min(most, Math.max(least, to.at))), weight: clean(Math.min(1, Math.max(0, to.weight))) };
  return points.with(index, point);
};

/** With one more point, and its index. @param {Point[]} points @param {Point} point @returns {[Point[], number]} */
export const added = (points, point) => {
  if (points.length >= MOST_POINTS) return [points, 0];
  const after = points.findIndex((other) => other.at > point.at);
  const index = after < 0 ? points.length : after;
  const inside = { at: clean(Math.min(100, Math.max(0, point.at))), weight: clean(Math.min(1, Math.max(0, point.weight))) };
  return [points.toSpliced(index, 0, inside), index];
};

/** Without a point; the last one stays. @param {Point[]} points @param {number} index */
export const without = (points, index) => (points.length > 1 ? points.toSpliced(index, 1) : points);

/** Where a key moves a point; null if the key moves nothing. @param {string} key @param {Point} point @param {boolean} fine @returns {Point | null} */
export const keyedPoint = (key, { at, weight }, fine) => {
  const [across, up] = fine ? [0.1, 0.01] : [1, 0.05];
  /** @type {Record<string, Point>} */
  const targets = {
    ArrowRight: { at: at + across, weight }, ArrowLeft: { at: at - across, weight },
    ArrowUp: { at, weight: weight + up }, ArrowDown: { at, weight: weight - up },
    PageUp: { at, weight: 1 }, PageDown: { at, weight: 0 }, Home: { at: 0, weight }, End: { at: 100, weight },
  };
  return targets[key] ?? null;
};

/** Where a press on the chart lands, snapped to whole per cents and twentieths. @param {number} x 0 to 1 @param {number} y 0 to 1 from below @param {boolean} fine @returns {Point} */
export const pointAt = (x, y, fine) => {
  const [across, up] = fine ? [0.1, 0.01] : [1, 0.05];
  const inside = (/** @type {number} */ value) => Math.min(1, Math.max(0, value));
  return { at: clean(Math.round((100 * inside(x)) / across) * across), weight: clean(Math.round(inside(y) / up) * up) };
};
