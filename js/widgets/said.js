// @ts-check
/** What nodes said in their last run, as ComfyUI's page keeps it, and what went wrong in it. */
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { nodeOfRun, nodesByRunId } from "../lib/graph.js";
import { readMessage } from "../lib/messages.js";
import { readFacts } from "../lib/rack.js";
import { retellError } from "../lib/words.js";

/** @typedef {import("../../../scripts/app.js").Node} Node */

/** Messages that have been checked already: they can be large, and are asked for whenever a widget is drawn. @type {WeakMap<object, ReturnType<typeof readMessage>>} */
const read = new WeakMap();

/** What went wrong in the last run, by node. @type {WeakMap<Node, string>} */
let failures = new WeakMap();

/** Where the page keeps a node's output. @param {import("../lib/graph.js").Node} node */
const placeOf = ({ id, graph }) => (graph && graph !== graph.rootGraph && graph.id ? `${graph.id}:${id}` : String(id));

/** What a node said in its last run. @param {import("../lib/graph.js").Node & { diffloraOutput?: any }} node */
export const messageOf = (node) => {
  if (!node) return null;
  const outputs = app.nodeOutputs ?? {};
  const raw = (outputs[placeOf(node)] ?? outputs[String(node.id)] ?? node.diffloraOutput)?.difflora;
  if (typeof raw !== "object" || raw === null) return null;
  if (!read.has(raw)) read.set(raw, readMessage(raw));
  return read.get(raw) ?? null;
};

/** The picture that a node showed in its last run. @param {Node} node @returns {import("../lib/player.js").VideoFile | null} */
export const pictureOf = (node) => {
  const [picture] = app.nodeOutputs?.[placeOf(node)]?.images ?? [];
  return picture?.filename ? { filename: String(picture.filename), subfolder: String(picture.subfolder ?? ""), type: String(picture.type ?? "temp") } : null;
};

/** The report of a node's last run; if that failed, why. @param {Node} node @returns {import("../lib/messages.js").Report | null} */
export const reportOf = (node) => {
  const failure = failures.get(node);
  if (failure) return { title: { text: node.title ?? "" }, lines: [{ text: retellError(failure), level: "error" }] };
  return messageOf(node)?.report ?? null;
};

/** A run begins: forget what went wrong before. */
export const forgetFailures = () => (failures = new WeakMap());

/** @param {Node} node */
export const forgetFailure = (node) => failures.delete(node);

/** @param {string} id the node's, in the run @param {string} text */
export const rememberFailure = (id, text) => {
  const node = nodeOfRun(app.graph, id);
  if (node) failures.set(node, text);
};

/** Record a message of a node that did not come with a run. @param {Node} node @param {unknown} message */
const say = (node, message) => {
  const output = { ...app.nodeOutputs?.[placeOf(node)], difflora: [message] };
  node.diffloraOutput = output;
  if (app.nodeOutputs) app.nodeOutputs[placeOf(node)] = output;
  keepForUndo(node, output);
};

/**
 * Keep what a node has said where ComfyUI looks after an undo. It keeps outputs there itself, but under the ids of the nodes
 * that a sweep was expanded into, and neither what came with no run nor what came before it knew of the run.
 * @param {Node} node @param {unknown} output
 */
const keepForUndo = (node, output) => {
  const tracker = /** @type {any} */ (app.extensionManager)?.workflow?.activeWorkflow?.changeTracker;
  if (!tracker) return;
  tracker.nodeOutputs ??= { ...app.nodeOutputs };
  tracker.nodeOutputs[placeOf(node)] = output;
};

/** A node has been executed. @param {string} id of the node that shows it, in the run @param {any} output */
export const keepSaid = (id, output) => {
  const node = nodeOfRun(app.graph, id);
  if (!node?.comfyClass?.startsWith("DiffLora") || !output?.difflora) return;
  keepForUndo(node, output);
  if (output.images) forgetPreview(id);
};

/**
 * A node has its result: its last live preview goes. Vue's nodes would show the two below each other until the next run.
 * ComfyUI's page has no public door to previews; where its store is not found, both stay. @param {string} id of the node, in the run
 */
const forgetPreview = (id) => {
  const page = /** @type {any} */ (document.getElementById("vue-app"))?.__vue_app__;
  page?.config.globalProperties.$pinia?._s?.get("nodeOutput")?.revokePreviewsByExecutionId?.(id);
};

