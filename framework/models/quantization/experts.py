"""The experts of a layer, loaded one by one, as the arguments of ``moe_experts``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from triton_kernels.ops.gemm import FP8_BLOCK

from .canonical import SYMMETRIC_ZERO, dequantized
from .packing import concatenated
from .scheme import LoadedPart
from .unquantized import float_experts

Experts = Sequence[Sequence[LoadedPart]]
"""Of each expert its modules: gate and up, or down."""


def stack_experts(gate_up: Experts, down: Experts, dtype: torch.dtype) -> LoadedPart:
    """What ``moe_experts`` can compute with stays quantized; everything else becomes floats of ``dtype``, and the part says so."""
    parts = [part for experts in (gate_up, down) for expert in experts for part in expert]
    ops = {part.op for part in parts}
    if ops == {"gemm_w4a16"} and all(part.tensors["perm"] is None for part in parts) and _alike(gate_up) and _alike(down):
        symmetric = all(part.tensors["zeros"] is None for part in parts)
        return LoadedPart("moe_experts", _int4("w13", gate_up, symmetric) | _int4("w2", down, symmetric))
    if ops == {"gemm_fp8"} and len({_granularity(part) for part in parts}) == 1 and _whole_blocks(gate_up):
        static = any(part.input is not None and part.input.tensors["static_scale"] is not None for part in parts)
        note = "experts quantize activations by scales of their own, not by those of the checkpoint" if static else ""
        return LoadedPart("moe_experts", _float8("w13", gate_up) | _float8("w2", down), note=note)
    what = ", ".join(sorted(ops - {"linear"}))
    note = f"experts were dequantized to {dtype}: moe_experts does not multiply such parts of {what}"
    return float_experts(_floats(gate_up, dtype), _floats(down, dtype), note)


def _alike(experts: Experts) -> bool:
    """Whether their scales can stand in one tensor: groups of one size, and one dtype."""
    scales = [part.tensors["scales"] for expert in experts for part in expert]
    return len({(found.shape[1], found.dtype) for found in scales if found is not None}) == 1


def _whole_blocks(gate_up: Experts) -> bool:
    """Whether up begins where a block does, if scales are of blocks."""
    return all(_granularity(part) == "token" or part.num_rows % FP8_BLOCK == 0 for expert in gate_up for part in expert[:-1])


def _granularity(part: LoadedPart) -> str:
    assert part.input is not None
    return str(part.input.params["granularity"])


def _int4(name: str, experts: Experts, symmetric: bool) -> dict[str, torch.Tensor | None]:
    scales = _stacked(experts, "scales")
    tensors: dict[str, torch.Tensor | None] = {name: _stacked(experts, "qweight"), f"{name}_scale": scales}
    if symmetric:
        return tensors
    zeros = torch.full(scales.shape, SYMMETRIC_ZERO, dtype=torch.uint8, device=scales.device)
    for of_expert, expert in zip(zeros, experts):
        for rows, part in zip(of_expert.split([part.num_rows for part in expert]), expert):
            if part.tensors["zeros"] is not None:
                rows.copy_(part.tensors["zeros"])
    return {**tensors, f"{name}_zeros": zeros}


def _float8(name: str, experts: Experts) -> dict[str, torch.Tensor | None]:
    def by_row(part: LoadedPart) -> torch.Tensor:
        scales = part.tensors["scales"]
        assert scales is not None
        return scales.expand(part.num_rows, 1) if scales.shape == (1, 1) and _granularity(part) == "token" else scales

    scales = torch.stack([torch.cat([by_row(part) for part in expert]) for expert in experts])
    return {name: _stacked(experts, "weight"), f"{name}_scale": scales}


def _floats(experts: Experts, dtype: torch.dtype) -> torch.Tensor:
    return torch.stack([torch.cat([dequantized(part).to(dtype) for part in expert]) for expert in experts])


def _stacked(experts: Experts, tensor: str) -> torch.Tensor:
    """[E, R, ...]: the modules' tensors of that name."""
    found = [part.tensors[tensor] for expert in experts for part in expert]
    return concatenated(found).unflatten(0, (len(experts), -1))  # type: ignore[arg-type]
