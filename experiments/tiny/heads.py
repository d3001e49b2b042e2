"""Drafting heads of ``tiny`` in plain torch: Medusa, EAGLE-3 and multi-token prediction.

Parameters have the names of the published checkpoints.  A head drafts by *slots*: slot s holds the
token at s + 1 and predicts the token at s + 2.  In step j (from 0 on) the state of slot s comes
from step j - 1 of slot s - 1, so its draft is the (j + 1)th of the chain that starts at slot s - j.
The tokens are given: under ``match`` a draft counts only while every draft before it was right.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

AUX_LAYERS = (1, 3, 5)
"""EAGLE-3 reads the states before these layers: its usual ones fall on the same few layers of six."""


@dataclass(frozen=True)
class Features:
    """What the frozen trunk makes of tokens [B, L + 1]: of its first L, or, of the embeddings, of its last L.

    next_embeds [B, L, H]; hidden [B, L, H] after the last norm; aux [B, L, 3 H]; logits [B, L, V].
    """

    next_embeds: Tensor
    hidden: Tensor
    aux: Tensor
    logits: Tensor


@torch.no_grad()
def trunk_features(trunk: LlamaForCausalLM, tokens: Tensor) -> Features:
    """tokens [B, L + 1]."""
    states = trunk.model(tokens[:, :-1], output_hidden_states=True).hidden_states
    return Features(
        next_embeds=trunk.model.embed_tokens(tokens[:, 1:]),
        hidden=states[-1],
        aux=torch.cat([states[layer] for layer in AUX_LAYERS], dim=-1),
        logits=trunk.lm_head(states[-1]),
    )


def shift(x: Tensor, slots: int) -> Tensor:
    """[B, L, ...] -> the same, each slot holding what ``slots`` before it held; zeros come in."""
    return torch.cat((torch.zeros_like(x[:, :slots]), x[:, : x.shape[1] - slots]), dim=1)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary embedding, over the steps of a chain."""

    def __init__(self, config: Any, inputs: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.theta = config.rope_parameters["rope_theta"]
        self.q_proj = nn.Linear(inputs, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(inputs, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(inputs, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, earlier: list[tuple[Tensor, Tensor]]) -> Tensor:
        """x [B, L, inputs] of step len(earlier); keys and values of the step are appended to ``earlier``.

        A slot sees the first step's keys up to the slot where its chain starts, and the later steps' of its own chain.
        """
        q, k, v = (proj(x).unflatten(-1, (-1, self.dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self._rotate(q) * self.dim**-0.5, self._rotate(k)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=2) for t in (k, v))
        earlier.append((k, v))
        step = len(earlier) - 1
        first_k, first_v = earlier[0]
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(-step)
        scores = [torch.einsum("bqhd,bkhd->bhqk", q, first_k).masked_fill(~seen, float("-inf"))]
        chain = [tuple(shift(t, step - i) for t in earlier[i]) for i in range(1, step + 1)]
        scores += [torch.einsum("bqhd,bqhd->bhq", q, key).unsqueeze(-1) for key, _ in chain]
        weights = torch.cat(scores, dim=-1).softmax(-1)
        out = torch.einsum("bhqk,bkhd->bqhd", weights[..., : x.shape[1]], first_v)
        for i, (_, value) in enumerate(chain, start=x.shape[1]):
            out = out + weights[..., i].transpose(1, 2).unsqueeze(-1) * value
        return self.o_proj(out.flatten(2))

    def _rotate(self, x: Tensor) -> Tensor:
        """x [B, L, heads, D], rotated by the slot number."""
        half = self.dim // 2
        angles = torch.outer(torch.arange(x.shape[1]), self.theta ** (-torch.arange(half) / half))[:, None]
        a, b = x.split(half, dim=-1)
        return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), dim=-1).to(x.dtype)


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """A Llama layer that starts as the trunk's last.  ``inputs`` is what its attention reads: the last of them as the trunk's
    does, those before them not at all to begin with."""

    def __init__(self, trunk: LlamaForCausalLM, inputs: int) -> None:
        super().__init__()
        config, last = trunk.config, trunk.model.layers[-1].state_dict()
        self.self_attn, self.mlp = Attention(config, inputs), Mlp(config)
        self.input_layernorm, self.post_attention_layernorm = norm(config), norm(config)
        for name in ("q_proj", "k_proj", "v_proj"):
            weight = last[f"self_attn.{name}.weight"]
            last[f"self_attn.{name}.weight"] = F.pad(weight, (inputs - weight.shape[1], 0))
        self.load_state_dict(last)

    def forward(self, x: Tensor, residual: Tensor, earlier: list[tuple[Tensor, Tensor]]) -> Tensor:
        """x [B, L, inputs], already normalized, and what it is added to [B, L, H] -> [B, L, H]."""
        residual = residual + self.self_attn(x, earlier)
        return residual + self.mlp(self.post_attention_layernorm(residual))


def norm(config: Any) -> nn.RMSNorm:
    """RMS norm over the hidden size."""
    return nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


def last_of(inputs: int, outputs: int) -> nn.Linear:
    """A mixer that passes the last ``outputs`` of its inputs on, to begin with."""
    linear = nn.Linear(inputs, outputs, bias=False)
    linear.weight.data.copy_(F.pad(torch.eye(outputs), (inputs - outputs, 0)))
    return linear


class Head(nn.Module):
    """A drafting head.  target_ids int64 [Vd]: the tokens that it can draft."""

    target_ids: Tensor

    def unroll(self, features: Features, num_steps: int) -> list[Tensor]:
        """Logits [B, L, Vd] of each step and slot; those of slots before the step's number mean nothing."""
        raise NotImplementedError


class MedusaHead(Head):
    """arXiv 2401.10774: residual block i guesses the (i + 1)th draft from the trunk's last state; the trunk's own projection."""

    def __init__(self, trunk: LlamaForCausalLM, num_heads: int) -> None:
        super().__init__()
        size = trunk.config.hidden_size
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(size, size, bias=False)])}) for _ in range(num_heads)
        )
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        self.project, self.target_ids = trunk.lm_head.forward, torch.arange(trunk.config.vocab_size)

    def unroll(self, features: Features, num_steps: int) -> list[Tensor]:
        """As ``Head.unroll``."""
        x = features.hidden
        blocks = [block["layers"][0] for block in self.blocks[:num_steps]]  # type: ignore[index]
        return [self.project(shift(x + F.silu(layer(x)), step)) for step, layer in enumerate(blocks)]


