// Events in, state out: what every agent has written, called and voted so far. Pure; nothing here knows a document.
//
// 1. `reduce` changes no state that it was given; what is the same in two states is the same object, so that drawing
//    can compare by identity.
// 2. An event that was seen, or is not known, leaves the state as it is.
// 3. What an agent wrote is a list linked from its end (`tail`), so that a delta costs the same however long it is. An
//    item is a piece of text {offset, text, isAnswer} or a call {callId}; each has `prev`.
// 4. A lane's status moves on events only: waiting → thinking ⇄ tool → voted | killed | lost.

export const OVER = new Set(["voted", "killed", "lost"]);
const NUMBERS = ["eventNumber", "firstEventNumber", "eventTime"];

/** The state before the first event. Times are ms since 1970. */
export const EMPTY = Object.freeze({
  last: 0, id: "", traceId: "", model: "", strategy: "", quorum: "", seed: "", images: [],
  startMs: 0, lastMs: 0, lanes: new Map(), places: [], prefills: [], round: 0, role: "", policy: "",
  ballots: [], decided: "", notes: [], waits: "", verdictText: "", ending: "", verdict: null, failure: null, ledger: null,
});

const LANE = Object.freeze({
  attempt: 0, endpoint: "", provider: "", role: "", hint: "", status: "waiting", tail: null, calls: {}, tokens: 0,
  vote: null, reason: "", startMs: 0, endMs: 0,
});

/** Returns the state after a ContemplationEvent in proto3 JSON. */
export function reduce(state, event) {
  const number = Number(event.eventNumber ?? 0);
  if (number <= state.last) return state;
  const ms = event.eventTime ? Date.parse(event.eventTime) : state.lastMs;
  const next = { ...state, last: number, lastMs: ms, startMs: state.startMs || ms };
  const kind = Object.keys(event).find((name) => !NUMBERS.includes(name));
  return Object.hasOwn(ON, kind ?? "") ? ON[kind](next, event[kind], ms) : next;
}

/** Returns the answers voted for with those who did, most first, and who abstained. */
export function tally(state) {
  const groups = new Map();
  const abstained = [];
  for (const [id, { vote }] of state.lanes) {
    if (!vote || vote.judgedKey) continue;
    if (vote.abstained) {
      abstained.push(id);
      continue;
    }
    const group = groups.get(vote.key) ?? { key: vote.key, answer: vote.answer, agents: [], isProved: false };
    group.agents.push(id);
    group.isProved ||= vote.proved;
    groups.set(vote.key, group);
  }
  const sorted = [...groups.values()].sort((a, b) => b.agents.length - a.agents.length || (a.key < b.key ? -1 : 1));
  return { groups: sorted, abstained };
}

/** Returns how many tokens all agents have sampled. */
export const tokens = (state) => [...state.lanes.values()].reduce((sum, lane) => sum + lane.tokens, 0);

/** Returns what is in a tail, oldest first. */
export function items(tail) {
  const found = [];
  for (let item = tail; item; item = item.prev) found.push(item);
  return found.reverse();
}

