"""The transformers library in float64, on the folder that the engine loads, and how an engine's output is held against it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from framework.outputs import Logprob

TINY = Path(__file__).resolve().parents[1] / "framework" / "assets" / "tiny"
ERROR = 1e-4
"""How far a logit or a log-probability of the engine (float32) may be from the library's."""

_BATCH = 16


class Library:
    """A model of the library, eager attention, float64."""

    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()

    @torch.inference_mode()
    def logits(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """f64 [length, V] of each sequence of tokens: of the token after each of them. No cache: one pass over all."""
        found: list[np.ndarray] = []
        for start in range(0, len(sequences), _BATCH):
            batch = [torch.tensor(list(sequence)) for sequence in sequences[start : start + _BATCH]]
            padded = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)  # at the end, where no token looks
            rows = self._model(padded, use_cache=False).logits.double().numpy()
            found += [row[: len(sequence)] for row, sequence in zip(rows, batch)]
        return found


def assert_logprobs(entries: Sequence[Mapping[int, Logprob]], logits: np.ndarray, token_ids: Iterable[int], num_top: int) -> None:
    """Each entry tells of its token and of the num_top best (-1: all) what its row of logits [n, V] says; equals may swap ranks."""
    assert len(entries) == len(logits)
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    for entry, expected, token in zip(entries, logprobs, token_ids):
        ranked = np.sort(expected)[::-1]
        assert next(iter(entry)) == token
        wanted = len(expected) if num_top == -1 else num_top
        assert len(entry) in (wanted, wanted + 1) and [e.rank for t, e in entry.items() if t != token] == [
            rank for rank in range(1, wanted + 1) if rank != entry[token].rank
        ]
        for found, logprob in entry.items():
            assert logprob.rank is not None
            assert abs(logprob.logprob - expected[found]) < ERROR
            assert abs(ranked[logprob.rank - 1] - expected[found]) < 2 * ERROR
