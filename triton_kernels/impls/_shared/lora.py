"""What the Triton kernels of low-rank adapters share."""

from __future__ import annotations

from ...lora_meta import LoraMeta
from ...ops.moe_align import Groups
from ...spec import Spec
from ..moe_align.triton import group_by_expert


def group_by_adapter(meta: LoraMeta, num_adapters: int, block_m: int) -> Groups:
    """Rows in the order of their adapters, in tiles of ``block_m``: made by the first who asks in a step."""
    key = "groups", num_adapters, block_m
    if key not in meta.workspace:
        meta.workspace[key] = group_by_expert(meta.index[:, None], num_adapters, 0, block_m)
    return meta.workspace[key]


def dtypes_differ(spec: Spec) -> list[str]:
    """A reason to refuse adapters of another dtype than the activations'."""
    dtype = spec.fact("weight_dtype", spec.dtype)
    return [] if dtype == spec.dtype else [f"needs adapters of the activations' dtype {spec.dtype}, not {dtype}"]
