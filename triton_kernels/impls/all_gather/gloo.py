"""``all_gather`` by gloo: processes of a CPU, over TCP."""

from __future__ import annotations

from ...impl import Flags, impl
from .._shared.process_groups import AllGather


@impl("all_gather", "gloo", priority=30, flags=Flags(cuda_graph=False), devices=("cpu",))
class GlooAllGather(AllGather):
    backend = "gloo"
