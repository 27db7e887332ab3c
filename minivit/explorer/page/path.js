/* The path: the model as the paper draws it, the norms of activations on the way up and of gradients on the way back. */

import { className, data, isMasked, layerNamed, seenText, tokenName } from "./data.js";
import { details, h, number, percent, roving, s, setRoving, table } from "./dom.js";
import { heatMap } from "./heat_map.js";
import { patchGrid } from "./patches.js";
import { drawStreams, drawToken, logScale, normColour, placeOn } from "./path_drawing.js";
import { makePlan } from "./path_plan.js";
import { followed, go, state } from "./state.js";

export const pathView = { id: "path", title: "The path", build };

function build(root) {
  const patches = data.images[0].path.some((stage) => stage.y) ? patchGrid("patch to follow") : null;
  const parts = {
    said: h("div", { class: "path-said" }),
    drawing: h("div", { class: "path-drawing", role: "group", "aria-label": "stages of the model, from the image to the loss" }),
    legend: h("div", { class: "path-legend" }),
    stage: h("p", { class: "path-stage" }), // read out as the name of the stage that has the focus
    pixels: h("section", { class: "path-pixels" }),
    token: h("p", { class: "path-token" }),
    numbers: details("All norms as a table"),
  };
  const intro = h("p", { class: "muted intro" }, INTRO);
  const left = h("div", { class: "path-image" }, patches?.element, parts.token);
  const right = h("div", { class: "path-model" }, parts.drawing, parts.legend, parts.stage, parts.pixels);
  root.append(intro, h("div", { class: "path" }, left, right, parts.said), parts.numbers);
  const path = { parts, plan: null, threads: null, buttons: [] };
  roving(parts.drawing, () => path.buttons);
  new ResizeObserver(() => drawPath(path)).observe(right);
  return (changed) => {
    patches?.update();
    if (changed.has("image")) {
      drawPath(path, true);
      showPrediction(parts.said);
      showPixels(parts.pixels);
      parts.stage.textContent = HINT;
    }
    if (changed.has("image") || changed.has("token") || changed.has("preview")) showToken(path);
  };
}

const INTRO =
  "The activations go forward (blue), and the gradient of the loss goes backward (orange). The width and the colour of each " +
  "band show its norm on a logarithmic scale. To follow a token, choose its patch with the mouse or with the arrow keys.";
const HINT = "Point at a stage to read its norms. Click it to open its layer.";

const stagesNow = () => data.images[state.image].path;

/** The scales of a path's norms, forward and backward; those of single tokens are apart. */
function scalesOf(stages, tokens) {
  const carried = stages.filter((stage) => stage.kind !== "loss");
  if (tokens) return { forward: logScale(carried.flatMap((stage) => stage.y ?? [])), backward: logScale(carried.flatMap((stage) => stage.dy ?? [])) };
  return { forward: logScale(carried.map((stage) => stage.y_norm)), backward: logScale(carried.map((stage) => stage.dy_norm)) };
}

/** Draws the path in the width that there is, unless it is drawn for this width already. */
function drawPath(path, anew = false) {
  const width = Math.floor(path.parts.drawing.clientWidth);
  if (!width || (!anew && path.width === width)) return;
  path.width = width;
  const stages = stagesNow();
  const plan = (path.plan = makePlan(stages, width));
  const scales = scalesOf(stages, false);
  const [right, bottom] = plan.across ? [plan.length, plan.size] : [plan.size, plan.length];
  path.threads = s("g");
  const svg = s("svg", { width: right, height: bottom, "aria-hidden": "true" }, drawStreams(plan, scales), path.threads);
  path.buttons = plan.boxes.map((box) => stageButton(path, box));
  const chosen = path.buttons.find((button) => button.dataset.layer === state.details.layer) ?? path.buttons[0];
  setRoving(path.buttons, chosen);
  path.parts.drawing.replaceChildren(svg, ...(followed() === null ? [] : laneNames(plan)), ...path.buttons);
  path.parts.drawing.classList.toggle("across", plan.across);
  const legends = ["forward", "backward"].map((direction) => legendOf(direction, stages, scales[direction]));
  path.parts.legend.replaceChildren(...legends, plan.across ? "" : tokenRanges());
  showToken(path);
}

