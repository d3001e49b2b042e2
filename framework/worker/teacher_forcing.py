"""Models fed with given tokens instead of their own: the logits after each, and how those of two models differ.

The engine's outputs hold no logits. Here they stay on the device too, one chunk of each model at a time; what leaves is a few
numbers per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from tqdm import tqdm

from ..config import EngineConfig
from ..engine.step import NewRequest, StepInput
from ..models.read import ModelInfo
from ..sampling_params import SamplingParams
from .devices import Device
from .local_executor import LocalExecutor

MAX_COMPARED = 1 << 24
"""Logits that are compared at once: each takes some float64 numbers."""


@dataclass(frozen=True)
class TokenScores:
    """What two models say of known tokens.

    kl             KL divergence of the candidate's next-token distribution from the baseline's, in nats: 0 = the same
    nats           -log probability of the token under the candidate
    baseline_nats  the same under the baseline
    agrees         both models hold the same token most likely
    All of one shape; float64, agrees bool.
    """

    kl: np.ndarray
    nats: np.ndarray
    baseline_nats: np.ndarray
    agrees: np.ndarray


class TeacherForcing(LocalExecutor):
    """The local executor of a configuration, with a seat per window and blocks for all of them. Everything else is the engine's:
    plan, model, paged caches, runner, and recordings of steps of one token."""

    def __init__(self, config: EngineConfig, model: ModelInfo, window_tokens: int, chunk_tokens: int, num_rows: int = 1) -> None:
        """num_rows: windows side by side in a step; chunk_tokens: of each."""
        model.check_generates("teacher forcing")
        if model.encoding is not None and model.encoding.max_images is None:
            raise ValueError(
                f"teacher forcing is for models that read tokens alone, and {model.name!r} has an encoder that would read nothing: "
                "choose another model"
            )
        if window_tokens > model.max_model_len:
            raise ValueError(f"window_tokens={window_tokens} is more than the {model.max_model_len} positions of {model.name!r}")
        self._blocks_per_window = -(-window_tokens // config.cache.block_size)
        self._chunk_tokens = chunk_tokens
        graphs = replace(config.graphs, enabled=config.graphs.enabled and chunk_tokens == 1)
        scheduler = replace(config.scheduler, max_num_seqs=num_rows)
        super().__init__(replace(config, scheduler=scheduler, graphs=graphs), model)

    def _fit_blocks(self, config: EngineConfig, device: Device) -> int:
        """Block 0 is the null block."""
        return 1 + len(self.groups) * config.scheduler.max_num_seqs * self._blocks_per_window

    def logits(self, windows: np.ndarray) -> Iterator[torch.Tensor]:
        """windows: token ids int64 [R, W] -> for each chunk of t tokens logits [R, t, V] of what follows them, in the model's
        dtype, valid until the next chunk."""
        num_rows, length = windows.shape
        seats = list(range(num_rows))
        new = [self._request(seat, tokens) for seat, tokens in enumerate(windows.tolist())]
        for start in range(0, length, self._chunk_tokens):
            count = min(self._chunk_tokens, length - start)
            step = StepInput(start, seats, [count] * num_rows, [1] * num_rows, new if start == 0 else [])
            yield self._runner.token_logits(step).unflatten(0, (num_rows, count))

    def _request(self, seat: int, tokens: list[int]) -> NewRequest:
        size = self._blocks_per_window
        first = [1 + (seat * len(self.groups) + group) * size for group in range(len(self.groups))]
        blocks = [list(range(block, block + size)) for block in first]
        return NewRequest(seat, str(seat), tokens, len(tokens), 0, blocks, SamplingParams())


@torch.inference_mode()
def score(candidate: TeacherForcing, baseline: TeacherForcing, windows: np.ndarray, num_rows: int = 1) -> TokenScores:
    """Scores every token of ``windows`` (int64 [N, W]) but the first of each: arrays [N, W - 1]. Both models see the same chunks,
    ``num_rows`` windows at a time.

    Raises ValueError for models of different vocabularies."""
    if candidate.vocab_size != baseline.vocab_size:
        raise ValueError(
            f"a model of {candidate.vocab_size} tokens cannot be compared with a baseline of {baseline.vocab_size}: the baseline "
            "must be the model that the other was made from"
        )
    rows = []
    for start in tqdm(range(0, len(windows), num_rows), unit="step", disable=None):
        batch = windows[start : start + num_rows]
        chunks, done = [], 0
        for logits, expected in zip(candidate.logits(batch), baseline.logits(batch), strict=True):
            targets = torch.from_numpy(batch[:, done + 1 : done + 1 + logits.shape[1]]).to(logits.device)
            done += logits.shape[1]
            chunks.append(_compare(logits[:, : targets.shape[1]], expected[:, : targets.shape[1]], targets))
        rows.append([torch.cat(parts, 1) for parts in zip(*chunks)])
    scores = [torch.cat(parts).cpu().numpy() for parts in zip(*rows)]
    return TokenScores(**dict(zip((f.name for f in fields(TokenScores)), scores, strict=True)))


def _compare(logits: torch.Tensor, expected: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """logits, expected [R, t, V], targets int64 [R, t] -> the fields of TokenScores [R, t]."""
    size = max(1, MAX_COMPARED // logits.shape[-1])
    flat = zip(*(tensor.flatten(0, 1).split(size) for tensor in (logits, expected, targets.unsqueeze(-1))))
    parts = []
    for candidate, baseline, target in flat:
        q, p = candidate.double().log_softmax(-1), baseline.double().log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1)
        nats, baseline_nats = (-x.gather(-1, target).squeeze(-1) for x in (q, p))
        parts.append((kl, nats, baseline_nats, q.argmax(-1) == p.argmax(-1)))
    return [torch.cat(part).view(targets.shape) for part in zip(*parts)]
