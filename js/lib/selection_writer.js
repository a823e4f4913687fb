// @ts-check
/**
 * From a painted grid (module -> weight) back to the shortest readable selection that means the same.
 *
 * Eight sketches are tried: a start (nothing, everything, the usual weight of each column or of each row), then
 * corrections (grouped by equal rows or by equal columns). The shortest wins. Whatever a sketch still gets wrong is put
 * right by naming modules one by one, so the result is exact for any picture and any names.
 */
import { ROLES } from "./families.js";
import { Selection, stackOf } from "./selection.js";

/** @typedef {{ key: string, stack: string, block: number, cells: Map<string, string> }} Row cells: column -> name */
/** @typedef {(name: string) => number} Weigh */

/**
 * @param {Map<string, number>} weights selected module -> weight; what is missing, or 0, is left out
 * @param {string[]} names every module there is
 */
export const write = (weights, names) => {
  /** @type {Weigh} */
  const target = (name) => weights.get(name) ?? 0;
  const usual = most(names.map(target));
  if (names.every((name) => target(name) === usual)) {
    return usual === 0 || !names.length ? "none" : item("all", usual);
  }
  const grid = new Grid(names);
  const starts = [[], usual === 0 ? [] : [item("all", usual)], grid.usualColumns(target), grid.usualRows(target)];
  const sketches = unique(starts.map((items) => items.join(", ")))
    .flatMap((start) => [grid.correctRows(start, target), grid.correctColumns(start, target)])
    .sort((a, b) => cost(a) - cost(b));
  // Long texts are scattered single cells: there is nothing to choose between, and the time goes into checking.
  const few = unique(sketches).slice(0, sketches[0].length < 200 ? 3 : 1);
  return few.map((sketch) => complete(sketch, names, target)).sort((a, b) => cost(a) - cost(b))[0];
};

/** Length, with a little against many items and against "!": "blocks 0-38" reads easier than "!blocks 39". @param {string} text */
const cost = (text) => text.length + 3 * text.split(", ").length + 2 * text.split("!").length;

/** The names of one LoRA as rows (blocks) and columns (what is inside a block). */
class Grid {
  /** @param {string[]} names */
  constructor(names) {
    this.names = names;
    /** @type {Map<string, Row>} */
    this.rows = new Map();
    /** @type {Set<string>} */
    this.columns = new Set();
    /** @type {Map<string, number[]>} */
    this.blocks = new Map();
    for (const name of names) {
      const at = stackOf(name);
      if (!at || name !== `${at.stack}.${at.block}.${at.rest}`) continue;
      const key = `${at.stack} ${at.block}`;
      const row = this.rows.get(key) ?? { key, stack: at.stack, block: at.block, cells: new Map() };
      this.rows.set(key, row);
      row.cells.set(at.rest, name);
      this.columns.add(at.rest);
    }
    for (const { stack, block } of this.rows.values()) this.blocks.set(stack, [...(this.blocks.get(stack) ?? []), block]);
    for (const blocks of this.blocks.values()) blocks.sort((a, b) => a - b);
    /** Stacks with other rows inside: input_blocks.4 holds proj_in itself, and input_blocks.4.1.transformer_blocks. */
    this.outer = new Set([...this.blocks.keys()].filter((stack) => [...this.blocks.keys()].some((other) => other.startsWith(`${stack}.`))));
    this.words = new Map(ROLES.flatMap((role) => this.keyword(role)));
    for (const [word, fits] of vocabulary(this.columns)) if (!ROLES.includes(word)) this.words.set(word, fits);
  }

  /** A word that goes by the whole name: of use only if it fits all cells of a column or none. @param {string} word @returns {[string, Set<string>][]} */
  keyword(word) {
    const { holds } = Selection.parse(word).items[0];
    const columns = [...this.columns].map((column) => /** @type {const} */ ([column, this.examples(column).map(holds)]));
    const isMixed = columns.some(([, cells]) => new Set(cells).size > 1);
    const fits = columns.filter(([, cells]) => cells[0]).map(([column]) => column);
    return isMixed || !fits.length ? [] : [[word, new Set(fits)]];
  }

  /** A name of every stack that has this column. @param {string} column */
  examples(column) {
    return [...this.blocks.keys()].flatMap((stack) => {
      const row = [...this.rows.values()].find(({ stack: own, cells }) => own === stack && cells.has(column));
      return row ? [name(row.cells, column)] : [];
    });
  }

  /** @param {Weigh} target */
  usualColumns(target) {
    /** @type {Map<number, string[]>} */
    const byWeight = new Map();
    for (const column of this.columns) {
      const weights = [...this.rows.values()].flatMap(({ cells }) => (cells.has(column) ? [target(name(cells, column))] : []));
      push(byWeight, most(weights), column);
    }
    return this.items([...this.rows.values()], byWeight, byWeight);
  }

