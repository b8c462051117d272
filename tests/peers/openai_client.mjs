// What OpenAI's own client for Node makes of the gateway; prints one JSON object.
// usage: node openai_client.mjs BASE_URL IMAGE
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const [baseURL, image] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const url = `data:image/png;base64,${readFileSync(image).toString("base64")}`;
const content = [
  { type: "image_url", image_url: { url } },
  { type: "text", text: "What is the sum of the red cards?" },
];
const chat = { model: "mini", messages: [{ role: "user", content }], cogitate: { agents: 4 } };
const told = {};

const whole = await client.chat.completions.create(chat);
told.whole = whole.choices[0].message.content;
told.usage = whole.usage.total_tokens;

told.streamed = "";
for await (const chunk of await client.chat.completions.create({ ...chat, stream: true }))
  told.streamed += chunk.choices[0]?.delta?.content ?? "";

const stream = await client.responses.create({
  model: "mini", stream: true, reasoning: { effort: "high" },
  input: [{ role: "user", content: [
    { type: "input_image", image_url: url },
    { type: "input_text", text: "What is the sum of the red cards?" },
  ] }],
});
told.events = [];
for await (const event of stream) {
  if (told.events.at(-1) !== event.type) told.events.push(event.type);
  if (event.type === "response.completed") told.response = event.response.output.at(-1).content[0].text;
}

told.models = (await client.models.list()).data.map((model) => model.id);
try {
  await client.chat.completions.create({ ...chat, model: "nobody" });
} catch (error) {
  told.error = { kind: error.constructor.name, status: error.status, code: error.code };
}
console.log(JSON.stringify(told));
