/* Charts in SVG: lines and points on linear, logarithmic or labelled axes, and histograms. Each has a title, a
   description, a legend where it needs one, and its numbers as a table. */

import { CHART_ROOM, chartAxis, drawable } from "./axes.js";
import { details, h, number, s, table } from "./dom.js";

/* Series are told apart by mark and by dashes as well as by colour. The marks are paths around (0, 0). */
const MARKS = [
  "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0",
  "M-3.5,-3.5h7v7h-7z",
  "M0,-4.6L4.4,3.4H-4.4z",
  "M0,-5L5,0L0,5L-5,0z",
  "M-4,-4L4,4M4,-4L-4,4",
];
const DASHES = ["none", "7 3", "2 3", "8 3 2 3", "12 4"];

let chartsMade = 0;

/**
 * @typedef {{name: string, points: [number, number | null, string?][], line?: boolean, mark?: number}} Series
 *   a point is x, y and, if they are not enough, a text about it; `line` is true by default; `mark` chooses the look
 * @typedef {{kind: "linear" | "log" | "labels", label: string, labels?: string[], include?: number[]}} Axis
 *   `labels` are the names of 0, 1, 2, ...; the axis is as long as the data and `include` need
 * @typedef {{title: string, description: string, x: Axis, y: Axis, series: Series[], references?: Series[],
 *   numbers?: {head: string[], rows: string[][]}, height?: number}} Chart
 *   `references` are lines to compare with, without marks; they do not stretch the axes
 */

/**
 * A chart of lines and points. `update` draws another one in its place, and leaves its table open or closed as it was.
 * @param {Chart} options
 * @returns {{element: HTMLElement, update: (options: Chart) => void}}
 */
export function chart(options) {
  const id = `chart-${++chartsMade}`;
  const svg = s("svg", { class: "plot", role: "img", "aria-labelledby": `${id}-title`, "aria-describedby": `${id}-text` });
  const caption = h("figcaption", { id: `${id}-title` });
  const about = h("p", { class: "muted", id: `${id}-text` });
  const legend = h("ul", { class: "chart-legend" });
  const missing = h("p", { class: "chart-missing" });
  const numbers = details("Numbers");
  const element = h("figure", { class: "chart" }, caption, about, legend, svg, missing, numbers);
  let drawn = 0;

  const draw = (width) => {
    drawn = width;
    const { height = 240 } = options;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(...chartParts(options, width, height));
  };
  const update = (next) => {
    options = next;
    const { title, description, series, references = [] } = options;
    caption.textContent = title;
    about.textContent = description;
    const keys = [...series.map(legendKey), ...references.map(referenceKey)];
    legend.replaceChildren(...(keys.length > 1 ? keys : []));
    missing.textContent = missingText(options);
    const { head, rows } = options.numbers ?? seriesNumbers(options);
    numbers.replaceChildren(numbers.firstChild, table(title, head, rows));
    draw(drawn || 480);
  };
  update(options);
  new ResizeObserver(([entry]) => {
    const width = Math.round(entry.contentRect.width);
    if (width > 0 && width !== drawn) draw(width);
  }).observe(element);
  return { element, update };
}

/** The axes, references and series of a chart, drawn in the order in which they cover each other. */
function chartParts({ x, y, series, references = [] }, width, height) {
  const points = series.flatMap((each) => each.points);
  const vertical = chartAxis(y, points.map((point) => point[1]), height - CHART_ROOM.bottom, CHART_ROOM.top);
  const left = 12 + 7 * Math.max(...vertical.ticks.map((tick) => tick.text.length));
  const across = chartAxis(x, points.map((point) => point[0]), left, width - CHART_ROOM.right);
  const [bottom, right] = [height - CHART_ROOM.bottom, width - CHART_ROOM.right];
  const grid = vertical.ticks.map(({ at, text }) => [
    s("line", { class: "grid", x1: left, x2: right, y1: at, y2: at }),
    s("text", { x: left - 6, y: at, "text-anchor": "end", "dominant-baseline": "central" }, text),
  ]);
  const below = across.ticks.map(({ at, text }) => [
    s("line", { class: "tick", x1: at, x2: at, y1: bottom, y2: bottom + 4 }),
    s("text", { x: at, y: bottom + 17, "text-anchor": "middle" }, text),
  ]);
  const names = [
    s("text", { class: "axis-name", x: 0, y: 11 }, y.label),
    s("text", { class: "axis-name", x: right, y: height - 4, "text-anchor": "end" }, x.label),
  ];
  const place = ([px, py, about]) => [across.at(px), vertical.at(py), pointText(x, px, py, about)];
  const window = s("svg", { x: left, y: CHART_ROOM.top, width: right - left, height: bottom - CHART_ROOM.top });
  window.setAttribute("viewBox", `${left} ${CHART_ROOM.top} ${right - left} ${bottom - CHART_ROOM.top}`);
  window.append(...references.map((each) => s("path", { class: "reference", d: linePath(each.points.map(place)) })));
  const axis = s("path", { class: "axis", d: `M${left},${CHART_ROOM.top}V${bottom}H${right}` });
  return [...grid, ...below, names, axis, window, ...series.map((each, i) => seriesParts(each, i, place))].flat(2);
}

