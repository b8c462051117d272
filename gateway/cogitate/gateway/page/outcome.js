// The ballots as they fall, and the verdict with everything it rests on.

import { h, show, write } from "./dom.js";
import { picture, region } from "./pictures.js";
import { looked } from "./sights.js";
import { tally } from "./state.js";
import { count, degradedBy, grouped, ids, killedFor, lower, money, seconds, sureness } from "./words.js";

/** Draws the tally of a state into `root`; `hues` gives each provider its colour. */
export function drawTally(root, state, hues) {
  const { groups, abstained } = tally(state);
  const asked = Math.max(1, state.lanes.size);
  const cast = groups.reduce((sum, group) => sum + group.agents.length, 0) + abstained.length;
  const open = [...state.lanes.values()].filter((lane) => !["voted", "killed", "lost"].includes(lane.status)).length;
  const chips = (agents) => agents.map((id) => h("li", { "data-hue": hues(state.lanes.get(id).provider) }, `${id}`));
  const rows = groups.slice(0, 6).map((group, i) => row(group.key || group.answer, chips(group.agents), asked, i === 0, group.isProved));
  if (abstained.length) rows.push(row("no answer", chips(abstained), asked, false, false));
  const rest = groups.slice(6).reduce((sum, group) => sum + group.agents.length, 0);
  root.replaceChildren(
    h("ul", { class: "tally" }, ...rows),
    h("p", { class: "muted" }, cast ? `${cast} of ${asked} ballots` : "No ballots yet", rest ? `, ${rest} for other answers` : "",
      open && !state.ending ? `, ${open} open` : ""),
    state.decided ? h("p", { class: "decided" }, h("b", {}, "Decided. "), sentence(state.decided)) : "",
  );
}

function row(answer, chips, asked, isLeader, isProved) {
  return h(
    "li",
    { class: isLeader ? "leads" : "" },
    h("span", { class: "for" }, answer, isProved ? h("span", { class: "badge good" }, "proved") : ""),
    h("span", { class: "number" }, `${chips.length}`),
    h("span", { class: "bar", "--share": chips.length / asked, "aria-hidden": "true" }),
    h("ul", { class: "chips", "aria-label": "agents" }, ...chips),
  );
}

/** Draws the ending of a state into `root`: verdict, failure, or what of the verdict is written so far. */
export function drawEnding(root, state) {
  show(root, state.ending || state.verdictText);
  root.className = `ending ${state.ending || "writing"}`;
  if (state.ending === "verdict") root.replaceChildren(...verdict(state));
  else if (state.ending) root.replaceChildren(...failure(state));
  else if (root.firstElementChild?.className === "answer") write(root.firstElementChild, state.verdictText);
  else root.replaceChildren(h("p", { class: "answer" }, state.verdictText));
}

function failure({ ending, failure, ledger }) {
  const isOurs = ending === "cancelled";
  const why = failure.reason === "DISCONNECTED" ? "Its client left." : "It was stopped as you asked.";
  const wait = failure.retryDelay ? ` Try again in ${Math.ceil(parseFloat(failure.retryDelay))} s.` : failure.retryable ? " Trying again may help." : "";
  return [
    h("h2", {}, isOurs ? "Stopped" : "No answer was possible"),
    h("p", { class: "answer" }, isOurs ? why : sentence(failure.message || lower(failure.reason ?? "")) + wait),
    ledger ? fates(ledger) : "",
  ];
}

function verdict({ verdict, images }) {
  const { certificate = {}, degradedReasons = [], usage = {} } = verdict;
  const badges = [
    verdict.proved && h("span", { class: "badge good" }, "proved by a tool"),
    verdict.abstained && h("span", { class: "badge warn" }, "no agent could answer"),
    verdict.degraded && h("span", { class: "badge warn" }, `degraded: ${degradedReasons.map(degradedBy).join(", ")}`),
  ];
  const ballots = (certificate.ballots ?? []).filter((ballot) => !ballot.judgedKey);
  const agree = ballots.filter((ballot) => !ballot.abstained && ballot.key === verdict.key);
  const dissent = ballots.filter((ballot) => ballot.abstained || ballot.key !== verdict.key);
  return [
    h("div", {},
      h("h2", {}, "Verdict", ...badges.filter(Boolean)),
      h("p", { class: "answer" }, verdict.answer || "no answer"),
      certificate.decision ? h("p", { class: "why" }, sentence(certificate.decision)) : ""),
    h("div", {},
      h("dl", { class: "facts" },
      fact("agreement", `${agree.length} of ${count(ballots.length, "ballot")}`),
      fact("dissent", dissent.length ? dissenting(dissent) : "none"),
      fact("stopped", stopped(certificate.killedAgents ?? [])),
      fact("took", seconds(parseFloat(verdict.duration ?? "0") * 1000)),
      fact("cost", money(certificate.ledger?.costMicroUsd))),
      fates(certificate.ledger ?? {})),
    looked(images, certificate.sights ?? []),
    h("details", {}, h("summary", {}, "The certificate"), ...certified(certificate, ballots, usage)),
  ];
}

