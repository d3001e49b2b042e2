"""/v1/responses."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from .common import GenerationBody, List, Texts, Tools


class ResponsesBody(GenerationBody):
    """``store`` is passed over: nothing is stored."""

    input: str | List[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: Tools | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = True
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    metadata: Texts | None = None
    store: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: List[str] | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    # What OpenAI or vLLM take and this server does not.
    previous_response_id: str | None = None
    background: bool | None = False
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    context_management: List[dict[str, Any]] | None = None


class InputTokensDetails(BaseModel):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseAnswer(BaseModel):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    error: None
    incomplete_details: dict[str, Any] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    reasoning: dict[str, Any]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    usage: ResponseUsage | None
