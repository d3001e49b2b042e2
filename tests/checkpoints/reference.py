"""The formats' definitions in float64: a checkpoint's quantized weights as plain ones, and transformers' logits with them.

Written from the formats' descriptions and from what the tools write; nothing of the project is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import base_models
import numpy as np
import torch
from safetensors import safe_open
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

Tensors = dict[str, np.ndarray]
Module = dict[str, np.ndarray]
"""The tensors of one module by the last part of their names."""
QuantizeInput = Callable[[str, torch.Tensor], torch.Tensor]

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which column of eight lies in nibble p."""
_NOT_IN_NUMPY = (torch.bfloat16, torch.float8_e4m3fn)


def read(folder: Path) -> Tensors:
    """All tensors of a checkpoint in the dtypes of the file, those that numpy lacks in float64 (exact)."""
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        if file.name == "expected.safetensors":
            continue
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no dict)
                tensor = opened.get_tensor(name)
                tensors[name] = (tensor.double() if tensor.dtype in _NOT_IN_NUMPY else tensor).numpy()
    return tensors


def bits_along(packed: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Unsigned values of int32 words along an axis: one stream of bits, lowest first, values across words for 3 bits."""
    words = np.ascontiguousarray(np.moveaxis(packed, axis, -1)).view(np.uint32)
    stream = (words[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    stream = stream.reshape(*words.shape[:-1], -1, bits).astype(np.int64)
    return np.moveaxis((stream << np.arange(bits)).sum(-1), -1, axis)


def words_along(packed: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """The same where 32 // bits values lie in a word and none crosses words (compressed-tensors)."""
    words = np.ascontiguousarray(np.moveaxis(packed, axis, -1)).view(np.uint32)
    shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    values = (words[..., None] >> shifts) & np.uint32(2**bits - 1)
    return np.moveaxis(values.reshape(*words.shape[:-1], -1).astype(np.int64), -1, axis)


def gptq(module: Module, bits: int, stored_minus: int) -> np.ndarray:
    """f64 [N, K] = (q - z) * s; qweight [K*bits/32, N], qzeros [G, N*bits/32] holding z - stored_minus, scales [G, N].

    GPTQModel subtracts the one from whole words: below a zero point of 0 the next field borrows, and adding to words undoes it.
    Of 3 bits, whose fields cross words, it subtracts from the fields.
    """
    q = bits_along(module["qweight"], bits, axis=0)
    k, n = q.shape
    qzeros = module["qzeros"].view(np.uint32)
    if bits == 3:
        zeros = (bits_along(qzeros, bits, axis=1) + stored_minus) % 8
    else:
        ones = sum(1 << shift for shift in range(0, 32, bits))
        zeros = bits_along(qzeros + np.uint32(stored_minus * ones), bits, axis=1)
    scales = module["scales"].astype(np.float64)
    group = module["g_idx"] if "g_idx" in module else np.arange(k) // (k // len(scales))
    return ((q - zeros[:, :n][group]) * scales[group]).T


def awq(module: Module) -> np.ndarray:
    """f64 [N, K] = (q - z) * s; qweight [K, N/8], qzeros [G, N/8], scales [G, N], columns interleaved within words."""

    def unpack(packed: np.ndarray) -> np.ndarray:
        nibbles = bits_along(packed, 4, axis=1).reshape(len(packed), -1, 8)
        columns = np.empty_like(nibbles)
        columns[..., list(_AWQ_ORDER)] = nibbles
        return columns.reshape(len(packed), -1)

    q, zeros, scales = unpack(module["qweight"]), unpack(module["qzeros"]), module["scales"].astype(np.float64)
    group = np.arange(len(q)) // (len(q) // len(scales))
    return ((q - zeros[group]) * scales[group]).T


def _spread(scales: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Scales of a tensor [] or [1], of rows [N, 1], of groups [N, G], or of blocks [N/b, K/b], as [N, K] in float64."""
    scales = scales.astype(np.float64)
    if scales.size == 1:
        return np.full(shape, scales.item())
    if scales.ndim == 1:
        scales = scales[:, None]
    n, k = shape
    rows = 1 if scales.shape[0] == n else 128
    columns = k // scales.shape[1] if rows == 1 else 128
    return np.repeat(np.repeat(scales, rows, 0), columns, 1)[:n, :k]


def compressed_tensors(module: Module) -> np.ndarray:
    """f64 [N, K] of pack-quantized (integers or e2m1), int-quantized and float-quantized; zero points and g_idx if there."""
    if "weight_packed" not in module:
        weight = module["weight"].astype(np.float64)
        return weight * _spread(module["weight_scale"], weight.shape)
    if module["weight_packed"].dtype == np.uint8:
        return mxfp4(module["weight_packed"], module["weight_scale"])
    n, k = module["weight_shape"].tolist()
    bits = 32 * module["weight_packed"].shape[1] // k
    offset = 2 ** (bits - 1)
    q = words_along(module["weight_packed"], bits, axis=1)[:n, :k] - offset
    scales = module["weight_scale"].astype(np.float64)
    zeros = np.zeros(scales.shape)
    if "weight_zero_point" in module:
        zeros = words_along(module["weight_zero_point"], bits, axis=0)[:n] - offset
    group = module["weight_g_idx"] if "weight_g_idx" in module else np.arange(k) // (k // scales.shape[1])
    return (q - zeros[:, group]) * scales[:, group]


def mxfp4(packed: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """f64 [N, K] of e2m1 pairs uint8 [N, K/2], the low nibble first, and e8m0 scales uint8 [N, K/32]."""
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    table = np.concatenate([magnitudes, -magnitudes])
    values = table[np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)]
    return values * np.repeat(np.exp2(exponents.astype(np.float64) - 127), 32, 1)


def fp8(module: Module) -> np.ndarray:
    """f64 [N, K]: the stored scale multiplies, ``weight_scale_inv`` as well, whatever it is called."""
    weight = module["weight"].astype(np.float64)
    return weight * _spread(module.get("weight_scale_inv", module.get("weight_scale")), weight.shape)


def plain(tensors: Tensors, dequantize: Callable[[str, Module], np.ndarray | None]) -> Tensors:
    """``dequantize(module's name, its tensors)`` gives the weight [N, K] in float64, or None where the module is plain."""
    modules: dict[str, Module] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".weight." if ".weight." in name else ".")
        leaf = f"weight.{leaf}" if ".weight." in name else leaf  # bitsandbytes hangs the state of a weight under it
        modules.setdefault(module, {})[leaf] = tensor
    weights: Tensors = {}
    for name, module in modules.items():
        weight = dequantize(name, module)
        kept = {"weight", "bias"} if weight is None else {"bias"}
        weights |= {f"{name}.{leaf}": tensor.astype(np.float64) for leaf, tensor in module.items() if leaf in kept}
        if weight is not None:
            weights[f"{name}.weight"] = weight
    return weights


def _fused(weights: Tensors, names: Collection[str]) -> Tensors:
    """The weights of single experts as transformers' stacks [E, 2I, H] and [E, H, I], where the model's names ask for them."""
    weights = dict(weights)
    for name in [name for name in names if name.endswith(".experts.gate_up_proj")]:
        prefix = name.removesuffix(".experts.gate_up_proj")
        experts = prefix.replace(".mlp", ".block_sparse_moe")  # Mixtral's names in files
        gate, up, down = (
            ("w1", "w3", "w2") if f"{experts}.experts.0.w1.weight" in weights else ("gate_proj", "up_proj", "down_proj")
        )
        if f"{experts}.gate.weight" in weights:
            weights[f"{prefix}.gate.weight"] = weights.pop(f"{experts}.gate.weight")
        else:
            experts = prefix
        count = sum(f"{experts}.experts." in other and other.endswith(f".{down}.weight") for other in weights)
        stacks = {p: [weights.pop(f"{experts}.experts.{e}.{p}.weight") for e in range(count)] for p in (gate, up, down)}
        weights[name] = np.concatenate([np.stack(stacks[gate]), np.stack(stacks[up])], axis=1)
        weights[f"{prefix}.experts.down_proj"] = np.stack(stacks[down])
    return weights


def load(folder: Path, weights: Tensors) -> Any:
    """transformers' model of the folder's config less its quantization, eager, float64, with these weights and no others."""
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double()
    fused = _fused(weights, model.state_dict().keys())
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(weight)) for name, weight in fused.items()}, strict=True)
    base_models.loop_over_experts(model)
    return model.eval()


