"""``lora_shrink`` and ``lora_expand``: the two thin GEMMs of low-rank adapters, each token with its own adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..cases.lora import EXPAND_CASES, SHRINK_CASES
from ..lora_meta import LoraMeta
from ..op import PARTIAL, Cost, Op, Yardstick, rounded_once


def lora_shrink_reference(
    x: torch.Tensor, meta: LoraMeta, lora_a: torch.Tensor, scale: torch.Tensor, partial: bool = False
) -> torch.Tensor:
    """x [T, K], the adapters' A [L, R, K] and scale f32 [L, R] -> f32 [T, R]: scale * (A x), element by element; 0 where
    ``meta.index`` has no adapter. R: the ranks of all slices (as q, k and v) of the layer, one behind the other; A may have a wider
    dtype than x. ``partial``: as ``op.PARTIAL`` says. Source: Hu et al., LoRA, arXiv
    2106.09685; Chen et al., Punica, arXiv 2310.18547."""
    out = torch.zeros(x.shape[0], lora_a.shape[1], dtype=torch.float64, device=x.device)
    for slot in meta.index.unique().tolist():
        if slot >= 0:
            rows = meta.index == slot
            out[rows] = x[rows].double() @ lora_a[slot].double().T * scale[slot].double()
    return rounded_once(out, None, torch.float32, partial)


def lora_expand_reference(
    y: torch.Tensor, shrunk: torch.Tensor, meta: LoraMeta, lora_b: torch.Tensor, slices: tuple[int, ...]
) -> None:
    """Adds B of each token's adapter times shrunk f32 [T, n * r] to y [T, N], in place; B [L, r, N]: a column for each output.

    slices    columns of y, N in all, of each of the n slices: slice i of y gets columns i * r to (i + 1) * r of ``shrunk``
              times its columns of B
    Rows without adapter (-1) keep their bits. Impls may round ``shrunk`` to the dtype of B."""
    rank = lora_b.shape[1]
    for slot in meta.index.unique().tolist():
        if slot < 0:
            continue
        rows, start = (meta.index == slot).nonzero()[:, 0], 0
        for nth, width in enumerate(slices):
            columns = slice(start, start + width)
            delta = shrunk[rows, nth * rank : (nth + 1) * rank].double() @ lora_b[slot][:, columns].double()
            y[rows, columns] = (y[rows, columns].double() + delta).to(y.dtype)
            start += width


def lora_shrink_fake(x, meta, lora_a, scale, partial=False):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], lora_a.shape[1], dtype=torch.float32)


def lora_expand_fake(y, shrunk, meta, lora_b, slices):  # type: ignore[no-untyped-def]
    return None


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: features (K of shrink, N of expand), rank (of all slices together in shrink, of one in expand), num_slices (of expand),
    num_adapters (in the batch), act_bytes, weight_bytes."""
    tokens, width, rank = sum(q_lens), dims["features"], dims["rank"]
    moved = dims.get("num_adapters", 1) * width * rank * dims.get("weight_bytes", 2)
    shrunk = 4 * rank * dims.get("num_slices", 1)
    return Cost(2 * tokens * width * rank, moved + tokens * (width * dims.get("act_bytes", 2) + shrunk))


def lora_shrink_facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    return {"rank": bound["lora_a"].shape[1], "weight_dtype": bound["lora_a"].dtype}


def lora_expand_facts(bound: Mapping[str, Any]) -> dict[str, Any]:
    return {"rank": bound["lora_b"].shape[1], "weight_dtype": bound["lora_b"].dtype}


def _dense_shrink(args: Mapping[str, Any]) -> Callable[[], Any]:
    x, a = args["x"], args["lora_a"][0].to(args["x"].dtype)
    return lambda: torch.nn.functional.linear(x, a)


def _dense_expand(args: Mapping[str, Any]) -> Callable[[], Any]:
    y, b = args["y"], args["lora_b"][0].to(args["y"].dtype)
    shrunk = args["shrunk"][:, : b.shape[0]].to(y.dtype)
    return lambda: y.addmm_(shrunk, b)


lora_shrink = Op(
    "lora_shrink",
    lora_shrink_reference,
    lora_shrink_fake,
    cost,
    cases=SHRINK_CASES,
    facts=lora_shrink_facts,
    bind_args=("lora_a", "scale", PARTIAL),
    optional=(PARTIAL,),
    row_args=("x",),
    yardsticks={"one dense product": Yardstick(_dense_shrink, {"num_adapters": 1})},
)
lora_expand = Op(
    "lora_expand",
    lora_expand_reference,
    lora_expand_fake,
    cost,
    cases=EXPAND_CASES,
    facts=lora_expand_facts,
    bind_args=("lora_b", "slices"),
    mutates=("y",),
    row_args=("y", "shrunk"),
    yardsticks={"one dense product": Yardstick(_dense_expand, {"num_adapters": 1})},
)
