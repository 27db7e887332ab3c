/* Attention rollout: how much each patch contributes to what the head reads, as a map and over the image. */

import { isMasked, mapAt } from "./data.js";
import { h } from "./dom.js";
import { legend, mapCanvas } from "./heat_map.js";
import { largest, mapValues } from "./value_maps.js";

const NO_HEAD = "Rollout says how much each patch contributes to what the head reads. In masked pre-training there is no such head.";

/** The section on rollout; where the page has none it says so. */
export function attentionRollout(image) {
  const title = h("h2", {}, "Rollout over the image");
  if (image.rollout === null) return h("section", {}, title, h("p", {}, isMasked ? NO_HEAD : "This page has no rollout of this model."));
  const map = mapAt(image.rollout);
  const text =
    "The attention of each block is averaged over its heads, the residual connection is added, and the blocks are multiplied " +
    "(Abnar and Zuidema 2020). The result estimates how much each patch contributes to what the head reads.";
  const shape = { class: "marked", style: { "aspect-ratio": `${image.width} / ${image.height}` } };
  const picture = h("div", shape, h("img", { src: image.png, alt: `the image, ${image.name}` }));
  const masked = h("div", shape, h("img", { src: image.png, alt: "" }), rolloutMask(map));
  const cells = mapCanvas(image.rollout, "attention rollout");
  cells.style.removeProperty("max-width"); // as wide as the image beside it
  const canvas = h("div", shape, cells);
  const figure = (name, content, below) => h("figure", { class: "token-map" }, h("figcaption", {}, name), content, below);
  return h(
    "section",
    {},
    title,
    h("p", {}, text),
    h(
      "div",
      { class: "pictures" },
      figure("image", picture),
      figure("image, dark where the rollout is small", masked),
      figure("rollout", canvas, legend(map.low, map.high)),
    ),
  );
}

/** A cover over the image: clear where the rollout is largest, dark where it is small. */
function rolloutMask(map) {
  const values = mapValues(map);
  const most = largest(values) || 1;
  const label = "the image, darkened where its patches contribute little by attention rollout";
  const canvas = h("canvas", { class: "mask", role: "img", "aria-label": label });
  [canvas.width, canvas.height] = [map.cols, map.rows];
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(map.cols, map.rows);
  values.forEach((value, i) => (pixels.data[4 * i + 3] = Math.round(235 * (1 - value / most))));
  context.putImageData(pixels, 0, 0);
  return canvas;
}