class _Float8Cache(DynamicCache):
    def __init__(self, scales: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self._scales = scales

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        key_scale, value_scale = self._scales[layer_idx]
        keys, values = fake_quantize(key_states, key_scale, "fp8"), fake_quantize(value_states, value_scale, "fp8")
        return super().update(keys, values, layer_idx, *args, **kwargs)


@torch.inference_mode()
def logits(model: Any, quantize_input: QuantizeInput | None = None, cache_scales: Sequence[Sequence[float]] = ()) -> np.ndarray:
    """f64 [1, 12, V], whatever the model's dtype: one pass over ``INPUT_IDS``.

    quantize_input  (name of a linear module, or "experts", input) -> the input that the module sees
    cache_scales    of keys and values of each layer; those that attention sees are rounded to e4m3
    """
    if quantize_input is None:
        cache = _Float8Cache(cache_scales) if cache_scales else None
        return (
            model(torch.tensor(base_models.INPUT_IDS), use_cache=bool(cache_scales), past_key_values=cache).logits.double().numpy()
        )
    names = {module.weight.data_ptr(): name for name, module in model.named_modules() if hasattr(module, "weight")}
    linear = functional.linear

    def quantized(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return linear(quantize_input(names.get(weight.data_ptr(), "experts"), x), weight, bias)

    with mock.patch.object(functional, "linear", quantized):
        return logits(model, cache_scales=cache_scales)


def fake_quantize(x: torch.Tensor, scale: torch.Tensor | float, kind: str, zero: int = 0) -> torch.Tensor:
    """x rounded to the grid of int8 (with a zero point in -128..127) or of e4m3, and back; scale broadcasts."""
    if kind == "fp8":
        return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) * scale
    return ((x / scale + zero).round().clamp(-128, 127) - zero) * scale


def per_token(x: torch.Tensor, kind: str, largest: float, group: int | None = None) -> torch.Tensor:
    """Dynamic: the largest magnitude of a token (of each ``group`` of its columns) becomes ``largest``."""
    grouped = x.unflatten(-1, (-1, group or x.shape[-1]))
    scale = grouped.abs().amax(-1, keepdim=True).clamp_min(1e-12) / largest
    return fake_quantize(grouped, scale, kind).flatten(-2)


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference over the largest magnitude."""
    return float(np.abs(found.astype(np.float64) - wanted).max() / np.abs(wanted).max())
