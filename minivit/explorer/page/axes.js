/* The axes of charts: where a value lies, and the ticks that have room. */

/** The room in pixels around the area of a chart; that on the left depends on the ticks. */
export const CHART_ROOM = { top: 22, right: 22, bottom: 40 };

const SUPERSCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹";

/** Whether an axis can show a value: it is finite, and on a logarithmic axis above zero and not subnormal. */
export function drawable(kind, value) {
  return value !== null && Number.isFinite(value) && (kind !== "log" || value > 1e-300);
}

/**
 * An axis from pixel `from` to pixel `to`. `at` gives the pixel of a value, null if it cannot be drawn.
 * @param {{kind: "linear" | "log" | "labels", labels?: string[], include?: number[]}} options
 * @param {(number | null)[]} values
 * @returns {{at: (value: number | null) => number | null, ticks: {at: number, text: string}[]}}
 */
export function chartAxis({ kind, labels = [], include = [] }, values, from, to) {
  const known = [...values, ...include].filter((value) => drawable(kind, value));
  const [low, high, ticks] =
    kind === "labels" ? labelTicks(labels) : kind === "log" ? logTicks(known) : linearTicks(known);
  const measure = kind === "log" ? Math.log10 : (value) => value;
  const share = (value) => (measure(value) - measure(low)) / (measure(high) - measure(low));
  const at = (value) => (drawable(kind, value) ? from + share(value) * (to - from) : null);
  const placed = ticks.map(([value, text]) => ({ at: at(value), text }));
  return { at, ticks: withRoom(placed, from > to) };
}

/** Every tick, or every second, third ... of them: as many as have room beside each other. */
function withRoom(ticks, upright) {
  const size = ({ text }) => (upright ? 16 : 7 * text.length + 8);
  const fits = (some) => some.every((tick, i) => !i || Math.abs(tick.at - some[i - 1].at) >= (size(tick) + size(some[i - 1])) / 2);
  for (let every = 1; ; every++) {
    const some = ticks.filter((_, i) => i % every === 0);
    if (fits(some)) return some;
  }
}

function labelTicks(labels) {
  return [-0.5, Math.max(labels.length, 1) - 0.5, labels.map((text, i) => [i, text])];
}

function linearTicks(values) {
  if (!values.length) return [0, 1, [[0, "0"], [1, "1"]]];
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const span = most - least || Math.abs(most) || 1;
  const rough = span / 4;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find((times) => times * unit >= rough * 0.999);
  const [first, last] = [Math.floor(least / step), Math.max(Math.ceil(most / step), Math.floor(least / step) + 1)];
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const text = (value) => (digits > 4 || Math.abs(value) >= 1e6 ? value.toExponential(1) : value.toFixed(digits));
  const ticks = Array.from({ length: last - first + 1 }, (_, i) => [(first + i) * step, text((first + i) * step)]);
  return [first * step, last * step, ticks];
}

/** Ticks at powers of ten, or at 1, 2, 5, 10 ... where the values lie close together. */
function logTicks(values) {
  if (!values.length) return [0.1, 1, [[0.1, "0.1"], [1, "1"]]];
  const steps = [];
  const lowest = Math.floor(Math.log10(Math.min(...values)));
  const highest = Math.ceil(Math.log10(Math.max(...values)) + 1e-9);
  for (let power = lowest; power <= highest; power++) for (const times of [1, 2, 5]) steps.push([times, power]);
  const value = ([times, power]) => times * 10 ** power;
  const first = steps.findLastIndex((step) => value(step) <= Math.min(...values) * (1 + 1e-9));
  const last = steps.findIndex((step, i) => i > first && value(step) >= Math.max(...values) * (1 - 1e-9));
  const shown = steps.slice(Math.max(first, 0), last + 1);
  const [low, high] = [value(shown[0]), value(shown[shown.length - 1])];
  const decades = shown.filter(([times]) => times === 1);
  const plain = low >= 1e-3 && high <= 1e4;
  return [low, high, (decades.length > 2 ? decades : shown).map((step) => [value(step), logText(step, plain)])];
}

function logText([times, power], plain) {
  if (plain) return String(Number((times * 10 ** power).toPrecision(1)));
  const raised = [...String(Math.abs(power))].map((digit) => SUPERSCRIPT[digit]).join("");
  return `${times === 1 ? "" : `${times} · `}10${power < 0 ? "⁻" : ""}${raised}`;
}
