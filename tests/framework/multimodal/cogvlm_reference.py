"""CogVLM written out in float64, after modeling_cogvlm.py and visual.py beside the published weights."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import conv2d, gelu, layer_norm, silu

from .cogvlm import HEADS, HIDDEN, PAD, PATCH, WIDE, Checkpoint


class Reference:
    """Of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.weights, self.side, self.second = checkpoint.weights, checkpoint.side, checkpoint.second
        self.kv_heads, self.theta = checkpoint.kv_heads, 5e5 if checkpoint.second else 1e4

    def _w(self, name: str) -> torch.Tensor:
        return self.weights[name].double()

    def embeddings(self, image: Image.Image) -> torch.Tensor:
        """[18, HIDDEN]."""
        pixels = np.asarray(image.convert("RGB").resize((self.side, self.side), Image.Resampling.BICUBIC)) / 255
        pixels = (pixels - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
        v, p = "model.vision.", "model.vision.patch_embedding."
        x = conv2d(torch.from_numpy(pixels).permute(2, 0, 1)[None], self._w(p + "proj.weight"), self._w(p + "proj.bias"), PATCH)
        x = torch.cat((self._w(p + "cls_embedding"), x[0].flatten(1).T)) + self._w(p + "position_embedding.weight")
        for i in range(2):
            layer = f"{v}transformer.layers.{i}."
            w, b = (lambda name, kind=kind, at=layer: self._w(f"{at}{name}.{kind}") for kind in ("weight", "bias"))
            q, k, values = (
                (x @ w("attention.query_key_value").T + b("attention.query_key_value"))
                .view(-1, 3, 2, WIDE // 2)
                .permute(1, 2, 0, 3)
            )
            attended = ((q @ k.mT / (WIDE // 2) ** 0.5).softmax(-1) @ values).transpose(0, 1).flatten(1)
            attended = attended @ w("attention.dense").T + b("attention.dense")
            x = x + layer_norm(attended, (WIDE,), w("input_layernorm"), b("input_layernorm"), 1e-6)
            inner = gelu(x @ w("mlp.fc1").T + b("mlp.fc1")) @ w("mlp.fc2").T + b("mlp.fc2")
            x = x + layer_norm(inner, (WIDE,), w("post_attention_layernorm"), b("post_attention_layernorm"), 1e-6)
        x, g = x[1:], v + "linear_proj."
        if self.second:
            square = x.T.view(1, WIDE, self.side // PATCH, -1)
            x = conv2d(square, self._w(v + "conv.weight"), self._w(v + "conv.bias"), 2)[0].flatten(1).T
        x = gelu(
            layer_norm(
                x @ self._w(g + "linear_proj.weight").T, (HIDDEN,), self._w(g + "norm1.weight"), self._w(g + "norm1.bias"), 1e-5
            )
        )
        x = silu(x @ self._w(g + "gate_proj.weight").T) * (x @ self._w(g + "dense_h_to_4h.weight").T)
        return torch.cat((self._w(v + "boi")[0], x @ self._w(g + "dense_4h_to_h.weight").T, self._w(v + "eoi")[0]))

    def log_probabilities(self, ids: list[int], image: Image.Image | None) -> torch.Tensor:
        """[T, VOCAB]. The tokens of the image are those of PAD."""
        x, seen = self._w("model.embed_tokens.weight")[ids], torch.tensor(ids) == PAD
        if image is not None:
            x[seen] = self.embeddings(image)
        positions, expert = positions_of(seen.tolist()), torch.cat((seen[:-1] & seen[1:], torch.tensor([False])))
        d = HIDDEN // HEADS
        angles = positions[:, None, None] * self.theta ** -(torch.arange(0, d, 2).double() / d)
        cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()
        for i in range(2):
            at = f"model.layers.{i}."
            y = self._norm(x, at + "input_layernorm.weight")
            qkv = self._by_expert(y, at + "self_attn.{}_expert_query_key_value", expert).view(len(ids), -1, d)
            q, k, v = qkv.split([HEADS, self.kv_heads, self.kv_heads], 1)
            q, k = (z * cos + torch.cat((-z[..., d // 2 :], z[..., : d // 2]), -1) * sin for z in (q, k))
            k, v = (z.repeat_interleave(HEADS // self.kv_heads, 1) for z in (k, v))
            scores = torch.einsum("qhd,khd->hqk", q, k) / d**0.5
            scores = scores.masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf)
            attended = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
            x = x + self._by_expert(attended, at + "self_attn.{}_expert_dense", expert)
            y, mlp = self._norm(x, at + "post_attention_layernorm.weight"), at + "mlp.{}_mlp."
            inner = silu(self._by_expert(y, mlp + "gate_proj", expert)) * self._by_expert(y, mlp + "up_proj", expert)
            x = x + self._by_expert(inner, mlp + "down_proj", expert)
        return (self._norm(x, "model.norm.weight") @ self._w("lm_head.weight").T).log_softmax(-1)

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * self._w(name)

    def _by_expert(self, x: torch.Tensor, name: str, expert: torch.Tensor) -> torch.Tensor:
        vision, language = (x @ self._w(name.format(kind) + ".weight").T for kind in ("vision", "language"))
        if (bias := name.format("vision") + ".bias") in self.weights:
            vision = vision + self._w(bias)
        return torch.where(expert[:, None], vision, language)


def positions_of(seen: list[bool]) -> torch.Tensor:
    """f64 [T]: only from one patch of an image to the next a position does not count on; its ends are as text."""
    ends = [is_seen and not (0 < i < len(seen) - 1 and seen[i - 1] and seen[i + 1]) for i, is_seen in enumerate(seen)]
    patch = [is_seen and not is_end for is_seen, is_end in zip(seen, ends)]
    steps = [0] + [int(not (patch[i] and patch[i - 1])) for i in range(1, len(seen))]
    return torch.tensor(steps).cumsum(0).double()
