// @ts-check
/** The block grid without its picture: which cells there are, what a stroke covers, what the presets choose. */
import { ownOf } from "./families.js";
import { SHOWN } from "./family_tables.js";
import { Selection, stackOf } from "./selection.js";

/**
 * @typedef {object} Column
 * @property {string} rest the part of the name after the block: "self_attn.q"
 * @property {string} group "self_attn"
 * @property {string} label "q"
 *
 * @typedef {object} Row
 * @property {string} stack
 * @property {number} block
 * @property {(string | null)[]} cells names by column; null where the LoRA has nothing
 *
 * @typedef {object} Layout
 * @property {string[]} names
 * @property {Column[]} columns
 * @property {Row[]} rows
 * @property {string[]} outside names that belong to no block
 */

/** What Wan models look like, for a grid that no LoRA has reached yet. @type {Record<string, { stack: string, blocks: number, inside: string[] }>} */
export const MODELS = Object.fromEntries(SHOWN.map(({ label, ...model }) => [label, model]));

/** Module names of such a model. @param {{ stack: string, blocks: number, inside: string[] }} model */
export const namesOf = ({ stack, blocks, inside }) =>
  Array.from({ length: blocks }, (_, block) => inside.map((rest) => `${stack}.${block}.${rest}`)).flat();

/** Rows, columns and cells for a list of module names. @param {string[]} names @returns {Layout} */
export const layoutOf = (names) => {
  /** @type {Map<string, { stack: string, block: number, cells: Map<string, string> }>} */
  const rows = new Map();
  /** @type {Map<string, number>} */
  const rests = new Map();
  const outside = [];
  for (const name of names) {
    const at = stackOf(name);
    // A stack whose name the selection language cannot write has no rows: its modules are chosen one by one.
    if (!at || !/^[A-Za-z_][\w.-]*$/.test(at.stack) || name !== `${at.stack}.${at.block}.${at.rest}`) {
      outside.push(name);
      continue;
    }
    const key = `${at.stack}.${at.block}`;
    const row = rows.get(key) ?? { stack: at.stack, block: at.block, cells: new Map() };
    rows.set(key, row);
    row.cells.set(at.rest, name);
    if (!rests.has(at.rest)) rests.set(at.rest, ownOf(name)?.order ?? Infinity);
  }
  // In the model's order; modules of no family come last, in the order of their names.
  const all = [...rests].map(([rest, order]) => {
    const dot = rest.indexOf(".");
    return dot < 0 ? { rest, order, group: "", label: shortened(rest) } : { rest, order, group: rest.slice(0, dot), label: shortened(rest.slice(dot + 1)) };
  }).sort((a, b) => compare(a.order, b.order));
  const columns = [...new Set(all.map(({ group }) => group))].flatMap((group) =>
    all.filter((column) => column.group === group).sort((a, b) => rank(a.label) - rank(b.label))
      .map(({ rest, label }) => ({ rest, group, label })),
  );
  const order = (/** @type {{ cells: Map<string, string> }} */ row) => ownOf([...row.cells.values()][0])?.order ?? Infinity;
  const stacks = [...new Set([...rows.values()].sort((a, b) => compare(order(a), order(b))).map((row) => row.stack))];
  const sorted = [...rows.values()].sort((a, b) => stacks.indexOf(a.stack) - stacks.indexOf(b.stack) || a.block - b.block);
  return {
    names,
    columns,
    rows: sorted.map(({ stack, block, cells }) => ({ stack, block, cells: columns.map(({ rest }) => cells.get(rest) ?? null) })),
    outside,
  };
};

/** @param {number} a @param {number} b */
const compare = (a, b) => (a === b ? 0 : a - b);

const PROJECTIONS = ["q", "k", "v", "o", "+q", "+k", "+v", "+o"];

/** Where a projection stands among those of its attention. @param {string} label */
const rank = (label) => (PROJECTIONS.includes(label) ? PROJECTIONS.indexOf(label) : PROJECTIONS.length);

/** Wan's name for a projection of diffusers; "+" for those of the text. @param {string} label */
const shortened = (label) =>
  label.replace(/^net\.([0-9])(\.proj)?$/, "$1").replace(/^add_([qkv])_proj$/, "+$1").replace("to_add_out", "+o")
    .replace(/^to_out(\.0)?$/, "o").replace(/^to_/, "").replace(/^linear(?=[0-9])/, "lin");

/** A row in a few characters: "7", "d7" for double_blocks, "i4.1t0" for input_blocks.4.1.transformer_blocks. @param {string} stack @param {number} block */
export const rowLabel = (stack, block) => {
  if (stack === "blocks") return `${block}`;
  const short = [...stack.split("."), `${block}`].map((part) => (isNumber(part) ? part : part[0]));
  return short.reduce((label, part, index) => label + (isNumber(part) && isNumber(short[index - 1]) ? "." : "") + part);
};

