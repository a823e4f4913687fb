// @ts-check
/**
 * A node's report after a run: a few lines that can be copied, with problems highlighted. On nodes with another widget it
 * has no title and is hidden before the first run, and on some it shows only problems.
 */
import { retell, say } from "../lib/words.js";
import { el } from "./dom.js";

const SIGNS = { info: "", warning: "!", error: "×" };

/** @typedef {{ text: string, act: () => void }} Action */

/** @param {{ report: () => import("../lib/messages.js").Report | null, quiet?: "lines" | "problems", isOld?: () => boolean, actions?: () => Action[] }} host isOld: the widget above shows something newer; actions: what can be done with the result */
export const reportView = (host) => {
  const title = el("span", { class: "title" });
  const copy = el("button", { type: "button", class: "chip", text: say("copy"), click: async () => {
    const report = host.report();
    if (!report) return;
    const text = [retell(report.title), ...report.lines.map((line) => (line.level === "info" ? retell(line) : `${say(line.level)}: ${retell(line)}`))].join("\n");
    await writeClipboard(text, element);
    copy.textContent = say("copied");
    setTimeout(() => (copy.textContent = say("copy")), 1500);
  } });
  const list = el("ul", { class: "lines" });
  const actions = el("span", { class: "pair" });
  const top = el("div", { class: "top" }, title, actions, copy);
  const empty = el("div", { class: "empty", text: say("noReport") });
  const element = el("div", { class: host.quiet ? "difflora difflora-report quiet" : "difflora difflora-report", role: "region", "aria-label": say("report"), "aria-live": "polite", tabindex: "0" }, empty, top, list);

  const refresh = () => {
    const report = host.report();
    const lines = report?.lines.filter(({ level }) => host.quiet !== "problems" || level !== "info") ?? [];
    empty.hidden = Boolean(report) || Boolean(host.quiet);
    element.hidden = Boolean(host.quiet) && !lines.length;
    top.hidden = !report || Boolean(host.quiet);
    list.hidden = !report;
    if (!report) return;
    actions.replaceChildren(...(host.actions?.() ?? []).map(({ text, act }) => el("button", { type: "button", class: "chip", text, click: act })));
    title.textContent = retell(report.title);
    title.title = title.textContent;
    const heading = host.isOld?.() && lines.length ? [el("li", { class: "old", text: say("lastRun") })] : [];
    list.replaceChildren(...heading, ...lines.map((line) => {
      const sign = SIGNS[line.level] ? [el("span", { class: "sign", role: "img", "aria-label": say(line.level), text: SIGNS[line.level] })] : [];
      return el("li", { class: line.level }, ...sign, el("span", { text: retell(line) }));
    }));
  };
  return { element, refresh, isReport: true };
};

/** The clipboard needs https or localhost; elsewhere the old way of a selected text field still works. @param {string} text @param {HTMLElement} near */
const writeClipboard = async (text, near) => {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = el("textarea", { class: "offscreen" });
  field.value = text;
  near.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
};
