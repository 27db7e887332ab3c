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
  const panels = views.map(({ id }) => panel(id));
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
  const all = () => views.forEach((_, index) => show(index, EVERYTHING));
  addEventListener("beforeprint", all); // all views are printed, one after another
  matchMedia("print").addEventListener("change", (event) => event.matches && all());
  select(tabs, panels, views.findIndex(({ id }) => id === state.view));
  return { list, panels, open: () => show(views.findIndex(({ id }) => id === state.view), EVERYTHING) };
}

function tab(id, title) {
  const attributes = { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": `view-${id}`, "data-view": id };
  return h("button", { ...attributes, onclick: () => go(id) }, title);
}

function panel(id) {
  return h("section", { class: "view", role: "tabpanel", id: `view-${id}`, "aria-labelledby": `tab-${id}` });
}

function select(tabs, panels, at) {
  tabs.forEach((each, i) => each.setAttribute("aria-selected", String(i === at)));
  panels.forEach((each, i) => each.classList.toggle("shown", i === at));
  setRoving(tabs, tabs[at]);
}
