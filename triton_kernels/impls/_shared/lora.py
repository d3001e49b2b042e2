"""What the impls for low-rank adapters share."""

from __future__ import annotations

from ...spec import Spec


def dtypes_differ(spec: Spec) -> list[str]:
    """A reason to refuse adapters of another dtype than the activations'."""
    dtype = spec.fact("weight_dtype", spec.dtype)
    return [] if dtype == spec.dtype else [f"needs adapters of the activations' dtype {spec.dtype}, not {dtype}"]
