// @ts-check
/**
 * Notes and titles of the pack's own workflows in the user's language. The files are English; a paragraph, a group's or a
 * node's title that stands in `locales/<language>/main.json` under "diffloraWorkflows" is put in its place when the file is
 * opened. What somebody has changed stands there no longer, and stays.
 */

/** @typedef {{ type?: unknown, title?: unknown, widgets_values?: unknown }} SavedNode */

/** A note, paragraph by paragraph. @param {string} note @param {Record<string, string>} texts */
export const translateNote = (note, texts) =>
  note
    .split(/\r?\n\r?\n/)
    .map((paragraph) => own(texts, paragraph.trim()) ?? paragraph)
    .join("\n\n");

/** @param {SavedNode} node @returns {unknown[]} where its text is, first */
const values = (node) => (node.type === "MarkdownNote" && Array.isArray(node.widgets_values) ? node.widgets_values : []);

/** In place. Leaves alone what is not a workflow of the pack: "Video" is a title in others too. @param {any} workflow as it is saved @param {Record<string, string>} texts */
export const translateWorkflow = (workflow, texts) => {
  /** @type {SavedNode[]} */
  const nodes = Array.isArray(workflow?.nodes) ? workflow.nodes : [];
  const heading = (/** @type {SavedNode} */ node) => String(values(node)[0] ?? "").split(/\r?\n/, 1)[0];
  if (!nodes.some((node) => heading(node).startsWith("# ") && own(texts, heading(node)) !== null)) return;
  for (const node of nodes) {
    const [text] = values(node);
    if (typeof text === "string") values(node)[0] = translateNote(text, texts);
    node.title = translated(node.title, texts);
    if (node.title === undefined) delete node.title;
  }
  for (const group of Array.isArray(workflow.groups) ? workflow.groups : []) group.title = translated(group.title, texts);
};

/** @param {unknown} title @param {Record<string, string>} texts */
const translated = (title, texts) => (typeof title === "string" ? (own(texts, title) ?? title) : title);

/** @param {Record<string, string>} texts @param {string} text @returns {string | null} */
const own = (texts, text) => (Object.hasOwn(texts, text) && typeof texts[text] === "string" ? texts[text] : null);
