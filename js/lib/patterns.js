// @ts-check
/**
 * Regular expressions that cannot hang, the same as in `difflora/lora/patterns.py`, so that the page and the server agree on
 * what a pattern matches. All states are stepped at once, without backtracking.
 *
 * Known: literals, `.`, `[a-z]`, `[^…]`, `\d \w \s` and their capitals, `\b`, `^ $`, groups, `|`, `* + ? {m,n}`.
 */

const MAX_LENGTH = 300;
const MAX_STATES = 600;

const LAST = 0x10ffff;

/** @typedef {[number, number][]} Ranges Inclusive ranges of code points. */

/**
 * @typedef {{ kind: "set", ranges: Ranges } | { kind: "at", sign: string } | { kind: "seq" | "or", parts: Node[] }
 *   | { kind: "repeat", part: Node, low: number, high: number }} Node
 * @typedef {{ kind: "set" | "at" | "fork" | "end", ranges: Ranges, sign: string, then: number, other: number }} State
 */

/** @param {Ranges} ranges @returns {Ranges} */
const complement = (ranges) => {
  /** @type {Ranges} */
  const gaps = [];
  let start = 0;
  for (const [low, high] of [...ranges].sort((a, b) => a[0] - b[0] || a[1] - b[1])) {
    if (low > start) gaps.push([start, low - 1]);
    start = Math.max(start, high + 1);
  }
  if (start <= LAST) gaps.push([start, LAST]);
  return gaps;
};

/** @type {Record<string, Ranges>} */
const CLASSES = { d: [[48, 57]], w: [[48, 57], [65, 90], [95, 95], [97, 122]], s: [[9, 13], [32, 32]] };
for (const name of ["d", "w", "s"]) CLASSES[name.toUpperCase()] = complement(CLASSES[name]);
/** @type {Record<string, string>} */
const CONTROLS = { n: "\n", t: "\t", r: "\r", f: "\f", v: "\v" };
/** @type {Record<string, [number, number]>} */
const REPEATS = { "*": [0, Infinity], "+": [1, Infinity], "?": [0, 1] };

/** @param {Ranges} ranges @param {number} code */
const inside = (ranges, code) => ranges.some(([low, high]) => low <= code && code <= high);

/** @param {string} character */
const codeOf = (character) => /** @type {number} */ (character.codePointAt(0));

export class PatternError extends Error {
  /** @param {string} message @param {number} at counted in characters from 0 */
  constructor(message, at) {
    super(message);
    this.at = at;
  }
}

class Reader {
  /** @param {string} source */
  constructor(source) {
    this.source = [...source];
    this.at = 0;
  }

  peek() {
    return this.source[this.at] ?? "";
  }

  take() {
    const character = this.peek();
    this.at += 1;
    return character;
  }

  /** @param {number} depth @returns {Node} */
  either(depth) {
    if (depth > 30) throw new PatternError("groups are nested too deeply", this.at);
    const parts = [this.sequence(depth)];
    while (this.peek() === "|") {
      this.take();
      parts.push(this.sequence(depth));
    }
    return parts.length === 1 ? parts[0] : { kind: "or", parts };
  }

  /** @param {number} depth @returns {Node} */
  sequence(depth) {
    const parts = [];
    while (!["", "|", ")"].includes(this.peek())) parts.push(this.repeated(this.atom(depth)));
    return { kind: "seq", parts };
  }

  /** @param {Node} part @returns {Node} */
  repeated(part) {
    const sign = this.peek();
    const start = this.at;
    if (sign !== "{" && !(sign in REPEATS)) return part;
    let [low, high] = REPEATS[sign] ?? [0, 0];
    if (sign === "{") [low, high] = this.counts();
    else this.take();
    if (part.kind === "at") throw new PatternError(`"${sign}" has nothing to repeat`, start);
    if (this.peek() === "?") this.take(); // lazy or greedy makes no difference for a yes-or-no answer
    const next = this.peek();
    if (next === "{" || next in REPEATS) throw new PatternError(`"${next}" repeats what is already repeated`, this.at);
    return { kind: "repeat", part, low, high };
  }

