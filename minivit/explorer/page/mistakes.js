/* Break it: typical mistakes in backward passes, what they do to the gradients, and how the check finds them. */

import { data, mapAt } from "./data.js";
import { h, number, roving, setRoving, shapeText, table } from "./dom.js";
import { codeDiff } from "./code_diff.js";
import { legend } from "./heat_map.js";
import { address, detail, go } from "./state.js";
import { largest, mapValues, valueCanvas } from "./value_maps.js";

export const mistakesView = { id: "mistakes", title: "Break it", build: build };

function build(root) {
  const { mistakes } = data;
  root.append(h("h2", {}, "Typical mistakes, and how the gradient check finds them"));
  if (!mistakes.length) {
    root.append(h("p", { class: "note" }, "This page has no mistakes: the source of the layers was not there, or the model is too large."));
    return () => {};
  }
  root.append(
    h("p", {}, "Each was made in the layer's own backward pass when this page was written, and run on the numbers of the first image."),
  );
  const buttons = mistakes.map((mistake, i) => mistakeButton(mistake, i));
  const list = h("nav", { class: "mistake-list", "aria-label": "Mistakes by kind of layer" }, mistakeGroups(mistakes, buttons));
  const shown = h("article", { class: "mistake" });
  roving(list, () => orderedButtons(list), { onMove: (button) => go("mistakes", button.dataset.mistake) });
  root.append(h("div", { class: "mistakes-layout" }, list, shown));
  return (changed) => {
    if (!changed.has("details") && !changed.has("view")) return;
    const at = chosenMistake();
    buttons.forEach((button, i) => (i === at ? button.setAttribute("aria-current", "true") : button.removeAttribute("aria-current")));
    setRoving(buttons, buttons[at]);
    shown.replaceChildren(...mistakeParts(mistakes[at]));
  };
}

/** The number of the mistake that is shown, from the URL: "#mistakes/3"; the first one if it names none. */
function chosenMistake() {
  const asked = Number(detail("mistakes", 0));
  return Number.isInteger(asked) && data.mistakes[asked] ? asked : 0;
}

function mistakeButton({ title, category }, i) {
  const choose = () => go("mistakes", String(i));
  const attributes = { type: "button", "data-mistake": i, onclick: choose };
  return h("button", attributes, h("span", {}, title), " ", h("span", { class: "category" }, category));
}

/** The buttons below the names of the kinds of layers; within a kind those of a category follow each other. */
function mistakeGroups(mistakes, buttons) {
  const kinds = [...new Set(mistakes.map((mistake) => mistake.kind))];
  return kinds.map((kind) => {
    const own = mistakes.map((mistake, i) => ({ ...mistake, i })).filter((mistake) => mistake.kind === kind);
    own.sort((a, b) => a.category.localeCompare(b.category) || a.i - b.i);
    return h("section", {}, h("h3", {}, kind), h("ul", {}, own.map(({ i }) => h("li", {}, buttons[i]))));
  });
}

function orderedButtons(list) {
  return [...list.querySelectorAll("button")];
}

function mistakeParts(mistake) {
  const { title, category, kind, layer, before, after, arrays, found, verdict, sentence } = mistake;
  const rows = verdict.map(({ array, error, verdict: says }) => [array, number(error), says]);
  return [
    h("h2", {}, title),
    h("p", {}, `${category} in the backward pass of ${kind}, made in `, h("a", { href: address("layer", layer) }, layer), "."),
    codeDiff(before, after),
    h("h3", {}, "What the check says"),
    h("p", { class: found ? "verdict found" : "verdict missed" }, found ? "✓ found" : "✗ not found", ": ", sentence),
    table("The gradient check of the wrong backward pass", ["array", "relative error", "verdict"], rows),
    h("h3", {}, "What becomes of the gradients"),
    h("div", {}, arrays.map(wrongArray)),
  ];
}

/** One gradient: right, wrong and their difference on one scale, and how far they are apart. */
function wrongArray({ array, right, wrong, right_norm, wrong_norm, cosine, changed, error }) {
  const facts = [
    ["norm, right", number(right_norm)],
    ["norm, wrong", number(wrong_norm)],
    ["cosine of both", cosine === null ? "none: one is zero or not finite" : number(cosine)],
    ["relative error", number(error)],
  ];
  const list = h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  const maps = right === null || wrong === null ? null : changed ? threeMaps(array, mapAt(right), mapAt(wrong)) : null;
  const same = changed ? null : h("p", { class: "muted" }, "This gradient stays as it was.");
  return h("section", { class: "wrong-array" }, h("h4", {}, array), same, changed ? list : null, maps);
}

function threeMaps(array, right, wrong) {
  const [rightValues, wrongValues] = [mapValues(right), mapValues(wrong)];
  const alike = rightValues.length === wrongValues.length && right.cols === wrong.cols;
  const difference = alike ? wrongValues.map((value, i) => value - rightValues[i]) : null;
  const high = largest(rightValues, wrongValues, difference ?? []) || 1;
  const figure = (name, values, map) => {
    const label = `${name} of ${array}, shape ${shapeText(map.of)}, cells within ±${number(largest(values), 2)}`;
    const canvas = valueCanvas({ values, rows: map.rows, cols: map.cols, low: -high, high, label });
    canvas.style.setProperty("aspect-ratio", `${map.cols} / ${Math.max(map.rows, map.cols / 24)}`);
    return h("figure", { class: "heat-map" }, h("figcaption", {}, name), canvas);
  };
  const figures = [figure("right", rightValues, right), figure("wrong", wrongValues, wrong)];
  if (difference) figures.push(figure("difference, wrong − right", difference, right));
  return [h("div", { class: "three" }, figures), legend(-high, high), h("p", { class: "muted" }, `One scale for all. ${right.how}`)];
}
