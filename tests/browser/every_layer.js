// Opens each layer as a link does, and returns what is shown of it: its cards, formulas, code and check.
async names => {
  const shown = [];
  const texts = row => [...row.cells].map(cell => cell.textContent);
  for (const name of names) {
    await new Promise(done => {
      addEventListener("hashchange", done, { once: true }); // after the page's own listener
      location.hash = `layer/${encodeURIComponent(name)}`;
    });
    const layer = document.querySelector(".layer");
    const cards = [...layer.querySelectorAll(".card")].map(card => ({
      name: card.querySelector("h4").textContent,
      about: card.querySelector("p").textContent,
      maps: [...card.querySelectorAll("canvas")].map(canvas => canvas.getAttribute("aria-label")),
      counts: [...card.querySelectorAll("tbody td")].map(cell => cell.textContent),
      facts: Object.fromEntries([...card.querySelectorAll("dl.statistics > div")].map(
        each => [each.querySelector("dt").textContent, each.querySelector("dd").textContent])),
    }));
    shown.push({
      title: layer.querySelector("h2").textContent,
      formulas: layer.querySelectorAll(".formulas math").length,
      code: [...layer.querySelectorAll("pre")].map(each => each.textContent).join("\n"),
      check: [...(layer.querySelector(".check table")?.tBodies[0].rows ?? [])].map(texts),
      cards,
    });
  }
  return shown;
}
