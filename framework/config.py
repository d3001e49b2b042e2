"""The configuration of an engine: plain dataclasses, which are also the schema of the YAML files under conf/."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from .engine.kv_cache.spec import ELEMENT_BYTES
from .engine.policies import POLICIES
from .executor.kinds import EXECUTORS
from .sampling_params import MAX_LOGPROBS

CACHE_DTYPES = ("auto", *ELEMENT_BYTES)
LOAD_FORMATS = ("auto", "dummy")
BACKENDS = ("auto", "native", "transformers")
GENERATION_CONFIGS = ("auto", "none")
ROUNDED_SCHEMES = ("rtn-int4", "int8", "int8-weight", "fp8", "fp8-block")
CALIBRATED_SCHEMES = ("gptq-int4", "awq-int4", "autoround-int4")
QUANT_SCHEMES = ("none", *ROUNDED_SCHEMES, *CALIBRATED_SCHEMES)


@dataclass
class ModelConfig:
    """Which model, and how it is loaded.

    name            a local folder, a Hugging Face id, ``tiny`` or ``tiny-draft``
    tokenizer       where the tokenizer comes from; None = the model's
    revision        of a Hugging Face id
    dtype           auto (the checkpoint's), float32, float16, bfloat16
    load_format     auto (safetensors), or dummy: seeded random weights from the architecture alone
    architecture    fields of a Hugging Face config.json; with load_format=dummy no checkpoint is needed. Fields given here
                    override those of a checkpoint's config.json
    max_model_len   longest prompt + output; None = what the model allows
    generation_config  auto: default sampling parameters come from the model's generation_config.json; none: from vLLM's defaults
    backend         auto, native, or transformers (the library's own modules with our attention and linear layers)
    skip_tokenizer  load no tokenizer: prompts come as token ids, and outputs have no text
    max_logprobs    most log-probabilities per token that a request may ask for; -1 = no limit
    """

    name: str = "tiny"
    tokenizer: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    load_format: str = "auto"
    architecture: dict[str, Any] = field(default_factory=dict)
    max_model_len: int | None = None
    generation_config: str = "auto"
    backend: str = "auto"
    skip_tokenizer: bool = False
    max_logprobs: int = MAX_LOGPROBS


@dataclass
class QuantConfig:
    """How the weights of linear layers and experts are quantized, where the checkpoint stores floats. A quantized
    checkpoint is served as it is stored, with scheme=none.

    scheme       none; while they are loaded: rtn-int4 (rounded to nearest), int8 (W8A8, activations per token), int8-weight
                 (W8A16), fp8 (channels, activations per token), fp8-block (128 x 128, activations per 128 inputs); by
                 calibration, once, into a checkpoint that is kept in the user's cache folder: gptq-int4, awq-int4, autoround-int4
    group_size   inputs of a row that share a scale, of the 4-bit schemes; -1 = all
    symmetric    4-bit schemes: no zero points; None = as is usual for the scheme (awq-int4 has them, the others have not)
    calibration  a text file; None = the corpus of ``framework.corpus``
    num_samples, sample_tokens   of the calibration
    fuse         norms and gated activations quantize their own output, where a GEMM with quantized activations follows and the
                 kernels chosen can; off: an op of its own does it
    """

    scheme: str = "none"
    group_size: int = 128
    symmetric: bool | None = None
    calibration: str | None = None
    num_samples: int = 128
    sample_tokens: int = 512
    fuse: bool = True

    @property
    def is_symmetric(self) -> bool:
        """``symmetric``, or what is usual for the scheme."""
        return self.scheme != "awq-int4" if self.symmetric is None else self.symmetric


@dataclass
class CacheConfig:
    """The KV cache.

    block_size        tokens per block; 0 = what suits the device: 64 where kernels fetch tiles by TMA (Hopper and
                      later), else 16
    num_blocks        blocks per group; None = from the memory budget
    memory_bytes      memory budget; None = as the device says: memory_fraction of a GPU, 1 GiB on a CPU
    memory_fraction   part of the GPU's memory that weights, activations and cache may take together
    dtype             auto (the model's), float32, float16, bfloat16; quantized, with a scale per token and head: float8_e4m3fn,
                      float8_e5m2, int8
    prefix_caching    reuse the blocks of equal prefixes
    check_invariants  verify the manager's books after every operation (slow)
    """

    block_size: int = 0
    num_blocks: int | None = None
    memory_bytes: int | None = None
    memory_fraction: float = 0.9
    dtype: str = "auto"
    prefix_caching: bool = True
    check_invariants: bool = False


@dataclass
class SchedulerConfig:
    """Who runs in a step.

    policy                  fcfs, priority, sjf (shortest job first) or slo (earliest deadline first)
    max_num_seqs            most requests running at once
    max_num_batched_tokens  token budget of one step
    chunked_prefill         a prompt may be computed in parts; off: only in one step, as a whole
    max_chunk_tokens        most prompt tokens of one request in one step; 0 = no limit
    in_flight_steps         steps submitted and not yet committed; 1 = synchronous, 0 = what suits the executor: 2 on a GPU, so
                            that the next step is scheduled while one runs
    ageing                  of sjf: output tokens that a second of waiting outweighs; 0 = a long job may wait forever
    ttft_slo_s              of slo: seconds from arrival to first token that it aims at
    """

    policy: str = "fcfs"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    chunked_prefill: bool = True
    max_chunk_tokens: int = 0
    in_flight_steps: int = 0
    ageing: float = 10.0
    ttft_slo_s: float | None = None


@dataclass
class ExecutorConfig:
    """What a step runs on.

    kind    local (this process), simulated (a cost model under a virtual clock), null (tokens out of thin air, no time)
    device  of the simulated kind: a name in the device table
    efficiency, step_overhead_s, kernel_overhead_s   of the cost model: fraction of the roofline that kernels reach, fixed
            time per step, fixed time per kernel call
    """

    kind: str = "local"
    device: str = "h200"
    efficiency: float = 0.7
    step_overhead_s: float = 100e-6
    kernel_overhead_s: float = 2e-6


@dataclass
class GraphConfig:
    """Recordings of decode steps, where all their kernels can be recorded: CUDA (HIP) graphs on a GPU, made at start; lists of
    native kernels on a CPU, made when a batch size first comes.

    enabled      off: every kernel is launched by the host
    batch_sizes  rows per recording; a step takes the smallest that holds its rows, larger steps run without; None = what suits the
                 device
    """

    enabled: bool = True
    batch_sizes: list[int] | None = None


@dataclass
class ParallelConfig:
    """Ranks per kind of parallelism: tensor, pipeline, data, expert."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1


@dataclass
class EngineConfig:
    """Everything an engine is built from. Picklable; no field refers to a live object.

    kernels    op -> choice (``auto``, an impl's name, or ``name@key:value``); a name whose kernel would never run is refused. Of a
               fused op (``qk_norm_rotary_kv_write``) also ``none``: the ops that it does the work of run instead.
               ``default`` -> what the other ops take: auto, reference, torch, or triton (an op's best Triton impl, whatever its
               name). An op with such an impl that cannot run here is refused, one without takes auto; fused ops are ``none``
               under reference and torch
    plugins    modules or .py files that hold further impls, loaded in every process
    tuned      where tuned options come from beside the package's tables: auto (what the user tuned), a folder, or off (no tables)
    device     auto (the best here), cpu, cuda, cuda:1 ..., or what an installed package adds (entry points kernelswap.devices)
    interpret  run Triton kernels in Triton's interpreter (slow; for tests and debugging on a CPU)
    seed       of dummy weights, and of requests that bring no seed
    num_threads  CPU threads of torch; 0 = torch's default
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    graphs: GraphConfig = field(default_factory=GraphConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    kernels: dict[str, str] = field(default_factory=dict)
    plugins: list[str] = field(default_factory=list)
    tuned: str = "auto"
    device: str = "auto"
    interpret: bool = False
    seed: int = 0
    num_threads: int = 0

    def validate(self) -> None:
        """Raises ValueError for values that cannot work, naming the key, the value and what is possible."""
        _check_types(self)
        c, s, e = self.cache, self.scheduler, self.executor
        max_len = self.model.max_model_len
        _require(
            max_len is None or max_len >= 1, "model.max_model_len", max_len, "a positive number, or null (what the model allows)"
        )
        _require(self.model.max_logprobs >= -1, "model.max_logprobs", self.model.max_logprobs, "-1 (no limit) or more")
        _require(c.block_size >= 0, "cache.block_size", c.block_size, "0 (automatic) or a positive number")
        _require(
            c.num_blocks is None or c.num_blocks >= 2, "cache.num_blocks", c.num_blocks, "at least 2 (block 0 is the null block)"
        )
        q = self.quant
        _require(q.group_size == -1 or q.group_size > 0, "quant.group_size", q.group_size, "-1 (whole rows) or a positive number")
        _require(q.num_samples > 0, "quant.num_samples", q.num_samples, "a positive number")
        _require(q.sample_tokens > 0, "quant.sample_tokens", q.sample_tokens, "a positive number")
        _require(0 < c.memory_fraction <= 1, "cache.memory_fraction", c.memory_fraction, "in (0, 1]")
        _require(s.max_num_seqs > 0, "scheduler.max_num_seqs", s.max_num_seqs, "a positive number")
        _require(s.max_num_batched_tokens > 0, "scheduler.max_num_batched_tokens", s.max_num_batched_tokens, "a positive number")
        _require(s.max_chunk_tokens >= 0, "scheduler.max_chunk_tokens", s.max_chunk_tokens, "0 (no limit) or more")
        _require(s.in_flight_steps >= 0, "scheduler.in_flight_steps", s.in_flight_steps, "0 (automatic) or more")
        _require(0 <= s.ageing < math.inf, "scheduler.ageing", s.ageing, "0 (none) or more")
        _require(s.ttft_slo_s is None or s.ttft_slo_s > 0, "scheduler.ttft_slo_s", s.ttft_slo_s, "more than 0, or null")
        _require(0 < e.efficiency < math.inf, "executor.efficiency", e.efficiency, "more than 0")
        for key, seconds in (("step_overhead_s", e.step_overhead_s), ("kernel_overhead_s", e.kernel_overhead_s)):
            _require(0 <= seconds < math.inf, f"executor.{key}", seconds, "0 or more")
        _require(self.num_threads >= 0, "num_threads", self.num_threads, "0 (torch's default) or more")
        for key, value, table in (
            ("quant.scheme", self.quant.scheme, QUANT_SCHEMES),
            ("cache.dtype", c.dtype, CACHE_DTYPES),
            ("scheduler.policy", s.policy, POLICIES),
            ("executor.kind", e.kind, EXECUTORS),
            ("model.load_format", self.model.load_format, LOAD_FORMATS),
            ("model.backend", self.model.backend, BACKENDS),
            ("model.generation_config", self.model.generation_config, GENERATION_CONFIGS),
        ):
            _require(value in table, key, value, "one of " + ", ".join(table))
        POLICIES[s.policy](s)  # says what it misses
        _require(
            not self.graphs.enabled
            or self.graphs.batch_sizes is None
            or (self.graphs.batch_sizes and min(self.graphs.batch_sizes) > 0),
            "graphs.batch_sizes",
            self.graphs.batch_sizes,
            "positive numbers, at least one, or null (or graphs.enabled=false)",
        )
        for name, size in vars(self.parallel).items():
            _require(size == 1, f"parallel.{name}", size, "1 (execution across ranks is not available in this version)")


def _check_types(config: Any, prefix: str = "") -> None:
    """Raises ValueError for the first value that is not of its field's type; Hydra checks this itself, Python does not. A whole
    number does where a fraction is asked for."""
    for name, kind in get_type_hints(type(config)).items():
        value, key = getattr(config, name), prefix + name
        _require(_fits(value, kind), key, value, f"of type {kind.__name__ if isinstance(kind, type) else kind}")
        if is_dataclass(value):
            _check_types(value, f"{key}.")


def _fits(value: Any, kind: Any) -> bool:
    inner = get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if inner:
        return any(_fits(value, one) for one in inner)
    if isinstance(value, bool) and kind in (int, float):
        return False
    return kind is Any or isinstance(value, (int, float) if kind is float else kind)


def _require(condition: object, key: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{key}={value!r} cannot work: it must be {expected}")
