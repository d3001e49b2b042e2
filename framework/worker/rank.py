"""The executor of one rank among several."""

from __future__ import annotations

from ..config import EngineConfig
from ..distributed.messages import Place
from ..interpreter import enable_interpreter
from ..models.architecture import read_model
from .local_executor import LocalExecutor


def open_rank(config: EngineConfig, place: Place) -> LocalExecutor:
    """Runs in the rank's worker."""
    assert place.size == 1, "models are whole"
    if config.interpret:
        enable_interpreter()
    return LocalExecutor(config, read_model(config.model))
