/* The layers: their list, and the one that is chosen. */

import { data, layerNamed } from "./data.js";
import { h } from "./dom.js";
import { heatMap } from "./heat_map.js";
import { detail, go, state } from "./state.js";

export const layersView = { id: "layer", title: "Layers", build };

function build(root) {
  const list = h("div", {});
  const shown = h("div", {});
  root.append(list, shown);
  return (changed) => {
    if (!changed.has("image") && !changed.has("details")) return;
    const image = data.images[state.image];
    const layer = layerNamed(image, detail("layer", image.layers[0].name));
    list.replaceChildren(...image.layers.map(({ name }) => h("button", { type: "button", onclick: () => go("layer", name) }, name)));
    shown.replaceChildren(h("h2", {}, layer.title), ...layer.quantities.map((each) =>
      h("div", {}, each.name, each.map === null ? "" : heatMap(each.map, each.name, { statistics: each.statistics }))));
  };
}
