/* The heads of a block side by side: the weights of one token over the image's patches, and their gradient. */

import { cellValue, data, mapAt, tokenName } from "./data.js";
import { h, number } from "./dom.js";
import { legend } from "./heat_map.js";
import { about, largest, valueCanvas, valueCell } from "./value_maps.js";

/**
 * A card for each head; `flat` says that all gradients shown are zero.
 * @param {object} image - with the trace of the page's data
 * @param {{layer: string, weights: number[], dweights: number[] | null, queries: number, tokens: number,
 *   places: number[] | null}} block - `places` are the tokens that it gets, where these are not all
 * @param {number} token - the one that is followed
 * @param {{to: boolean, together: boolean, beneath: boolean}} options - the column of the token instead of its row; one
 *   scale for all heads; the image beneath the weights
 * @returns {{cards: HTMLElement[], flat: boolean}}
 */
export function attentionHeads(image, block, token, options) {
  const first = block.places ? 0 : data.model.tokens - block.tokens; // pooling may leave out the tokens before the patches
  const slices = (maps) => maps.map((index) => attentionOf(mapAt(index), block, token, options.to));
  const weights = slices(block.weights);
  const dweights = block.dweights && slices(block.dweights);
  const high = (arrays, head) => largest(...(options.together ? arrays : [arrays[head]])) || 1; // 1 where all is zero
  const cards = weights.map((values, head) => {
    const parts = [["weights", values, 0, high(weights, head)]];
    if (dweights) {
      const most = high(dweights, head);
      parts.push(["dweights", dweights[head], -most, most]);
    }
    const name = `head ${head}`;
    const maps = parts.map((part) => tokenMap(image, token, first, { name, beneath: options.beneath }, part));
    return h("section", { class: "head" }, h("h3", {}, name), h("p", { class: "muted" }, strongest(values, first)), h("div", { class: "pair" }, maps));
  });
  return { cards, flat: !!dweights && largest(...dweights) === 0 };
}

/** The weights of one query over all keys, or of all queries for one key. */
function attentionOf(map, { queries, tokens, places }, token, to) {
  const at = places ? places.indexOf(token) : token;
  const query = Math.min(at, queries - 1);
  const values = Float64Array.from({ length: to ? queries : tokens }, (_, i) => (to ? cellValue(map, i, at) : cellValue(map, query, i)));
  return places ? atPlaces(values, places) : values;
}

/** The values of some tokens among all tokens of the model; NaN for the others, which are drawn empty. */
function atPlaces(values, places) {
  const all = new Float64Array(data.model.tokens).fill(NaN);
  places.forEach((token, i) => (all[token] = values[i]));
  return all;
}

function known(values) {
  return values.filter((value) => !Number.isNaN(value));
}

function strongest(values, first) {
  const most = values.indexOf(Math.max(...known(values)));
  return `most: ${tokenName(first + most)}, ${about(values[most])}`;
}

/** The values, from token `first` on, over the grid of patches; those of class and register tokens in cells above it. */
function tokenMap(image, token, first, { name, beneath }, [what, all, low, high]) {
  const { prefix_tokens: prefix, grid } = data.model;
  const [rows, cols] = grid;
  const [before, values] = [all.slice(0, prefix - first), all.slice(prefix - first)];
  const range = `from ${number(Math.min(...known(all)), 2)} to ${number(Math.max(...known(all)), 2)}`;
  const label = `${what} of ${name} over the patches, ${rows} × ${cols}, ${range}; ${strongest(all, first)}`;
  const canvas = valueCanvas({ values, rows, cols, low, high, label, cellName: (i) => tokenName(prefix + i) });
  const cells = Array.from(before, (value, i) => {
    const title = tokenName(first + i);
    return valueCell(title.replace("class token", "cls").replace("register ", "r"), value, low, high, title);
  });
  const mark = token >= prefix ? h("div", { class: "patch-mark", style: place(token - prefix, rows, cols) }) : null;
  const picture = beneath ? h("img", { src: image.png, alt: "" }) : null;
  const map = h("div", { class: beneath ? "marked over-image" : "marked" }, picture, canvas, mark);
  const above = cells.length ? h("div", { class: "value-cells" }, cells) : null;
  return h("figure", { class: "token-map" }, h("figcaption", {}, what), above, map, legend(low, high));
}

function place(patch, rows, cols) {
  const [row, col] = [Math.floor(patch / cols), patch % cols];
  const part = (count, of) => `${(100 * count) / of}%`;
  return { top: part(row, rows), left: part(col, cols), height: part(1, rows), width: part(1, cols) };
}
