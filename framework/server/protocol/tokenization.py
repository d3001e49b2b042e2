"""/tokenize and /detokenize."""

from __future__ import annotations

from pydantic import BaseModel

from .chat import ChatBody
from .common import Body, List, TokenId


class TokenizeBody(Body):
    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool | None = False


class TokenizeChatBody(ChatBody):
    return_token_strs: bool | None = False


class Tokenized(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeBody(Body):
    model: str | None = None
    tokens: List[TokenId]


class Detokenized(BaseModel):
    prompt: str
