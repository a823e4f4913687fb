// @ts-check
/**
 * Colours for magnitudes. Made in OKLCH, where equal steps of lightness look equal, from indigo over teal to yellow: hue
 * and lightness both move one way only, so the order survives every kind of colour blindness and a grey print.
 */

/** @typedef {[number, number, number]} Rgb 0 to 1 each */

export const STEPS = 12;

/** The ramp from small to large: towards light on a dark page, towards dark on a light one. @param {boolean} dark @returns {Rgb[]} */
export const ramp = (dark) =>
  Array.from({ length: STEPS }, (_, step) => {
    const t = step / (STEPS - 1);
    return dark
      ? fromOklch(0.4 + 0.5 * t, 0.105 + 0.04 * Math.sin(Math.PI * t), 275 - 170 * t)
      : fromOklch(0.88 - 0.54 * t, 0.085 + 0.06 * Math.sin(Math.PI * t), 110 + 170 * t);
  });

/** Black or white, whichever stands out more from a colour. @param {Rgb} rgb */
export const inkOn = (rgb) => (contrast(rgb, WHITE) > contrast(rgb, BLACK) ? WHITE : BLACK);

/** @type {Rgb} */
const WHITE = [1, 1, 1];
/** @type {Rgb} */
const BLACK = [0.05, 0.06, 0.1];

/** How much two colours differ, 1 to 21, as WCAG has it. @param {Rgb} one @param {Rgb} other */
export const contrast = (one, other) => {
  const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
};

/** @param {Rgb} rgb */
const luminance = (rgb) => {
  const [red, green, blue] = rgb.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};

/** @param {Rgb} rgb */
export const css = (rgb) => `rgb(${rgb.map((part) => Math.round(part * 255)).join(" ")})`;

/** sRGB of an OKLCH colour (Ottosson's matrices), chroma reduced until it can be shown. @param {number} lightness @param {number} chroma @param {number} hue in degrees @returns {Rgb} */
export const fromOklch = (lightness, chroma, hue) => {
  for (let c = chroma; ; c -= 0.004) {
    const linear = linearFromOklab(lightness, c * Math.cos((hue * Math.PI) / 180), c * Math.sin((hue * Math.PI) / 180));
    if (c <= 0 || linear.every((part) => part > -1e-4 && part < 1.0001)) {
      return /** @type {Rgb} */ (linear.map((part) => encode(Math.min(1, Math.max(0, part)))));
    }
  }
};

/** @param {number} L @param {number} a @param {number} b */
const linearFromOklab = (L, a, b) => {
  const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
};

/** @param {number} linear */
const encode = (linear) => (linear <= 0.0031308 ? 12.92 * linear : 1.055 * linear ** (1 / 2.4) - 0.055);
