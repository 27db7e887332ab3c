/* The path: the model as the paper draws it, with the norms of activations and gradients along it. */

import { data } from "./data.js";
import { h, number } from "./dom.js";
import { patchGrid } from "./patches.js";
import { followed, go, state } from "./state.js";

export const pathView = { id: "path", title: "The path", build };

function build(root) {
  const patches = patchGrid("patch to follow");
  const stages = h("ol", {});
  root.append(patches.element, stages);
  return () => {
    patches.update();
    const token = followed();
    stages.replaceChildren(
      ...data.images[state.image].path.map((stage) =>
        h("li", {}, h("button", { type: "button", onclick: () => go("layer", stage.layer) }, stage.title),
          ` ${number(stage.y_norm)} ${stage.y && token !== null ? number(stage.y[token]) : ""}`)),
    );
  };
}
