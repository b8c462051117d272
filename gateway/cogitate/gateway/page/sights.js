// Where agents looked, drawn on the question's pictures: one frame a region, with who read what in it.

import { h } from "./dom.js";
import { address } from "./pictures.js";
import { ids } from "./words.js";

const HUES = 6;
const EDGES = ["x0", "y0", "x1", "y1"];

/** Returns a figure with the question's `images` that agents looked at, and frames on them. `sights` are the certificate's. */
export function looked(images, sights) {
  const shown = images.map((image) => board(image, sights.filter((one) => one.image?.digest === image.digest))).filter(Boolean);
  if (!shown.length) return "";
  return h("figure", { class: "sights" }, h("figcaption", {}, "Where agents looked, and what they read there"), ...shown);
}

function board(image, sights) {
  const found = regions(sights);
  if (!found.length) return null;
  const picture = h("img", { alt: "the picture of the question", decoding: "async" });
  const list = found.map(({ label, box }, i) => frame(label, box, i));
  const root = h("div", { class: "seen" }, picture, ...list);
  address(image).then(
    (url) => (picture.src = url),
    (error) => root.replaceWith(h("p", { class: "muted" }, `The picture cannot be shown: ${error.message}`)),
  );
  return root;
}

function frame(label, [x0, y0, x1, y1], i) {
  const place = { "--left": `${x0 / 10}%`, "--top": `${y0 / 10}%`, "--width": `${(x1 - x0) / 10}%`, "--height": `${(y1 - y0) / 10}%` };
  return h("div", { class: "frame", "data-hue": `${i % HUES}`, title: label, ...place }, h("span", {}, label));
}

/** Returns {box, label} of each region that was looked at, in the order of the looks. */
export function regions(sights) {
  const found = new Map();
  const inOrder = [...sights].sort((a, b) => (a.step ?? 0) - (b.step ?? 0) || (a.agentId ?? 0) - (b.agentId ?? 0));
  for (const { agentId = 0, step = 0, image, note = "" } of inOrder) {
    if (!image?.box) continue;
    const box = EDGES.map((edge) => image.box[`${edge}Permille`] ?? 0);
    const key = box.join();
    if (!found.has(key)) found.set(key, { box, step, notes: new Map() });
    const { notes } = found.get(key);
    notes.set(note, [...new Set([...(notes.get(note) ?? []), agentId])]);
  }
  return [...found.values()].map(({ box, step, notes }) => {
    const said = [...notes].sort((a, b) => b[1].length - a[1].length);
    return { box, label: `${step}. ${said.map(([note, agents]) => ids(agents) + (note && `: ${note}`)).join(" | ")}` };
  });
}
