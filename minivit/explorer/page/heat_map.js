/* A heat map: a canvas with its legend, its text alternative, and how the array was reduced. */

import { cellValue, isSigned, mapAt } from "./data.js";
import { gradient, scale } from "./colours.js";
import { h, number, shapeText } from "./dom.js";

/** Draws cells of bytes onto a canvas, one pixel for each cell. */
export function paint(canvas, bytes, rows, cols, signed) {
  canvas.width = cols;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(cols, rows);
  const colours = scale(signed);
  bytes.forEach((byte, i) => pixels.data.set([...colours[byte], 255], 4 * i));
  context.putImageData(pixels, 0, 0);
}

/** Gives a canvas its largest size: square cells, but rows and columns of single cells wide enough to be seen. */
function sizeCanvas(canvas, rows, cols) {
  const cell = Math.min(24, 480 / cols, 360 / rows);
  const [width, height] = [Math.max(24, cell * cols), Math.max(16, cell * rows)];
  canvas.style.setProperty("aspect-ratio", `${width} / ${height}`);
  canvas.style.setProperty("--map-width", `${width}px`);
}

/** The legend of a scale: a bar with the low, middle and high value. */
export function legend(low, high) {
  const signed = low < 0;
  const values = [low, (low + high) / 2, high].map((value) => h("span", {}, number(value)));
  const bar = h("span", { class: "legend-bar", style: { "background-image": gradient(signed) } });
  return h("div", { class: "legend" }, bar, h("span", { class: "legend-values" }, values));
}

/**
 * A canvas alone, with a text alternative.
 * @param {number} index - of the map
 * @param {string} name - what is shown
 * @param {{statistics?: object}} [options] - the array's statistics, for the text alternative
 */
export function mapCanvas(index, name, { statistics = null } = {}) {
  const map = mapAt(index);
  const canvas = h("canvas", { class: "map", role: "img", "aria-label": mapLabel(map, name, statistics) });
  paint(canvas, map.row_high ? onOneScale(map) : map.bytes, map.rows, map.cols, isSigned(map));
  sizeCanvas(canvas, map.rows, map.cols);
  canvas.addEventListener("pointermove", (event) => {
    const [row, col] = cellUnder(canvas, event, map.rows, map.cols);
    canvas.title = `cell ${row + 1}, ${col + 1}: about ${number(cellValue(map, row, col), 3)}`;
  });
  return canvas;
}

/** The row and the column of the cell of a canvas at the pointer. */
export function cellUnder(canvas, event, rows, cols) {
  const box = canvas.getBoundingClientRect();
  const inside = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
  return [inside((event.clientY - box.top) / box.height, rows), inside((event.clientX - box.left) / box.width, cols)];
}

/** The bytes of a map whose rows have scales of their own, on the scale of all cells. */
function onOneScale(map) {
  const { rows, cols, low, high } = map;
  const values = Array.from({ length: rows * cols }, (_, i) => cellValue(map, Math.floor(i / cols), i % cols));
  return Uint8Array.from(values, (value) => (high > low ? Math.round((255 * (value - low)) / (high - low)) : 0));
}

function mapLabel(map, name, statistics) {
  const numbers = statistics
    ? `norm ${number(statistics.norm)}, from ${number(statistics.min)} to ${number(statistics.max)}`
    : `cells from ${number(map.low)} to ${number(map.high)}`;
  return `heat map of ${name}, shape ${shapeText(map.of)}, ${numbers}`;
}

/** A figure: the canvas, its legend, and how the array was reduced. @returns {HTMLElement} */
export function heatMap(index, name, options = {}) {
  const map = mapAt(index);
  return h("figure", { class: "heat-map" }, mapCanvas(index, name, options), legend(map.low, map.high), h("figcaption", {}, map.how));
}
