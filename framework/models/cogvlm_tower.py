"""The tower of CogVLM: EVA2-CLIP, and a gated projection to the decoder's width."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from .cogvlm import TowerSizes


class CogVlmTower(torch.nn.Module):
    """Modules have the names of the checkpoint."""

    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        wide, text = sizes.hidden_size, sizes.text_size
        self.patch_embedding = _Patches(sizes)
        self.transformer = torch.nn.ModuleDict(
            {"layers": torch.nn.ModuleList(_Layer(sizes) for _ in range(sizes.num_hidden_layers))}
        )
        self.conv = torch.nn.Conv2d(wide, text, 2, 2) if sizes.joins else None
        self.linear_proj = _Projection(text if sizes.joins else wide, text, sizes.text_inner)
        self.boi, self.eoi = (torch.nn.Parameter(torch.zeros(1, 1, text)) for _ in range(2))

    def get_image_features(self, pixel_values: torch.Tensor, return_dict: bool) -> Any:
        """As the library's of this name. pixel_values [1, 3, S, S]. ``pooler_output`` [1, E, H]: of the patches, row by row,
        between an embedding that begins the image and one that ends it."""
        x = self.patch_embedding(pixel_values)
        for layer in self.transformer["layers"].children():
            x = layer(x)
        x = x[:, 1:]
        if self.conv is not None:
            side = int(x.shape[1] ** 0.5)
            x = self.conv(x.mT.unflatten(2, (side, side))).flatten(2).mT
        return SimpleNamespace(pooler_output=torch.cat((self.boi, self.linear_proj(x), self.eoi), 1))


class _Patches(torch.nn.Module):
    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.proj = torch.nn.Conv2d(3, sizes.hidden_size, sizes.patch_size, sizes.patch_size)
        self.cls_embedding = torch.nn.Parameter(torch.zeros(1, sizes.hidden_size))
        self.position_embedding = torch.nn.Embedding((sizes.image_size // sizes.patch_size) ** 2 + 1, sizes.hidden_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.proj(pixels).flatten(2).mT
        return torch.cat((self.cls_embedding[None], patches), 1) + self.position_embedding.weight


class _Layer(torch.nn.Module):
    """Norms come behind attention and MLP, before what they give is added."""

    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        wide, inner = sizes.hidden_size, sizes.intermediate_size
        self._num_heads = sizes.num_heads
        self.input_layernorm, self.post_attention_layernorm = (torch.nn.LayerNorm(wide, sizes.layer_norm_eps) for _ in range(2))
        linear = torch.nn.Linear
        self.attention = torch.nn.ModuleDict({"query_key_value": linear(wide, 3 * wide), "dense": linear(wide, wide)})
        self.mlp = torch.nn.ModuleDict({"fc1": linear(wide, inner), "fc2": linear(inner, wide)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.attention["query_key_value"](x).unflatten(-1, (3, self._num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
        x = x + self.input_layernorm(self.attention["dense"](attended))
        return x + self.post_attention_layernorm(self.mlp["fc2"](gelu(self.mlp["fc1"](x))))


class _Projection(torch.nn.Module):
    def __init__(self, wide: int, text: int, inner: int) -> None:
        super().__init__()
        self.linear_proj, self.norm1 = torch.nn.Linear(wide, text, bias=False), torch.nn.LayerNorm(text)
        self.gate_proj, self.dense_h_to_4h = (torch.nn.Linear(text, inner, bias=False) for _ in range(2))
        self.dense_4h_to_h = torch.nn.Linear(inner, text, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = gelu(self.norm1(self.linear_proj(x)))
        return self.dense_4h_to_h(silu(self.gate_proj(x)) * self.dense_h_to_4h(x))
