"""The executor of one rank among several."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist

from ..config import EngineConfig
from ..distributed.messages import Place
from ..interpreter import enable_interpreter
from ..models.parallel import Parallel, Ranks
from ..models.read import read_model
from ..plan import Group, ProcessGroup, ThreadGroup
from .local_executor import LocalExecutor


def open_rank(config: EngineConfig, place: Place) -> LocalExecutor:
    """Runs in the process of the rank, which meets the others at the rendezvous."""
    if place.size == 1:
        return _open(config, Parallel())
    is_cuda = torch.cuda.is_available() and config.device in ("auto", "cuda")
    if is_cuda:
        config = replace(config, device=f"cuda:{place.rank % torch.cuda.device_count()}")
        torch.cuda.set_device(config.device)
    host, port = place.rendezvous.rsplit(":", 1)
    wait = timedelta(seconds=config.parallel.step_timeout_s)
    store = dist.TCPStore(host, int(port), is_master=False, timeout=wait)
    dist.init_process_group("nccl" if is_cuda else "gloo", store=store, rank=place.rank, world_size=place.size, timeout=wait)
    tp, pp = place.tp, place.num_stages
    # Every rank takes part in making every group.
    stages = [dist.new_group(range(stage * tp, (stage + 1) * tp)) for stage in range(pp)]
    columns = [dist.new_group(range(column, place.size, tp)) for column in range(tp)]
    return _open(config, _parallel(config, place, ProcessGroup(stages[place.stage]), ProcessGroup(columns[place.tp_rank])))


class ThreadRanks:
    """Opens ranks that are threads of this process, and share this."""

    def __init__(self, tp: int, pp: int) -> None:
        self._stages = [ThreadGroup.make(tp) for _ in range(pp)]
        self._columns = [ThreadGroup.make(pp) for _ in range(tp)]

    def __call__(self, config: EngineConfig, place: Place) -> LocalExecutor:
        """Runs in the thread of the rank."""
        stage, column = self._stages[place.stage][place.tp_rank], self._columns[place.tp_rank][place.stage]
        return _open(config, _parallel(config, place, stage, column))


def _parallel(config: EngineConfig, place: Place, stage: Group, column: Group) -> Parallel:
    """stage: the ranks that share its tensors; column: those at this one's place in all stages."""
    tp, pp = Ranks(place.tp_rank, place.tp, stage), Ranks(place.stage, place.num_stages, column)
    return Parallel(tp, pp, tp if config.parallel.ep > 1 else Ranks())


def _open(config: EngineConfig, parallel: Parallel) -> LocalExecutor:
    if config.interpret:
        enable_interpreter()
    return LocalExecutor(config, read_model(config.model), parallel)
