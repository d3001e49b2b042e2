"""Workloads: what arrives when, deterministic by seed."""

from .build import WorkloadRequest, build_workload
from .config import SamplingConfig, WorkloadConfig

__all__ = ["SamplingConfig", "WorkloadConfig", "WorkloadRequest", "build_workload"]
