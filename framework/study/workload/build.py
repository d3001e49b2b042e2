"""From a WorkloadConfig to the list of requests."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from ...sampling_params import SamplingParams
from .arrivals import gamma_arrivals
from .config import WorkloadConfig
from .prompts import ARRIVALS, LENGTHS, PREFIX, PRIORITIES, PROMPTS, SEEDS, SOURCES, THINK, Encode, Source, block_tokens, stream
from .traces import MOONCAKE_BLOCK_TOKENS, TraceEntry, read_trace


@dataclass(frozen=True)
class WorkloadRequest:
    """One request.

    arrival_s     seconds after the start of the run; in a closed loop, of a user's first request only
    think_time_s  closed loop: it arrives this long after its user's previous request finished; None in an open loop
    num_known_tokens  of its prompt's, at the start: those in blocks that an earlier request had too, as the trace's own names of
                  blocks say, the last token aside, which is always computed; None for a trace that names none
    """

    arrival_s: float
    prompt_token_ids: list[int]
    sampling: SamplingParams
    user: int
    think_time_s: float | None = None
    priority: int = 0
    num_known_tokens: int | None = None


def build_workload(config: WorkloadConfig, vocab_size: int, encode: Encode | None) -> list[WorkloadRequest]:
    """The requests of ``config``, in order of arrival (closed loop: in each user's order); the same for the same arguments.

    ``encode`` is the model's tokenizer, None where there is none: then only sources that bring no text work."""
    config.validate()
    entries, needs_tokenizer = _entries(config)
    name = config.source if config.source != "auto" else "random" if encode is None else "python"
    if encode is None and (needs_tokenizer or SOURCES[name].needs_tokenizer):
        raise ValueError(
            f"workload.source={name} needs a tokenizer to make tokens of texts, and this model has none: set model.tokenizer, or "
            "workload.source=random"
        )
    source, num_requests = SOURCES[name](vocab_size, encode), len(entries)
    prefix = source.tokens(config.shared_prefix_tokens, stream(config.seed, PREFIX)) if config.shared_prefix_tokens else []
    lengths = stream(config.seed, LENGTHS)
    sizes = [
        (_length(config.prompt_tokens, config.prompt_spread, lengths), _length(config.output_tokens, config.output_spread, lengths))
        for _ in range(num_requests)
    ]
    prompts = [(prefix + _prompt(config, e, i, sizes[i][0], source))[: config.max_prompt_tokens] for i, e in enumerate(entries)]
    outputs = [_output_length(config, e, sizes[i][1], encode) for i, e in enumerate(entries)]
    sampling = asdict(config.sampling)
    times = _arrivals(config, entries)
    thinks = stream(config.seed, THINK).exponential(config.think_time_s, num_requests).tolist()
    priorities = stream(config.seed, PRIORITIES).integers(config.num_priorities, size=num_requests).tolist()
    known = _known_tokens(config, entries, prompts)
    closed = config.arrivals == "closed"
    return [
        WorkloadRequest(
            arrival_s=times[i],
            prompt_token_ids=prompts[i],
            sampling=SamplingParams(
                max_tokens=min(outputs[i], config.max_output_tokens or outputs[i]),
                ignore_eos=config.ignore_eos,
                detokenize=encode is not None,
                seed=int(stream(config.seed, SEEDS, i).integers(2**31)),
                **sampling,
            ),
            user=i % config.num_users if closed else i,
            think_time_s=thinks[i] if closed else None,
            priority=priorities[i],
            num_known_tokens=known[i],
        )
        for i in range(num_requests)
    ]


def _length(mean: int, spread: float, rng: np.random.Generator) -> int:
    return max(1, int(rng.integers(round(mean * (1 - spread)), round(mean * (1 + spread)) + 1)))


def _entries(config: WorkloadConfig) -> tuple[list[TraceEntry], bool]:
    """What is recorded of the requests: a trace's entries, or nothing of so many; and whether it takes a tokenizer to read."""
    if config.source == "auto" or not SOURCES[config.source].needs_path:
        assert config.num_requests is not None, "validated"
        return [TraceEntry()] * config.num_requests, False
    assert config.path is not None, "validated"
    format, entries = read_trace(config.path, config.format, config.num_requests)
    return entries, format.needs_tokenizer


def _prompt(config: WorkloadConfig, entry: TraceEntry, index: int, size: int, source: Source) -> list[int]:
    """The recorded prompt, or one of the recorded length, or of ``size`` tokens."""
    if entry.prompt is not None:
        assert source.encode is not None, "the format needs a tokenizer"
        return source.encode(entry.prompt)
    if entry.num_prompt_tokens is not None:
        size = max(1, round(entry.num_prompt_tokens * config.length_scale))
    if entry.block_ids is not None:
        return block_tokens(entry.block_ids, size, config.length_scale, source.vocab_size, config.seed)
    return source.tokens(size, stream(config.seed, PROMPTS, index))


def _output_length(config: WorkloadConfig, entry: TraceEntry, size: int, encode: Encode | None) -> int:
    if entry.num_output_tokens is not None:
        return max(1, round(entry.num_output_tokens * config.length_scale))
    if entry.completion is not None:
        assert encode is not None, "the format needs a tokenizer"
        return max(1, len(encode(entry.completion)))
    return size


def _known_tokens(config: WorkloadConfig, entries: list[TraceEntry], prompts: list[list[int]]) -> list[int | None]:
    seen: set[int] = set()
    known: list[int | None] = []
    for entry, prompt in zip(entries, prompts):
        blocks = entry.block_ids
        if blocks is None:
            known.append(None)
            continue
        num_seen = next((i for i, block in enumerate(blocks) if block not in seen), len(blocks))
        shared = config.shared_prefix_tokens * bool(seen) + round(MOONCAKE_BLOCK_TOKENS * config.length_scale * num_seen)
        known.append(min(shared, len(prompt) - 1))
        seen.update(blocks)
    return known


def _arrivals(config: WorkloadConfig, entries: list[TraceEntry]) -> list[float]:
    if config.arrivals == "closed":
        return [0.0] * len(entries)
    if config.arrivals == "open":
        return gamma_arrivals(len(entries), config.rate, config.burstiness, stream(config.seed, ARRIVALS))
    times = [entry.time_s * config.time_scale for entry in entries if entry.time_s is not None]
    if len(times) < len(entries):
        raise ValueError(f"workload.arrivals=trace: {config.path} has no timestamps; use workload.arrivals=open with a rate")
    return times
