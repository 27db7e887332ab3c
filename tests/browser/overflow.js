// Returns a line for each text that leaves its place: the window, the box of its element, or the drawing that it is in.
() => {
  const found = new Set();
  const name = (node) => `<${node.tagName.toLowerCase()} class="${node.getAttribute("class") ?? ""}">`;
  const scrolls = (node) => /auto|scroll/.test(getComputedStyle(node).overflowX);
  const hasOwnBox = (node) => {
    for (let up = node; up && up !== document.body; up = up.parentElement) if (scrolls(up)) return true;
    return false;
  };
  const forReadersOnly = (node) => { // one pixel that is cut away, or left of the window until it has the focus
    if (node.getBoundingClientRect().right <= 0) return true;
    for (let up = node; up; up = up.parentElement) {
      const style = getComputedStyle(up);
      if (style.clipPath !== "none" || style.clip !== "auto") return true;
    }
    return false;
  };
  const wide = document.documentElement.scrollWidth;
  if (wide > window.innerWidth) found.add(`the page is ${wide} wide in a window of ${window.innerWidth}`);

  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode, text = node.data.trim(), parent = node.parentElement;
    if (!text || !parent.checkVisibility({ visibilityProperty: true }) || forReadersOnly(parent)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const rects = [...range.getClientRects()].filter((rect) => rect.width && rect.height);
    const drawing = parent.closest("svg");
    const where = `${name(parent)} ${text.slice(0, 40)}`;
    for (const rect of rects) {
      if (drawing) {
        const box = drawing.getBoundingClientRect();
        const out = rect.left < box.left - 1 || rect.right > box.right + 1 || rect.top < box.top - 1 || rect.bottom > box.bottom + 1;
        if (out && getComputedStyle(drawing).overflow !== "visible") found.add(`${where}: leaves its drawing`);
      }
      if (!hasOwnBox(parent) && (rect.left < -1 || rect.right > window.innerWidth + 1)) found.add(`${where}: leaves the window`);
    }
    if (hasOwnBox(parent)) continue;
    for (let up = parent; up !== document.body; up = up.parentElement) {
      const style = getComputedStyle(up);
      if (up.closest("svg, math") || style.display === "inline" || !up.clientWidth) continue;
      if (up.scrollWidth > up.clientWidth + 1) found.add(`${name(up)} ${up.textContent.trim().slice(0, 40)}: ${up.scrollWidth} in a box of ${up.clientWidth}`);
      if (/hidden|clip/.test(style.overflowY) && up.scrollHeight > up.clientHeight + 1) found.add(`${name(up)} ${up.textContent.trim().slice(0, 40)}: cut off below`);
    }
  }
  return [...found];
}
