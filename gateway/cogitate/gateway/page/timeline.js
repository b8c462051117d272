// The contemplation's trace on one time axis: real spans where the gateway has a store of them, else the events' times.

import { h } from "./dom.js";
import { lower, seconds } from "./words.js";

const FOLD_FROM = 3;
const MOST_ROWS = 400;
const TELLING = ["gen_ai.agent.id", "gen_ai.tool.name", "cogitate.endpoint_id", "cogitate.quorum", "cogitate.reason"];

/** A span here is {id, parent, service, name, startMs, endMs, failed, telling, moments: [{name, ms}]}. */
export function spansOfTrace(response) {
  return (response.spans ?? []).map((span) => ({
    id: span.spanId, parent: span.parentSpanId ?? "", service: span.service ?? "", name: span.name ?? "",
    startMs: exact(span.startTime), endMs: exact(span.endTime), failed: Boolean(span.failed), telling: telling(span.attributes),
    moments: (span.moments ?? []).map((one) => ({ name: [one.name, telling(one.attributes)].join(" "), ms: exact(one.time) })),
  }));
}

/** What the events' own times say: each agent from its start to its end, and its calls. */
export function spansOfEvents(state) {
  const made = [];
  const add = (id, parent, name, startMs, endMs, more = {}) =>
    made.push({ id, parent, service: "", name, startMs, endMs, failed: false, telling: "", moments: [], ...more });
  const end = state.lastMs;
  add("all", "", "contemplation", state.startMs, end);
  for (const { gangId, endpointId, ms, prefillDuration = "0" } of state.prefills) {
    add(`p${gangId}`, "all", "prompt", ms - parseFloat(prefillDuration) * 1000, ms, { telling: endpointId });
  }
  for (const [id, lane] of state.lanes) {
    if (!lane.startMs) continue;
    add(`a${id}`, "all", `agent ${id}`, lane.startMs, lane.endMs || end, {
      telling: [lane.status, lower(lane.reason)].filter(Boolean).join(" "), failed: lane.status === "lost",
    });
    for (const call of Object.values(lane.calls)) {
      add(`c${id}.${call.callId}`, `a${id}`, call.name, call.startMs, call.endMs || end, { failed: call.status === "error" });
    }
  }
  return made;
}

/** Returns rows of a tree, parents first: {span, depth, count, busyMs}; leaves that are alike become one. */
export function rows(spans) {
  const known = new Set(spans.map((span) => span.id));
  const below = new Map();
  for (const span of [...spans].sort((a, b) => a.startMs - b.startMs || b.endMs - a.endMs)) {
    const parent = known.has(span.parent) && span.parent !== span.id ? span.parent : "";
    below.set(parent, [...(below.get(parent) ?? []), span]);
  }
  const made = [];
  const walk = (parent, depth) => {
    const children = below.get(parent) ?? [];
    const isLeaf = (span) => !below.has(span.id) && !span.moments.length;
    for (const span of children) {
      const alike = isLeaf(span) ? children.filter((one) => isLeaf(one) && one.name === span.name && one.service === span.service) : [span];
      if (alike.length >= FOLD_FROM && alike[0] !== span) continue;
      const folded = alike.length >= FOLD_FROM ? alike : [span];
      const endMs = Math.max(...folded.map((one) => one.endMs));
      made.push({ span: { ...span, endMs }, depth, count: folded.length, busyMs: folded.reduce((sum, one) => sum + one.endMs - one.startMs, 0) });
      if (folded.length === 1 && depth < 40) walk(span.id, depth + 1);
    }
  };
  walk("", 0);
  return made;
}

/** Draws spans into `root`, a table; `words` say where they come from. */
export function draw(root, spans, words) {
  if (!spans.length) return root.replaceChildren(h("caption", {}, words));
  const start = Math.min(...spans.map((span) => span.startMs));
  const whole = Math.max(1e-3, Math.max(...spans.map((span) => span.endMs)) - start);
  const all = rows(spans);
  const shown = all.slice(0, MOST_ROWS).map((row) => drawRow(row, start, whole));
  const cut = all.length > MOST_ROWS ? ` The first ${MOST_ROWS} of ${all.length} rows.` : "";
  const head = ["work", "service", "time", `0 to ${seconds(whole)}`].map((name) => h("th", { scope: "col" }, name));
  root.replaceChildren(h("caption", {}, words + cut), h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...shown));
}

function drawRow({ span, depth, count, busyMs }, start, whole) {
  const from = (span.startMs - start) / whole;
  const bar = h("span", { class: "span", "--from": from, "--length": Math.max(0.002, (span.endMs - span.startMs) / whole) });
  const marks = span.moments.map((one) => h("span", { class: "mark", "--from": (one.ms - start) / whole, title: `${one.name}, ${seconds(one.ms - start)}` }));
  const told = count > 1 ? ` ×${count}` : span.telling ? ` ${span.telling}` : "";
  return h(
    "tr",
    { class: span.failed ? "failed" : "", "data-service": span.service },
    h("th", { scope: "row", "--depth": Math.min(depth, 8) }, span.name, h("span", { class: "muted" }, told), span.failed ? " (failed)" : ""),
    h("td", {}, span.service),
    h("td", { class: "number" }, seconds(busyMs)),
    h("td", { class: "axis" }, bar, ...marks),
  );
}

const telling = (attributes = {}) => TELLING.filter((name) => name in attributes).map((name) => attributes[name]).join(" ");

/** Milliseconds with their fraction: Date keeps whole ones only, and spans are shorter. */
function exact(time = "1970-01-01T00:00:00Z") {
  const [, second, fraction] = /^([^.]*?)(\.\d+)?Z$/.exec(time) ?? [null, time, ""];
  return Date.parse(`${second}Z`) + Number(fraction || 0) * 1000;
}
