"""The executor of one rank among several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist

from ..config import EngineConfig
from ..distributed.messages import Place
from ..interpreter import enable_interpreter
from ..models.architecture import read_model
from ..models.expert_map import first_map
from ..models.parallel import Parallel, Ranks
from ..plan import Group, ProcessGroup, ThreadGroup
from .local_executor import LocalExecutor


def open_rank(config: EngineConfig, place: Place) -> LocalExecutor:
    """Runs in the process of the rank, which meets the others at the rendezvous."""
    if place.size == 1:
        return _open(config, place, [None] * len(place.peers))
    is_cuda = torch.cuda.is_available() and config.device in ("auto", "cuda")
    if is_cuda:
        config = replace(config, device=f"cuda:{place.rank % torch.cuda.device_count()}")
        torch.cuda.set_device(config.device)
    host, port = place.rendezvous.rsplit(":", 1)
    wait = timedelta(seconds=config.parallel.step_timeout_s)
    store = dist.TCPStore(host, int(port), is_master=False, timeout=wait)
    dist.init_process_group("nccl" if is_cuda else "gloo", store=store, rank=place.rank, world_size=place.size, timeout=wait)
    # Every rank takes part in making every group.
    made = {ranks: dist.new_group(ranks) for ranks in _groups(place)}
    return _open(config, place, [ProcessGroup(made[ranks]) if ranks in made else None for ranks in place.peers])


class ThreadRanks:
    """Opens ranks that are threads of this process, and share this."""

    def __init__(self, tp: int, pp: int, dp: int = 1) -> None:
        self._made = {ranks: ThreadGroup.make(len(ranks)) for ranks in _groups(Place(0, tp * pp * dp, tp, dp=dp))}

    def __call__(self, config: EngineConfig, place: Place) -> LocalExecutor:
        """Runs in the thread of the rank."""
        own = [self._made[ranks][ranks.index(place.rank)] if ranks in self._made else None for ranks in place.peers]
        return _open(config, place, own)


def _groups(place: Place) -> list[range]:
    """The ranks of each group that there is among those of ``place``, in an order that all of them agree on."""
    found = {ranks for rank in range(place.size) for ranks in replace(place, rank=rank).peers if len(ranks) > 1}
    return sorted(found, key=lambda ranks: (ranks.start, ranks.step, ranks.stop))


def _open(config: EngineConfig, place: Place, groups: Sequence[Group | None]) -> LocalExecutor:
    """groups: of ``place.peers``; None of one rank."""
    if config.interpret:
        enable_interpreter()
    model = read_model(config.model)
    tp, pp, dp = (Ranks(ranks.index(place.rank), len(ranks), group) for ranks, group in zip(place.peers, groups))
    if config.parallel.ep == 1 or model.architecture is None:
        return LocalExecutor(config, model, Parallel(tp, pp, dp=dp))
    ep = Ranks(dp.rank * tp.size + tp.rank, dp.size * tp.size)
    return LocalExecutor(config, model, Parallel(tp, pp, ep, dp, first_map(model.architecture, config.parallel)))
