// Examples the embedded model was made for: a click fills the form in, nothing is asked yet.

import { complain, fill } from "./ask.js";
import { $, h } from "./dom.js";

// What examples/ranges.csv holds.
const RANGES = {
  name: "ranges",
  columns: ["test", "low", "high"],
  rows: [
    ["Sodium", "135", "145"], ["Potassium", "3.5", "5.1"], ["Calcium", "2.15", "2.55"], ["Magnesium", "0.66", "1.07"], ["Glucose", "70", "99"], ["Urea", "17", "43"],
    ["Creatinine", "0.67", "1.17"], ["Albumin", "35", "52"], ["Iron", "59", "158"], ["Ferritin", "30", "300"], ["Cholesterol", "120", "200"], ["TSH", "0.40", "4.00"],
  ].map((cells) => ({ cells })),
};

const EXAMPLES = [
  { name: "a board", picture: "board", question: "What is the sum of the red cards?" },
  { name: "a puzzle", picture: "countdown", question: "Make 26 from the numbers on the red cards, each used once, with + - *." },
  { name: "a shape", picture: "shape", question: "Is there a circle?" },
  { name: "a receipt", picture: "receipt", question: "Does the total match the prices?" },
  { name: "a chart", picture: "chart", question: "What is the value of Petra?" },
  { name: "a lab report", picture: "lab", question: "Is magnesium within its reference range?", tables: [RANGES] },
];

/** Offers the examples under the question. */
export function offerExamples() {
  const chosen = EXAMPLES.map((one) => h("button", { type: "button", class: "plain small", onclick: () => take(one) }, one.name));
  $("examples").replaceChildren("Try ", ...chosen.flatMap((button) => [button, " "]));
}

async function take(example) {
  // One at a time: two would mix up their pictures.
  const buttons = [...$("examples").querySelectorAll("button")];
  for (const button of buttons) button.disabled = true;
  await load(example);
  for (const button of buttons) button.disabled = false;
}

async function load({ name, picture, question, tables = [] }) {
  const answer = await fetch(`/page/example-${picture}.webp`).catch(() => ({ ok: false }));
  if (!answer.ok) return complain("The example could not be loaded. Try again.");
  const file = new File([await answer.blob()], `${name}.webp`, { type: "image/webp" });
  await fill(question, [file], tables);
}
