"""What is known about a layer's surroundings when its kernels are bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Spec:
    """Static facts at build time.

    device     torch device type: "cpu" or "cuda" (ROCm builds of torch say "cuda" too; ``arch`` tells them apart)
    arch       "cpu", "sm_90", "gfx942", ...
    dtype      dtype of activations
    interpret  Triton kernels run in Triton's interpreter (set before Triton is imported)
    facts      op-specific: head_dim, page_size, num_kv_heads, in_features, ...; see each op's module. An impl that is asked what
               it cannot do finds its options, too
    """

    device: str
    arch: str
    dtype: torch.dtype
    interpret: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    def fact(self, name: str, default: Any = None) -> Any:
        return self.facts.get(name, default)

    def with_facts(self, **facts: Any) -> Spec:
        return replace(self, facts={**self.facts, **facts})


def device_arch(device: torch.device) -> str:
    """Architecture name of a torch device: "cpu", "sm_90", "gfx942"."""
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"