function stageButton(path, { stage, text, u, v, part }) {
  const place = placeOn(path.plan);
  const [[x0, y0], [x1, y1]] = [place(u[0], v[0]), place(u[1], v[1])];
  const pixels = { left: Math.min(x0, x1), top: Math.min(y0, y1), width: Math.abs(x1 - x0), height: Math.abs(y1 - y0) };
  const style = Object.fromEntries(Object.entries(pixels).map(([key, value]) => [key, `${value}px`]));
  const tell = () => (path.parts.stage.textContent = stageText(stage) + tokenAt(stage));
  const attributes = { type: "button", class: `stage ${part}`, style, "aria-label": `${text} (${stageText(stage)})`, "data-layer": stage.layer };
  const focused = (event) => {
    tell();
    event.target.setAttribute("aria-label", `${text} (${stageText(stage)}${tokenAt(stage)})`);
  };
  return h("button", { ...attributes, onpointerenter: tell, onfocus: focused, onclick: () => go("layer", stage.layer) }, h("span", {}, text));
}

function stageText(stage) {
  if (stage.kind === "loss") return `loss: ${number(stage.y_norm)}`;
  const gradient = stage.dy_norm === null ? "" : `, gradient norm ${number(stage.dy_norm)}`;
  return `${stage.title}: activation norm ${number(stage.y_norm)}${gradient}`;
}

/** The norms of the token that is followed at a stage, if it is there. */
function tokenAt(stage) {
  const token = followed();
  const norms = [stage.y, stage.dy].map((each) => each?.[token] ?? null).filter((norm) => norm !== null);
  return norms.length ? `; ${tokenName(token)}: ${norms.map((norm) => number(norm)).join(" and ")}` : "";
}

/** What is drawn in each lane, in words; on a narrow screen they stand along the lane, and the ranges in the legend. */
function laneNames(plan) {
  const scales = scalesOf(stagesNow(), true);
  return plan.lanes.map(([low, high], i) => {
    const scale = i ? scales.backward : scales.forward;
    if (!scale.any) return "";
    const text = `${i ? "gradient" : "activation"} of the token`; // there is no room for more along a narrow lane
    if (!plan.across) return h("span", { class: "lane-name", style: { left: `${(low + high) / 2 - 9}px`, top: "4px" } }, text);
    const place = { left: "4px", top: `${high - 22}px` };
    return h("span", { class: "lane-name", style: place }, `norm of the ${i ? "gradient" : "activation"} of this token; the band is the range over all tokens, ${rangeText(scale)}`);
  });
}

function tokenRanges() {
  const { forward, backward } = scalesOf(stagesNow(), true);
  const ranges = [forward.any && `activations ${rangeText(forward)}`, backward.any && `gradients ${rangeText(backward)}`].filter(Boolean);
  return ranges.length ? h("div", {}, `norms of all tokens (bands): ${ranges.join(", ")}`) : "";
}

function rangeText({ low, high }) {
  return `${number(low, 2)} to ${number(high, 2)}`;
}

/** Three sample widths with their norms, or why there are none. */
function legendOf(direction, stages, { low, middle, high, part, any }) {
  const name = direction === "forward" ? "norm of the activation" : "norm of the gradient";
  const without = !isMasked && stages.every((stage) => stage.dy_norm === null) && data.images[state.image].label === null;
  if (!any) return h("div", {}, direction === "backward" && without ? NO_GRADIENT : `${direction}: no ${name} is finite and above zero`);
  const sample = (value) => {
    const bar = h("span", { class: "sample", style: { height: `${3 + 25 * part(value)}px`, background: normColour(direction, part(value)) } });
    return h("span", { class: "sample-value" }, bar, number(value, 3));
  };
  return h("div", {}, h("span", {}, `${direction}: ${name}`), [low, middle, high].map(sample));
}

