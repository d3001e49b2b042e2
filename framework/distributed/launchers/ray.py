"""Workers as actors of Ray, on one machine or several. Ray places and starts them, and knows how they ended; the driver speaks with
them over connections of its own, as with processes."""

from __future__ import annotations

import os
import pickle
import secrets
import socket
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import TYPE_CHECKING, Any

from ...engine.errors import DeviceLostError
from ...logs import LOGGER
from ..messages import Start
from ..worker import hang_up, run_worker

if TYPE_CHECKING:
    from ...config import EngineConfig

PLACEMENT_S = 10.0
"""How long nodes may take to have room. What an engine gave back takes a moment until all nodes know of it."""


class RayLauncher:
    """In the cluster that this process has joined. If none, it joins that of RAY_ADDRESS, or of this machine (``ray start``), or
    starts one that ends with the workers.

    A placement group has one bundle per rank, and an actor in each.
    """

    def __init__(self) -> None:
        import ray

        self._joined = not ray.is_initialized()
        if self._joined:
            ray.init(include_dashboard=False)
        self.host = ray.util.get_node_ip_address()
        self._key = secrets.token_bytes(32)
        self._group: Any = None
        self._actors: list[Any] = []  # by rank

    def launch(self, start: Start) -> LaunchedActor:
        import ray

        rank = start.place.rank
        if self._group is None:
            self._group = _placement_group(start)
            self._actors = [self._actor(bundle) for bundle in _by_node(self._group)]  # all at once: each takes seconds to start
        try:
            *address, pid = ray.get(self._actors[rank].listening.remote())
            running = self._actors[rank].run.remote(pickle.dumps(start), LOGGER.getEffectiveLevel())
            pipe = Client(tuple(address), authkey=self._key)
        except (ray.exceptions.RayError, EOFError, OSError) as error:
            raise DeviceLostError(f"rank {rank} ended while it started: {_last_line(error)}") from error
        return LaunchedActor(self._actors[rank], running, pipe, f"actor on {address[0]}, process {pid}", pid)

    def close(self) -> None:
        import ray

        if not ray.is_initialized():  # at the end of a program, it may be first
            return
        if self._group is not None:
            ray.util.remove_placement_group(self._group)
            self._group = None
        if self._joined:
            ray.shutdown()

    def _actor(self, bundle: int) -> Any:
        """That may use all of a bundle."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        given = self._group.bundle_specs[bundle]
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        options = {"num_cpus": given.get("CPU", 0), "num_gpus": given.get("GPU", 0), "scheduling_strategy": strategy}
        return ray.remote(RankActor).options(**options).remote(self._key)


class RankActor:
    """Runs a worker. Its driver connects to it."""

    def __init__(self, key: bytes) -> None:
        import ray

        self._listener = Listener((ray.util.get_node_ip_address(), 0), authkey=key)

    def listening(self) -> tuple[str, int, int]:
        """Host, port, process id."""
        return *self._listener.address, os.getpid()

    def run(self, start: bytes, log_level: int) -> None:
        """To the end of the worker, and of its process."""
        import ray

        pipe = self._accept()
        run_worker(start, pipe, log_level)
        ray.actor.exit_actor()

    def _accept(self) -> Connection:
        """The driver's connection."""
        while True:
            try:
                pipe = self._listener.accept()
            except (AuthenticationError, EOFError, ConnectionError):
                continue  # somebody else, who has no key
            _send_at_once(pipe)
            self._listener.close()
            return pipe


class LaunchedActor:
    """One actor. Ray knows of the end of a node whose connections stay open; then ``pipe`` is closed, too."""

    sentinel = None

    def __init__(self, actor: Any, running: Any, pipe: Connection, name: str, pid: int) -> None:
        """running: the reference to what ``RankActor.run`` returns; it is ready once the actor has ended."""
        self.pipe, self.name, self.pid = pipe, name, pid
        self._actor, self._running = actor, running
        _send_at_once(pipe)
        running.future().add_done_callback(lambda _: hang_up(pipe))

    def join(self, timeout_s: float) -> bool:
        import ray

        return not ray.is_initialized() or bool(ray.wait([self._running], timeout=timeout_s)[0])

    def kill(self) -> None:
        import ray

        if ray.is_initialized():
            ray.kill(self._actor)

    def ended(self) -> str:
        import ray

        try:
            ray.get(self._running)
        except ray.exceptions.RayError as error:
            return f"{type(error).__name__}: {_last_line(error)}"
        raise AssertionError("the actor runs")


def resource(config: EngineConfig) -> str:
    """What each rank has one of, in Ray's words: GPU or CPU."""
    import ray

    if config.device == "auto":
        return "GPU" if ray.cluster_resources().get("GPU") else "CPU"
    return "GPU" if config.device.startswith("cuda") else "CPU"


def _placement_group(start: Start) -> Any:
    """Raises ValueError unless there is room."""
    import ray

    parallel, size, kind = start.config.parallel, start.place.size, resource(start.config)
    group = ray.util.placement_group([{kind: 1}] * size, strategy=parallel.placement.upper())
    if group.wait(PLACEMENT_S):
        return group
    ray.util.remove_placement_group(group)
    total, free = (found.get(kind, 0) for found in (ray.cluster_resources(), ray.available_resources()))
    raise ValueError(
        f"parallel.backend=ray cannot place {size} ranks (parallel.tp={parallel.tp}, pp={parallel.pp}) that take 1 {kind} each: "
        f"the cluster has {total:g}, of which {free:g} are free; ask for fewer ranks, end what takes them, or add nodes"
    )


def _by_node(group: Any) -> list[int]:
    """Bundles, those on a node one after the other: ranks of a stage follow each other, too, and have the most to tell."""
    import ray

    nodes = ray.util.placement_group_table(group)["bundles_to_node_id"]
    return sorted(nodes, key=lambda bundle: (nodes[bundle], bundle))


def _send_at_once(pipe: Connection) -> None:
    """Without waiting until what was sent before has been acknowledged."""
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _last_line(error: BaseException) -> str:
    """Where Ray says why."""
    return str(error).strip().splitlines()[-1]
