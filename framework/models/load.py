"""From a model's name to bound layers."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..config import LoraConfig, ModelConfig, QuantConfig
from ..plan import KernelPlan
from .architecture import Architecture
from .binding.binder import Binder
from .lora.slots import LoraSlots
from .parallel import Parallel
from .parts import all_parts
from .pooling.classifiers import HEADS
from .protocol import Model
from .quantization.kv_scales import TENSORS as KV_SCALES
from .quantization.scheme import Scheme
from .quantization.table import read_scheme
from .read import ModelInfo
from .tensor_files import tensor_files
from .weights import Checkpoint, DummyWeights, Weights


@torch.inference_mode()
def load_model(
    config: ModelConfig,
    info: ModelInfo,
    plan: KernelPlan,
    device: torch.device,
    parallel: Parallel,
    block_size: int,
    seed: int = 0,
    cache_dtype: str = "auto",
    quant: QuantConfig | None = None,
    lora: LoraConfig | None = None,
    image_tokens: int = 0,
) -> Model:
    """Builds a model whose every hot operation is bound through ``plan``.

    block_size, cache_dtype  of the KV cache ("auto": the model's dtype)
    seed                     of dummy weights
    quant                    how to quantize floats; None: not at all
    lora                     what adapters there may be; None: none
    image_tokens             that a step may have; 0: the model is to read text alone
    Raises ValueError for weights that cannot be found or do not fit.
    """
    quant = quant or QuantConfig()
    scheme = read_scheme(info.quantization, quant)
    if info.architecture is None:
        from .transformers_model import check_as_it_is, load_transformers_model  # slow to import, and needed for few models

        check_as_it_is(info, quant, lora)
        if info.diffusion is not None:
            from .diffusion_gemma import load_diffusion_gemma

            return load_diffusion_gemma(config, info, plan, device, block_size, info.cache_dtype(cache_dtype), seed)
        return load_transformers_model(config, info, plan, device, block_size, info.cache_dtype(cache_dtype), seed)
    if config.latent_prefill != "absorbed" and info.architecture.latent is None:
        raise ValueError(
            f"model.latent_prefill={config.latent_prefill} would change nothing: model {config.name!r} has no latent attention"
        )
    if config.load_format != "dummy":
        info = replace(info, architecture=_as_stored(info, info.architecture))
    assert info.architecture is not None
    info.architecture.cache_specs(info.cache_dtype(cache_dtype), info.max_model_len)  # refuses a cache before weights are read
    info.architecture.check_chunks(block_size, info.max_model_len)
    weights = _open(config, info, info.architecture, device, seed, scheme)
    expand = config.latent_prefill == "expanded"
    slots = open_slots(info, plan, device, lora)
    return Binder(
        info, info.architecture, weights, plan, device, parallel, block_size, cache_dtype, quant.fuse, expand, slots, image_tokens
    ).build()


def open_slots(info: ModelInfo, plan: KernelPlan, device: torch.device, lora: LoraConfig | None) -> LoraSlots | None:
    """Of a native model, before its layers take theirs."""
    if lora is None or not lora.enabled:
        return None
    assert info.architecture is not None
    if info.vision is not None and info.vision.experts:
        raise ValueError(
            f"lora.enabled=true cannot work: layers of {info.name!r} have weights of their own for tokens of images, which no "
            "adapter goes with; leave it out, or merge the adapter into the checkpoint"
        )
    return LoraSlots(info.architecture, lora, plan, getattr(torch, info.dtype), device)


def _as_stored(info: ModelInfo, a: Architecture) -> Architecture:
    """With the names that experts have in the files, where their family knows two ways to hold them."""
    packed = a.family.packed_experts
    names = tuple(f".{name}" for found in packed.values() for name in found)
    assert info.folder is not None
    if not packed or not any(name.endswith(names) for name in tensor_files(info.folder)):
        return a
    return replace(a, family=replace(a.family, names={**a.family.names, **packed}, expert_tensor=""))


def _open(config: ModelConfig, info: ModelInfo, a: Architecture, device: torch.device, seed: int, scheme: Scheme) -> Weights:
    dtype = getattr(torch, info.dtype)
    if config.load_format == "dummy":
        return DummyWeights(device, dtype, scheme, seed, a.family.norm_offset)
    assert info.folder is not None
    checkpoint = Checkpoint(info.folder, a.family, device, dtype, scheme)
    unread = [rf"^{a.family.lm_head}\.weight$"] if a.tied else []
    if info.pooling is not None:
        unread += HEADS  # which are read one by one
    checkpoint.check(all_parts(a), (*a.family.ignored, *KV_SCALES, *unread, *prediction_modules(info)))
    if a.tied and (a.has_logits or (info.pooling is not None and info.pooling.answer_tokens)):
        checkpoint.check_tied(a)
    return checkpoint


def prediction_modules(info: ModelInfo) -> list[str]:
    """Regular expressions of the tensors of multi-token prediction modules, which draft for the model but are no part of it."""
    assert info.architecture is not None
    count, extra = len(info.architecture.layers), info.config.get("num_nextn_predict_layers") or 0
    return [r"^mtp\.", r"^model\.mtp_layers\.", *(rf"^model\.layers\.{count + i}\." for i in range(extra))]