  /** @param {Weigh} target */
  usualRows(target) {
    /** @type {Map<number, Row[]>} */
    const byWeight = new Map();
    for (const row of this.rows.values()) push(byWeight, most([...row.cells.values()].map(target)), row);
    return [...byWeight].filter(([weight]) => weight !== 0).map(([weight, rows]) => item(this.rowTerm(rows) || this.everyStack(), weight));
  }

  /** @param {string} start @param {Weigh} target */
  correctRows(start, target) {
    const now = Selection.parse(start);
    /** @type {Map<string, Row[]>} */
    const alike = new Map();
    for (const row of this.rows.values()) {
      const wrong = [...row.cells].filter(([, name]) => now.weightOf(name) !== target(name));
      if (wrong.length) push(alike, wrong.map(([column, name]) => `${column}=${target(name)}`).join(), row);
    }
    const items = [...alike.values()].flatMap((rows) => this.paint(rows, now, target));
    return join(start, items);
  }

  /** @param {string} start @param {Weigh} target */
  correctColumns(start, target) {
    const now = Selection.parse(start);
    /** @type {Map<string, { weight: number, rows: Row[], columns: string[] }>} */
    const alike = new Map();
    for (const column of this.columns) {
      /** @type {Map<number, Row[]>} */
      const byWeight = new Map();
      for (const row of this.rows.values()) {
        const cell = row.cells.get(column);
        if (cell !== undefined && now.weightOf(cell) !== target(cell)) push(byWeight, target(cell), row);
      }
      for (const [weight, rows] of byWeight) {
        const key = `${weight}:${rows.map((row) => row.key).join()}`;
        const group = alike.get(key) ?? { weight, rows, columns: [] };
        alike.set(key, group);
        group.columns.push(column);
      }
    }
    const items = [...alike.values()].flatMap(({ weight, rows, columns }) => this.rectangle(rows, columns, this.may(rows, weight, target), weight));
    return join(start, items);
  }

  /** Items that give each of `rows` its weights where `now` has others. @param {Row[]} rows @param {Selection} now @param {Weigh} target */
  paint(rows, now, target) {
    /** @type {Map<number, string[]>} */
    const must = new Map();
    for (const [column, name] of rows[0].cells) {
      if (now.weightOf(name) !== target(name)) push(must, target(name), column);
    }
    return this.items(rows, must, new Map([...must.keys()].map((weight) => [weight, this.may(rows, weight, target)])));
  }

  /** @param {Row[]} rows @param {Map<number, string[]>} must @param {Map<number, string[]>} may */
  items(rows, must, may) {
    return [...must].flatMap(([weight, columns]) =>
      weight === 0 && must === may ? [] : this.rectangle(rows, columns, may.get(weight) ?? columns, weight),
    );
  }

  /** The columns that may be painted with `weight` in all of `rows`: they have it anyway, or are not there. @param {Row[]} rows @param {number} weight @param {Weigh} target */
  may(rows, weight, target) {
    return [...this.columns].filter((column) =>
      rows.every(({ cells }) => !cells.has(column) || target(name(cells, column)) === weight),
    );
  }

  /** @param {Row[]} rows @param {string[]} must @param {string[]} may @param {number} weight @returns {string[]} */
  rectangle(rows, must, may, weight) {
    const where = this.rowTerm(rows);
    if (this.columns.size === may.length && !rows.some(({ stack }) => this.outer.has(stack))) return [item(where || this.everyStack(), weight)];
    const words = cover(must, new Set(may), this.words);
    if (!words.length) return [];
    if (!where) return weight === 1 || weight === 0 ? words.map((word) => item(word, weight)) : [item(words.join("|"), weight)];
    if (rows.length === 1 && words.length === 1 && this.columns.has(words[0])) return [item(`${rows[0].stack}.${rows[0].block}.${words[0]}`, weight)];
    const rest = [...this.columns].filter((column) => !may.includes(column));
    const others = cover(rest, new Set([...this.columns].filter((column) => !must.includes(column))), this.words);
    const inverse = words.length > 1 && others.length === 1 ? `!${others[0]}` : "";
    const what = words.join("|");
    return [item(`${where} & ${inverse && inverse.length + 4 < what.length ? inverse : what}`, weight)];
  }

  /** `blocks 0-3|vace_blocks 2`, or nothing if `rows` are all there are. @param {Row[]} rows */
  rowTerm(rows) {
    if (rows.length === this.rows.size) return "";
    /** @type {Map<string, Set<number>>} */
    const chosen = new Map();
    for (const { stack, block } of rows) chosen.set(stack, (chosen.get(stack) ?? new Set()).add(block));
    return [...chosen].map(([stack, blocks]) => {
      const all = this.blocks.get(stack) ?? [];
      return blocks.size === all.length ? stack : `${stack} ${rangesAmong(blocks, all)}`;
    }).join("|");
  }

