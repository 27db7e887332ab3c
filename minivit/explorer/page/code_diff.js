/* Two versions of some lines of code, one below the other; the signs and the words tell them apart without colour. */

import { h, scrollBox } from "./dom.js";

/** The lines before and after, with those that both begin and end with shown once. @returns {HTMLElement} */
export function codeDiff(before, after) {
  let head = 0;
  while (head < Math.min(before.length, after.length) && before[head] === after[head]) head++;
  let tail = 0;
  const rest = Math.min(before.length, after.length) - head;
  while (tail < rest && before[before.length - 1 - tail] === after[after.length - 1 - tail]) tail++;
  const same = (text) => h("span", { class: "same" }, `         ${text}\n`);
  const missing = after.length === head + tail && h("ins", {}, h("span", { class: "sign" }, "wrong    "), "(no such line)\n");
  const lines = [
    before.slice(0, head).map(same),
    before.slice(head, before.length - tail).map((text) => h("del", {}, h("span", { class: "sign" }, "correct  "), `${text}\n`)),
    after.slice(head, after.length - tail).map((text) => h("ins", {}, h("span", { class: "sign" }, "wrong    "), `${text}\n`)),
    missing || [],
    before.slice(before.length - tail).map(same),
  ];
  return scrollBox("the code: lines marked correct, and the wrong ones in their place", h("pre", { class: "diff" }, h("code", {}, lines)));
}