/**
 * Ask the server what nodes said when they were last given the same: ComfyUI sends nothing for a cached node to a page that was
 * loaded anew, or to a second one. Which nodes are cached is not asked: those inside a sweep run under other ids, and ComfyUI
 * names none of them. What the page has already is not sent again.
 * @param {string} promptId @returns {Promise<boolean>} whether anything is new
 */
export const askLastWords = async (promptId) => {
  const nodes = new Map(nodesByRunId(app.graph).filter(([, node]) => node.comfyClass?.startsWith("DiffLora")));
  if (!nodes.size) return false;
  const before = new Map([...nodes.values()].map((node) => [node, messageOf(node)]));
  const had = Object.fromEntries([...nodes].map(([id, node]) => [id, before.get(node)?.key ?? ""]));
  const answer = await api.fetchApi("/differential_lora/last_words", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ prompt_id: promptId, nodes: had }),
  });
  if (!answer.ok) return false;
  const told = Object.entries(await answer.json());
  for (const [id, message] of told) {
    const node = nodes.get(id);
    if (!node || messageOf(node) !== before.get(node)) continue; // it has run in the meantime: its own message is newer
    const images = readMessage(message)?.pictures;
    // ComfyUI shows pictures itself: it is told about them as after a run.
    if (images) api.dispatchCustomEvent("executed", { node: id, display_node: id, prompt_id: promptId, output: { images, difflora: [message] } });
    else say(node, message);
  }
  return told.length > 0;
};

/** What each node was last asked about. @type {WeakMap<Node, string>} */
const asked = new WeakMap();

/**
 * Ask the server what is in the files that a node has picked. @param {Node} node
 * @param {"lora" | "pair"} about @param {Record<string, string>} picked names of files, and how to read them
 * @returns {Promise<boolean>} whether the node says something new
 */
export const askHeader = async (node, about, picked) => {
  const question = `${about}?${new URLSearchParams(picked)}`;
  if (asked.get(node) === question) return false;
  asked.set(node, question);
  const before = messageOf(node);
  const answer = await api.fetchApi(`/differential_lora/${question}`);
  const told = answer.ok || answer.status === 422 ? await answer.json() : null;
  // Another file has been picked in the meantime, or a run has said something newer.
  if (!told || asked.get(node) !== question || messageOf(node) !== before) return false;
  forgetFailure(node);
  say(node, told.error ? { report: { title: picked.name ?? "", lines: [{ text: retellError(String(told.error)), level: "error" }] } } : told);
  return true;
};

/** How often the lists of files have been read again. */
let refreshes = 0;

/** The files on the disk may have changed. */
export const forgetFacts = () => void (refreshes += 1);

/** Changes when what is known of files may be out of date: after a refresh of the lists, and after a run of the node. @param {Node} node */
export const factsAge = (node) => [refreshes, messageOf(node)?.key ?? ""];

/** Ask the server what it knows of files. @param {string[]} names @param {string} twin @param {boolean} ignoreUnknown */
export const askFacts = async (names, twin, ignoreUnknown) => {
  const answer = await api.fetchApi("/differential_lora/rack", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ names, twin, ignore_unknown: ignoreUnknown }),
  });
  return answer.ok ? readFacts(await answer.json()) : null;
};

/** Milliseconds between two questions. */
const [SOON, LATE] = [2000, 15_000];

/** Grids that are being followed. @type {WeakSet<Node>} */
const followed = new WeakSet();

/**
 * Ask the server for clips of other servers, for as long as the node's last message waits for some. The run does not wait
 * for them, and may be over. @param {Node} node @param {() => void} changed
 */
export const followNews = async (node, changed) => {
  if (followed.has(node)) return;
  followed.add(node);
  for (let pause = SOON; ; ) {
    await new Promise((resolve) => setTimeout(resolve, pause));
    const waiting = messageOf(node)?.waiting;
    if (!waiting || !node.graph) break;
    if (document.hidden) continue;
    // Without an answer, the server is down and is asked again later; a restarted server knows nothing of the run.
    const answer = await api.fetchApi(`/differential_lora/sweep?${new URLSearchParams({ waiting })}`).catch(() => null);
    if (answer?.status === 404) break;
    const told = answer?.ok ? await answer.json() : {};
    const isNews = Object.keys(told).length > 0;
    pause = isNews ? SOON : Math.min(LATE, 1.5 * pause);
    // A run may have said something newer in the meantime.
    if (!isNews || messageOf(node)?.waiting !== waiting) continue;
    say(node, told);
    changed();
  }
  followed.delete(node);
};
