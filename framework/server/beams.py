"""Beam search as an option of a request: the n completions are the n best beams, and come at the end."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import fields

from ..async_engine import AsyncEngine
from ..beam_search import BeamSearchSequence, search_beams
from ..engine.prompts import EngineInput
from ..lora_request import LoRARequest
from ..outputs import CompletionOutput, RequestOutput
from ..sampling_params import BeamSearchParams, SamplingParams
from .errors import APIError
from .protocol.common import GenerationBody

_TAKEN = {
    "n",
    "max_tokens",
    "temperature",
    "seed",
    "ignore_eos",
    "logprobs",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "output_kind",
}
"""Parameters that beams have, or that change nothing of them: their search is no sampling."""


def beam_params(engine: AsyncEngine, body: GenerationBody, params: SamplingParams) -> BeamSearchParams | None:
    """What ``use_beam_search`` asks for, None without it. Raises ValueError or APIError for what beams cannot do."""
    if not body.use_beam_search:
        return None
    if body.stream:
        raise APIError(400, "beams are known at their end: `use_beam_search` takes no `stream`", "stream")
    defaults = SamplingParams(), engine.inputs.default_params()
    for name in (field.name for field in fields(params) if field.name not in _TAKEN):
        if getattr(params, name) not in ([], {}, *(getattr(default, name) for default in defaults)):
            raise APIError(400, f"beam search has no `{name}`: leave it out", name)
    return BeamSearchParams(
        params.n,
        params.max_tokens or engine.info.max_model_len,
        params.ignore_eos,
        length_penalty=1.0 if body.length_penalty is None else body.length_penalty,
        include_stop_str_in_output=params.include_stop_str_in_output,
    )


async def beam_outputs(
    engine: AsyncEngine,
    prompt: EngineInput,
    params: SamplingParams,
    priority: int,
    beams: BeamSearchParams,
    lora_request: LoRARequest | None = None,
) -> AsyncGenerator[RequestOutput, None]:
    """One output, with the best beams as its completions."""
    found = await search_beams(engine, prompt, beams, priority, lora_request)
    completions = [_completion(engine, prompt, params, i, beam) for i, beam in enumerate(found.sequences)]
    yield RequestOutput("", prompt.text, prompt.token_ids, None, completions, finished=True)


def _completion(
    engine: AsyncEngine, prompt: EngineInput, params: SamplingParams, index: int, beam: BeamSearchSequence
) -> CompletionOutput:
    token_ids = beam.tokens[len(prompt.token_ids) :]
    tokenizer, logprobs = engine.inputs.tokenizer, None
    text = "" if tokenizer is None else tokenizer.decode(token_ids, skip_special_tokens=params.skip_special_tokens)
    if (most := params.logprobs) is not None:
        logprobs = [
            {token: entry[token], **{i: p for i, p in entry.items() if p.rank is not None and p.rank <= most}}
            for token, entry in zip(token_ids, beam.logprobs)
        ]
    return CompletionOutput(index, text, token_ids, beam.cum_logprob, logprobs, beam.finish_reason, beam.stop_reason)
