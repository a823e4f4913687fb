// @ts-check
/** A small menu at the pointer. ComfyUI's own menus draw names as HTML; this one sets text, and can be used by keys. */
import { el, used } from "./dom.js";

/** @typedef {{ text: string, act: () => void, disabled?: boolean, checked?: boolean }} Item */

/** @type {(() => void) | null} */
let closeOpen = null;

/** @param {{ clientX: number, clientY: number }} at @param {(Item | null)[]} items null draws a line @param {HTMLElement} [back] gets the focus afterwards */
export const openMenu = (at, items, back) => {
  closeOpen?.();
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
  const close = () => {
    closeOpen = null;
    menu.remove();
    window.removeEventListener("pointerdown", outside, true);
    back?.focus({ preventScroll: true });
  };
  const outside = (/** @type {PointerEvent} */ event) => {
    if (!menu.contains(/** @type {Element} */ (event.target))) close();
  };
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
  document.body.append(menu);
  const { width, height } = menu.getBoundingClientRect();
  menu.style.left = `${Math.max(4, Math.min(at.clientX, innerWidth - width - 4))}px`;
  menu.style.top = `${Math.max(4, Math.min(at.clientY, innerHeight - height - 4))}px`;
  window.addEventListener("pointerdown", outside, true);
  closeOpen = close;
  choices()[0]?.focus();
};

/** Where a menu opens that was requested by a key or a button. @param {Element} element */
export const below = (element) => {
  const { left, bottom } = element.getBoundingClientRect();
  return { clientX: left, clientY: bottom + 2 };
};
