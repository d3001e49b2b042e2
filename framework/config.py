"""The configuration of an engine: plain dataclasses, which are also the schema of the YAML files under conf/."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from .config_checks import check_types, require
from .distributed.config import ParallelConfig
from .engine.diffusion import DiffusionConfig
from .engine.kv_cache.spec import ELEMENT_BYTES
from .engine.policies import POLICIES
from .engine.router import ROUTERS
from .executor.kinds import EXECUTORS
from .lora_request import LoraConfig
from .sampling_params import MAX_LOGPROBS
from .speculation.config import SpeculativeConfig
from .structured.config import StructuredOutputsConfig

CACHE_DTYPES = ("auto", *ELEMENT_BYTES)
LOAD_FORMATS = ("auto", "dummy")
RUNNERS = ("auto", "generate", "pooling")
CONVERSIONS = ("auto", "none", "embed", "classify")
BACKENDS = ("auto", "native", "transformers")
LATENT_PREFILLS = ("absorbed", "expanded")
GENERATION_CONFIGS = ("auto", "none")
MAX_NOISE = 2.0
MAX_BLOCKS = 1 << 24
"""Whose books a host holds in about a GiB."""
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
    latent_prefill  how latent attention (MLA) computes prompts: absorbed, over the cached latents, so that a token's bits do not
                    depend on how its prompt is cut; or expanded, with fewer operations
    skip_tokenizer  load no tokenizer: prompts come as token ids, and outputs have no text
    max_logprobs    most log-probabilities per token that a request may ask for; -1 = no limit
    limit_mm_per_prompt  image: most images in a prompt, 0 = none, and the tower is not loaded; left out = no limit
    runner          auto: what the checkpoint was made for, generate, or pooling (embeddings, classes, scores)
    convert         of a model that pools: auto, none (only what it is), embed, classify
    pooler          of a model that pools: pooling_type (CLS, LAST, MEAN, ALL, STEP), use_activation, step_tag_id,
                    returned_token_ids, over what its files say
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
    latent_prefill: str = "absorbed"
    skip_tokenizer: bool = False
    max_logprobs: int = MAX_LOGPROBS
    limit_mm_per_prompt: dict[str, int] = field(default_factory=dict)
    runner: str = "auto"
    convert: str = "auto"
    pooler: dict[str, Any] = field(default_factory=dict)


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
    num_blocks        blocks per group; None = as many as fit the memory budget and are of use, 2^24 at most
    memory_bytes      memory budget; None = as the device says: memory_fraction of a GPU, 1 GiB on a CPU
    memory_fraction   part of the GPU's memory that weights, activations and cache may take together
    dtype             auto (the model's), float32, float16, bfloat16; quantized, with a scale per token and head: float8_e4m3fn,
                      float8_e5m2, int8
    prefix_caching    reuse the blocks of equal prefixes; None = yes, where the model allows it: one whose layers keep states does
                      with state_snapshots, one of block diffusion where blocks hold whole canvases
    state_snapshots   of such a model: prefixes whose states are kept beside those of the requests that run. Prompts are cut where
                      that may be of use, so that their last tokens take a step of their own; 0 = none. With 1, prompts that
                      go on from a whole prompt find its states, those that share a beginning do not: the least
                      recently used go first, and those after the beginning come before those after the prompt
    check_invariants  verify the manager's books after every operation (slow)
    """

    block_size: int = 0
    num_blocks: int | None = None
    memory_bytes: int | None = None
    memory_fraction: float = 0.9
    dtype: str = "auto"
    prefix_caching: bool | None = None
    state_snapshots: int = 0
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
    encoder_budget          embeddings of images that a step makes, at most, unless they are those of one image, or of one request
                            where layers attend to them; likewise what the encoder of an encoder-decoder gives
    encoder_cache           embeddings of images that are kept, for other requests with the same ones
    """

    policy: str = "fcfs"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    chunked_prefill: bool = True
    max_chunk_tokens: int = 0
    in_flight_steps: int = 0
    ageing: float = 10.0
    ttft_slo_s: float | None = None
    encoder_budget: int = 4096
    encoder_cache: int = 16384

    @property
    def max_chunk(self) -> int:
        """Tokens of one request that a step takes, at most."""
        return min(self.max_chunk_tokens or self.max_num_batched_tokens, self.max_num_batched_tokens)


@dataclass
class ExecutorConfig:
    """What a step runs on.

    kind             local (this process), distributed (workers, see ParallelConfig), simulated (a cost model under a virtual
                     clock), null (tokens out of thin air, no time)

    Of the simulated kind:
    device           a name in the device table
    calibration      what says how long a kernel takes: auto (measured operators of ``device``, else those of a measured device,
                     transferred), a calibration's name or file, roofline (the device table), free (a step takes no time at all)
    efficiency, kernel_overhead_s   of calibration=roofline: fraction of the roofline that kernels reach, least time of one
    step_overhead_s  time of the host per step
    launch_s         time of the host per launch, of a kernel or of a recording of all kernels (see ``GraphConfig``)
    noise            standard deviation of the logarithm of a step's time, seeded by ``seed``; ``MAX_NOISE`` at most

    Of both kinds without a model, where it denoises:
    passes_per_canvas  mean number of passes that settle a canvas which begins behind whole ones; how sure a model is decides on it.
                     None = as many as ``diffusion`` (or the model's generation_config.json) lets there be: for every token one

    Of both kinds with kernels:
    op_scale         op -> factor on its time. Of the local kind on a CPU: 1 or more, by a busy wait after each call, as long as
                     (factor - 1) times what the call took; ``host`` -> on all that is no call, likewise
    op_delay_s       of the local kind, also on a GPU: op -> seconds to wait after each of its calls
    """

    kind: str = "local"
    device: str = "h200"
    calibration: str = "auto"
    efficiency: float = 0.7
    kernel_overhead_s: float = 2e-6
    step_overhead_s: float = 100e-6
    launch_s: float = 5e-6
    noise: float = 0.0
    passes_per_canvas: float | None = None
    op_scale: dict[str, float] = field(default_factory=dict)
    op_delay_s: dict[str, float] = field(default_factory=dict)


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
class EngineConfig:
    """Everything an engine is built from. Picklable; no field refers to a live object.

    kernels    op -> choice (``auto``, an impl's name, ``name@key:value``, or several with ``|`` between: the first that can serve);
               a name whose kernel would never run is refused. Of a fused op (``qk_norm_rotary_kv_write``) also ``none``: the ops
               that it does the work of run instead.
               ``default`` -> what the other ops take: auto, reference, torch, or triton (an op's best Triton impl, whatever its
               name). An op with such an impl that cannot run here is refused, one without takes auto; fused ops are ``none``
               under reference and torch
    router     which of ``parallel.dp`` engines serves a request: a name in router.ROUTERS; one engine takes all
    plugins    modules or .py files that hold further impls, loaded in every process
    tuned      where tuned options come from beside the package's tables: auto (what the user tuned), a folder, or off (no tables)
    device     auto (the best here), cpu, cuda, cuda:1 ..., or what an installed package adds (entry points kernelswap.devices)
    interpret  run Triton kernels in Triton's interpreter (slow; for tests and debugging on a CPU)
    seed       of dummy weights, and of requests that bring no seed
    num_threads  CPU threads of torch; 0 = torch's default
    profile    take the time of every kernel call (``OpTimes``); a study's run writes it down, with the phases of every step
    capture    ops of whose calls the shapes are kept; a study's run writes them down as a case file
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    graphs: GraphConfig = field(default_factory=GraphConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    router: str = "round_robin"
    speculative_config: SpeculativeConfig = field(default_factory=SpeculativeConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    structured_outputs: StructuredOutputsConfig = field(default_factory=StructuredOutputsConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    kernels: dict[str, str] = field(default_factory=dict)
    plugins: list[str] = field(default_factory=list)
    tuned: str = "auto"
    device: str = "auto"
    interpret: bool = False
    seed: int = 0
    num_threads: int = 0
    profile: bool = False
    capture: list[str] = field(default_factory=list)

    def validate(self) -> None:
        """Raises ValueError for values that cannot work, naming the key, the value and what is possible."""
        check_types(self)
        c, s, e = self.cache, self.scheduler, self.executor
        max_len = self.model.max_model_len
        require(
            max_len is None or max_len >= 1, "model.max_model_len", max_len, "a positive number, or null (what the model allows)"
        )
        require(self.model.max_logprobs >= -1, "model.max_logprobs", self.model.max_logprobs, "-1 (no limit) or more")
        for kind, most in self.model.limit_mm_per_prompt.items():
            is_possible = most >= 0 if kind == "image" else most == 0
            expected = "0 or more" if kind == "image" else "0, or left out: image is the only kind"
            require(is_possible, f"model.limit_mm_per_prompt.{kind}", most, expected)
        require(c.block_size >= 0, "cache.block_size", c.block_size, "0 (automatic) or a positive number")
        expected = "at least 2 (block 0 is the null block) and at most 2^24, or null"
        require(c.num_blocks is None or 2 <= c.num_blocks <= MAX_BLOCKS, "cache.num_blocks", c.num_blocks, expected)
        q = self.quant
        require(q.group_size == -1 or q.group_size > 0, "quant.group_size", q.group_size, "-1 (whole rows) or a positive number")
        require(q.num_samples > 0, "quant.num_samples", q.num_samples, "a positive number")
        require(q.sample_tokens > 0, "quant.sample_tokens", q.sample_tokens, "a positive number")
        require(0 < c.memory_fraction <= 1, "cache.memory_fraction", c.memory_fraction, "in (0, 1]")
        require(0 <= c.state_snapshots <= 1 << 20, "cache.state_snapshots", c.state_snapshots, "from 0 (none) to 2^20")
        for able, what in (
            (c.prefix_caching is not False, "cache.prefix_caching"),
            (s.chunked_prefill, "scheduler.chunked_prefill"),
        ):
            require(able or not c.state_snapshots, "cache.state_snapshots", c.state_snapshots, f"0 with {what}=false")
        require(0 < s.max_num_seqs <= 1 << 20, "scheduler.max_num_seqs", s.max_num_seqs, "from 1 to 2^20")
        require(s.max_num_batched_tokens > 0, "scheduler.max_num_batched_tokens", s.max_num_batched_tokens, "a positive number")
        require(s.max_chunk_tokens >= 0, "scheduler.max_chunk_tokens", s.max_chunk_tokens, "0 (no limit) or more")
        require(s.in_flight_steps >= 0, "scheduler.in_flight_steps", s.in_flight_steps, "0 (automatic) or more")
        require(0 <= s.ageing < math.inf, "scheduler.ageing", s.ageing, "0 (none) or more")
        require(s.ttft_slo_s is None or s.ttft_slo_s > 0, "scheduler.ttft_slo_s", s.ttft_slo_s, "more than 0, or null")
        for key in ("encoder_budget", "encoder_cache"):
            require(getattr(s, key) > 0, f"scheduler.{key}", getattr(s, key), "a positive number")
        require(0 < e.efficiency < math.inf, "executor.efficiency", e.efficiency, "more than 0")
        for key in ("kernel_overhead_s", "step_overhead_s", "launch_s"):
            require(0 <= getattr(e, key) < math.inf, f"executor.{key}", getattr(e, key), "0 or more")
        expected = f"from 0 to {MAX_NOISE:g}, with which one step in 22 already takes over 50 times as long, or under 1/50"
        require(0 <= e.noise <= MAX_NOISE, "executor.noise", e.noise, expected)
        passes = e.passes_per_canvas
        require(passes is None or 1 <= passes < math.inf, "executor.passes_per_canvas", passes, "1 or more, or null")
        require(self.num_threads >= 0, "num_threads", self.num_threads, "0 (torch's default) or more")
        for key, value, table in (
            ("quant.scheme", self.quant.scheme, QUANT_SCHEMES),
            ("cache.dtype", c.dtype, CACHE_DTYPES),
            ("scheduler.policy", s.policy, POLICIES),
            ("executor.kind", e.kind, EXECUTORS),
            ("router", self.router, ROUTERS),
            ("model.load_format", self.model.load_format, LOAD_FORMATS),
            ("model.backend", self.model.backend, BACKENDS),
            ("model.runner", self.model.runner, RUNNERS),
            ("model.convert", self.model.convert, CONVERSIONS),
            ("model.latent_prefill", self.model.latent_prefill, LATENT_PREFILLS),
            ("model.generation_config", self.model.generation_config, GENERATION_CONFIGS),
        ):
            require(value in table, key, value, "one of " + ", ".join(table))
        POLICIES[s.policy](s)  # says what it misses
        require(
            not self.graphs.enabled
            or self.graphs.batch_sizes is None
            or (self.graphs.batch_sizes and min(self.graphs.batch_sizes) > 0),
            "graphs.batch_sizes",
            self.graphs.batch_sizes,
            "positive numbers, at least one, or null (or graphs.enabled=false)",
        )
        self.parallel.validate(e.kind, EXECUTORS)
        if EXECUTORS[e.kind].has_workers:
            self._check_workers()
        self.speculative_config.validate(has_model=EXECUTORS[e.kind].has_device)
        self.structured_outputs.validate()
        self.diffusion.validate()
        self.lora.validate()
        self._check_sections()
        self._check_probes()

    def _check_workers(self) -> None:
        """Refuses what they cannot do yet."""
        p = self.parallel
        if p.pp > 1 and (method := self.speculative_config.method) is not None:
            raise ValueError(f"speculative_config.method={method} cannot work with parallel.pp={p.pp}: stages check no drafts yet")
        if p.num_schedulers > 1 and (method := self.speculative_config.method) is not None:
            raise ValueError(
                f"speculative_config.method={method} cannot work with parallel.ep={p.ep} over parallel.dp={p.dp}: schedulers that "
                "take their steps together check no drafts yet"
            )
        if p.num_schedulers > 1 and self.lora.enabled:
            raise ValueError(
                f"lora.enabled=true cannot work with parallel.ep={p.ep} over parallel.dp={p.dp}: schedulers that take their steps "
                "together share no adapters yet"
            )

    def _check_sections(self) -> None:
        """Refuses what only other kinds of executors, or another calibration, would read."""
        kind, e = self.executor.kind, self.executor
        for section in ("executor", "parallel", "speculative_config", "lora"):
            if section not in EXECUTORS[kind].sections:
                able = ", ".join(name for name, other in EXECUTORS.items() if section in other.sections)
                found = getattr(self, section)
                for name, default in vars(type(found)()).items():
                    expected = f"{default} (executor.kind={kind} does not read it; {able} does)"
                    # See _check_probes, and ParallelConfig.validate for what all kinds may have.
                    elsewhere = name in ("kind", "passes_per_canvas", "op_scale", "op_delay_s") or (
                        section == "parallel" and name not in ("tp", "pp", "ep")
                    )
                    require(elsewhere or getattr(found, name) == default, f"{section}.{name}", getattr(found, name), expected)
        expected = f"null (with executor.kind={kind} the model says how sure it is)"
        is_read = not EXECUTORS[kind].has_device
        require(is_read or e.passes_per_canvas is None, "executor.passes_per_canvas", e.passes_per_canvas, expected)
        for name in ("efficiency", "kernel_overhead_s") if e.calibration != "roofline" else ():
            default = getattr(ExecutorConfig, name)
            expected = f"{default} (only executor.calibration=roofline reads it)"
            require(getattr(e, name) == default, f"executor.{name}", getattr(e, name), expected)

    def _check_probes(self) -> None:
        e = self.executor
        kind, workers = f"executor.kind={e.kind}", EXECUTORS[e.kind].has_workers
        for key in ("op_scale", "op_delay_s") if workers else ():
            require(not getattr(e, key), f"executor.{key}", getattr(e, key), f"left out: {kind} calls its kernels elsewhere")
        for key in ("profile", "capture"):
            asked = getattr(self, key)
            require(e.kind != "null" or not asked, key, asked, f"left out: {kind} calls no kernels")
            require(not workers or not asked, key, asked, f"left out: {kind} calls its kernels elsewhere")
            require(
                self.parallel.num_engines == 1 or not asked,
                key,
                asked,
                f"left out with parallel.dp={self.parallel.dp}: it is of one engine",
            )
        require(e.kind != "null" or not e.op_scale, "executor.op_scale", e.op_scale, f"left out: {kind} takes no time")
        least = 1.0 if EXECUTORS[e.kind].has_device else 0.0
        slower = " (it cannot make kernels faster; experiments/sensitivity.py delays all others and rescales)" if least else ""
        for op, factor in e.op_scale.items():
            require(least <= factor < math.inf, f"executor.op_scale.{op}", factor, f"{least:g} or more for {kind}{slower}")
        require(EXECUTORS[e.kind].has_device or not e.op_delay_s, "executor.op_delay_s", e.op_delay_s, f"left out for {kind}")
        for op, seconds in e.op_delay_s.items():
            require(0 <= seconds < math.inf, f"executor.op_delay_s.{op}", seconds, "0 or more")
