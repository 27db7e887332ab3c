/* Starts the page: the head, the tabs and the view that the URL names. */

import { attentionView } from "./attention.js";
import { className, data, isMasked } from "./data.js";
import { depthView } from "./depth.js";
import { h, number, percent, whole } from "./dom.js";
import { layersView } from "./layers.js";
import { mistakesView } from "./mistakes.js";
import { firstToken } from "./patches.js";
import { pathView } from "./path.js";
import { followHash, onChange, set, state } from "./state.js";
import { makeTabs } from "./tabs.js";

const VIEWS = [pathView, layersView, attentionView, depthView, mistakesView];

function start() {
  set({ token: firstToken(data.images[0]) });
  followHash(VIEWS.map(({ id }) => id));
  const { list, panels, open } = makeTabs(VIEWS);
  document.getElementById("controls").append(...imageChooser(), schemeButton());
  document.getElementById("about").append(...about());
  document.getElementById("views").append(list, ...panels);
  document.getElementById("notes").append(...notes());
  document.querySelector(".skip").addEventListener("click", skip);
  document.body.classList.add("ready");
  open();
}

/** Goes to the views without an address of its own, since the address says which view is open. */
function skip(event) {
  event.preventDefault();
  document.getElementById("views").focus();
}

/** What the page is about, in a line: the model, and what it predicts. */
function about() {
  const { model, subject } = data;
  const saved = subject.checkpoint ? `, ${subject.checkpoint} checkpoint` : "";
  const what = `${model.class} with ${whole(model.parameters)} parameters in ${model.dtype}${saved}`;
  const name = (index) => h("bdi", {}, className(index)); // a name may be written from right to left
  const says = h("p", { class: "says", "aria-live": "polite" });
  const update = () => {
    const { label, label_predicted: unknown, loss, predicted, probabilities } = data.images[state.image];
    if (isMasked) return says.replaceChildren(`Masked pre-training (${model.task}). Loss of this image: ${number(loss)}.`);
    const known = unknown ? ["; its loss, as no label was given"] : ["; label: ", name(label), "; loss"];
    const after = label === null ? [] : [...known, `: ${number(loss)}`];
    if (probabilities[predicted] === null) return says.replaceChildren("Prediction: none, because the logits are not finite", ...after, ".");
    return says.replaceChildren("Prediction: ", name(predicted), ` (${percent(probabilities[predicted])})`, ...after, ".");
  };
  onChange((changed) => changed.has("image") && update());
  update();
  return [h("p", {}, what), says];
}

function imageChooser() {
  if (data.images.length < 2) return [];
  const options = data.images.map(({ name }, i) => h("option", { value: i }, name));
  const choose = (event) => set({ image: Number(event.target.value), preview: null });
  return [h("label", {}, "Image ", h("select", { onchange: choose }, options))];
}

/** A button for the other scheme of colours; the first one is that of the system. */
function schemeButton() {
  const root = document.documentElement;
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.style.colorScheme || (systemDark.matches ? "dark" : "light")) === "dark";
  const button = h("button", { type: "button" });
  const name = () => (button.textContent = isDark() ? "Light colours" : "Dark colours");
  button.addEventListener("click", () => {
    root.style.colorScheme = isDark() ? "light" : "dark";
    name();
  });
  systemDark.addEventListener("change", name);
  name();
  return button;
}

/** How arrays were reduced, why there are only statistics, and how the page was made. */
function notes() {
  const made = [data.command && ["Made by ", h("code", {}, data.command), ", "], `minivit ${data.version}, ${data.made}.`];
  return [data.note && h("p", { class: "note" }, data.note), h("p", {}, data.reduction), h("p", {}, made)].filter(Boolean);
}

start();
