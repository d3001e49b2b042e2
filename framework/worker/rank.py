"""The executor of one rank among several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist

from ..config import EngineConfig
from ..distributed.messages import Place
from ..interpreter import enable_interpreter
from ..models.expert_map import first_map
from ..models.parallel import Parallel, Ranks
from ..models.read import read_model
from ..plan import Group, ProcessGroup, ThreadGroup
from .devices import open_device
from .local_executor import LocalExecutor


def check_devices(config: EngineConfig) -> None:
    """Raises ValueError unless each rank has a device of its own. Of several machines each sees its own only, and is not asked."""
    parallel = config.parallel
    size, device = parallel.num_ranks, open_device(config.device).torch
    if size == 1 or device.type != "cuda":
        return
    if device.index is not None:
        raise ValueError(f"device={config.device} cannot work with {size} ranks: give device=cuda, and CUDA_VISIBLE_DEVICES which")
    if parallel.backend == "processes" and (count := torch.cuda.device_count()) < size:
        asked = f"parallel.tp={parallel.tp}, parallel.pp={parallel.pp}"
        asked += f", parallel.dp={parallel.dp}" if parallel.num_schedulers > 1 else ""
        raise ValueError(
            f"{asked} cannot work: {size} GPUs are needed, {count} are "
            f"seen (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')})"
        )


class ProcessRank(LocalExecutor):
    """Of a rank that is a process."""

    def shutdown(self) -> None:
        """Also leaves the groups, in which nobody waits any more: all ranks have made the same steps."""
        super().shutdown()
        dist.destroy_process_group()


def open_rank(config: EngineConfig, place: Place) -> LocalExecutor:
    """Runs in the process of the rank, which meets the others at the rendezvous. One that fails stays in their groups until the
    driver knows, so that nobody fails because of it before."""
    if place.size == 1:
        return _open(config, place, [None] * len(place.peers))
    is_cuda = torch.cuda.is_available() and config.device in ("auto", "cuda")
    if is_cuda:
        config = replace(config, device=own_gpu(config, place))
        torch.cuda.set_device(config.device)
    host, port = place.rendezvous.rsplit(":", 1)
    # Whether a start or a step takes too long is for the driver to say, before anything here gives up.
    wait = 2 * timedelta(seconds=max(config.parallel.step_timeout_s, config.parallel.start_timeout_s))
    store = dist.TCPStore(host, int(port), is_master=False, timeout=wait)
    dist.init_process_group("nccl" if is_cuda else "gloo", store=store, rank=place.rank, world_size=place.size, timeout=wait)
    # Every rank takes part in making every group.
    made = {ranks: dist.new_group(ranks, timeout=wait) for ranks in _groups(place)}
    return _open(config, place, [ProcessGroup(made[ranks]) if ranks in made else None for ranks in place.peers], ProcessRank)


def own_gpu(config: EngineConfig, place: Place) -> str:
    """That of a rank, among those of its machine."""
    return f"cuda:{(config.parallel.first_device + place.rank) % torch.cuda.device_count()}"


class ThreadRanks:
    """Opens ranks that are threads of this process, and share this."""

    def __init__(self, tp: int, pp: int, dp: int = 1) -> None:
        self._made = {ranks: ThreadGroup.make(len(ranks)) for ranks in _groups(Place(0, tp * pp * dp, tp, dp=dp))}

    def __call__(self, config: EngineConfig, place: Place) -> LocalExecutor:
        """Runs in the thread of the rank."""
        own = [self._made[ranks][ranks.index(place.rank)] if ranks in self._made else None for ranks in place.peers]
        return _open(config, place, own)

    def abort(self, reason: str) -> None:
        """Ends what ranks wait for each other."""
        for first, *_ in self._made.values():
            first.abort(reason)


def _groups(place: Place) -> list[range]:
    """The ranks of each group that there is among those of ``place``, in an order that all of them agree on."""
    found = {ranks for rank in range(place.size) for ranks in replace(place, rank=rank).peers if len(ranks) > 1}
    return sorted(found, key=lambda ranks: (ranks.start, ranks.step, ranks.stop))


def _open(
    config: EngineConfig, place: Place, groups: Sequence[Group | None], kind: type[LocalExecutor] = LocalExecutor
) -> LocalExecutor:
    """groups: of ``place.peers``; None of one rank."""
    if config.interpret:
        enable_interpreter()
    model = read_model(config.model)
    tp, pp, dp = (Ranks(ranks.index(place.rank), len(ranks), group) for ranks, group in zip(place.peers, groups))
    if config.parallel.ep == 1 or model.architecture is None:
        return kind(config, model, Parallel(tp, pp, dp=dp))
    ep = Ranks(dp.rank * tp.size + tp.rank, dp.size * tp.size)
    return kind(config, model, Parallel(tp, pp, ep, dp, first_map(model.architecture, config.parallel)))
