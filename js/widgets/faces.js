// @ts-check
/** Which widget is on which node, and what it reads and writes there. */
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { idleForUnit } from "../lib/choices.js";
import { fedBySweep, filesBefore, isLinked, makersOf, sourcesOf, widgetOf } from "../lib/graph.js";
import { modulesBefore } from "../lib/modules.js";
import { viewPath } from "../lib/player.js";
import { fileFor, readRack } from "../lib/rack.js";
import { idle, isOtherCut } from "../lib/spectrum.js";
import { rangeText, remembered } from "../lib/strength.js";
import { say } from "../lib/words.js";
import { blockGrid } from "./block_grid.js";
import { blockTiles } from "./block_tiles.js";
import { asOneStep, encode, saveSlider, savesBehind, setWidget, useStrength } from "./deeds.js";
import { showLarge } from "./dom.js";
import { afterwards, attach, field, hideWidgets, later, laterOn } from "./host.js";
import { mapView } from "./map_view.js";
import { pairView } from "./pair_view.js";
import { playerView } from "./player.js";
import { rackView } from "./rack_view.js";
import { reportView } from "./report.js";
import { askFacts, askHeader, factsAge, followNews, messageOf, pictureOf, reportOf } from "./said.js";
import { spectrumChart } from "./spectrum.js";
import { strengthSlider } from "./strength_slider.js";

/** @typedef {import("../../../scripts/app.js").Node} Node */

/** @param {Node} node */
const withGrid = (node) =>
  attach(node, "difflora_grid", 360, (changed) => {
    const [text] = ["selection", "rest"].map((name) => field(node, name, () => {
      changed();
      laterOn((other) => sourcesOf(other).includes(node));
    }));
    return blockGrid({
      read: () => String(text.read() ?? ""),
      write: text.write,
      linked: text.linked,
      lastRun: () => messageOf(node)?.selection ?? null,
      modules: () => modulesBefore(node, messageOf),
    });
  });

/** @param {Node} node */
const withTiles = (node) =>
  attach(node, "difflora_blocks", 300, (changed) => {
    const text = field(node, "blocks", changed);
    return blockTiles({ read: () => String(text.read() ?? ""), write: text.write, linked: text.linked });
  });

/** Where strengths are remembered by LoRA, in this browser. */
const REMEMBERED = "DifferentialLora.strengths";

/** @param {Node} node @param {number} [value] to remember */
const recall = (node, value) => recallFiles(filesBefore(node), value);

/** @param {string[]} files that a LoRA is made of @param {number} [value] to remember */
const recallFiles = (files, value) => {
  if (!files.length) return null;
  const { kept, value: found } = remembered(JSON.parse(localStorage.getItem(REMEMBERED) ?? "[]"), files.join(" − "), value);
  if (value !== undefined) localStorage.setItem(REMEMBERED, JSON.stringify(kept));
  return { name: files.map((file) => file.replace(/^.*[\\/]/, "").replace(/\.safetensors$/, "")).join(" − "), value: found };
};

/** @param {Node} node */
const withSlider = (node) => {
  attach(node, "difflora_strength", 300, (changed) => {
    const strength = field(node, "strength", changed);
    const on = widgetOf(node, "on") ? field(node, "on", changed) : null;
    return strengthSlider({
      read: () => Number(strength.read()) || 0,
      write: strength.write,
      linked: strength.linked,
      on: on && { read: () => on.read() !== false, write: on.write },
      recommended: () => rangeFor(node),
      asOneStep,
      remembered: () => recall(node),
      remember: (value) => void recall(node, value),
      more: () => [{ text: say("saveSlider"), act: () => saveSlider(node, rangeFor(node)?.range ?? null) }],
    });
  });
  const hideSwitch = () => hideWidgets(node, isLinked(node, "on") ? [] : ["on"]); // the one on the slider is enough
  const soon = () => setTimeout(hideSwitch);
  afterwards(node, "onConfigure", soon);
  afterwards(node, "onConnectionsChange", (_type, index, connected) => {
    soon();
    // A new slider on a LoRA starts where that one was left.
    if (!connected || app.configuringGraph || node.inputs?.[index]?.name !== "lora" || widgetOf(node, "strength")?.value !== 1) return;
    setTimeout(() => {
      const known = recall(node)?.value ?? null;
      if (known !== null && !isLinked(node, "strength")) setWidget(node, "strength", known);
    });
  });
  soon();
};

