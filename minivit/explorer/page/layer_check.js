/* The gradient check of a layer on the first image: the errors, and how the Taylor remainder falls with the step. */

import { chart } from "./charts.js";
import { data } from "./data.js";
import { h, number, shapeText, table } from "./dom.js";
import { address } from "./state.js";

/** The check of a layer in a few words, for its head; "" if it was not checked. */
export function checkWords(layer) {
  const errors = (data.checks[layer.name]?.rows ?? []).filter(({ verdict }) => verdict !== "skipped").map(({ error }) => error);
  if (!errors.length) return "";
  const { passed } = data.checks[layer.name];
  return `${passed ? "✓ gradient check passed" : "✗ gradient check failed"}, largest relative error ${errors.includes(null) ? number(null) : number(Math.max(...errors))}`;
}

/** The check of a layer, and the mistakes that were tried on it; null if there is neither. */
export function checkPart(layer) {
  const check = data.checks[layer.name];
  const parts = [...(check ? checkParts(check) : []), ...mistakeLinks(layer)];
  return parts.length ? h("section", { class: "check" }, h("h3", {}, "The gradient check on the first image"), parts) : null;
}

function checkParts(check) {
  const skipped = check.rows.filter(({ verdict }) => verdict === "skipped");
  if (skipped.length === check.rows.length) return [h("p", {}, skipped.map(({ note }) => note).join("; "))];
  const verdict = check.passed ? "✓ The gradients are correct" : "✗ A gradient is wrong";
  const about = `Computed for the first image on ${check.input}; time: ${number(check.seconds, 2)} s.`;
  const rows = check.rows.map(({ array, shape, norm, error, slope, verdict: says, method, note }) => [
    array, shapeText(shape), number(norm), number(error), slopeText(slope), says, [method, note].filter(Boolean).join("; "),
  ]);
  const head = ["array", "shape", "norm of the gradient", "relative error", "slope", "verdict", "method"];
  return [
    h("p", { class: check.passed ? "verdict" : "verdict missed" }, `${verdict}. `, h("span", { class: "muted" }, about)),
    h("p", { class: "muted" }, "Each gradient is compared with the derivative of the forward pass in a random direction."),
    table("Errors of the gradients", head, rows),
    ...taylorParts(check.taylor),
  ];
}

function slopeText(slope) {
  return slope === null ? "–" : typeof slope === "number" ? number(slope, 3) : slope;
}

/**
 * The remainder f(x + h v) − f(x) − h ⟨dx, v⟩ over h: with the right gradient it falls with the square of h. In an array
 * in which the layer is linear there is none but rounding.
 */
function taylorParts(taylor) {
  const drawn = taylor.filter(({ slope, remainder }) => slope !== "linear" && remainder.some((value) => value > 0));
  const linear = taylor.filter(({ slope }) => slope === "linear");
  const most = Math.max(...linear.flatMap(({ remainder }) => remainder));
  const text = `The layer is linear in ${linear.map(({ array }) => array).join(", ")}: the Taylor remainder is rounding alone, at most ${number(most)} at any step.`;
  return [linear.length ? h("p", {}, text) : null, drawn.length ? taylorChart(drawn) : null];
}

function taylorChart(drawn) {
  const series = drawn.map(({ array, h: steps, remainder, slope }) => ({
    name: `${array}: slope ${slopeText(slope)}`,
    line: false, // so that the line of slope 2 is seen
    points: steps.map((step, i) => [step, remainder[i]]),
  }));
  const [step, remainder] = series[0].points.reduce((best, point) => (point[0] > best[0] ? point : best));
  const least = Math.min(...drawn.flatMap(({ h: steps }) => steps));
  const square = { name: "slope 2", points: [[least, remainder * (least / step) ** 2], [step, remainder]] };
  return chart({
    title: "Taylor remainder",
    description: 
      "The error of the linear approximation with this gradient, by the step h. If the gradient is correct, the error falls " +
      "with the square of h (slope 2); if not, with h (slope 1). At the smallest steps it is rounding alone.",
    x: { kind: "log", label: "step h" },
    y: { kind: "log", label: "remainder" },
    series,
    references: [square],
  }).element;
}

/** Links to the mistakes that were made in this layer, or in another one of its kind. */
function mistakeLinks(layer) {
  const all = data.mistakes.map((mistake, i) => ({ ...mistake, i }));
  const own = all.filter((mistake) => mistake.layer === layer.name);
  const found = own.length ? own : all.filter((mistake) => mistake.kind === layer.kind);
  if (!found.length) return [];
  const where = own.length ? "Typical mistakes in this layer:" : `Typical mistakes in a layer of this kind, ${found[0].layer}:`;
  const links = found.map(({ title, i }) => h("li", {}, h("a", { href: address("mistakes", String(i)) }, title)));
  return [h("p", { class: "mistake-intro" }, where), h("ul", {}, links)];
}
