// Examples the embedded model was made for: a click fills the form in, nothing is asked yet.

import { complain, fill } from "./ask.js";
import { $, h } from "./dom.js";

const EXAMPLES = [
  { name: "a board", picture: "board", question: "What is the sum of the red cards?" },
  { name: "a puzzle", picture: "countdown", question: "Make 26 from the numbers on the red cards, each used once, with + - *." },
  { name: "a shape", picture: "shape", question: "Is there a circle?" },
];

/** Offers the examples under the question. */
export function offerExamples() {
  const chosen = EXAMPLES.map((one) => h("button", { type: "button", class: "plain small", onclick: () => take(one) }, one.name));
  $("examples").replaceChildren("Try ", ...chosen.flatMap((button) => [button, " "]));
}

async function take({ name, picture, question }) {
  // One at a time: two would mix up their pictures.
  const buttons = [...$("examples").querySelectorAll("button")];
  for (const button of buttons) button.disabled = true;
  await load(name, picture, question);
  for (const button of buttons) button.disabled = false;
}

async function load(name, picture, question) {
  const answer = await fetch(`/page/example-${picture}.webp`).catch(() => ({ ok: false }));
  if (!answer.ok) return complain("The example could not be loaded. Try again.");
  const file = new File([await answer.blob()], `${name}.webp`, { type: "image/webp" });
  await fill(question, [file]);
}
