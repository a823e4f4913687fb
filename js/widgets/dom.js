// @ts-check
/** Making elements. Text is always set as text: names and reports come from files that anyone may have made. */

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, string | number | boolean | ((event: any) => void)>} attributes class, text, aria-…; functions are event listeners
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export const el = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "text") element.textContent = String(value);
    else if (value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children);
  return element;
};

/** An SVG element. @param {string} tag @param {Record<string, string | number>} attributes @param {...Node} children */
export const svg = (tag, attributes = {}, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = String(value);
    else element.setAttribute(name, String(value));
  }
  element.append(...children);
  return element;
};

/** The canvas must not react to keys and clicks that a control has used. @param {Event} event */
export const used = (event) => {
  event.preventDefault();
  event.stopPropagation();
};

/** Typing in a field must not reach the canvas: Delete would remove the node. @param {HTMLElement} field */
export const keepKeys = (field) => {
  field.addEventListener("keydown", (event) => event.stopPropagation());
  return field;
};

/** @type {HTMLElement | null} */
let tip = null;

/** Show lines of text next to an element, readable at any zoom of the canvas. @param {Element} target @param {string[]} lines */
export const showTip = (target, lines) => {
  if (!tip) {
    tip = el("div", { class: "difflora-tip", role: "tooltip", id: "difflora-tip" });
    document.body.append(tip);
  }
  tip.replaceChildren(...lines.map((line, index) => el("div", { class: index ? "more" : "first", text: line })));
  tip.hidden = false;
  const at = target.getBoundingClientRect();
  const size = tip.getBoundingClientRect();
  const left = at.right + 8 + size.width < innerWidth ? at.right + 8 : at.left - size.width - 8;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(innerHeight - size.height - 4, at.top + at.height / 2 - size.height / 2))}px`;
};

export const hideTip = () => {
  if (tip) tip.hidden = true;
};

/** A picture over the whole page, until Escape or a click. @param {string} url @param {string} label */
export const showLarge = (url, label) => {
  const dialog = el("dialog", { class: "difflora-large", "aria-label": label, click: () => dialog.close(), close: () => dialog.remove() }, el("img", { src: url, alt: label }));
  dialog.addEventListener("keydown", (event) => event.stopPropagation()); // Escape closes it; no key reaches the canvas
  document.body.append(dialog);
  dialog.showModal();
};
