"""AWQ (arXiv 2306.00978): inputs that matter are scaled up before rounding, and what makes these inputs is scaled down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..models.architecture import Architecture
from ..models.parts import Part, layer_parts
from ..models.quantization.rounding import group_length
from .formats import Grid, QuantizedWeight
from .layerwise import Layer, Statistics

NUM_EXPONENTS = 20
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55)
"""Parts of a group's largest magnitude that are tried as its limit."""


class Producer(Protocol):
    """What makes the inputs of linear layers, and can make them smaller."""

    def pooled(self, magnitude: torch.Tensor) -> torch.Tensor:
        """One value per channel that it makes, of values [K] per input."""

    def spread(self, scales: torch.Tensor) -> torch.Tensor:
        """[K] from one value per channel, the inverse of ``pooled``."""

    def divide(self, scales: torch.Tensor) -> torch.Tensor:
        """Divides its channels. Returns by how much they were divided, as rounding made it."""


@dataclass(frozen=True)
class Norm:
    """A norm whose outputs nothing else reads. offset: is added to its weight; dtype: that it will be stored in."""

    module: Any
    offset: float
    dtype: torch.dtype

    def pooled(self, magnitude: torch.Tensor) -> torch.Tensor:
        return magnitude

    def spread(self, scales: torch.Tensor) -> torch.Tensor:
        return scales

    def divide(self, scales: torch.Tensor) -> torch.Tensor:
        before = self.module.weight.data + self.offset
        self.module.weight.data = (before / scales - self.offset).to(self.dtype).float()
        after = self.module.weight.data + self.offset
        scales = torch.where((before != 0) & (after != 0), before / after, scales)
        if getattr(self.module, "bias", None) is not None:
            self.module.bias.data = (self.module.bias.data / scales).to(self.dtype).float()
        return scales


@dataclass(frozen=True)
class LastRows:
    """The last outputs of a linear layer: v, whose heads of ``head_dim`` are each read ``repeats`` times, or the up projection."""

    module: Any
    num_rows: int
    head_dim: int
    repeats: int
    dtype: torch.dtype

    def pooled(self, magnitude: torch.Tensor) -> torch.Tensor:
        return magnitude.view(-1, self.repeats, self.head_dim).mean(1).flatten()

    def spread(self, scales: torch.Tensor) -> torch.Tensor:
        return scales.view(-1, 1, self.head_dim).expand(-1, self.repeats, -1).flatten()

    def divide(self, scales: torch.Tensor) -> torch.Tensor:
        self.module.weight.data[-self.num_rows :] /= scales[:, None]
        if self.module.bias is not None:
            rows = self.module.bias.data[-self.num_rows :]
            rows.copy_((rows / scales).to(self.dtype))
        return scales


def quantize_layer(layer: Layer, a: Architecture, index: int, grid: Grid, dtype: torch.dtype) -> dict[str, QuantizedWeight]:
    """Scales and quantizes the linear layers of decoder layer ``index``. The module gets the dequantized weights, and norms and
    biases as they will be stored in ``dtype``. Returns the weights by their names on disk."""
    parts, found = layer_parts(a, index), {}
    grams = {}
    for name, statistics in layer.statistics(list(layer.linears)).items():
        weights = [layer.submodule(source).weight.data for source in parts[name].sources]
        grams[name] = statistics.gram
        producer = _producer(layer, a, parts, name, dtype)
        if producer is not None:
            best = _best_scales(weights, statistics, producer, grid)
            scales = producer.spread(producer.divide(best))
            grams[name] = statistics.gram / torch.outer(scales, scales)
            for weight in weights:
                weight *= scales
    for name, part in layer.linears.items():
        for source in part.sources:
            weight = layer.submodule(source).weight.data
            found[source] = grid.nearest(_clipped(weight, grams[name], grid))
            weight.copy_(found[source].dequantize())
    return found


def _clipped(weight: torch.Tensor, gram: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The weight, each group of it within the limit that leaves the group's part of the outputs the least squared error."""
    length = group_length(weight.shape[1], grid.group_size)
    groups = weight.unflatten(1, (-1, length))
    blocks = torch.stack([gram[start : start + length, start : start + length] for start in range(0, len(gram), length)])
    largest = groups.abs().amax(-1, keepdim=True)
    least, limits = torch.full_like(largest, torch.inf), largest
    for clip in CLIPS:
        limit = clip * largest
        rounded = grid.nearest(groups.clamp(-limit, limit).flatten(1)).dequantize()
        error = rounded.unflatten(1, (-1, length)) - groups
        loss = (torch.einsum("ngi,gij->ngj", error, blocks) * error).sum(-1, keepdim=True)
        limits = torch.where(loss < least, limit, limits)
        least = torch.minimum(loss, least)
    return groups.clamp(-limits, limits).flatten(1)


def _producer(layer: Layer, a: Architecture, parts: dict[str, Part], name: str, dtype: torch.dtype) -> Producer | None:
    """None where the inputs cannot be scaled: behind an activation, or where something else reads them too."""
    if name == "o" and parts["qkv"].layout == "linear" and a.qkv_clip is None and a.latent is None:
        v = layer.submodule(parts["qkv"].sources[-1])
        return LastRows(v, a.num_kv_heads * a.head_dim, a.head_dim, a.num_heads // a.num_kv_heads, dtype)
    if name == "down" and a.family.gated:
        up = layer.submodule(parts["gate_up"].sources[-1])
        return LastRows(up, a.intermediate_size, a.intermediate_size, 1, dtype)
    norm = {"qkv": "attn_norm", "gate_up": "mlp_norm", "up": "mlp_norm"}.get(name)
    if norm is None or norm not in parts or not parts[norm].sources or a.residual == "post" or a.family.shares_norm:
        return None
    return Norm(layer.submodule(parts[norm].sources[0]), a.family.norm_offset, dtype)


def _best_scales(weights: Sequence[torch.Tensor], statistics: Statistics, producer: Producer, grid: Grid) -> torch.Tensor:
    """Of the powers 0 to 1 of the inputs' average magnitude, that with the least squared error of the outputs; one value per
    channel of the producer."""
    magnitude = producer.pooled(statistics.magnitude / statistics.num_tokens)
    least, best = float("inf"), torch.ones_like(magnitude)
    for step in range(NUM_EXPONENTS):
        scales = magnitude.pow(step / NUM_EXPONENTS).clamp(min=1e-4)
        scales /= (scales.max() * scales.min()).sqrt()
        spread, loss = producer.spread(scales), 0.0
        for weight in weights:
            error = grid.nearest(weight * spread).dequantize() / spread - weight
            loss += float(((error @ statistics.gram) * error).sum())
        if loss < least:
            least, best = loss, scales
    return best