const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));

function dissenting(ballots) {
  const groups = new Map();
  for (const { key = "", agentId = 0, abstained } of ballots) {
    const name = abstained ? "cannot answer" : key;
    groups.set(name, [...(groups.get(name) ?? []), agentId]);
  }
  return [...groups].map(([name, agents]) => `${name} (${agents.length === 1 ? "agent" : "agents"} ${ids(agents)})`).join("; ");
}

function stopped(killed) {
  if (!killed.length) return "nobody";
  const groups = new Map();
  for (const { agentId = 0, reason = "" } of killed) groups.set(reason, [...(groups.get(reason) ?? []), agentId]);
  return [...groups].map(([reason, agents]) => `${ids(agents)}, ${killedFor(reason)}`).join("; ");
}

/** What became of the tokens. Money is shared out by tokens: the ledger holds its sum only. */
export function fates(ledger) {
  const [all, cost] = [Number(ledger.generatedTokenCount ?? 0), Number(ledger.costMicroUsd ?? 0)];
  if (!all) return "";
  const parts = [["used", ledger.usedTokenCount], ["killed", ledger.killedTokenCount], ["lost", ledger.lostTokenCount]];
  const kept = parts.map(([name, n]) => [name, Number(n ?? 0)]).filter(([, n]) => n);
  return h(
    "figure",
    { class: "fates" },
    h("figcaption", {}, `${grouped(all)} tokens by what became of them; money by their share`),
    h("div", { class: "stack", "aria-hidden": "true" }, ...kept.map(([name, n]) => h("span", { class: name, "--share": n / all }))),
    h("ul", {}, ...kept.map(([name, n]) => h("li", { class: name }, `${grouped(n)} ${name} · ${money((cost * n) / all)}`))),
  );
}

function certified(certificate, ballots, usage) {
  const where = new Map();
  for (const { agentIds = [], endpointId, region: area } of certificate.placements ?? []) {
    for (const id of agentIds) where.set(id, [endpointId, area].filter(Boolean).join(", "));
  }
  const seen = (certificate.evidence ?? []).flatMap(({ image, toolResult }) =>
    image ? [image] : (toolResult?.parts ?? []).map((part) => part.image).filter(Boolean),
  );
  const { ledger = {} } = certificate;
  const rows = ballots.map(({ agentId = 0, answer = "", abstained, proved, weight = 1, confidence, sampledTokenCount }) =>
    h("tr", {}, h("th", { scope: "row" }, `${agentId}`), h("td", {}, abstained ? "cannot answer" : answer, proved ? " (proved)" : ""),
      h("td", { class: "number" }, weight === 1 ? "1" : weight.toFixed(2)), h("td", { class: "number" }, sureness(confidence?.meanLogprob)),
      h("td", { class: "number" }, grouped(sampledTokenCount ?? 0)), h("td", {}, where.get(agentId) ?? "")),
  );
  const columns = [["agent"], ["answer"], ["weight", "number"], ["sure of its words", "number"], ["tokens", "number"], ["where"]];
  return [
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "ballots" },
      h("table", {}, h("thead", {}, h("tr", {}, ...columns.map(([name, kind]) => h("th", { scope: "col", class: kind }, name)))), h("tbody", {}, ...rows))),
    h("dl", { class: "facts" },
      fact("rule", `${certificate.strategy || "auto"}, quorum ${certificate.quorum || "default"}`),
      fact("prompt", `${grouped(usage.promptTokenCount ?? 0)} positions, ${grouped(usage.cachedTokenCount ?? 0)} cached; ${grouped(usage.injectedTokenCount ?? 0)} injected`),
      fact("tools", `${count(ledger.toolCallCount ?? 0, "call")}, ${count(ledger.toolExecutionCount ?? 0, "execution")}`),
      fact("seed", `${certificate.seed ?? 0} with ${certificate.model}: asked again on the same build it gives the same answer`)),
    ...(seen.length ? [h("h4", {}, "It rests on"), h("div", { class: "strip" }, ...seen.slice(0, 24).map((image) => picture(image, `evidence: ${region(image)}`)))] : []),
    ...(certificate.lostAttempts ?? []).map(({ agentId = 0, endpointId, reason = "", resumed }) =>
      h("p", { class: "muted" }, `Agent ${agentId} was lost on ${endpointId || "no place"} (${lower(reason)})${resumed ? " and went on" : ""}.`)),
  ];
}

const sentence = (text) => (text ? text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".") : "");