/** The rows are ordinary text, which is shown only on request. @param {Node} node */
const withRack = (node) => {
  let asText = false;
  const hideText = () => hideWidgets(node, asText || isLinked(node, "rows") ? [] : ["rows"]);
  attach(node, "difflora_rack", 340, (changed) => {
    const [rows, twin, ignoreUnknown] = ["rows", "twin", "ignore_unknown"].map((name) => field(node, name, changed));
    /** @type {Map<string, import("../lib/rack.js").Facts>} */
    let facts = new Map();
    let asked = "";
    const read = () => String(rows.read() ?? "");
    const model = () => (twin.linked() ? "as named" : String(twin.read()));
    /** Ask for what is not known of the files yet; their twins are known after the first answer. */
    const look = async () => {
      const named = readRack(read()).flatMap((row) => ("name" in row ? [row.name] : []));
      const names = [...new Set(named.flatMap((name) => [name, fileFor(name, facts.get(name), model()) ?? name]))];
      const unknown = ignoreUnknown.read() === true;
      const question = JSON.stringify([names, model(), unknown, factsAge(node)]);
      if (question === asked || !names.length) return;
      asked = question;
      const told = await askFacts(names, model(), unknown);
      if (!told || asked !== question) return;
      facts = told;
      laterOn((other) => other === node);
    };
    const view = rackView({
      read,
      write: rows.write,
      linked: rows.linked,
      model,
      facts: (name) => facts.get(name),
      files: async () => {
        const answer = await api.fetchApi("/models/loras");
        return answer.ok ? await answer.json() : [];
      },
      asOneStep,
      remembered: (name) => recallFiles([name])?.value ?? null,
      remember: (name, value) => void recallFiles([name], value),
      asText: {
        read: () => asText,
        write: (shown) => {
          asText = shown;
          hideText();
          changed();
        },
      },
    });
    return {
      ...view,
      refresh: () => {
        view.refresh();
        void look();
      },
    };
  });
  const soon = () => setTimeout(hideText);
  afterwards(node, "onConfigure", soon);
  afterwards(node, "onConnectionsChange", soon);
  soon();
};

/** @param {Node} node */
const withMap = (node) =>
  attach(node, "difflora_map", 300, (changed) => {
    const [steps, frames] = ["steps", "frames"].map((name) => field(node, name, changed));
    return mapView({ steps, frames, preview: () => messageOf(node)?.map ?? null });
  });

/** The range for a slider: measured by a Sweep Response on clips that it made, or else told by its file. @param {Node} node @returns {{ range: [number, number], measured: boolean } | null} */
const rangeFor = (node) => {
  for (const response of node.graph?.nodes ?? []) {
    if (/** @type {any} */ (response).comfyClass !== "DiffLoraSliderResponse") continue;
    const range = messageOf(/** @type {any} */ (response))?.strength_range;
    if (range && makersOf(/** @type {any} */ (response)).includes(node)) return { range, measured: true };
  }
  const range = messageOf(node)?.strength_range;
  return range ? { range, measured: false } : null;
};

/**
 * Show only those widgets of a node that count for what one of them says. To be called when its view is attached.
 * @param {Node} node @param {string} chooser @param {(chosen: unknown) => string[]} idleOf
 */
const showThoseThatCount = (node, chooser, idleOf) => {
  const show = () => hideWidgets(node, isLinked(node, chooser) ? [] : idleOf(widgetOf(node, chooser)?.value).filter((name) => !isLinked(node, name)));
  const soon = () => setTimeout(show); // a node that is being loaded has its values and wires a moment later
  afterwards(widgetOf(node, chooser), "callback", show);
  afterwards(node, "onConfigure", soon);
  afterwards(node, "onConnectionsChange", soon);
  soon();
};

/** @param {Node} node */
const withSpectrum = (node) => {
  attach(node, "difflora_spectrum", 340, (changed) => {
    const [rule, rank, energy, ratio, most] = ["rule", "rank", "energy", "ratio", "max_rank"].map((name) => field(node, name, changed));
    return spectrumChart({
      spectrum: () => messageOf(node)?.spectrum ?? null,
      rule: () => ({
        kind: String(rule.read()),
        rank: Number(rank.read()),
        energy: Number(energy.read()),
        ratio: Number(ratio.read()),
        most: Number(most.read()),
      }),
      writeRank: rank.write,
      linked: rank.linked,
      isOld: () => isOtherCut(messageOf(node)?.ran, { rule: rule.read(), rank: rank.read(), energy: energy.read(), ratio: ratio.read(), max_rank: most.read() }),
    });
  });
  showThoseThatCount(node, "rule", idle);
};

/** @param {Node} node */
const withReport = (node) => attach(node, "difflora_report", 300, () => reportView({ report: () => reportOf(node) }));

/** @param {Node} node */
const withUnit = (node) => {
  withReport(node);
  showThoseThatCount(node, "by", idleForUnit);
};

