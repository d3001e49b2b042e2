"""The configuration of a workload: a plain dataclass, which is also the schema of conf/workload."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from .prompts import SOURCES
from .stand_ins import STAND_INS
from .traces import FORMATS

ARRIVALS = ("open", "closed", "trace")
POPULARITIES = ("identical", "distinct", "uniform", "skewed")


@dataclass
class SamplingConfig:
    """How every request samples; the fields mean what they mean in SamplingParams."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


@dataclass
class WorkloadConfig:
    """What is asked of the engine. Two axes: where the requests come from, and when they arrive.

    source          a name in prompts.SOURCES (random, python, heldout, trace), or auto: python where the model has a tokenizer,
                    else random
    path, format    of the trace: the file, and a name in traces.FORMATS, or auto: by the file. A .gz file is read as it is.
                    Without a path a form in stand_ins.STAND_INS is made up, with the statistics of the public trace of that form
    num_requests    how many; None = all of the trace
    repeat          a trace so many times, one after another: other requests with the same lengths, gaps and shared blocks
    seed            of everything random here
    prompt_tokens, prompt_spread    lengths are uniform in mean * [1 - spread, 1 + spread]; not for traces that record lengths
    output_tokens, output_spread    likewise; a completion is at most that long, exactly that long with ignore_eos
    shared_prefix_tokens    tokens at the start of every prompt that are the same in all, on top of prompt_tokens
    decoder_tokens, decoder_spread    likewise, of an encoder-decoder: its encoder reads the prompt (if it listens, noise as long as
                    it reads, whatever the prompt), and its decoder begins with so many tokens behind those that all begin with
    length_scale            factor on the lengths of a trace
    max_prompt_tokens, max_output_tokens    lengths are cut to these; None = as they come
    num_priorities          each request has one of 0, 1, ... by chance; 0 goes first under scheduler.policy=priority

    num_loras       each request has one of so many adapters; 0 = none has one
    lora_popularity which, as in Punica (arXiv 2310.18547): identical: all the first; distinct: each the next one, around; uniform:
                    by chance, all as often; skewed: by chance, each 1.5 times as often as the next
    lora_folder     adapters of peft, in folders 1, 2, ... below it; None = they are made up at random, with lora_rank, on all
                    linear layers that there can be adapters of

    num_images      images in each prompt, on top of its tokens: each before all that is its own, behind it, or somewhere within;
                    over HTTP of a chat
    image_width, image_height, image_spread    sides are uniform in mean * [1 - spread, 1 + spread], in pixels
    num_distinct_images    each image is one of so many, by chance, so that some come again; None = no two are the same

    arrivals        open (at ``rate``), closed (``num_users`` users who wait for their completion), trace (the file's timestamps)
    rate            requests per second; inf = all at once
    burstiness      shape of the Gamma distribution of the gaps: 1 = Poisson, less = burstier, inf = even
    num_users       of the closed loop
    think_time_s    mean of the exponential pause between a completion and the user's next request
    time_scale      factor on the gaps of a trace: 0.5 replays it at twice the rate
    """

    source: str = "random"
    path: str | None = None
    format: str = "auto"
    num_requests: int | None = 32
    repeat: int = 1
    seed: int = 0
    prompt_tokens: int = 128
    prompt_spread: float = 0.5
    output_tokens: int = 64
    output_spread: float = 0.5
    shared_prefix_tokens: int = 0
    decoder_tokens: int = 0
    decoder_spread: float = 0.5
    length_scale: float = 1.0
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None
    num_priorities: int = 1
    num_loras: int = 0
    lora_popularity: str = "uniform"
    lora_rank: int = 16
    lora_folder: str | None = None
    num_images: int = 0
    image_width: int = 640
    image_height: int = 480
    image_spread: float = 0.0
    num_distinct_images: int | None = None
    arrivals: str = "open"
    rate: float = math.inf
    burstiness: float = 1.0
    num_users: int = 8
    think_time_s: float = 0.0
    time_scale: float = 1.0
    ignore_eos: bool = True
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    @property
    def reads_trace(self) -> bool:
        """Whether the requests are those of a trace."""
        return self.source in SOURCES and SOURCES[self.source].needs_path

    def trace_name(self) -> str | None:
        """What tells one trace from another on any machine: the file's name and 8 digits of its content's hash, or stand-in."""
        if not self.reads_trace:
            return None
        if self.path is None:
            return "stand-in"
        path = Path(self.path)
        return f"{path.name} {blake2b(path.read_bytes(), digest_size=4).hexdigest()}" if path.is_file() else path.name

    def validate(self) -> None:
        """Raises ValueError for values that cannot work, naming the key, the value and what is possible."""
        one_of = {"source": ("auto", *SOURCES), "arrivals": ARRIVALS, "format": ("auto", *FORMATS), "lora_popularity": POPULARITIES}
        for key, names in one_of.items():
            _require(getattr(self, key) in names, key, getattr(self, key), "one of " + ", ".join(names))
        sizes = ("prompt_tokens", "output_tokens", "image_width", "image_height")
        for key in ("burstiness", "lora_rank", "num_users", "repeat", *sizes):
            _require(getattr(self, key) > 0, key, getattr(self, key), "more than 0")
        for key, most in (("time_scale", 1e6), ("length_scale", 1e3)):
            _require(0 < getattr(self, key) <= most, key, getattr(self, key), f"more than 0, and {most:g} at most")
        _require(self.rate >= 1e-6, "rate", self.rate, "1e-6 or more")
        _require(0 <= self.think_time_s < math.inf, "think_time_s", self.think_time_s, "0 or more, and finite")
        for key in ("seed", "shared_prefix_tokens", "decoder_tokens", "num_loras", "num_images"):
            _require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        _require(self.num_priorities <= 1 << 31, "num_priorities", self.num_priorities, "2^31 at most")
        for key in ("prompt_spread", "output_spread", "decoder_spread", "image_spread"):
            _require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "between 0 and 1")
        distinct = self.num_distinct_images
        _require(distinct is None or distinct <= 1 << 31, "num_distinct_images", distinct, "2^31 at most, or null: all differ")
        for key in ("num_requests", "max_prompt_tokens", "max_output_tokens", "num_priorities", "num_distinct_images"):
            value = getattr(self, key)
            _require(value is None or value > 0, key, value, "more than 0, or null")
        from_file = ", ".join(name for name, source in SOURCES.items() if source.needs_path)
        if self.reads_trace:
            expected = f"a file (workload.path=FILE), or workload.format one of {', '.join(STAND_INS)}, of which a stand-in is made"
            _require(self.path is not None or self.format in STAND_INS, "path", self.path, expected)
        else:
            _require(self.path is None, "path", self.path, f"left out, unless source={from_file}: nothing else reads a file")
            _require(self.repeat == 1, "repeat", self.repeat, f"1, unless source={from_file}: num_requests says how many")
            _require(self.num_requests is not None, "num_requests", self.num_requests, f"a number, unless source={from_file}")
            _require(self.arrivals != "trace", "arrivals", self.arrivals, f"open or closed, unless source={from_file}")
        if self.arrivals == "trace" and self.format in FORMATS:
            timed = ", ".join(name for name, format in FORMATS.items() if format.has_times)
            _require(FORMATS[self.format].has_times, "format", self.format, f"one that has timestamps ({timed}) for arrivals=trace")


def _require(condition: bool, key: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"workload.{key}={value!r} cannot work: it must be {expected}")
