/* The drawing of the path in SVG: two streams whose width and colour are norms, their branches, and the token followed. */

import { s } from "./dom.js";

const STREAM = [3, 28]; // pixels, from the least to the largest norm
const BRANCH = [1.5, 9];
const THREAD = [1, 4.5];
let gradients = 0;

/**
 * A logarithmic scale of norms: `part` is 0 at the least and 1 at the largest, null where there is no logarithm; `any` says
 * whether there is one of any value.
 */
export function logScale(values) {
  const known = values.filter((value) => value > 0);
  const low = known.length ? Math.min(...known) : 1;
  const high = known.length ? Math.max(...known) : 1;
  const part = (value) => (!(value > 0) ? null : high > low ? Math.log(value / low) / Math.log(high / low) : 0.5);
  return { low, high, middle: Math.sqrt(low * high), part, any: known.length > 0 };
}

/** The CSS colour of a part of a scale, "forward" or "backward". */
export function normColour(direction, part) {
  return `color-mix(in oklab, var(--${direction}) ${Math.round(30 + 70 * (part ?? 0))}%, var(--ramp))`;
}

function widthOf([least, most], part) {
  return part === null ? 0 : least + part * (most - least);
}

/**
 * Draws the streams and branches of a plan.
 * @param {object} plan - from makePlan
 * @param {{forward: object, backward: object}} scales - of y_norm and dy_norm
 */
export function drawStreams(plan, scales) {
  const place = placeOn(plan);
  const block = ([start, end]) => rectangle(place, [start, end], [0, plan.backward + 30], { class: "path-block", rx: 8 });
  return [
    plan.blocks.map(block),
    branches(plan, place, "forward", scales.forward),
    branches(plan, place, "backward", scales.backward),
    stream(plan, place, "forward", scales.forward, STREAM, (stage) => stage.y_norm),
    stream(plan, place, "backward", scales.backward, STREAM, (stage) => stage.dy_norm),
    arrows(plan, place, scales),
  ].flat(2);
}

/** Draws the token that is followed: a thread within each stream, and its norm among those of all tokens in the lanes. */
export function drawToken(plan, token, scales) {
  const place = placeOn(plan);
  const lane = (direction, key, [low, high]) => tokenLane(plan, place, token, { direction, key, low, high, scale: scales[direction] });
  return [
    stream(plan, place, "forward", scales.forward, THREAD, (stage) => stage.y?.[token], "thread"),
    stream(plan, place, "backward", scales.backward, THREAD, (stage) => stage.dy?.[token], "thread"),
    scales.forward.any ? lane("forward", "y", plan.lanes[0]) : [],
    scales.backward.any ? lane("backward", "dy", plan.lanes[1]) : [],
  ].flat(2);
}

/** From u and v to x and y on the screen. */
export function placeOn({ across, length }) {
  return across ? (u, v) => [u, v] : (u, v) => [v, length - u];
}

function rectangle(place, [u0, u1], [v0, v1], attributes) {
  const [[x0, y0], [x1, y1]] = [place(u0, v0), place(u1, v1)];
  const box = { x: Math.min(x0, x1), y: Math.min(y0, y1), width: Math.abs(x1 - x0), height: Math.abs(y1 - y0) };
  return s("rect", { ...box, ...attributes });
}

/** A ribbon for each unbroken run of stops that have a value; its colour changes along it. */
function stream(plan, place, direction, scale, widths, valueOf, look = "stream") {
  const runs = [[]];
  for (const { u, stage } of plan.stops) {
    const part = scale.part(valueOf(stage));
    if (part === null) runs.push([]);
    else runs.at(-1).push({ u, part });
  }
  return runs.filter((run) => run.length).map((run) => ribbon(run, plan[direction], place, direction, widths, look));
}

