"""How long a request may become, before it is taken in."""

from __future__ import annotations

from bisect import bisect_left

from ..config import SchedulerConfig
from .diffusion import Denoising
from .kv_cache.manager import KVCacheManager


class Limits:
    """Of one scheduler."""

    def __init__(
        self, config: SchedulerConfig, manager: KVCacheManager, max_model_len: int, denoising: Denoising | None = None
    ) -> None:
        self._config, self._manager, self._max_model_len, self._denoising = config, manager, max_model_len, denoising

    def longest_total(self, num_prompt_tokens: int, max_tokens: int | None, num_encoded: int = 0) -> int:
        """Length at which a request ends at the latest. num_encoded: as of ``Request``. Raises ValueError if it could never be
        served."""
        if num_prompt_tokens >= self._max_model_len:
            raise ValueError(
                f"the prompt has {num_prompt_tokens} tokens, but prompt and output together may have at most "
                f"{self._max_model_len} (model.max_model_len): shorten the prompt"
            )
        total = self._max_model_len if max_tokens is None else min(num_prompt_tokens + max_tokens, self._max_model_len)
        least = num_prompt_tokens + 1 if max_tokens is None else total
        if not self._config.chunked_prefill and self._computed(least) > self._config.max_chunk:
            raise ValueError(
                f"without chunked prefill a request must fit in one step, even when it resumes: this one has "
                f"up to {self._computed(least)} tokens, but a step takes {self._config.max_chunk} of one request: raise "
                "scheduler.max_num_batched_tokens (and max_chunk_tokens), or set chunked_prefill"
            )
        usable = self._manager.pool.num_blocks - 1
        if (needed := self.most_blocks(self._computed(least), num_encoded)) > usable:
            raise ValueError(
                f"the request needs up to {needed} KV blocks of {self._manager.block_size} tokens, but the cache "
                f"has {usable}: lower max_tokens, shorten the prompt, or enlarge cache.memory_bytes or "
                "cache.num_blocks"
            )

        def too_long(length: int) -> bool:
            is_whole = self._config.chunked_prefill or self._computed(length) <= self._config.max_chunk
            return self.most_blocks(self._computed(length), num_encoded) > usable or not is_whole

        return least + bisect_left(range(least + 1, total + 1), True, key=too_long)

    def _computed(self, length: int) -> int:
        """Tokens that are computed to make a sequence of ``length``: all but the last, or all of its canvas, too."""
        return length - 1 if self._denoising is None else self._denoising.end(length - 1)

    def most_blocks(self, num_tokens: int, num_encoded: int = 0) -> int:
        """That a request of so many computed tokens holds at a time, at most."""
        return self._manager.blocks_for(
            num_tokens, min(num_tokens, self._config.max_chunk * self._config.in_flight_steps), num_encoded
        )