function seriesParts({ name, points, line = true, mark }, i, place) {
  const look = (mark ?? i) % MARKS.length;
  const placed = points.map(place);
  const path = s("path", { class: "line", d: linePath(placed), "stroke-dasharray": DASHES[look] });
  const marks = placed
    .filter(([px, py]) => px !== null && py !== null)
    .map(([px, py, text]) => {
      const shift = `translate(${px.toFixed(1)} ${py.toFixed(1)})`;
      return s("path", { class: "mark", d: MARKS[look], transform: shift }, s("title", {}, `${name}: ${text}`));
    });
  return s("g", { class: `series look-${look}` }, line ? path : null, marks);
}

/** A line through the points; it is broken where one cannot be drawn. */
function linePath(placed) {
  let open = false;
  return placed
    .map(([px, py]) => {
      const here = px !== null && py !== null;
      const step = here ? `${open ? "L" : "M"}${px.toFixed(1)},${py.toFixed(1)}` : "";
      open = here;
      return step;
    })
    .join("");
}

function pointText(x, px, py, about) {
  return about ?? `${x.kind === "labels" ? x.labels[px] : number(px)}, ${number(py)}`;
}

function legendKey({ name, line = true, mark }, i) {
  const look = (mark ?? i) % MARKS.length;
  const stroke = line ? s("path", { class: "line", d: "M1,8H31", "stroke-dasharray": DASHES[look] }) : null;
  const sign = s("path", { class: "mark", d: MARKS[look], transform: "translate(16 8)" });
  const picture = s("svg", { class: `series look-${look}`, width: 32, height: 16, "aria-hidden": "true" }, stroke, sign);
  return h("li", {}, picture, name);
}

function referenceKey({ name }) {
  const picture = s("svg", { width: 32, height: 16, "aria-hidden": "true" }, s("path", { class: "reference", d: "M1,8H31" }));
  return h("li", {}, picture, name);
}

/** Says how many points a logarithmic axis cannot show, or are not finite; "" if there are none. */
function missingText({ x, y, series }) {
  const hidden = (axis, value) => !drawable(axis.kind, value);
  const count = series.flatMap((each) => each.points).filter(([px, py]) => hidden(x, px) || hidden(y, py)).length;
  const why = x.kind === "log" || y.kind === "log" ? "zero, not there or not finite" : "not there or not finite";
  return count ? `Not drawn: ${count} ${count === 1 ? "number that is" : "numbers that are"} ${why}.` : "";
}

/** The points of all series as a table: a row for each x, a column for each series. */
function seriesNumbers({ x, series }) {
  const places = [...new Set(series.flatMap((each) => each.points.map((point) => point[0])))];
  const rows = places.map((px) => [
    x.kind === "labels" ? x.labels[px] : number(px),
    ...series.map(({ points }) => {
      const found = points.filter((point) => point[0] === px);
      const texts = found.map(([, value]) => (value === null ? "–" : number(value))); // null also where there is none
      return texts.join(", ") || "–";
    }),
  ]);
  return { head: [x.label, ...series.map((each) => each.name)], rows };
}

/**
 * A histogram of equal bins from `low` to `high`, as a figure without axes: it is small, and many stand side by side.
 * @param {{title: string, counts: number[], low: number, high: number}} options
 * @returns {HTMLElement}
 */
export function histogram({ title, counts, low, high }) {
  const id = `chart-${++chartsMade}`;
  const [width, height, most] = [8 * counts.length, 72, Math.max(1, ...counts)];
  const edge = (i) => number(low + (i / counts.length) * (high - low));
  const text = `${counts.length} bins from ${number(low)} to ${number(high)}; the largest has ${most} numbers.`;
  const bars = counts.map((count, i) => {
    const tall = count ? Math.max(1, (count / most) * height) : 0; // a bin that is not empty is seen
    const bar = { class: "bar", x: 8 * i + 0.5, y: height - tall, width: 7, height: tall };
    return s("rect", bar, s("title", {}, `${edge(i)} to ${edge(i + 1)}: ${count}`));
  });
  const parts = [s("title", { id: `${id}-title` }, title), s("desc", { id: `${id}-text` }, text), bars];
  if (low < 0 && high > 0) {
    const zero = (-low / (high - low)) * width;
    parts.push(s("line", { class: "zero", x1: zero, x2: zero, y1: 0, y2: height }));
  }
  const box = { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" };
  const svg = s("svg", { ...box, class: "histogram", role: "img", "aria-labelledby": `${id}-title ${id}-text` }, parts);
  const ends = h("div", { class: "histogram-ends" }, h("span", {}, number(low)), h("span", {}, number(high)));
  const rows = counts.map((count, i) => [`${edge(i)} to ${edge(i + 1)}`, String(count)]);
  return h("figure", { class: "histogram-figure" }, svg, ends, details("Counts", table(title, ["bin", "numbers"], rows)));
}
