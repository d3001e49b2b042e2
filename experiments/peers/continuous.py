"""The library's continuous batching: requests join and leave a running batch over a paged cache, in a thread of the library's."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import torch
from transformers import ContinuousBatchingConfig
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from framework.study.workload.config import SamplingConfig
from framework.worker.devices import DEFAULT_CACHE_BYTES

from .transformers_library import Completion, Library, generation_config

PAGE_SIZE = 256
"""Tokens per page: the library's default."""
_HEARTBEAT_S = 1.0


class ContinuousBatching:
    """Limits on requests and tokens of a step, and whether prefixes are shared, are those of our engine's config; the rest is as
    the library decides. It takes a flash attention that is installed (none from the hub), except for float32, which those lack.

    num_tokens  that all requests to come may need in the cache at once
    """

    mode = "continuous batching"

    def __init__(self, library: Library, sampling: SamplingConfig, eos_ids: Collection[int], num_tokens: int) -> None:
        config, model = library.config, library.model
        if sampling.repetition_penalty != 1:
            raise ValueError(
                f"workload.sampling.repetition_penalty={sampling.repetition_penalty}: the continuous batching of the "
                "transformers library leaves it out; serve with system=transformers_static"
            )
        if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
            raise ValueError(
                f"model {config.model.name!r} caps its attention scores, which the continuous batching of the "
                "transformers library leaves out; serve with system=transformers_static"
            )
        switch: dict[str, Any] = {}
        if hasattr(ContinuousBatchingConfig, "auto_switch_to_flash"):  # older releases do not switch
            switch["auto_switch_to_flash"] = model.dtype != torch.float32 and _flash_is_installed()
        self._manager = model.init_continuous_batching(
            generation_config(sampling, eos_token_id=sorted(eos_ids) or -1),
            ContinuousBatchingConfig(
                num_blocks=_num_blocks(library, num_tokens),
                max_batch_tokens=config.scheduler.max_num_batched_tokens,
                max_requests_per_batch=config.scheduler.max_num_seqs,
                allow_block_sharing=config.cache.prefix_caching is not False,
                seed=config.seed,
                **switch,
            ),
        )
        self._manager.warmup()
        self._manager.start()

    def add(self, request_id: str, prompt: list[int], limit: int) -> None:
        if self._manager.add_request(prompt, request_id, max_new_tokens=limit, record_timestamps=True) is None:
            self._raise()

    def finished(self, timeout_s: float | None) -> list[Completion]:
        """The next request that finishes; none if ``timeout_s`` passes first."""
        end_s = None if timeout_s is None else time.perf_counter() + timeout_s
        while True:
            left_s = _HEARTBEAT_S if end_s is None else min(_HEARTBEAT_S, max(0.0, end_s - time.perf_counter()))
            found = self._manager.get_result(timeout=left_s)
            if found is not None:
                break
            if not self._manager.is_running():
                self._raise()
            if end_s is not None and time.perf_counter() >= end_s:
                return []
        if self._manager.background_thread_status.fatal_error is not None:
            self._raise()
        if found.error is None and len(found.timestamps) != len(found.generated_tokens):
            raise RuntimeError(
                f"the library put request {found.request_id} off for lack of cache and forgot when its first tokens "
                "came: lower scheduler.max_num_seqs, or enlarge cache.memory_bytes"
            )
        return [Completion(found.request_id, found.generated_tokens, found.timestamps, found.error)]

    def close(self) -> None:
        self._manager.stop(block=True)
        self._manager.destroy()

    def _raise(self) -> None:
        cause = self._manager.background_thread_status.fatal_error
        raise RuntimeError(f"the continuous batching of the transformers library stopped: {type(cause).__name__}: {cause}")


def _flash_is_installed() -> bool:
    return is_flash_attn_2_available() or is_flash_attn_3_available()


def _num_blocks(library: Library, num_tokens: int) -> int | None:
    """Pages of the cache: by the same keys as our engine's. None on a GPU where no key says it: the library then takes its own
    share of the free memory, as our engine does."""
    config, shape = library.config.cache, library.model.config.get_text_config()
    budget = config.memory_bytes
    if config.num_blocks is not None:
        return -(-config.num_blocks * config.block_size // PAGE_SIZE)
    if budget is None and library.model.device.type != "cpu":
        return None
    kv_heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    page_bytes = PAGE_SIZE * shape.num_hidden_layers * 2 * kv_heads * head_dim * library.model.dtype.itemsize
    fitting = (DEFAULT_CACHE_BYTES if budget is None else budget) // page_bytes
    # Its attention mask spans the whole cache, so that pages which nobody can fill cost more than their own memory.
    useful = -(-num_tokens // PAGE_SIZE) + library.config.scheduler.max_num_seqs
    return max(1, min(fitting, useful))
