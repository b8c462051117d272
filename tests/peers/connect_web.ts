// Bundled for the browser: calls the gateway by @connectrpc/connect-web, in each of its dialects.
import { createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";
import { Role } from "./gen/cogitate/v1/common_pb.js";
import { ContemplationService } from "./gen/cogitate/v1/contemplation_service_pb.js";
import { GatewayService } from "./gen/cogitate/v1/gateway_service_pb.js";

const transports = {
  "connect-json": (baseUrl: string) => createConnectTransport({ baseUrl }),
  "connect-proto": (baseUrl: string) => createConnectTransport({ baseUrl, useBinaryFormat: true }),
  "grpc-web": (baseUrl: string) => createGrpcWebTransport({ baseUrl }),
};

async function ask(dialect: keyof typeof transports, baseUrl: string, image: number[], text: string) {
  const transport = transports[dialect](baseUrl);
  const { models } = await createClient(GatewayService, transport).listModels({});
  const told = { models: models.map((model) => model.name), events: [] as string[], answer: "", error: "" };
  try {
    const parts = [
      { part: { case: "image" as const, value: { data: new Uint8Array(image) } } },
      { part: { case: "text" as const, value: text } },
    ];
    const stream = createClient(ContemplationService, transport).contemplate({
      spec: { conversation: [{ role: Role.USER, parts }], agentCount: 4 },
    });
    for await (const { event } of stream) {
      told.events.push(event?.event.case ?? "");
      if (event?.event.case === "verdict") told.answer = event.event.value.answer;
    }
  } catch (error) {
    told.error = String(error);
  }
  return told;
}

Object.assign(globalThis, { ask });
