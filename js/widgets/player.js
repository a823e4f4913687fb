// @ts-check
/**
 * The A/B player. All clips are cells of one video's frames, so they always play in sync, and switching the strength only shows
 * another part of the current frame. (While a sweep is being rendered, each clip has its own video.)
 */
import { FORMATS, GAINS, MODES, SPEEDS, columnsFor, fileName, firstPair, frameAt, keyed, letter, shuffled, strengthOf, timeOf } from "../lib/player.js";
import { retellError, say } from "../lib/words.js";
import { el, used } from "./dom.js";
import { openMenu } from "./menu.js";
import { below } from "./popup.js";

/** @typedef {import("../lib/player.js").Player} Player */

/**
 * @typedef {object} Host
 * @property {() => Player | null} player
 * @property {(video: import("../lib/player.js").VideoFile) => string} url
 * @property {() => boolean} [usable] a strength can be handed to what the sweep feeds
 * @property {(strength: number) => string} [use] hands it over, and says what was done
 * @property {(view: Record<string, unknown>, moved: (share: number) => void, signal: AbortSignal) => Promise<Blob>} encode
 */

/** @param {Host} host */
export const playerView = (host) => {
  /** @type {Player | null} */
  let player = null;
  let known = "";
  /** @type {HTMLVideoElement[]} */
  let videos = [];
  /** @type {import("../lib/player.js").Mode} */
  let mode = "one";
  let [a, b] = [0, 0]; // places in `order`
  let wipe = 0.5;
  let gain = 4;
  let speed = 1;
  let loop = true;
  /** Which clip is at which place. @type {number[]} */
  let order = [];
  /** @type {"off" | "hidden" | "shown"} */
  let blind = "off";
  let ticking = 0;
  let chosen = false; // chosen by the user: more clips of the same sweep then leave the view as it is

  const canvas = el("canvas", { class: "screen", role: "img", tabindex: "-1" });
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
  const between = document.createElement("canvas");
  const nameA = el("span", { class: "name a" });
  const nameB = el("span", { class: "name b" });
  const stage = el("div", { class: "stage" }, canvas, nameA, nameB);
  const empty = el("div", { class: "empty", text: say("playerLater") });

  const chip = (/** @type {any} */ word, /** @type {() => void} */ act, /** @type {string} */ key, /** @type {string} */ text = say(word)) =>
    el("button", { type: "button", class: `chip ${word}`, text, title: `${say(word)} (${key})`, "aria-label": say(word), click: act });
  const modes = MODES.map((name) => chip(/** @type {any} */ ({ one: "playOne", wipe: "playWipe", difference: "playDifference", all: "playAll" })[name], () => act("mode", name), { one: "O", wipe: "W", difference: "D", all: "G" }[name]));
  const blindChip = chip("blind", () => act("blind", 0), "B");
  const chooseChip = chip("choose", () => act("choose", 0), "Enter");
  const largeChip = chip("large", () => act("large", 0), "F");
  const useChip = chip("use", () => act("use", 0), "U");
  const saveChip = chip("saveAs", () => openMenu(below(saveChip), savers(), saveChip), "S");
  saveChip.setAttribute("aria-haspopup", "menu");
  const swapChip = chip("swap", () => act("swap", 0), "X", "⇄");

  const scrubber = (/** @type {any} */ word, /** @type {(value: number) => void} */ changed) =>
    el("input", { type: "range", class: `range ${word}`, min: 0, max: 0, step: 1, value: 0, "aria-label": say(word), input: (event) => changed(Number(event.target.value)) });
  const chooseA = scrubber("clipShown", (value) => pick(value, b));
  const chooseB = scrubber("clipCompared", (value) => pick(a, value));
  const ticks = el("div", { class: "ticks", "aria-hidden": "true" });
  const keyA = el("span", { class: "key", text: say("left") });
  const rowA = el("label", { class: "line" }, keyA, el("span", { class: "track" }, chooseA, ticks));
  const rowB = el("label", { class: "line" }, el("span", { class: "key", text: say("right") }), el("span", { class: "track" }, chooseB), swapChip);

  const play = chip("play", () => act("play", 0), "Space", "▶");
  const back = chip("stepBack", () => act("step", -1), ",", "◂");
  const forth = chip("stepOn", () => act("step", 1), ".", "▸");
  const time = scrubber("frame", (value) => seek(value));
  const count = el("span", { class: "count" });
  const speedField = el("select", { class: "field", "aria-label": say("speed"), title: `${say("speed")} ([ ])`, change: (event) => setSpeed(Number(event.target.value)) }, ...SPEEDS.map((value) => el("option", { value, text: `${value}×` })));
  const gainField = el("select", { class: "field", "aria-label": say("gain"), title: say("gain"), change: (event) => {
    gain = Number(event.target.value);
    draw();
  } }, ...GAINS.map((value) => el("option", { value, text: `Δ ${value}×` })));
  const loopChip = chip("loop", () => act("loop", 0), "L", "↻");
  const verdict = el("div", { class: "verdict", role: "status", "aria-live": "polite" });

  const element = el(
    "div",
    { class: "difflora difflora-player", role: "group", "aria-label": say("player"), "aria-description": say("playerHelp"), tabindex: "0" },
    empty,
    el("div", { class: "bar" }, ...modes, el("span", { class: "gap" }), gainField, blindChip, chooseChip, largeChip),
    stage,
    rowA,
    rowB,
    el("div", { class: "line transport" }, play, back, forth, time, count, speedField, loopChip),
    el("div", { class: "line deeds" }, useChip, saveChip, verdict),
  );
  speedField.value = String(speed);
  gainField.value = String(gain);

  // What is seen

  const clipAt = (/** @type {number} */ place) => /** @type {Player} */ (player).clips[order[place] ?? 0];
  const nameOf = (/** @type {number} */ place) => {
    const { label, text, baseline } = clipAt(place);
    if (blind === "hidden") return letter(place);
    return [blind === "shown" ? `${letter(place)}:` : "", label, baseline ? `· ${say("baseline")}` : "", text ? `· ${text}` : ""].filter(Boolean).join(" ");
  };

  /** @param {CanvasRenderingContext2D} on @param {number} place @param {number} x @param {number} y @param {number} width @param {number} height */
  const paint = (on, place, x, y, width, height) => {
    const { video, box } = clipAt(place);
    const source = videos[video];
    if (source?.readyState >= 2) on.drawImage(source, ...box, x, y, width, height);
  };

  const draw = () => {
    if (!player) return;
    const [, , width, height] = clipAt(a).box;
    const columns = mode === "all" ? columnsFor(order.length, width, height) : 1;
    const rows = mode === "all" ? Math.ceil(order.length / columns) : 1;
    if (canvas.width !== columns * width || canvas.height !== rows * height) [canvas.width, canvas.height] = [columns * width, rows * height];
    if (mode === "one") paint(context, a, 0, 0, width, height);
    if (mode === "wipe") {
      paint(context, a, 0, 0, width, height);
      context.save();
      context.beginPath();
      context.rect(wipe * width, 0, width, height);
      context.clip();
      paint(context, b, 0, 0, width, height);
      context.restore();
      context.fillStyle = "#fff";
      context.fillRect(wipe * width - 1, 0, 2, height);
    }
    if (mode === "difference") {
      if (between.width !== width || between.height !== height) [between.width, between.height] = [width, height];
      const other = /** @type {CanvasRenderingContext2D} */ (between.getContext("2d", { alpha: false }));
      paint(other, a, 0, 0, width, height);
      other.globalCompositeOperation = "difference";
      paint(other, b, 0, 0, width, height);
      other.globalCompositeOperation = "source-over";
      context.drawImage(between, 0, 0);
      context.globalCompositeOperation = "lighter";
      for (let times = 1; times < gain; times *= 2) context.drawImage(canvas, 0, 0); // doubles
      context.globalCompositeOperation = "source-over";
    }
    if (mode === "all") drawAll(columns, width, height);
    const frame = frameAt(videos[0]?.currentTime ?? 0, player);
    if (document.activeElement !== time || videos[0]?.paused) time.value = String(frame);
    count.textContent = `${frame + 1}/${player.frames}`;
  };

  const drawAll = (/** @type {number} */ columns, /** @type {number} */ width, /** @type {number} */ height) => {
    context.fillStyle = "#121419";
    context.fillRect(0, 0, canvas.width, canvas.height);
    const size = Math.max(12, Math.round(width / 16));
    context.font = `600 ${size}px Inter, system-ui, sans-serif`;
    context.textBaseline = "middle";
    order.forEach((clip, place) => {
      const [x, y] = [(place % columns) * width, Math.floor(place / columns) * height];
      paint(context, place, x + 1, y + 1, width - 2, height - 2);
      const text = nameOf(place);
      context.fillStyle = "rgba(12, 14, 19, 0.72)";
      context.fillRect(x + 4, y + 4, Math.min(width - 8, context.measureText(text).width + size), size * 1.6);
      const marked = blind !== "hidden" && /** @type {Player} */ (player).clips[clip].baseline;
      context.fillStyle = marked ? "#f5a623" : "#f0f2f6";
      context.fillText(text, x + 4 + size / 2, y + 4 + size * 0.82, width - 8 - size);
      if (place === a) {
        context.strokeStyle = "#60a5fa";
        context.lineWidth = 3;
        context.strokeRect(x + 1.5, y + 1.5, width - 3, height - 3);
      }
    });
  };

  /** Names, marks and switches; the picture is draw()'s. */
  const show = () => {
    element.dataset.mode = mode;
    element.dataset.blind = blind;
    for (const part of [stage, rowA, rowB, ...element.querySelectorAll(".bar, .transport, .deeds .chip")]) /** @type {HTMLElement} */ (part).hidden = !player;
    empty.hidden = Boolean(player);
    if (!player) return;
    const pair = mode === "wipe" || mode === "difference";
    modes.forEach((button, index) => button.setAttribute("aria-pressed", String(MODES[index] === mode)));
    blindChip.setAttribute("aria-pressed", String(blind !== "off"));
    loopChip.setAttribute("aria-pressed", String(loop));
    chooseChip.hidden = blind !== "hidden";
    useChip.hidden = !canUse();
    useChip.title = useChip.hidden ? "" : `${say("useTip", clipAt(a).label)} (U)`;
    gainField.hidden = mode !== "difference";
    keyA.hidden = rowB.hidden = !pair;
    rowA.hidden = order.length < 2;
    nameA.hidden = mode === "all";
    nameB.hidden = !pair;
    [nameA.textContent, nameB.textContent] = mode === "difference" ? [`|${nameOf(a)} − ${nameOf(b)}|`, ""] : [nameOf(a), nameOf(b)];
    nameB.hidden ||= !nameB.textContent;
    const marked = (/** @type {number} */ place) => String(blind !== "hidden" && clipAt(place).baseline);
    nameA.dataset.baseline = mode === "difference" ? "false" : marked(a);
    nameB.dataset.baseline = marked(b);
    canvas.setAttribute("aria-label", pair ? say("showsPair", nameOf(a), nameOf(b)) : nameOf(a));
    for (const [input, place] of /** @type {[HTMLInputElement, number][]} */ ([[chooseA, a], [chooseB, b]])) {
      input.max = String(order.length - 1);
      input.value = String(place);
      input.setAttribute("aria-valuetext", nameOf(place));
    }
    time.max = String(player.frames - 1);
    const labels = order.map((clip, place) => (blind === "hidden" ? letter(place) : /** @type {Player} */ (player).clips[clip].label));
    ticks.replaceChildren(...labels.map((text, place) => el("button", {
      type: "button", tabindex: "-1", class: place === a ? "on" : "", "data-baseline": marked(place), text,
      style: `left: ${order.length > 1 ? (100 * place) / (order.length - 1) : 50}%`,
      click: () => pick(place, b),
    })));
    play.textContent = videos[0]?.paused === false ? "❚❚" : "▶";
    play.setAttribute("aria-label", say(videos[0]?.paused === false ? "pause" : "play"));
    speedField.value = String(speed);
  };

  // What is done

  const pick = (/** @type {number} */ nextA, /** @type {number} */ nextB) => {
    const last = order.length - 1;
    [a, b] = [Math.min(last, Math.max(0, nextA)), Math.min(last, Math.max(0, nextB))];
    chosen = true;
    draw();
    show();
  };
  const seek = (/** @type {number} */ frame) => {
    if (!player) return;
    for (const video of videos) {
      video.pause();
      video.currentTime = timeOf(frame, player);
    }
  };
  const setSpeed = (/** @type {number} */ value) => {
    speed = value;
    for (const video of videos) video.playbackRate = speed;
    show();
  };
  const start = () => {
    for (const video of videos) video.play().catch(() => show()); // The browser may require a click first; then it stays paused.
  };

  /** @param {string} what @param {number | string} amount */
  const act = (what, amount) => {
    if (!player) return;
    const by = Number(amount);
    if (what === "play") {
      if (videos[0].paused) start();
      else for (const video of videos) video.pause();
    }
    if (what === "step") seek(frameAt(videos[0].currentTime, player) + by);
    if (what === "a") pick(a + by, b);
    if (what === "b") pick(a, b + by);
    if (what === "show" && by < order.length) pick(by, b);
    if (what === "swap") pick(b, a);
    if (what === "speed") setSpeed(SPEEDS[Math.min(SPEEDS.length - 1, Math.max(0, SPEEDS.indexOf(speed) + by))]);
    if (what === "wipe") wipe = Math.min(1, Math.max(0, wipe + by));
    if (what === "mode") mode = /** @type {any} */ (amount);
    if (what === "loop") {
      loop = !loop;
      for (const video of videos) video.loop = loop;
    }
    if (what === "blind") setBlind(blind === "off");
    if (what === "choose" && blind === "hidden") {
      blind = "shown";
      const { label, text } = clipAt(a);
      verdict.textContent = say("chosen", letter(a), [label, text].filter(Boolean).join(" · "));
    }
    if (what === "use") return use();
    if (what === "save") return void handOver("png", download);
    if (what === "copy") return void handOver("png", copyPicture);
    if (what === "large") document.fullscreenElement ? document.exitFullscreen() : element.requestFullscreen?.();
    draw();
    show();
  };

  // What becomes of it

  const canUse = () => blind !== "hidden" && Boolean(host.usable?.()) && strengthOf(clipAt(a).label) !== null;

  const use = () => {
    const strength = canUse() ? strengthOf(clipAt(a).label) : null;
    if (strength !== null && host.use) verdict.textContent = host.use(strength);
  };

  /** What is seen, as the server is asked for it. @param {string} format */
  const view = (format) => {
    const { clips, videos: files, fps, frames } = /** @type {Player} */ (player);
    const places = mode === "all" ? order.map((_, place) => place) : mode === "one" ? [a] : [a, b];
    return {
      format, view: mode, wipe, gain: mode === "difference" ? gain : 1, fps, frames: format === "png" ? 1 : frames, frame: frameAt(videos[0].currentTime, /** @type {Player} */ (player)),
      clips: places.map((place) => {
        const clip = clips[order[place]];
        const [label, text] = blind === "hidden" ? [letter(place), ""] : [clip.label, clip.text];
        return { key: clip.key, video: files[clip.video].filename, box: clip.box, label, text, baseline: blind !== "hidden" && clip.baseline };
      }),
    };
  };

  /** @type {AbortController | null} */
  let encoding = null;

  /** @param {string} format @param {(blob: Promise<Blob>, name: string) => Promise<void>} hand */
  const handOver = async (format, hand) => {
    encoding?.abort();
    const own = (encoding = new AbortController());
    const asked = view(format);
    const name = fileName(asked.clips.map(({ label }) => label), mode, format, asked.frame);
    const moved = (/** @type {number} */ share) => (verdict.textContent = `${say("saving", name)} ${Math.round(100 * share)} %`);
    if (format !== "png") moved(0);
    try {
      await hand(host.encode(asked, moved, own.signal), name);
      verdict.textContent = say(hand === copyPicture ? "pictureCopied" : "saved", name);
    } catch (error) {
      verdict.textContent = own.signal.aborted ? say("stopped") : retellError(String(/** @type {Error} */ (error).message));
    } finally {
      if (encoding === own) encoding = null;
    }
  };

  const download = async (/** @type {Promise<Blob>} */ blob, /** @type {string} */ name) => {
    const address = URL.createObjectURL(await blob);
    el("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  };

  const copyPicture = async (/** @type {Promise<Blob>} */ blob) => {
    // The clipboard needs https or localhost.
    if (!navigator.clipboard?.write) throw new Error(say("noClipboard"));
    await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
  };

  /** @returns {import("./menu.js").Item[]} */
  const savers = () => [
    { text: say("saveFrame"), act: () => handOver("png", download) },
    { text: say("copyFrame"), act: () => handOver("png", copyPicture) },
    ...(/** @type {Player} */ (player).frames > 1 ? FORMATS.slice(1).map((format) => ({ text: say("saveClip", format), act: () => void handOver(format, download) })) : []),
    ...(encoding ? [{ text: say("stop"), act: () => encoding?.abort() }] : []),
  ];

  stage.addEventListener("contextmenu", (event) => {
    if (!player) return;
    used(event);
    const strength = canUse() ? [{ text: say("useTip", clipAt(a).label), act: use }, null] : [];
    openMenu(event, [...strength, ...savers()], element);
  });

  const setBlind = (/** @type {boolean} */ on) => {
    const size = order.length;
    blind = on ? "hidden" : "off";
    order = on ? shuffled(size) : Array.from({ length: size }, (_, index) => index);
    [a, b] = on ? [0, Math.min(1, size - 1)] : firstPair(/** @type {Player} */ (player).clips);
    verdict.textContent = on ? say("blindHelp") : "";
  };

  element.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = /** @type {HTMLElement} */ (event.target);
    const own = target instanceof HTMLInputElement || target instanceof HTMLSelectElement;
    // Arrows move the slider that has the focus, Space and Enter press the button that has it.
    if (own && /^Arrow|^Home$|^End$|^Page/.test(event.key)) return event.stopPropagation();
    if ((target instanceof HTMLButtonElement || target instanceof HTMLSelectElement) && (event.key === " " || event.key === "Enter")) return event.stopPropagation();
    const found = keyed(event.key, event.shiftKey);
    if (!found) return event.key === "Delete" || event.key === "Backspace" ? event.stopPropagation() : undefined;
    used(event);
    act(...found);
  });
  const drag = (/** @type {PointerEvent} */ event) => {
    const box = canvas.getBoundingClientRect();
    wipe = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    draw();
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !player) return;
    event.stopPropagation();
    element.focus({ preventScroll: true });
    if (mode === "all") {
      const [, , width, height] = clipAt(a).box;
      const box = canvas.getBoundingClientRect();
      const column = Math.floor(((event.clientX - box.left) / box.width) * (canvas.width / width));
      const row = Math.floor(((event.clientY - box.top) / box.height) * (canvas.height / height));
      const place = row * Math.round(canvas.width / width) + column;
      if (place < order.length) pick(place, b);
    } else if (mode === "wipe") {
      stage.setPointerCapture(event.pointerId);
      drag(event);
    } else act("play", 0);
  });
  stage.addEventListener("pointermove", (event) => {
    if (!stage.hasPointerCapture(event.pointerId)) return;
    used(event);
    drag(event);
  });

  // The videos

  const tick = () => {
    ticking = 0;
    if (!videos.length || videos[0].paused) return;
    const [first, ...others] = videos;
    // There are others only while a sweep is being rendered. They follow the first.
    for (const video of others) if (!video.seeking && Math.abs(video.currentTime - first.currentTime) > 0.6 / (player?.fps ?? 16)) video.currentTime = first.currentTime;
    draw();
    ticking = requestAnimationFrame(tick);
  };
  const close = () => {
    cancelAnimationFrame(ticking);
    ticking = 0;
    for (const video of videos) {
      video.pause();
      video.removeAttribute("src");
      video.load();
    }
    videos = [];
  };
  /** @param {{ time: number, paused: boolean } | null} at where it was */
  const open = (at) => {
    const { videos: files, frames } = /** @type {Player} */ (player);
    videos = files.map((file) => {
      const video = el("video", { muted: true, playsinline: true, preload: "auto" });
      [video.muted, video.loop, video.playbackRate] = [true, loop, speed];
      for (const event of ["loadeddata", "seeked"]) video.addEventListener(event, draw);
      if (at) video.addEventListener("loadedmetadata", () => (video.currentTime = at.time), { once: true });
      video.addEventListener("error", () => (verdict.textContent = say("noVideo")));
      video.src = host.url(file);
      return video;
    });
    videos[0].addEventListener("play", () => {
      ticking ||= requestAnimationFrame(tick);
      show();
    });
    videos[0].addEventListener("pause", show);
    if (frames > 1 && !at?.paused && !matchMedia("(prefers-reduced-motion: reduce)").matches) start();
  };

  const refresh = () => {
    const next = host.player();
    const told = JSON.stringify(next);
    if (told === known) return;
    const before = player;
    const at = before && videos[0] ? { time: videos[0].currentTime, paused: videos[0].paused } : null;
    const keys = before ? [clipAt(a).key, clipAt(b).key] : [];
    known = told;
    close();
    player = next;
    const grown = Boolean(before && next && before.clips.every(({ key }) => key && next.clips.some((clip) => clip.key === key)));
    chosen &&= grown;
    if (player) {
      const same = before?.clips.length === player.clips.length && order.length === player.clips.length;
      if (!same) {
        order = player.clips.map((_, index) => index);
        [a, b] = firstPair(player.clips);
        if (chosen) [a, b] = keys.map((key) => next?.clips.findIndex((clip) => clip.key === key) ?? 0);
        blind = "off";
      }
      verdict.textContent = blind === "off" ? "" : verdict.textContent;
      open(grown && (chosen || at?.paused) ? at : null);
      draw();
    }
    show();
  };
  show();

  return { element, refresh, remove: () => {
    encoding?.abort();
    close();
  } };
};
