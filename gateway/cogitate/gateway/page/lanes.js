// One lane an agent. What is there already stays: text grows by its new end, and a lane is never drawn anew.

import { h, write } from "./dom.js";
import { picture, region } from "./pictures.js";
import { callArguments, count, killedFor, lower, toolVerb } from "./words.js";

// A paragraph of a long text is broken off here, at a space: laying out a very long one for each token takes time.
const LONG = 600;

export class Lanes {
  #root;
  #lanes = new Map();
  #hues;

  /** Draws into `root`, a list; `hues` gives each provider its colour. */
  constructor(root, hues) {
    this.#root = root;
    this.#hues = hues;
  }

  clear() {
    this.#lanes.clear();
    this.#root.replaceChildren();
  }

  /** Draws what is new in the lanes of a state. */
  draw(lanes) {
    for (const [id, lane] of lanes) {
      let shown = this.#lanes.get(id);
      if (!shown) {
        shown = new Lane(id, this.#hues);
        this.#lanes.set(id, shown);
        this.#root.append(shown.root);
        this.#root.classList.toggle("many", this.#lanes.size > 8);
      }
      shown.draw(lane);
    }
  }
}

class Lane {
  #hues;
  #lane = null;
  #drawn = []; // {item, block, length}: what was added for an item, and how long its block was before
  #calls = new Map();

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
      { class: "lane" },
      h("h3", {}, larger, this.where, this.tokens),
      h("div", { class: "body", tabindex: "0", role: "group", "aria-label": `what agent ${id} writes` }, this.log),
      this.ending,
    );
  }

  draw(lane) {
    const old = this.#lane;
    if (old === lane) return;
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
    const known = new Map(this.#drawn.map(({ item }, i) => [item, i]));
    const added = [];
    let item = lane.tail;
    for (; item && !known.has(item); item = item.prev) added.push(item);
    this.#rewind(item ? known.get(item) + 1 : 0);
    for (const one of added.reverse()) {
      if (one.callId !== undefined) this.#addCall(one, lane.calls[one.callId]);
      else this.#addText(one);
    }
  }

  /** Takes back what was drawn for the items from `count` on. */
  #rewind(count) {
    while (this.#drawn.length > count) {
      const { block, length } = this.#drawn.pop();
      if (length) block.firstChild.data = block.firstChild.data.slice(0, length);
      else block.remove();
    }
  }

  #addText(item) {
    const last = this.log.lastElementChild;
    const kind = item.isAnswer ? "answer" : "thought";
    const length = last.classList.contains(kind) ? last.firstChild.length : 0;
    if (length && !(length > LONG && /^\s/.test(item.text))) {
      last.firstChild.appendData(item.text);
      this.#drawn.push({ item, block: last, length });
      return;
    }
    const block = h("p", { class: kind }, document.createTextNode(item.text.trimStart() || " "));
    this.log.append(block);
    this.#drawn.push({ item, block, length: 0 });
  }

  #addCall(item, call) {
    const block = h("div", { class: "call" });
    this.log.append(block);
    this.#drawn.push({ item, block, length: 0 });
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
