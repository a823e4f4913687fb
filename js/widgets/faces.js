// @ts-check
/** Which widget is on which node, and what it reads and writes there. */
import { api } from "../../../scripts/api.js";
import { sourcesOf } from "../lib/graph.js";
import { modulesBefore } from "../lib/modules.js";
import { viewPath } from "../lib/player.js";
import { blockGrid } from "./block_grid.js";
import { blockTiles } from "./block_tiles.js";
import { attach, field, laterOn } from "./host.js";
import { mapView } from "./map_view.js";
import { playerView } from "./player.js";
import { reportView } from "./report.js";
import { messageOf, reportOf } from "./said.js";
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

/** @param {Node} node */
const withSlider = (node) =>
  attach(node, "difflora_strength", 300, (changed) => {
    const strength = field(node, "strength", changed);
    return strengthSlider({
      read: () => Number(strength.read()) || 0,
      write: strength.write,
      linked: strength.linked,
      recommended: () => messageOf(node)?.strength_range ?? null,
    });
  });

/** @param {Node} node */
const withMap = (node) =>
  attach(node, "difflora_map", 300, (changed) => {
    const [steps, frames] = ["steps", "frames"].map((name) => field(node, name, changed));
    return mapView({ steps, frames, preview: () => messageOf(node)?.map ?? null });
  });

/** @param {Node} node */
const withSpectrum = (node) =>
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
    });
  });

/** @param {Node} node */
const withReport = (node) => attach(node, "difflora_report", 300, () => reportView({ report: () => reportOf(node) }));

/** Nothing, until something has gone wrong. @param {Node} node */
const withProblems = (node) =>
  attach(node, "difflora_report", 0, () => reportView({ report: () => reportOf(node), quiet: "problems" }), 0);

/** @param {Node} node */
const withPlayer = (node) =>
  attach(node, "difflora_player", 460, () =>
    playerView({ player: () => messageOf(node)?.player ?? null, url: (video) => api.apiURL(viewPath(video)) }),
  );

/** @type {Record<string, (node: Node) => void>} */
export const FACES = {
  DiffLoraLoad: withReport,
  DiffLoraSubtract: withReport,
  DiffLoraAnalyze: withReport,
  DiffLoraSave: withReport,
  DiffLoraExtract: withReport,
  DiffLoraPurify: withReport,
  DiffLoraIndependent: withReport,
  DiffLoraCalibrate: withReport,
  DiffLoraSliderResponse: withReport,
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
  DiffLoraSweepGrid: withPlayer,
  DiffLoraABCompare: withPlayer,
  DiffLoraBlockToggle: withTiles,
  DiffLoraBlockToggleWanVideo: withTiles,
};
