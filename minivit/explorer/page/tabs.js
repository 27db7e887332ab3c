/* The views as tabs; a view is built when it is first opened. */

import { h, roving, setRoving } from "./dom.js";
import { go, onChange, state } from "./state.js";

/**
 * A view: `build(root)` fills its panel once and returns `update(changed)`, which is called after that and after each
 * change of the state while the view is shown.
 * @typedef {{id: string, title: string, build: (root: HTMLElement) => ((changed: Set<string>) => void)}} View
 */

const EVERYTHING = new Set(["view", "image", "token", "preview", "details"]);

/** Makes the tabs and panels. @param {View[]} views @returns {{list: HTMLElement, panels: HTMLElement[]}} */
export function makeTabs(views) {
  const tabs = views.map(({ id, title }) => tab(id, title));
  const panels = views.map(({ id, title }) => panel(id, title));
  const list = h("div", { class: "tabs", role: "tablist", "aria-label": "views" }, tabs);
  const updates = new Map();
  roving(list, () => tabs, { onMove: (moved) => go(moved.dataset.view) });

  const show = (index, changed) => {
    if (!updates.has(index)) {
      updates.set(index, views[index].build(panels[index]));
      changed = EVERYTHING;
    }
    updates.get(index)(changed);
  };
  onChange((changed) => {
    const at = views.findIndex(({ id }) => id === state.view);
    if (changed.has("view")) select(tabs, panels, at);
    show(at, changed.has("view") ? EVERYTHING : changed);
  });
  const print = (printing) => {
    document.body.classList.toggle("printing", printing); // shows all views, in the width of a printed page
    if (printing) views.forEach((_, index) => show(index, EVERYTHING));
  };
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  matchMedia("print").addEventListener("change", (event) => print(event.matches));
  select(tabs, panels, views.findIndex(({ id }) => id === state.view));
  return { list, panels, open: () => show(views.findIndex(({ id }) => id === state.view), EVERYTHING) };
}

function tab(id, title) {
  const attributes = { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": `view-${id}`, "data-view": id };
  return h("button", { ...attributes, onclick: () => go(id) }, title);
}

function panel(id, title) {
  const attributes = { role: "tabpanel", id: `view-${id}`, "aria-labelledby": `tab-${id}`, "data-title": title, tabindex: "-1" };
  return h("section", { class: "view", ...attributes });
}

/** Shows a panel, from its beginning; the focus follows from a panel that is hidden, as a link to a layer is. */
function select(tabs, panels, at) {
  const follows = panels.some((each, i) => i !== at && each.contains(document.activeElement));
  tabs.forEach((each, i) => each.setAttribute("aria-selected", String(i === at)));
  panels.forEach((each, i) => each.classList.toggle("shown", i === at));
  setRoving(tabs, tabs[at]);
  if (follows) panels[at].focus({ preventScroll: true });
  const views = tabs[at].parentElement;
  if (views?.getBoundingClientRect().top < 0) views.scrollIntoView();
}
