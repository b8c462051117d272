"""Cogitate as tools of the Model Context Protocol: an agent asks, many think, one answer."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Final

import pydantic
from cogitate.client import Answer, AsyncClient, CogitateError
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError

MAX_IMAGE_COUNT: Final = 8
MAX_IMAGE_BYTES: Final = 16 * 1024 * 1024
MAX_BODY_BYTES: Final = 32 * 1024 * 1024
_INSTRUCTIONS: Final = (
    "Ask `contemplate` where one line of thought may go wrong: several agents reason in parallel, "
    "over pictures too, and what they agree on comes back with how sure they are."
)


class Vote(pydantic.BaseModel):
    """What one agent answered; `weight` is its share in the outcome."""

    agent: int
    answer: str
    abstained: bool
    weight: float


class Contemplation(pydantic.BaseModel):
    """The answer, and why it stands."""

    answer: str
    agreeing: int = pydantic.Field(description="how many agents gave this answer")
    votes: list[Vote]
    killed: int = pydantic.Field(description="agents stopped once the outcome stood")
    decision: str = pydantic.Field(description="why the outcome stands")
    proved: bool = pydantic.Field(description="a tool proved the answer")
    abstained: bool = pydantic.Field(description="the agents said that they cannot answer")
    degraded: list[str] = pydantic.Field(description="limits that cut it short")
    tokens: int
    cost_usd: float
    duration_s: float
    contemplation_id: str
    trace_id: str


class Model(pydantic.BaseModel):
    """A model that can be asked."""

    name: str
    vision: bool


Images = Annotated[
    list[str],
    pydantic.Field(
        max_length=MAX_IMAGE_COUNT,
        description="pictures as data URIs, or `sha256:` digests of uploaded ones; paths below the "
        "folder that the server was started with, if any",
    ),
]
AgentCount = Annotated[int, pydantic.Field(ge=1, le=64, description="how many agents think")]
Words = Annotated[str, pydantic.Field(max_length=64)]
Seconds = Annotated[float, pydantic.Field(gt=0, le=600)]


@dataclass(frozen=True)
class Asker:
    """Asks the mesh at `address`; pictures may be files below `folder`."""

    address: str | None
    folder: Path | None = None

    def client(self, context: Context[Any, Any]) -> AsyncClient:
        """With the key the caller sent, if it came by HTTP, else the environment's."""
        headers = context.headers
        if headers is None:
            return AsyncClient(self.address)
        _, _, key = headers.get("authorization", "").partition(" ")
        return AsyncClient(self.address, api_key=key)

    def image(self, given: str) -> str | bytes:
        """Returns a picture, or its digest. Raises ToolError."""
        if given.startswith("sha256:"):
            return given
        if given.startswith("data:image/"):
            head, _, data = given.partition(",")
            try:
                if head.endswith(";base64"):
                    return base64.b64decode(data, validate=True)
            except binascii.Error:
                pass
            raise ToolError("an image's data URI must be base64")
        return self._file(given)

    def _file(self, given: str) -> bytes:
        refusal = ToolError(
            "images are data URIs, digests, or paths below the folder given with --images"
        )
        if self.folder is None or "\0" in given:
            raise refusal
        path = (self.folder / given).resolve()
        if not path.is_relative_to(self.folder.resolve()) or not path.is_file():
            raise refusal
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise ToolError(f"an image is at most {MAX_IMAGE_BYTES} bytes")
        return path.read_bytes()


def build(asker: Asker) -> MCPServer[Any]:
    """Returns the server with its tools."""
    server: MCPServer[Any] = MCPServer(
        "cogitate", instructions=_INSTRUCTIONS, version=metadata.version("cogitate"),
        log_level="WARNING",
    )  # fmt: skip

    @server.tool()
    async def contemplate(
        question: str,
        context: Context[Any, Any],
        images: Images = [],  # noqa: B006 (pydantic copies it, and shows it in the schema)
        agents: AgentCount = 8,
        model: Words = "",
        quorum: Words = "",
        strategy: Words = "",
        deadline_s: Seconds = 120,
    ) -> Contemplation:
        """Lets many agents reason about a question in parallel and returns what they agree on."""
        try:
            async with (
                asker.client(context) as client,
                client.contemplate(
                    question,
                    images=[asker.image(one) for one in images],
                    agents=agents,
                    deadline_s=deadline_s,
                    exclude=("deltas",),
                    model=model,
                    quorum=quorum,
                    strategy=strategy,
                ) as stream,
            ):
                votes = 0
                async for event in stream:
                    if event.HasField("ballot_cast"):
                        votes += 1
                        await context.report_progress(votes, agents, f"{votes} agents voted")
                return told(await stream.answer())
        except CogitateError as error:
            raise ToolError(str(error)) from None

    @server.tool()
    async def list_models(context: Context[Any, Any]) -> list[Model]:
        """Lists the models that can be asked now."""
        try:
            async with asker.client(context) as client:
                return [Model(name=one.name, vision=one.vision) for one in await client.models()]
        except CogitateError as error:
            raise ToolError(str(error)) from None

    return server


def told(answer: Answer) -> Contemplation:
    """Returns the verdict as the tool tells it."""
    certificate = answer.certificate
    votes = [
        Vote(agent=one.agent_id, answer=one.answer, abstained=one.abstained, weight=one.weight)
        for one in answer.ballots
    ]
    return Contemplation(
        answer=answer.answer,
        agreeing=_agreeing(answer),
        votes=votes,
        killed=len(certificate.killed_agents),
        decision=certificate.decision,
        proved=answer.proved,
        abstained=answer.abstained,
        degraded=list(answer.degraded_reasons),
        tokens=certificate.ledger.generated_tokens,
        cost_usd=certificate.ledger.cost_usd,
        duration_s=answer.duration_s,
        contemplation_id=answer.contemplation_id,
        trace_id=answer.trace_id,
    )


def _agreeing(answer: Answer) -> int:
    return sum(one.key == answer.key and not one.abstained for one in answer.ballots)
