"""From a WorkloadConfig to the list of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ...lora_request import LoRARequest
from ...multimodal.items import ImageItem
from ...sampling_params import SamplingParams
from .arrivals import gamma_arrivals
from .config import WorkloadConfig
from .pictures import Pictures, SentImage, SentPictures
from .prompts import (
    ADAPTERS,
    ARRIVALS,
    DECODERS,
    LENGTHS,
    PREFIX,
    PRIORITIES,
    PROMPTS,
    SEEDS,
    SOURCES,
    STAND_IN,
    THINK,
    Encode,
    block_tokens,
    stream,
)
from .stand_ins import STAND_INS
from .traces import MOONCAKE_BLOCK_TOKENS, TraceEntry, read_trace


@dataclass(frozen=True)
class WorkloadRequest:
    """One request.

    arrival_s     seconds after the start of the run; in a closed loop, of a user's first request only
    prompt_token_ids  with the placeholders of its images
    think_time_s  closed loop: it arrives this long after its user's previous request finished; None in an open loop
    decoder_token_ids  of an encoder-decoder, what its decoder begins with behind what all do
    num_known_tokens  of its prompt's, at the start: those in blocks that an earlier request had too, as the trace's own names of
                  blocks say, the last token aside, which is always computed; None for a trace that names none
    sent_images   in place of ``images``, where a server prepares them
    """

    arrival_s: float
    prompt_token_ids: list[int]
    sampling: SamplingParams
    user: int
    think_time_s: float | None = None
    priority: int = 0
    num_known_tokens: int | None = None
    lora_request: LoRARequest | None = None
    decoder_token_ids: list[int] = field(default_factory=list)
    images: tuple[ImageItem, ...] = ()
    sent_images: tuple[SentImage, ...] = ()


class Arrival(NamedTuple):
    """When a request comes, and whose it is; as in WorkloadRequest."""

    arrival_s: float
    user: int
    think_time_s: float | None


class Workload(Sequence[WorkloadRequest]):
    """The requests of ``config``, in order of arrival (closed loop: in each user's order); the same for the same arguments. Each is
    made when it is asked for, and not kept: a day of a trace has more prompt tokens than memory holds.

    encode    the model's tokenizer, None where there is none: then only sources that bring no text work
    pictures  puts images into prompts; None where nothing takes them
    arrivals  of all requests
    """

    def __init__(
        self, config: WorkloadConfig, vocab_size: int, encode: Encode | None, pictures: Pictures | SentPictures | None = None
    ) -> None:
        config.validate()
        if config.num_images and pictures is None:
            raise ValueError(
                f"workload.num_images={config.num_images} cannot work: what serves this workload is shown no images; "
                "experiments/serve.py with system=kernelswap shows some, and experiments/load.py with http.endpoint of a chat"
            )
        self._pictures = pictures
        self._config, self._entries, needs_tokenizer = config, *_entries(config)
        name = config.source if config.source != "auto" else "random" if encode is None else "python"
        if encode is None and (needs_tokenizer or SOURCES[name].needs_tokenizer):
            raise ValueError(
                f"workload.source={name} needs a tokenizer to make tokens of texts, and this model has none: set model.tokenizer, "
                "or workload.source=random"
            )
        self._source, self._encode = SOURCES[name](vocab_size, encode), encode
        prefix_tokens = config.shared_prefix_tokens
        self._prefix = self._source.tokens(prefix_tokens, stream(config.seed, PREFIX)) if prefix_tokens else []
        self._sampling = asdict(config.sampling)
        times = self._times()
        recorded = all(None not in (entry.num_prompt_tokens, entry.num_output_tokens) for entry in self._entries)
        self._sizes = [] if recorded else _sizes(config, len(times))
        thinks = stream(config.seed, THINK).exponential(config.think_time_s, len(times)).tolist()
        self._priorities = stream(config.seed, PRIORITIES).integers(config.num_priorities, size=len(times)).tolist()
        self._adapters = draw_adapters(config, len(times))
        self._num_known_blocks = _num_known_blocks(self._entries)
        closed = config.arrivals == "closed"
        self.arrivals = [
            Arrival(time_s, i % config.num_users if closed else i, thinks[i] if closed else None) for i, time_s in enumerate(times)
        ]

    def __len__(self) -> int:
        return len(self.arrivals)

    def __getitem__(self, index):  # type: ignore[no-untyped-def, override]
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        config, (arrival_s, user, think_time_s) = self._config, self.arrivals[index]
        num_output = self._num_output_tokens(index)
        images: tuple[ImageItem, ...] = ()
        sent: tuple[SentImage, ...] = ()
        prompt = (self._prefix + self._prompt(index))[: config.max_prompt_tokens]
        num_known = self._num_known_tokens(index, len(prompt))
        if isinstance(self._pictures, SentPictures):
            sent = self._pictures.of(index, len(prompt), len(self._prefix))
        elif self._pictures is not None:
            prompt, images = self._pictures.put(index, prompt, len(self._prefix))
        if self._pictures is not None:
            num_known = None  # a trace knows nothing of images
        return WorkloadRequest(
            arrival_s,
            prompt,
            SamplingParams(
                max_tokens=min(num_output, config.max_output_tokens or num_output),
                ignore_eos=config.ignore_eos,
                detokenize=self._encode is not None,
                seed=int(stream(config.seed, SEEDS, index).integers(2**31)),
                **self._sampling,
            ),
            user,
            think_time_s,
            self._priorities[index],
            num_known,
            self._adapters[index],
            self._decoder_tokens(index),
            images,
            sent,
        )

    def _decoder_tokens(self, index: int) -> list[int]:
        if not (mean := self._config.decoder_tokens):
            return []
        rng = stream(self._config.seed, DECODERS, index)
        return self._source.tokens(_length(mean, self._config.decoder_spread, rng), rng)

    def _prompt(self, index: int) -> list[int]:
        """The recorded prompt, or one of the recorded length, or of one that is drawn."""
        config, source = self._config, self._source
        round_, i = divmod(index, len(self._entries))
        entry = self._entries[i]
        if entry.prompt is not None:
            assert source.encode is not None, "the format needs a tokenizer"
            return source.encode(entry.prompt)
        if entry.num_prompt_tokens is None:
            return source.tokens(self._sizes[index][0], stream(config.seed, PROMPTS, index))
        size = max(1, round(entry.num_prompt_tokens * config.length_scale))
        if entry.block_ids is not None:
            # Another round has other users: with the blocks of the first, the cache would find what the trace never repeated.
            names = [block + round_ * self._num_block_ids for block in entry.block_ids]
            return block_tokens(names, size, config.length_scale, source.vocab_size, config.seed)
        return source.tokens(size, stream(config.seed, PROMPTS, index))

    @cached_property
    def _num_block_ids(self) -> int:
        return 1 + max(max(entry.block_ids, default=0) for entry in self._entries if entry.block_ids is not None)

    def _num_output_tokens(self, index: int) -> int:
        entry = self._entries[index % len(self._entries)]
        if entry.num_output_tokens is not None:
            return max(1, round(entry.num_output_tokens * self._config.length_scale))
        if entry.completion is not None:
            assert self._encode is not None, "the format needs a tokenizer"
            return max(1, len(self._encode(entry.completion)))
        return self._sizes[index][1]

    def _num_known_tokens(self, index: int, num_prompt_tokens: int) -> int | None:
        num_blocks = self._num_known_blocks[index % len(self._entries)]
        if num_blocks is None:
            return None
        prefix = len(self._prefix) if index else 0
        return min(prefix + round(MOONCAKE_BLOCK_TOKENS * self._config.length_scale * num_blocks), num_prompt_tokens - 1)

    def _times(self) -> list[float]:
        """Seconds. A trace begins again one mean gap after its last request."""
        config, entries = self._config, self._entries
        num_requests = len(entries) * config.repeat
        if config.arrivals == "closed":
            return [0.0] * num_requests
        if config.arrivals == "open":
            return gamma_arrivals(num_requests, config.rate, config.burstiness, stream(config.seed, ARRIVALS))
        times = [entry.time_s * config.time_scale for entry in entries if entry.time_s is not None]
        if len(times) < len(entries):
            raise ValueError(f"workload.arrivals=trace: {config.path} has no timestamps; use workload.arrivals=open with a rate")
        span_s = max(times) - min(times)
        period_s = span_s + span_s / max(len(times) - 1, 1)
        return [time_s + round_ * period_s for round_ in range(config.repeat) for time_s in times]


def build_workload(
    config: WorkloadConfig, vocab_size: int, encode: Encode | None, pictures: SentPictures | None = None
) -> list[WorkloadRequest]:
    """All requests of a ``Workload`` at once: while time is measured, none is to be made."""
    return list(Workload(config, vocab_size, encode, pictures))


def warmup_workload(num_requests: int, seed: int, vocab_size: int, encode: Encode | None) -> list[WorkloadRequest]:
    """Requests before the measured ones of a run with ``seed``. Random tokens: prompts of the workload itself would be found in the
    prefix cache afterwards."""
    if not num_requests:
        return []
    return build_workload(
        WorkloadConfig(num_requests=num_requests, prompt_tokens=64, output_tokens=8, seed=seed + 1), vocab_size, encode
    )


def _sizes(config: WorkloadConfig, num_requests: int) -> list[tuple[int, int]]:
    """Tokens of prompts and outputs."""
    rng = stream(config.seed, LENGTHS)
    return [
        (_length(config.prompt_tokens, config.prompt_spread, rng), _length(config.output_tokens, config.output_spread, rng))
        for _ in range(num_requests)
    ]


def _length(mean: int, spread: float, rng: np.random.Generator) -> int:
    return max(1, int(rng.integers(round(mean * (1 - spread)), round(mean * (1 + spread)) + 1)))


def draw_adapters(config: WorkloadConfig, num_requests: int) -> list[LoRARequest | None]:
    """Of each request. Raises ValueError where nobody made them."""
    count = config.num_loras
    if not count:
        return [None] * num_requests
    if config.lora_folder is None:
        raise ValueError("workload.num_loras needs workload.lora_folder, with the adapters, where none are made up")
    known = [LoRARequest(f"adapter-{i}", i, f"{config.lora_folder}/{i}") for i in range(1, count + 1)]
    if config.lora_popularity in ("identical", "distinct"):
        step = config.lora_popularity == "distinct"
        return [known[step * i % count] for i in range(num_requests)]
    weights = (1.0 if config.lora_popularity == "uniform" else 1.5) ** -np.arange(count, dtype=float)
    drawn = stream(config.seed, ADAPTERS).choice(count, num_requests, p=weights / weights.sum())
    return [known[i] for i in drawn]


def _num_known_blocks(entries: Sequence[TraceEntry]) -> list[int | None]:
    """How many of each prompt's blocks, from its start, earlier prompts had."""
    seen: set[int] = set()
    known: list[int | None] = []
    for entry in entries:
        ids = entry.block_ids
        known.append(None if ids is None else next((i for i, block in enumerate(ids) if block not in seen), len(ids)))
        seen.update(ids or ())
    return known


def _entries(config: WorkloadConfig) -> tuple[list[TraceEntry], bool]:
    """What is recorded of the requests: a trace's entries, or nothing of so many; and whether it takes a tokenizer to read."""
    if not config.reads_trace:
        assert config.num_requests is not None, "validated"
        return [TraceEntry()] * config.num_requests, False
    if config.path is None:
        return STAND_INS[config.format](config.num_requests, stream(config.seed, STAND_IN)), False
    format, entries = read_trace(config.path, config.format, config.num_requests)
    return entries, format.needs_tokenizer
