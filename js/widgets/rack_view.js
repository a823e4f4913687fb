// @ts-check
/** A rack of sliders: a row for each LoRA, and a button that adds one. */
import { MOST, fileFor, readRack, writeRack } from "../lib/rack.js";
import { signed } from "../lib/strength.js";
import { retellError, say } from "../lib/words.js";
import { el } from "./dom.js";
import { openPicker, pathParts } from "./picker.js";
import { below } from "./popup.js";
import { strengthTrack } from "./strength_track.js";

/** @typedef {import("../lib/rack.js").Row} Row */
/** @typedef {import("../lib/rack.js").BadRow} BadRow */
/** @typedef {import("../lib/rack.js").Facts} Facts */

/**
 * @typedef {object} Host
 * @property {() => string} read the rows as text
 * @property {(text: string) => void} write
 * @property {() => boolean} linked the rows come from a wire
 * @property {() => string} model of Wan2.2: "high", "low", or "as named"
 * @property {(name: string) => Facts | undefined} facts what is known of a file
 * @property {() => Promise<string[]>} files that can be added
 * @property {(change: () => void) => void} asOneStep of undo
 * @property {(name: string) => number | null} remembered the strength that a LoRA starts with
 * @property {(name: string, value: number) => void} remember
 * @property {{ read: () => boolean, write: (shown: boolean) => void }} asText whether the rows are shown as text too
 */

/** @param {string} name */
const stem = (name) => name.replace(/^.*[\\/]/s, "").replace(/\.safetensors$/, "");