/** @param {Node} node */
const withResponse = (node) =>
  attach(node, "difflora_report", 300, () =>
    reportView({
      report: () => reportOf(node),
      actions: () => {
        const picture = pictureOf(node);
        const range = messageOf(node)?.strength_range;
        const saves = savesBehind(node);
        return [
          ...(picture ? [{ text: say("enlarge"), act: () => showLarge(api.apiURL(viewPath(picture)), node.title) }] : []),
          ...(range && saves.length ? [{ text: say("rangeToSave"), act: () => asOneStep(() => saves.forEach((save) => setWidget(save, "recommended_strength", rangeText(range)))) }] : []),
        ];
      },
    }),
  );

/** The file is read when it is picked, so that the nodes after it know its blocks before a run. @param {Node} node */
const withFile = (node) => {
  withReport(node);
  const look = async () => {
    if (!node.graph || isLinked(node, "lora_name") || !file.read()) return;
    if (await askHeader(node, "lora", { name: String(file.read()), ignore_unknown: String(ignoreUnknown.read() === true) })) later();
  };
  const soon = () => setTimeout(look); // a node that is being loaded has its values and wires a moment later
  const [file, ignoreUnknown] = ["lora_name", "ignore_unknown"].map((name) => field(node, name, soon));
  afterwards(node, "onConfigure", soon);
  soon();
};

/** Both files are read when one is picked. @param {Node} node */
const withPair = (node) => {
  const soon = () => setTimeout(look);
  const [a, b, ignoreUnknown] = ["lora_a", "lora_b", "ignore_unknown"].map((name) => field(node, name, soon));
  const linked = () => a.linked() || b.linked();
  const look = async () => {
    if (!node.graph || linked() || !a.read() || !b.read()) return;
    if (await askHeader(node, "pair", { a: String(a.read()), b: String(b.read()), ignore_unknown: String(ignoreUnknown.read() === true) })) later();
  };
  attach(node, "difflora_pair", 320, () =>
    pairView({
      pair: () => messageOf(node)?.pair ?? null,
      picked: () => [a, b].map(({ read }) => String(read() ?? "")),
      linked,
      picture: ({ name, folder }) => api.apiURL(`/experiment/models/preview/loras/${folder}/${encodeURIComponent(name)}`),
      swap: () => asOneStep(() => {
        const [one, other] = [a.read(), b.read()];
        a.write(other);
        b.write(one);
      }),
      take: (name) => asOneStep(() => b.write(name)),
      takeBoth: ([one, other]) => asOneStep(() => {
        a.write(one);
        b.write(other);
      }),
    }),
  );
  afterwards(node, "onConfigure", soon);
  soon();
};

/** Shows nothing until something goes wrong. @param {Node} node */
const withProblems = (node) =>
  attach(node, "difflora_report", 0, () => reportView({ report: () => reportOf(node), quiet: "problems" }), 0);

/** @param {Node} node */
const withPlayer = (node) =>
  attach(node, "difflora_player", 460, () =>
    playerView({
      player: () => {
        const message = messageOf(node);
        if (message?.waiting) followNews(node, () => laterOn((other) => other === node));
        return message?.player ?? null;
      },
      url: (video) => api.apiURL(viewPath(video)),
      usable: () => fedBySweep(node).length > 0,
      use: (strength) => useStrength(node, strength),
      encode,
    }),
  );

/** @type {Record<string, (node: Node) => void>} */
export const FACES = {
  DiffLoraLoad: withFile,
  DiffLoraLoadPair: withPair,
  DiffLoraSubtract: withReport,
  DiffLoraAnalyze: withReport,
  DiffLoraSave: withReport,
  DiffLoraExtract: withReport,
  DiffLoraPurify: withReport,
  DiffLoraIndependent: withReport,
  DiffLoraCalibrate: withUnit,
  DiffLoraSliderResponse: withResponse,
  DiffLoraLoadCheckpoints: withReport,
  DiffLoraCompareCheckpoints: withReport,
  DiffLoraCheckPairs: withReport,
  DiffLoraTrainingRecipe: withReport,
  DiffLoraEncodePairs: withReport,
  DiffLoraTrainSlider: withReport,
  DiffLoraEmptyText: withProblems,
  DiffLoraImageFolder: withProblems,
  DiffLoraSavePair: withProblems,
  DiffLoraStrengthSweep: withProblems,
  DiffLoraSelectBlocks: withGrid,
  DiffLoraRerank: withSpectrum,
  DiffLoraSliderMap: withMap,
  DiffLoraSliderModel: withSlider,
  DiffLoraSliderWanVideo: withSlider,
  DiffLoraMappedSliderWanVideo: withSlider,
  DiffLoraSliderRack: withRack,
  DiffLoraSliderRackWanVideo: withRack,
  DiffLoraSweepGrid: withPlayer,
  DiffLoraABCompare: withPlayer,
  DiffLoraBlockToggle: withTiles,
  DiffLoraBlockToggleWanVideo: withTiles,
};
