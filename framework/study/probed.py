"""What a run hands out beside its metrics, as its config asks: a profile, the shapes of kernel calls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..config import EngineConfig
from .capture import Captured
from .profile import Profile

if TYPE_CHECKING:
    from ..engine.engine import Engine


class Probed(Protocol):
    """Something that was taken down while a workload ran."""

    def table(self) -> str:
        """As text."""

    def write(self, folder: Path) -> list[str]:
        """Writes its files; returns their names."""


def probe(engine: Engine, config: EngineConfig) -> list[Probed]:
    """Begins to take down what the config asks for."""
    probed: list[Probed] = []
    if config.profile:
        probed.append(Profile(engine))
    if config.capture:
        probed.append(Captured(engine, config.capture))
    return probed
