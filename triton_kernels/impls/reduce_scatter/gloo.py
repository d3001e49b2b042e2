"""``reduce_scatter`` by gloo: processes of a CPU, over TCP."""

from __future__ import annotations

from ...impl import Flags, impl
from .._shared.process_groups import ReduceScatter


@impl("reduce_scatter", "gloo", priority=30, flags=Flags(cuda_graph=False), devices=("cpu",))
class GlooReduceScatter(ReduceScatter):
    backend = "gloo"