  everyStack() {
    return [...this.blocks.keys()].join("|");
  }
}

/** Like `asRanges`, but a range may run across blocks that are not there at all. @param {Set<number>} chosen @param {number[]} all */
const rangesAmong = (chosen, all) => {
  /** @type {string[]} */
  const ranges = [];
  for (let index = 0; index < all.length; index++) {
    if (!chosen.has(all[index])) continue;
    const first = index;
    while (index + 1 < all.length && chosen.has(all[index + 1])) index++;
    ranges.push(first === index ? `${all[first]}` : `${all[first]}-${all[index]}`);
  }
  return ranges.join(",");
};

/**
 * Correct what `text` still gets wrong: modules outside the blocks, and names that the grid cannot spell.
 * @param {string} text @param {string[]} names @param {Weigh} target
 */
const complete = (text, names, target) => {
  const now = Selection.parse(text);
  /** @type {Map<number, string[]>} */
  const wrong = new Map();
  for (const name of names) if (now.weightOf(name) !== target(name)) push(wrong, target(name), name);
  if (!wrong.size) return text;
  const words = vocabulary(names.filter((name) => now.weightOf(name) !== target(name)), names);
  const items = [...wrong].flatMap(([weight, members]) => {
    const may = new Set(names.filter((name) => target(name) === weight));
    const short = cover(members, may, words);
    const left = members.filter((name) => !short.some((word) => words.get(word)?.has(name)));
    return [...short, ...left.map((name) => `"${name.replaceAll('"', '""')}"`)].map((word) => item(word, weight));
  });
  return join(text, items);
};

/**
 * Words and what they fit: every run of dotted parts of `from`, tried on `on`.
 * @param {Iterable<string>} from @param {Iterable<string>} on
 */
const vocabulary = (from, on = from) => {
  /** @type {Map<string, Set<string>>} */
  const words = new Map();
  for (const name of from) {
    const parts = name.split(".");
    for (let first = 0; first < parts.length; first++) {
      for (let end = parts.length; end > first; end--) words.set(parts.slice(first, end).join("."), new Set());
    }
  }
  for (const [word, fits] of words) {
    if (!/^[A-Za-z_][A-Za-z0-9_.-]*$/.test(word) || ["all", "none", "block"].includes(word)) {
      words.delete(word);
      continue;
    }
    const { holds } = Selection.parse(word).items[0];
    for (const name of on) if (holds(name)) fits.add(name);
    if (!fits.size) words.delete(word);
  }
  return words;
};

/**
 * Words that together fit all of `must` and nothing outside `may`; the widest word first, short before long.
 * Parts of `must` that no word fits are left open.
 * @param {string[]} must @param {Set<string>} may @param {Map<string, Set<string>>} words
 */
const cover = (must, may, words) => {
  const open = new Set(must);
  const fitting = [...words].filter(([, fits]) => [...fits].every((name) => may.has(name)));
  const chosen = [];
  while (open.size) {
    let best = "";
    let gain = 0;
    for (const [word, fits] of fitting) {
      const here = [...fits].filter((name) => open.has(name)).length;
      if (here > gain || (here === gain && here > 0 && word.length < best.length)) [best, gain] = [word, here];
    }
    if (!gain) break;
    chosen.push(best);
    for (const name of words.get(best) ?? []) open.delete(name);
  }
  return chosen;
};

/** @param {string} what @param {number} weight */
const item = (what, weight) => (weight === 0 ? `!${what}` : weight === 1 ? what : `${what}=${weight}`);

/** A start of "all" is understood when the first correction removes. @param {string} start @param {string[]} items */
const join = (start, items) => {
  const understood = start === "all" && items[0]?.startsWith("!");
  // Additions go first only after a start that is not understood; otherwise the order of the items is their meaning.
  const text = [...(start && !understood ? [start] : []), ...items].join(", ");
  return !start && items[0]?.startsWith("!") ? `none, ${text}` : text;
};

/** The most frequent value. @param {number[]} values */
const most = (values) => {
  /** @type {Map<number, number>} */
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1])[0]?.[0] ?? 0;
};

/** @template K, V @param {Map<K, V[]>} map @param {K} key @param {V} value */
const push = (map, key, value) => {
  const list = map.get(key);
  if (list) list.push(value);
  else map.set(key, [value]);
};

/** @template T @param {T[]} values */
const unique = (values) => [...new Set(values)];

/** @param {Map<string, string>} cells @param {string} column */
const name = (cells, column) => /** @type {string} */ (cells.get(column));
