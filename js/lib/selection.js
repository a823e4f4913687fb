// @ts-check
/**
 * The selection language, as in `difflora/lora/selection.py`: the same texts, the same answers, the same error messages.
 * Grammar and worked cases: `tests/data/selection.json`.
 */
import { ROLES, ownOf } from "./families.js";
import { Pattern, PatternError, Work, WorkError } from "./patterns.js";

const MAX_TEXT = 100_000;
const MAX_PATTERNS = 20;
/** Terms times names, and as many states of patterns. */
const MAX_WORK = 5_000_000;
/** Characters; a longer name counts as several. */
const LONG_NAME = 200;

const SPACE = /[ \t\r\n\u00a0\u3000]*/y;
/**
 * What is typed on Chinese and Japanese keyboards, in plain characters and of the same length: signs, digits and letters of
 * full width, and the dashes beside the digits.
 * @param {string} text
 */
const plain = (text) =>
  text
    .replace(/[\uff01-\uff5e]/g, (wide) => String.fromCharCode(wide.charCodeAt(0) - 0xfee0))
    .replace(/[‐–—−ー]/g, "-")
    .replaceAll("、", ",");
const WORD = /[A-Za-z_*?][A-Za-z0-9_.*?-]*/y;
const RANGE = /([0-9]+)(?:(-)([0-9]+)?)?(?![A-Za-z0-9_.*?-])/y;
const NUMBER = /[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9_.*?])/y;
const PATTERN = /\/((?:[^/\\]|\\.)*)\//y;
const EXACT = /"((?:[^"]|"")*)"/y;

const FEED_FORWARD = ["ffn", "ff", "ff_context", "feed_forward"];
/** What stands before the number of a block, and what a part of a block is called that looks like it, where no family is known. */
const STACKS = /(?:blocks|layers|attentions|resnets|samplers|middle_block)$/;
const LAYERS = ["in_layers", "out_layers", "emb_layers"];

/** @typedef {(name: string) => boolean} Test */
/** @typedef {{ text: string, removes: boolean, weight: number, holds: Test }} Item */

/** What is wrong with a selection; `at` is the place in the text, -1 if the text can be read but selects nothing. */
export class SelectionError extends Error {
  /** @param {string} message @param {number} at */
  constructor(message, at = -1) {
    super(message);
    this.at = at;
  }
}

export class Selection {
  /** @param {string} text @param {Item[]} items @param {number} terms @param {Work} work */
  constructor(text, items, terms, work) {
    this.text = text;
    this.items = items;
    this.terms = terms;
    this.work = work;
  }

  /** Reads a selection; throws a SelectionError that points at the first thing it cannot read. @param {string} text */
  static parse(text) {
    const parser = new Parser(text);
    const items = parser.items();
    return new Selection(text, items, parser.terms, parser.work);
  }

  /**
   * The weight of every selected module, in the order of `names`; empty if nothing is selected.
   * @param {string[]} names
   * @returns {Map<string, number>}
   */
  chosen(names) {
    return this.bounded(names, () => {
      const weights = new Map();
      for (const name of names) {
        const weight = this.weightOf(name);
        if (weight !== 0) weights.set(name, weight);
      }
      return weights;
    });
  }

  /** The result of `answer`; throws a SelectionError if that would take too long for all `names`. @template T @param {string[]} names @param {() => T} answer */
  bounded(names, answer) {
    this.work.left = MAX_WORK;
    try {
      this.work.spend(this.terms * names.reduce((sum, name) => sum + (name.length <= LONG_NAME ? 1 : Math.floor(name.length / 4)), 0));
      this.work.left = MAX_WORK;
      return answer();
    } catch (error) {
      if (!(error instanceof WorkError)) throw error;
      throw new SelectionError(
        `Selection ${quoted(this.text)}: ${this.terms} terms on ${names.length} modules take too long. Use ranges, and fewer or simpler patterns.`,
      );
    } finally {
      this.work.left = Infinity;
    }
  }

  /** As `chosen`, but selecting nothing is an error, as on the server. @param {string[]} names */
  weights(names) {
    const weights = this.chosen(names);
    if (!weights.size) {
      throw new SelectionError(`Selection ${quoted(this.text)} selects nothing. There is: ${summary(names)}.`);
    }
    return weights;
  }

