// The fleet as the router sees it now.

import { call } from "./connect.js";
import { $, h, write } from "./dom.js";
import { price } from "./places.js";
import { count, lower, seconds } from "./words.js";

/** Returns FleetEndpoints by id, and the counts beside them. */
export async function fetchFleet() {
  const fleet = await call("GatewayService/DescribeFleet");
  const endpoints = new Map((fleet.endpoints ?? []).map((one) => [one.description?.endpointId ?? "", one]));
  return { endpoints, leases: fleet.leaseCount ?? 0, queued: fleet.queuedCount ?? 0 };
}

/** Draws it into the section `fleet`. */
export function drawFleet({ endpoints, leases, queued }) {
  const running = [...endpoints.values()].reduce((sum, one) => sum + (one.load?.runningSequenceCount ?? 0), 0);
  const told = [count(endpoints.size, "endpoint"), `${count(running, "agent")} at work`, `${count(leases, "contemplation")} placed`];
  write($("fleet-sum"), [...told, queued ? `${queued} waiting for room` : "nobody waits"].join(" · "));
  const none = h("li", {}, "No endpoint reports to the router. Start one (cogitate up), or see cogitate doctor.");
  $("endpoints").replaceChildren(...(endpoints.size ? [...endpoints.values()].map(card) : [none]));
}

function card({ description = {}, load = {}, state = "", bookedAgentCount = 0, reportAge = "0s" }) {
  const { endpointId, provider = "", region = "", engine = "", hardware = "", models = [], maxSequenceCount = 0 } = description;
  const running = load.runningSequenceCount ?? 0;
  const paused = load.pausedSequenceCount ?? 0;
  const step = parseFloat(load.stepDuration ?? "0") * 1000;
  const rows = [
    ["runs", [engine, hardware].filter(Boolean).join(" on ")],
    ["models", models.join(", ")],
    ["price", price({ description }) || "not told"],
    ["booked", count(bookedAgentCount, "agent")],
    ["sampled", `${count(load.sampledTokenCount ?? 0, "token")} since its start`],
    ["step", step ? `${step.toFixed(1)} ms of ${(load.stepBatchSize ?? 0).toFixed(1)} sequences` : "none lately"],
    ["heard", `${seconds(parseFloat(reportAge) * 1000)} ago`],
  ];
  return h(
    "li",
    { class: "endpoint" },
    h("h2", {}, endpointId, h("span", { class: `badge ${state === "READY" ? "good" : "warn"}` }, lower(state)), description.isSpot ? h("span", { class: "badge" }, "spot") : ""),
    h("p", { class: "muted" }, [provider, region].filter(Boolean).join(", ")),
    meter("sequences", `${running} of ${maxSequenceCount}${paused ? `, ${paused} paused` : ""}`, (running + paused) / Math.max(1, maxSequenceCount)),
    meter("memory of the engine", `${Math.round((load.kvCacheUtilization ?? 0) * 100)} %`, load.kvCacheUtilization ?? 0),
    h("dl", { class: "facts" }, ...rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
  );
}

function meter(name, words, share) {
  return h("div", { class: "meter" }, h("span", {}, name), h("span", { class: "number" }, words), h("span", { class: "bar", "--share": Math.min(1, share), "aria-hidden": "true" }));
}

