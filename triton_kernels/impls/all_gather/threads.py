"""``all_gather`` for ranks that are threads of one process: each reads the others' tensors where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...group import ThreadGroup
from ...impl import Flags, impl
from ...spec import Spec
from .._shared.rank_sums import backend_reasons


@impl("all_gather", "threads", priority=30, flags=Flags(cuda_graph=False, batch_invariant=True))
class ThreadsAllGather:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        self.group: ThreadGroup = params["group"]
        self.dim: int = params.get("dim", 0)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return backend_reasons(spec, "threads")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        with self.group.shared(x) as parts:
            return torch.cat(parts, self.dim)
