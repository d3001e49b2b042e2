"""The decoder of a model, bound: walks its layers, and binds what comes before and after them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from tqdm import tqdm

from ...plan import BoundKernel
from ..architecture import LayerShape
from ..decoder import Decoder
from ..layers.attention import Attention
from ..layers.block import AfterNormBlock, AnyAttention, Block, CrossBlock, MixerBlock, ParallelBlock, PostNormBlock, PreNormBlock
from ..layers.linear import GatheredLinear, Linear, ReducedEmbedding, bind_linear, bind_reduce
from ..layers.mla import LatentAttention
from ..layers.mlp import Mlp, MoeMlp
from ..layers.visual_experts import VisualExpert
from ..lora.layers import AdaptedEmbedding, AdaptedLinear
from ..parts import CROSS_GATES, Part, model_parts, shares
from ..quantization.unquantized import float_linear
from ..ranks import layer_shares
from .attention import AttentionBinder
from .experts import expert_balancer
from .layer import LayerBinder
from .mixers import bind_mixer
from .mlp import bind_mlp, bind_moe

_logger = logging.getLogger(__name__)
POST_NORMS = ("attn_post_norm", "cross_norm", "mlp_post_norm")


class Binder(LayerBinder):
    """Binds all of a model that a rank has."""

    @functools.cached_property
    def attention(self) -> AttentionBinder:
        """Over the cache of all layers."""
        return AttentionBinder(self)

    def build(self) -> Decoder:
        """The decoder of this rank."""
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
            embed=self._embedding(parts["embed"], table, lm_head) if first and table is not None else None,
            embed_scale=None if a.embed_scale is None else float(torch.tensor(a.embed_scale, dtype=self.dtype)),
            embed_norm=self.norm(parts["embed_norm"]) if first and "embed_norm" in parts else None,
            project_in=self.optional(parts, "project_in") if first else None,
            position_embed=self._positions(parts) if first else None,
            token_types=self.table(self.weights.weight(parts["token_types"])) if first and "token_types" in parts else None,
            final_norm=self.norm(parts["final_norm"]) if last and a.final_norm else None,
            project_out=self.optional(parts, "project_out") if last else None,
            lm_head=lm_head,
            logits_bias=self.weights.weight(parts["logits_bias"]).flatten() if last and "logits_bias" in parts else None,
            logit_scale=a.logit_scale,
            logit_softcap=a.logit_softcap,
            pp=pp,
            lora=self.lora,
            lockstep=self.lockstep,
            balancer=expert_balancer(self),
            mixed_angles=self.attention.mixed_angles,
            num_unscored=a.family.num_unscored,
            visual=self.visual,
        )

    def _block(self, layer: int, index: int) -> Block:
        """layer: counted over the model; index: over the layers of this process."""
        parts, shape = layer_shares(self.a, self.whole, layer, self.parallel), self.a.layers[layer]
        attention: AnyAttention
        if shape.cross:
            return self._cross_block(parts, shape, index)
        if shape.mixer is not None:
            attention, attn_norm = bind_mixer(self, parts, shape.mixer, index)
        else:
            qkv, attn_norm = self.linear_after_norm(parts, "attn_norm", "qkv")
            if self.a.latent is None:
                qkv = self.with_expert(parts, "qkv", qkv)
                attention = self.attention.over_heads(parts, shape, index, qkv)
            else:
                attention = self.attention.over_latents(parts, shape, self.a.latent, index, qkv)
        mlp_norm: BoundKernel | None
        if self.a.residual == "single":
            assert attn_norm is not None
            return MixerBlock(attention, attn_norm)
        summed = attention.o if self.a.norms_sums and isinstance(attention, Attention | LatentAttention) else None
        if shape.moe:
            mlp: Mlp | MoeMlp | VisualExpert = bind_moe(self, parts, shape.moe, layer)
            found = self.norm_call(*self.norm_tensors(parts["mlp_norm"])) if "mlp_norm" in parts else None
            mlp_norm = None if found is None else self.norm_of_sum(summed, *found)
        else:
            up, mlp_norm = self.linear_after_norm(parts, "mlp_norm", "gate_up" if self.a.family.gated else "up", summed=summed)
            mlp = bind_mlp(self, parts, up)
            if "vision_gate_up" in parts:
                expert = bind_mlp(self, parts, self.linear(parts["vision_gate_up"]), "vision_down")
                mlp = VisualExpert(mlp, expert, self.visual)
        norms = {"attn_norm": attn_norm, "mlp_norm": mlp_norm}
        norms |= {name: self.norm(parts[name]) for name in POST_NORMS if name in parts}
        cross = {}
        if "cross_q" in parts:
            cross["cross"] = self.attention.over_encoded(parts, shape, len(self.a.layers) + index)
        norms = {name: norm for name, norm in norms.items() if norm is not None}
        kinds: dict[str, Callable[..., Block]] = {"parallel": ParallelBlock, "after": AfterNormBlock, "post": PostNormBlock}
        pre_norm = functools.partial(PreNormBlock, scale=self.a.residual_scale)
        return kinds.get(self.a.residual, pre_norm)(attention, mlp, **norms, **cross)

    def _cross_block(self, parts: dict[str, Part], shape: LayerShape, index: int) -> CrossBlock:
        attention = self.attention.over_encoded(parts, shape, index)
        gates = (self.weights.weight(parts[name]).tanh() for name in CROSS_GATES)
        up, mlp_norm = self.linear_after_norm(parts, "mlp_norm", "gate_up")
        assert mlp_norm is not None
        return CrossBlock(attention, bind_mlp(self, parts, up), self.norm(parts["attn_norm"]), mlp_norm, *gates)

    def _embedding(
        self, part: Part, table: torch.Tensor, lm_head: Linear | None
    ) -> BoundKernel | AdaptedEmbedding | ReducedEmbedding:
        tp, start = self.parallel.tp, self.parallel.tp.rank * len(table)
        logits = lm_head.linear if isinstance(lm_head, AdaptedLinear) else lm_head
        if self.a.tied and isinstance(logits, BoundKernel):
            own = self.plan.bind_tied(logits, table, {"vocab_start": 0})
        else:
            own = self.plan.bind("embedding", {"weight": table}, {"vocab_start": start})
        embedding = own if self.lora is None else self.lora.adapted_embedding(part, own, start)
        return embedding if tp.size == 1 else ReducedEmbedding(embedding, bind_reduce(self.plan, tp.group, self.dtype))

    def _positions(self, parts: dict[str, Part]) -> BoundKernel | None:
        if "position_embed" not in parts:
            return None
        return self.table(self.weights.weight(parts["position_embed"])[self.a.family.position_offset :])

    def _lm_head(self, parts: dict[str, Part], table: torch.Tensor | None) -> Linear:
        if not self.a.tied:
            own = self.linear(parts["lm_head"])
        else:
            assert table is not None
            bias = self.weights.weight(parts["lm_head_bias"]) if "lm_head_bias" in parts else None
            part = replace(parts["embed"], sources=(self.a.family.lm_head,))
            own = self.adapted(part, bind_linear(self.plan, [float_linear(table, bias)]))
        if self.parallel.tp.size == 1:
            return own
        return GatheredLinear(
            own, self.plan.bind("all_gather", params={"group": self.parallel.tp.group, "dim": 1}), self.whole.vocab_size
        )
