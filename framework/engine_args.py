"""The arguments that users know from vLLM, and the configuration that they make: the one table of what an engine can be told."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from .config import (
    QUANT_SCHEMES,
    CacheConfig,
    EngineConfig,
    ExecutorConfig,
    GraphConfig,
    ModelConfig,
    ParallelConfig,
    QuantConfig,
    SchedulerConfig,
)
from .config_checks import check_types, require
from .distributed.kinds import LAUNCHERS
from .engine.diffusion import DiffusionConfig
from .lora_request import LoraConfig
from .models.hub import read_json, resolve_model
from .models.quantization.settings import checkpoint_settings
from .sampling_params import MAX_LOGPROBS
from .speculation.config import SpeculativeConfig
from .structured.config import StructuredOutputsConfig

BACKEND_VARIABLE = "VLLM_ATTENTION_BACKEND"
ATTENTION_BACKENDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "FLASH_ATTN": ("flash_attn_3|flash_attn", "flash_attn_3|flash_attn"),
        "FLASHINFER": ("flashinfer", "flashinfer"),
        "TRITON_ATTN": ("tma|pointer", "balanced|splitkv"),
        "FLEX_ATTENTION": ("flex", "flex"),
    }
)
"""vLLM's names -> choices for the attention of prompts, and of decodes."""
_SCHEMES = {"fp8_per_channel": "fp8", "fp8_per_block": "fp8-block"}
_METHODS = {"gptq_marlin": "gptq", "auto_gptq": "gptq", "awq_marlin": "awq", "auto_awq": "awq", "inc": "auto-round"}
"""vLLM's names of schemes and of formats -> ours."""
_CACHE_DTYPES = {
    "fp8": "float8_e4m3fn",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
    "fp8_per_token_head": "float8_e4m3fn",
    "int8_per_token_head": "int8",
}
"""vLLM's names of what config.py calls by torch's names. All are scaled per token and head here."""
_LAUNCHERS = {"mp": "processes"}
"""vLLM's names of what starts workers -> ours."""
_DTYPES = {"half": "float16", "float": "float32"}
_LOAD_FORMATS = {"safetensors": "auto"}


