"""``reduce_scatter`` by NCCL (on AMD: RCCL): one GPU per process."""

from __future__ import annotations

from ...impl import NEVER_RAN_ACROSS_DEVICES, impl
from .._shared.process_groups import ReduceScatter


@impl("reduce_scatter", "nccl", priority=30, devices=("cuda",), unproven=NEVER_RAN_ACROSS_DEVICES)
class NcclReduceScatter(ReduceScatter):
    backend = "nccl"
