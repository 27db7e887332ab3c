/* Depth and time: norms, update-to-weight ratios and attention distance by depth, at the kept steps of a run. */

import { chart } from "./charts.js";
import { data, isMasked } from "./data.js";
import { h, number } from "./dom.js";
import { detail, go, set, state } from "./state.js";

export const depthView = { id: "depth", title: "Depth and time", build: build };

/* The updates of a step are about a thousandth of the weights where training goes well. */
const USUAL_RATIO = 1e-3;

function build(root) {
  const { steps, note } = data.depth;
  const charts = depthCharts(chosenStep()).map((options) => chart(options));
  const slider = stepSlider(steps);
  root.append(
    h("h2", {}, `By depth, from the image to the ${isMasked ? "prediction" : "head"}`),
    note && h("p", { class: "note" }, note),
    slider.element,
    h("div", { class: "charts" }, charts.map((each) => each.element)),
  );
  return (changed) => {
    if (!changed.has("details") && !changed.has("view")) return;
    slider.update();
    depthCharts(chosenStep()).forEach((options, i) => charts[i].update(options));
  };
}

/** The number of the step that is shown, from the URL; the last one, the model of the page, if it names none. */
function chosenStep() {
  const last = data.depth.steps.length - 1;
  const asked = Number(detail("depth", last));
  return Number.isInteger(asked) && asked >= 0 && asked <= last ? asked : last;
}

function stepSlider(steps) {
  const says = h("output", { for: "depth-step" });
  const choose = (event) => set({ details: { ...state.details, depth: event.target.value } });
  const keep = (event) => go("depth", event.target.value); // the URL follows when the slider is let go
  const range = { type: "range", id: "depth-step", class: "no-print", min: 0, max: steps.length - 1, step: 1, value: chosenStep() };
  const slider = h("input", { ...range, oninput: choose, onchange: keep });
  const update = () => {
    const { label, loss } = steps[chosenStep()];
    const at = steps.length > 1 ? ` (${chosenStep() + 1} of ${steps.length})` : "";
    slider.value = chosenStep();
    slider.setAttribute("aria-valuetext", label);
    says.textContent = `${label}${at}${loss === null ? "" : `, loss ${number(loss)}`}`;
  };
  const label = steps.length > 1 ? h("label", { for: "depth-step" }, "Kept step ") : "Shown: ";
  return { element: h("div", { class: "slider" }, label, says, steps.length > 1 ? slider : null), update };
}

/** "blocks.3" as "3", "decoder_blocks.0" as "decoder 0", so that the names of all layers have room below the axis. */
function depthName(layer) {
  const own = layer.replace(/^encoder\./, "");
  return own.replace(/^blocks\./, "").replace("decoder_blocks.", "decoder ").replace("patch_embed", "embed");
}

/** The charts at a step. Their axes are those that all steps need, so that the steps can be compared. */
function depthCharts(at) {
  const { layers, steps } = data.depth;
  const step = steps[at];
  const x = { kind: "labels", label: "layer; numbers are blocks", labels: layers.map(depthName) };
  const all = (name) => steps.flatMap((each) => each[name]?.flat() ?? []);
  const series = (name, key, mark) => ({ name, mark, points: (step[key] ?? []).map((value, i) => [i, value]) });
  const log = (label, ...keys) => ({ kind: "log", label, include: keys.flatMap(all) });
  const charts = [
    {
      title: "Activations and weights",
      description: `Euclidean norms of the output and of the parameters of each layer (${step.label}).`,
      x,
      y: log("norm", "y", "weights"),
      series: [series("output y", "y", 0), series("parameters", "weights", 2)],
    },
    {
      title: "Gradients",
      description: `Euclidean norms of the gradients of the output and of the parameters of each layer (${step.label}).`,
      x,
      y: log("norm", "dy", "dparameters"),
      series: [series("gradient of the output, dy", "dy", 1), series("gradient of the parameters", "dparameters", 3)],
    },
  ];
  if (steps.some((each) => each.update_ratio)) charts.push(ratioChart(at, x, layers, all("update_ratio")));
  if (steps.some((each) => each.distance)) charts.push(distanceChart(step, all("distance")));
  const known = steps.filter((each) => each.loss !== null);
  if (known.length > 1) charts.push(lossChart(steps, at));
  return charts;
}

/** The update to the shown step, or where it has none, such as the best checkpoint, that to the last step before it. */
function ratioChart(at, x, layers, values) {
  const { steps } = data.depth;
  const from = steps.slice(0, at + 1).findLast((each) => each.update_ratio);
  const usual = { name: "rule of thumb: 0.001", points: [[0, USUAL_RATIO], [layers.length - 1, USUAL_RATIO]] };
  const text = from
    ? `The norm of the change of a parameter between two kept steps, divided by its norm and by the number of steps: the median of the layer's parameters, up to ${from.label}. Changes that cancel each other are not counted.`
    : `None at ${steps[at].label}: it needs a kept step before it.`;
  return {
    title: "Update-to-weight ratio",
    description: text,
    x,
    y: { kind: "log", label: "ratio of a step", include: [...values, USUAL_RATIO] },
    series: [{ name: "update / weights", mark: 2, points: (from?.update_ratio ?? []).map((value, i) => [i, value]) }],
    references: [usual],
  };
}

function distanceChart(step, values) {
  const blocks = Array.from({ length: data.model.depth }, (_, i) => String(i)); // one layer may be several of them
  const distance = step.distance ?? [];
  const heads = distance.flatMap((each, block) =>
    each.map((value, head) => [block, value, `block ${block}, head ${head}: ${number(value)} pixels`]),
  );
  const mean = distance.map((each, block) => [block, each.reduce((sum, value) => sum + value, 0) / each.length]);
  const count = Math.max(0, ...distance.map((each) => each.length));
  return {
    title: "Attention distance",
    description: "The mean distance between query and key of each head, weighted by the attention, in pixels.",
    x: { kind: "labels", label: "block", labels: blocks },
    y: { kind: "linear", label: "pixels", include: [0, ...values] },
    series: [{ name: "a head", mark: 0, line: false, points: heads }, { name: "mean of the heads", mark: 3, points: mean }],
    numbers: {
      head: ["block", "mean", ...Array.from({ length: count }, (_, head) => `head ${head}`)],
      rows: distance.map((each, i) => [blocks[i], number(mean[i][1]), ...each.map((value) => number(value))]),
    },
  };
}

function lossChart(steps, at) {
  const x = { kind: "labels", label: "kept step", labels: steps.map((each) => each.label) };
  const points = steps.map((each, i) => [i, each.loss]);
  return {
    title: "Loss at the kept steps",
    description: `The loss of the first image. The step that is shown (${steps[at].label}) is marked.`,
    x,
    y: { kind: "linear", label: "loss", include: [0] },
    series: [
      { name: "loss", mark: 0, points },
      { name: `shown: ${steps[at].label}`, mark: 3, line: false, points: points[at][1] === null ? [] : [points[at]] },
    ],
  };
}