class Eagle3Head(Head):
    """arXiv 2503.01840: one layer over (embedding, mixed states of three depths), a vocabulary of its own."""

    def __init__(self, trunk: LlamaForCausalLM, target_ids: Tensor) -> None:
        super().__init__()
        config, size = trunk.config, trunk.config.hidden_size
        self.fc = last_of(len(AUX_LAYERS) * size, size)
        self.midlayer = Layer(trunk, 2 * size)
        self.midlayer.hidden_norm = norm(config)
        self.midlayer.hidden_norm.load_state_dict(self.midlayer.input_layernorm.state_dict())
        self.norm = norm(config)
        self.norm.load_state_dict(trunk.model.norm.state_dict())
        self.lm_head = nn.Linear(size, len(target_ids), bias=False)
        self.lm_head.weight.data.copy_(trunk.lm_head.weight[target_ids])
        self.target_ids = target_ids

    def unroll(self, features: Features, num_steps: int) -> list[Tensor]:
        """As ``Head.unroll``."""
        layer, embeds = self.midlayer, features.next_embeds
        earlier: list[tuple[Tensor, Tensor]] = []
        x, out = self.fc(features.aux), []
        for step in range(num_steps):
            x = shift(x, 1) if step else x
            x = layer(torch.cat((layer.input_layernorm(embeds), layer.hidden_norm(x)), dim=-1), x, earlier)  # type: ignore[operator]
            out.append(self.lm_head(self.norm(x)))
        return out


class MtpHead(Head):
    """Multi-token prediction as in DeepSeek-V3 (arXiv 2412.19437), one module used again for each step; the trunk's projection."""

    def __init__(self, trunk: LlamaForCausalLM) -> None:
        super().__init__()
        config, size = trunk.config, trunk.config.hidden_size
        self.mtp = nn.ModuleDict(
            {
                "fc": last_of(2 * size, size),
                "pre_fc_norm_embedding": norm(config),
                "pre_fc_norm_hidden": norm(config),
                "layers": nn.ModuleList([Layer(trunk, size)]),
                "norm": norm(config),
            }
        )
        self.mtp["norm"].load_state_dict(trunk.model.norm.state_dict())
        self.project, self.target_ids = trunk.lm_head.forward, torch.arange(config.vocab_size)

    def unroll(self, features: Features, num_steps: int) -> list[Tensor]:
        """As ``Head.unroll``."""
        mtp, layer = self.mtp, self.mtp["layers"][0]  # type: ignore[index]
        earlier: list[tuple[Tensor, Tensor]] = []
        x, out = features.hidden, []
        for step in range(num_steps):
            x = shift(x, 1) if step else x
            x = mtp["fc"](torch.cat((mtp["pre_fc_norm_embedding"](features.next_embeds), mtp["pre_fc_norm_hidden"](x)), dim=-1))
            x = mtp["norm"](layer(layer.input_layernorm(x), x, earlier))
            out.append(self.project(x))
        return out
