// Numbers and names as people read them. Pure.

const TOOLS = { zoom: "looks at", crop: "crops", calculator: "calculates", prove: "proves", python: "runs Python", ocr: "reads" };
const KILLED = {
  DECIDED: "not needed", CONFIDENCE: "too unsure", BUDGET: "budget spent", DEADLINE: "out of time",
  CANCELLED: "cancelled", LOST: "endpoint lost",
};
const DEGRADED = {
  BUDGET: "the budget was spent", DEADLINE: "time was up", AGENTS_LOST: "agents were lost",
  NO_BALLOT: "nobody voted", UNFINISHED: "no agent was done",
};

export const count = (n, one, many = `${one}s`) => `${grouped(n)} ${n === 1 ? one : many}`;

export const grouped = (n) => Number(n).toLocaleString("en");

export function seconds(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return ms < 60_000 ? `${(ms / 1000).toFixed(2)} s` : `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
}

/** Money in millionths of a dollar. */
export function money(micro) {
  const usd = Number(micro ?? 0) / 1e6;
  if (usd === 0) return "$0";
  return usd < 0.01 ? `$${usd.toFixed(6)}` : `$${usd.toFixed(2)}`;
}

export const killedFor = (reason) => KILLED[reason] ?? lower(reason);

export const degradedBy = (reason) => DEGRADED[reason] ?? lower(reason);

export const lower = (name) => name.toLowerCase().replaceAll("_", " ");

export const toolVerb = (name) => TOOLS[name] ?? name;

/** The arguments of a call on one line: values only, the first image left out. */
export function callArguments(name, json) {
  let values;
  try {
    values = JSON.parse(json || "{}");
  } catch {
    return "…";
  }
  if (values === null || typeof values !== "object") return String(values);
  if (name === "zoom" && Array.isArray(values.box) && values.box.length === 4) {
    const [x0, y0, x1, y1] = values.box;
    const which = values.image ? `, picture ${values.image + 1}` : "";
    return `${x0}–${x1} %, ${y0}–${y1} %${which}`;
  }
  return Object.entries(values)
    .filter(([name, value]) => !(name === "image" && value === 0))
    .map(([, value]) => (typeof value === "string" ? value : JSON.stringify(value)))
    .join(", ");
}

/** Agent numbers as ranges: 0–3, 5. */
export function ids(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  const told = [];
  for (let i = 0; i < sorted.length; i++) {
    const from = sorted[i];
    while (sorted[i + 1] === sorted[i] + 1) i++;
    told.push(from === sorted[i] ? `${from}` : `${from}–${sorted[i]}`);
  }
  return told.join(", ");
}

/** How sure an agent was of its words, from the mean log probability of its tokens. */
export const sureness = (logprob) => (logprob ? `${Math.round(Math.exp(logprob) * 100)} %` : "");

export function ago(iso) {
  const s = Math.max(0, (Date.now() - Date.parse(iso)) / 1000);
  if (s < 60) return "just now";
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  return s < 86_400 ? `${Math.floor(s / 3600)} h ago` : new Date(iso).toLocaleDateString();
}
