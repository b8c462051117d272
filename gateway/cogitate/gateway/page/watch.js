// Follows one contemplation: begins it or joins it, and joins again where it stood when the connection breaks.

import { RpcError, call, stream } from "./connect.js";
import { EMPTY, reduce } from "./state.js";

const PAUSES_MS = [250, 500, 1000, 2000, 4000, 8000];

/** One contemplation as this page sees it; `state` is always whole. */
export class Watch {
  state = EMPTY;
  #stop = new AbortController();
  #listener;

  /** `listener` has `changed(state)`, `waiting(ms, error)` before each new try, and `failed(error)`. */
  constructor(listener) {
    this.#listener = listener;
  }

  /** Asks. The same request asked again after a broken connection is the same contemplation. */
  ask(spec) {
    return this.#follow(spec);
  }

  /** Joins a contemplation from its first event. */
  join(id) {
    this.state = { ...EMPTY, id };
    return this.#follow(null);
  }

  /** Stops listening; the contemplation runs on. */
  leave() {
    this.#stop.abort();
  }

  /** Has its agents stopped. Throws RpcError. */
  cancel() {
    return call("ContemplationService/CancelContemplation", { contemplationId: this.state.id });
  }

  async #follow(spec) {
    let tries = 0;
    while (!this.state.ending) {
      const before = this.state.last;
      try {
        await this.#listen(spec);
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        if (this.state.last > before) tries = 0;
        if (!error.isTransport || tries >= PAUSES_MS.length) return this.#listener.failed(error);
        this.#listener.waiting(PAUSES_MS[tries], error);
        await new Promise((resolve) => setTimeout(resolve, PAUSES_MS[tries++]));
      }
      if (this.#stop.signal.aborted) return;
    }
  }

  async #listen(spec) {
    const { id, last } = this.state;
    const messages = id
      ? stream("ContemplationService/Attach", { contemplationId: id, afterEventNumber: last }, this.#stop.signal)
      : stream("ContemplationService/Contemplate", { spec }, this.#stop.signal);
    for await (const { event } of messages) {
      if (Number(event.firstEventNumber ?? 0) > this.state.last + 1) throw new RpcError("broken", "events are missing");
      this.state = reduce(this.state, event);
      this.#listener.changed(this.state);
    }
    if (!this.state.ending) throw new RpcError("broken", "the stream ended before its contemplation did");
  }
}
