// @ts-check
/** Which widgets of a node count for what one of them says. */

/**
 * Tells which widgets a choice leaves idle; for an unknown choice, none.
 * @param {Record<string, string[]>} counts choice -> the widgets that count for it
 * @returns {(chosen: unknown) => string[]}
 */
export const idleFor = (counts) => {
  const all = [...new Set(Object.values(counts).flat())];
  return (chosen) => (Object.hasOwn(counts, String(chosen)) ? all.filter((name) => !counts[String(chosen)].includes(name)) : []);
};

/** Of Calibrate LoRA, by its unit. */
export const idleForUnit = idleFor({ norm: ["norm"], change: ["change"], "safe range": [], prediction: ["percent", "noise", "samples"] });
