"""Block diffusion without a cache, and LLaDA2, of which transformers has no class: written from the papers (SDAR, arXiv 2510.06303;
LLaDA2, arXiv 2512.15745). Nothing of the framework is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

Logits = Callable[[list[int], torch.Tensor], torch.Tensor]
"""Tokens [T], and bool [T, T] which of them each sees, -> logits [T, V] of the tokens themselves."""


@dataclass
class Loop:
    """Every pass computes everything. causal_prompt: the whole canvases of a prompt see nothing behind them."""

    logits: Logits
    canvas: int
    mask: int
    threshold: float = 0.95
    max_passes: int = 0
    causal_prompt: bool = False

    def generate(self, prompt: list[int], max_tokens: int, ends: Collection[int] = ()) -> tuple[list[int], list[float], int]:
        """Greedy tokens, the log-probability of each when it was settled, and passes over canvases that were finished."""
        tokens, found, passes = list(prompt), dict[int, float](), 0
        while True:
            begin, known = len(tokens) // self.canvas * self.canvas, len(tokens)
            tokens += [self.mask] * (begin + self.canvas - known)
            while self.mask in tokens[known:]:
                passes += 1
                logits = self.logits(tokens, self._sees(len(prompt), len(tokens)))[known:].double()
                logits[:, self.mask] = -math.inf
                best, choice = logits.log_softmax(-1).max(-1)
                masked = [i for i, token in enumerate(tokens[known:]) if token == self.mask]
                masked.sort(key=lambda i: (-float(best[i]), i))
                least = math.ceil(self.canvas / (self.max_passes or self.canvas))
                for rank, i in enumerate(masked):
                    if rank < least or float(best[i].exp()) > self.threshold:
                        tokens[known + i], found[known + i] = int(choice[i]), float(best[i])
            for place in range(known, len(tokens)):
                if tokens[place] in ends or place + 1 - len(prompt) == max_tokens:
                    answer = tokens[len(prompt) : place + 1]
                    return answer, [found[len(prompt) + i] for i in range(len(answer))], passes

    def _sees(self, num_prompt: int, length: int) -> torch.Tensor:
        places = torch.arange(length)
        reach = places // self.canvas * self.canvas + self.canvas
        if self.causal_prompt:
            reach = torch.where(places < num_prompt // self.canvas * self.canvas, places + 1, reach)
        return places < reach[:, None]


def of_library(model: Any) -> Logits:
    """A model of transformers, handed a mask of its own."""

    def logits(tokens: list[int], sees: torch.Tensor) -> torch.Tensor:
        hidden = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
        with torch.inference_mode():
            found: torch.Tensor = model(torch.tensor([tokens]), attention_mask=hidden[None, None], use_cache=False).logits[0]
        return found.clone()

    return logits


class LLaDA2:
    """weights by the checkpoint's names, float32."""

    def __init__(self, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        self.config, self.weights = SimpleNamespace(**config), weights

    def __call__(self, tokens: list[int], sees: torch.Tensor) -> torch.Tensor:
        c, w = self.config, self.weights
        x = w["model.word_embeddings.weight"][tokens]
        for layer in range(c.num_hidden_layers):
            at = f"model.layers.{layer}."
            x = x + self._attention(self._rms(x, w[at + "input_layernorm.weight"]), at + "attention.", sees)
            h = self._rms(x, w[at + "post_attention_layernorm.weight"])
            x = x + (self._mlp(h, at + "mlp.") if layer < c.first_k_dense_replace else self._experts(h, at + "mlp."))
        return self._rms(x, w["model.norm.weight"]) @ w["lm_head.weight"].T

    def _attention(self, h: torch.Tensor, at: str, sees: torch.Tensor) -> torch.Tensor:
        c, w = self.config, self.weights
        heads = (h @ w[at + "query_key_value.weight"].T).view(len(h), -1, c.head_dim)
        q, k, v = heads.split([c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads], 1)
        q = self._rotated(self._rms(q, w[at + "query_layernorm.weight"]))
        k = self._rotated(self._rms(k, w[at + "key_layernorm.weight"]))
        k, v = (part.repeat_interleave(c.num_attention_heads // c.num_key_value_heads, 1) for part in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / c.head_dim**0.5
        weights = scores.masked_fill(~sees, -math.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, v).flatten(1) @ w[at + "dense.weight"].T

    def _rotated(self, x: torch.Tensor) -> torch.Tensor:
        """Only the first elements of a head turn."""
        c = self.config
        half = int(c.head_dim * c.partial_rotary_factor) // 2
        angles = torch.outer(torch.arange(float(len(x))), c.rope_theta ** (-torch.arange(half) / half))
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)

    def _experts(self, h: torch.Tensor, at: str) -> torch.Tensor:
        """The best of the best groups; a group is as good as its two best experts."""
        c, w = self.config, self.weights
        scores = (h @ w[at + "gate.weight"].T).sigmoid()
        choice = (scores + w[at + "gate.expert_bias"]).view(len(h), c.n_group, -1)
        groups = choice.topk(2, -1).values.sum(-1).topk(c.topk_group, -1).indices
        allowed = torch.zeros(len(h), c.n_group, dtype=torch.bool).scatter_(1, groups, True)
        experts = choice.masked_fill(~allowed[..., None], -math.inf).flatten(1).topk(c.num_experts_per_tok, -1).indices
        weights = scores.gather(1, experts)
        weights = weights / weights.sum(-1, keepdim=True) * c.routed_scaling_factor
        rows = [
            sum(weight * self._mlp(row, f"{at}experts.{expert}.") for expert, weight in zip(chosen.tolist(), of_row))
            for row, chosen, of_row in zip(h, experts, weights)
        ]
        return torch.stack(rows) + self._mlp(h, at + "shared_experts.")

    def _mlp(self, h: torch.Tensor, at: str) -> torch.Tensor:
        gate, up, down = (self.weights[f"{at}{name}_proj.weight"] for name in ("gate", "up", "down"))
        return (torch.nn.functional.silu(h @ gate.T) * (h @ up.T)) @ down.T

    def _rms(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.config.rms_norm_eps).rsqrt() * weight
