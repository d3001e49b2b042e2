"""The offline interface, as vLLM users know it."""

from __future__ import annotations

import inspect
import itertools
import reprlib
import time
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, NoReturn

from tqdm import tqdm

from .build import build_engine
from .config import QUANT_SCHEMES, CacheConfig, EngineConfig, GraphConfig, ModelConfig, ParallelConfig, QuantConfig, SchedulerConfig
from .engine.engine import Engine
from .engine.inputs import EngineInput, Prompt, check_priority
from .engine_process import WAIT_S
from .metrics import Metric, engine_metrics
from .models.hub import read_json, resolve_model
from .models.quantization.settings import checkpoint_settings
from .outputs import RequestOutput
from .sampling_params import MAX_LOGPROBS, RequestOutputKind, SamplingParams
from .structured.config import StructuredOutputsConfig

Messages = list[dict[str, Any]]
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
_DTYPES = {"half": "float16", "float": "float32"}
_LOAD_FORMATS = {"safetensors": "auto"}


class LLM:
    """A model ready to generate.

    model       a folder, a Hugging Face id, ``tiny`` or ``tiny-draft``; or an EngineConfig, which is then used as it is
    kernels     op -> choice, e.g. ``{"paged_attention_decode": "torch"}``, and ``default`` -> what the other ops take; they come
                before ``override`` and an EngineConfig's; plugins: modules or files with further impls
    The other arguments have the names and meanings that they have in vLLM; what is not given follows EngineConfig.
    quantization    None, the format of the checkpoint (its weights are served as they are stored), or how to quantize floats, see
                    ``QuantConfig.scheme``: fp8, int8, int8-weight, rtn-int4, gptq-int4, ...
    structured_outputs_config  fields of StructuredOutputsConfig; ``backend`` also by vLLM's name guidance
    enforce_eager   every kernel is launched by the host: no CUDA graphs, no recordings on a CPU
    disable_log_stats, tokenizer_mode, trust_remote_code   accepted as they are: nothing is logged, there is one kind of
                    tokenizer, and code that comes with a model is never run
    Raises ValueError for arguments that do not exist here, saying which do.
    """

    def __init__(
        self,
        model: str | EngineConfig = "tiny",
        *,
        tokenizer: str | None = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        revision: str | None = None,
        quantization: str | None = None,
        dtype: str = "auto",
        load_format: str = "auto",
        hf_overrides: Mapping[str, Any] | None = None,
        max_model_len: int | None = None,
        generation_config: str = "auto",
        max_logprobs: int = MAX_LOGPROBS,
        enforce_eager: bool = False,
        disable_log_stats: bool = True,
        seed: int = 0,
        device: str = "auto",
        block_size: int | None = None,
        num_gpu_blocks_override: int | None = None,
        gpu_memory_utilization: float | None = None,
        kv_cache_memory_bytes: int | None = None,
        kv_cache_dtype: str = "auto",
        enable_prefix_caching: bool = True,
        enable_chunked_prefill: bool = True,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        scheduling_policy: str = "fcfs",
        structured_outputs_config: Mapping[str, Any] | None = None,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        kernels: Mapping[str, str] | None = None,
        plugins: Sequence[str] = (),
        interpret: bool = False,
        **unknown: Any,
    ) -> None:
        _refuse_arguments(locals())
        if isinstance(model, EngineConfig):
            config = model
        else:
            config = EngineConfig(
                model=ModelConfig(
                    model,
                    tokenizer,
                    revision,
                    _DTYPES.get(str(dtype), str(dtype).removeprefix("torch.")),  # a torch.dtype, too
                    _LOAD_FORMATS.get(load_format, load_format),
                    dict(hf_overrides or {}),
                    max_model_len,
                    "none" if generation_config == "vllm" else generation_config,
                    skip_tokenizer=skip_tokenizer_init,
                    max_logprobs=max_logprobs,
                ),
                cache=CacheConfig(
                    num_blocks=num_gpu_blocks_override,
                    memory_bytes=kv_cache_memory_bytes,
                    dtype=_CACHE_DTYPES.get(kv_cache_dtype, kv_cache_dtype),
                    prefix_caching=enable_prefix_caching,
                ),
                scheduler=SchedulerConfig(policy=scheduling_policy, chunked_prefill=enable_chunked_prefill),
                structured_outputs=StructuredOutputsConfig.of(structured_outputs_config or {}),
                graphs=GraphConfig(enabled=not enforce_eager),
                parallel=ParallelConfig(tp=tensor_parallel_size, pp=pipeline_parallel_size),
                plugins=[plugins] if isinstance(plugins, str) else [str(plugin) for plugin in plugins],
                device=device,
                interpret=interpret,
                seed=seed,
            )
            _set(config.cache, block_size=block_size, memory_fraction=gpu_memory_utilization)
            _set(config.scheduler, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens)
            config.quant = _quant(quantization, config.model)
        self._engine: Engine | None = build_engine(config, kernels=kernels)
        self._ids = itertools.count()

    @property
    def engine(self) -> Engine:
        """Raises RuntimeError after ``shutdown``."""
        if self._engine is None:
            raise RuntimeError("this LLM was shut down, and its model is gone: build a new one")
        return self._engine

    def get_tokenizer(self) -> Any:
        """The Hugging Face tokenizer of the model. Raises ValueError if it has none."""
        if self.engine.inputs.tokenizer is None:
            raise ValueError("this LLM has no tokenizer: it was built without one (skip_tokenizer_init), or its model brings none")
        return self.engine.inputs.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends."""
        return self.engine.inputs.default_params()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Completes prompts (text, ``{"prompt_token_ids": [...]}``, or lists of token ids); outputs come in their order.

        Raises ValueError, before anything runs, if one of the prompts can never fit, and RuntimeError with the cause if one of them
        failed while it ran; the others are aborted then, and the engine serves on (unless its device is lost: EngineDeadError)."""
        inputs = [self.engine.inputs.prompt(prompt) for prompt in _listed(prompts)]
        return self._run(inputs, sampling_params, use_tqdm, priority)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Completes one conversation or several, each a list of ``{"role": ..., "content": ...}``."""
        conversations: Any = [messages] if messages and isinstance(messages[0], Mapping) else messages
        inputs = [
            self.engine.inputs.chat(
                conversation, chat_template, add_generation_prompt, continue_final_message, **(chat_template_kwargs or {})
            )
            for conversation in conversations
        ]
        return self._run(inputs, sampling_params, use_tqdm, None)

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached prefixes; False, and nothing happens, while requests hold blocks."""
        return self.engine.reset_prefix_cache()

    def get_metrics(self) -> list[Metric]:
        """The engine's counters and gauges, under vLLM's names."""
        return engine_metrics(self.engine.stats(), self.engine.config.model.name)

    def beam_search(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("beam search is not available in this version; generate samples n completions per prompt")

    def sleep(self, level: int = 1) -> NoReturn:
        raise NotImplementedError("an engine cannot sleep in this version; shutdown() frees the device")

    def wake_up(self, tags: list[str] | None = None) -> NoReturn:
        raise NotImplementedError("an engine cannot sleep in this version, so there is nothing to wake up")

    def plan(self) -> dict[str, dict[str, Any]]:
        """op -> which impl served it and how often it was called."""
        return self.engine.plan_report()

    def shutdown(self) -> None:
        """Frees the model and the cache; whatever is asked of this LLM afterwards is refused."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    def _run(
        self,
        inputs: list[EngineInput],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
        priority: Sequence[int] | None,
    ) -> list[RequestOutput]:
        each = isinstance(sampling_params, list | tuple)
        params: Sequence[Any] = sampling_params if each else [sampling_params] * len(inputs)  # type: ignore[assignment]
        priorities = [0] * len(inputs) if priority is None else priority
        for name, given in (("sampling_params", params), ("priority", priorities)):
            if not isinstance(given, Sequence) or len(given) != len(inputs):
                raise ValueError(f"{len(inputs)} prompts were given with {name}={reprlib.repr(given)}; give one each")
        priorities = [check_priority(value) for value in priorities]
        ids = [str(next(self._ids)) for _ in inputs]
        try:
            for i, request_id in enumerate(ids):
                self.engine.add_request(
                    request_id, inputs[i], params[i], priority=priorities[i], output_kind=RequestOutputKind.FINAL_ONLY
                )
            done = self._finish(ids, use_tqdm)
        except BaseException:
            self.engine.abort(ids)
            raise
        return [done[request_id] for request_id in ids]

    def _finish(self, ids: list[str], use_tqdm: bool) -> dict[str, RequestOutput]:
        """Steps until all of them have ended."""
        done: dict[str, RequestOutput] = {}
        places = {request_id: place for place, request_id in enumerate(ids)}
        with tqdm(total=len(ids), desc="Processed prompts", disable=not use_tqdm) as bar:
            while self.engine.has_unfinished():
                for output in self.engine.step():
                    if output.error is not None and output.request_id in places:
                        kind = ValueError if output.refused else RuntimeError
                        raise kind(f"prompt {places[output.request_id]} of {len(ids)} failed: {output.error}")
                    if output.finished:
                        done[output.request_id] = output
                        bar.update()
                if self.engine.is_waiting:
                    time.sleep(WAIT_S)
        return done


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt, or several, as a list of them."""
    if isinstance(prompts, str | bytes | bytearray | Mapping):
        return [prompts]
    try:
        listed: list[Any] = list(prompts)
    except TypeError:
        raise ValueError(f"prompts must be text, token ids, a dict, or a list of such; found {prompts!r}") from None
    return [listed] if listed and isinstance(listed[0], Integral) else listed


def _refuse_arguments(given: Mapping[str, Any]) -> None:
    """What does not exist, cannot be, or would be ignored."""
    known = {name: p.default for name, p in inspect.signature(LLM).parameters.items() if p.kind != p.VAR_KEYWORD}
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
