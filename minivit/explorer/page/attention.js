/* Attention: the weights of each head for the token that is followed, with their gradients, and rollout. */

import { attentionHeads } from "./attention_heads.js";
import { attentionMatrix } from "./attention_matrix.js";
import { data, isMasked, tokenName } from "./data.js";
import { h } from "./dom.js";
import { patchGrid } from "./patches.js";
import { attentionRollout } from "./rollout.js";
import { detail, followed, go, set, state } from "./state.js";

export const attentionView = { id: "attention", title: "Attention", build };

const NOT_FINITE = "Weights that are NaN or infinite are left out.";

function build(root) {
  const rollout = h("div", {});
  const drawRollout = () => rollout.replaceChildren(attentionRollout(data.images[state.image]));
  if (!data.images.some(({ attention }) => attention?.length)) {
    const why = `The attention of each head is not on this page. ${data.note || NOT_FINITE}`;
    root.append(h("h2", {}, "Attention"), h("p", { class: "note" }, why), rollout);
    return (changed) => changed.has("image") && drawRollout();
  }
  const options = { to: false, together: false, beneath: false };
  const heads = h("section", {});
  const matrix = attentionMatrix();
  const patches = patchGrid("token to follow");
  const says = h("p", { role: "status" });
  const blocks = blockSlider();
  const draw = () => {
    const token = followed() ?? 0;
    const block = chosenBlock();
    matrix.element.hidden = !block;
    if (block && absent(block, token)) return showAbsent(heads, matrix, block, token);
    if (!block) return heads.replaceChildren(h("h2", {}, "Attention"), h("p", { class: "note" }, `This image has none. ${NOT_FINITE}`));
    const single = hasOneQuery(block); // the column of a token is then one number
    controls.querySelector("fieldset").disabled = single;
    const to = options.to && !single;
    drawHeads(heads, block, token, { ...options, to });
    return matrix.update(block, token, to);
  };
  const controls = h("div", { class: "attention-controls" }, blocks.element, choices(options, draw));
  const side = h("div", { class: "attention-side" }, patches.element, says, controls);
  root.append(h("div", { class: "attention-layout" }, side, h("div", { class: "attention-main" }, heads, matrix.element, rollout)));
  return (changed) => {
    patches.update();
    blocks.update();
    says.textContent = `Following: ${tokenName(followed() ?? 0)}.`;
    draw();
    if (changed.has("image")) drawRollout();
  };
}

/** The number of the block that is shown, from the URL: "#attention/3"; that in the middle if it names none. */
function chosenNumber() {
  const count = data.images[state.image].attention.length;
  const asked = Number(detail("attention", NaN));
  return Number.isInteger(asked) && asked >= 0 && asked < count ? asked : Math.floor((count - 1) / 2);
}

/** The attention that is shown; undefined where the image has none. */
function chosenBlock() {
  return data.images[state.image].attention[chosenNumber()];
}

function blockSlider() {
  const text = h("output", { for: "attention-block" });
  const choose = (event) => set({ details: { ...state.details, attention: event.target.value } });
  const keep = (event) => go("attention", event.target.value); // the URL follows when the slider is let go
  const range = { type: "range", id: "attention-block", min: 0, step: 1 };
  const slider = h("input", { ...range, oninput: choose, onchange: keep });
  const update = () => {
    const count = data.images[state.image].attention.length;
    const layer = chosenBlock()?.layer ?? "none";
    slider.max = Math.max(0, count - 1);
    slider.disabled = count < 2;
    slider.value = chosenNumber();
    slider.setAttribute("aria-valuetext", layer);
    text.textContent = layer;
  };
  return { element: h("div", { class: "slider" }, h("label", { for: "attention-block" }, "Layer "), text, slider), update };
}

/** The controls of the drawing; they change `options` and call `draw`. */
function choices(options, draw) {
  const control = (type, name, value, text) => {
    const choose = (event) => {
      options[name] = type === "radio" ? value : event.target.checked;
      draw();
    };
    const attributes = { type, name: `attention-${name}`, checked: options[name] === value, onchange: choose };
    return h("label", {}, h("input", attributes), text);
  };
  const group = (title, ...controls) => h("fieldset", {}, h("legend", {}, title), controls);
  return [
    group(
      "This token",
      control("radio", "to", false, "as query: a row of the weights"),
      control("radio", "to", true, "as key: a column of the weights"),
    ),
    group(
      "Drawing",
      control("checkbox", "together", true, "one scale for all heads"),
      control("checkbox", "beneath", true, "image beneath"),
    ),
  ];
}

/** Whether there is one query: the learned one of the pooling, or the class token where the last block computes no other. */
function hasOneQuery({ queries, places }) {
  return places === null && queries !== data.model.tokens;
}

/** Whether a layer does not get a token, as an encoder that is not given the hidden patches. */
function absent({ places }, token) {
  return places !== null && !places.includes(token);
}

function showAbsent(root, matrix, { layer }, token) {
  matrix.element.hidden = true;
  const text = `This patch is hidden: ${layer} does not get its token. Choose one that the model sees.`;
  root.replaceChildren(h("h2", {}, `No attention of ${tokenName(token)} in ${layer}`), h("p", { class: "note" }, text));
}

function drawHeads(root, block, token, options) {
  const image = data.images[state.image];
  const query = block.layer === "attn_pool" ? "the query of the pooling" : tokenName(0);
  const name = hasOneQuery(block) ? query : tokenName(token);
  const looks = options.to ? `Attention to ${name}` : `Attention of ${name}`;
  const { cards, flat } = attentionHeads(image, block, token, options);
  const about = !block.dweights
    ? isMasked || image.label !== null
      ? "Gradients that are NaN or infinite are left out."
      : "Without a label there is no loss, and so no gradient."
    : flat
      ? "The gradient of these weights, dweights, is zero: the loss does not depend on them."
      : "The weights of each head, and their gradient dweights. Where dweights is positive, a larger weight would raise the loss.";
  root.replaceChildren(h("h2", {}, `${looks} in ${block.layer}`), h("p", {}, about), h("div", { class: "heads" }, cards));
}