  /** The entries that fit no name at all, as they were written. @param {string[]} names */
  unmatched(names) {
    const fitsNone = (/** @type {Item} */ item) => plain(item.text).replace(/^[! \u3000]+/, "").toLowerCase() !== "none" && !names.some(item.holds);
    return this.bounded(names, () => this.items.filter(fitsNone).map((item) => item.text));
  }

  /** @param {string} name */
  weightOf(name) {
    let weight = this.items[0]?.removes ? 1 : 0;
    for (const item of this.items) if (item.holds(name)) weight = item.removes ? 0 : item.weight;
    return weight;
  }
}

/** What there is to select from, in a line. @param {Iterable<string>} names */
export const summary = (names) => {
  /** @type {Map<string, { blocks: Set<number>, components: Map<string, Set<string>> }>} */
  const stacks = new Map();
  const outside = [];
  for (const name of names) {
    const segments = name.split(".");
    const numbered = numberedIn(name, segments);
    if (!numbered.length) {
      outside.push(name);
      continue;
    }
    /** @type {Map<string, Set<string>>} */
    let components = new Map();
    for (const at of numbered) {
      const stack = stacks.get(segments[at - 1]) ?? { blocks: new Set(), components: new Map() };
      stacks.set(segments[at - 1], stack);
      stack.blocks.add(Number(segments[at]));
      components = stack.components;
    }
    const [component, ...rest] = segments.slice(numbered[numbered.length - 1] + 1);
    components.set(component, (components.get(component) ?? new Set()).add(rest.join(".")));
  }
  const parts = [...stacks].map(([stack, { blocks, components }]) => {
    const inside = [...components].map(([component, rests]) => [component, ...[...rests].filter(Boolean)].join(" "));
    return `${stack} ${asRanges(blocks)}${inside.length ? `: ${listed(inside, 12)}` : ""}`;
  });
  if (outside.length) parts.push(listed(outside, 8));
  return parts.join("; ") || "nothing at all";
};

/**
 * The innermost numbered stack in a name: `blocks.7.ffn.0` is in stack "blocks", block 7, and the rest is "ffn.0". A stack
 * inside another is named in full: "input_blocks.4.1.transformer_blocks".
 * @param {string} name
 */
export const stackOf = (name) => {
  const segments = name.split(".");
  const numbered = numberedIn(name, segments);
  if (!numbered.length) return null;
  let at = numbered[numbered.length - 1];
  // The blocks of the first U-Nets hold numbered parts: input_blocks.4.1 is part 1 of block 4.
  if (at + 2 < segments.length && isIndex(segments[at + 1])) at += 1;
  return { stack: segments.slice(0, at).join("."), block: Number(segments[at]), rest: segments.slice(at + 1).join(".") };
};

/** Where the numbers of blocks stand in a name. @param {string} name @param {string[]} segments */
const numberedIn = (name, segments) =>
  ownOf(name)?.numbered ?? segments.flatMap((segment, at) => {
    const before = segments[at - 1];
    return at && at < segments.length - 1 && isIndex(segment) && STACKS.test(before) && !LAYERS.includes(before) ? [at] : [];
  });

/** `0,1,2,5` as "0-2,5". @param {Iterable<number>} numbers */
export const asRanges = (numbers) => {
  /** @type {[number, number][]} */
  const runs = [];
  for (const number of [...numbers].sort((a, b) => a - b)) {
    const last = runs[runs.length - 1];
    if (last && number === last[1] + 1) last[1] = number;
    else runs.push([number, number]);
  }
  return runs.map(([low, high]) => (low === high ? `${low}` : `${low}-${high}`)).join(",");
};

class Parser {
  /** @param {string} text */
  constructor(text) {
    if ([...text].length > MAX_TEXT) {
      throw new SelectionError(`Selection: the text is longer than ${MAX_TEXT} characters. Use ranges or a pattern.`, 0);
    }
    this.text = text;
    /** Names in quotes and patterns are read from `text`. */
    this.plain = plain(text);
    this.at = 0;
    this.patterns = 0;
    /** Ranges of numbers are counted each. */
    this.terms = 0;
    this.work = new Work();
  }

  /** @param {string} message @param {number} at */
  error(message, at = this.at) {
    const character = [...this.text.slice(0, at)].length + 1;
    return new SelectionError(`Selection ${quoted(this.text)}, character ${character}: ${message}.`, at);
  }

