"""Drafting heads as their papers have them, in float64, without a cache: every chain is computed from its beginning."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

HEADS, KV_HEADS, DIM, EPS, THETA = 4, 2, 16, 1e-6, 10000.0
H, INNER, VOCAB, DRAFT_VOCAB, NUM_LAYERS = 64, 96, 211, 50, 6


def layer_shapes(prefix: str, inputs: int = H, bias: bool = False) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama layer's tensors, or, with biases of q, k and v, Qwen2's."""
    rows = {"q": HEADS * DIM, "k": KV_HEADS * DIM, "v": KV_HEADS * DIM}
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}self_attn.{n}_proj.weight": (r, inputs) for n, r in rows.items()}
    shapes |= {f"{prefix}self_attn.{n}_proj.bias": (r,) for n, r in rows.items() if bias}
    shapes |= {f"{prefix}mlp.{n}_proj.weight": (INNER, H) for n in ("gate", "up")}
    shapes |= {f"{prefix}{n}_layernorm.weight": (H,) for n in ("input", "post_attention")}
    return shapes | {f"{prefix}self_attn.o_proj.weight": (H, HEADS * DIM), f"{prefix}mlp.down_proj.weight": (H, INNER)}


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """float32; vectors (norms) about 1, biases and matrices such that nothing vanishes."""
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    norms = {name for name, x in noise.items() if x.dim() == 1 and not name.endswith("bias")}
    return {name: 0.3 * x + (name in norms) for name, x in noise.items()}


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def rotate(x: Tensor) -> Tensor:
    """[n, heads, D], rows at positions 0 to n - 1; the halves of a head are a pair's two sides."""
    frequencies = THETA ** (-torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
    turned = torch.polar(torch.ones(1, dtype=torch.float64), torch.outer(torch.arange(len(x)).double(), frequencies))[:, None]
    pairs = torch.complex(x[..., : DIM // 2], x[..., DIM // 2 :]) * turned
    return torch.cat((pairs.real, pairs.imag), dim=-1)


def layer(t: dict[str, Tensor], prefix: str, x: Tensor, residual: Tensor) -> Tensor:
    """x [n, inputs], normalized; residual [n, H] -> [n, H]."""
    q, k, v = (
        (x @ t[f"{prefix}self_attn.{n}_proj.weight"].T + t.get(f"{prefix}self_attn.{n}_proj.bias", 0)).unflatten(-1, (-1, DIM))
        for n in "qkv"
    )
    k, v = (y.repeat_interleave(HEADS // KV_HEADS, dim=1) for y in (rotate(k), v))
    scores = torch.einsum("qhd,khd->hqk", rotate(q), k) * DIM**-0.5
    seen = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    out = torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v).flatten(1)
    residual = residual + out @ t[f"{prefix}self_attn.o_proj.weight"].T
    x = rms(residual, t[f"{prefix}post_attention_layernorm.weight"])
    gate, up, down = (t[f"{prefix}mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
    return residual + (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


@dataclass
class Plain:
    """A head. tensors float64, by their names on disk; embedding and projection [V, H] of the target."""

    tensors: dict[str, Tensor]
    embedding: Tensor
    projection: Tensor
    flags: dict[str, bool] = field(default_factory=dict)

    def start(self, hidden: Tensor, aux: Tensor) -> Tensor:
        """What the head makes of the target's states before any token comes in."""
        return hidden

    def embed(self, next_ids: Tensor) -> Tensor:
        return self.embedding[next_ids]

    def run(self, embeds: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """[n, H] each -> (what a chain goes on with [n, H], logits [n, Vd])."""
        raise NotImplementedError

    def chain(self, next_ids: Tensor, hidden: Tensor, aux: Tensor, start: int, num_drafts: int) -> list[Tensor]:
        """Logits of each draft of the chain that starts at slot ``start``, where its own drafts are ``next_ids``."""
        embeds, states, out = self.embed(next_ids), self.start(hidden, aux)[: start + 1], []
        for end in range(start + 1, start + 1 + num_drafts):
            state, logits = self.run(embeds[:end], states)
            out.append(logits[-1])
            states = torch.cat((states, state[-1:]))
        return out


class PlainEagle3(Plain):
    prefix = "midlayer."

    def start(self, hidden: Tensor, aux: Tensor) -> Tensor:
        t = self.tensors
        if self.flags.get("norm_before_fc"):
            aux = rms(aux, t["input_norm.weight"])
        if self.flags.get("fc_norm"):
            aux = torch.cat([rms(part, t[f"fc_norm.{i}.weight"]) for i, part in enumerate(aux.chunk(3, -1))], -1)
        return aux @ t["fc.weight"].T

    def run(self, embeds: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        t, p = self.tensors, self.prefix
        normed = rms(states, t[f"{p}hidden_norm.weight"])
        x = torch.cat((rms(embeds, t[f"{p}input_layernorm.weight"]), normed), -1)
        out = layer(t, p, x, normed if self.flags.get("norm_before_residual") else states)
        last = rms(out, t["norm.weight"])
        return last if self.flags.get("norm_output") else out, last @ t["lm_head.weight"].T


class PlainSpeculators(PlainEagle3):
    prefix = "layers.0."


class PlainEagle1(Plain):
    def embed(self, next_ids: Tensor) -> Tensor:
        return self.tensors["embed_tokens.weight"][next_ids]

    def run(self, embeds: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        t = self.tensors
        x = torch.cat((embeds, states), -1) @ t["fc.weight"].T + t["fc.bias"]
        out = layer(t, "layers.0.", x, x)
        return out, out @ self.projection.T


class PlainMtp(Plain):
    """names: of (fc, embedding's norm, state's norm, last norm), and the prefix of its layer."""

    names = ("mtp.fc", "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.norm")
    prefix = "mtp.layers.0."

    def pair(self, embed: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return embed, state

    def run(self, embeds: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        fc, embed_norm, hidden_norm, norm = (self.tensors[f"{name}.weight"] for name in self.names)
        x = torch.cat(self.pair(rms(embeds, embed_norm), rms(states, hidden_norm)), -1) @ fc.T
        out = rms(layer(self.tensors, self.prefix, rms(x, self.tensors[f"{self.prefix}input_layernorm.weight"]), x), norm)
        return out, out @ self.project().T

    def project(self) -> Tensor:
        return self.projection


class PlainDeepSeek(PlainMtp):
    prefix = f"model.layers.{NUM_LAYERS}."
    names = (f"{prefix}eh_proj", f"{prefix}enorm", f"{prefix}hnorm", f"{prefix}shared_head.norm")

    def embed(self, next_ids: Tensor) -> Tensor:
        embeds = self.tensors[f"{self.prefix}embed_tokens.weight"][next_ids]
        return torch.cat((torch.zeros_like(embeds[:1]), embeds[1:]))

    def project(self) -> Tensor:
        return self.tensors[f"{self.prefix}shared_head.head.weight"]


class PlainMimo(PlainMtp):
    prefix = "model.mtp_layers.0."
    names = (f"{prefix}input_proj", f"{prefix}token_layernorm", f"{prefix}hidden_layernorm", f"{prefix}final_layernorm")

    def embed(self, next_ids: Tensor) -> Tensor:
        embeds = self.embedding[next_ids]
        return torch.cat((torch.zeros_like(embeds[:1]), embeds[1:]))

    def pair(self, embed: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return state, embed
