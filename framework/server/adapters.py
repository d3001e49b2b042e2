"""Adapters as models that requests may name; /v1/load_lora_adapter and /v1/unload_lora_adapter."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from ..async_engine import AsyncEngine
from ..lora_request import LoRARequest
from .config import ServerConfig
from .errors import APIError
from .protocol.common import ERRORS, Body

router = APIRouter(responses={status: ERRORS[status] for status in (400, 404, 408, 413)})


class LoadAdapterBody(Body):
    """``lora_name``: by which requests may then call it; ``lora_path``: its folder, below ``--lora-dir``; ``load_inplace``: new
    weights for a name that is there already."""

    lora_name: str = Field(min_length=1)
    lora_path: str = Field(min_length=1)
    load_inplace: bool = False


class UnloadAdapterBody(Body):
    """``lora_name``: of the adapter; ``lora_int_id``: its number, passed over."""

    lora_name: str = Field(min_length=1)
    lora_int_id: int | None = None


class ServedAdapters:
    """By name. Those of the command line are read when a request first asks for them; those of a client at once.

    allows_changes  clients may load and unload adapters
    """

    def __init__(self, engine: AsyncEngine, config: ServerConfig, model_names: Iterable[str]) -> None:
        """Raises ValueError for adapters that cannot be served by these names."""
        enabled = engine.config.lora.enabled
        if (config.lora_modules or config.enable_runtime_lora) and not enabled:
            given = "lora_modules" if config.lora_modules else "enable_runtime_lora"
            raise ValueError(f"{given} cannot work: this engine takes no adapters; build it with enable_lora=True (--enable-lora)")
        self._engine, self._reserved = engine, frozenset(model_names)
        self._folder = None if config.lora_dir is None else Path(config.lora_dir).resolve()
        self._ids: dict[str, int] = {}  # a name that was unloaded keeps its own: requests on their way may come with it
        self._changing = asyncio.Lock()
        self._known: dict[str, LoRARequest] = {}
        self.allows_changes = config.enable_runtime_lora
        for name, path in config.lora_modules.items():
            self._check_name(name)
            self._known[name] = LoRARequest(name, self._id_of(name), path)

    @property
    def known(self) -> Mapping[str, LoRARequest]:
        """Name -> the adapter."""
        return self._known

    async def load(self, body: LoadAdapterBody) -> None:
        """Raises ValueError for an adapter that cannot be served, or not by this name."""
        self._check_name(body.lora_name)
        async with self._changing:
            known = self._known.get(body.lora_name)
            if known is not None and not body.load_inplace:
                raise ValueError(
                    f"the adapter {body.lora_name!r} is loaded already: unload it first, or give load_inplace=true for new weights"
                )
            path = str(await asyncio.to_thread(self._confined, body.lora_path))
            in_place = body.load_inplace or body.lora_name in self._ids
            lora_id = self._id_of(body.lora_name)
            try:
                await self._engine.add_lora(LoRARequest(body.lora_name, lora_id, path, in_place))
            except Exception:
                with suppress(Exception):  # one of several engines may have it, by a path that no request will come with
                    await self._engine.remove_lora(lora_id)
                raise
            self._known[body.lora_name] = LoRARequest(body.lora_name, lora_id, path)

    async def unload(self, name: str) -> None:
        """Raises APIError for one that is not there, ValueError while requests use it."""
        async with self._changing:
            if name not in self._known:
                raise APIError(404, f"The adapter `{name}` does not exist.", "lora_name")
            await self._engine.remove_lora(self._known[name].lora_int_id)
            del self._known[name]

    def _id_of(self, name: str) -> int:
        return self._ids.setdefault(name, 1 + len(self._ids))

    def _check_name(self, name: str) -> None:
        if name in self._reserved:
            raise ValueError(f"an adapter cannot be called {name!r}: that is the model's own name; choose another")
        if not name.isprintable():
            raise ValueError(f"an adapter cannot be called {name!r}: choose a name of characters that can be printed")

    def _confined(self, given: str) -> Path:
        """Where a path leads, which must be below the folder for adapters, whatever links there are."""
        assert self._folder is not None, "validated"
        elsewhere = f"lora_path={given!r} cannot work: it, and what is in it, must lie below the folder that --lora-dir names"
        try:
            path = (self._folder / given).resolve()
            if path == self._folder or not path.is_relative_to(self._folder):
                raise ValueError(elsewhere)
            files = [file.resolve() for file in path.iterdir()]
        except (OSError, RuntimeError):  # the latter of links that lead in a circle
            text = f"lora_path={given!r} cannot work: --lora-dir has no such folder, and a relative path begins there"
            raise ValueError(text) from None
        if not all(file.is_relative_to(self._folder) for file in files):
            raise ValueError(elsewhere)
        return path


@router.post("/v1/load_lora_adapter", response_class=Response)
async def load_adapter(body: LoadAdapterBody, request: Request) -> Response:
    """Reads an adapter, which requests may call by its name from then on. Needs --enable-runtime-lora."""
    await _changeable(request).load(body)
    return Response(f"Success: LoRA adapter '{body.lora_name}' added successfully.", media_type="text/plain")


@router.post("/v1/unload_lora_adapter", response_class=Response)
async def unload_adapter(body: UnloadAdapterBody, request: Request) -> Response:
    """Forgets an adapter that no request uses. Needs --enable-runtime-lora."""
    await _changeable(request).unload(body.lora_name)
    return Response(f"Success: LoRA adapter '{body.lora_name}' removed successfully.", media_type="text/plain")


def _changeable(request: Request) -> ServedAdapters:
    adapters: ServedAdapters = request.app.state.serving.adapters
    if not adapters.allows_changes:
        raise APIError(404, "This server's adapters are those that it was started with: see --enable-runtime-lora.")
    return adapters


def card_fields(request: LoRARequest, model: str) -> dict[str, Any]:
    """What /v1/models says of an adapter, beyond what it says of the model."""
    return {"id": request.lora_name, "root": request.lora_path, "parent": model}
