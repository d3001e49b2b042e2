"""From a model's name to bound layers: reads weights part by part and hands each to its kernel at once."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from ..config import ModelConfig, QuantConfig
from ..plan import BoundKernel, KernelPlan
from .alibi import alibi_slopes
from .architecture import Architecture, Latent, LayerShape, ModelInfo, Moe
from .decoder import Decoder
from .expert_balancer import ExpertBalancer
from .expert_map import ExpertMap
from .layers.attention import Attention, Fused, Separate
from .layers.block import AfterNormBlock, Block, ParallelBlock, PostNormBlock, PreNormBlock
from .layers.expanded_prefill import ExpandedPrefill
from .layers.experts import Exchange, GatheredExperts, Lockstep, Placement, SpreadExperts
from .layers.linear import Float32Linear, GatheredLinear, Linear, ReducedEmbedding, bind_linear, bind_reduce, bind_reduced
from .layers.mla import LatentAttention
from .layers.mlp import PLAIN, Mlp, MoeMlp, SharedExperts
from .layers.paged_attention import AttentionKernels, AttentionShape
from .layers.qk_norm import GatheredWidthNorm, HeadNorm, HeadsNorm, QkNorm, WidthNorm
from .parallel import Parallel
from .parts import Part, all_parts, model_parts, shares
from .pooling.classifiers import HEADS
from .protocol import Model
from .quantization.canonical import dequantized
from .quantization.kv_scales import TENSORS as KV_SCALES
from .quantization.kv_scales import kv_scales
from .quantization.scheme import LoadedPart, Scheme, one_input
from .quantization.table import read_scheme
from .quantization.unquantized import float_linear
from .ranks import layer_shares, rank_architecture
from .rope import Rope
from .weights import Checkpoint, DummyWeights, Weights

_logger = logging.getLogger(__name__)
POST_NORMS = ("attn_post_norm", "mlp_post_norm")
LATENT_EPS = 1e-6
"""Of the norms of latents, whatever the config says of the others."""


@torch.inference_mode()
def load_model(
    config: ModelConfig,
    info: ModelInfo,
    plan: KernelPlan,
    device: torch.device,
    parallel: Parallel,
    block_size: int,
    seed: int = 0,
    cache_dtype: str = "auto",
    quant: QuantConfig | None = None,
) -> Model:
    """Builds a model whose every hot operation is bound through ``plan``.

    block_size, cache_dtype  of the KV cache ("auto": the model's dtype)
    seed                     of dummy weights
    quant                    how to quantize floats; None: not at all
    Raises ValueError for weights that cannot be found or do not fit.
    """
    quant = quant or QuantConfig()
    scheme = read_scheme(info.quantization, quant)
    if info.architecture is None:
        if info.quantization is not None or quant.scheme != "none":
            raise ValueError(
                f"model {config.name!r} cannot have quantized weights: it runs through the transformers library ({info.reason}), "
                "whose layers are loaded as floats; take a checkpoint of floats, with quant.scheme=none"
            )
        from .transformers_model import load_transformers_model  # slow to import, and needed for few models

        return load_transformers_model(config, info, plan, device, block_size, _cache_dtype(info, cache_dtype), seed)
    if config.latent_prefill != "absorbed" and info.architecture.latent is None:
        raise ValueError(
            f"model.latent_prefill={config.latent_prefill} would change nothing: model {config.name!r} has no latent attention"
        )
    info.architecture.cache_specs(_cache_dtype(info, cache_dtype))  # refuses a cache before weights are read
    _check_chunks(info, info.architecture, block_size)
    weights = _open(config, info, info.architecture, device, seed, scheme)
    expand = config.latent_prefill == "expanded"
    return Builder(info, info.architecture, weights, plan, device, parallel, block_size, cache_dtype, quant.fuse, expand).build()


def _check_chunks(info: ModelInfo, a: Architecture, block_size: int) -> None:
    for chunk in {layer.chunk for layer in a.layers if layer.chunk is not None and layer.chunk < info.max_model_len}:
        if chunk % block_size:
            raise ValueError(
                f"model {info.name!r} attends within chunks of {chunk} positions, which are no whole blocks of {block_size}: set "
                f"cache.block_size to a divisor of {chunk}, or model.max_model_len={chunk} or less"
            )


def _cache_dtype(info: ModelInfo, wish: str) -> str:
    """Name of the cache's dtype."""
    return info.dtype if wish == "auto" else wish


def _open(config: ModelConfig, info: ModelInfo, a: Architecture, device: torch.device, seed: int, scheme: Scheme) -> Weights:
    dtype = getattr(torch, info.dtype)
    if config.load_format == "dummy":
        return DummyWeights(device, dtype, scheme, seed, a.family.norm_offset)
    assert info.folder is not None
    checkpoint = Checkpoint(info.folder, a.family, device, dtype, scheme)
    unread = [rf"^{a.family.lm_head}\.weight$"] if a.tied else []
    if info.pooling is not None:
        unread += HEADS  # which are read one by one
    checkpoint.check(all_parts(a), (*a.family.ignored, *KV_SCALES, *unread, *prediction_modules(info)))
    return checkpoint


def prediction_modules(info: ModelInfo) -> list[str]:
    """Regular expressions of the tensors of multi-token prediction modules, which draft for the model but are no part of it."""
    assert info.architecture is not None
    count, extra = len(info.architecture.layers), info.config.get("num_nextn_predict_layers") or 0
    return [r"^mtp\.", r"^model\.mtp_layers\.", *(rf"^model\.layers\.{count + i}\." for i in range(extra))]


class Builder:
    """Binds the layers of one model. Kernels without weights of their own are bound once and shared by all layers."""

    def __init__(
        self,
        info: ModelInfo,
        architecture: Architecture,
        weights: Weights,
        plan: KernelPlan,
        device: torch.device,
        parallel: Parallel,
        block_size: int,
        cache_dtype: str,
        fuse_quantization: bool = True,
        expand_prompts: bool = False,
    ) -> None:
        self.info, self.weights, self.plan, self.device, self.parallel = info, weights, plan, device, parallel
        self.whole, self.a = architecture, rank_architecture(architecture, parallel.sizes)
        self.dtype = getattr(torch, info.dtype)
        self.attention = AttentionKernels(plan, block_size, _cache_dtype(info, cache_dtype), device)
        self._fuse_quantization, self._expands_prompts = fuse_quantization, expand_prompts
        self._expanded: list[BoundKernel] = []
        self._shared: dict[Hashable, BoundKernel] = {}
        self._cos_sin: dict[Rope, torch.Tensor] = {}
        self._spread: dict[int, SpreadExperts] = {}
        self.lockstep = Lockstep() if parallel.ep.size > parallel.tp.size else None

    def build(self) -> Decoder:
        a, pp = self.a, self.parallel.pp
        parts = shares(model_parts(a), model_parts(self.whole), self.parallel.tp)
        mine = pp.part(len(a.layers))
        first, last = mine.start == 0, mine.stop == len(a.layers)
        table = self.weights.weight(parts["embed"]) if first or (last and a.tied and a.has_logits) else None
        # Only where a person looks: on a terminal, and if lines about the start are wanted.
        shown = None if _logger.isEnabledFor(logging.INFO) else True
        bar = tqdm(mine, desc="Loading weights", unit="layer", leave=False, disable=shown)
        layers = [self._block(layer, index) for index, layer in enumerate(bar)]
        lm_head = self._lm_head(parts, table) if last and a.has_logits else None
        return Decoder(
            layers,
            self.dtype,
            self.whole.vocab_size,
            self.info.max_model_len,
            hidden_size=a.hidden_size,
            embed=self._embedding(table, lm_head) if first and table is not None else None,
            embed_scale=None if a.embed_scale is None else float(torch.tensor(a.embed_scale, dtype=self.dtype)),
            embed_norm=self._norm(parts["embed_norm"]) if first and "embed_norm" in parts else None,
            project_in=self._optional(parts, "project_in") if first else None,
            position_embed=self._positions(parts) if first else None,
            token_types=self._table(self.weights.weight(parts["token_types"])) if first and "token_types" in parts else None,
            final_norm=self._norm(parts["final_norm"]) if last and a.final_norm else None,
            project_out=self._optional(parts, "project_out") if last else None,
            lm_head=lm_head,
            logit_scale=a.logit_scale,
            logit_softcap=a.logit_softcap,
            pp=pp,
            lockstep=self.lockstep,
            balancer=self._balancer(),
        )

    def _balancer(self) -> ExpertBalancer | None:
        placed, ep = self.parallel.experts, self.parallel.ep
        return None if placed is None else ExpertBalancer(ep.rank, placed, self._spread, self.plan, self._moved_experts)

    def _block(self, layer: int, index: int) -> Block:
        """layer: counted over the model; index: over the layers of this process."""
        parts, shape = layer_shares(self.a, self.whole, layer, self.parallel), self.a.layers[layer]
        qkv, attn_norm = self._linear_after_norm(parts, "attn_norm", "qkv")
        if self.a.latent is None:
            attention: Attention | LatentAttention = self._attention(parts, shape, index, qkv)
        else:
            attention = self._latent_attention(parts, shape, self.a.latent, index, qkv)
        mlp_norm: BoundKernel | None
        if shape.moe:
            mlp: Mlp | MoeMlp = self._moe(parts, shape.moe, layer)
            mlp_norm = self._norm(parts["mlp_norm"]) if "mlp_norm" in parts else None
        else:
            up, mlp_norm = self._linear_after_norm(parts, "mlp_norm", "gate_up" if self.a.family.gated else "up")
            mlp = self._mlp(parts, up)
        norms = {"attn_norm": attn_norm, "mlp_norm": mlp_norm}
        norms |= {name: self._norm(parts[name]) for name in POST_NORMS if name in parts}
        norms = {name: norm for name, norm in norms.items() if norm is not None}
        kinds: dict[str, Callable[..., Block]] = {"parallel": ParallelBlock, "after": AfterNormBlock, "post": PostNormBlock}
        pre_norm = functools.partial(PreNormBlock, scale=self.a.residual_scale)
        return kinds.get(self.a.residual, pre_norm)(attention, mlp, **norms)

    def _attention(self, parts: dict[str, Part], layer: LayerShape, index: int, qkv: Linear) -> Attention:
        """The fused kernel where the layer rotates and the plan wants it, else its ops one by one."""
        a, heads = self.a, (self.a.num_heads, self.a.num_kv_heads)
        window, alibi = self._outgrown(layer.window), self._alibi(layer)
        sinks = self.weights.weight(parts["sinks"]) if "sinks" in parts else None
        dims = (*heads, a.head_dim, a.head_dim)
        shape = AttentionShape(
            *dims, layer.scale, window, a.attn_softcap, sinks, alibi, causal=a.causal, chunk=self._outgrown(layer.chunk)
        )
        o = self._linear(parts["o"])
        scales = kv_scales(parts["qkv"].sources[0].rpartition(".")[0], self.weights) if self.attention.takes_scales else None
        fused = None
        if layer.rope is not None and scales is None and a.fuses_rotary:
            fused = self._fused(shape, layer.rope, parts)
        if fused is not None:
            paged = self.attention.layer(index, shape, writes=False)
            return Attention(qkv, o, Fused(fused, paged), paged)
        normed = layer.normalizes(a.family)
        q_norm, k_norm = (self._qk_norm(parts[name]) if normed else None for name in ("q_norm", "k_norm"))
        rotary = self._rotary(layer.rope) if layer.rope is not None else None
        paged = self.attention.layer(index, shape, scales=scales)
        split = [*heads, a.num_kv_heads]
        after = a.family.qk_norm_rotated
        separate = Separate(q_norm, k_norm, rotary, paged, split, a.head_dim, a.qkv_clip, after, layer.temperature)
        return Attention(qkv, o, separate, paged)

    def _latent_attention(
        self, parts: dict[str, Part], layer: LayerShape, latent: Latent, index: int, qkv: Linear
    ) -> LatentAttention:
        """Keys' and values' up-projections become linear layers of the heads, on queries and on what attention returns."""
        a, q_norm, q_b = self.a, None, None
        assert layer.rope is not None, "a part of latent keys is rotated"
        shape = AttentionShape(
            a.num_heads, 1, latent.head_dim, latent.kv_rank, layer.scale, self._outgrown(layer.window), a.attn_softcap, aliased=True
        )
        if "q_b" in parts:
            q_b, q_norm = self._linear_after_norm(parts, "q_a_norm", "q_b", LATENT_EPS)
        loaded = self.weights.load(parts["kv_b"])
        weight = torch.cat([dequantized(part).to(self.dtype) for part in loaded])
        keys, values = weight.unflatten(0, (a.num_heads, -1)).split([latent.nope_dim, latent.value_dim], 1)
        absorb, from_latents = (self.plan.bind("head_linear", {"weight": w.contiguous()}) for w in (keys.mT, values))
        kv_norm = self.plan.bind(*self._norm_call(*self._norm_tensors(parts["kv_a_norm"]), LATENT_EPS))
        paged, o = self.attention.layer(index, shape), self._linear(parts["o"])
        rotary, expanded = self._rotary(layer.rope), None
        if self._expands_prompts:
            expand = bind_linear(self.plan, loaded)
            paged.prefill = expanded = ExpandedPrefill(
                latent, a.num_heads, self.attention.block_size, expand, absorb, from_latents, *self._expanded_kernels(shape, latent)
            )
        return LatentAttention(latent, qkv, q_norm, q_b, kv_norm, rotary, absorb, from_latents, o, paged, expanded)

    def _expanded_kernels(self, shape: AttentionShape, latent: Latent) -> list[BoundKernel]:
        """Shared by all layers: the write of expanded keys and values, attention among them and over latents, what joins both."""
        if not self._expanded:
            heads = AttentionShape(shape.num_heads, shape.num_heads, latent.query_dim, latent.value_dim, shape.scale, None, None)
            attention = self.attention.of_prompts(heads, causal=True), self.attention.of_prompts(shape, causal=False)
            self._expanded = [self.attention.workspace_write(heads), *attention, self.plan.bind("merge_attention")]
        return self._expanded

    def _alibi(self, layer: LayerShape) -> tuple[float, ...] | None:
        if self.a.family.positions != "alibi":
            return None
        slopes = torch.tensor(alibi_slopes(self.whole.num_heads))
        if self.a.family.alibi_scaled:
            slopes = slopes.bfloat16().float() * layer.scale
        return tuple(slopes.chunk(self.parallel.tp.size)[self.parallel.tp.rank].tolist())

    def _qk_norm(self, part: Part) -> QkNorm:
        if self.a.family.qk_norm == "width" and part.share is not None:
            whole, ranks = part.share
            gather = self.plan.bind("all_gather", params={"group": ranks.group, "dim": 1})
            copies = ranks.size * part.rows[0] // whole.rows[0]
            return GatheredWidthNorm(self._norm(whole), gather, copies, part.own[0][0])
        weight, bias = self._norm_tensors(part)
        if self.a.family.qk_norm != "heads":
            kind = WidthNorm if self.a.family.qk_norm == "width" else HeadNorm
            return kind(self._bind_norm(weight, bias))
        assert bias is None, "no family has one for each head"
        weight = weight.view(-1, self.a.head_dim)
        return HeadsNorm(self._bind_norm(torch.ones_like(weight[0]), None), weight)

    def _fused(self, shape: AttentionShape, rope: Rope, parts: dict[str, Part]) -> BoundKernel | None:
        a, weights = self.a, {"cos_sin": self._table_of(rope)}
        params: dict[str, Any] = {"num_heads": a.num_heads, "num_kv_heads": a.num_kv_heads, "style": a.family.rotary_style}
        replaced: dict[str, dict[str, Any]] = {"rotary": {**weights, "style": a.family.rotary_style}, "kv_cache_write": {}}
        if a.family.qk_norm:
            q_weight, k_weight = (self.weights.weight(parts[name]) for name in ("q_norm", "k_norm"))
            kind = {"eps": a.norm_eps, "offset": a.family.norm_offset}
            weights |= {"q_weight": q_weight, "k_weight": k_weight}
            params |= kind
            replaced["rms_norm"] = {"weight": q_weight, **kind}
        return self.plan.bind_fused("qk_norm_rotary_kv_write", replaced, weights, params, self.attention.facts(shape))

    def _mlp(self, parts: dict[str, Part], up: Linear, name: str = "down") -> Mlp:
        if not self.a.family.gated:
            return Mlp(up, PLAIN[self.a.activation], self._linear(parts[name]))
        op, params = "silu_and_mul", {}
        if self.a.activation not in ("silu", "swish"):
            op, params = "gelu_and_mul", {"approximate": "none" if self.a.activation == "gelu" else "tanh"}
        down = self.weights.load(parts[name])
        quantizing = self._quantizing(op, {}, params, down)
        linear = self._bind_linear(parts[name], down, quantized_input=quantizing is not None)
        return Mlp(up, quantizing or self._share(op, params), linear)

    def _moe(self, parts: dict[str, Part], moe: Moe, layer: int) -> MoeMlp:
        experts: BoundKernel | SpreadExperts = self._experts(parts, moe)
        if parts["w13"].share is not None:
            assert isinstance(experts, BoundKernel)
            experts = self._spread[layer] = self._spread_experts(experts, moe, layer)
        return MoeMlp(
            self._router(parts["router"]),
            self._route(parts, moe),
            experts,
            self._shared_experts(parts) if moe.shared_size else None,
        )

    def _experts(self, parts: dict[str, Part], moe: Moe) -> BoundKernel:
        part, ep = parts["w13"], self.parallel.ep
        experts = self.weights.load_experts(part, parts["w2"])
        params = {**experts.params, "expert_start": ep.rank * part.num_experts if ep.size > 1 else 0, **moe.variant}
        if part.share is not None:
            params["partial"] = True
        return self.plan.bind(experts.op, experts.tensors, params, {"top_k": moe.top_k}, note=experts.note)

    def _spread_experts(self, experts: BoundKernel, moe: Moe, layer: int) -> SpreadExperts:
        """Also where all ranks have a part of every expert."""
        tp, dp, ep, placed = self.parallel.tp, self.parallel.dp, self.parallel.ep, self.parallel.experts
        found = SpreadExperts(experts, moe.top_k)
        if placed is not None:
            found.placement = Placement(placed.slots[layer], moe.num_experts, ep.size, dp.rank, self.device)
        if self.lockstep is not None:
            num_slots = moe.num_experts if placed is None else len(placed.slots[layer])
            found.exchange = Exchange(self._exchange(experts, num_slots), self.lockstep)
        if tp.size > 1:
            found.reduce = bind_reduce(self.plan, tp.group, self.dtype)
        return found

    def _exchange(self, experts: BoundKernel, num_slots: int) -> GatheredExperts | BoundKernel:
        tp, dp = self.parallel.tp, self.parallel.dp
        gather = {"group": dp.group, "dim": 0}
        scatter = {"group": dp.group, "out_dtype": self.dtype if tp.size == 1 else None}
        if tp.size == 1:  # else ranks of a group have but a part of the slots
            replaced = {"all_gather": gather, "reduce_scatter": scatter}
            params = {"experts": experts, "num_slots": num_slots, **scatter}
            if (fused := self.plan.bind_fused("moe_exchange", replaced, {}, params, {})) is not None:
                return fused
        return GatheredExperts(
            self.plan.bind("all_gather", params=gather), experts, self.plan.bind("reduce_scatter", params=scatter)
        )

    def _moved_experts(self, layer: int, wanted: ExpertMap) -> BoundKernel:
        """Of another map."""
        moe = self.a.layers[layer].moe
        assert moe is not None
        return self._experts(layer_shares(self.a, self.whole, layer, replace(self.parallel, experts=wanted)), moe)

    def _router(self, part: Part) -> Linear:
        if not part.float32:
            return self._linear(part)
        weights = {"weight": self.weights.weight(part), "bias": self.weights.bias(part)}
        return Float32Linear(self.plan.bind("linear", weights, dtype=torch.float32))

    def _route(self, parts: dict[str, Part], moe: Moe) -> BoundKernel:
        facts = {"num_experts": moe.num_experts}
        if not moe.bias:
            return self._share("moe_route", {"bias": None, **moe.rule}, facts)
        return self.plan.bind("moe_route", {"bias": self.weights.weight(parts["route_bias"])}, moe.rule, facts)

    def _shared_experts(self, parts: dict[str, Part]) -> SharedExperts:
        mlp = self._mlp(parts, self._linear(parts["shared_gate_up"]), "shared_down")
        return SharedExperts(mlp, self._optional(parts, "shared_gate"))

    def _linear(self, part: Part) -> Linear:
        return self._bind_linear(part, self.weights.load(part))

    def _bind_linear(self, part: Part, loaded: Sequence[LoadedPart], **given: bool) -> Linear:
        """given: as of ``bind_linear``."""
        if part.share is None or part.columns == part.share[0].columns:
            return bind_linear(self.plan, loaded, **given)
        return bind_reduced(self.plan, loaded, part.share[1].group, self.dtype, **given)

    def _linear_after_norm(
        self, parts: dict[str, Part], norm: str, linear: str, eps: float | None = None
    ) -> tuple[Linear, BoundKernel | None]:
        """A linear layer and the norm before it, if there is one. Nothing else reads its output unless norms are post norms, or
        shared. eps: of the norm, if not the model's."""
        loaded = self.weights.load(parts[linear])
        if norm not in parts:
            return bind_linear(self.plan, loaded), None
        call = self._norm_call(*self._norm_tensors(parts[norm]), eps)
        read_once = self.a.residual != "post" and not self.a.family.shares_norm
        quantizing = self._quantizing(*call, loaded) if read_once else None
        return bind_linear(self.plan, loaded, quantized_input=quantizing is not None), quantizing or self.plan.bind(*call)

    def _quantizing(
        self, op: str, weights: dict[str, torch.Tensor | None], params: dict[str, Any], loaded: tuple[LoadedPart, ...]
    ) -> BoundKernel | None:
        """The op bound so that it quantizes its output for the linear layer that follows; None if that layer does it itself."""
        first = loaded[0].input
        if not self._fuse_quantization or first is None or not one_input(loaded) or first.tensors.get("static_zero") is not None:
            return None
        return self.plan.bind_quantizing(op, weights, params, first.tensors["static_scale"], first.params)

    def _optional(self, parts: dict[str, Part], name: str) -> Linear | None:
        return self._linear(parts[name]) if name in parts else None

    def _norm(self, part: Part) -> BoundKernel:
        return self._bind_norm(*self._norm_tensors(part))

    def _norm_tensors(self, part: Part) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not part.sources:
            weight = torch.full(part.shape, 1 - self.a.family.norm_offset, dtype=self.weights.dtype, device=self.device)
            return weight, None
        return self.weights.weight(part), self.weights.bias(part)

    def _bind_norm(self, weight: torch.Tensor, bias: torch.Tensor | None) -> BoundKernel:
        return self.plan.bind(*self._norm_call(weight, bias))

    def _norm_call(
        self, weight: torch.Tensor, bias: torch.Tensor | None, eps: float | None = None
    ) -> tuple[str, dict[str, torch.Tensor | None], dict[str, Any]]:
        """op, weights and params of a norm."""
        eps = self.a.norm_eps if eps is None else eps
        if self.a.family.norm == "layer":
            return "layer_norm", {"weight": weight + self.a.family.norm_offset, "bias": bias}, {"eps": eps}
        return "rms_norm", {"weight": weight}, {"eps": eps, "offset": self.a.family.norm_offset}

    def _embedding(self, table: torch.Tensor, lm_head: Linear | None) -> BoundKernel | ReducedEmbedding:
        tp = self.parallel.tp
        if tp.size > 1:
            own = self.plan.bind("embedding", {"weight": table}, {"vocab_start": tp.rank * len(table)})
            return ReducedEmbedding(own, bind_reduce(self.plan, tp.group, self.dtype))
        if self.a.tied and isinstance(lm_head, BoundKernel):
            return self.plan.bind_tied(lm_head, table, {"vocab_start": 0})
        return self._table(table)

    def _table(self, weight: torch.Tensor) -> BoundKernel:
        return self.plan.bind("embedding", {"weight": weight}, {"vocab_start": 0})

    def _positions(self, parts: dict[str, Part]) -> BoundKernel | None:
        if "position_embed" not in parts:
            return None
        return self._table(self.weights.weight(parts["position_embed"])[self.a.family.position_offset :])

    def _lm_head(self, parts: dict[str, Part], table: torch.Tensor | None) -> Linear:
        if not self.a.tied:
            own = self._linear(parts["lm_head"])
        else:
            assert table is not None
            bias = self.weights.weight(parts["lm_head_bias"]) if "lm_head_bias" in parts else None
            own = bind_linear(self.plan, [float_linear(table, bias)])
        if self.parallel.tp.size == 1:
            return own
        return GatheredLinear(
            own, self.plan.bind("all_gather", params={"group": self.parallel.tp.group, "dim": 1}), self.whole.vocab_size
        )

    def _rotary(self, rope: Rope) -> BoundKernel:
        if ("rotary", rope) not in self._shared:
            params = {"style": self.a.family.rotary_style}
            self._shared["rotary", rope] = self.plan.bind("rotary", {"cos_sin": self._table_of(rope)}, params)
        return self._shared["rotary", rope]

    def _table_of(self, rope: Rope) -> torch.Tensor:
        if rope not in self._cos_sin:
            self._cos_sin[rope] = cos_sin_table(rope, self.info.max_model_len, self.device)
        return self._cos_sin[rope]

    def _share(self, op: str, params: dict[str, Any] | None = None, facts: dict[str, Any] | None = None) -> BoundKernel:
        key = op, *sorted({**(params or {}), **(facts or {})}.items())
        if key not in self._shared:
            self._shared[key] = self.plan.bind(op, params=params, facts=facts)
        return self._shared[key]

    def _outgrown(self, limit: int | None) -> int | None:
        """A window, or a chunk, that no sequence outgrows is none."""
        return limit if limit is not None and limit < self.info.max_model_len else None


def cos_sin_table(rope: Rope, max_len: int, device: torch.device) -> torch.Tensor:
    """f32 [max_len, rotary_dim]: cos of each pair's angle, then sin; in float32 throughout, as models were trained."""
    frequencies, factor = rope.inverse_frequencies(max_len)
    positions = torch.arange(max_len, dtype=torch.float32, device=device)
    angles = positions[:, None] * torch.tensor(frequencies, dtype=torch.float32, device=device)
    return torch.cat((angles.cos(), angles.sin()), dim=1) * factor
