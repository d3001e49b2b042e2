"""``all_to_all`` by gloo: processes of a CPU, over TCP."""

from __future__ import annotations

from ...impl import Flags, impl
from .._shared.process_groups import AllToAll


@impl("all_to_all", "gloo", priority=30, flags=Flags(cuda_graph=False), devices=("cpu",))
class GlooAllToAll(AllToAll):
    backend = "gloo"