const NO_GRADIENT = "backward: there is no label, so there is no loss and no gradient";

/** Follows the token: its threads and lanes, in words, and in the table. */
function showToken(path) {
  const stages = stagesNow();
  const token = followed();
  if (path.plan) path.threads.replaceChildren(...(token === null ? [] : drawToken(path.plan, token, scalesOf(stages, true))));
  path.parts.token.replaceChildren(...(token === null ? [] : tokenText(stages, token)));
  if (path.parts.numbers.open) showNumbers(path.parts.numbers);
  path.parts.numbers.ontoggle = () => path.parts.numbers.open && showNumbers(path.parts.numbers);
}

function tokenText(stages, token) {
  const known = stages.filter((stage) => (stage.y?.[token] ?? null) !== null);
  if (!known.length) return [`The ${tokenName(token)} has no finite norm at any stage.`];
  const [first, last] = [known[0], known.at(-1)];
  const titleOf = (stage) => layerNamed(data.images[state.image], stage.layer)?.title ?? stage.title;
  const norms = (key) => `${number(first[key][token])} after ${titleOf(first)}, ${number(last[key][token])} after ${titleOf(last)}`;
  const texts = [h("strong", {}, `Following the ${tokenName(token).replace("patch row", "patch in row")}`), `. Activation: ${norms("y")}.`];
  if (first.dy && last.dy) texts.push(` Gradient: ${norms("dy")}.`);
  if (last.dy?.[token] === 0 && stages.some((stage) => stage.dy_norm)) texts.push(" It is zero where nothing after it reads this token.");
  return texts;
}

function showNumbers(box) {
  const token = followed();
  const norms = (stage) => [number(stage.y_norm), stage.dy_norm === null ? "–" : number(stage.dy_norm)];
  const its = (values) => ((values?.[token] ?? null) === null ? "–" : number(values[token]));
  const rows = stagesNow().map((stage) => [stage.title, ...norms(stage), its(stage.y), its(stage.dy)]);
  const head = ["stage", "activation", "gradient", "activation of the token", "gradient of the token"];
  box.replaceChildren(box.firstChild, table("Norms along the path", head, rows));
}

/** What the model sees, where it hides patches; else the five classes that it finds most probable. */
function showPrediction(box) {
  if (isMasked) return showSeen(box);
  const { probabilities, label, label_predicted: unknown } = data.images[state.image];
  if (probabilities.includes(null)) return box.replaceChildren(h("h2", {}, "Prediction"), h("p", { class: "note" }, "The logits are not finite."));
  const order = probabilities.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 5);
  const row = (i) => [
    h("span", { class: "class-name" }, h("bdi", {}, className(i)), i === label && !unknown ? " (label)" : ""),
    h("span", { class: "class-bar" }, h("span", { style: { width: `${100 * probabilities[i]}%` } })),
    h("span", { class: "class-share" }, percent(probabilities[i])),
  ];
  box.replaceChildren(h("h2", {}, "Prediction"), h("div", { class: "class-bars" }, order.map(row)));
}

/** The image with the patches that the model sees, and the loss. */
function showSeen(box) {
  const { name, loss, seen } = data.images[state.image];
  const picture = h("img", { src: seen.png, alt: `the patches of ${name} that the model sees` });
  const text = `${seenText(seen)}: ${number(loss)}.`;
  box.replaceChildren(h("h2", {}, "What the model sees"), h("div", { class: "seen-image" }, picture), h("p", {}, text));
}

/** The end of the backward pass: the gradient of the loss with respect to the pixels. */
function showPixels(box) {
  const { dimage } = data.images[state.image];
  if (dimage === null) return box.replaceChildren();
  const text = "The backward pass ends here. A small change of a bright pixel changes the loss the most.";
  const map = heatMap(dimage, "the norm over the channels of the gradient of the loss with respect to each pixel");
  box.replaceChildren(h("h2", {}, "Gradient of the loss with respect to the pixels"), h("p", {}, text), map);
}
