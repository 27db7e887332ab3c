/* Attention: the weights of each head for the token that is followed, with their gradients, and rollout. */

import { attentionHeads } from "./attention_heads.js";
import { data, isSigned, mapAt, tokenName } from "./data.js";
import { h, number } from "./dom.js";
import { legend, mapCanvas } from "./heat_map.js";
import { patchGrid } from "./patches.js";
import { detail, followed, go, set, state } from "./state.js";
import { attentionRollout } from "./rollout.js";

export const attentionView = { id: "attention", title: "Attention", build: buildAttention };

/** Fills the panel. What is chosen here alone is kept here: the direction, the scale, the image beneath, the head. */
function buildAttention(root) {
  const first = data.images[0];
  if (!first.attention) {
    root.append(h("h2", {}, "Attention"), h("p", { class: "note" }, "The attention of each head is not on this page.", " ", data.note));
    if (first.rollout === null) return () => {};
    const only = h("div", {});
    root.append(only);
    return (changed) => changed.has("image") && only.replaceChildren(attentionRollout(data.images[state.image]));
  }
  const chosen = { to: false, together: false, beneath: false, head: 0 };
  const heads = h("div", {});
  const matrix = h("div", {});
  const rollout = h("div", {});
  const patches = patchGrid("Token to follow");
  const says = h("p", { class: "follows", role: "status" });
  const blocks = blockSlider(first.attention.length);
  const redraw = () => drawHeads(heads, chosen);
  const matrices = () => drawMatrix(matrix, chosen, matrices);
  const both = () => [redraw(), matrices()];
  const controls = h("div", { class: "attention-controls" }, blocks.element, attentionOptions(chosen, redraw, both));
  const side = h("div", { class: "attention-side" }, patches.element, says, controls);
  root.append(h("div", { class: "attention-layout" }, side, h("div", { class: "attention-main" }, heads, matrix, rollout)));
  return (changed) => {
    patches.update();
    blocks.update();
    const token = followed();
    says.textContent = token === null ? "" : `Followed: ${tokenName(token)}.`;
    both();
    if (changed.has("image")) rollout.replaceChildren(attentionRollout(data.images[state.image]));
  };
}

/** The number of the block that is shown, from the URL; the last block if it names none. */
function chosenBlock() {
  const count = data.images[state.image].attention.length;
  const asked = Number(detail("attention", count - 1));
  return Number.isInteger(asked) && asked >= 0 && asked < count ? asked : count - 1;
}

function blockSlider(count) {
  const text = h("output", { for: "attention-block" });
  const choose = (event) => set({ details: { ...state.details, attention: event.target.value } });
  const keep = (event) => go("attention", event.target.value); // the URL follows when the slider is let go
  const range = { type: "range", id: "attention-block", min: 0, max: count - 1, step: 1 };
  const slider = h("input", { ...range, oninput: choose, onchange: keep, disabled: count < 2 });
  const update = () => {
    slider.value = chosenBlock();
    const { layer } = data.images[state.image].attention[chosenBlock()];
    slider.setAttribute("aria-valuetext", layer);
    text.textContent = layer;
  };
  return { element: h("div", { class: "slider" }, h("label", { for: "attention-block" }, "Attention of "), text, slider), update };
}

function attentionOptions(chosen, redraw, both) {
  const direction = (to, text) => {
    const pick = () => {
      chosen.to = to;
      both();
    };
    return h("label", {}, h("input", { type: "radio", name: "direction", checked: to === chosen.to, onchange: pick }), text);
  };
  const box = (name, text) => {
    const pick = (event) => {
      chosen[name] = event.target.checked;
      redraw();
    };
    return h("label", {}, h("input", { type: "checkbox", onchange: pick }), text);
  };
  return [
    h(
      "fieldset",
      {},
      h("legend", {}, "Direction"),
      direction(false, "from this token: where it looks"),
      direction(true, "to this token: who looks at it"),
    ),
    h("fieldset", {}, h("legend", {}, "Drawing"), box("together", "one scale for all heads"), box("beneath", "image beneath")),
  ];
}

function drawHeads(root, chosen) {
  const image = data.images[state.image];
  const block = image.attention[chosenBlock()];
  const token = followed();
  const name = tokenName(token);
  const title = chosen.to ? `Who looks at ${name}` : block.queries < block.tokens ? "Where the query looks" : `Where ${name} looks`;
  const gradient = block.dweights
    ? "Beside the weights of each head, their gradient: more attention where it is positive would raise the loss."
    : "Without a label there is no loss, and so no gradient.";
  root.replaceChildren(
    h("h2", {}, `${title}, ${block.layer}`),
    h("p", {}, gradient),
    h("div", { class: "heads" }, attentionHeads(image, block, token, chosen)),
  );
}

/** All queries of one head as a map, queries by keys; a line marks the token that is followed. */
function drawMatrix(root, chosen, redraw) {
  const block = data.images[state.image].attention[chosenBlock()];
  const pick = (event) => {
    chosen.head = Number(event.target.value);
    redraw();
    document.getElementById("attention-head").focus();
  };
  chosen.head = Math.min(chosen.head, block.weights.length - 1);
  const options = block.weights.map((_, i) => h("option", { value: i, selected: i === chosen.head }, `head ${i}`));
  const figures = [["weights", block.weights], ["dweights", block.dweights]]
    .filter(([, maps]) => maps)
    .map(([name, maps]) => matrixFigure(maps[chosen.head], name, block, chosen));
  root.replaceChildren(
    h("h2", {}, "All queries of one head"),
    h("p", {}, h("label", {}, "Head ", h("select", { id: "attention-head", onchange: pick }, options))),
    h("div", { class: "matrices" }, figures),
  );
}

function matrixFigure(index, name, block, chosen) {
  const map = mapAt(index);
  const length = chosen.to ? block.tokens : block.queries;
  const at = Math.min(followed(), length - 1) / length;
  const line = chosen.to
    ? { left: `${100 * at}%`, width: `${100 / length}%`, top: "0", height: "100%" }
    : { top: `${100 * at}%`, height: `${100 / length}%`, left: "0", width: "100%" };
  const canvas = mapCanvas(index, `${name} of ${block.layer}, head ${chosen.head}, queries by keys`);
  const marked = h("div", { class: "marked", style: { "--cells": map.cols } }, canvas, h("div", { class: "line-mark", style: line }));
  const range = isSigned(map) ? `±${number(map.high)}` : `${number(map.low)} to ${number(map.high)}`;
  const caption = h("figcaption", {}, `${range}. ${map.how}`);
  return h("figure", { class: "heat-map" }, h("h3", {}, name), marked, legend(map.low, map.high), caption);
}
