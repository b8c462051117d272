// The gateway's methods by the Connect protocol in its JSON form: https://connectrpc.com/docs/protocol
//
// A unary call is a POST of JSON. A stream answers with envelopes: a flag byte, four bytes of length (big-endian), and
// that many bytes of JSON; the last has flag 2 and holds {} or {"error": …}.

const END = 2;
const SHORT_MS = 20_000;
const STATUS = { 401: "unauthenticated", 403: "permission_denied", 404: "unimplemented", 429: "unavailable" };
const KEY = "cogitate.key";

/** An error as the gateway told it; `code` is Connect's, `reason` ours, both may be empty. */
export class RpcError extends Error {
  constructor(code, message, details = []) {
    super(message);
    this.code = code;
    const info = details.map((one) => one.debug ?? {}).find((one) => one.reason);
    this.reason = info?.reason ?? "";
    this.metadata = info?.metadata ?? {};
  }

  /** True if the way to the gateway broke, and not what was asked. */
  get isTransport() {
    return this.code === "broken" || (this.code === "unavailable" && this.reason !== "NO_ENDPOINT");
  }
}

/** The API key of this tab; kept until the tab is closed, never longer. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** Cuts bytes as they come into envelopes. Pieces may end anywhere. */
export class Envelopes {
  #rest = new Uint8Array(0);

  /** Returns the envelopes that are whole now, `{flags, data}` each. */
  push(bytes) {
    const all = new Uint8Array(this.#rest.length + bytes.length);
    all.set(this.#rest);
    all.set(bytes, this.#rest.length);
    const view = new DataView(all.buffer);
    const found = [];
    let at = 0;
    while (all.length - at >= 5) {
      const end = at + 5 + view.getUint32(at + 1);
      if (end > all.length) break;
      found.push({ flags: all[at], data: all.subarray(at + 5, end) });
      at = end;
    }
    this.#rest = all.slice(at);
    return found;
  }
}

/** Returns a message as one envelope. */
export function envelope(message) {
  const data = new TextEncoder().encode(JSON.stringify(message));
  const whole = new Uint8Array(5 + data.length);
  new DataView(whole.buffer).setUint32(1, data.length);
  whole.set(data, 5);
  return whole;
}

/** Makes a unary call, such as `call("GatewayService/ListModels")`. Throws RpcError. */
export async function call(method, request = {}) {
  const signal = AbortSignal.timeout(SHORT_MS);
  const answer = await post(method, "application/json", JSON.stringify(request), signal);
  return await answer.json();
}

/** Makes a streaming call and yields its messages. Throws RpcError, also if the stream breaks off. */
export async function* stream(method, request, signal) {
  const answer = await post(method, "application/connect+json", envelope(request), signal);
  const reader = answer.body.getReader();
  const envelopes = new Envelopes();
  const text = new TextDecoder();
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(broken);
      if (done) throw broken();
      for (const { flags, data } of envelopes.push(value)) {
        const message = JSON.parse(text.decode(data));
        if (flags & END) {
          if (message.error) throw told(message.error);
          return;
        }
        yield message;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function post(method, kind, body, signal) {
  const headers = { "Content-Type": kind, "Connect-Protocol-Version": "1" };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const asked = fetch(`/cogitate.v1.${method}`, { method: "POST", headers, body, signal, cache: "no-store" });
  const answer = await asked.catch(broken);
  if (!answer.ok) {
    const error = await answer.json().catch(() => ({}));
    throw told({ code: STATUS[answer.status] ?? "unknown", ...(error.error ?? error) });
  }
  return answer;
}

function told({ code, message, details }) {
  return new RpcError(code, message || `the gateway answered ${code} and no more`, details);
}

function broken(error) {
  if (error?.name === "AbortError") throw error;
  if (error?.name === "TimeoutError") throw new RpcError("broken", "the gateway takes too long; is the mesh busy?");
  throw new RpcError("broken", "the gateway does not answer; is it running (cogitate up)?");
}
