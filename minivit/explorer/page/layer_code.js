/* The formulas of a layer and the source lines of its two passes. */

import { data } from "./data.js";
import { details, h, scrollBox } from "./dom.js";

const PASSES = ["forward", "backward"];
const TITLES = { forward: "Forward", backward: "Backward" };

/** The formulas, forward beside backward. */
export function formulaPart(kind) {
  const formulas = data.formulas[kind];
  const passes = PASSES.filter((pass) => formulas?.[pass].length);
  if (!passes.length) return h("p", { class: "muted" }, `No formulas are known for ${kind}.`);
  const columns = passes.map((pass) => {
    const lines = formulas[pass].map((markup, i) => lineOf(markup, formulas.latex[pass][i], `formula ${i + 1}, ${pass}`));
    return h("div", { class: `pass ${pass}` }, h("h4", {}, TITLES[pass]), lines);
  });
  const source = PASSES.flatMap((pass) => formulas.latex[pass]).join("\n");
  const page = formulas.page && h("p", { class: "muted" }, "Derived in ", h("code", {}, formulas.page));
  return h("section", { class: "formulas" }, h("h3", {}, "Formulas"), h("div", { class: "passes" }, columns), page, details("LaTeX", scrollBox("LaTeX", h("pre", {}, source))));
}

/** A formula, or a remark on the formulas: a line that states no equation. */
function lineOf(markup, latex, label) {
  const line = scrollBox(label, mathOf(markup));
  line.classList.toggle("remark", !latex.includes("="));
  return line;
}

/** MathML from formulas.json. It is markup of this package alone: nothing in it comes from a model or a user. */
function mathOf(markup) {
  const template = document.createElement("template");
  template.innerHTML = markup;
  return template.content;
}

/** The source lines of both passes. */
export function codePart(kind) {
  const sources = data.sources[kind];
  if (!sources?.length) return h("p", { class: "muted" }, `The source lines of ${kind} could not be read.`);
  const columns = PASSES.map((pass) => {
    const own = sources.filter(({ role }) => role === pass);
    const op = own.find(({ name }) => !name.includes(".") && !name.startsWith("_")); // what the layer's method calls
    return h("div", { class: `pass ${pass}` }, h("h4", {}, TITLES[pass]), own.map((source) => codeOf(source, source === own[0] || source === op)));
  });
  return h("section", {}, h("h3", {}, "Code"), h("div", { class: "passes" }, columns));
}

function codeOf({ name, file, line, text }, open) {
  const box = scrollBox(`${name}, from line ${line} of ${file}`, h("pre", { class: "code" }, text));
  const element = details("", h("p", { class: "muted" }, `${file}, line ${line}; without the docstring`), box);
  element.firstChild.append(h("code", {}, name));
  element.open = open;
  return element;
}
