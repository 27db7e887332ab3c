// Returns a line for each two labels of a drawing that lie on each other.
() => {
  const found = [];
  for (const drawing of document.querySelectorAll("svg")) {
    if (!drawing.checkVisibility({ visibilityProperty: true })) continue;
    const labels = [...drawing.querySelectorAll("text")].filter((text) => text.textContent.trim());
    const boxes = labels.map((label) => label.getBoundingClientRect());
    for (let i = 0; i < labels.length; i++) {
      for (let j = 0; j < i; j++) {
        const a = boxes[i], b = boxes[j];
        const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (width > 1 && height > 0.25 * Math.min(a.height, b.height)) {
          found.push(`${labels[j].textContent} and ${labels[i].textContent} lie on each other`);
        }
      }
    }
  }
  return found;
}
