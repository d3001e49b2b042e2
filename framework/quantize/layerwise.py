"""A model of the transformers library that is run one decoder layer at a time: no more weights than a layer's are in memory, and
the hidden states of all calibration samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers

from ..models.parts import Part
from .source import Source


@dataclass
class Statistics:
    """Of the inputs of linear layers over all calibration tokens, in float32.

    gram       [K, K], sum of x^T x
    magnitude  [K], sum of |x|
    """

    gram: torch.Tensor
    magnitude: torch.Tensor
    num_tokens: int = 0

    def add(self, x: torch.Tensor) -> None:
        rows = x.flatten(0, -2)
        self.gram.addmm_(rows.T, rows)
        self.magnitude += rows.abs().sum(0)
        self.num_tokens += len(rows)


class Layer:
    """A decoder layer with its weights, and what goes into it.

    module   of the transformers library, in float32
    linears  the layers to quantize, by the part's name
    """

    def __init__(
        self, module: Any, linears: Mapping[str, Part], prefix: str, hidden: torch.Tensor, keywords: Mapping[str, Any]
    ) -> None:
        self.module, self.linears = module, linears
        self._prefix, self._hidden, self._keywords = prefix, hidden, keywords

    def submodule(self, source: str) -> Any:
        """By its name on disk."""
        return self.module.get_submodule(source.removeprefix(self._prefix))

    def statistics(self, names: Sequence[str]) -> dict[str, Statistics]:
        """Of the inputs of some parts, from one pass over all samples; ``names`` in the order of the data. Raises ValueError where
        they are not finite."""
        found: dict[str, Statistics] = {}
        hooks = []
        for name in names:
            part = self.linears[name]
            assert part.columns is not None
            zeros = partial(torch.zeros, device=self._hidden.device)
            found[name] = Statistics(zeros(part.columns, part.columns), zeros(part.columns))
            recorder = _recorder(found[name], stop=name == names[-1])
            hooks.append(self.submodule(part.sources[0]).register_forward_pre_hook(recorder))
        try:
            for sample in self._hidden.split(1):
                with suppress(_EnoughError):
                    self.module(sample, **self._keywords)
        finally:
            for hook in hooks:
                hook.remove()
        for name, statistics in found.items():
            if not torch.isfinite(statistics.gram).all():
                raise ValueError(f"the inputs of {self.linears[name].sources[0]} are not finite over the calibration text")
        return found

    def advance(self) -> None:
        """Replaces the hidden states of all samples by the layer's outputs."""
        for index, sample in enumerate(self._hidden.split(1)):
            self._hidden[index] = self.module(sample, **self._keywords)[0]


class LayerwiseModel:
    """Runs ``samples`` (int64 [S, T]) through a model layer by layer.

    hidden  float32 [S, T, hidden size] on ``device``, what goes into the next layer
    """

    def __init__(self, source: Source, samples: torch.Tensor, device: torch.device) -> None:
        self._source, self._device = source, device
        config = transformers.AutoConfig.from_pretrained(source.folder).get_text_config()
        with torch.device("meta"):  # attention in plain torch, the only kind that knows all that models ask for
            model: Any = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
        self._inner = model.eval().get_decoder()
        self._layers = list(getattr(self._inner, source.architecture.family.layers))
        self._keywords: list[dict[str, Any]] = []
        self.hidden = self._embed(model, samples)

    def layer(self, index: int) -> Layer:
        """The layer with its weights."""
        module, prefix = self._layers[index], self._source.layer_prefix(index)
        self._load(module, prefix)
        return Layer(module, self._source.layer_linears(index), prefix, self.hidden, self._keywords[index])

    def release(self, index: int) -> None:
        """Lets go of a layer's weights."""
        self._layers[index].to("meta")

    def _embed(self, model: Any, samples: torch.Tensor) -> torch.Tensor:
        """Runs what comes before the layers, in whose places the layers' inputs are recorded."""
        family = self._source.architecture.family
        setattr(self._inner, family.layers, torch.nn.ModuleList(_Recorder(self._keywords) for _ in self._layers))
        for module in self._inner.modules():
            if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
                module.to_empty(device=self._device, recurse=False)
                model._init_weights(module)  # the library's way to compute buffers that no checkpoint holds
        self._load(self._inner, family.base)
        embedded = []
        for sample in samples.to(self._device).split(1):
            self._keywords.clear()  # samples are of one length, so these are the same for all
            self._inner(input_ids=sample, use_cache=False)
            embedded.append(self._keywords[0].pop("hidden"))
        self._inner.to("meta")
        return torch.cat(embedded)

    def _load(self, module: Any, prefix: str) -> None:
        """Reads a module's parameters."""
        state = {
            name: self._source.read_finite(prefix + name, tuple(parameter.shape)).to(self._device, torch.float32)
            for name, parameter in module.named_parameters()
        }
        module.load_state_dict(state, assign=True, strict=False)
        left = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
        assert not left, left


class _Recorder(torch.nn.Module):
    """In a decoder layer's place: keeps what the layer is called with and returns its hidden states."""

    def __init__(self, keywords: list[dict[str, Any]]) -> None:
        super().__init__()
        self._keywords = keywords

    def forward(self, hidden: torch.Tensor, **keywords: Any) -> torch.Tensor:
        if hidden.dim() != 3:  # the first of what a layer returns, where it returns more than hidden states
            raise ValueError("the layers of this model cannot be run one by one: take a scheme that needs no calibration")
        self._keywords.append(keywords | ({} if self._keywords else {"hidden": hidden}))
        return hidden


class _EnoughError(Exception):
    """Ends a pass through a layer whose further results nobody needs."""


def _recorder(statistics: Statistics, stop: bool) -> Callable[[Any, tuple[torch.Tensor]], None]:
    def record(module: Any, args: tuple[torch.Tensor]) -> None:
        statistics.add(args[0])
        if stop:
            raise _EnoughError

    return record