def engine_config(
    model: str | EngineConfig = "tiny",
    *,
    tokenizer: str | None = None,
    tokenizer_mode: str = "auto",
    skip_tokenizer_init: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    runner: str = "auto",
    convert: str = "auto",
    pooler_config: Mapping[str, Any] | None = None,
    quantization: str | None = None,
    dtype: str = "auto",
    load_format: str = "auto",
    hf_overrides: Mapping[str, Any] | None = None,
    max_model_len: int | None = None,
    generation_config: str = "auto",
    max_logprobs: int = MAX_LOGPROBS,
    limit_mm_per_prompt: Mapping[str, Any] | None = None,
    enforce_eager: bool = False,
    disable_log_stats: bool = True,
    seed: int = 0,
    device: str = "auto",
    block_size: int | None = None,
    num_gpu_blocks_override: int | None = None,
    gpu_memory_utilization: float | None = None,
    kv_cache_memory_bytes: int | None = None,
    kv_cache_dtype: str = "auto",
    enable_prefix_caching: bool | None = None,
    state_snapshots: int = 0,
    enable_chunked_prefill: bool = True,
    chunked_prefill_size: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    scheduling_policy: str = "fcfs",
    speculative_config: Mapping[str, Any] | None = None,
    structured_outputs_config: Mapping[str, Any] | None = None,
    diffusion_config: Mapping[str, Any] | None = None,
    enable_lora: bool = False,
    max_loras: int = 1,
    max_lora_rank: int = 16,
    max_cpu_loras: int | None = None,
    lora_dtype: str = "auto",
    lora_target_modules: Sequence[str] | None = None,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    data_parallel_size: int = 1,
    router: str = "round_robin",
    enable_expert_parallel: bool = False,
    distributed_executor_backend: str | None = None,
    step_timeout_s: float | None = None,
    start_timeout_s: float | None = None,
    attention_backend: str | None = None,
    kernels: Mapping[str, str] | None = None,
    plugins: Sequence[str] = (),
    interpret: bool = False,
    **unknown: Any,
) -> EngineConfig:
    """The configuration that these arguments make. Those that exist in vLLM have the names and meanings that they have there; what
    is not given follows EngineConfig.

    model           a folder, a Hugging Face id, tiny or tiny-draft; in Python also an EngineConfig, which is then taken as it is,
                    with kernels over its own
    tokenizer       where the tokenizer comes from, if not from the model
    tokenizer_mode  accepted as auto: there is one kind of tokenizer
    skip_tokenizer_init  load no tokenizer: prompts come as token ids, and outputs have no text
    trust_remote_code    accepted as off: code that comes with a model is never run
    revision        of a Hugging Face id
    runner          auto (what the checkpoint was made for), generate or pooling
    convert         of a model that pools: auto, none, embed or classify
    pooler_config   of a model that pools, over what its files say: pooling_type (CLS, LAST, MEAN, ALL, STEP), use_activation,
                    step_tag_id, returned_token_ids
    quantization    how to quantize floats (fp8, int8, int8-weight, rtn-int4, gptq-int4, ...), or the format that the checkpoint has
                    anyway; not given: the weights are served as they are stored
    dtype           auto (the checkpoint's), float32, float16 or bfloat16
    load_format     auto (safetensors), or dummy: random weights
    hf_overrides    fields that go over those of the model's config.json
    max_model_len   longest prompt and output together; not given: what the model allows
    generation_config  auto: default sampling parameters are those of the model's generation_config.json; vllm: those of vLLM
    max_logprobs    most log-probabilities per token that a request may ask for; -1 = no limit
    limit_mm_per_prompt  most images in a prompt, as {"image": 2}; 0: none, and the tower is not loaded; not given: no limit
    enforce_eager   every kernel is launched by the host: no CUDA graphs, no recordings on a CPU
    disable_log_stats    accepted as it is: statistics are not logged, they are metrics
    seed            of dummy weights, and of requests that bring none
    device          auto (the best that is here), cpu, cuda, cuda:1 ...
    block_size      tokens per block of the KV cache; not given: what suits the device
    num_gpu_blocks_override  blocks of the KV cache, also on a CPU; not given: what fits into memory
    gpu_memory_utilization   part of a GPU's memory for weights, activations and KV cache together (0.9)
    kv_cache_memory_bytes    size of the KV cache; not given: what gpu_memory_utilization leaves, 1 GiB on a CPU
    kv_cache_dtype  auto (the model's), fp8, fp8_e5m2, int8_per_token_head, ...; the quantized ones have a scale per token and head
    enable_prefix_caching    reuse the blocks of equal prefixes; not given: where the model allows it
    state_snapshots  prefixes whose states are kept of a model whose layers keep some, without which it has no prefix caching (0);
                    beginnings that prompts share are found from 2 on
    enable_chunked_prefill   a prompt may be computed in parts
    chunked_prefill_size     longest part of a prompt in one step; not given: whatever the step has room for
    max_num_seqs    most requests running at once
    max_num_batched_tokens   most tokens in one step
    scheduling_policy        fcfs, priority or sjf
    speculative_config       fields of the section speculative_config: method (ngram, suffix, forced, draft_model, medusa, eagle,
                    eagle3, mtp or module:Class), num_speculative_tokens, model, ...
    structured_outputs_config  fields of the section structured_outputs: backend (auto, llguidance or guidance, xgrammar),
                    disable_any_whitespace, disable_additional_properties, compile_timeout_s, ...
    diffusion_config  fields of the section diffusion: threshold, max_passes, of models that generate by block diffusion
    enable_lora     requests may bring adapters (LoRARequest)
    max_loras       most adapters in one step
    max_lora_rank   largest rank of an adapter
    max_cpu_loras   most adapters in the host's memory; not given: max_loras
    lora_dtype      of adapters on the device: auto (the model's), float32, float16 or bfloat16
    lora_target_modules      ends of module names (q_proj) that adapters may adapt; not given: all that can be
    tensor_parallel_size     devices that share each layer
    pipeline_parallel_size   devices that share the layers among them
    data_parallel_size       engines beside each other, each on devices of its own; with enable_expert_parallel, one engine with so
                    many schedulers
    router          which of them serves a request: round_robin, random, least_loaded, least_tokens, power_of_two or prefix_aware
    enable_expert_parallel   experts are spread whole over all devices, instead of being cut among those that share each layer
    distributed_executor_backend  what starts the workers of several devices: mp (processes of this machine) or ray; not given: mp,
                    unless there is one device, which needs no worker
    step_timeout_s  after which a step has a device that hangs, and its engine is ended (300); so is one of several engines that is
                    silent for so long while it has work
    start_timeout_s  after which the workers of several devices are ended if they are not ready (600)
    attention_backend        FLASH_ATTN, FLASHINFER, TRITON_ATTN or FLEX_ATTENTION, for prompts and decodes; not given: that of the
                    environment's VLLM_ATTENTION_BACKEND, else the best that is here. What kernels names goes before it
    kernels         op -> implementation, e.g. paged_attention_decode -> torch, and default -> what the other ops take
    plugins         modules or .py files with further implementations
    interpret       run Triton kernels in Triton's interpreter (slow)

    Raises ValueError for arguments that do not exist here, saying which do, and for what they cannot be.
    """
    _refuse(locals())
    if kernels is not None and not isinstance(kernels, Mapping):
        raise ValueError(f"kernels={kernels!r} cannot work: it must map ops to choices, as in {{'sample': 'torch'}}")
    own = dict(kernels or {})
    if isinstance(model, EngineConfig):
        return replace(model, kernels=model.kernels | own)
    config = EngineConfig(
        model=ModelConfig(
            model,
            tokenizer,
            revision,
            _dtype_name(dtype),
            _LOAD_FORMATS.get(load_format, load_format),
            dict(hf_overrides or {}),
            max_model_len,
            "none" if generation_config == "vllm" else generation_config,
            skip_tokenizer=skip_tokenizer_init,
            max_logprobs=max_logprobs,
            limit_mm_per_prompt=dict(limit_mm_per_prompt or {}),
            runner=runner,
            convert=convert,
            pooler=dict(pooler_config or {}),
        ),
        cache=CacheConfig(
            num_blocks=num_gpu_blocks_override,
            memory_bytes=kv_cache_memory_bytes,
            dtype=_CACHE_DTYPES.get(kv_cache_dtype, kv_cache_dtype),
            prefix_caching=enable_prefix_caching,
            state_snapshots=state_snapshots,
        ),
        scheduler=SchedulerConfig(policy=scheduling_policy, chunked_prefill=enable_chunked_prefill),
        speculative_config=SpeculativeConfig.of(speculative_config or {}),
        structured_outputs=StructuredOutputsConfig.of(structured_outputs_config or {}),
        diffusion=DiffusionConfig.of(diffusion_config or {}),
        graphs=GraphConfig(enabled=not enforce_eager),
        lora=LoraConfig(
            enable_lora,
            max_loras,
            max_lora_rank,
            max_cpu_loras,
            _dtype_name(lora_dtype),
            None if lora_target_modules is None else [str(name) for name in lora_target_modules],
        ),
        parallel=ParallelConfig(tensor_parallel_size, pipeline_parallel_size, data_parallel_size),
        router=router,
        kernels=_attention(attention_backend) | own,
        plugins=[plugins] if isinstance(plugins, str) else [str(plugin) for plugin in plugins],
        device=device,
        interpret=interpret,
        seed=seed,
    )
    _set(config.cache, block_size=block_size, memory_fraction=gpu_memory_utilization)
    _set(
        config.scheduler,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_chunk_tokens=chunked_prefill_size,
    )
    check_types(config.parallel, "parallel.")
    require(isinstance(enable_expert_parallel, bool), "enable_expert_parallel", enable_expert_parallel, "of type bool")
    if enable_expert_parallel:
        config.parallel.ep = tensor_parallel_size * data_parallel_size
    if distributed_executor_backend is not None or config.parallel != ParallelConfig(dp=data_parallel_size):
        config.executor = ExecutorConfig(kind="distributed")
        config.parallel.backend = _launcher(distributed_executor_backend)
    _set(config.parallel, step_timeout_s=step_timeout_s, start_timeout_s=start_timeout_s)
    config.quant = _quant(quantization, config.model)
    return config