  /** @returns {[number, number]} */
  counts() {
    const start = this.at;
    const end = this.source.indexOf("}", start);
    const found = end < 0 ? null : /^(\d{1,3})(,?)(\d{0,3})$/.exec(this.source.slice(start + 1, end).join(""));
    if (!found || (!found[2] && found[3])) {
      throw new PatternError('"{" starts a count such as {2} or {2,5}; write \\{ for the character', start);
    }
    this.at = end + 1;
    const low = Number(found[1]);
    const high = found[3] ? Number(found[3]) : found[2] ? Infinity : low;
    if (high < low) throw new PatternError(`the count {${low},${high}} runs backwards`, start);
    return [low, high];
  }

  /** @param {number} depth @returns {Node} */
  atom(depth) {
    const start = this.at;
    const character = this.take();
    if (character === "(") {
      if (this.peek() === "?") {
        if (this.source[this.at + 1] !== ":") {
          throw new PatternError("(?…) is not known here; for «does not match» use ! in the selection", start);
        }
        this.at += 2;
      }
      const group = this.either(depth + 1);
      if (this.take() !== ")") throw new PatternError('"(" is never closed', start);
      return group;
    }
    if ("*+?{".includes(character)) throw new PatternError(`"${character}" has nothing to repeat`, start);
    if (character === ".") return { kind: "set", ranges: [[0, LAST]] };
    if (character === "^" || character === "$") return { kind: "at", sign: character };
    if (character === "[") return this.bracket(start);
    if (character === "\\") {
      if (this.peek() === "b" || this.peek() === "B") return { kind: "at", sign: this.take() };
      return { kind: "set", ranges: this.escape(start) };
    }
    return { kind: "set", ranges: [[codeOf(character), codeOf(character)]] };
  }

  /** @param {number} start @returns {Ranges} */
  escape(start) {
    const taken = this.take();
    if (taken in CLASSES) return CLASSES[taken];
    const character = CONTROLS[taken] ?? taken;
    if (!character || /^[A-Za-z0-9]$/.test(character)) throw new PatternError(`"\\${character}" is not known here`, start);
    return [[codeOf(character), codeOf(character)]];
  }

  /** @param {number} start @returns {Node} */
  bracket(start) {
    const inverted = this.peek() === "^";
    if (inverted) this.take();
    /** @type {Ranges} */
    const ranges = [];
    let first = true;
    while (this.peek() !== "]" || first) {
      first = false;
      let low = this.member(start);
      const after = this.source[this.at + 1] ?? "";
      if (this.peek() === "-" && after !== "]" && after !== "") {
        const here = this.at;
        this.take();
        const high = this.member(start);
        if (low.length > 1 || high.length > 1 || low[0][0] !== low[0][1] || high[0][0] < low[0][0]) {
          throw new PatternError("this range of characters runs backwards or has no ends", here);
        }
        low = [[low[0][0], high[0][1]]];
      }
      ranges.push(...low);
    }
    this.take();
    return { kind: "set", ranges: inverted ? complement(ranges) : ranges };
  }

  /** @param {number} start @returns {Ranges} */
  member(start) {
    const here = this.at;
    const character = this.take();
    if (!character) throw new PatternError('"[" is never closed', start);
    return character === "\\" ? this.escape(here) : [[codeOf(character), codeOf(character)]];
  }
}

/** The patterns would take too long on these texts. */
export class WorkError extends Error {}

/** How much work is left for one query: pattern states entered, weighted by their size. */
export class Work {
  left = Infinity;

  /** @param {number} units */
  spend(units) {
    this.left -= units;
    if (this.left < 0) throw new WorkError();
  }
}

