"""The library's ``generate``: one padded batch after another, of all requests that wait, as long as its longest completion."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from framework.study.workload.config import SamplingConfig

from .transformers_library import Completion, Library, generation_config


class _Watch(StoppingCriteria):
    """Called after every token of a batch: notes when it came, and ends each request at its own limit."""

    def __init__(self, completions: list[Completion], limits: list[int], eos_ids: Collection[int]) -> None:
        self._completions, self._limits, self._eos_ids = completions, limits, eos_ids
        self._done = [False] * len(completions)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        tokens = input_ids[:, -1].tolist()  # waits for the device: the time is that of a token which exists
        now_s = time.perf_counter()
        for row, (completion, token) in enumerate(zip(self._completions, tokens)):
            if not self._done[row]:
                completion.token_ids.append(token)
                completion.times_s.append(now_s)
                self._done[row] = len(completion.token_ids) >= self._limits[row] or token in self._eos_ids
        return torch.tensor(self._done, device=input_ids.device)


class StaticBatches:
    """A batch takes those that wait, up to ``scheduler.max_num_seqs``, and runs to its end; who comes later waits for it."""

    mode = "static batches"

    def __init__(self, library: Library, sampling: SamplingConfig, eos_ids: Collection[int]) -> None:
        self._library, self._eos_ids = library, eos_ids
        self._waiting: list[tuple[str, list[int], int]] = []
        library.model.generation_config = generation_config(sampling, pad_token_id=0)
        torch.manual_seed(library.config.seed)

    def add(self, request_id: str, prompt: list[int], limit: int) -> None:
        self._waiting.append((request_id, prompt, limit))

    def finished(self, timeout_s: float | None) -> list[Completion]:
        """Runs a batch, however long it takes: a static batch admits nobody."""
        size = self._library.config.scheduler.max_num_seqs
        batch, self._waiting = self._waiting[:size], self._waiting[size:]
        completions = [Completion(request_id, [], []) for request_id, _, _ in batch]
        limits = [limit for _, _, limit in batch]
        longest = max(len(prompt) for _, prompt, _ in batch)
        tokens, mask = torch.zeros(2, len(batch), longest, dtype=torch.long)
        for row, (_, prompt, _) in enumerate(batch):
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        model = self._library.model
        with torch.inference_mode():
            model.generate(
                tokens.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max(limits),
                stopping_criteria=StoppingCriteriaList([_Watch(completions, limits, self._eos_ids)]),
            )
        return completions

    def close(self) -> None:
        """Nothing runs between batches."""
