/* All queries of one head as a map, queries by keys; lines mark the token that is followed. */

import { mapAt } from "./data.js";
import { h } from "./dom.js";
import { legend, mapCanvas } from "./heat_map.js";

/**
 * The section with its choice of a head. `update(block, token, to)` draws anew where the block is another one, and moves
 * the lines: over the row of the token, or its column if `to`.
 * @returns {{element: HTMLElement, update: (block: object, token: number, to: boolean) => void}}
 */
export function attentionMatrix() {
  let [shown, token, to, lines] = [null, 0, false, []];
  const select = h("select", { id: "attention-head", onchange: () => draw() });
  const figures = h("div", { class: "matrices" });
  const draw = () => {
    const made = matrixFigures(shown, Number(select.value));
    lines = made.map((each) => each.line);
    figures.replaceChildren(...made.map((each) => each.figure));
    move();
  };
  const move = () => lines.forEach((line) => mark(line, token, to, shown));
  const update = (block, followed, column) => {
    [token, to] = [followed, column];
    if (block === shown) return move();
    shown = block;
    const { length } = block.weights;
    if (select.length !== length)
      select.replaceChildren(...Array.from({ length }, (_, head) => h("option", { value: head }, `head ${head}`)));
    draw();
  };
  const choice = h("p", { class: "no-print" }, h("label", {}, "Head ", select));
  return { element: h("section", {}, h("h2", {}, "All queries of one head"), choice, figures), update };
}

function matrixFigures({ layer, weights, dweights }, head) {
  const arrays = [["weights", weights], ["dweights", dweights]].filter(([, maps]) => maps);
  return arrays.map(([name, maps]) => {
    const map = mapAt(maps[head]);
    const canvas = mapCanvas(maps[head], `${name} of ${layer}, head ${head}, queries by keys`);
    canvas.style.removeProperty("max-width"); // it is as wide as its frame, on which the line is placed
    const line = h("div", { class: "line-mark" });
    const marked = h("div", { class: "marked", style: { "--tokens": map.cols } }, canvas, line);
    const parts = [h("h3", {}, `${name}, head ${head}`), marked, legend(map.low, map.high), h("figcaption", {}, map.how)];
    return { line, figure: h("figure", { class: "heat-map" }, parts) };
  });
}

function mark(line, token, to, { tokens, queries, places }) {
  const count = to ? tokens : queries;
  const at = places ? places.indexOf(token) : token;
  const start = `${(100 * Math.min(at, count - 1)) / count}%`;
  const size = `${100 / count}%`;
  const place = to ? { left: start, width: size, top: 0, height: "100%" } : { top: start, height: size, left: 0, width: "100%" };
  for (const [name, value] of Object.entries(place)) line.style.setProperty(name, value);
}