def _refuse(given: Mapping[str, Any]) -> None:
    """What does not exist, cannot be, or would be ignored."""
    known = {name: p.default for name, p in inspect.signature(engine_config).parameters.items() if p.kind != p.VAR_KEYWORD}
    if given["unknown"]:
        raise ValueError(
            f"LLM has no {', '.join(given['unknown'])} in this version; leave it out. Its arguments are {', '.join(known)}; "
            "whatever else can be set is in EngineConfig, which may take the place of a model's name"
        )
    if isinstance(given["model"], EngineConfig):
        beside = [name for name, default in known.items() if name not in ("model", "kernels") and given[name] != default]
        if beside:
            raise ValueError(f"{', '.join(beside)} cannot be given beside an EngineConfig, which says it all: set it there")
    if given["trust_remote_code"]:
        raise ValueError(
            "trust_remote_code=True cannot work: code that comes with a model is never run here. Leave it out: the models that are "
            "known need none, and others are refused with a reason"
        )
    if given["tokenizer_mode"] != "auto":
        raise ValueError(
            f"tokenizer_mode={given['tokenizer_mode']!r} cannot work: it must be auto (the fast tokenizer if there is one)"
        )


def _attention(asked: str | None) -> dict[str, str]:
    """The choices that a backend of vLLM stands for; of the environment's, if none is asked for."""
    source = "attention_backend" if asked else BACKEND_VARIABLE
    name = asked or os.environ.get(BACKEND_VARIABLE)
    if not name:
        return {}
    if name not in ATTENTION_BACKENDS:
        why = "no kernel here calls xFormers, whose release comes without wheels; " if name == "XFORMERS" else ""
        raise ValueError(f"{source}={name!r} cannot work: {why}it must be one of {', '.join(ATTENTION_BACKENDS)}, or left out")
    prefill, decode = ATTENTION_BACKENDS[name]
    return {"paged_attention_prefill": prefill, "paged_attention_decode": decode}


