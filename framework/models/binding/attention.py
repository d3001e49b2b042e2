"""Attention of a layer, bound: over heads, or over latents."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch

from ...plan import BoundKernel
from ..alibi import alibi_slopes
from ..architecture import Buckets, Latent, LayerShape
from ..layers.angles import MixedAngles
from ..layers.attention import Attention, CrossAttention, Fused, Separate
from ..layers.expanded_prefill import ExpandedPrefill
from ..layers.linear import Linear, bind_linear
from ..layers.mla import LatentAttention
from ..layers.paged_attention import AttentionKernels, AttentionShape
from ..layers.qk_norm import GatheredWidthNorm, HeadNorm, HeadsNorm, QkNorm, WidthNorm
from ..parts import CROSS_NORMS, Part, model_parts
from ..quantization.canonical import dequantized
from ..quantization.kv_scales import kv_scales
from ..rope import Rope
from .layer import LayerBinder

LATENT_EPS = 1e-6
"""Of the norms of latents, whatever the config says of the others."""


class AttentionBinder:
    """Binds the attention of every layer; the tables of angles, and what rotates by them, are shared."""

    def __init__(self, binder: LayerBinder) -> None:
        self._binder: LayerBinder = weakref.proxy(binder)  # which holds this one: in a circle all kernels would outlive their model
        self._kernels = AttentionKernels(binder.plan, binder.block_size, binder.cache_dtype, binder.device)
        self._expanded: list[BoundKernel] = []
        self._rotaries: dict[Rope, BoundKernel] = {}
        self._cos_sin: dict[Rope, torch.Tensor] = {}
        self._position_bias = self._read_position_bias()

    def over_heads(self, parts: dict[str, Part], layer: LayerShape, index: int, qkv: Linear) -> Attention:
        """The fused kernel where the layer rotates and the plan wants it, else its ops one by one."""
        a, heads = self._binder.a, (self._binder.a.num_heads, self._binder.a.num_kv_heads)
        window, alibi = self._binder.outgrown(layer.window), self._alibi()
        sinks = self._binder.weights.weight(parts["sinks"]) if "sinks" in parts else None
        dims = (*heads, a.head_dim, a.head_dim)
        rounded = layer.scale if alibi is not None and a.family.alibi_scaled else None
        chunk = self._binder.outgrown(layer.chunk)
        shape = AttentionShape(
            *dims,
            layer.scale,
            window,
            a.attn_softcap,
            sinks,
            alibi,
            causal=a.causal and a.diffusion is None,  # its rows are cut at canvases
            chunk=chunk,
            alibi_scale=rounded,
            position_bias=self._position_bias,
        )
        o = self._binder.with_expert(parts, "o", self._binder.linear(parts["o"]))
        gated = a.head_dim if a.family.gated_attention else None
        scales = kv_scales(parts["qkv"].sources[0].rpartition(".")[0], self._binder.weights) if self._kernels.takes_scales else None
        fused = None
        if layer.rope is not None and scales is None and a.fuses_rotary:
            fused = self._fused(shape, layer.rope, parts)
        if fused is not None:
            paged = self._kernels.layer(index, shape, writes=False, whole=self._whole)
            return Attention(qkv, o, Fused(fused, paged), paged, gated)
        normed = layer.normalizes(a.family)
        q_norm, k_norm = (self._qk_norm(parts[name]) if normed else None for name in ("q_norm", "k_norm"))
        rotary = self._rotary(layer.rope) if layer.rope is not None else None
        paged = self._kernels.layer(index, shape, scales=scales, whole=self._whole)
        split = [*heads, a.num_kv_heads]
        after = a.family.qk_norm_rotated
        separate = Separate(q_norm, k_norm, rotary, paged, split, a.head_dim, a.qkv_clip, after, layer.temperature)
        return Attention(qkv, o, separate, paged, gated)

    def over_encoded(self, parts: dict[str, Part], layer: LayerShape, index: int) -> CrossAttention:
        """index: of the layer, or behind all where it has attention of its own."""
        a = self._binder.a
        dims = (a.num_heads, a.num_kv_heads, a.head_dim, a.head_dim)
        shape = AttentionShape(*dims, layer.scale, None, a.attn_softcap, causal=False, cross=True)
        q, kv, o = (self._binder.linear(parts[name]) for name in ("cross_q", "cross_kv", "cross_o"))
        norms = (HeadNorm(self._binder.norm(parts[name])) if name in parts else None for name in CROSS_NORMS)
        return CrossAttention(q, kv, o, self._kernels.layer(index, shape), *norms)

    def over_latents(self, parts: dict[str, Part], layer: LayerShape, latent: Latent, index: int, qkv: Linear) -> LatentAttention:
        """Keys' and values' up-projections become linear layers of the heads, on queries and on what attention returns."""
        a, q_norm, q_b = self._binder.a, None, None
        window = self._binder.outgrown(layer.window)
        assert layer.rope is not None, "a part of latent keys is rotated"
        shape = AttentionShape(a.num_heads, 1, latent.head_dim, latent.kv_rank, layer.scale, window, a.attn_softcap, aliased=True)
        if "q_b" in parts:
            q_b, q_norm = self._binder.linear_after_norm(parts, "q_a_norm", "q_b", LATENT_EPS)
        loaded = self._binder.weights.load(parts["kv_b"])
        weight = torch.cat([dequantized(part).to(self._binder.dtype) for part in loaded])
        keys, values = weight.unflatten(0, (a.num_heads, -1)).split([latent.nope_dim, latent.value_dim], 1)
        absorb, from_latents = (self._binder.plan.bind("head_linear", {"weight": w.contiguous()}) for w in (keys.mT, values))
        kv_norm = self._binder.plan.bind(*self._binder.norm_call(*self._binder.norm_tensors(parts["kv_a_norm"]), LATENT_EPS))
        paged, o = self._kernels.layer(index, shape), self._binder.linear(parts["o"])
        rotary, expanded = self._rotary(layer.rope), None
        if self._binder.expands_prompts:
            expand = bind_linear(self._binder.plan, loaded)
            paged.prefill = expanded = ExpandedPrefill(
                latent, a.num_heads, self._binder.block_size, expand, absorb, from_latents, *self._expanded_kernels(shape, latent)
            )
        return LatentAttention(latent, qkv, q_norm, q_b, kv_norm, rotary, absorb, from_latents, o, paged, expanded)

    def _expanded_kernels(self, shape: AttentionShape, latent: Latent) -> list[BoundKernel]:
        """Shared by all layers: the write of expanded keys and values, attention among them and over latents, what joins both."""
        if not self._expanded:
            heads = AttentionShape(shape.num_heads, shape.num_heads, latent.query_dim, latent.value_dim, shape.scale, None, None)
            attention = (
                self._kernels.of_prompts(heads, causal=True, return_lse=True),
                self._kernels.of_prompts(shape, causal=False, return_lse=True),
            )
            self._expanded = [self._kernels.workspace_write(heads), *attention, self._binder.plan.bind("merge_attention")]
        return self._expanded

    @property
    def _whole(self) -> bool:
        """Whether tokens of images see each other."""
        vision = self._binder.info.vision
        return vision is not None and vision.whole and self._binder.image_tokens > 0

    def _read_position_bias(self) -> torch.Tensor | None:
        """f32 [heads, distances], shared by all layers."""
        if (buckets := self._binder.a.buckets) is None:
            return None
        learned = self._binder.weights.weight(model_parts(self._binder.a)["position_bias"])
        return learned[distance_buckets(buckets).to(learned.device)].T.contiguous()

    def _alibi(self) -> tuple[float, ...] | None:
        if self._binder.a.family.positions != "alibi":
            return None
        slopes = torch.tensor(alibi_slopes(self._binder.whole.num_heads))
        if self._binder.a.family.alibi_scaled:
            slopes = slopes.bfloat16().float()
        return tuple(slopes.chunk(self._binder.parallel.tp.size)[self._binder.parallel.tp.rank].tolist())

    def _qk_norm(self, part: Part) -> QkNorm:
        if self._binder.a.family.qk_norm == "width" and part.share is not None:
            whole, ranks = part.share
            gather = self._binder.plan.bind("all_gather", params={"group": ranks.group, "dim": 1})
            copies = ranks.size * part.rows[0] // whole.rows[0]
            return GatheredWidthNorm(self._binder.norm(whole), gather, copies, part.own[0][0])
        weight, bias = self._binder.norm_tensors(part)
        if self._binder.a.family.qk_norm != "heads":
            kind = WidthNorm if self._binder.a.family.qk_norm == "width" else HeadNorm
            return kind(self._binder.bind_norm(weight, bias))
        assert bias is None, "no family has one for each head"
        weight = weight.view(-1, self._binder.a.head_dim)
        return HeadsNorm(self._binder.bind_norm(torch.ones_like(weight[0]), None), weight)

    def _fused(self, shape: AttentionShape, rope: Rope, parts: dict[str, Part]) -> BoundKernel | None:
        a, weights = self._binder.a, {"cos_sin": self._table_of(rope)}
        params: dict[str, Any] = {"num_heads": a.num_heads, "num_kv_heads": a.num_kv_heads, "style": a.family.rotary_style}
        replaced: dict[str, dict[str, Any]] = {"rotary": {**weights, "style": a.family.rotary_style}, "kv_cache_write": {}}
        if a.family.qk_norm:
            q_weight, k_weight = (self._binder.weights.weight(parts[name]) for name in ("q_norm", "k_norm"))
            kind = {"eps": a.norm_eps, "offset": a.family.norm_offset}
            weights |= {"q_weight": q_weight, "k_weight": k_weight}
            params |= kind
            replaced["rms_norm"] = {"weight": q_weight, **kind}
        return self._binder.plan.bind_fused("qk_norm_rotary_kv_write", replaced, weights, params, self._kernels.facts(shape))

    def _rotary(self, rope: Rope) -> BoundKernel:
        if rope not in self._rotaries:
            params = {"style": self._binder.a.family.rotary_style}
            self._rotaries[rope] = self._binder.plan.bind("rotary", {"cos_sin": self._table_of(rope)}, params)
        return self._rotaries[rope]

    @property
    def mixed_angles(self) -> tuple[MixedAngles, ...]:
        """Of the tables that have rows for tokens with three positions."""
        first, device = self._binder.info.max_model_len, self._binder.device
        tables = ((rope, table) for rope, table in self._cos_sin.items() if len(table) > first)
        return tuple(MixedAngles(table, first, torch.tensor(rope.axes, device=device)) for rope, table in tables)

    def _table_of(self, rope: Rope) -> torch.Tensor:
        if rope not in self._cos_sin:
            table = cos_sin_table(rope, self._binder.info.max_model_len, self._binder.device)
            if self._binder.image_tokens and rope.axes:
                table = torch.cat((table, table.new_zeros(self._binder.image_tokens, rope.rotary_dim)))
            self._cos_sin[rope] = table
        return self._cos_sin[rope]


def distance_buckets(buckets: Buckets) -> torch.Tensor:
    """int64 [max_distance + 1]: the bucket of each distance back; those beyond are in the last. In float32, as models were
    trained."""
    distances, exact = torch.arange(buckets.max_distance + 1), buckets.number // 2
    growth = torch.log(distances.float() / exact) / math.log(buckets.max_distance / exact) * (buckets.number - exact)
    return torch.where(distances < exact, distances, (exact + growth.long()).clamp_max(buckets.number - 1))


def cos_sin_table(rope: Rope, max_len: int, device: torch.device) -> torch.Tensor:
    """f32 [max_len, rotary_dim]: cos of each pair's angle, then sin; in float32 throughout, as models were trained."""
    frequencies, factor = rope.inverse_frequencies(max_len)
    positions = torch.arange(max_len, dtype=torch.float32, device=device)
    angles = positions[:, None] * torch.tensor(frequencies, dtype=torch.float32, device=device)
    return torch.cat((angles.cos(), angles.sin()), dim=1) * factor
