// @ts-check
/** Texts of nodes in the user's language, where the frontend does not translate them itself. */

/** @typedef {Record<string, any>} NodeTexts `locales/<language>/nodeDefs.json`: id -> names and tooltips */

/** Older frontends (1.32) lose the translations of packs when they load their own. @param {Record<string, any>} defs @param {NodeTexts} texts */
export const translateDefs = (defs, texts) => {
  for (const [id, own] of Object.entries(texts)) {
    const def = id.startsWith("DiffLora") ? defs[id] : null;
    if (!def) continue;
    Object.assign(def, { display_name: own.display_name, description: own.description });
    for (const group of [def.input?.required, def.input?.optional]) {
      for (const [name, spec] of Object.entries(group ?? {})) {
        const text = own.inputs?.[name];
        if (text) spec[1] = { ...spec[1], display_name: text.name, tooltip: text.tooltip };
      }
    }
    for (const [index, text] of Object.entries(own.outputs ?? {})) {
      if (text.name && def.output_name) def.output_name[index] = text.name;
      if (text.tooltip && def.output_tooltips) def.output_tooltips[index] = text.tooltip;
    }
  }
};

/** The same for a node's labels that still show the id. @param {import("./graph.js").Node} node @param {NodeTexts} texts */
export const labelNode = (node, texts) => {
  const own = texts[node.comfyClass ?? ""];
  if (!own) return;
  for (const widget of node.widgets ?? []) {
    const text = own.inputs?.[widget.name]?.name;
    if (text && (!widget.label || widget.label === widget.name)) widget.label = text;
    if (text && widget.element?.placeholder === widget.name) widget.element.placeholder = text;
  }
  for (const input of node.inputs ?? []) {
    const text = own.inputs?.[input.name]?.name;
    if (text && (!input.localized_name || input.localized_name === input.name)) input.localized_name = text;
  }
};
