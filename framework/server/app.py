"""The application, and its run from start to end."""

from __future__ import annotations

import logging
import os
import signal
import socket
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI

from .. import __version__
from ..async_engine import AsyncEngine
from ..config import EngineConfig
from ..engine_process import SHORT_WAITS
from . import (
    adapters,
    chat,
    completions,
    embeddings,
    errors,
    live,
    metrics,
    models,
    operations,
    responses,
    sagemaker,
    scoring,
    tokenization,
    transcriptions,
)
from .auth import Authentication
from .config import ServerConfig
from .connection import Connection
from .limits import BodyLimits
from .serving import Serving

ENDPOINTS = (
    completions,
    chat,
    responses,
    embeddings,
    scoring,
    transcriptions,
    models,
    adapters,
    tokenization,
    operations,
    metrics,
    sagemaker,
    live,
)
logger = logging.getLogger(__name__)
BACKLOG = 2048
"""Connections that wait to be accepted."""


def build_app(engine: AsyncEngine, config: ServerConfig) -> FastAPI:
    """All endpoints around an engine, which stays the caller's. Raises ValueError for a configuration that cannot work."""
    config.validate()
    app = FastAPI(title="Kernelswap", version=__version__)
    app.state.serving = Serving(engine, config)
    for module in ENDPOINTS:
        app.include_router(module.router)
    errors.install(app)
    app.add_middleware(BodyLimits, max_bytes=config.max_body_bytes, timeout_s=config.body_timeout_s)
    if keys := config.api_keys():
        app.add_middleware(Authentication, keys=keys)  # the outermost, so that nothing is read without a key
    return app


def build_server(engine: AsyncEngine, config: ServerConfig) -> uvicorn.Server:
    """The HTTP server of the application: ``run(sockets=[...])`` serves until a signal, or until ``should_exit`` is set, then lets
    running requests end."""
    connection: Any = partial(Connection, head_timeout_s=config.head_timeout_s, send_timeout_s=config.send_timeout_s)
    settings = uvicorn.Config(
        build_app(engine, config),
        log_level=config.log_level,
        access_log=config.log_level in ("debug", "trace"),
        backlog=BACKLOG,
        timeout_keep_alive=int(config.keep_alive_s),
        timeout_graceful_shutdown=config.drain_timeout_s,  # type: ignore[arg-type]  # fractions do, too
        lifespan="off",
        http=connection,
        ws="none",
    )
    return uvicorn.Server(settings)


def run(engine_config: EngineConfig, server_config: ServerConfig) -> None:
    """Serves until SIGTERM or SIGINT, and until running requests have ended."""
    server_config.validate()
    with bind(server_config.host, server_config.port) as listener:  # before the engine takes minutes to start
        for name, value in SHORT_WAITS.items():  # the engine's process computes beside this one
            os.environ.setdefault(name, value)
        engine = AsyncEngine(engine_config)
        try:
            server = build_server(engine, server_config)
            signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it once more when it is done
            listener.listen(BACKLOG)  # who reads the next line and asks at once is answered
            host, port, *_ = listener.getsockname()
            logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            pass
        finally:
            engine.shutdown()


def bind(host: str, port: int) -> socket.socket:
    """A socket with this address, which does not listen yet. Raises OSError that names the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"{host}:{port} cannot be listened to: {error}") from error
    return listener
