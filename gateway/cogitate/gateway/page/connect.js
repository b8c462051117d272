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
    const info = details.find((one) => one.type === "google.rpc.ErrorInfo");
    const { 1: [reason = ""] = [], 3: pairs = [] } = info ? fields(bytes(info.value)) : {};
    this.reason = text(reason);
    this.metadata = Object.fromEntries(pairs.map((pair) => fields(pair)).map(({ 1: [name], 2: [value] = [] }) => [text(name), text(value)]));
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

/** Reads base64, with or without its padding. */
export const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

const text = (data) => (typeof data === "string" ? data : new TextDecoder().decode(data));

/** Reads a protobuf message whose fields are all strings, bytes or messages: lists of bytes by field number. */
function fields(data) {
  const found = {};
  for (let at = 0; at < data.length; ) {
    const [tag, first] = varint(data, at);
    const [length, start] = varint(data, first);
    if ((tag & 7) !== 2) return found; // anything else has nothing to tell us
    (found[tag >> 3] ??= []).push(data.subarray(start, start + length));
    at = start + length;
  }
  return found;
}

function varint(data, at) {
  let value = 0;
  for (let shift = 0; shift < 32 && at < data.length; shift += 7) {
    value |= (data[at] & 127) << shift;
    if (data[at++] < 128) break;
  }
  return [value, at];
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
  let isOver = false;
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(broken);
      if (done) throw broken();
      for (const { flags, data } of envelopes.push(value)) {
        const message = JSON.parse(text(data));
        if (flags & END) {
          isOver = true;
          if (message.error) throw told(message.error);
          return;
        }
        yield message;
      }
    }
  } finally {
    if (!isOver) reader.cancel().catch(() => {});
    else reader.read().catch(() => {}); // the end of the body, so that the connection is used again
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
