/* Typical mistakes in backward passes, what they do to the gradients, and how the check finds them. */

import { data, mapAt } from "./data.js";
import { h, number, roving, setRoving, shapeText, table } from "./dom.js";
import { codeDiff } from "./code_diff.js";
import { legend } from "./heat_map.js";
import { address, detail, go } from "./state.js";
import { largest, mapValues, valueCanvas } from "./value_maps.js";

export const mistakesView = { id: "mistakes", title: "Typical mistakes", build };

function build(root) {
  const { mistakes, mistakes_note: note } = data;
  root.append(h("h2", {}, "How the gradient check finds typical mistakes"));
  if (!mistakes.length) {
    root.append(h("p", { class: "note" }, note || "There are none on this page."));
    return () => {};
  }
  root.append(
    h(
      "p",
      {},
      "Each mistake was made in the source of the layer's backward pass, which was then run and checked on the numbers of the ",
      "first image. A mistake in a sum over images was run on that image and its mirror image.",
    ),
    note ? h("p", { class: "note" }, note) : "",
  );
  const buttons = mistakes.map((mistake, i) => mistakeButton(mistake, i));
  const list = h("nav", { class: "mistake-list", "aria-label": "Mistakes by kind of layer" }, mistakeGroups(mistakes, buttons));
  const shown = h("article", { class: "mistake" });
  const options = { own: false };
  roving(list, () => orderedButtons(list), { onMove: (button) => go("mistakes", button.dataset.mistake) });
  root.append(h("div", { class: "mistakes-layout" }, list, shown));
  return (changed) => {
    if (!changed.has("details") && !changed.has("view")) return;
    const at = chosenMistake();
    buttons.forEach((button, i) => (i === at ? button.setAttribute("aria-current", "true") : button.removeAttribute("aria-current")));
    setRoving(buttons, buttons[at]);
    shown.replaceChildren(...mistakeParts(mistakes[at], options));
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

function mistakeParts(mistake, options) {
  const { title, category, kind, layer, before, after, arrays, found, verdict, sentence } = mistake;
  const gradients = h("div", {});
  const draw = () => gradients.replaceChildren(...arrays.map((each) => wrongArray(each, options.own)));
  draw();
  const rows = verdict.map(({ array, error, verdict: says }) => [array, errorText(error), says]);
  return [
    h("h2", {}, title),
    h("p", {}, `Kind of mistake: ${category}. Made in the backward pass of `, h("a", { href: address("layer", layer) }, layer), ` (${kind}).`),
    codeDiff(before, after),
    h("h3", {}, "What the gradient check reports"),
    h("p", { class: found ? "verdict" : "verdict missed" }, h("strong", {}, found ? "✓ The check finds the mistake." : "✗ The check does not find the mistake.")),
    h("blockquote", {}, sentence),
    table("Gradient check", ["array", "relative error in a random direction", "verdict"], rows),
    h("h3", {}, "What the gradients become"),
    ownScales(options, draw),
    gradients,
  ];
}

/** The choice between one scale for all maps of a gradient, and one for each. */
function ownScales(options, draw) {
  const choose = (event) => {
    options.own = event.target.checked;
    draw();
  };
  const box = h("input", { type: "checkbox", name: "own-scales", checked: options.own, onchange: choose });
  return h("p", { class: "no-print" }, h("label", {}, box, " a scale for each map, to see small gradients"));
}

/** A relative error; there is none for an array of the wrong shape, or one that is not finite. */
function errorText(error) {
  return error === null ? "not comparable" : number(error);
}

/** One gradient: right, wrong and their difference, and how far they are apart. */
function wrongArray({ array, right, wrong, difference, right_norm, wrong_norm, cosine, changed, error }, own) {
  if (!changed) return h("section", { class: "wrong-array" }, h("h4", {}, array), h("p", { class: "muted" }, "This gradient does not change."));
  const facts = [
    ["correct norm", number(right_norm)],
    ["wrong norm", number(wrong_norm)],
    ["cosine of the angle", cosine === null ? "undefined" : number(cosine)],
    ["relative error of all elements", errorText(error)],
  ];
  const list = h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  const maps = right === null || wrong === null ? null : wrongMaps(array, mapAt(right), mapAt(wrong), difference === null ? null : mapAt(difference), own);
  return h("section", { class: "wrong-array" }, h("h4", {}, array), list, maps);
}

function wrongMaps(array, right, wrong, difference, own) {
  const alike = difference !== null;
  const maps = [["correct", right], ["wrong", wrong], ...(alike ? [["wrong − correct", difference]] : [])];
  const shown = maps.map(([name, map]) => [name, mapValues(map), map]);
  const all = largest(...shown.map(([, values]) => values)) || 1;
  const figures = shown.map(([name, values, map]) => {
    const high = own ? largest(values) || 1 : all;
    const label = `${name} of ${array}, shape ${shapeText(map.of)}, cells within ±${number(largest(values), 2)}`;
    const canvas = valueCanvas({ values, rows: map.rows, cols: map.cols, low: -high, high, label });
    canvas.style.setProperty("aspect-ratio", `${map.cols} / ${Math.max(map.rows, map.cols / 8)}`); // a row alone is seen
    const caption = alike ? name : `${name}, shape ${shapeText(map.of)}`;
    return h("figure", { class: "heat-map" }, h("figcaption", {}, caption), canvas, own ? legend(-high, high) : null);
  });
  const how = alike ? right.how : `Correct: ${right.how}. Wrong: ${wrong.how}`;
  const scales = own ? "A scale for each." : "One scale for all.";
  return [h("div", { class: "three" }, figures), own ? null : legend(-all, all), h("p", { class: "muted" }, `${scales} ${how}.`)];
}
