/* Heat maps of values that a view computes from those of the data: a row of attention, a difference of gradients. */

import { scale } from "./colours.js";
import { cellValue } from "./data.js";
import { h, number } from "./dom.js";
import { cellUnder, paint } from "./heat_map.js";

/** The values that the cells of a map show, row by row. @returns {Float64Array} */
export function mapValues(map) {
  return Float64Array.from({ length: map.rows * map.cols }, (_, i) => cellValue(map, Math.floor(i / map.cols), i % map.cols));
}

/** The largest of the absolute values of some lists; NaN stands for no value. */
export function largest(...lists) {
  return lists.reduce((most, list) => list.reduce((so, value) => (Math.abs(value) > so ? Math.abs(value) : so), most), 0);
}

/**
 * A canvas of values, row by row, on a scale from `low` to `high`; `cellName(i)` names the cell pointed at. A cell of NaN
 * is empty.
 * @param {{values: ArrayLike<number>, rows: number, cols: number, low: number, high: number, label: string,
 *   cellName?: (i: number) => string}} options
 */
export function valueCanvas({ values, rows, cols, low, high, label, cellName }) {
  const name = cellName ?? ((i) => `cell ${Math.floor(i / cols) + 1}, ${(i % cols) + 1}`);
  const canvas = h("canvas", { class: "map", role: "img", "aria-label": label });
  const bytes = Uint8Array.from(values, (value) => byteOf(value, low, high));
  paint(canvas, bytes, rows, cols, low < 0);
  values.forEach((value, i) => Number.isNaN(value) && canvas.getContext("2d").clearRect(i % cols, Math.floor(i / cols), 1, 1));
  canvas.style.setProperty("aspect-ratio", `${cols} / ${rows}`);
  canvas.addEventListener("pointermove", (event) => {
    const [row, col] = cellUnder(canvas, event, rows, cols);
    const i = row * cols + col;
    canvas.title = `${name(i)}: ${Number.isNaN(values[i]) ? "none" : about(values[i])}`;
  });
  return canvas;
}

/** A single cell as a small box of its own, with its name and value in a tooltip. */
export function valueCell(text, value, low, high, name) {
  const [red, green, blue] = scale(low < 0)[byteOf(value, low, high)];
  const ink = 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#000" : "#fff";
  return h("span", { class: "value-cell", style: { background: `rgb(${red} ${green} ${blue})`, color: ink }, title: `${name}: ${about(value)}` }, text);
}

/** A value read off a map of 8 bits: it is known to two digits at most. */
export function about(value) {
  return `≈ ${number(value, 2)}`;
}

function byteOf(value, low, high) {
  const at = high > low ? (value - low) / (high - low) : 0;
  return Math.min(255, Math.max(0, Math.round(255 * at)));
}
