"""From the fields of a request to sampling parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..sampling_params import RequestOutputKind, SamplingParams, is_unicode
from ..structured.spec import StructuredOutputsParams
from .errors import APIError, shown
from .protocol.common import GenerationBody
from .serving import Serving

_FIELDS = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "logprob_token_ids",
    "repetition_detection",
    "thinking_token_budget",
    "stream_interval",
)
"""That a request and SamplingParams have by the same name."""
_UNAVAILABLE = ("kv_transfer_params", "vllm_xargs")


def sampling_params(
    serving: Serving, body: GenerationBody, *, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None
) -> SamplingParams:
    """What the request asks for, over what the model recommends; outputs come as the answer is told, in deltas or at once. What is
    given beside the body takes the place of its fields. Raises ValueError or APIError for what cannot be."""
    refuse(body, _UNAVAILABLE)
    _check_limits(serving, body)
    given: dict[str, Any] = {name: value for name in _FIELDS if (value := getattr(body, name)) is not None}
    if body.use_beam_search:
        given["temperature"] = 1.0  # beams do not depend on it, and zero allows no n
    kind = RequestOutputKind.DELTA if body.stream else RequestOutputKind.FINAL_ONLY
    defaults, constraint = serving.engine.inputs.default_params(), structured_outputs(body)
    if constraint is not None:
        check_takes_constraints(serving, "structured_outputs" if body.structured_outputs is not None else "response_format")
    return replace(
        defaults,
        **given,
        max_tokens=max_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        structured_outputs=None if constraint is None else StructuredOutputsParams.of(constraint),
        output_kind=kind,
    )


def structured_outputs(body: GenerationBody) -> dict[str, Any] | None:
    """The constraint that ``structured_outputs`` or ``response_format`` asks for, as StructuredOutputsParams has it; None if there
    is none. Raises APIError if both do, or if the format is none."""
    asked = body.response_format
    kind = "text" if asked is None else asked.get("type")
    if kind == "text":
        return body.structured_outputs
    if body.structured_outputs is not None:
        raise APIError(400, "`response_format` and `structured_outputs` are two constraints: give one", "response_format")
    assert asked is not None
    if kind == "json_object":
        return {"json_object": True}
    if kind == "structural_tag":
        return {"structural_tag": asked}
    if kind == "json_schema":
        described = asked.get("json_schema")
        schema = described.get("schema") if isinstance(described, dict) else None
        if schema is None:
            raise APIError(400, "`response_format` of type json_schema needs a schema under json_schema.schema", "response_format")
        return {"json": schema}
    raise APIError(
        400,
        f"`response_format.type` must be text, json_object, json_schema or structural_tag; found {shown(kind)!r}",
        "response_format",
    )


def check_takes_constraints(serving: Serving, field: str) -> None:
    """Raises APIError where no model of this server can hold outputs to a form. field: by which the client asks for one."""
    if serving.engine.inputs.denoises:
        raise APIError(
            400,
            f"`{field}` cannot work: the model generates by block diffusion, where the tokens before one may come after it; leave "
            "it out",
            field,
        )


def refuse(body: GenerationBody, fields: tuple[str, ...]) -> None:
    """Raises APIError for the first of these fields that is given: it exists elsewhere, and cannot be passed over."""
    for name in fields:
        if getattr(body, name) is not None:
            raise APIError(400, f"`{name}` is not supported by this server: leave it out", name)


def _check_limits(serving: Serving, body: GenerationBody) -> None:
    config, vocab_size = serving.config, serving.engine.info.vocab_size
    words = body.bad_words or []
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    for param, found, most, unit in (
        ("n", body.n or 1, config.max_n, "completions per prompt"),
        ("stop", len(stop), config.max_num_stop, "stop strings"),
        ("stop", sum(map(len, stop)), config.max_stop_length, "characters of stop strings"),
        ("bad_words", len(words), config.max_num_bad_words, "bad words"),
        ("bad_words", sum(map(len, words)), config.max_bad_words_length, "characters of bad words"),
        ("stop_token_ids", len(body.stop_token_ids or ()), vocab_size, "tokens"),
        ("allowed_token_ids", len(body.allowed_token_ids or ()), vocab_size, "tokens"),
        ("logit_bias", len(body.logit_bias or ()), vocab_size, "tokens"),
    ):
        if found > most:
            raise APIError(400, f"`{param}`: {found} {unit} are more than the {most} that this server takes", param)
    if not all(map(is_unicode, stop)):
        raise APIError(400, "`stop` must be text that UTF-8 can hold (no lone surrogates)", "stop")
    if body.stream_options is not None and not body.stream:
        raise APIError(400, "Stream options can only be defined when `stream=True`.", "stream_options")
    if body.stream and body.prompt_logprobs is not None:
        raise APIError(400, "`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs")
