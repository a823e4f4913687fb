// @ts-check
/**
 * Registers the pack's widgets, which show and edit the values of ordinary ComfyUI widgets. All state is in those, so
 * saved workflows, copy and paste, undo and API prompts work without this code.
 */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { labelNode, translateDefs } from "./lib/node_texts.js";
import { savedView } from "./lib/opening.js";
import { setWords } from "./lib/words.js";
import { translateWorkflow } from "./lib/workflow_texts.js";
import { el } from "./widgets/dom.js";
import { FACES } from "./widgets/faces.js";
import { heightsAreNoStep, later, replaceStale } from "./widgets/host.js";
import { askLastWords, forgetFacts, forgetFailures, keepSaid, rememberFailure } from "./widgets/said.js";

/** Texts of nodes in the user's language. @type {import("./lib/node_texts.js").NodeTexts} */
let nodeTexts = {};
/** Notes and titles of the pack's workflows in the user's language. @type {Record<string, string>} */
let workflowTexts = {};

/** What is being loaded, and where the page was looking before. @type {{ extra: unknown, scale: number, offset: number[] }} */
let loading = { extra: null, scale: 1, offset: [0, 0] };

/** Words in the user's language, from `locales/`. English is built in, so nothing is missing if this fails. */
const loadWords = async () => {
  const language = app.ui.settings.getSettingValue("Comfy.Locale");
  if (!language || language === "en") return;
  const answer = await api.fetchApi("/i18n");
  if (!answer.ok) return;
  const all = await answer.json();
  const own = all[language] ?? all[language.split("-")[0]];
  setWords(own?.difflora, own?.diffloraSentences, own?.diffloraErrors);
  nodeTexts = own?.nodeDefs ?? {};
  workflowTexts = own?.diffloraWorkflows ?? {};
};

app.registerExtension({
  name: "DifferentialLora",
  async init() {
    document.head.append(el("link", { rel: "stylesheet", href: new URL("./difflora.css", import.meta.url).href }));
    await loadWords();
  },
  setup() {
    for (const type of ["keydown", "keyup"]) window.addEventListener(type, heightsAreNoStep, true);
    api.addEventListener("execution_start", () => {
      forgetFailures();
      later();
    });
    api.addEventListener("execution_cached", async ({ detail }) => {
      if (await askLastWords(String(detail.prompt_id))) later();
    });
    api.addEventListener("executed", ({ detail }) => keepSaid(String(detail.display_node ?? detail.node), detail.output));
    api.addEventListener("execution_error", ({ detail }) => {
      rememberFailure(String(detail?.node_id), String(detail.exception_message ?? "").trim());
      later();
    });
  },
  addCustomNodeDefs(defs) {
    translateDefs(defs, nodeTexts);
  },
  beforeConfigureGraph(/** @type {any} */ workflow) {
    translateWorkflow(workflow, workflowTexts);
    const { scale, offset } = app.canvas.ds;
    loading = { extra: workflow?.extra, scale, offset: [...offset] };
  },
  nodeCreated(/** @type {any} */ node) {
    labelNode(node, nodeTexts);
    FACES[node.comfyClass]?.(node);
  },
  refreshComboInNodes() {
    forgetFacts();
    later();
  },
  afterConfigureGraph() {
    const view = savedView(loading.extra, loading, app.canvas.ds);
    if (view) {
      app.canvas.ds.scale = view.scale;
      app.canvas.ds.offset = view.offset;
      app.canvas.setDirty(true, true);
    }
    later();
    // Two frames: by then Vue has redrawn what it redraws.
    requestAnimationFrame(() => requestAnimationFrame(replaceStale));
  },
});
