"""Workloads: what arrives when, deterministic by seed."""

from .build import Arrival, Workload, WorkloadRequest, build_workload, warmup_workload
from .config import SamplingConfig, WorkloadConfig

__all__ = ["Arrival", "SamplingConfig", "Workload", "WorkloadConfig", "WorkloadRequest", "build_workload", "warmup_workload"]
