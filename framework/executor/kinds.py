"""What a step can run on: the kinds of executors, with what each needs of those who build it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class ExecutorKind:
    """A class of executors and its needs, so that nobody has to know it by name, or import it (and torch) to ask.

    module, class_name  where the class is. It offers ``open(config, model, clock) -> Executor`` and
                        ``runs_on(config) -> (name, architecture)`` of what its steps run on
    has_device          it runs kernels on ``config.device``
    virtual_clock       it advances time itself
    has_workers         its steps run in workers that it starts (distributed/kinds.py)
    sections            of the configuration that not every kind reads
    """

    module: str
    class_name: str
    has_device: bool = False
    virtual_clock: bool = False
    has_workers: bool = False
    sections: tuple[str, ...] = ()

    def load(self) -> Any:
        """The class."""
        return getattr(import_module(self.module), self.class_name)


EXECUTORS = {
    "local": ExecutorKind(
        "framework.worker.local_executor", "LocalExecutor", has_device=True, sections=("speculative_config", "lora")
    ),
    "distributed": ExecutorKind(
        "framework.distributed.executor",
        "DistributedExecutor",
        has_device=True,
        has_workers=True,
        sections=("parallel", "speculative_config", "lora"),
    ),
    "simulated": ExecutorKind(
        "framework.executor.simulated",
        "SimulatedExecutor",
        virtual_clock=True,
        sections=("executor", "parallel", "speculative_config"),
    ),
    "null": ExecutorKind("framework.executor.null", "NullExecutor", sections=("lora",)),
}
