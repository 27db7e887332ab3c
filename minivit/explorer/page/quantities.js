/* The arrays of a layer as cards: heat map, histogram and statistics of each. */

import { histogram } from "./charts.js";
import { data, mapAt } from "./data.js";
import { h, number, percent, shapeText, whole } from "./dom.js";
import { heatMap } from "./heat_map.js";

const SECTIONS = [
  ["Input x and output y", { in: "input", out: "output" }],
  ["Gradients: dy came back, dx was passed on", { back: "upstream gradient: of the loss in y", passed: "gradient of the loss in x" }],
  ["Inside the layer", { inside: "inside" }],
  ["Parameters and their gradients", { parameter: "parameter", gradient: "gradient of the parameter" }],
];

/** The sections of a layer's cards; those without cards are left out. */
export function quantityParts(layer) {
  return SECTIONS.map(([title, roles]) => {
    const own = layer.quantities.filter(({ role }) => role in roles);
    const cards = own.map((quantity) => card(quantity, roles[quantity.role], layer));
    return own.length ? h("section", {}, h("h3", {}, title), h("div", { class: own.length > 3 ? "cards many" : "cards" }, cards)) : null;
  });
}

function card({ name, shape, dtype, statistics, map }, role, layer) {
  const head = [h("h4", {}, h("code", {}, name)), h("p", { class: "muted" }, `${role}; ${shapeText(shape)}, ${dtype}`)];
  const picture = map === null ? null : h("div", { class: "card-map" }, heatMap(map, `${name} of ${layer.name}`, { statistics }));
  if (picture && rowsAreTokens(map)) addTokenMark(picture.querySelector("canvas"));
  const { counts, min, max } = statistics;
  const bars = min === null || max === null ? null : histogram({ title: `histogram of ${name}`, counts, low: min, high: max });
  return h("div", { class: "card" }, head, picture, bars, facts(statistics));
}

function facts(statistics) {
  const { size, finite, norm, mean, std, min, max, zeros, saturated } = statistics;
  const list = [["norm", number(norm)], ["mean", number(mean)], ["std", number(std)], ["min", number(min)], ["max", number(max)], ["zeros", percent(zeros)]];
  if (saturated !== null) list.push(["saturated", percent(saturated)]);
  list.push(["numbers", whole(size)]);
  const warning = finite ? null : h("p", { class: "note" }, "Some of these numbers are not finite; the statistics are of the others.");
  return [warning, h("dl", { class: "statistics" }, list.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))))];
}

/** Whether the rows of a map are the tokens of the image, one after another. */
function rowsAreTokens(index) {
  const { of, rows } = mapAt(index);
  return of.length > 1 && of.slice(0, -1).reduce((a, b) => a * b, 1) === data.model.tokens && rows > 1;
}

function addTokenMark(canvas) {
  const frame = h("div", { class: "token-rows" });
  canvas.replaceWith(frame);
  frame.append(canvas, h("span", { class: "token-row", title: "the token that is followed" }));
}

/** Marks the row of a token beside each map whose rows are tokens. */
export function markToken(root, token) {
  for (const mark of root.querySelectorAll(".token-row")) {
    mark.hidden = token === null;
    mark.style.setProperty("top", `${(100 * (token + 0.5)) / data.model.tokens}%`);
  }
}
