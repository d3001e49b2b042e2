"""The OpenAI-compatible server: HTTP and its formats here, the engine in a process of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import EngineConfig
    from .config import ServerConfig

__all__ = ["run"]


def run(engine_config: EngineConfig, server_config: ServerConfig) -> None:
    """Serves until SIGTERM or SIGINT. Raises ValueError for what cannot be configured so, OSError if the address cannot be had, and
    what went wrong while the engine started."""
    from .app import run as run_server  # FastAPI: whoever only reads the configuration must not pay for it

    run_server(engine_config, server_config)