const ON = {
  accepted: (state, event) => {
    const lanes = new Map(state.lanes);
    for (let id = 0; id < (event.agentCount ?? 0); id++) if (!lanes.has(id)) lanes.set(id, LANE);
    const { contemplationId: id = "", model = "", strategy = "", quorum = "", seed = "0", images = [] } = event;
    return { ...state, id, model, strategy, quorum, seed, images, lanes, traceId: event.trace?.traceId ?? "" };
  },

  queued: (state, { aheadCount = 0, expectedDuration }) => {
    const about = expectedDuration ? `, about ${parseFloat(expectedDuration).toFixed(1)} s` : "";
    return { ...state, waits: `waits for room behind ${aheadCount} others${about}` };
  },

  placed: (state, event) => {
    const places = event.placements ?? [];
    for (const { agentIds = [], endpointId: endpoint, provider } of places) {
      for (const id of agentIds) state = change(state, id, { endpoint, provider });
    }
    return { ...state, places: [...state.places, ...places], policy: event.policy ?? state.policy, waits: "" };
  },

  prefilled: (state, event, ms) => ({ ...state, prefills: [...state.prefills, { ...event, ms }] }),

  roundStarted: (state, event) => ({ ...state, round: event.roundNumber ?? 0, role: event.role ?? "" }),

  widened: (state, { agentIds = [], reason }) => note(state, `${agentIds.length} more agents begin: ${reason}`),

  agentStarted: (state, { agentId = 0, attempt, endpointId: endpoint = "", provider = "", hint = "", role = "" }, ms) => {
    const startMs = lane(state, agentId).startMs || ms;
    return change(state, agentId, { attempt, endpoint, provider, hint, role, startMs, status: "thinking", reason: "" });
  },

  deltas: (state, { deltas = [] }) => {
    const lanes = new Map(state.lanes);
    for (const { agentId = 0, tokenOffset = 0, tokenCount = 0, text = "", isAnswer = false } of deltas) {
      const old = lanes.get(agentId) ?? LANE;
      const offset = Number(tokenOffset);
      const tail = text ? { prev: old.tail, offset, text, isAnswer } : old.tail;
      const status = OVER.has(old.status) ? old.status : "thinking";
      lanes.set(agentId, { ...old, tail, status, tokens: Math.max(old.tokens, offset + Number(tokenCount)) });
    }
    return { ...state, lanes };
  },

  toolCallStarted: (state, { agentId = 0, call = {}, sharedCallId = "" }, ms) =>
    begin(state, agentId, call, { status: "running", isShared: Boolean(sharedCallId) }, ms),

  awaitingClient: (state, { agentIds = [], call = {} }, ms) =>
    agentIds.reduce((next, id) => begin(next, id, call, { status: "client", isShared: false }, ms), state),

  toolCallFinished: (state, { agentId = 0, callId, result = {}, shared = false }, ms) => {
    const old = lane(state, agentId);
    const call = old.calls[callId];
    if (!call) return state;
    const parts = result.parts ?? [];
    const done = {
      ...call,
      status: result.isError ? "error" : "done",
      text: parts.map((part) => (part.text ?? "").trim()).filter(Boolean).join(" "),
      images: parts.map((part) => part.image).filter(Boolean),
      isShared: call.isShared || shared,
      proof: result.proof?.answer ?? "",
      endMs: ms,
    };
    const status = OVER.has(old.status) ? old.status : "thinking";
    return change(state, agentId, { calls: { ...old.calls, [callId]: done }, status });
  },

  ballotCast: (state, { ballot = {} }, ms) => {
    const { agentId = 0, answer = "", key = "", judgedKey = "", confidence = {} } = ballot;
    const { proved = false, abstained = false, weight = 1, roundNumber = 1 } = ballot;
    const vote = { agentId, answer, key, judgedKey, proved, abstained, weight, roundNumber, logprob: confidence.meanLogprob };
    const tokens = Math.max(lane(state, agentId).tokens, Number(ballot.sampledTokenCount ?? 0));
    state = change(state, agentId, { vote, tokens, status: "voted", endMs: ms });
    return { ...state, ballots: [...state.ballots, vote] };
  },

  decided: (state, { quorum = "", key = "", reason }) => ({ ...state, decided: reason || `${quorum}: ${key}` }),

  agentKilled: (state, { agent = {} }, ms) => {
    const { agentId = 0, reason = "" } = agent;
    const tokens = Math.max(lane(state, agentId).tokens, Number(agent.sampledTokenCount ?? 0));
    return change(state, agentId, { status: "killed", reason, tokens, endMs: ms });
  },

  agentLost: (state, { agentId = 0, endpointId, reason = "", resumed = false }, ms) => {
    const where = endpointId ? ` on ${endpointId}` : "";
    const what = resumed ? "goes on elsewhere" : "is gone";
    const over = resumed ? { status: "waiting", reason } : { status: "lost", reason, endMs: ms };
    return note(change(state, agentId, over), `agent ${agentId} was lost${where} (${reason.toLowerCase()}) and ${what}`);
  },

  textRetracted: (state, { agentId = 0, tokenOffset = 0 }) => {
    const offset = Number(tokenOffset);
    const kept = items(lane(state, agentId).tail);
    // What came behind the first piece that is withdrawn was written after it, calls too.
    const from = kept.findIndex((item) => item.offset >= offset);
    return change(state, agentId, { tail: from < 0 ? lane(state, agentId).tail : kept[from].prev, tokens: offset });
  },

  featureDegraded: (state, { feature = "", message = "", endpointId }) =>
    note(state, `${feature}${endpointId ? ` on ${endpointId}` : ""}: ${message}`),

  steered: (state) => note(state, "the user added a message"),

  verdictDelta: (state, { text = "" }) => ({ ...state, verdictText: state.verdictText + text }),

  verdict: (state, verdict) => ({
    ...state, verdict, verdictText: verdict.answer ?? "", ending: "verdict", ledger: verdict.certificate?.ledger ?? null,
  }),

  failed: (state, failure) => ({ ...state, failure, ending: "failed", ledger: failure.ledger ?? null }),

  cancelled: (state, event) => ({ ...state, failure: event, ending: "cancelled", ledger: event.ledger ?? null }),
};

const lane = (state, id) => state.lanes.get(id) ?? LANE;

const change = (state, id, changes) => ({
  ...state, lanes: new Map(state.lanes).set(id, { ...lane(state, id), ...changes }),
});

const note = (state, text) => ({ ...state, notes: [...state.notes, text] });

function begin(state, id, { callId = "", name = "", argumentsJson = "{}" }, more, ms) {
  const old = lane(state, id);
  const call = { callId, name, argumentsJson, text: "", images: [], proof: "", startMs: ms, endMs: 0, ...more };
  const tail = { prev: withoutCall(old.tail, name), callId };
  return change(state, id, { tail, calls: { ...old.calls, [callId]: call }, status: "tool" });
}

/** Takes the call's own text off the end: it is shown as a call instead. */
function withoutCall(tail, name) {
  let text = "";
  let item = tail;
  for (; item && item.callId === undefined; item = item.prev) {
    text = item.text + text;
    const start = text.lastIndexOf(`${name}(`);
    if (start < 0) continue;
    if (!text.trimEnd().endsWith(")")) return tail;
    return start > 0 ? { ...item, text: text.slice(0, start) } : item.prev;
  }
  return tail;
}