/** @param {Host} host */
export const rackView = (host) => {
  /** @type {ReturnType<typeof makeRow>[]} */
  let shown = [];
  const list = el("div", { class: "rows" });
  const empty = el("div", { class: "empty" });
  const add = el("button", { type: "button", class: "chip add", text: `+ ${say("addLora")}`, click: () => pick(below(add), add, (name) => edit((rows) => [...rows, fresh(name)])) });
  const all = el("button", { type: "button", class: "chip all", click: () => {
    const on = !rowsNow().some((row) => "name" in row && row.on);
    edit((rows) => rows.map((row) => ("name" in row ? { ...row, on } : row)));
  } });
  const text = el("button", { type: "button", class: "chip text", text: say("asText"), title: say("asTextTip"), click: () => host.asText.write(!host.asText.read()) });
  const count = el("span", { class: "count" });
  const element = el("div", { class: "difflora difflora-rack", role: "group", "aria-label": say("rack") }, list, empty, el("div", { class: "foot" }, add, count, el("span", { class: "pair" }, all, text)));

  const rowsNow = () => readRack(host.read());
  /** @param {(rows: (Row | BadRow)[]) => (Row | BadRow)[]} change */
  const edit = (change) => host.asOneStep(() => host.write(writeRack(change(rowsNow()))));
  /** @param {string} name @returns {Row} */
  const fresh = (name) => ({ on: true, strength: host.remembered(name) ?? 1, name });
  /** @param {{ clientX: number, clientY: number }} at @param {HTMLElement} back @param {(name: string) => void} choose */
  const pick = (at, back, choose) => void openPicker(at, host.files(), choose, back);

  /** A row, which shows whatever stands at its place. @param {number} index */
  const makeRow = (index) => {
    /** @returns {Row} */
    const row = () => {
      const here = rowsNow()[index];
      return here && "name" in here ? here : { on: true, strength: 0, name: "" };
    };
    /** @param {Partial<Row>} change */
    const put = (change) => host.write(writeRack(rowsNow().map((other, at) => (at === index && "name" in other ? { ...other, ...change } : other))));
    const file = () => fileFor(row().name, host.facts(row().name), host.model());
    /** @param {number} to */
    const move = (to) => edit((rows) => {
      const [moved] = rows.splice(index, 1);
      rows.splice(to, 0, moved);
      return rows;
    });
    const remove = () => edit((rows) => rows.filter((_, at) => at !== index));

    const element = el("div", { class: "row difflora-slider", role: "group" });
    const parts = strengthTrack({
      read: () => row().strength,
      write: (strength) => put({ strength }),
      linked: host.linked,
      recommended: () => {
        const range = host.facts(file() ?? "")?.range;
        return range ? { range, measured: false } : null;
      },
      on: { read: () => row().on, write: (on) => put({ on }) },
      asOneStep: host.asOneStep,
      remembered: () => ({ name: stem(row().name), value: host.remembered(row().name) }),
      remember: (value) => host.remember(row().name, value),
      more: () => {
        const disabled = host.linked();
        const twin = host.facts(row().name)?.twin;
        return [
          { text: say("otherFile"), act: () => pick(below(element), parts.track, (name) => edit((rows) => rows.map((other, at) => (at === index && "name" in other ? { ...other, name } : other)))), disabled },
          ...(twin ? [{ text: say("takeTwin", stem(twin)), act: () => host.asOneStep(() => put({ name: twin })), disabled }] : []),
          { text: say("moveUp"), act: () => move(index - 1), disabled: disabled || index === 0 },
          { text: say("moveDown"), act: () => move(index + 1), disabled: disabled || index === rowsNow().length - 1 },
          { text: say("removeRow"), act: remove, disabled },
        ];
      },
    }, element);
    const name = el("div", { class: "name" });
    const note = el("div", { class: "note" });
    const problem = el("div", { class: "problem" });
    const drop = el("button", { type: "button", class: "chip", text: "×", title: say("removeRow"), "aria-label": say("removeRow"), click: remove });
    element.append(el("div", { class: "top" }, parts.power, name, parts.value, parts.more, drop), parts.track, note, problem);

    const refresh = () => {
      const here = rowsNow()[index];
      const bad = here && "bad" in here ? here.bad : null;
      const own = row();
      const about = host.facts(own.name);
      const used = file();
      const known = host.facts(used ?? own.name);
      const wrong = bad !== null ? [say("badRow")] : [];
      if (bad === null) {
        if (used === null) wrong.push(say(host.model() === "high" ? "noHighTwin" : "noLowTwin"));
        else if (known?.missing) wrong.push(say("missingFile"));
        else if (known?.error) wrong.push(retellError(known.error));
      }
      element.dataset.bad = String(bad !== null);
      element.setAttribute("aria-label", bad ?? stem(own.name));
      name.replaceChildren(...(bad === null ? pathParts(own.name) : [el("span", { class: "base", text: bad })]));
      name.title = bad ?? [own.name, ...(known?.rank ? [`${known.base} · ${say("rank", known.rank)}`] : [])].join("\n");
      for (const part of [parts.power, parts.value, parts.more, parts.track]) part.toggleAttribute("data-none", bad !== null);
      drop.hidden = bad === null;
      problem.textContent = wrong.join(" · ");
      problem.hidden = !wrong.length || !own.on;
      const range = known?.range;
      note.textContent = [
        ...(used && used !== own.name ? [say("takes", stem(used))] : []),
        ...(host.model() === "as named" && about?.noise ? [say(about.noise === "high" ? "highHalf" : "lowHalf"), about.twin ? say("twinIs", stem(about.twin)) : say("noTwin")] : []),
        ...(range ? [say("recommended", signed(range[0]), signed(range[1]))] : []),
      ].join(" · ");
      parts.refresh();
      parts.power.toggleAttribute("disabled", host.linked());
    };
    return { element, refresh };
  };

  const refresh = () => {
    const rows = host.linked() ? [] : rowsNow();
    const needed = Math.min(MOST, rows.length);
    while (shown.length < needed) shown.push(makeRow(shown.length));
    shown = shown.slice(0, needed);
    if (list.childElementCount !== needed) list.replaceChildren(...shown.map((row) => row.element));
    for (const row of shown) row.refresh();
    empty.hidden = rows.length > 0;
    empty.textContent = say(host.linked() ? "rowsFromWire" : "noRows");
    const on = rows.filter((row) => "name" in row && row.on).length;
    count.textContent = rows.length ? say("rowsOn", on, rows.length) : "";
    all.textContent = say(on ? "allOff" : "allOn");
    all.hidden = rows.length < 2;
    add.toggleAttribute("disabled", host.linked() || rows.length >= MOST);
    text.hidden = host.linked();
    text.setAttribute("aria-pressed", String(host.asText.read()));
  };
  return { element, refresh };
};
