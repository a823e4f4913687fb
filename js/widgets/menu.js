// @ts-check
/** A small menu at the pointer. ComfyUI's own menus draw names as HTML; this one sets text, and can be used by keys. */
import { el, used } from "./dom.js";
import { openPopup } from "./popup.js";

/** @typedef {{ text: string, act: () => void, disabled?: boolean, checked?: boolean }} Item */

/** @param {{ clientX: number, clientY: number }} at @param {(Item | null)[]} items null draws a line @param {HTMLElement} [back] gets the focus afterwards */
export const openMenu = (at, items, back) => {
  const buttons = items.map((item) =>
    item
      ? el("button", {
          type: "button", role: item.checked === undefined ? "menuitem" : "menuitemcheckbox", tabindex: "-1", text: item.text, disabled: Boolean(item.disabled),
          ...(item.checked === undefined ? {} : { "aria-checked": String(item.checked) }),
          click: () => {
            close();
            item.act();
          },
        })
      : el("hr", {}),
  );
  const menu = el("div", { class: "difflora difflora-menu", role: "menu", tabindex: "-1" }, ...buttons);
  const choices = () => /** @type {HTMLButtonElement[]} */ (buttons.filter((button) => button instanceof HTMLButtonElement && !button.disabled));
  menu.addEventListener("keydown", (event) => {
    const list = choices();
    const here = list.indexOf(/** @type {HTMLButtonElement} */ (document.activeElement));
    const next = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: -1 }[event.key];
    if (event.key === "Escape" || event.key === "Tab") close();
    else if (next !== undefined) list.at(next % list.length)?.focus();
    else if (event.key === "Enter" || event.key === " ") /** @type {HTMLElement} */ (document.activeElement).click();
    used(event);
  });
  menu.addEventListener("contextmenu", used);
  const close = openPopup(menu, at, back);
  choices()[0]?.focus();
};