def _dtype_name(given: object) -> str:
    """Of a name as vLLM has it, or a torch.dtype."""
    return _DTYPES.get(str(given), str(given).removeprefix("torch."))


def _launcher(asked: str | None) -> str:
    name = "mp" if asked is None else str(asked)
    found = _LAUNCHERS.get(name, name)
    if found not in LAUNCHERS:
        known = ", ".join(dict.fromkeys([*_LAUNCHERS, *LAUNCHERS]))
        raise ValueError(f"distributed_executor_backend={asked!r} cannot work: it must be one of {known}, or left out")
    return found


def _quant(asked: str | None, model: ModelConfig) -> QuantConfig:
    """quantization= of vLLM: a scheme by which floats are quantized here, or the format that the checkpoint has anyway."""
    scheme = _SCHEMES.get(str(asked), asked)
    if scheme is None or scheme in QUANT_SCHEMES:
        return QuantConfig(scheme or "none")
    folder = resolve_model(model.name, model.revision, weights=False)
    found = checkpoint_settings(read_json(folder, "config.json"), folder)
    if found is None or found.method != _METHODS.get(scheme, scheme):
        raise ValueError(
            f"quantization={asked!r} cannot work: {model.name!r} is "
            + (f"quantized as {found.method}" if found else "not quantized")
            + f". Leave it out, give a checkpoint of that format, or quantize one of floats by {', '.join(QUANT_SCHEMES[1:])}"
        )
    return QuantConfig()


def _set(config: Any, **given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            setattr(config, name, value)
