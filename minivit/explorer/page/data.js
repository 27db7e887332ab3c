/* The data of the page, described by schema.json, and its heat maps, which are decoded when they are first shown. */

/** @typedef {{rows: number, cols: number, low: number, high: number, of: number[], how: string, row_high?: number[], bytes: Uint8Array}} HeatMap */

export const data = JSON.parse(document.getElementById("data").textContent);

const decoded = new Map();

/** The heat map of an index; its value at a cell is that of `cellValue`. @returns {HeatMap} */
export function mapAt(index) {
  if (!decoded.has(index)) {
    const map = data.maps[index];
    decoded.set(index, { ...map, bytes: Uint8Array.from(atob(map.data), (letter) => letter.charCodeAt(0)) });
  }
  return decoded.get(index);
}

/** The value that a cell shows. A signed scale has no byte for zero: it lies between 127 and 128, which are read as zero. */
export function cellValue(map, row, col) {
  const byte = map.bytes[row * map.cols + col];
  const high = map.row_high ? map.row_high[row] : map.high;
  if (!isSigned(map)) return (byte / 255) * high;
  return byte === 127 || byte === 128 ? 0 : (byte / 127.5 - 1) * high;
}

/** Whether a map has a diverging scale, with zero in the middle. */
export function isSigned(map) {
  return map.low < 0;
}

/** The layer of a name in an image's trace, or undefined. */
export function layerNamed(image, name) {
  return image.layers.find((layer) => layer.name === name);
}

/** The name of a token: "class token", "register 2" or "patch row 3, column 4" (counted from one). */
export function tokenName(token) {
  const { prefix_tokens: prefix, grid } = data.model;
  if (token >= prefix) {
    const patch = token - prefix;
    return `patch row ${Math.floor(patch / grid[1]) + 1}, column ${(patch % grid[1]) + 1}`;
  }
  if (!data.model.class_token) return `register ${token + 1}`;
  return token === 0 ? "class token" : `register ${token}`;
}

/** Whether the model learns without labels: it has a loss and predicts no class. */
export const isMasked = data.model.task !== null;

/** What a model of masked pre-training sees of an image, in words. */
export function seenText({ patches, predicted }) {
  const hidden = patches.filter((patch) => patch < 0).length;
  const moved = patches.filter((patch, place) => patch >= 0 && patch !== place).length;
  const others = moved ? `, and in the place of ${moved} another is seen` : "";
  return `Of ${patches.length} patches ${hidden} are hidden (grey)${others}. The loss is that of ${predicted.length} patches`;
}

/** The name of a class, as text. */
export function className(index) {
  return data.model.class_names[index] ?? `class ${index}`;
}