function ribbon(run, middle, place, direction, widths, look) {
  const points = run.flatMap(({ u, part }) => u.map((at) => ({ u: at, part, half: widthOf(widths, part) / 2 })));
  const there = points.map(({ u, half }) => [u, middle - half]);
  const back = points.map(({ u, half }) => [u, middle + half]).reverse();
  const shape = `M${smooth(place, there)}L${smooth(place, back)}Z`;
  if (look !== "stream") return s("path", { class: look, d: shape });
  const id = `norms-${++gradients}`;
  const [[x1, y1], [x2, y2]] = [place(points[0].u, 0), place(points.at(-1).u, 0)];
  const length = points.at(-1).u - points[0].u || 1;
  const stops = points.map(({ u, part }) =>
    s("stop", { offset: (u - points[0].u) / length, style: { "stop-color": normColour(direction, part) } }),
  );
  const fill = s("linearGradient", { id, gradientUnits: "userSpaceOnUse", x1, y1, x2, y2 }, stops);
  return s("g", {}, fill, s("path", { class: look, d: shape, fill: `url(#${id})` }));
}

/** The points of an edge, which leaves and reaches each of them along the path. */
function smooth(place, points) {
  return points
    .map(([u, v], i) => {
      if (!i) return place(u, v).join(" ");
      const [before, last] = points[i - 1];
      const half = (before + u) / 2;
      return `C${[place(half, last), place(half, v), place(u, v)].map((point) => point.join(" ")).join(" ")}`;
    })
    .join("");
}

/** Attention and MLP: a branch leaves the stream, passes through its node and returns. */
function branches(plan, place, direction, scale) {
  const norm = direction === "forward" ? "y_norm" : "dy_norm";
  const [side, node] = direction === "forward" ? [1, plan.nodes[0]] : [-1, plan.nodes[1]];
  const edge = plan[direction] + 6 * side;
  return plan.loops.flatMap(({ stage, middle, reach }) => {
    const part = scale.part(stage[norm]);
    if (part === null) return [];
    const look = { stroke: normColour(direction, part), "stroke-width": widthOf(BRANCH, part) };
    return [-1, 1].map((way) => {
      const curve = [[reach, edge], [5, edge], [5, node - 12 * side], [5, node]];
      const [from, ...others] = curve.map(([u, v]) => place(middle + way * u, v).join(" "));
      return s("path", { class: "branch", d: `M${from}C${others.join(" ")}`, style: look });
    });
  });
}

/** The directions: an arrow at the end of each stream. */
function arrows(plan, place, scales) {
  if (!plan.stops.length) return [];
  const [first, last] = [plan.stops[0], plan.stops.at(-1)];
  const arrow = (u, v, to, direction) => {
    const corners = [place(u, v - 7), place(u + to, v), place(u, v + 7)].map((point) => point.join(" "));
    return s("path", { class: `arrow ${direction}`, d: `M${corners.join("L")}Z` });
  };
  return [
    scales.forward.any ? arrow(last.u[1] - 9, plan.forward, 9, "forward") : [],
    scales.backward.any ? arrow(first.u[0] + 9, plan.backward, -9, "backward") : [],
  ];
}

/** The norm of a token at each stage as a line, over a band from the least to the largest norm of any token. */
function tokenLane(plan, place, token, { direction, key, low, high, scale }) {
  const at = (value) => low + (scale.part(value) ?? 0) * (high - low);
  const places = plan.stops
    .filter(({ stage }) => stage[key])
    .map(({ u, stage }) => ({ u: (u[0] + u[1]) / 2, value: stage[key][token], known: stage[key].filter((norm) => norm > 0) }));
  const banded = places.filter(({ known }) => known.length);
  const there = banded.map(({ u, known }) => place(u, at(Math.max(...known))).join(" "));
  const back = banded.map(({ u, known }) => place(u, at(Math.min(...known))).join(" ")).reverse();
  const line = places.map(({ u, value }, i) => {
    const joined = i > 0 && places[i - 1].value > 0;
    return value > 0 ? `${joined ? "L" : "M"}${place(u, at(value)).join(" ")}` : "";
  });
  const dots = places.filter(({ value }) => value !== null).map(({ u, value }) => {
    const [cx, cy] = place(u, at(value));
    return s("circle", { class: value > 0 ? "token-dot" : "token-dot none", cx, cy, r: 3 });
  });
  return [
    rectangle(place, [0, plan.length], [Math.min(low, high) - 4, Math.max(low, high) + 4], { class: "lane", rx: 4 }),
    there.length ? s("path", { class: `band ${direction}`, d: `M${[...there, ...back].join("L")}Z` }) : [],
    s("path", { class: "token-line", d: line.join("") }),
    dots,
  ];
}
