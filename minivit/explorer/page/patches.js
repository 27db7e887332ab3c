/* The image cut in patches: a group of radio buttons, one for each token, moved through with the arrow keys. */

import { data, tokenName } from "./data.js";
import { h, setRoving, shapeText } from "./dom.js";
import { set, state } from "./state.js";

/**
 * The image with a grid of its patches, and the tokens before them. Pointing previews a token, clicking chooses it.
 * @param {string} label - the name of the group
 * @returns {{element: HTMLElement, cells: HTMLElement[], update: () => void}} cells are by token
 */
export function patchGrid(label) {
  const { grid, prefix_tokens: prefix, tokens, patch_size: size, stride } = data.model;
  const cells = Array.from({ length: tokens }, (_, token) => cell(token));
  const picture = h("img", { alt: "" });
  const over = h("div", { class: "patch-cells", style: { "--rows": grid[0], "--cols": grid[1] } }, cells.slice(prefix));
  const before = prefix ? h("div", { class: "prefix-cells" }, cells.slice(0, prefix)) : null;
  const element = h(
    "div",
    { class: "patches", role: "radiogroup", "aria-label": label, onpointerleave: () => set({ preview: null }) },
    before,
    h("div", { class: "patch-image" }, picture, over),
    String(stride) === String(size) ? null : h("p", { class: "muted" }, `Patches overlap: each has ${shapeText(size)} pixels. The grid shows their order and not their borders.`),
  );
  element.addEventListener("keydown", (event) => {
    const to = nextToken(cells.indexOf(document.activeElement), event.key);
    if (to === null) return;
    event.preventDefault();
    set({ token: to, preview: null });
    cells[to].focus();
  });
  const update = () => {
    const image = data.images[state.image];
    if (picture.src !== image.png) picture.src = image.png;
    cells.forEach((each, token) => {
      each.setAttribute("aria-checked", String(token === state.token));
      each.classList.toggle("preview", token === state.preview);
    });
    setRoving(cells, cells[state.token ?? 0]);
  };
  return { element, cells, update };
}

function cell(token) {
  const name = tokenName(token);
  const text = token >= data.model.prefix_tokens ? "" : name;
  return h(
    "button",
    {
      type: "button",
      class: "patch",
      role: "radio",
      "aria-checked": "false",
      "aria-label": name,
      title: name,
      onpointerenter: () => set({ preview: token }),
      onclick: () => set({ token, preview: null }),
    },
    text,
  );
}

/** The token that a key leads to from `token`, or null; the tokens before the patches form a row above them. */
function nextToken(token, key) {
  const { grid, prefix_tokens: prefix, tokens } = data.model;
  if (token < 0) return null;
  const cols = grid[1];
  const patch = token - prefix;
  const targets = {
    ArrowRight: token + 1,
    ArrowLeft: token - 1,
    ArrowDown: patch < 0 ? prefix : token + cols,
    ArrowUp: patch < 0 ? -1 : patch < cols ? prefix - 1 : token - cols,
    Home: prefix,
    End: tokens - 1,
  };
  const to = targets[key] ?? -1;
  return to >= 0 && to < tokens ? to : null;
}

/** The patch to begin with: the one with the largest gradient where the image enters, or the first. */
export function firstToken(image) {
  const { prefix_tokens: prefix, tokens } = data.model;
  const stage = image.path.find((each) => each.dy?.length === tokens);
  if (!stage) return image.path.some((each) => each.y) ? prefix : null;
  const patches = stage.dy.slice(prefix);
  return prefix + Math.max(0, patches.indexOf(Math.max(...patches)));
}
