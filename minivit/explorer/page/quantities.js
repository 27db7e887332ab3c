/* The arrays of a layer as cards: heat map, histogram and statistics of each. */

import { histogram } from "./charts.js";
import { data, mapAt } from "./data.js";
import { h, number, percent, shapeText, whole } from "./dom.js";
import { heatMap } from "./heat_map.js";

const SECTIONS = [
  ["Input x and output y", { in: "input", out: "output" }],
  ["Gradients: dy of the output, dx of the input", { back: "gradient of the loss with respect to y (upstream)", passed: "gradient of the loss with respect to x" }],
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
  const { counts, min, max, finite } = statistics;
  if (!finite && !counts.some(Boolean)) return h("div", { class: "card" }, head, h("p", { class: "note" }, "None of these numbers is finite."));
  const bars = min === null || max === null ? null : histogram({ title: `histogram of ${name}`, counts, low: min, high: max });
  return h("div", { class: "card" }, head, picture, bars, facts(name, statistics));
}

function facts(name, statistics) {
  const { size, finite, norm, mean, std, min, max, zeros, saturated } = statistics;
  const list = [["norm", number(norm)], ["mean", number(mean)], ["std", number(std)], ["min", number(min)], ["max", number(max)], ["zeros", percent(zeros)]];
  if (saturated !== null) list.push([name === "slope" ? "saturated: slope below 0.01" : "saturated: weights above 0.99", percent(saturated)]);
  list.push(["numbers", whole(size)]);
  const warning = finite ? null : h("p", { class: "note" }, "Some of these numbers are not finite; the statistics are of the others.");
  return [warning, h("dl", { class: "statistics" }, list.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))))];
}

/** Whether the rows of a map are the tokens of the image, one after another, or means of several. */
function rowsAreTokens(index) {
  const { of, rows, how } = mapAt(index);
  return rows > 1 && /^(tokens|queries) by/.test(how) && of.slice(0, -1).includes(data.model.tokens);
}

function addTokenMark(canvas) {
  const frame = h("div", { class: "token-rows" });
  canvas.replaceWith(frame);
  frame.append(canvas, h("span", { class: "token-row", title: "the token that is followed" }));
}

/** Marks the row of a token beside each map whose rows are tokens. */
export function markToken(root, token) {
  for (const mark of root.querySelectorAll(".token-row")) {
    const rows = mark.parentElement.querySelector("canvas").height;
    const row = Math.floor(token / Math.ceil(data.model.tokens / rows));
    mark.hidden = token === null;
    mark.style.setProperty("top", `${(100 * (row + 0.5)) / rows}%`);
  }
}
