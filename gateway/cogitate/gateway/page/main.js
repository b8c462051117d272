// The page: what the address names is shown, and one contemplation is watched at a time.
//
//   #            ask           #c/ID     watch a contemplation, from its first event
//   #fleet       the fleet     #history  what was asked before

import * as asking from "./ask.js";
import { call, key } from "./connect.js";
import { $, h, say, show, write } from "./dom.js";
import { offerExamples } from "./examples.js";
import { drawFleet, fetchFleet } from "./fleet.js";
import { drawHistory, imagesOf, questionOf } from "./history.js";
import { Lanes } from "./lanes.js";
import { drawEnding, drawTally } from "./outcome.js";
import { picture } from "./pictures.js";
import { drawPlaces } from "./places.js";
import { EMPTY, OVER, tokens } from "./state.js";
import * as timeline from "./timeline.js";
import { Watch } from "./watch.js";
import { count, grouped, seconds } from "./words.js";

const LAST = "cogitate.last"; // the contemplation this browser watched last, while it runs
const FLEET_MS = 2000;
const LANES = 4; // so many are drawn in a frame, in turn: a frame costs the same however many agents write
const SLOW_MS = 250; // what is not text is drawn this often
const TRACE_MS = [900, 2500]; // services store their spans twice a second

const providers = [];
const lanes = new Lanes($("lanes"), hue);
let watch = null;
let drawn = null;
let frame = 0;
let isBegun = false;
let slowAt = 0;
let arrivedAt = 0;
let fleet = new Map();
let spec = null;

// -- what is shown ---------------------------------------------------------------------------------

async function route() {
  const [, page, id] = /^#(c|fleet|history)?\/?([\w-]*)$/.exec(location.hash || "#") ?? [];
  if (page === undefined && location.hash.length > 1) return; // an anchor on the page
  const name = { c: "run", fleet: "fleet", history: "history" }[page] ?? "ask";
  turn(name);
  trouble(null);
  if (name === "run" && watch?.state.id !== id) join(id);
  if (name === "history") attempt(() => drawHistory());
  if (name === "fleet") attempt(refreshFleet);
  if (name === "ask") remind();
}

/** Shows one section of the page. */
function turn(name) {
  for (const section of document.querySelectorAll("main > section[data-page]")) show(section, section.dataset.page === name);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.page === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = { ask: "Cogitate", run: "Contemplation · Cogitate", fleet: "Fleet · Cogitate", history: "History · Cogitate" }[name];
}

async function refreshFleet() {
  const found = await fetchFleet();
  fleet = found.endpoints;
  if (!$("fleet").hidden) drawFleet(found);
  if (watch && !$("run").hidden) drawPlaces($("places"), watch.state, fleet, hue);
}

/** Does something that asks the gateway, and shows what went wrong. */
async function attempt(what) {
  trouble(null);
  try {
    await what();
  } catch (error) {
    trouble(error, what);
  }
}

function trouble(error, again) {
  const asksKey = error?.code === "unauthenticated";
  show($("key"), asksKey);
  show($("trouble"), error);
  if (!error) return;
  write($("trouble-text"), error.message);
  write($("trouble-more"), [error.reason, error.metadata?.incident && `incident ${error.metadata.incident}`].filter(Boolean).join(", "));
  $("again").onclick = () => attempt(again ?? route);
  $("key").onsubmit = (event) => {
    event.preventDefault();
    key.set($("key-value").value.trim());
    $("key-value").value = "";
    const before = watch;
    attempt(async () => {
      await asking.offer();
      if (watch === before) await (again ?? route)(); // unless a question was asked meanwhile
    });
  };
  if (asksKey) $("key-value").focus();
}

// -- one contemplation -----------------------------------------------------------------------------

function follow() {
  watch?.leave();
  cancelAnimationFrame(frame);
  [drawn, frame, slowAt, isBegun, spec] = [null, 0, 0, false, null];
  lanes.clear();
  $("asked-pictures").replaceChildren();
  for (const id of ["asked", "notes", "connection"]) write($(id), "");
  timeline.draw($("timeline"), [], "Drawn when the contemplation has ended.");
  const mine = new Watch({
    changed: (state) => {
      arrivedAt = performance.now();
      trouble(null);
      if (!isBegun) begun(state);
      frame ||= requestAnimationFrame(draw);
    },
    waiting: (ms, error) => write($("connection"), `${sentence(error.message)} Trying again in ${seconds(ms)}.`),
    failed: (error) => {
      if (watch === mine) trouble(error, () => (isBegun ? join(mine.state.id) : $("form").requestSubmit()));
    },
  });
  watch = mine;
  draw();
}

async function ask(asked) {
  trouble(null);
  follow();
  spec = asked;
  turn("run");
  question(asked);
  $("run-title").focus();
  const mine = watch;
  await mine.ask(asked);
  if (watch === mine && !mine.state.id) turn("ask"); // refused before it began: the form still has everything
}

async function join(id) {
  follow();
  const mine = watch;
  const asked = call("ContemplationService/GetContemplation", { contemplationId: id }).then((found) => {
    if (watch !== mine) return;
    spec = found.spec;
    question(spec);
    facts(mine.state, performance.now());
  });
  asked.catch(() => {}); // the stream tells it, too
  await mine.join(id);
}

function question(spec) {
  write($("asked"), questionOf(spec));
  $("asked-pictures").replaceChildren(...imagesOf(spec).filter((image) => image.digest).map((image, i) => picture(image, `picture ${i + 1} of the question`, "asked")));
}

