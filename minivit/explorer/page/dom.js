/* Small helpers: elements, numbers as text, keyboard movement within a group. */

const SVG = "http://www.w3.org/2000/svg";

/** Sets attributes; a function is a listener, null and false leave the attribute out. Styles go through CSSOM. */
function setAttributes(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? "" : value);
  }
}

/**
 * Makes an HTML element: h("p", {class: "note"}, "text", child). Strings become text, never markup.
 * @returns {HTMLElement}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  setAttributes(element, attributes);
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Makes an SVG element in the same way. @returns {SVGElement} */
export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  setAttributes(element, attributes);
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A number with four significant digits; null stands for NaN and infinity. */
export function number(value, digits = 4) {
  if (value === null || value === undefined) return "not finite";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e-3 && size < 10 ** digits ? value.toPrecision(digits) : value.toExponential(digits - 1);
  return text.replace("e+", "e");
}

/** A share as a percentage with one digit after the point. */
export function percent(share) {
  return share === null ? number(share) : `${(100 * share).toFixed(1)} %`;
}

/** A whole number with its digits in groups of three. */
export function whole(value) {
  return value.toLocaleString("en");
}

/** A shape such as [1, 65, 192] as "1 × 65 × 192". */
export function shapeText(shape) {
  return shape.length ? shape.join(" × ") : "a single number";
}

/** A table: `head` is a list of texts, `rows` a list of lists of texts or elements. It scrolls in its own box. */
export function table(caption, head, rows) {
  const body = rows.map((row) => h("tr", {}, row.map((cell, i) => h(i ? "td" : "th", i ? {} : { scope: "row" }, cell))));
  const columns = head.map((text) => h("th", { scope: "col" }, text));
  const inner = h("table", {}, h("caption", {}, caption), h("thead", {}, h("tr", {}, columns)), h("tbody", {}, body));
  return scrollBox(caption, inner);
}

/** A box that scrolls sideways by itself, and can be reached and scrolled by keyboard. */
export function scrollBox(label, ...children) {
  return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": label }, children);
}

/** What can be opened: <details> with a summary. */
export function details(summary, ...children) {
  return h("details", {}, h("summary", {}, summary), children);
}

/**
 * Arrow keys move the focus among `items`, of which one alone is in the tab order (roving tabindex).
 * @param {HTMLElement} group
 * @param {() => HTMLElement[]} items - those that are shown now
 * @param {{columns?: number, onMove?: (item: HTMLElement) => void}} [options] - with columns the items form a grid
 */
export function roving(group, items, { columns = 1, onMove = () => {} } = {}) {
  group.addEventListener("keydown", (event) => {
    const all = items();
    const at = all.indexOf(document.activeElement);
    const down = columns > 1 ? columns : 1;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: down, ArrowUp: -down };
    const to = event.key === "Home" ? 0 : event.key === "End" ? all.length - 1 : at + (steps[event.key] ?? NaN);
    if (at < 0 || event.altKey || event.ctrlKey || event.metaKey || !all[to]) return;
    event.preventDefault();
    setRoving(all, all[to]);
    all[to].focus();
    onMove(all[to]);
  });
}

/** Puts one of `items` in the tab order and takes the others out. */
export function setRoving(items, current) {
  for (const item of items) item.tabIndex = item === current ? 0 : -1;
}