  /** Skips white space, then `sign` if it is next; tells whether it was. @param {string} sign */
  skip(sign = "") {
    SPACE.lastIndex = this.at;
    this.at += SPACE.exec(this.text)?.[0].length ?? 0;
    if (!sign || this.plain[this.at] !== sign) return false;
    this.at += 1;
    return true;
  }

  /** @param {RegExp} expression */
  read(expression) {
    this.skip();
    expression.lastIndex = this.at;
    const found = expression.exec(expression === PATTERN || expression === EXACT ? this.text : this.plain);
    if (found) this.at += found[0].length;
    return found;
  }

  items() {
    const items = [];
    for (;;) {
      while (this.skip(","));
      if (this.at >= this.text.length) return items;
      items.push(this.item());
      this.skip();
      if (this.at < this.text.length && this.plain[this.at] !== ",") {
        throw this.error(`found ${this.found()} where "," (and also), "&" (only where) or "=" (weight) can stand`);
      }
    }
  }

  /** @returns {Item} */
  item() {
    const start = this.at;
    const removes = this.skip("!");
    const factors = [this.factor()];
    while (this.skip("&")) {
      const inverted = this.skip("!");
      const factor = this.factor();
      factors.push(inverted ? (name) => !factor(name) : factor);
    }
    let weight = 1;
    if (this.skip("=")) {
      if (removes) throw this.error('"!" removes, so there is no weight to set', this.at - 1);
      weight = this.number();
    }
    const text = this.text.slice(start, this.at).trim();
    return { text, removes, weight, holds: (name) => factors.every((factor) => factor(name)) };
  }

  /** @returns {Test} */
  factor() {
    const terms = [this.term()];
    while (this.skip("|")) terms.push(this.term());
    return terms.length === 1 ? terms[0] : (name) => terms.some((term) => term(name));
  }

  number() {
    this.skip();
    const start = this.at;
    const weight = Number(this.read(NUMBER)?.[0] ?? NaN);
    if (Number.isFinite(weight)) return weight;
    this.at = start;
    throw this.error(`found ${this.found()} where a weight such as 0.5 or -1 belongs after "="`);
  }

  /** @returns {Test} */
  term() {
    this.skip();
    this.terms += 1;
    const start = this.at;
    if (this.text[start] === "/") {
      const found = this.read(PATTERN);
      if (!found) throw this.error('the pattern that starts here has no closing "/"');
      return this.pattern(found[1], start + 1);
    }
    if (this.text[start] === '"') {
      const exact = this.read(EXACT)?.[1].replaceAll('""', '"');
      if (exact === undefined) throw this.error("the name that starts here has no closing quote");
      return (name) => name === exact;
    }
    const word = this.read(WORD)?.[0];
    if (!word) {
      if (/[0-9]/.test(this.plain[start] ?? "")) {
        throw this.error('a number needs its blocks in front, as in "blocks 0-10,20-29"');
      }
      if (this.plain[start] === "!") {
        throw this.error('one "!" is enough, and it stands before the first term or after "&"');
      }
      throw this.error(`found ${this.found()} where a term belongs, such as attn, ffn.0, "blocks 0-10" or /pattern/`);
    }
    const ranges = this.ranges();
    if (ranges.length) return this.inStack(word, ranges, start);
    return KEYWORDS.get(word.toLowerCase()) ?? this.word(word, start);
  }

  /** @param {string} word @param {number} at @returns {Test} */
  word(word, at) {
    if (/[*?]/.test(word)) {
      const glob = word.replace(/[.-]/g, "\\$&").replaceAll("?", ".").replaceAll("*", ".*");
      return this.pattern(`^${glob}$`, at);
    }
    const runs = spellings(word).map((spelling) => `.${spelling}.`);
    return (name) => runs.some((run) => `.${name}.`.includes(run));
  }

  /** @param {string} word @param {[number, number][]} ranges @param {number} at @returns {Test} */
  inStack(word, ranges, at) {
    if (/[*?]/.test(word)) {
      const glob = this.word(word, at);
      return afterWhat(ranges, (before) => glob(before.slice(before.lastIndexOf(".") + 1)));
    }
    const wholes = spellings(word);
    const among = afterWhat(ranges, (before) => wholes.some((whole) => before === whole || before.endsWith(`.${whole}`)));
    if (word.includes(".")) return among;
    // "blocks 3" is block 3 of the stack that is called blocks, not of token_refiner.blocks as well.
    return (name) => {
      const own = ownOf(name);
      return !(own?.isInner && wholes.some((whole) => own.stack.endsWith(`.${whole}`))) && among(name);
    };
  }

