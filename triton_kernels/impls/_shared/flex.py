"""What both attention ops share of ``flex_attention``: its masks, its changes of scores, and sinks by the log-sum-exp."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...attention_meta import LayerKV
from ...spec import Spec
from .padded import Bucket, PaddedAttention

_BLOCK = 128  # queries and keys of a block of the mask, flex_attention's default
_COMPILATIONS = 64  # one for each set of features, dtypes, heads, and sizes that are 1; above, an error rather than slow code


def _compiled(attend: Callable[..., Any]) -> Callable[..., Any]:
    compiled = torch.compile(attend, fullgraph=True, dynamic=True)

    def call(*args: Any, **keywords: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=_COMPILATIONS):  # 8 by default, for all uses in the process together
            return compiled(*args, **keywords)

    return call


class FlexAttention(PaddedAttention):
    """Pages are gathered as in ``padded.py``; requests are the batch dimension. Which blocks of keys a block of queries sees
    follows from positions, so that no mask of queries by keys is ever made."""

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], whole_batch: bool) -> None:
        from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

        super().__init__(spec, weights, params, whole_batch)
        # Without the compiler it materializes all scores: right for showing what it computes on a CPU, and no more.
        self.attend: Callable[..., Any] = flex_attention if spec.device == "cpu" else _compiled(flex_attention)
        self.block_mask = BlockMask
        self.extra = AuxRequest(lse=True) if self.return_lse or self.sinks is not None else None

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        rounded = ["its ALiBi is not rounded to bfloat16"] if spec.fact("rounded_alibi") else []
        return [*PaddedAttention.unsupported(spec), *rounded]

    def _attend(self, q: torch.Tensor, kv: LayerKV, bucket: Bucket) -> tuple[torch.Tensor, torch.Tensor]:
        num_reqs, num_queries, _ = bucket.shape
        keys, values = bucket.gather(kv.k, kv.k_scale, q.dtype), bucket.gather(kv.v, kv.v_scale, q.dtype)
        queries = q.index_select(0, bucket.q_rows).view(num_reqs, num_queries, *q.shape[1:]).transpose(1, 2)
        result = self.attend(
            queries,
            keys,
            values,
            score_mod=self._score_mod(bucket),
            block_mask=self._block_mask(bucket),
            scale=self.scale,
            enable_gqa=queries.shape[1] > keys.shape[1],
            return_aux=self.extra,
        )
        if self.extra is None:
            return result.transpose(1, 2).flatten(0, 1), result.new_empty(0)
        out, lse = result[0].transpose(1, 2).flatten(0, 1), result[1].lse.transpose(1, 2).flatten(0, 1)
        if self.sinks is not None:
            out = (out * torch.sigmoid(lse - self.sinks)[..., None]).to(out.dtype)
            lse = torch.logaddexp(lse, self.sinks.expand_as(lse))
        return out, lse

    def _score_mod(self, bucket: Bucket) -> Callable[..., torch.Tensor] | None:
        softcap, alibi, table, position = self.softcap, self.alibi, self.position_bias, bucket.position
        if softcap is None and alibi is None and table is None:
            return None

        def change(score: torch.Tensor, req: torch.Tensor, head: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
            if softcap is not None:
                score = softcap * torch.tanh(score / softcap)
            if table is not None:
                score = score + table[head, (position[req, i] - j).clamp(0, table.shape[1] - 1)]
            return score if alibi is None else score + alibi[head] * (j - position[req, i])

        return change

    def _block_mask(self, bucket: Bucket) -> Any:
        """The step's mask, made once for all layers with the same rule."""
        key = "blocks", self.causal, self.window
        if key not in bucket.masks:
            bucket.masks[key] = self._make_block_mask(bucket)
        return bucket.masks[key]

    def _make_block_mask(self, bucket: Bucket) -> Any:
        _, num_queries, num_keys = bucket.shape
        causal, window, position, length = self.causal, self.window, bucket.position, bucket.length

        def sees(req: torch.Tensor, head: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
            distance = position[req, i] - j
            seen = j < length[req, 0]
            if causal:
                seen = seen & (distance >= 0)
            return seen if window is None else seen & (distance.abs() < window)

        starts = torch.arange(0, num_queries, _BLOCK, device=position.device)
        first = position[:, starts]
        last = position[:, (starts + _BLOCK - 1).clamp_max(num_queries - 1)]
        # Keys [begin, end) are seen by some query of the block, [all_begin, all_end) by all.
        begin, all_begin = torch.zeros_like(first), torch.zeros_like(first)
        if window is not None:
            begin, all_begin = (first - window + 1).clamp_min(0), (last - window + 1).clamp_min(0)
        end, all_end = length.expand_as(first), length.expand_as(first)
        ahead = 1 if causal else window  # how far a query sees, itself included
        if ahead is not None:
            end, all_end = torch.minimum(end, last + ahead), torch.minimum(end, first + ahead)
        low, high = begin // _BLOCK, -(-end.clamp_min(0) // _BLOCK)
        full_low, full_high = -(-all_begin // _BLOCK), all_end.clamp_min(0) // _BLOCK
        full_low = torch.minimum(torch.maximum(full_low, low), high)
        full_high = torch.minimum(torch.maximum(full_high, full_low), high)
        num_full = full_high - full_low
        block = torch.arange(-(-num_keys // _BLOCK), device=position.device)
        partial = low[..., None] + block
        partial = partial + (partial >= full_low[..., None]) * num_full[..., None]
        blocks = [
            (high - low - num_full)[:, None],
            partial.clamp_max(len(block) - 1)[:, None],
            num_full[:, None],
            (full_low[..., None] + block).clamp_max(len(block) - 1)[:, None],
        ]
        return self.block_mask.from_kv_blocks(
            *(tensor.to(torch.int32) for tensor in blocks),
            BLOCK_SIZE=_BLOCK,
            mask_mod=sees,
            seq_lengths=(num_queries, num_keys),
            compute_q_blocks=False,
        )
