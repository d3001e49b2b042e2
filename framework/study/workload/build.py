"""From a WorkloadConfig to the list of requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

from ...sampling_params import SamplingParams
from .arrivals import gamma_arrivals
from .config import WorkloadConfig
from .prompts import ARRIVALS, LENGTHS, PREFIX, PROMPTS, SEEDS, THINK, Encode, PythonSource, block_tokens, random_tokens, stream
from .traces import TraceEntry, read_trace


@dataclass(frozen=True)
class WorkloadRequest:
    """One request.

    arrival_s     seconds after the start of the run; in a closed loop, of a user's first request only
    think_time_s  closed loop: it arrives this long after its user's previous request finished; None in an open loop
    """

    arrival_s: float
    prompt_token_ids: list[int]
    sampling: SamplingParams
    user: int
    think_time_s: float | None = None


def build_workload(config: WorkloadConfig, vocab_size: int, encode: Encode | None) -> list[WorkloadRequest]:
    """The requests of ``config``, in order of arrival (closed loop: in each user's order); the same for the same arguments.

    ``encode`` is the model's tokenizer, None where there is none: then only sources that bring no text work."""
    config.validate()
    if config.source == "auto":
        config = replace(config, source="random" if encode is None else "python")
    entries = read_trace(config.path, config.format, config.num_requests) if config.path and config.source == "trace" else None
    num_requests = len(entries) if entries is not None else config.num_requests
    assert num_requests is not None
    lengths = stream(config.seed, LENGTHS)
    sizes = [
        (_length(config.prompt_tokens, config.prompt_spread, lengths), _length(config.output_tokens, config.output_spread, lengths))
        for _ in range(num_requests)
    ]
    if entries is None:
        prompts = _synthetic_prompts(config, [prompt for prompt, _ in sizes], vocab_size, encode)
        outputs = [output for _, output in sizes]
    else:
        prompts = [_trace_prompt(config, e, i, sizes[i][0], vocab_size, encode) for i, e in enumerate(entries)]
        outputs = [_trace_output(config, e, sizes[i][1], encode) for i, e in enumerate(entries)]
    sampling = asdict(config.sampling)
    times = _arrivals(config, entries, num_requests)
    thinks = stream(config.seed, THINK).exponential(config.think_time_s, num_requests).tolist()
    closed = config.arrivals == "closed"
    return [
        WorkloadRequest(
            arrival_s=times[i],
            prompt_token_ids=prompts[i][: config.max_prompt_tokens],
            sampling=SamplingParams(
                max_tokens=min(outputs[i], config.max_output_tokens or outputs[i]),
                ignore_eos=config.ignore_eos,
                detokenize=encode is not None,
                seed=int(stream(config.seed, SEEDS, i).integers(2**31)),
                **sampling,
            ),
            user=i % config.num_users if closed else i,
            think_time_s=thinks[i] if closed else None,
        )
        for i in range(num_requests)
    ]


def _length(mean: int, spread: float, rng: np.random.Generator) -> int:
    return max(1, int(rng.integers(round(mean * (1 - spread)), round(mean * (1 + spread)) + 1)))


def _synthetic_prompts(config: WorkloadConfig, sizes: list[int], vocab_size: int, encode: Encode | None) -> list[list[int]]:
    make: Callable[[int, np.random.Generator], list[int]]
    if config.source == "python":
        make = PythonSource(_tokenizer(encode, "workload.source=python")).cut
    else:
        make = lambda size, rng: random_tokens(size, vocab_size, rng)  # noqa: E731
    prefix = make(config.shared_prefix_tokens, stream(config.seed, PREFIX)) if config.shared_prefix_tokens else []
    return [prefix + make(size, stream(config.seed, PROMPTS, i)) for i, size in enumerate(sizes)]


def _trace_prompt(
    config: WorkloadConfig, entry: TraceEntry, index: int, size: int, vocab_size: int, encode: Encode | None
) -> list[int]:
    if entry.prompt is not None:
        return _tokenizer(encode, "a trace of texts")(entry.prompt)
    if entry.num_prompt_tokens is not None:
        size = max(1, round(entry.num_prompt_tokens * config.length_scale))
    if entry.block_ids is not None:
        return block_tokens(entry.block_ids, size, config.length_scale, vocab_size, config.seed)
    return random_tokens(size, vocab_size, stream(config.seed, PROMPTS, index))


def _trace_output(config: WorkloadConfig, entry: TraceEntry, size: int, encode: Encode | None) -> int:
    if entry.num_output_tokens is not None:
        return max(1, round(entry.num_output_tokens * config.length_scale))
    if entry.completion is not None:
        return max(1, len(_tokenizer(encode, "a trace of texts")(entry.completion)))
    return size


def _tokenizer(encode: Encode | None, what: str) -> Encode:
    if encode is None:
        raise ValueError(f"{what} needs a tokenizer, and this model has none: set model.tokenizer, or workload.source=random")
    return encode


def _arrivals(config: WorkloadConfig, entries: list[TraceEntry] | None, num_requests: int) -> list[float]:
    if config.arrivals == "closed":
        return [0.0] * num_requests
    if config.arrivals == "open":
        return gamma_arrivals(num_requests, config.rate, config.burstiness, stream(config.seed, ARRIVALS))
    times = [entry.time_s for entry in entries or []]
    if None in times:
        raise ValueError(f"workload.arrivals=trace: {config.path} has no timestamps; use workload.arrivals=open with a rate")
    return [time * config.time_scale for time in times if time is not None]
