"""What requests hold, field by field; the OpenAPI document is made of these.

Strict: a field that is not here is refused, and so is "3" for 3. Ranges are checked once, by the
gateway's validation, in the words of its own contract. What OpenAI has and a contemplation does
not, and whose absence changes no answer, is taken and ignored (`Ignored`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _integral(value: Any) -> Any:
    """To JSON 3.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int32 = Annotated[int, BeforeValidator(_integral), Field(ge=-(2**31), lt=2**31)]
Int64 = Annotated[int, BeforeValidator(_integral), Field(ge=-(2**63), lt=2**63)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class Strict(BaseModel):
    """No unknown fields, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True)


class LookupTable(Strict):
    """A table for the tool lookup; its first column names the rows."""

    name: str
    columns: list[str]
    rows: list[list[str]]


class Cogitate(Strict):
    """How the mesh thinks; the field `cogitate` of a request. All of it may be left out."""

    agents: Int32 | None = Field(default=None, description="how many agents think in parallel")
    initial_agents: Int32 = Field(
        default=0, description="how many of them begin, to be joined by more"
    )
    strategy: str = Field(
        default="", description="auto, vote, confidence, refine, best_of or synthesis"
    )
    quorum: str = Field(
        default="", description="all, unbeatable, unanimous:k, posterior:d, first:m or verified"
    )
    equivalence: str = Field(
        default="", description="how answers are compared: number, choice, text, json"
    )
    rounds: Int32 = Field(
        default=0, description="the most rounds of thinking; 0 is the strategy's own"
    )
    budget_tokens: Int64 = Field(
        default=0, description="the most tokens all agents may sample together"
    )
    budget_usd: float = Field(default=0, ge=0, le=1e9, description="the most money it may cost")
    deadline_s: float | None = Field(
        default=None, ge=-1e9, le=1e9, description="seconds the answer may take"
    )
    tools: list[str] | None = Field(
        default=None, description="tools of the mesh to use; [] is none"
    )
    tables: list[LookupTable] = Field(
        default=[], description="tables for the tool lookup; the first column names the rows"
    )
    providers: list[str] = Field(default=[], description="providers agents may run at; [] is any")
    regions: list[str] = Field(default=[], description="regions agents may run in; [] is any")
    priority: Int32 = Field(default=0, description="scheduling class, higher first")
    on_disconnect: Literal["cancel", "continue"] = Field(
        default="cancel", description="what happens when the client leaves"
    )
    events: Literal["none", "decisions", "all"] = Field(
        default="none", description="events of the agents told beside the answer, while streaming"
    )


class Ignored(Strict):
    """Fields of OpenAI's that mean nothing here."""

    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None


# -- chat completions ----------------------------------------------------------------------------


class TextContent(Strict):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    """A picture as a data URI."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImageContent(Strict):
    """A picture among the text."""

    type: Literal["image_url"]
    image_url: ImageUrl


class RefusalContent(Strict):
    """What an assistant said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


Content = Annotated[TextContent | ImageContent, Field(discriminator="type")]
AssistantContent = Annotated[TextContent | RefusalContent, Field(discriminator="type")]


class SystemMessage(Strict):
    """The operator's instructions."""

    role: Literal["system", "developer"]
    content: str | list[TextContent]
    name: str | None = None


class UserMessage(Strict):
    """What a person says."""

    role: Literal["user"]
    content: str | list[Content]
    name: str | None = None


class CalledFunction(Strict):
    """Name and arguments of a call."""

    name: str
    arguments: str


class MadeCall(Strict):
    """A call an assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Strict):
    """What the model said before."""

    role: Literal["assistant"]
    content: str | list[AssistantContent] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[MadeCall] | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    name: str | None = None


class ToolMessage(Strict):
    """The result of a call."""

    role: Literal["tool"]
    tool_call_id: str
    content: str | list[TextContent]


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class Function(Strict):
    """A function of the client's."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChatTool(Strict):
    """A function agents may call."""

    type: Literal["function"]
    function: Function


class JsonSchema(Strict):
    """A schema by name."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextFormat(Strict):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Strict):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class StreamOptions(Strict):
    """How a stream ends."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(Ignored):
    """The body of POST /v1/chat/completions."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "mini",
                "messages": [{"role": "user", "content": "Use 3, 5 and 7 to make 22."}],
                "cogitate": {"agents": 4},
            }
        }
    )

    model: str = ""
    messages: list[ChatMessage]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Int32 | None = None
    max_tokens: Int32 | None = None
    max_completion_tokens: Int32 | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: Int64 | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None
    response_format: ResponseFormat | None = None
    tools: list[ChatTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    reasoning_effort: Effort | None = None
    store: bool | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    cogitate: Cogitate = Cogitate()


# -- responses -----------------------------------------------------------------------------------


class InputText(Strict):
    """A piece of text, put in or given out before."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputImage(Strict):
    """A picture as a data URI."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class InputRefusal(Strict):
    """What was said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


InputContent = Annotated[InputText | InputImage | InputRefusal, Field(discriminator="type")]


class InputMessage(Strict):
    """A turn of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputContent]
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class InputCall(Strict):
    """A call that a response made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None


class InputCallOutput(Strict):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputContent]
    id: str | None = None
    status: str | None = None


class InputReasoning(BaseModel):
    """The reasoning of a response, which clients send back; it is left out."""

    model_config = ConfigDict(strict=True)
    type: Literal["reasoning"]


TypedItem = Annotated[InputCall | InputCallOutput | InputReasoning, Field(discriminator="type")]
InputItem = InputMessage | TypedItem


class ResponseTool(Strict):
    """A function agents may call."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class SchemaTextFormat(Strict):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextOptions(Strict):
    """What the text is to be like."""

    format: (
        Annotated[TextFormat | JsonObjectFormat | SchemaTextFormat, Field(discriminator="type")]
        | None
    ) = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Strict):
    """How much thinking."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseRequest(Ignored):
    """The body of POST /v1/responses."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"model": "mini", "input": "Use 3, 5 and 7 to make 22.", "background": True}
        }
    )

    model: str = ""
    input: str | list[InputItem]
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    background: bool | None = None
    store: bool | None = None
    max_output_tokens: Int32 | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: Int64 | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    include: list[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    cogitate: Cogitate = Cogitate()
