// Asks a question by gRPC and shows what the agents do; a stream that breaks is taken up where it broke.
//
//   cogitate up --detach
//   npm install && npm run generate
//   npm run ask -- "What is the sum of the red cards?" ../board.png
import { readFileSync } from "node:fs";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { PartSchema, Role } from "./gen/cogitate/v1/common_pb.js";
import { type ContemplationEvent, ContemplationService, OnDisconnect } from "./gen/cogitate/v1/contemplation_service_pb.js";

const [question, ...images] = process.argv.slice(2);
if (!question) {
  console.error("usage: npm run ask -- QUESTION [IMAGE…]");
  process.exit(2);
}
const address = process.env.COGITATE_ADDRESS ?? "127.0.0.1:7100";
const key = process.env.COGITATE_API_KEY;

const withKey: Interceptor = (next) => (request) => {
  if (key) request.header.set("authorization", `Bearer ${key}`);
  return next(request);
};
const transport = createGrpcTransport({ baseUrl: `http://${address}`, interceptors: [withKey] });
const mesh = createClient(ContemplationService, transport);

const parts: MessageInitShape<typeof PartSchema>[] = [
  ...images.map((file) => ({
    part: { case: "image" as const, value: { data: new Uint8Array(readFileSync(file)) } },
  })),
  { part: { case: "text" as const, value: question } },
];

/** The events of one contemplation, each once, through every broken connection. */
async function* contemplate(): AsyncGenerator<ContemplationEvent> {
  let id = "";
  let seen = 0n;
  for (let attempt = 0; ; ) {
    try {
      const stream = id
        ? mesh.attach({ contemplationId: id, afterEventNumber: seen })
        : mesh.contemplate({
            spec: {
              requestId: crypto.randomUUID(), // sent again, it is the same contemplation
              conversation: [{ role: Role.USER, parts: parts.map((part) => create(PartSchema, part)) }],
              agentCount: 4,
              onDisconnect: OnDisconnect.CONTINUE,
            },
          });
      for await (const { event } of stream) {
        if (!event) continue;
        if (event.event.case === "accepted") id = event.event.value.contemplationId;
        seen = event.eventNumber;
        attempt = 0;
        yield event;
      }
      return;
    } catch (raised) {
      const error = ConnectError.from(raised);
      if (error.code !== Code.Unavailable || !id || ++attempt > 5) throw error;
      await new Promise((resolve) => setTimeout(resolve, 200 * attempt));
    }
  }
}

const written = new Map<number, string>();
try {
  for await (const { event } of contemplate()) {
    switch (event.case) {
      case "deltas":
        for (const { agentId, text } of event.value.deltas)
          written.set(agentId, (written.get(agentId) ?? "") + text);
        break;
      case "ballotCast": {
        const { agentId = 0, answer = "" } = event.value.ballot ?? {};
        console.log(`agent ${agentId} votes for ${JSON.stringify(answer)}:\n${written.get(agentId)}\n`);
        break;
      }
      case "agentKilled":
        console.log(`agent ${event.value.agent?.agentId} is stopped: ${event.value.agent?.reason}`);
        break;
      case "verdict":
        console.log(`\n${event.value.answer}`);
        break;
      case "failed":
        console.error(event.value.message);
        process.exitCode = 1;
    }
  }
} catch (raised) {
  console.error(ConnectError.from(raised).rawMessage);
  process.exitCode = 1;
}
