/* Colour scales that are safe for colour-blind readers: viridis for magnitudes, blue-white-orange for signed numbers. */

const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const SIGNED = ["#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fee0b6", "#fdb863", "#e08214", "#b35806", "#7f3b08"];

function parts(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

/** The 256 colours of a scale, as red, green, blue. */
function steps(anchors) {
  const known = anchors.map(parts);
  return Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (known.length - 1);
    const left = Math.min(Math.floor(place), known.length - 2);
    return known[left].map((from, c) => Math.round(from + (place - left) * (known[left + 1][c] - from)));
  });
}

const scales = { signed: steps(SIGNED), magnitude: steps(VIRIDIS) };

/** The colours of a scale for bytes 0 ... 255: a list of [red, green, blue]. */
export function scale(signed) {
  return signed ? scales.signed : scales.magnitude;
}

/** A CSS gradient of a scale, from low to high. */
export function gradient(signed) {
  return `linear-gradient(to right, ${(signed ? SIGNED : VIRIDIS).join(", ")})`;
}
