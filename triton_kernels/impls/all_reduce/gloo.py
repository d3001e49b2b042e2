"""``all_reduce`` by gloo: processes of a CPU, over TCP."""

from __future__ import annotations

from ...impl import Flags, impl
from .._shared.process_groups import AllReduce


@impl("all_reduce", "gloo", priority=30, flags=Flags(cuda_graph=False), devices=("cpu",))
class GlooAllReduce(AllReduce):
    backend = "gloo"
