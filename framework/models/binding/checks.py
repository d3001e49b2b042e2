"""What ranks could not run together, found before a weight is read."""

from __future__ import annotations

from typing import Any

import torch

from ...plan import KernelPlan
from ..architecture import Architecture
from ..parallel import Parallel
from ..parts import Part
from ..quantization.scheme import Scheme
from ..quantization.unquantized import Unquantized
from ..ranks import layer_shares, rank_architecture
from .experts import exchange_calls
from .layer import REDUCE_NORM


def check_rank_kernels(plan: KernelPlan, whole: Architecture, parallel: Parallel, scheme: Scheme, dtype: torch.dtype) -> None:
    """Raises NoKernelError where a collective operation, or a product of floats that ranks add up, cannot be computed as it is
    chosen. plan, parallel: of a rank; dtype: of the model."""
    tp = parallel.tp
    called: list[tuple[str, dict[str, Any]]] = []
    if tp.size > 1:
        summed = {"bias": None, "group": tp.group, "out_dtype": dtype}
        called.append(("all_reduce", summed))
        called.append(("all_gather", {"group": tp.group, "dim": 1}))
        if whole.norms_sums:
            norm = {"weight": torch.empty(whole.hidden_size, dtype=dtype, device="meta")}
            params = {"eps": whole.norm_eps, "offset": whole.family.norm_offset}
            of_both = {**norm, **params, "bias": None, "group": tp.group}
            if plan.fuses(REDUCE_NORM, {"all_reduce": summed, "rms_norm": {**norm, **params}}, {}, of_both, {}):
                called.append((REDUCE_NORM, of_both))
    if parallel.ep.size > tp.size:
        fused, separate = exchange_calls(parallel, dtype)
        if fused is not None and plan.fuses("moe_exchange", separate, {}, fused, {}):
            called.append(("moe_exchange", fused))
        else:
            called += separate.items()
    for op, params in called:
        plan.check(op, params)
    plan.check_named({op for op, _ in called}, "group")
    if tp.size > 1 and type(scheme) is Unquantized:
        rank = rank_architecture(whole, parallel.sizes)
        layers = (layer_shares(rank, whole, index, parallel).values() for index in parallel.pp.part(len(whole.layers)))
        for shape in {part.shape for parts in layers for part in parts if _is_added_up(part)}:
            plan.check("linear", {"weight": torch.empty(shape, dtype=dtype, device="meta"), "bias": None, "partial": True})


def _is_added_up(part: Part) -> bool:
    return part.share is not None and not part.num_experts and part.columns != part.share[0].columns