  /** Numbers after a word: `0-10,20-29` or `0 1 2`. A comma followed by a number belongs to them. */
  ranges() {
    /** @type {[number, number][]} */
    const ranges = [];
    for (;;) {
      const before = this.at;
      if (ranges.length) this.skip(",");
      const found = this.read(RANGE);
      if (!found) {
        this.at = before;
        return ranges;
      }
      const low = Number(found[1].slice(0, 9));
      const high = found[2] && !found[3] ? Infinity : Number((found[3] ?? found[1]).slice(0, 9));
      if (high < low) {
        const at = this.at - found[0].length;
        throw this.error(`the range ${found[0]} runs backwards; write ${found[3]}-${found[1]}`, at);
      }
      ranges.push([low, high]);
      this.terms += 1;
    }
  }

  /** @param {string} source @param {number} at @returns {Test} */
  pattern(source, at) {
    this.patterns += 1;
    if (this.patterns > MAX_PATTERNS) {
      throw this.error(`more than ${MAX_PATTERNS} patterns and globs; join them with | inside one pattern`, at);
    }
    try {
      const pattern = new Pattern(source);
      return (name) => pattern.foundIn(name, this.work);
    } catch (error) {
      if (!(error instanceof PatternError)) throw error;
      throw this.error(error.message, at + [...source].slice(0, error.at).join("").length);
    }
  }

  found() {
    const rest = this.text.slice(this.at).trim().split(/\s+/)[0];
    return rest ? `"${[...rest].slice(0, 20).join("")}"` : "the end";
  }
}

/** What a name looks like that no family has. @type {Record<string, Test>} */
const GUESSES = {
  // A U-Net's "attentions" are whole transformers.
  attn: (name) => name.includes("attn") || name.replaceAll("attentions", "").includes("attention"),
  ffn: (name) => name.split(".").some((part) => FEED_FORWARD.includes(part) || part.includes("mlp")),
};

/** By the family's table; by its parts, a name that no family has. @param {string} role @returns {[string, Test]} */
const byRole = (role) => {
  const guess = GUESSES[role] ?? ((/** @type {string} */ name) => `.${name}.`.includes(`.${role}.`));
  return [role, (name) => {
    const own = ownOf(name.replace(/\.bias$/, ""));
    return own ? own.roles.has(role) : guess(name);
  }];
};

/** @type {Map<string, Test>} */
const KEYWORDS = new Map([["all", () => true], ["none", () => false], ...ROLES.map(byRole)]);

/** A word as it is typed, and as names spell it: `Self-Attn` is `self_attn`, and `block` is `blocks`. @param {string} word */
const spellings = (word) => {
  const small = word.toLowerCase().replaceAll("-", "_");
  return small === "block" ? ["blocks"] : [...new Set([word, small])];
};

/** @param {[number, number][]} ranges @param {Test} holds of what stands before the number @returns {Test} */
const afterWhat = (ranges, holds) => (name) =>
  numbersIn(name).some(
    ([before, number]) => ranges.some(([low, high]) => low <= number && number <= high) && holds(before),
  );

/** @type {Map<string, [string, number][]>} Names are few and are asked about again and again while somebody paints. */
const known = new Map();

/** Every number among the parts of a name, with what stands before it. @param {string} name */
const numbersIn = (name) => {
  let found = known.get(name);
  if (found) return found;
  found = [];
  for (let dot = name.indexOf("."); dot >= 0; dot = name.indexOf(".", dot + 1)) {
    const end = name.indexOf(".", dot + 1);
    const segment = name.slice(dot + 1, end < 0 ? undefined : end);
    if (isIndex(segment)) found.push([name.slice(0, dot), Number(segment)]);
  }
  if (known.size > 20_000) known.clear();
  known.set(name, found);
  return found;
};

/** @param {string} segment */
const isIndex = (segment) => /^[0-9]{1,9}$/.test(segment);

/** @param {string[]} parts @param {number} most */
const listed = (parts, most) =>
  parts.slice(0, most).join(", ") + (parts.length > most ? ` and ${parts.length - most} more` : "");

/** @param {string} text */
const quoted = (text) => {
  const characters = [...text];
  return `"${characters.slice(0, 80).join("").replace(/\s/g, " ")}${characters.length > 80 ? "…" : ""}"`;
};
