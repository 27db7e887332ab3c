/* The list of layers: those of a block can be folded away, and a field filters them by name and kind. */

import { h, roving, setRoving } from "./dom.js";
import { go } from "./state.js";

/**
 * @param {object[]} layers - of one image's trace
 * @returns {{element: HTMLElement, choose: (name: string) => void}}
 */
export function layerList(layers) {
  const buttons = layers.map(layerButton);
  const groups = groupsOf(layers, buttons);
  const found = h("p", { class: "muted", "aria-live": "polite" });
  const field = h("input", { type: "search", id: "layer-filter", placeholder: "attn, Linear …", autocomplete: "off" });
  const list = h("nav", { class: "layer-names", "aria-label": "Layers" }, groups.map(({ element }) => element));
  const items = () => [...list.querySelectorAll("summary, button")].filter((item) => item.checkVisibility());
  const filter = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const group of groups) {
      const fits = group.members.map(({ layer, button }) => {
        const text = `${layer.name} ${layer.kind} ${layer.title}`.toLowerCase();
        button.hidden = !words.every((word) => text.includes(word));
        return !button.hidden;
      });
      count += fits.filter(Boolean).length;
      group.element.hidden = !fits.includes(true);
      if (group.element.tagName === "DETAILS") group.element.open = words.length > 0 || group.members.some(isCurrent);
    }
    found.textContent = words.length ? `${count} of ${layers.length} layers` : `${layers.length} layers and ops`;
    keepOneInTabOrder(list, items());
  };
  field.addEventListener("input", filter);
  roving(list, items);
  const keep = () => items().some((item) => item.tabIndex === 0) || keepOneInTabOrder(list, items());
  list.addEventListener("toggle", keep, true); // the chosen layer may be folded away
  const choose = (name) => {
    for (const button of buttons) {
      if (button.dataset.layer === name) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    const group = groups.find(({ members }) => members.some(isCurrent));
    if (group?.element.tagName === "DETAILS") group.element.open = true;
    keepOneInTabOrder(list, items());
    const current = list.querySelector("[aria-current]");
    if (current) list.scrollTop = current.offsetTop - list.clientHeight / 2;
  };
  filter();
  const label = h("label", { for: "layer-filter" }, "Filter");
  return { element: h("div", { class: "layer-list" }, h("div", { class: "filter" }, label, field), found, list), choose };
}

const isCurrent = ({ button }) => button.hasAttribute("aria-current");

function layerButton(layer) {
  const parts = layer.name.replace(/^encoder\./, "").split("."); // an encoder is no layer of the list
  const above = layer.block === null ? 1 : 2; // parts of the name that the list's order says already
  const attributes = { type: "button", "data-layer": layer.name, style: { "--indent": Math.max(0, parts.length - (layer.block === null ? 1 : 3)) } };
  const name = parts.length > above ? parts.slice(above).join(".") : layer.name;
  return h("button", { ...attributes, onclick: () => go("layer", layer.name) }, h("span", {}, name), h("span", { class: "kind" }, layer.kind));
}

/** The layers of a block in one group that can be folded, and those between blocks in one that cannot. */
function groupsOf(layers, buttons) {
  const groups = [];
  layers.forEach((layer, i) => {
    if (!groups.length || groups.at(-1).block !== layer.block) groups.push({ block: layer.block, members: [] });
    groups.at(-1).members.push({ layer, button: buttons[i] });
  });
  for (const group of groups) {
    const own = group.members.map(({ button }) => button);
    group.element = group.block === null ? h("div", {}, own) : h("details", {}, h("summary", {}, blockTitle(group.members[0].layer)), own);
  }
  return groups;
}

/** "block 3", "decoder block 0": the title of a block's first layer without what is in the block. */
function blockTitle(layer) {
  return layer.title.split(":")[0];
}

/** The chosen layer is reached with Tab, or the first item if it is folded away; the arrow keys reach the others. */
function keepOneInTabOrder(list, shown) {
  setRoving([...list.querySelectorAll("summary, button")], shown.find((item) => item.hasAttribute("aria-current")) ?? shown[0]);
}
