// Returns the controls that reach.js did not mark, unless they are in a group (found by one of the selectors) of which
// it marked one: test_arrow_keys_lead_through_a_group goes through that.
(groups) => {
  const controls = "a[href], button, input, select, textarea, summary, [tabindex='0']";
  const isReached = (node) => node.hasAttribute("data-reached");
  const inGroup = (node) => groups.some((group) => node.matches(group) && [...document.querySelectorAll(group)].some(isReached));
  const radios = (node) => node.type === "radio" && [...document.getElementsByName(node.name)].some(isReached);
  const shown = (node) => node.checkVisibility({ visibilityProperty: true }) && !node.disabled;
  const all = [...document.querySelectorAll(controls)].filter(shown);
  return all.filter((node) => !isReached(node) && !inGroup(node) && !radios(node)).map((node) => node.outerHTML.slice(0, 160));
}
