// Pictures by content: an image or a crop is fetched once, however many lanes show it.

import { bytes, stream } from "./connect.js";
import { $, h } from "./dom.js";

const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const MOST = 400;
const fetched = new Map(); // name → promise of a blob's address, oldest first

/** Returns a button with the picture, that shows it large. `image` is an ImagePart; `words` say what is on it. */
export function picture(image, words, kind = "crop") {
  const shown = h("img", { alt: words, decoding: "async", hidden: true, onload: () => shown.removeAttribute("hidden") });
  const button = h("button", { type: "button", class: `picture ${kind}`, "aria-label": `${words}; show it large`, title: `${words}; show it large` }, shown);
  button.addEventListener("click", () => enlarge(shown.src, words));
  address(image).then(
    (url) => (shown.src = url),
    (error) => button.replaceWith(h("span", { class: "muted" }, `${words} (cannot be shown: ${error.message})`)),
  );
  return button;
}

/** Says which part of a picture a crop is. */
export function region({ box }) {
  if (!box) return "the whole picture";
  const [x0, y0, x1, y1] = ["x0", "y0", "x1", "y1"].map((name) => Math.round((box[`${name}Permille`] ?? 0) / 10));
  return `${x0}–${x1} % across, ${y0}–${y1} % down`;
}

export function enlarge(url, words) {
  const large = $("large");
  large.replaceChildren(h("img", { src: url, alt: words }), h("p", {}, words), h("button", { onclick: () => large.close() }, "Close"));
  large.showModal();
}

/** Returns a promise of an address the browser can show an image, or a crop of it, from. */
export function address(image) {
  const { digest = "", box } = image;
  const name = digest + JSON.stringify(box ?? {});
  if (!fetched.has(name)) {
    const asked = download({ digest, ...(box && { box }) });
    asked.catch(() => fetched.delete(name)); // the next one that shows it may try again
    fetched.set(name, asked);
    forget();
  }
  return fetched.get(name);
}

function forget() {
  for (const [name, asked] of fetched) {
    if (fetched.size <= MOST) return;
    fetched.delete(name);
    asked.then(URL.revokeObjectURL, () => {});
  }
}

async function download(image) {
  const chunks = [];
  let kind = "";
  for await (const part of stream("GatewayService/DownloadBlob", { image })) {
    kind ||= part.mediaType ?? "";
    chunks.push(bytes(part.chunk ?? ""));
  }
  if (!KINDS.includes(kind)) throw new Error(`${kind || "it"} is no picture`);
  return URL.createObjectURL(new Blob(chunks, { type: kind }));
}
