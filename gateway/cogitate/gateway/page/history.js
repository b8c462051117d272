// The tenant's contemplations, newest first. What was asked is looked up and kept nowhere but here.

import { call } from "./connect.js";
import { $, h, show } from "./dom.js";
import { ago, count, lower, seconds } from "./words.js";

const PAGE = 20;
const asked = new Map(); // id → {question, answer}
let token = "";

/** Draws the first page into the section `history`, or with `more` the next one below. Throws RpcError. */
export async function drawHistory({ more = false } = {}) {
  const list = $("contemplations");
  const page = await call("ContemplationService/ListContemplations", { pageSize: PAGE, ...(more && { pageToken: token }) });
  token = page.nextPageToken ?? "";
  const made = (page.contemplations ?? []).map(row);
  if (more) list.append(...made.map(({ root }) => root));
  else list.replaceChildren(...(made.length ? made.map(({ root }) => root) : [h("li", {}, "Nothing was asked yet.")]));
  show($("more"), token);
  for (const { id, isOver, question, answer } of made) {
    // One after the other: a list is no reason to use up a tenant's requests at once.
    if (!asked.has(id) || !isOver) {
      const found = await call("ContemplationService/GetContemplation", { contemplationId: id }).catch(() => null);
      if (!found) continue;
      asked.set(id, { question: questionOf(found.spec), answer: found.ending?.verdict?.answer ?? "" });
    }
    question.textContent = asked.get(id).question;
    answer.textContent = asked.get(id).answer;
  }
}

/** Returns the last words of a conversation that are the user's. */
export function questionOf(spec) {
  const last = (spec?.conversation ?? []).filter((one) => one.role === "ROLE_USER").at(-1);
  return (last?.parts ?? []).map((part) => part.text ?? "").join(" ").trim();
}

/** Returns the pictures of that. */
export const imagesOf = (spec) =>
  (spec?.conversation ?? []).flatMap((one) => one.parts ?? []).map((part) => part.image).filter(Boolean);

function row({ contemplationId: id, state = "", acceptTime, endTime, model, agentCount = 0 }) {
  const name = lower(state.replace("STATE_", ""));
  const took = endTime ? seconds(Date.parse(endTime) - Date.parse(acceptTime)) : "";
  const question = h("span", { class: "question" }, asked.get(id)?.question ?? `contemplation ${id.slice(0, 8)}`);
  const answer = h("span", { class: "given" }, asked.get(id)?.answer ?? "");
  const kind = { completed: "good", failed: "bad", running: "busy" }[name] ?? "";
  const root = h(
    "li",
    {},
    h("a", { href: `#c/${id}` }, question, answer),
    h("p", { class: "muted" }, h("span", { class: `badge ${kind}` }, name), [model, count(agentCount, "agent"), took, acceptTime ? ago(acceptTime) : ""].filter(Boolean).join(" · ")),
    endTime ? h("button", { type: "button", class: "plain", "aria-label": `delete contemplation ${id.slice(0, 8)}`, onclick: (event) => remove(event, root, id) }, "Delete") : "",
  );
  return { id, isOver: Boolean(endTime), root, question, answer };
}

async function remove({ target }, root, id) {
  if (target.textContent === "Delete") {
    target.textContent = "Really delete";
    target.addEventListener("blur", () => (target.textContent = "Delete"), { once: true });
    return;
  }
  await call("ContemplationService/DeleteContemplation", { contemplationId: id }).then(
    () => root.remove(),
    (error) => (target.textContent = error.message),
  );
}