function begun(state) {
  isBegun = true;
  localStorage.setItem(LAST, state.id);
  if (location.hash !== `#c/${state.id}`) history.replaceState(null, "", `#c/${state.id}`);
  if (!$("asked-pictures").firstChild) $("asked-pictures").append(...state.images.map((image, i) => picture(image, `picture ${i + 1} of the question`, "asked")));
  say(`${count(state.lanes.size, "agent")} think`);
  refreshFleet().catch(() => {});
}

/** Draws what changed since the last frame. */
function draw() {
  frame = 0;
  const state = watch.state;
  const now = performance.now();
  const isDone = lanes.draw(state.lanes, state.ending ? Infinity : LANES);
  const changed = (...names) => !drawn || names.some((name) => state[name] !== drawn[name]);
  if (changed("id", "ballots", "decided", "ending")) drawTally($("tally"), state, hue);
  if (changed("verdictText", "ending")) drawEnding($("ending"), state);
  if (changed("notes")) $("notes").replaceChildren(...state.notes.map((text) => h("li", {}, text)));
  if (changed("places", "ending") || now - slowAt > SLOW_MS) {
    slowAt = now;
    drawPlaces($("places"), state, fleet, hue);
    facts(state, now);
  }
  if (state.ending && !drawn?.ending) ended(state);
  drawn = state;
  if (!isDone) frame ||= requestAnimationFrame(draw);
}

function facts(state, now) {
  const over = [...state.lanes.values()].filter((lane) => OVER.has(lane.status)).length;
  const elapsed = state.lastMs - state.startMs + (state.ending || !arrivedAt ? 0 : now - arrivedAt);
  const status = state.ending || (state.waits ? "waiting" : state.id ? "thinking" : "asking");
  write($("status"), { verdict: "answered", failed: "failed", cancelled: "stopped", waiting: "waiting", thinking: "thinking", asking: "asking" }[status]);
  $("status").className = `badge ${{ verdict: "good", failed: "bad", cancelled: "warn" }[status] ?? "busy"}`;
  if (state.ending || state.id === "") write($("connection"), "");
  const told = [
    state.model, count(state.lanes.size, "agent"), state.quorum && `${state.strategy || "auto"} · quorum ${state.quorum}`,
    state.round > 1 && `round ${state.round}, ${state.role}`, `${over} of ${state.lanes.size} done`,
    `${grouped(tokens(state))} tokens`, seconds(Math.max(0, elapsed)), state.waits,
  ];
  write($("facts"), state.id ? told.filter(Boolean).join("  ·  ") : "asking …");
  $("run").toggleAttribute("data-over", Boolean(state.ending));
  show($("stop"), state.id && !state.ending);
  show($("anew"), state.ending && spec);
}

function ended(state) {
  if (state.verdict) lanes.settle(state.verdict.key ?? "");
  localStorage.removeItem(LAST);
  write($("connection"), "");
  say(state.ending === "verdict" ? `Verdict: ${state.verdictText}` : state.failure?.message || "It was stopped.");
  trace(state, 0);
}

/** Draws the events' own times, and the trace itself once it is there. */
async function trace(state, tries) {
  timeline.draw($("timeline"), timeline.spansOfEvents(state), "From the events’ own times.");
  for (const ms of TRACE_MS.slice(tries)) {
    await new Promise((resolve) => setTimeout(resolve, ms));
    if (watch?.state !== state) return;
    const found = await call("GatewayService/GetTrace", { contemplationId: state.id }).catch((error) => ({ error }));
    if (watch?.state !== state) return;
    const spans = timeline.spansOfTrace(found);
    const missing = found.error ? `${sentence(found.error.message)} ` : found.isStored ? "" : "This gateway keeps no spans (knob trace_store). ";
    if (missing) return timeline.draw($("timeline"), timeline.spansOfEvents(state), `${missing}So these are the events’ own times.`);
    const services = new Set(spans.map((span) => span.service)).size;
    const cut = found.isTruncated ? ", and more that are not told (max_trace_span_count)" : "";
    if (spans.length) timeline.draw($("timeline"), spans, `${count(spans.length, "span")} of ${count(services, "service")}${cut}: trace ${state.traceId}`);
  }
}

// -- around it -------------------------------------------------------------------------------------

function hue(provider) {
  if (!providers.includes(provider)) providers.push(provider);
  return providers.indexOf(provider) % 6;
}

function remind() {
  const id = localStorage.getItem(LAST);
  show($("running"), id);
  if (id) $("running-link").href = `#c/${id}`;
}

const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);

function start() {
  asking.prepare(ask);
  offerExamples();
  window.addEventListener("hashchange", route);
  $("skip").addEventListener("click", (event) => (event.preventDefault(), $("main").focus()));
  $("past").addEventListener("click", (event) => (event.preventDefault(), $("rest").focus()));
  $("stop").addEventListener("click", () => attempt(() => watch.cancel()));
  $("more").addEventListener("click", () => attempt(() => drawHistory({ more: true })));
  $("anew").addEventListener("click", () => {
    const [again, images] = [spec, imagesOf(spec).length ? watch.state.images : []];
    location.hash = "";
    asking.refill(again, questionOf(again), images);
  });
  setInterval(() => {
    if (document.hidden || $("fleet").hidden) return;
    refreshFleet().catch((error) => trouble(error, refreshFleet));
  }, FLEET_MS);
  setInterval(() => {
    if (!$("run").hidden && watch?.state.id && !watch.state.ending) facts(watch.state, performance.now());
  }, SLOW_MS);
  route();
  asking.offer().catch((error) => trouble(error));
  document.documentElement.dataset.ready = "";
}

start();