/** A compiled pattern. */
export class Pattern {
  /** @param {string} source */
  constructor(source) {
    if ([...source].length > MAX_LENGTH) {
      throw new PatternError(`the pattern is longer than ${MAX_LENGTH} characters`, MAX_LENGTH);
    }
    const reader = new Reader(source);
    const tree = reader.either(0);
    if (reader.at < reader.source.length) throw new PatternError('")" closes nothing', reader.at);
    /** @type {State[]} */
    this.states = [{ kind: "end", ranges: [], sign: "", then: 0, other: 0 }];
    this.start = this.build(tree, 0);
    // A set of many ranges takes as long as several states.
    this.costs = this.states.map(({ ranges }) => 1 + Math.floor(ranges.length / 8));
  }

  /** @param {State["kind"]} kind @param {number} then @param {number} other @param {Ranges} ranges @param {string} sign */
  add(kind, then, other = 0, ranges = [], sign = "") {
    if (this.states.length >= MAX_STATES) {
      throw new PatternError("the pattern is too large once its counts are written out", 0);
    }
    this.states.push({ kind, ranges, sign, then, other });
    return this.states.length - 1;
  }

  /**
   * Build the states of `node` in front of state `then`; return the first of them.
   * @param {Node} node @param {number} then @returns {number}
   */
  build(node, then) {
    if (node.kind === "set") return this.add("set", then, 0, node.ranges);
    if (node.kind === "at") return this.add("at", then, 0, [], node.sign);
    if (node.kind === "seq") return node.parts.reduceRight((next, part) => this.build(part, next), then);
    if (node.kind === "or") {
      const options = node.parts.map((part) => () => this.build(part, then));
      return options.slice(0, -1).reduceRight((other, option) => this.add("fork", option(), other), options[options.length - 1]());
    }
    if (node.kind !== "repeat") return then;
    if (node.high === Infinity) {
      const loop = this.add("fork", 0, then);
      this.states[loop].then = this.build(node.part, loop);
      then = loop;
    } else {
      const end = then;
      for (let n = node.low; n < node.high; n++) then = this.add("fork", this.build(node.part, then), end);
    }
    for (let n = 0; n < node.low; n++) {
      const first = this.build(node.part, then);
      if (first === then) break; // an empty group adds no state, however often it is repeated
      then = first;
    }
    return then;
  }

  /** Tells whether the pattern matches anywhere in `text`; throws a WorkError if `work` runs out. @param {string} text @param {Work} [work] */
  foundIn(text, work) {
    const codes = [...text].map(codeOf);
    let active = [];
    for (let position = 0; position <= codes.length; position++) {
      active.push(this.start);
      const reached = this.reach(active, codes, position);
      if (work) {
        let units = 0;
        for (const index of reached) units += this.costs[index];
        work.spend(units);
      }
      if (reached.has(0)) return true;
      if (position === codes.length) break;
      active = [];
      for (const index of reached) {
        const state = this.states[index];
        if (state.kind === "set" && inside(state.ranges, codes[position])) active.push(state.then);
      }
    }
    return false;
  }

  /** All states that can be entered from `active` without reading. @param {number[]} active @param {number[]} codes @param {number} position */
  reach(active, codes, position) {
    const reached = new Set();
    const waiting = [...active];
    while (waiting.length) {
      const index = /** @type {number} */ (waiting.pop());
      if (reached.has(index)) continue;
      reached.add(index);
      const state = this.states[index];
      if (state.kind === "fork") waiting.push(state.then, state.other);
      else if (state.kind === "at" && holds(state.sign, codes, position)) waiting.push(state.then);
    }
    return reached;
  }
}

/** @param {string} sign @param {number[]} codes @param {number} position */
const holds = (sign, codes, position) => {
  if (sign === "^") return position === 0;
  if (sign === "$") return position === codes.length;
  const before = position > 0 && inside(CLASSES.w, codes[position - 1]);
  const after = position < codes.length && inside(CLASSES.w, codes[position]);
  return (before !== after) === (sign === "b");
};