/** @param {string} part */
const isNumber = (part) => /^[0-9]+$/.test(part);

/** Neighbouring columns of one group: `{ group, first, count }`. @param {Column[]} columns */
export const groupsOf = (columns) => {
  /** @type {{ group: string, first: number, count: number }[]} */
  const groups = [];
  columns.forEach(({ group }, index) => {
    const last = groups[groups.length - 1];
    if (last && last.group === group) last.count += 1;
    else groups.push({ group, first: index, count: 1 });
  });
  return groups;
};

/** @typedef {{ row: number, column: number }} Spot */

/** Every cell on the straight line between two cells, so that a fast stroke leaves no holes. @param {Spot} from @param {Spot} to */
export const line = (from, to) => {
  const steps = Math.max(Math.abs(to.row - from.row), Math.abs(to.column - from.column));
  return Array.from({ length: steps + 1 }, (_, step) => ({
    row: Math.round(from.row + ((to.row - from.row) * step) / (steps || 1)),
    column: Math.round(from.column + ((to.column - from.column) * step) / (steps || 1)),
  }));
};

/** Every cell of the rectangle between two corners. @param {Spot} from @param {Spot} to */
export const rectangle = (from, to) => {
  const spots = [];
  for (let row = Math.min(from.row, to.row); row <= Math.max(from.row, to.row); row++) {
    for (let column = Math.min(from.column, to.column); column <= Math.max(from.column, to.column); column++) {
      spots.push({ row, column });
    }
  }
  return spots;
};

/** Index of the interval that holds `position`, clamped to the ends. @param {number[]} ends ascending right edges @param {number} position */
export const indexAt = (ends, position) => {
  let low = 0;
  let high = ends.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (position < ends[middle]) high = middle;
    else low = middle + 1;
  }
  return low;
};

/**
 * Texts of the presets for this layout. Early, middle and late are the quarter, half and quarter of the blocks of each
 * stack; for a 40-block model early is 0-10, as in the experiments people share. U-Nets have no such order.
 * @param {Layout} layout
 */
export const presets = (layout) => {
  const fits = (/** @type {string} */ text) => Selection.parse(text).chosen(layout.names).size > 0;
  const offered = /** @type {[string, string][]} */ ([["attention", "attn"], ["self", "self_attn"], ["cross", "cross_attn"], ["feedForward", "ffn"]]);
  /** @type {[string, string][]} */
  const list = [["all", "all"], ["none", "none"], ...offered.filter(([, text]) => fits(text))];
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const { stack, block } of layout.rows) counts.set(stack, Math.max(counts.get(stack) ?? 0, block + 1));
  const stacks = [...counts].filter(([stack, count]) => count >= 4 && !stack.includes("."));
  if (!stacks.length || [...counts.keys()].some((stack) => /^(down|up|input|output)_blocks/.test(stack))) return list;
  /** @param {(count: number) => [number, number]} ends */
  const part = (ends) => stacks.map(([stack, count]) => `${stack} ${ends(count).join("-")}`).join("|");
  list.push(
    ["early", part((count) => [0, Math.floor(count / 4)])],
    ["middle", part((count) => [Math.floor(count / 4) + 1, Math.ceil((count * 3) / 4) - 1])],
    ["late", part((count) => [Math.ceil((count * 3) / 4), count - 1])],
  );
  return list;
};

/** Swaps what is selected and what is not. @param {Map<string, number>} weights @param {string[]} names */
export const inverted = (weights, names) => new Map(names.filter((name) => !weights.get(name)).map((name) => [name, 1]));

/** The `percent` of modules with the largest norms. @param {Record<string, { norm?: number }>} modules @param {string[]} names @param {number} percent */
export const strongest = (modules, names, percent) => {
  const measured = names.filter((name) => (modules[name]?.norm ?? 0) > 0);
  measured.sort((a, b) => (modules[b].norm ?? 0) - (modules[a].norm ?? 0));
  const count = Math.max(1, Math.round((measured.length * percent) / 100));
  const chosen = new Set(measured.slice(0, count));
  return new Map(names.filter((name) => chosen.has(name)).map((name) => [name, 1]));
};

/** Colours of the heat scale in `difflora.css`. */
export const STEPS = 12;

/** Step 0 to `steps - 1` of the heat scale for a norm. The root spreads the many small values apart. @param {number} norm @param {number} largest @param {number} steps */
export const heatStep = (norm, largest, steps) =>
  largest > 0 ? Math.min(steps - 1, Math.floor(Math.sqrt(Math.max(0, norm) / largest) * steps)) : 0;

/** A number short enough for a cell: 1, -1, .5, 0.25 as .25. @param {number} weight */
export const cellText = (weight) => {
  const text = String(Number(weight.toPrecision(2)));
  return text.replace(/^(-?)0\./, "$1.");
};

/** A number for people: three digits, no exponent unless needed. @param {number} value */
export const short = (value) => {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
};
