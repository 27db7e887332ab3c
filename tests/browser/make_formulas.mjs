// Writes the MathML of minivit/explorer/formulas.json anew, from the LaTeX in it: `make formulas`. With --check it writes
// nothing, and fails if the file would change. It needs temml, in the folder that MINIVIT_NODE_MODULES names.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const modules = resolve(process.env.MINIVIT_NODE_MODULES ?? "node_modules");
const temml = createRequire(modules + "/")("temml");
const file = new URL("../../minivit/explorer/formulas.json", import.meta.url);

function mathml(latex) {
  const options = { displayMode: true, throwOnError: true };
  // Classes belong to a style sheet that the page does not have, and its policy refuses styles of elements.
  const text = temml
    .renderToString(latex, options)
    .replace(/ (class|style)="[^"]*"/g, "")
    // The space of an operator beside a text: Chromium adds that of the operator to it.
    .replace(/<mrow><mspace width="[^"]*"><\/mspace>(<mo>[^<]*<\/mo>)<mspace width="[^"]*"><\/mspace><\/mrow>/g, "$1");
  const said = latex.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/"/g, "&quot;");
  return text.replace("<math", `<math alttext="${said}"`);
}

const before = readFileSync(file, "utf8");
const formulas = JSON.parse(before);
for (const formula of Object.values(formulas)) {
  if (typeof formula === "string") continue; // the formulas of another kind
  for (const role of ["forward", "backward"]) formula[role] = formula.latex[role].map(mathml);
}
const after = JSON.stringify(formulas, null, 1) + "\n";
if (!process.argv.includes("--check")) writeFileSync(file, after);
else if (after !== before) {
  console.error("formulas.json is not what temml makes of its LaTeX: run `make formulas`");
  process.exit(1);
}
