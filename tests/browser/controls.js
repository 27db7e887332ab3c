// Returns every control that is shown, with the numbers of the `selectors` that it matches: all that can have the focus,
// that has a role of a control, that listens to the mouse (listeners.js), or over which the mouse becomes a hand.
(selectors) => {
  const native = "a[href], button, input, select, textarea, summary, [tabindex]:not([tabindex='-1']), [contenteditable]";
  const roles = ["button", "checkbox", "radio", "option", "tab", "slider", "switch", "treeitem", "link", "menuitem", "gridcell"];
  const known = [native, ...roles.map((role) => `[role=${role}]`)].join(", ");
  const isHand = (node) => getComputedStyle(node).cursor === "pointer" && !node.parentElement.closest(known);
  const isControl = (node) => node.matches(known) || window.listening.has(node) || isHand(node);
  const shown = (node) => node.checkVisibility({ visibilityProperty: true }) && !node.disabled;
  return [...document.body.querySelectorAll("*")].filter((node) => shown(node) && isControl(node)).map((node) => ({
    name: node.outerHTML.slice(0, 160),
    rows: selectors.flatMap((selector, i) => (node.matches(selector) ? [i] : [])),
  }));
}
