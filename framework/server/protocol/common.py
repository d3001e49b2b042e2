"""What completions and chat completions have in common."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt

T = TypeVar("T")
TokenId = Annotated[StrictInt, Field(ge=0, lt=2**32)]
List = Annotated[list[T], Field(fail_fast=True)]
"""Of a body. Told is its first fault: to collect those of millions of items would take minutes."""
MAX_TOOLS = 1024
Tools = Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=MAX_TOOLS)]
"""They are made into schemas, parsers and prompt by the thread that serves all."""
MAX_BIASES = 2**18


def _few(given: Any) -> Any:
    """Before the values are looked at."""
    if isinstance(given, dict) and len(given) > MAX_BIASES:
        raise ValueError(f"there may be at most {MAX_BIASES} entries")
    return _each(given, int | float, "a number")


def _texts(given: Any) -> Any:
    return _each(given, str, "text")


def _each(given: Any, kind: type | UnionType, expected: str) -> Any:
    """Told is the first fault, as of lists."""
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(value, kind):
                raise ValueError(f"the value of {str(key)[:80]!r} must be {expected}")
    return given


Texts = Annotated[dict[str, str], BeforeValidator(_texts)]
LogitBias = Annotated[dict[str, float], BeforeValidator(_few)]


class Body(BaseModel):
    """Unknown fields are passed over, as OpenAI's clients add new ones all the time."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class StreamOptions(Body):
    """``include_usage``: a last chunk tells the usage; ``continuous_usage_stats``: all chunks do."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class ErrorObject(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: int


class ErrorResponse(BaseModel):
    """What every request gets that is not answered."""

    error: ErrorObject


class Unauthorized(BaseModel):
    error: Literal["Unauthorized"]


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The request is at fault."},
    401: {"model": Unauthorized, "description": "The key is missing or wrong."},
    404: {"model": ErrorResponse, "description": "The model does not exist."},
    408: {"model": ErrorResponse, "description": "The body took too long to arrive."},
    413: {"model": ErrorResponse, "description": "The body is too long."},
    422: {"model": ErrorResponse, "description": "Not used: a body that does not fit is answered with 400."},
    501: {"model": ErrorResponse, "description": "What is asked for is not available here."},
    503: {"model": ErrorResponse, "description": "The server is overloaded, or its engine is dead."},
}
"""Of requests with a body."""

STREAM: dict[str, Any] = {"text/event-stream": {}}
"""Content of a streamed answer."""


class GenerationBody(Body):
    """Fields of all requests that generate. None stands for the default: the model's own (generation_config.json), else that of
    SamplingParams, which also checks the ranges."""

    model: str | None = None
    n: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | List[str] | None = None
    stop_token_ids: List[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    logit_bias: LogitBias | None = None
    allowed_token_ids: List[int] | None = None
    bad_words: List[str] | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    priority: int | None = None
    request_id: str | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    cache_salt: Annotated[str, Field(min_length=1)] | None = None
    user: str | None = None

    # What vLLM takes and this server does not.
    logprob_token_ids: List[int] | None = None
    kv_transfer_params: dict[str, Any] | None = None
    vllm_xargs: dict[str, Any] | None = None
    repetition_detection: dict[str, Any] | None = None
    thinking_token_budget: int | None = None
    stream_interval: int | None = None


class PromptTokensDetails(BaseModel):
    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class Answer(BaseModel):
    """Fields of all answers to requests that generate."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage
