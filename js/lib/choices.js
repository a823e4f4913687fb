// @ts-check
/** Which widgets of a node count for what one of them says. */

/**
 * Tells which widgets count for a choice; for an unknown one, all.
 * @param {Record<string, string[]>} counts choice -> the widgets that count for it
 * @returns {(chosen: unknown) => string[]}
 */
export const countingFor = (counts) => {
  const all = [...new Set(Object.values(counts).flat())];
  return (chosen) => (Object.hasOwn(counts, String(chosen)) ? counts[String(chosen)] : all);
};

/**
 * Tells which widgets a choice leaves idle; for an unknown choice, none.
 * @param {Record<string, string[]>} counts @returns {(chosen: unknown) => string[]}
 */
export const idleFor = (counts) => {
  const counting = countingFor(counts);
  return (chosen) => counting(undefined).filter((name) => !counting(chosen).includes(name));
};

/** Of Calibrate LoRA, by its unit. */
export const idleForUnit = idleFor({ norm: ["norm"], change: ["change"], "safe range": [], prediction: ["percent", "noise", "samples"] });
