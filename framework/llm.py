"""The offline interface, as vLLM users know it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from .build import build_engine
from .config import CacheConfig, EngineConfig, ModelConfig, ParallelConfig, SchedulerConfig
from .engine.inputs import EngineInput, Prompt
from .outputs import RequestOutput
from .sampling_params import RequestOutputKind, SamplingParams

Messages = list[dict[str, Any]]
_CACHE_DTYPES = {
    "fp8": "float8_e4m3fn",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
    "fp8_per_token_head": "float8_e4m3fn",
    "int8_per_token_head": "int8",
}
"""vLLM's names of what config.py calls by torch's names. All are scaled per token and head here."""


class LLM:
    """A model ready to generate.

    model       a folder, a Hugging Face id, ``tiny`` or ``tiny-draft``; or an EngineConfig, which is then used as it is
    kernels     op -> choice, e.g. ``{"paged_attention_decode": "torch"}``, and ``default`` -> what the other ops take; they come
                before ``override`` and an EngineConfig's; plugins: modules or files with further impls
    The other arguments have the names and meanings that they have in vLLM; what is not given follows EngineConfig.
    """

    def __init__(
        self,
        model: str | EngineConfig = "tiny",
        *,
        tokenizer: str | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        load_format: str = "auto",
        hf_overrides: Mapping[str, Any] | None = None,
        max_model_len: int | None = None,
        generation_config: str = "auto",
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
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        kernels: Mapping[str, str] | None = None,
        plugins: Sequence[str] = (),
        interpret: bool = False,
    ) -> None:
        if isinstance(model, EngineConfig):
            config = model
        else:
            config = EngineConfig(
                model=ModelConfig(
                    model,
                    tokenizer,
                    revision,
                    dtype,
                    load_format,
                    dict(hf_overrides or {}),
                    max_model_len,
                    "none" if generation_config == "vllm" else generation_config,
                ),
                cache=CacheConfig(
                    num_blocks=num_gpu_blocks_override,
                    memory_bytes=kv_cache_memory_bytes,
                    dtype=_CACHE_DTYPES.get(kv_cache_dtype, kv_cache_dtype),
                    prefix_caching=enable_prefix_caching,
                ),
                scheduler=SchedulerConfig(policy=scheduling_policy, chunked_prefill=enable_chunked_prefill),
                parallel=ParallelConfig(tp=tensor_parallel_size, pp=pipeline_parallel_size),
                plugins=list(plugins),
                device=device,
                interpret=interpret,
                seed=seed,
            )
            _set(config.cache, block_size=block_size, memory_fraction=gpu_memory_utilization)
            _set(config.scheduler, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens)
        self.engine = build_engine(config, kernels=kernels)
        self._ids = itertools.count()

    def get_tokenizer(self) -> Any:
        """The Hugging Face tokenizer of the model."""
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

    def plan(self) -> dict[str, dict[str, Any]]:
        """op -> which impl served it and how often it was called."""
        return self.engine.plan_report()

    def shutdown(self) -> None:
        """Frees the model and the cache."""
        self.engine.shutdown()

    def _run(
        self,
        inputs: list[EngineInput],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
        priority: Sequence[int] | None,
    ) -> list[RequestOutput]:
        params = list(sampling_params) if isinstance(sampling_params, Sequence) else [sampling_params] * len(inputs)
        for name, given in (("sampling_params", params), ("priority", priority)):
            if given is not None and len(given) != len(inputs):
                raise ValueError(f"{len(inputs)} prompts were given with {len(given)} {name}; give one for all, or one each")
        ids: list[str] = []
        try:
            for index, prompt in enumerate(inputs):
                completed = self.engine.inputs.params(params[index])
                completed.output_kind = RequestOutputKind.FINAL_ONLY
                ids.append(str(next(self._ids)))
                self.engine.add_request(ids[-1], prompt, completed, priority=priority[index] if priority else 0)
        except BaseException:
            self.engine.abort(ids)
            raise
        return self._collect(ids, use_tqdm)

    def _collect(self, ids: list[str], use_tqdm: bool) -> list[RequestOutput]:
        done: dict[str, RequestOutput] = {}
        own = set(ids)
        try:
            with tqdm(total=len(ids), desc="Processed prompts", disable=not use_tqdm) as bar:
                while self.engine.has_unfinished():
                    for output in self.engine.step():
                        if output.request_id not in own:
                            continue
                        if output.error is not None:
                            raise RuntimeError(f"the engine could not serve request {output.request_id}: {output.error}")
                        if output.finished:
                            done[output.request_id] = output
                            bar.update()
        except BaseException:
            self.engine.abort([i for i in ids if i not in done])
            raise
        return [done[request_id] for request_id in ids]


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str | Mapping) or (len(prompts) > 0 and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _set(config: Any, **given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            setattr(config, name, value)
