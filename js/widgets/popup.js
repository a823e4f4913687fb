// @ts-check
/** A panel at a place on the page: one at a time, and closed by a press outside it. */

/** @type {(() => void) | null} */
let closeOpen = null;

/**
 * Show an element on the page, moved so that all of it can be seen.
 * @param {HTMLElement} panel @param {{ clientX: number, clientY: number }} at @param {HTMLElement} [back] gets the focus afterwards
 * @returns {() => void} closes it; calling it again does no harm
 */
export const openPopup = (panel, at, back) => {
  closeOpen?.();
  const close = () => {
    if (closeOpen !== close) return;
    closeOpen = null;
    panel.remove();
    window.removeEventListener("pointerdown", outside, true);
    back?.focus({ preventScroll: true });
  };
  const outside = (/** @type {PointerEvent} */ event) => {
    if (!panel.contains(/** @type {Element} */ (event.target))) close();
  };
  document.body.append(panel);
  const { width, height } = panel.getBoundingClientRect();
  panel.style.left = `${Math.max(4, Math.min(at.clientX, innerWidth - width - 4))}px`;
  panel.style.top = `${Math.max(4, Math.min(at.clientY, innerHeight - height - 4))}px`;
  window.addEventListener("pointerdown", outside, true);
  closeOpen = close;
  return close;
};

/** Where a panel opens that was requested by a key or a button. @param {Element} element */
export const below = (element) => {
  const { left, bottom } = element.getBoundingClientRect();
  return { clientX: left, clientY: bottom + 2 };
};
