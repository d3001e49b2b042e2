"""The server as a deployment of Ray Serve: replicas, each an engine with the HTTP application around it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import ray
from ray import serve

from ..async_engine import AsyncEngine
from ..config import EngineConfig
from ..distributed.launchers.ray import resource
from ..engine_args import engine_config
from ..logs import set_up_logging
from ..server.app import build_app
from ..server.config import ServerConfig

OF_PROXY = ("host", "port", "head_timeout_s", "send_timeout_s", "keep_alive_s")
"""Fields of ServerConfig that Serve's proxy, which clients connect to, has its own settings for."""


def application(
    model: str | EngineConfig = "tiny",
    *,
    min_replicas: int = 1,
    max_replicas: int = 1,
    target_ongoing_requests: float | None = None,
    upscale_delay_s: float = 30.0,
    downscale_delay_s: float = 600.0,
    **arguments: Any,
) -> serve.Application:
    """For ``serve.run``. Further arguments are those of ``LLM``, and the fields of ServerConfig but for ``OF_PROXY``.

    min_replicas, max_replicas  Serve starts and ends replicas between them, so that each has about
    target_ongoing_requests     in work; None = half of what an engine runs at once (max_num_seqs)
    upscale_delay_s, downscale_delay_s  how long there must have been more, or fewer, before it does

    A replica takes as many CPUs or GPUs of the cluster as it has ranks, unless they are actors themselves
    (distributed_executor_backend="ray"). Raises ValueError for what cannot work.
    """
    if proxied := sorted(arguments.keys() & set(OF_PROXY)):
        raise ValueError(f"{', '.join(proxied)} cannot be given: the proxy of Ray Serve listens to clients; see its http_options")
    server = ServerConfig(**{field.name: arguments.pop(field.name) for field in fields(ServerConfig) if field.name in arguments})
    server.validate()
    config = engine_config(model, **arguments)
    config.validate()
    if not ray.is_initialized():
        ray.init()

    def build() -> Any:
        """In a replica: the engine, and the application around it."""
        os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)  # for the engine's process
        set_up_logging(server.log_level)
        return build_app(AsyncEngine(config), server)

    @serve.ingress(build)
    class Replica:
        async def check_health(self) -> None:
            """Serve replaces a replica whose engine is dead."""
            await self.app.state.serving.engine.check_health()  # type: ignore[attr-defined]

    most = config.scheduler.max_num_seqs
    deployment = serve.deployment(
        Replica,
        name="kernelswap",
        max_ongoing_requests=most,
        max_queued_requests=server.max_num_queued_reqs,
        graceful_shutdown_timeout_s=server.drain_timeout_s,
        ray_actor_options=_resources(config),
        autoscaling_config={
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": target_ongoing_requests or max(1, most // 2),
            "upscale_delay_s": upscale_delay_s,
            "downscale_delay_s": downscale_delay_s,
        },
    )
    return deployment.bind()


def app(arguments: Mapping[str, Any]) -> serve.Application:
    """``application`` for ``serve run framework.ray.serving:app model=tiny max_replicas=4``, and for Serve's YAML files. A text is
    read as JSON if it is that."""
    return application(**{name: _read(value) for name, value in arguments.items()})


def _read(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _resources(config: EngineConfig) -> dict[str, int]:
    """Of a replica."""
    parallel = config.parallel
    if parallel.backend == "ray":
        return {"num_cpus": 1}
    size = parallel.num_ranks
    return {"num_cpus": 1, "num_gpus": size} if resource(config) == "GPU" else {"num_cpus": size}
