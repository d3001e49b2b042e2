"""What every layer is bound with: linear layers, norms and tables, and the kernels that all layers share."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from ...plan import BoundKernel, KernelPlan
from ..architecture import Architecture
from ..layers.experts import Lockstep, SpreadExperts
from ..layers.linear import Linear, ReducedLinear, bind_linear, bind_reduced
from ..layers.visual_experts import VisualExpert, VisualStep
from ..lora.slots import LoraSlots
from ..parallel import Parallel
from ..parts import Part
from ..quantization.scheme import LoadedPart, one_input
from ..ranks import rank_architecture
from ..read import ModelInfo
from ..weights import Weights

REDUCE_NORM = "all_reduce_add_rms_norm"


class LayerBinder:
    """Reads the weights of a model part by part and hands each to its kernel. Kernels without weights of their own are bound once
    and shared by all layers.

    whole, a                 the model, and this rank's share of it
    block_size, cache_dtype  of its cache ("auto" as it is given: the model's dtype)
    expands_prompts          keys and values of whole prompts are computed from their latents
    lora                     what adapters linear layers have slots for; a norm before them quantizes nothing, since adapters read
                             its output, too, and one behind them sums nothing. None: no adapters
    image_tokens             that a step may have; 0: it reads text alone
    spread                   experts that ranks share, by the number of their layer in the model
    visual                   what visual experts look at
    lockstep                 of steps that several schedulers' ranks take together; None: there is one scheduler
    """

    def __init__(
        self,
        info: ModelInfo,
        architecture: Architecture,
        weights: Weights,
        plan: KernelPlan,
        device: torch.device,
        parallel: Parallel,
        block_size: int,
        cache_dtype: str,
        fuse_quantization: bool = True,
        expand_prompts: bool = False,
        lora: LoraSlots | None = None,
        image_tokens: int = 0,
    ) -> None:
        self.info, self.weights, self.plan, self.device, self.parallel = info, weights, plan, device, parallel
        self.whole, self.a = architecture, rank_architecture(architecture, parallel.sizes)
        self.dtype = getattr(torch, info.dtype)
        self.block_size, self.cache_dtype = block_size, info.cache_dtype(cache_dtype)
        self._fuse_quantization, self.expands_prompts, self.lora = fuse_quantization and lora is None, expand_prompts, lora
        self.image_tokens = image_tokens
        self._shared: dict[Hashable, BoundKernel] = {}
        self.spread: dict[int, SpreadExperts] = {}
        self.visual = VisualStep()
        self.lockstep = Lockstep() if parallel.ep.size > parallel.tp.size else None

    def linear(self, part: Part) -> Linear:
        """A linear layer."""
        return self.bind_linear(part, self.weights.load(part))

    def bind_linear(self, part: Part, loaded: Sequence[LoadedPart], **given: bool) -> Linear:
        """A linear layer whose weights are loaded; of a rank's share of its inputs, with the sum over ranks. given: as of
        ``layers.linear.bind_linear``."""
        if part.share is None or part.columns == part.share[0].columns:
            return self.adapted(part, bind_linear(self.plan, loaded, **given))
        group = part.share[1].group
        return self.adapted(part, bind_reduced(self.plan, loaded, group, self.dtype, **given), group)

    def adapted(self, part: Part, linear: Linear, group: Any = None) -> Linear:
        """With slots for adapters, where there are any. group: as of ``LoraSlots.adapted``."""
        return linear if self.lora is None else self.lora.adapted(part, linear, group)

    def linear_after_norm(
        self, parts: dict[str, Part], norm: str, linear: str, eps: float | None = None, summed: Linear | None = None
    ) -> tuple[Linear, BoundKernel | None]:
        """A linear layer and the norm before it, if there is one. Nothing else reads its output unless norms are post norms, or
        shared, or there is a visual expert. eps: of the norm, if not the model's; summed: as of ``norm_of_sum``."""
        loaded = self.weights.load(parts[linear])
        if norm not in parts:
            return self.bind_linear(parts[linear], loaded), None
        call = self.norm_call(*self.norm_tensors(parts[norm]), eps)
        read_once = self.a.residual != "post" and not self.a.family.shares_norm and f"vision_{linear}" not in parts
        quantizing = self.quantizing(*call, loaded) if read_once else None
        bound = self.bind_linear(parts[linear], loaded, quantized_input=quantizing is not None)
        return bound, quantizing or self.norm_of_sum(summed, *call)

    def quantizing(
        self, op: str, weights: dict[str, torch.Tensor | None], params: dict[str, Any], loaded: tuple[LoadedPart, ...]
    ) -> BoundKernel | None:
        """The op bound so that it quantizes its output for the linear layer that follows; None if that layer does it itself."""
        first = loaded[0].input
        if not self._fuse_quantization or first is None or not one_input(loaded) or first.tensors.get("static_zero") is not None:
            return None
        return self.plan.bind_quantizing(op, weights, params, first.tensors["static_scale"], first.params)

    def norm_of_sum(
        self, summed: Linear | None, op: str, weights: dict[str, torch.Tensor | None], params: dict[str, Any]
    ) -> BoundKernel:
        """A norm that adds its input to the residual. summed: the layer whose output it adds, if nothing comes between the two:
        where ranks add that up, one kernel may do both."""
        if isinstance(summed, ReducedLinear) and summed.reduce is not None:
            group, bias = self.parallel.tp.group, {"bias": summed.bias}
            replaced = {"all_reduce": {**bias, "group": group, "out_dtype": self.dtype}, op: {**weights, **params}}
            fused = self.plan.bind_fused(REDUCE_NORM, replaced, {**weights, **bias}, {**params, "group": group}, {})
            if fused is not None:
                self.plan.drop(summed.reduce)
                summed.reduce = None
                return fused
        return self.plan.bind(op, weights, params)

    def with_expert(self, parts: dict[str, Part], name: str, linear: Linear) -> Linear:
        """The linear layer, beside its visual expert where it has one."""
        if (expert := f"vision_{name}") not in parts:
            return linear
        return VisualExpert(linear, self.linear(parts[expert]), self.visual)

    def optional(self, parts: dict[str, Part], name: str) -> Linear | None:
        """A linear layer that not every model has."""
        return self.linear(parts[name]) if name in parts else None

    def norm(self, part: Part) -> BoundKernel:
        """A norm."""
        return self.bind_norm(*self.norm_tensors(part))

    def norm_tensors(self, part: Part) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of a norm; of one without tensors, a weight that changes nothing."""
        if not part.sources:
            weight = torch.full(part.shape, 1 - self.a.family.norm_offset, dtype=self.weights.dtype, device=self.device)
            return weight, None
        return self.weights.weight(part), self.weights.bias(part)

    def bind_norm(self, weight: torch.Tensor, bias: torch.Tensor | None) -> BoundKernel:
        """A norm whose tensors are loaded."""
        return self.plan.bind(*self.norm_call(weight, bias))

    def norm_call(
        self, weight: torch.Tensor, bias: torch.Tensor | None, eps: float | None = None
    ) -> tuple[str, dict[str, torch.Tensor | None], dict[str, Any]]:
        """op, weights and params of a norm."""
        eps = self.a.norm_eps if eps is None else eps
        if self.a.family.norm == "layer":
            return "layer_norm", {"weight": weight + self.a.family.norm_offset, "bias": bias}, {"eps": eps}
        return "rms_norm", {"weight": weight}, {"eps": eps, "offset": self.a.family.norm_offset}

    def table(self, weight: torch.Tensor) -> BoundKernel:
        """An embedding of the whole table."""
        return self.plan.bind("embedding", {"weight": weight}, {"vocab_start": 0})

    def share(self, op: str, params: dict[str, Any] | None = None, facts: dict[str, Any] | None = None) -> BoundKernel:
        """A kernel without weights, one for all layers that call it alike."""
        key = op, *sorted({**(params or {}), **(facts or {})}.items())
        if key not in self._shared:
            self._shared[key] = self.plan.bind(op, params=params, facts=facts)
        return self._shared[key]

    def outgrown(self, limit: int | None) -> int | None:
        """A window, or a chunk, that no sequence outgrows is none."""
        return limit if limit is not None and limit < self.info.max_model_len else None
