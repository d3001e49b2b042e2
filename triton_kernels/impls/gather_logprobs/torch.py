"""``gather_logprobs`` in torch calls: the log-sum-exp in f32 after subtracting the maximum, the best tokens by ``topk``.
``topk`` may take any of equal logits, so a CPU fetches one more token and sorts the rows where the last two are equal; on
a GPU, where looking would synchronize with the host, every row is sorted.
"""

from __future__ import annotations

import torch

from ...impl import Flags, impl
from .._shared.row_sum import row_sum


@impl("gather_logprobs", "torch", priority=10, flags=Flags(batch_invariant=True))
def gather_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    scores = logits.float()
    best = scores.amax(dim=-1, keepdim=True)
    best = torch.where(best.isfinite(), best, torch.nan)  # so that a broken row is NaN from here on
    log_sum = row_sum((scores - best).exp_()).log_()[:, None]
    chosen = scores.gather(1, token_ids.long().clamp_min(0)[:, None])
    known = (token_ids >= 0) & best[:, 0].isfinite()
    logprob = torch.where(known, (chosen - best - log_sum)[:, 0], torch.nan)
    rank = torch.where(known, 1 + (scores > chosen).sum(-1), 0)
    values, ids = _top(scores, num_top)
    return logprob, rank.int(), values - best - log_sum, torch.where(best.isfinite(), ids, -1).int()


def _top(scores: torch.Tensor, num_top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best scores [R, num_top] and their tokens, best first, equal ones by token."""
    if scores.device.type != "cpu" or num_top >= scores.shape[1]:
        return _sorted(scores, num_top)
    tokens = scores.topk(num_top + 1, dim=-1, sorted=False).indices.sort(dim=-1).values
    values, index = torch.sort(scores.gather(1, tokens), dim=-1, descending=True, stable=True)
    tokens = tokens.gather(1, index)
    if num_top:
        unclear = (values[:, num_top - 1] == values[:, num_top]).nonzero()[:, 0]
        values[unclear], tokens[unclear] = _sorted(scores[unclear], num_top + 1)
    return values[:, :num_top], tokens[:, :num_top]


def _sorted(scores: torch.Tensor, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    values, tokens = torch.sort(scores, dim=-1, descending=True, stable=True)
    return values[:, :num], tokens[:, :num]
