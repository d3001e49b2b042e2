"""Workloads: what arrives when, deterministic by seed."""

from .build import Arrival, Workload, WorkloadRequest, build_workload, draw_adapters, warmup_workload
from .config import POPULARITIES, SamplingConfig, WorkloadConfig
from .pictures import Pictures, SentPictures

__all__ = [
    "POPULARITIES",
    "Arrival",
    "Pictures",
    "SamplingConfig",
    "SentPictures",
    "Workload",
    "WorkloadConfig",
    "WorkloadRequest",
    "build_workload",
    "draw_adapters",
    "warmup_workload",
]
