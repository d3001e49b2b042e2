"""/v1/embeddings, /pooling, /classify, /score and /rerank."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from .chat import Message
from .common import Body, List, TokenId

Input = str | List[TokenId] | List[List[TokenId]] | List[str]
"""One text or several, or their tokens."""
Texts = str | List[str]


class PoolingBody(Body):
    """Fields of all of them. ``normalize``: the former name of ``use_activation``; ``prompt_name``, of some: which of the texts
    that came with the model stands before the input."""

    model: str | None = None
    user: str | None = None
    priority: int | None = None
    request_id: str | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    use_activation: bool | None = None
    normalize: bool | None = None


class EmbeddingBody(PoolingBody):
    """One of ``input`` and ``messages``, which hold an image, or a text, of a model that embeds both."""

    input: Input | None = None
    messages: List[Message] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    add_special_tokens: bool = True
    prompt_name: str | None = None


class EncodeBody(EmbeddingBody):
    """/pooling."""

    task: Literal["embed", "classify", "token_embed", "token_classify"] | None = None
    step_tag_id: int | None = None
    returned_token_ids: List[TokenId] | None = None


class ClassifyBody(PoolingBody):
    input: Input
    add_special_tokens: bool = True
    prompt_name: str | None = None


class ScoreBody(PoolingBody):
    """Under one of three pairs of names."""

    queries: Texts | None = None
    documents: Texts | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None


class RerankBody(PoolingBody):
    query: str
    documents: List[str]
    top_n: Annotated[int, Field(ge=0)] = 0


class PoolingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: Any = None


class PoolingAnswer(BaseModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: PoolingUsage


class Embedding(BaseModel):
    index: int
    object: Literal["embedding"]
    embedding: list[float] | str


class EmbeddingAnswer(PoolingAnswer):
    data: list[Embedding]


class Encoded(BaseModel):
    index: int
    object: Literal["pooling"]
    data: list[float] | list[list[float]] | str


class EncodeAnswer(PoolingAnswer):
    data: list[Encoded]


class Classified(BaseModel):
    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class ClassifyAnswer(PoolingAnswer):
    data: list[Classified]


class Scored(BaseModel):
    index: int
    object: Literal["score"]
    score: float


class ScoreAnswer(PoolingAnswer):
    data: list[Scored]


class RerankDocument(BaseModel):
    text: str


class RerankResult(BaseModel):
    index: int
    document: RerankDocument
    relevance_score: float


class RerankAnswer(BaseModel):
    id: str
    model: str
    usage: PoolingUsage
    results: list[RerankResult]
