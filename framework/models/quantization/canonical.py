"""Unpacked weights as the parts that the quantized GEMMs take, and back to floats."""

from __future__ import annotations

import math

import torch

from triton_kernels.ops.gemm import FP8_BLOCK, dequantize, pack_int4, spread, unpack_int4

from .scheme import LoadedPart, Module

SYMMETRIC_ZERO = 8
"""Of 4-bit weights without zero points."""


def integer_weights(
    quantized: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, bits: int, perm: torch.Tensor | None = None
) -> LoadedPart:
    """Weights (q - zero) * scale for float activations.

    quantized  uint8 [N, K] of ``bits`` bits; scales [N, K/G]; zeros uint8 [N, K/G], None: all are 2^(bits - 1)
    perm       int32 [K] or None: column j belongs to x[:, perm[j]]
    """
    middle = 1 << (bits - 1)
    if zeros is not None and bool((zeros == middle).all()):  # which the GEMMs treat without loading any
        zeros = None
    zeros = None if zeros is None else zeros.contiguous()
    scales = scales.contiguous()
    if bits > 4:
        weight = quantized if zeros is not None else (quantized.to(torch.int16) - middle).to(torch.int8)
        return LoadedPart("gemm_w8a16", {"weight": weight, "scales": scales, "zeros": zeros, "perm": perm, "bias": None})
    if zeros is None:  # 2 and 3 bits lie in the middle of 4
        quantized = quantized + (SYMMETRIC_ZERO - middle)
    if quantized.shape[1] % 8:
        raise ValueError(
            f"a layer of weights of {bits} bits has {quantized.shape[1]} inputs, but gemm_w4a16 takes a multiple of 8: leave the "
            "layer as floats, or quantize it to 8 bits"
        )
    tensors = {"qweight": pack_int4(quantized), "scales": scales, "zeros": zeros, "perm": perm, "bias": None}
    return LoadedPart("gemm_w4a16", tensors)


def channel_weights(weight: torch.Tensor, scales: torch.Tensor) -> LoadedPart:
    """int8 or float8 weight [N, K] with a scale per row [N, 1] or for all [1, 1], for float activations."""
    tensors = {"weight": weight, "scales": scales.expand(len(weight), 1).contiguous(), "zeros": None, "perm": None, "bias": None}
    return LoadedPart("gemm_w8a16", tensors)


def scaled_weights(
    op: str,
    weight: torch.Tensor,
    scales: torch.Tensor,
    dtype: torch.dtype,
    input_scale: torch.Tensor | None = None,
    blocks: bool = False,
    input_zero: torch.Tensor | None = None,
) -> LoadedPart:
    """Weights for activations that are quantized too.

    op           gemm_int8 or gemm_fp8; weight int8 or float8 [N, K]; scales f32 [1, 1], [N, 1]; ``blocks``: of 128 x 128
    dtype        of the result
    input_scale  f32 [1, 1] of the activations; None: found in each call, per token, or with blocks per token and 128 inputs
    input_zero   int32 [1, 1] of the activations, with input_scale; None: 0
    """
    if scales.shape == (1, 1) and not blocks and input_scale is None:  # activations have scales per token, so weights per row
        scales = scales.expand(len(weight), 1)
    activation = LoadedPart(
        "quantize_activation",
        {"static_scale": input_scale, "static_zero": input_zero},
        {"out_dtype": weight.dtype, "granularity": "group" if blocks else "token"},
    )
    tensors = {"weight": weight, "scales": scales.contiguous(), "bias": None}
    return LoadedPart(op, tensors, {"out_dtype": dtype}, activation)


def integer_bytes(module: Module, group_size: int, symmetric: bool, bits: int) -> float:
    """What ``integer_weights`` of a module take."""
    groups = module.num_groups(group_size)
    return module.rows * (module.columns * (4 if bits <= 4 else 8) / 8 + groups * (2 if symmetric else 3))


def scaled_bytes(module: Module, blocks: bool) -> float:
    """What ``scaled_weights`` of a module take."""
    return module.rows * module.columns + 4 * (math.prod(module.num_blocks) if blocks else module.rows)


def float_bytes(module: Module, dtype: torch.dtype) -> float:
    return module.rows * module.columns * dtype.itemsize


def dequantized(part: LoadedPart) -> torch.Tensor:
    """float64 [N, K]: the weights of a linear part, without its bias."""
    tensors = part.tensors
    if part.op == "linear":
        assert tensors["weight"] is not None
        return tensors["weight"].double()
    scales, zeros, perm = tensors["scales"], tensors.get("zeros"), tensors.get("perm")
    assert scales is not None
    if part.op in ("gemm_int8", "gemm_fp8"):
        assert tensors["weight"] is not None
        blocks = part.input is not None and part.input.params["granularity"] == "group"
        return spread(tensors["weight"], scales, FP8_BLOCK if blocks else 1)
    if part.op == "gemm_w4a16":
        assert tensors["qweight"] is not None
        quantized, zero = unpack_int4(tensors["qweight"]), SYMMETRIC_ZERO
    else:
        assert tensors["weight"] is not None
        quantized, zero = tensors["weight"], 0
    weight = dequantize(quantized, scales, zero if zeros is None else zeros)
    return weight if perm is None else weight[:, torch.argsort(perm.long())]
