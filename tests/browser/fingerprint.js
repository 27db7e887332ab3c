// Returns a number for all that can be seen of the elements: markup, pixels, values, scroll positions, colours.
(elements) => {
  const seen = [];
  for (const each of elements) {
    if (!each.checkVisibility()) continue;
    seen.push(each.outerHTML, getComputedStyle(each).color, getComputedStyle(each).backgroundColor);
    for (const node of [each, ...each.querySelectorAll("*")]) {
      if (node.tagName === "CANVAS") seen.push(node.toDataURL());
      if (node.matches("input, select")) seen.push(node.value, node.checked);
      if (node.scrollLeft || node.scrollTop) seen.push(node.scrollLeft, node.scrollTop);
    }
  }
  let number = 7;
  for (const letter of seen.join("\n")) number = (Math.imul(number, 31) + letter.codePointAt(0)) | 0;
  return seen.length ? number : null;
}
