"""/v1/completions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from .common import Answer, GenerationBody, List, TokenId


class CompletionBody(GenerationBody):
    prompt: str | List[TokenId] | List[List[TokenId]] | List[str] | None = None
    echo: bool | None = False
    logprobs: int | None = None
    max_tokens: int | None = 16
    suffix: str | None = None
    prompt_embeds: Any = None
    add_special_tokens: bool = True


class CompletionLogprobs(BaseModel):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str
    stop_reason: int | str | None
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class CompletionAnswer(Answer):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
