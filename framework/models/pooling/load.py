"""From a model's files to bound heads."""

from __future__ import annotations

import torch

from ...config import ModelConfig, QuantConfig
from ...plan import KernelPlan
from ..parts import Part, model_parts
from ..quantization.table import read_scheme
from ..read import ModelInfo
from ..weights import Checkpoint, DummyWeights, Weights
from .heads import ACTIVATIONS, Heads, Layer
from .settings import HeadLayer


@torch.inference_mode()
def load_heads(config: ModelConfig, info: ModelInfo, plan: KernelPlan, device: torch.device, seed: int = 0) -> Heads:
    """The heads of a pooling model. seed: of dummy weights. Raises ValueError for weights that are missing or do not fit."""
    assert info.pooling is not None
    loader = _Loader(config, info, plan.for_dtype(torch.float32), device, seed)
    if info.pooling.answer_tokens:
        return Heads(info.pooling, [loader.answers()])
    layers = info.pooling.classifier or info.pooling.projection
    return Heads(info.pooling, [loader.layer(layer) for layer in layers])


class _Loader:
    def __init__(self, config: ModelConfig, info: ModelInfo, plan: KernelPlan, device: torch.device, seed: int) -> None:
        self._info, self._plan, self._device = info, plan, device
        self._seed = seed if config.load_format == "dummy" else None

    def layer(self, layer: HeadLayer) -> Layer:
        weights = self._weights(layer.folder)
        linear = norm = None
        if layer.module:
            part = Part((layer.module,), (layer.rows,), layer.columns, layer.bias, always_float=True)
            linear = self._plan.bind("linear", {"weight": weights.weight(part), "bias": weights.bias(part)})
        if layer.norm:
            part = Part((layer.norm,), (layer.rows,), bias=layer.norm_bias, always_float=True)
            tensors = {"weight": weights.weight(part), "bias": weights.bias(part)}
            norm = self._plan.bind("layer_norm", tensors, {"eps": layer.norm_eps})
        return Layer(linear, ACTIVATIONS[layer.activation], norm)

    def answers(self) -> Layer:
        """The rows of the logits' projection that belong to the answers; of two, their difference."""
        architecture, pooling = self._info.architecture, self._info.pooling
        assert architecture is not None and pooling is not None
        parts = model_parts(architecture)
        if wrong := [token for token in pooling.answer_tokens if not 0 <= token < architecture.vocab_size]:
            raise ValueError(f"config.json: classifier_from_token holds {wrong[0]}, but ids are 0 to {architecture.vocab_size - 1}")
        name = parts["embed"].sources[0] if architecture.tied else architecture.family.lm_head
        table = self._weights("").weight(Part((name,), (architecture.vocab_size,), architecture.embed_dim, always_float=True))
        rows = table[list(pooling.answer_tokens)]
        if pooling.two_way:
            rows = rows[1:] - rows[:1]
        return Layer(self._plan.bind("linear", {"weight": rows.clone(), "bias": None}), ACTIVATIONS["identity"], None)

    def _weights(self, folder: str) -> Weights:
        """Of the model's files, or those in a folder below."""
        architecture, scheme = self._info.architecture, read_scheme(None, QuantConfig())
        assert architecture is not None
        if self._seed is not None:
            return DummyWeights(self._device, torch.float32, scheme, self._seed, 0.0)
        assert self._info.folder is not None
        return Checkpoint(self._info.folder / folder, architecture.family, self._device, torch.float32, scheme)
