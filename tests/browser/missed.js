// Returns the controls that reach.js did not mark and that are not in a group with one that it marked.
() => {
  const groups = "[role=radiogroup], [role=tablist], [role=listbox], [role=tree], [role=toolbar], [role=grid]";
  const controls = "a[href], button, input, select, textarea, summary, [tabindex='0']";
  const reached = (node) => node.hasAttribute("data-reached") || node.closest(groups)?.querySelector("[data-reached]");
  const shown = (node) => node.checkVisibility({ visibilityProperty: true }) && !node.disabled;
  const all = [...document.querySelectorAll(controls)];
  return all.filter((node) => shown(node) && !reached(node)).map((node) => node.outerHTML.slice(0, 160));
}
