"""``sample`` by FlashInfer (package ``flashinfer``, 0.6): top_k_top_p_sampling_from_logits, with its own random numbers.

The library samples by rejection instead of a sort, with one seed per call: the seeds and positions of all rows are mixed into
it, so that a step can be repeated but a token depends on the batch. Temperature, min-p and greedy rows, which its call does not
know, are torch operations around it, as are rows that must give -1. Of equal scores at the border of the top k it keeps all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import NEVER_MET_ITS_LIBRARY, Flags, impl
from ...spec import Spec
from .._shared.flashinfer import unsupported_arch

_MIX = (-7046029254386353131, -4417276706812531889)  # odd numbers with bits all over: products differ in every bit


@impl(
    "sample",
    "flashinfer",
    priority=15,
    requires=("flashinfer",),
    unproven=NEVER_MET_ITS_LIBRARY,
    devices=("cuda",),
    flags=Flags(rng="own"),
)
class FlashInferSample:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        import flashinfer

        self.stream: int = params.get("stream", 0)
        self.draw = flashinfer.sampling.top_k_top_p_sampling_from_logits

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return unsupported_arch(spec)

    def __call__(
        self,
        logits: torch.Tensor,
        row_to_seat: torch.Tensor,
        temperature: torch.Tensor,
        top_k: torch.Tensor,
        top_p: torch.Tensor,
        min_p: torch.Tensor,
        seed: torch.Tensor,
        position: torch.Tensor,
    ) -> torch.Tensor:
        num_rows, vocab_size = logits.shape
        if num_rows == 0:
            return row_to_seat.new_empty(0)
        seat = row_to_seat.clamp_min(0).long()
        greedy = temperature[seat] == 0
        scores = logits.float() / torch.where(greedy, 1.0, temperature[seat])[:, None]
        best, token = scores.max(dim=-1)
        valid = best.isfinite() & (row_to_seat >= 0)
        lowest = torch.where(valid, best + torch.log(min_p[seat]), -torch.inf)[:, None]
        scores = torch.where(valid[:, None], scores.masked_fill(scores < lowest, -torch.inf), 0.0)
        most = torch.where(top_k[seat] > 0, top_k[seat], vocab_size).clamp_max(vocab_size)
        key = (seed[seat] * _MIX[0] + position * _MIX[1]).sum(dim=0, keepdim=True) + self.stream
        drawn = self.draw(
            scores,
            most.int(),
            top_p[seat].float(),
            filter_apply_order="top_k_first",
            deterministic=True,
            seed=key,
            offset=torch.zeros_like(key),
        )
        return torch.where(valid, torch.where(greedy, token, drawn.long()), -1).int()
