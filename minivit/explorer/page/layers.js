/* The layers: their list, and the one that is chosen with its formulas, code, numbers and gradient check. */

import { data, layerNamed } from "./data.js";
import { h, shapeText } from "./dom.js";
import { checkPart, checkWords } from "./layer_check.js";
import { codePart, formulaPart } from "./layer_code.js";
import { layerList } from "./layer_list.js";
import { markToken, quantityParts } from "./quantities.js";
import { address, detail, followed, state } from "./state.js";

export const layersView = { id: "layer", title: "Layers", build };

function build(root) {
  const shown = h("article", { class: "layer" });
  const side = h("div", { class: "layer-side" });
  let [list, drawn] = [null, null]; // and the image that they are drawn for
  root.append(h("div", { class: "layers" }, side, shown));
  return (changed) => {
    const { layers } = data.images[state.image];
    if (drawn !== state.image) {
      drawn = state.image;
      list = layerList(layers);
      side.replaceChildren(list.element);
    }
    if (changed.has("image") || changed.has("details")) {
      const layer = chosenLayer(layers);
      list.choose(layer.name);
      const inside = shown.contains(document.activeElement);
      shown.replaceChildren(...layerParts(layer, layers));
      if (inside) shown.querySelector("h2").focus(); // the link that was followed is gone
    }
    markToken(shown, followed());
  };
}

/** The layer that the URL names, or the attention of the first block, or the first layer. */
function chosenLayer(layers) {
  const image = data.images[state.image];
  return layerNamed(image, detail("layer")) ?? layers.find(({ kind }) => kind === "Attention") ?? layers[0];
}

function layerParts(layer, layers) {
  const at = layers.indexOf(layer);
  const near = [[layers[at - 1], "← ", ""], [layers[at + 1], "", " →"]].filter(([other]) => other);
  const links = near.map(([{ name }, before, after]) => h("a", { href: address("layer", name) }, before, name, after));
  return [
    h("div", { class: "layer-head" }, h("h2", { tabindex: "-1" }, layer.name), h("div", { class: "near" }, links)),
    h("p", {}, `${layer.title} (${layer.kind}). `, h("span", { class: "muted" }, [shapesOf(layer), checkWords(layer)].filter(Boolean).join("; "))),
    formulaPart(layer.kind),
    codePart(layer.kind),
    ...quantityParts(layer),
    checkPart(layer),
  ].filter(Boolean);
}

/** The shapes of input and result, in one line. */
function shapesOf(layer) {
  const named = (name) => layer.quantities.find((quantity) => quantity.name === name);
  const [x, y] = [named("x"), named("y")];
  return x && y ? `x: ${shapeText(x.shape)} → y: ${shapeText(y.shape)}` : "";
}
