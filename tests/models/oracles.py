"""InternLM2 and MiniCPM, of which transformers has no class, written from their papers and configs (InternLM2, arXiv 2403.17297;
MiniCPM, arXiv 2404.06395). Nothing of the framework is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

Weights = dict[str, torch.Tensor]
Projections = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass
class Oracle:
    """Called as a model of transformers is: int64 [1, T] -> logits [1, T, V]. names: ours -> those of the checkpoint."""

    config: Any
    weights: Weights
    names: dict[str, str]
    project: Callable[[torch.Tensor, Weights, str, Any], Projections]

    def __call__(self, ids: torch.Tensor) -> Any:
        c, w = self.config, self.weights
        x = w[self.names["embed"]][ids[0]] * getattr(c, "scale_emb", 1.0)
        depth = getattr(c, "scale_depth", 1.0) / c.num_hidden_layers**0.5 if hasattr(c, "scale_depth") else 1.0
        for layer in range(c.num_hidden_layers):
            at = f"model.layers.{layer}."
            x = x + depth * self._attention(_rms(x, w[at + self.names["attn_norm"]], c), at)
            h = _rms(x, w[at + self.names["mlp_norm"]], c)
            gate, up, down = (w[at + self.names[name]] for name in ("gate", "up", "down"))
            x = x + depth * (torch.nn.functional.silu(h @ gate.T) * (h @ up.T)) @ down.T
        x = _rms(x, w["model.norm.weight"], c)
        width = c.hidden_size / c.dim_model_base if hasattr(c, "dim_model_base") else 1.0
        return SimpleNamespace(logits=(x / width @ w[self.names["logits"]].T)[None])

    def _attention(self, h: torch.Tensor, at: str) -> torch.Tensor:
        c, length = self.config, len(h)
        q, k, v = self.project(h, self.weights, at, c)
        q, k = _rotated(q, c), _rotated(k, c)
        k, v = (heads.repeat_interleave(q.shape[1] // k.shape[1], 1) for heads in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        attended = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        bias = self.weights.get(at + self.names["o"].replace("weight", "bias"), torch.zeros(1))
        return attended @ self.weights[at + self.names["o"]].T + bias


def _rms(x: torch.Tensor, weight: torch.Tensor, c: Any) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + c.rms_norm_eps).rsqrt() * weight


def _rotated(x: torch.Tensor, c: Any) -> torch.Tensor:
    """x [T, H, D]: element i turns with i + D/2, by the position times theta^(-2i/D)."""
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(float(len(x))), c.rope_theta ** (-torch.arange(half) / half))
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat((x[..., :half] * cos - x[..., half:] * sin, x[..., half:] * cos + x[..., :half] * sin), -1)


def internlm2_projections(h: torch.Tensor, w: Weights, at: str, c: Any) -> Projections:
    """One matrix: for every KV head its queries, its key, its value."""
    qkv = h @ w[at + "attention.wqkv.weight"].T + w[at + "attention.wqkv.bias"]
    groups = qkv.view(len(h), c.num_key_value_heads, -1, c.hidden_size // c.num_attention_heads)
    return groups[:, :, :-2].flatten(1, 2), groups[:, :, -2], groups[:, :, -1]


def minicpm_projections(h: torch.Tensor, w: Weights, at: str, c: Any) -> Projections:
    heads = [h @ w[f"{at}self_attn.{name}_proj.weight"].T for name in "qkv"]
    q, k, v = (x.view(len(h), -1, c.hidden_size // c.num_attention_heads) for x in heads)
    return q, k, v
