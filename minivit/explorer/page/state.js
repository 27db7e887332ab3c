/* What is chosen: the view, the image, the token that is followed, and a detail for each view; and the URL's hash. */

/** The chosen things. `details` is by view: a layer's name, a block's number, ...; `preview` is the token pointed at. */
export const state = { view: "path", image: 0, token: null, preview: null, details: {} };

const listeners = [];

/** Calls `listener(changed)` after each change, with the set of the names that changed. */
export function onChange(listener) {
  listeners.push(listener);
}

/** Changes some of the state: set({token: 3}). Nothing happens where all is as it was. */
export function set(change) {
  const changed = new Set(Object.keys(change).filter((name) => state[name] !== change[name]));
  if (!changed.size) return;
  Object.assign(state, change);
  for (const listener of listeners) listener(changed);
}

/** The token to show: the one pointed at, or else the chosen one; null if the model has no tokens. */
export function followed() {
  return state.preview ?? state.token;
}

/** The detail of a view, or `fallback` if none was chosen. */
export function detail(view, fallback = "") {
  return state.details[view] ?? fallback;
}

/** Opens a view, with a detail such as a layer's name; the hash of the URL follows: go("layer", "blocks.3.attn"). */
export function go(view, chosen = state.details[view]) {
  const hash = "#" + [view, ...(chosen ? [encodeURIComponent(chosen)] : [])].join("/");
  if (location.hash !== hash) history.pushState(null, "", hash);
  open(view, chosen);
}

function open(view, chosen) {
  const known = !chosen || state.details[view] === chosen;
  set({ view, details: known ? state.details : { ...state.details, [view]: chosen } });
}

/** The address of a view for a link. */
export function address(view, chosen) {
  return `#${view}/${encodeURIComponent(chosen)}`;
}

/** Follows the hash of the URL, at the start and when it changes; one that names no view opens the first. */
export function followHash(views) {
  const read = () => {
    const [view, ...rest] = location.hash.slice(1).split("/");
    if (views.includes(view)) open(view, decoded(rest.join("/")));
    else open(views[0]);
  };
  addEventListener("popstate", read);
  addEventListener("hashchange", read);
  read();
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}
