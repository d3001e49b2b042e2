"""How much memory a model's tensors take, however its layers and kernels hold them."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..config import EngineConfig, LoraConfig
from ..engine.kv_cache.spec import ELEMENT_BYTES
from ..logs import memory_size
from ..models.lora.slots import lora_bytes, rank_parts
from ..models.parallel import Parallel
from ..models.quantization.table import read_scheme
from ..models.ranks import rank_architecture, stage_weight_bytes, stages
from ..models.read import ModelInfo
from ..models.weights import weight_bytes
from .devices import Device

_OPAQUE = ("triton", "ctypes", "_ctypes", "weakref")
"""Packages whose objects hold compiled code, not weights."""


def tensor_bytes(root: Any) -> int:
    """Bytes of all tensors that can be reached from ``root``; memory that several share counts once."""
    sizes: dict[int, int] = {}
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, torch.Tensor) and found.layout != torch.strided:  # a library's own layout, without a storage to share
            sizes[id(found)] = found.numel() * found.element_size()
        elif isinstance(found, torch.Tensor):
            storage = found.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        else:
            waiting.extend(_parts(found))
    return sum(sizes.values())


def _parts(found: Any) -> Iterator[Any]:
    if isinstance(found, Mapping):
        yield from found.values()
    elif isinstance(found, list | tuple | set):
        yield from found
    elif isinstance(found, functools.partial):
        yield from (found.func, *found.args, *found.keywords.values())
    elif isinstance(found, types.FunctionType):
        yield from (cell.cell_contents for cell in found.__closure__ or ())
    elif isinstance(found, types.MethodType):
        yield found.__self__
    elif not isinstance(found, type | types.ModuleType) and type(found).__module__.partition(".")[0] not in _OPAQUE:
        yield from getattr(found, "__dict__", {}).values()
        slots = (name for kind in type(found).__mro__ for name in getattr(kind, "__slots__", ()))
        yield from (getattr(found, name) for name in slots if hasattr(found, name))


def check_weights_fit(num_bytes: float, model: ModelInfo, device: Device) -> None:
    """Raises ValueError for weights that the device has no memory for, before any is allocated."""
    memory = device.memory()
    if memory is not None and num_bytes > memory.available:
        raise ValueError(
            f"model {model.name!r} has {memory_size(num_bytes)} of weights in {model.dtype}, but {device.name} has "
            f"{memory_size(memory.available)} available, of {memory_size(memory.total)}: free some, choose a smaller model, "
            "model.dtype or quant.scheme, or another device; executor.kind=simulated needs no memory for weights"
        )


def nominal_weight_bytes(config: EngineConfig, model: ModelInfo, parallel: Parallel) -> float:
    """What the weights of this rank will take, with the slots for adapters and the heads of a model that pools."""
    if model.encoding is not None and model.encoding.max_images is None:
        from ..models.encoder import encoder_bytes

        return nominal_weight_bytes(config, replace(model, encoding=None), parallel) + encoder_bytes(config.model, model)
    if model.pooling is not None and (layers := model.pooling.classifier + model.pooling.projection):
        heads = sum(layer.rows * layer.columns for layer in layers)  # always float32
        return nominal_weight_bytes(config, replace(model, pooling=None), parallel) + torch.float32.itemsize * heads
    if model.architecture is not None and config.lora.enabled:
        without = replace(config, lora=LoraConfig())
        return nominal_weight_bytes(without, model, parallel) + lora_bytes(
            rank_parts(model.architecture, parallel, config.lora), config.lora, getattr(torch, model.dtype)
        )
    if model.architecture is not None:
        scheme = read_scheme(model.quantization, config.quant)
        if parallel.tp.size * parallel.pp.size * parallel.ep.size > 1:
            sizes = parallel.sizes
            rank = rank_architecture(model.architecture, sizes)
            stage = stages(model.architecture, sizes.pp)[parallel.pp.rank]
            return stage_weight_bytes(rank, stage, sizes.ep, scheme, model.dtype, sizes.redundant_experts)
        return weight_bytes(model.architecture, scheme, getattr(torch, model.dtype), model.max_model_len)
    import transformers

    from ..models.library import num_library_weights  # slow to import, and needed for few models
    from ..models.transformers_model import servable_config

    kind = transformers.AutoModelForCausalLM if model.diffusion is None else transformers.AutoModelForMultimodalLM
    return num_library_weights(config.model, servable_config(config.model, model), kind) * ELEMENT_BYTES[model.dtype]
