"""Attention of the torch impls on padded batches, by scaled_dot_product_attention where it knows the features.

Requests are put into buckets, each padded to its longest. A bucket's keys and values are gathered from the paged cache
with one ``index_select`` each, in the activations' dtype: of a quantized cache no more than what is gathered is dequantized.
A padded position repeats the last token of its request, so no unused slot is ever read.
On a CPU the buckets are small and of similar lengths, so that what was gathered is still in the cache when it is used; on
a GPU there is one bucket with the sizes that the host knows, so that nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...attention_meta import AttentionMeta, LayerKV
from ...spec import Spec
from .paged import slot_rows

_KEYS_PER_BUCKET = 2048


class Bucket:
    """B requests, at most Q queries and L keys each; ``whole``: one request, all of whose tokens are queries; ``alone``: one,
    so that nothing is padded.

    reqs      int64 [B]: which requests of the batch, None for all
    num_rows  rows of q

    Attributes: ``length`` int64 [B, 1]; ``position`` int64 [B, Q] of the queries, the last repeated; ``masks`` made so far.
    """

    def __init__(
        self, meta: AttentionMeta, reqs: torch.Tensor | None, num_queries: int, num_keys: int, num_rows: int, whole: bool
    ) -> None:
        first, last, lengths, blocks = meta.cu_q[:-1], meta.cu_q[1:], meta.seq_lens, meta.block_table
        if reqs is not None:
            first, last, lengths, blocks = first[reqs], last[reqs], lengths[reqs], blocks[reqs]
        device = lengths.device
        self.whole, self.alone = whole, reqs is not None and len(reqs) == 1
        self.shape = (lengths.shape[0], num_queries, num_keys)
        self.length = lengths.long()[:, None]
        self._end = last.long()[:, None]
        rows = first.long()[:, None] + torch.arange(num_queries, device=device)
        rows = torch.minimum(rows, self._end - 1).clamp_(0, num_rows - 1)
        self.q_rows = rows.flatten()
        self.position = rows - self._end + self.length
        self._key = torch.arange(num_keys, device=device)
        self._token = torch.minimum(self._key, self.length - 1).clamp_min_(0)
        self._blocks = blocks.long()
        self._slots: dict[tuple[int, int], torch.Tensor] = {}
        self.masks: dict[Any, Any] = {}

    def gather(self, cache: torch.Tensor, scales: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """The requests' keys or values, [B, Hk, L, D] in ``dtype``."""
        if scales is None:
            return self._rows(cache).transpose(1, 2)
        quantized = self._rows(cache.view(torch.uint8)).view(cache.dtype)  # as bytes: torch does not index every float8
        return (quantized.float() * self._rows(scales)[..., None]).to(dtype).transpose(1, 2)

    def _rows(self, cache: torch.Tensor) -> torch.Tensor:
        """Of a cache [pages, page_size, ...], the requests' slots [B, L, ...]."""
        rows, rows_per_page = slot_rows(cache)
        layout = (cache.shape[1], rows_per_page)
        if layout not in self._slots:
            page = self._blocks.gather(1, self._token // layout[0])
            self._slots[layout] = (page * rows_per_page + self._token % layout[0]).flatten()
        found = rows.index_select(0, self._slots[layout])
        return found.view(self.shape[0], self.shape[2], *rows.shape[1:])

    def mask(self, causal: bool, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """0 where a query sees a key, else -inf: [B, Q, L]."""
        if (causal, window) not in self.masks:
            distance = self.distance()
            hidden = (self._key >= self.length)[:, None, :].expand_as(distance)
            if causal:
                hidden = hidden | (distance < 0)
            if window is not None:
                hidden = hidden | (distance.abs() >= window)
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self.masks[causal, window] = mask.masked_fill_(hidden, -torch.inf)
        found: torch.Tensor = self.masks[causal, window]
        return found

    def distance(self) -> torch.Tensor:
        """How far a key lies behind the query, int64 [B, Q, L]."""
        return self.position[:, :, None] - self._key

    def position_bias(self, table: torch.Tensor) -> torch.Tensor:
        """table [Hq, D] -> what it adds: [B, Hq, Q, L]."""
        return table[:, self.distance().clamp_(0, table.shape[1] - 1)].transpose(0, 1)

    def rounded_alibi(self, slopes: torch.Tensor) -> torch.Tensor:
        """slopes [1, Hk, group, 1, 1] -> what ALiBi adds where it is rounded to bfloat16, without its scale: f32
        [B, Hk, group, Q, L]."""
        positions = (self._key, self.position[:, None, None, :, None])
        of_key, of_query = ((slopes * at.bfloat16()).bfloat16().float() for at in positions)
        return of_key - of_query


class PaddedBatch:
    """The buckets of a step, and the way back from their padded rows, laid end to end, to the rows of q.

    ``source`` int64 [T]: the padded row of each row of q; ``dead`` bool [T]: rows that are to be 0, None for none.
    """

    def __init__(self, meta: AttentionMeta, num_rows: int, one_by_one: bool, whole_batch: bool) -> None:
        device = meta.seq_lens.device
        if not whole_batch:
            base = self._small_buckets(meta, num_rows, one_by_one)
        else:
            self.buckets = [Bucket(meta, None, meta.max_q, meta.max_seq_len, num_rows, False)]
            base = torch.arange(meta.num_reqs, device=device) * meta.max_q
        row = torch.arange(num_rows, dtype=torch.int32, device=device)
        req = torch.searchsorted(meta.cu_q[1:], row, right=True).clamp_max_(meta.num_reqs - 1)
        self.source = (base[req] + row - meta.cu_q[req]).clamp_max_(sum(b.shape[0] * b.shape[1] for b in self.buckets) - 1)
        dead = (meta.seq_lens[req] == 0) | (row >= meta.cu_q[-1])
        self.dead = dead if whole_batch or bool(dead.any()) else None

    def _small_buckets(self, meta: AttentionMeta, num_rows: int, one_by_one: bool) -> torch.Tensor:
        """Fills ``buckets``; returns int64 [R], the padded row of each request's first query."""
        lengths, queries = meta.seq_lens.tolist(), meta.cu_q.diff().tolist()
        groups: list[list[int]] = []
        for req in sorted(range(meta.num_reqs), key=lengths.__getitem__, reverse=True):
            longest = lengths[groups[-1][0]] if groups else 0
            if not groups or one_by_one or (len(groups[-1]) + 1) * longest > _KEYS_PER_BUCKET:
                groups.append([])
            groups[-1].append(req)
        base, used = [0] * meta.num_reqs, 0
        self.buckets = []
        for group in groups:
            num_queries, num_keys = max(1, *(queries[r] for r in group)), max(1, lengths[group[0]])
            whole = one_by_one and queries[group[0]] == lengths[group[0]]
            self.buckets.append(Bucket(meta, torch.tensor(group), num_queries, num_keys, num_rows, whole))
            for req in group:
                base[req], used = used, used + num_queries
        return torch.tensor(base)


class PaddedAttention:
    """Both attention ops. A subclass says where its batch of the step is kept, and whether its buckets hold one request:
    right for many queries each, while few queries want many requests per call. ``whole_batch`` (always on a GPU) makes one
    bucket of everything."""

    key: str
    one_by_one: bool

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], whole_batch: bool) -> None:
        given = {**params, **weights}
        self.whole_batch = whole_batch or spec.device != "cpu"
        self.scale = given["scale"]
        self.causal = given.get("causal", True)
        self.window = given.get("window")
        self.softcap = given.get("softcap")
        self.sinks = given.get("sinks")
        self.alibi, self.alibi_scale = given.get("alibi"), given.get("alibi_scale")
        self.position_bias = given.get("position_bias")
        self.return_lse = given.get("return_lse", False)
        self.fused = self.softcap is None and self.sinks is None and not self.return_lse

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        kv_dtype = spec.fact("kv_dtype", spec.dtype)
        if kv_dtype == spec.dtype or kv_dtype.itemsize == 1:
            return []
        return [f"reads a cache of {spec.dtype} or a quantized one, not one of {kv_dtype}"]

    def begin_step(self, meta: AttentionMeta) -> None:
        """Forgets the last step; the first layer that is called lays out the batch for all."""
        meta.workspace.pop(self.key, None)

    def __call__(self, q: torch.Tensor, kv: LayerKV, meta: AttentionMeta) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        num_rows, num_heads, _ = q.shape
        if num_rows == 0 or meta.num_reqs == 0:
            out = q.new_zeros(num_rows, num_heads, kv.v.shape[-1])
            return (out, out.new_full(q.shape[:2], -torch.inf, dtype=torch.float32)) if self.return_lse else out
        batch: PaddedBatch | None = meta.workspace.get(self.key)
        if batch is None:
            batch = meta.workspace[self.key] = PaddedBatch(meta, num_rows, self.one_by_one, self.whole_batch)
        parts = [self._attend(q, kv, bucket) for bucket in batch.buckets]
        out = torch.cat([part[0] for part in parts]).index_select(0, batch.source)
        if batch.dead is not None:
            out.masked_fill_(batch.dead[:, None, None], 0)
        if not self.return_lse:
            return out
        lse = torch.cat([part[1] for part in parts]).index_select(0, batch.source)
        return out, lse if batch.dead is None else lse.masked_fill_(batch.dead[:, None], -torch.inf)

    def _attend(self, q: torch.Tensor, kv: LayerKV, bucket: Bucket) -> tuple[torch.Tensor, torch.Tensor]:
        """Padded outputs [B * Q, Hq, Dv], and their LSE f32 [B * Q, Hq] (empty when it is not asked for)."""
        num_reqs, num_queries, _ = bucket.shape
        keys, values = bucket.gather(kv.k, kv.k_scale, q.dtype), bucket.gather(kv.v, kv.v_scale, q.dtype)
        num_heads, num_kv_heads = q.shape[1], keys.shape[1]
        group = num_heads // num_kv_heads
        queries = q.index_select(0, bucket.q_rows).view(num_reqs, num_queries, num_heads, -1).transpose(1, 2)
        plain = self.fused and self.window is None and self.alibi is self.position_bias is None
        if plain and (bucket.whole if self.causal else bucket.alone):
            out = torch.nn.functional.scaled_dot_product_attention(
                queries, keys, values, is_causal=self.causal, scale=self.scale, enable_gqa=group > 1
            )
            return out.transpose(1, 2).flatten(0, 1), out.new_empty(0)

        # The heads of a group are further queries of their KV head: [B, Hk, group * Q, D].
        queries = queries.reshape(num_reqs, num_kv_heads, group * num_queries, -1)
        bias = bucket.mask(self.causal, self.window, q.dtype)[:, None, None]
        if self.alibi is not None:
            slopes = self.alibi.view(1, num_kv_heads, group, 1, 1)
            if self.alibi_scale is None:
                bias = bias.float() - slopes * bucket.distance()[:, None, None]
            else:
                bias = bias.float() + self.alibi_scale * bucket.rounded_alibi(slopes)
        elif self.position_bias is not None:
            bias = bias.float() + bucket.position_bias(self.position_bias).unflatten(1, (num_kv_heads, group))
        elif num_queries > 1:
            bias = bias.expand(-1, -1, group, -1, -1)
        bias = bias.flatten(2, 3)
        if self.fused:
            out = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=self.scale)
            lse = out.new_empty(0)
        else:
            out, total = self._softmax(queries, keys, values, bias)
            lse = total.view(num_reqs, num_heads, num_queries).transpose(1, 2).flatten(0, 1)
        return out.reshape(num_reqs, num_heads, num_queries, -1).transpose(1, 2).flatten(0, 1), lse

    def _softmax(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention in float32 with a soft cap, sinks and the log-sum-exp, which the fused function does not have."""
        scores = (queries.float() * self.scale) @ keys.float().mT
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores += bias
        total = torch.logsumexp(scores, dim=-1)
        if self.sinks is not None:
            sinks = self.sinks.view(1, total.shape[1], -1, 1)
            total = torch.logaddexp(total.unflatten(-1, (sinks.shape[2], -1)), sinks).flatten(-2)
        weights = torch.exp(scores - total[..., None])
        return (weights @ values.float()).to(queries.dtype), total
