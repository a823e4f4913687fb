// @ts-check
/** A list of files with a search field, at a place on the page. */
import { matching } from "../lib/rack.js";
import { say } from "../lib/words.js";
import { el } from "./dom.js";
import { openPopup } from "./popup.js";

/** How many files are listed at most: a search finds the others. */
const SHOWN = 200;

/** @param {{ clientX: number, clientY: number }} at @param {Promise<string[]>} files @param {(name: string) => void} choose @param {HTMLElement} [back] gets the focus afterwards */
export const openPicker = async (at, files, choose, back) => {
  /** @type {string[]} */
  let all = [];
  let current = 0;
  const search = el("input", {
    type: "text", class: "field", role: "combobox", autocomplete: "off", spellcheck: "false", "aria-expanded": "true", "aria-controls": "difflora-files",
    "aria-label": say("searchLora"), placeholder: say("searchLora"), input: () => fill(),
  });
  const list = el("div", { class: "files", role: "listbox", id: "difflora-files" });
  const note = el("div", { class: "note" });
  const panel = el("div", { class: "difflora difflora-picker", role: "dialog", "aria-label": say("addLora") }, search, list, note);

  /** @param {string} name */
  const take = (name) => {
    close();
    choose(name);
  };
  /** @param {number} index */
  const mark = (index) => {
    const options = [...list.children];
    current = Math.max(0, Math.min(options.length - 1, index));
    options.forEach((option, at) => option.setAttribute("aria-selected", String(at === current)));
    options[current]?.scrollIntoView({ block: "nearest" });
    search.setAttribute("aria-activedescendant", options[current]?.id ?? "");
  };
  const fill = () => {
    const found = matching(all, search.value);
    list.replaceChildren(...found.slice(0, SHOWN).map((name, index) =>
      el("div", { class: "option", role: "option", id: `difflora-file-${index}`, title: name, click: () => take(name) }, ...pathParts(name)),
    ));
    note.textContent = !all.length ? say("noLoras") : !found.length ? say("nothingFits") : found.length > SHOWN ? say("moreFiles", found.length - SHOWN) : "";
    mark(0);
  };
  panel.addEventListener("keydown", (event) => {
    event.stopPropagation(); // typing must not reach the canvas
    const to = { ArrowDown: current + 1, ArrowUp: current - 1, PageDown: current + 8, PageUp: current - 8 }[event.key];
    if (event.key === "Escape" || event.key === "Tab") close();
    else if (to !== undefined) mark(to);
    else if (event.key === "Enter") /** @type {HTMLElement | undefined} */ (list.children[current])?.click();
    else return;
    event.preventDefault();
  });
  for (const type of ["keyup", "wheel", "contextmenu"]) panel.addEventListener(type, (event) => event.stopPropagation());
  const close = openPopup(panel, at, back);
  search.focus();
  all = await files;
  fill();
};

/** A file's folder and its name, which is the part that is read first. @param {string} name */
export const pathParts = (name) => {
  const [, folder, base] = /^(.*[\\/])?([^\\/]*)$/s.exec(name) ?? [];
  return [el("span", { class: "folder", text: folder ?? "" }), el("span", { class: "base", text: (base ?? name).replace(/\.safetensors$/, "") })];
};
