"""/v1/chat/completions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from .common import Answer, Body, GenerationBody, List, Texts, Tools


class Message(Body):
    """One of a conversation. Of content given in parts, only text is taken."""

    role: str
    content: str | List[dict[str, Any]] | None = None


class ChatBody(GenerationBody):
    messages: List[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    tools: Tools | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = True
    reasoning_effort: str | None = None
    include_reasoning: bool = True
    echo: bool | None = False
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    documents: List[Texts] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    # What OpenAI or vLLM take and this server does not.
    mm_processor_kwargs: dict[str, Any] | None = None
    functions: List[dict[str, Any]] | None = None
    audio: dict[str, Any] | None = None
    modalities: List[str] | None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]


class ChatMessage(BaseModel):
    role: str
    content: str | None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: int | str | None
    token_ids: list[int] | None = None


class ChatAnswer(Answer):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    prompt_token_ids: list[int] | None = None
