// One lane an agent. What is there already stays: text grows by its new end, and a lane is never drawn anew.

import { h, write } from "./dom.js";
import { picture, region } from "./pictures.js";
import { callArguments, count, killedFor, lower, toolVerb } from "./words.js";

// A paragraph of a long text is broken off here, at a space: laying out a very long one for each token takes time.
const LONG = 300;

export class Lanes {
  #root;
  #lanes = new Map();
  #hues;
  #turn = 0; // whose turn it is
  #sight = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) {
      const lane = this.#lanes.get(Number(target.dataset.agent));
      if (lane) lane.isInSight = isIntersecting;
    }
  });

  /** Draws into `root`, a list; `hues` gives each provider its colour. */
  constructor(root, hues) {
    this.#root = root;
    this.#hues = hues;
  }

  clear() {
    this.#sight.disconnect();
    this.#lanes.clear();
    this.#turn = 0;
    this.#root.replaceChildren();
  }

  /** Draws what is new, but in turn: `most` lanes that are in sight, and one that is not. True if nothing is left. */
  draw(lanes, most) {
    for (const id of lanes.keys()) if (!this.#lanes.has(id)) this.#open(id);
    const shown = [...this.#lanes.values()];
    const stale = [...shown.slice(this.#turn), ...shown.slice(0, this.#turn)].filter((lane) => !lane.shows(lanes.get(lane.id)));
    const inSight = stale.filter((lane) => lane.isInSight).slice(0, most);
    const others = stale.filter((lane) => !lane.isInSight).slice(0, most === Infinity ? most : 1);
    for (const lane of [...inSight, ...others]) lane.draw(lanes.get(lane.id));
    this.#turn = shown.indexOf(inSight.at(-1) ?? others.at(-1)) + 1;
    return inSight.length + others.length === stale.length;
  }

  /** Marks the lanes whose answer is not the one that won. */
  settle(key) {
    for (const lane of this.#lanes.values()) lane.settle(key);
  }

  #open(id) {
    const made = new Lane(id, this.#hues);
    this.#lanes.set(id, made);
    this.#root.append(made.root);
    this.#root.classList.toggle("many", this.#lanes.size > 8);
    this.#sight.observe(made.root);
  }
}

class Lane {
  #hues;
  #lane = null;
  #drawn = []; // {item, block, length}: what was added for an item, and how long its block was before
  #known = new Map(); // item → its place there
  #calls = new Map();
  isInSight = true;

  constructor(id, hues) {
    this.#hues = hues;
    this.id = id;
    this.where = h("span", { class: "where" });
    this.tokens = h("span", { class: "tokens" });
    this.log = h("div", { class: "log" });
    this.ending = h("p", { class: "ending" });
    this.hint = h("p", { class: "hint", hidden: true });
    this.log.append(this.hint);
    const larger = h("button", { type: "button", class: "larger", "aria-pressed": "false", title: "larger or smaller" }, `${id}`);
    larger.setAttribute("aria-label", `agent ${id}, larger`);
    larger.addEventListener("click", () => {
      larger.setAttribute("aria-pressed", String(this.root.classList.toggle("large")));
    });
    this.root = h(
      "li",
      { class: "lane", "data-agent": id },
      h("h3", {}, larger, this.where, this.tokens),
      h("div", { class: "body", tabindex: "0", role: "group", "aria-label": `what agent ${id} writes` }, this.log),
      this.ending,
    );
  }

  settle(key) {
    const { vote } = this.#lane ?? {};
    if (vote && !vote.abstained && !vote.judgedKey && vote.key !== key) this.root.dataset.status = "dissents";
  }

  /** True if it is drawn as it is in the state. */
  shows(lane) {
    return this.#lane === lane;
  }

  draw(lane) {
    const old = this.#lane;
    this.#lane = lane;
    if (old?.endpoint !== lane.endpoint || old?.provider !== lane.provider || old?.role !== lane.role) {
      const role = lane.role && lane.role !== "solver" ? `${lane.role} · ` : "";
      write(this.where, role + (lane.endpoint || "no place yet"));
      this.where.title = lane.provider ? `runs on ${lane.endpoint} of ${lane.provider}` : "";
      if (lane.provider) this.root.dataset.hue = this.#hues(lane.provider);
    }
    if (old?.hint !== lane.hint) {
      write(this.hint, lane.hint);
      this.hint.toggleAttribute("hidden", !lane.hint);
    }
    if (old?.tokens !== lane.tokens) write(this.tokens, lane.tokens ? `${lane.tokens}` : "");
    if (old?.tail !== lane.tail) this.#write(lane);
    if (old?.calls !== lane.calls) this.#update(lane.calls);
    if (old?.status !== lane.status || old?.vote !== lane.vote || old?.reason !== lane.reason) this.#end(lane);
  }

  #write(lane) {
    const added = [];
    let item = lane.tail;
    for (; item && !this.#known.has(item); item = item.prev) added.push(item);
    this.#rewind(item ? this.#known.get(item) + 1 : 0);
    for (const one of added.reverse()) {
      if (one.callId !== undefined) this.#addCall(one, lane.calls[one.callId]);
      else this.#addText(one);
    }
  }

  /** Takes back what was drawn for the items from `count` on. */
  #rewind(count) {
    while (this.#drawn.length > count) {
      const { item, block, length } = this.#drawn.pop();
      this.#known.delete(item);
      if (length) block.firstChild.data = block.firstChild.data.slice(0, length);
      else block.remove();
    }
  }

  #add(item, block, length) {
    this.#known.set(item, this.#drawn.push({ item, block, length }) - 1);
  }

  #addText(item) {
    const last = this.log.lastElementChild;
    const kind = item.isAnswer ? "answer" : "thought";
    const length = last.classList.contains(kind) ? last.firstChild.length : 0;
    if (length && !(length > LONG && /^\s/.test(item.text))) {
      last.firstChild.appendData(item.text);
      this.#add(item, last, length);
      return;
    }
    const block = h("p", { class: kind }, document.createTextNode(item.text.trimStart() || " "));
    this.log.append(block);
    this.#add(item, block, 0);
  }

  #addCall(item, call) {
    const block = h("div", { class: "call" });
    this.log.append(block);
    this.#add(item, block, 0);
    this.#calls.set(item.callId, { block, call: null });
    this.#drawCall(call);
  }

  #update(calls) {
    for (const call of Object.values(calls)) if (this.#calls.get(call.callId)?.call !== call) this.#drawCall(call);
  }

  #drawCall(call) {
    const shown = this.#calls.get(call.callId);
    if (!shown) return;
    shown.call = call;
    const what = callArguments(call.name, call.argumentsJson);
    const said = [h("b", {}, toolVerb(call.name)), ` ${what}`];
    if (call.isShared) said.push(h("span", { class: "shared", title: "an identical call of a sibling was run for it" }, " shared"));
    const words = h("div", {}, h("p", {}, ...said));
    if (call.status === "client") words.append(h("p", { class: "result" }, "waits for the client that asked"));
    if (call.text) words.append(h("p", { class: "result" }, call.text));
    if (call.proof) words.append(h("p", { class: "proved" }, "a tool proves it"));
    const pictures = call.images.map((image) => picture(image, `agent ${this.id} sees ${region(image)}`));
    shown.block.replaceChildren(...pictures, words);
    shown.block.dataset.status = call.status;
  }

  #end(lane) {
    const { status, vote, reason } = lane;
    this.root.dataset.status = vote?.abstained ? "abstained" : status;
    const said = {
      waiting: reason ? `lost its place (${lower(reason)}), goes on elsewhere` : "waits",
      thinking: "thinks",
      tool: "waits for a tool",
      killed: `stopped: ${killedFor(reason)}`,
      lost: `lost: ${lower(reason)}`,
      voted: vote?.abstained ? "cannot answer" : `votes ${vote?.key || vote?.answer}`,
    };
    write(this.ending, said[status] + (vote?.proved ? ", proved" : ""));
    this.ending.title = vote ? `${vote.answer} (${count(lane.tokens, "token")})` : "";
  }
}
