// Where agents run, why, and what it costs there.

import { h } from "./dom.js";
import { grouped, ids, money } from "./words.js";

/** Draws the places of a state into `root`; `fleet` are FleetEndpoints by id, for their prices. */
export function drawPlaces(root, state, fleet, hues) {
  if (!state.places.length) {
    root.replaceChildren(h("p", { class: "muted" }, state.waits || "No place yet."));
    return;
  }
  const cards = new Map();
  for (const place of state.places) cards.set(place.endpointId, place); // the last placement says why
  const agents = new Map([...cards.keys()].map((name) => [name, []]));
  for (const [id, lane] of state.lanes) {
    if (!agents.has(lane.endpoint)) agents.set(lane.endpoint, []);
    agents.get(lane.endpoint).push(id);
  }
  const made = [...agents].filter(([name]) => name).map(([name, here]) => {
    const place = cards.get(name) ?? {};
    const provider = place.provider || state.lanes.get(here[0])?.provider || "";
    const sampled = here.reduce((sum, id) => sum + state.lanes.get(id).tokens, 0);
    // A server behind an adapter tells how long prompts are at the end only.
    const prefill = state.prefills.find((one) => one.endpointId === name && Number(one.promptTokenCount ?? 0));
    const prompt = prefill && `, prompt of ${grouped(prefill.promptTokenCount)} computed once`;
    return h(
      "li",
      { "data-hue": hues(provider) },
      h("p", {}, h("b", {}, name), h("span", { class: "muted" }, `${[provider, place.region].filter(Boolean).join(", ")}`),
        h("span", { class: "price" }, price(fleet.get(name)))),
      h("p", {}, here.length ? `agents ${ids(here)}` : "no agent now", ` · ${grouped(sampled)} tokens`, prompt || ""),
      place.reason ? h("details", {}, h("summary", {}, "why here"), h("p", { class: "muted" }, place.reason)) : "",
    );
  });
  root.replaceChildren(h("ul", { class: "places" }, ...made));
}

/** What an endpoint costs, or nothing where that is not known. */
export function price(endpoint) {
  const { pricePerHourMicroUsd: hour, pricePerMillionTokensMicroUsd: million } = endpoint?.description ?? {};
  if (Number(hour ?? 0)) return `${money(hour)}/hour`;
  if (Number(million ?? 0)) return `${money(million)} a million tokens`;
  return "";
}
