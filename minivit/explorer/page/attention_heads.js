/* The heads of a block side by side: the weights of one token over the image's patches, and their gradient. */

import { data, mapAt, tokenName } from "./data.js";
import { h, number } from "./dom.js";
import { legend } from "./heat_map.js";
import { about, largest, mapValues, valueCanvas, valueCell } from "./value_maps.js";

/**
 * A card for each head.
 * @param {object} image - with the trace of the page's data
 * @param {{layer: string, weights: number[], dweights: number[] | null, queries: number, tokens: number}} block
 * @param {number} token - the one that is followed
 * @param {{to: boolean, together: boolean, beneath: boolean}} options - the column of the token instead of its row; one
 *   scale for all heads; the image beneath the weights
 * @returns {HTMLElement[]}
 */
export function attentionHeads(image, block, token, options) {
  const of = (maps) => maps?.map((index) => attentionOf(mapAt(index), block, token, options.to));
  const [weights, dweights] = [of(block.weights), of(block.dweights)];
  return weights.map((values, head) => {
    const high = largest(...(options.together ? weights : [values]));
    const parts = [["weights", values, 0, high]];
    if (dweights) {
      const most = largest(...(options.together ? dweights : [dweights[head]]));
      parts.push(["dweights", dweights[head], -most, most]);
    }
    const name = `head ${head}`;
    const maps = parts.map((part) => tokenMap(image, token, name, options, part));
    return h("section", { class: "head" }, h("h3", {}, name), h("p", { class: "muted" }, strongest(values)), h("div", { class: "pair" }, maps));
  });
}

/** The weights of one query over all keys, or of all queries for one key. */
function attentionOf(map, block, token, to) {
  const values = mapValues(map);
  const { queries, tokens } = block;
  if (to) return Float64Array.from({ length: queries }, (_, query) => values[query * tokens + token]);
  const query = Math.min(token, queries - 1);
  return values.slice(query * tokens, (query + 1) * tokens);
}

function strongest(values) {
  const most = values.indexOf(Math.max(...values));
  return `most: ${tokenName(most)}, ${about(values[most])}`;
}

/** The values over the grid of patches, and those of class and register tokens in cells above it. */
function tokenMap(image, token, name, { beneath }, [what, values, low, high]) {
  const { prefix_tokens: prefix, grid } = data.model;
  const [rows, cols] = grid;
  const label = `${what} of ${name} over the patches, ${rows} × ${cols}, from ${number(low, 2)} to ${number(high, 2)}; ${strongest(values)}`;
  const over = values.length === data.model.tokens;
  const shape = over ? { values: values.slice(prefix), rows, cols } : { values, rows: values.length, cols: 1 };
  const cellName = (i) => tokenName(over ? prefix + i : i);
  const canvas = valueCanvas({ ...shape, low, high, label, cellName });
  const before = Array.from({ length: over ? prefix : 0 }, (_, i) =>
    valueCell(i ? `r${i}` : "cls", values[i], low, high, tokenName(i)),
  );
  const mark = over && token >= prefix ? h("div", { class: "patch-mark", style: place(token - prefix, rows, cols) }) : null;
  const picture = beneath && over ? h("img", { src: image.png, alt: "" }) : null;
  const map = h("div", { class: beneath && over ? "marked over-image" : "marked" }, picture, canvas, mark);
  const cells = before.length ? h("div", { class: "value-cells" }, before) : null;
  return h("figure", { class: "token-map" }, h("figcaption", {}, what), cells, map, legend(low, high));
}

function place(patch, rows, cols) {
  const [row, col] = [Math.floor(patch / cols), patch % cols];
  const part = (count, of) => `${(100 * count) / of}%`;
  return { top: part(row, rows), left: part(col, cols), height: part(1, rows), width: part(1, cols) };
}
