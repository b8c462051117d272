// The form: a question, its pictures, and how it is to be thought about.

import { call } from "./connect.js";
import { $, h, say, show, write } from "./dom.js";
import { enlarge } from "./pictures.js";
import { count } from "./words.js";

const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const pictures = new Map(); // the list's element → {data, url}
const tables = new Map(); // the list's element → a LookupTable
let limits = {};

/** Sets the form up; `onAsk` is given a ContemplationSpec. */
export function prepare(onAsk) {
  const form = $("form");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const problem = wrong();
    complain(problem);
    if (!problem) onAsk(spec());
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  $("files").addEventListener("change", ({ target }) => add(target.files).then(() => (target.value = "")));
  document.addEventListener("paste", ({ clipboardData }) => {
    if (!$("ask").hidden && clipboardData?.files.length) add(clipboardData.files);
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      if ($("ask").hidden || !event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      form.classList.toggle("over", kind === "dragover");
      if (kind === "drop") add(event.dataTransfer.files);
    });
  }
  for (const radio of form.elements.effort) radio.addEventListener("change", () => show($("gang"), form.elements.effort.value === "EFFORT_CONTEMPLATING"));
}

/** Fills the choices with what the gateway offers. Throws RpcError. */
export async function offer() {
  const [server, { models = [] }] = await Promise.all([call("GatewayService/GetServerInfo"), call("GatewayService/ListModels")]);
  limits = server.limits ?? {};
  const names = models.map((one) => one.name);
  if (!names.includes(server.defaultModel)) names.unshift(server.defaultModel);
  choices($("model"), names.map((name) => [name === server.defaultModel ? "" : name, name]));
  choices($("strategy"), [["", "auto"], ...(server.strategies ?? []).filter((name) => name !== "auto").map((name) => [name, name.replace("_", " ")])]);
  choices($("quorum"), [["", "the server’s default"], ...(server.quorums ?? []).map((name) => [name, name])]);
  $("agents").max = limits.maxAgentCount ?? "";
  write($("server"), `cogitate ${server.version}`);
  return server;
}

/** Fills the form with an earlier question and its tables; its pictures stay by digest. */
export function refill(spec, question, images) {
  const form = $("form").elements;
  form.question.value = question;
  form.effort.value = spec.effort && spec.effort !== "EFFORT_UNSPECIFIED" ? spec.effort : "EFFORT_CONTEMPLATING";
  form.agents.value = spec.agentCount ?? "";
  form.strategy.value = spec.strategy ?? "";
  form.quorum.value = spec.quorum ?? "";
  form.seed.value = spec.samplingParams?.seed ?? "";
  clear();
  for (const image of images) listed(h("span", { class: "muted" }, "a picture of the last question"), { image: { digest: image.digest } }, "picture");
  for (const table of spec.tables ?? []) tabled(table);
  show($("gang"), form.effort.value === "EFFORT_CONTEMPLATING");
  form.question.focus();
}

/** Fills the form with a question, its pictures and tables, instead of what was there. */
export async function fill(question, files, added = []) {
  const form = $("form").elements;
  clear();
  form.question.value = question;
  await add(files);
  for (const table of added) tabled(table);
  form.question.focus();
}

function clear() {
  for (const { url } of pictures.values()) URL.revokeObjectURL(url);
  pictures.clear();
  tables.clear();
  $("pictures").replaceChildren();
}

function choices(select, pairs) {
  const chosen = select.value;
  select.replaceChildren(...pairs.map(([value, words]) => h("option", { value }, words)));
  if (pairs.some(([value]) => value === chosen)) select.value = chosen;
}

async function add(files) {
  const problems = [];
  for (const file of files) {
    const most = Number(limits.maxImageBytes ?? Infinity);
    if (!KINDS.includes(file.type)) problems.push(`${file.name || "this"} is no PNG, JPEG, WebP or GIF.`);
    else if (file.size > most) problems.push(`${file.name || "this"} is larger than ${Math.floor(most / 1048576)} MiB.`);
    else if (pictures.size >= (limits.maxImageCount ?? Infinity)) problems.push(`A question takes at most ${count(limits.maxImageCount, "picture")}.`);
    else {
      const url = URL.createObjectURL(file);
      const words = file.name || "a pasted picture";
      const shown = h("button", { type: "button", class: "picture", title: `${words}; show it large`, onclick: () => enlarge(url, words) }, h("img", { src: url, alt: words }));
      listed(shown, { data: await base64(file), url }, words);
    }
  }
  complain(problems.join(" "));
  if (!problems.length) say(`${count(pictures.size, "picture")} with the question`);
}

function listed(shown, picture, words) {
  const leave = (root) => {
    URL.revokeObjectURL(picture.url);
    pictures.delete(root);
  };
  pictures.set(item(shown, words, leave), picture);
}

function tabled(table) {
  const words = `the table ${table.name} (${table.columns.join(", ")})`;
  tables.set(item(h("span", { class: "muted" }, words), words, (root) => tables.delete(root)), table);
}

/** An entry of the list that can be left out again. */
function item(shown, words, leave) {
  const remove = () => {
    leave(root);
    root.remove();
    $("files").focus();
  };
  const root = h("li", {}, shown, h("button", { type: "button", class: "remove", "aria-label": `leave out ${words}`, onclick: remove }, "×"));
  $("pictures").append(root);
  return root;
}

const base64 = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });

export function complain(text) {
  write($("form-problem"), text);
  show($("form-problem"), text);
  $("question").toggleAttribute("aria-invalid", Boolean(text) && !$("question").value.trim());
}

function wrong() {
  const form = $("form");
  if (!form.elements.question.value.trim()) return form.elements.question.focus(), "Write a question first.";
  const bad = [...form.elements].find((field) => !field.checkValidity());
  if (!bad) return "";
  bad.closest("details")?.setAttribute("open", "");
  bad.focus();
  return `${bad.labels[0].firstChild.textContent.trim()}: ${bad.validationMessage}`;
}

function spec() {
  const form = $("form").elements;
  const number = (name) => (form[name].value === "" ? undefined : Number(form[name].value));
  const isGang = form.effort.value === "EFFORT_CONTEMPLATING";
  const parts = [...pictures.values()].map(({ data, image }) => ({ image: image ?? { data } }));
  const budget = {
    maxTokens: number("tokens"),
    maxCostMicroUsd: number("dollars") && Math.round(number("dollars") * 1e6),
    deadlineTime: number("seconds") && new Date(Date.now() + number("seconds") * 1000).toISOString(),
  };
  const tools = form.tools.value === "some" ? form.allowed.value.split(/[\s,]+/).filter(Boolean) : form.tools.value === "none" ? ["none"] : [];
  return {
    requestId: uuid(),
    model: form.model.value,
    conversation: [{ role: "ROLE_USER", parts: [...parts, { text: form.question.value.trim() }] }],
    effort: form.effort.value,
    onDisconnect: "ON_DISCONNECT_CONTINUE",
    ...(isGang && { agentCount: number("agents"), strategy: form.strategy.value, quorum: form.quorum.value }),
    ...(Object.values(budget).some((value) => value !== undefined) && { budget }),
    ...(tables.size && { tables: [...tables.values()] }),
    ...(tools.length && { allowedTools: tools }),
    ...(form.seed.value !== "" && { samplingParams: { seed: form.seed.value } }),
  };
}

/** crypto.randomUUID is there on https and localhost only. */
function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 15) | 64;
  bytes[8] = (bytes[8] & 63) | 128;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
