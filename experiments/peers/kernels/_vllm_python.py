"""vLLM's Triton kernels from the Python files of its wheel alone: nothing compiled, and none of its dependencies."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch

ATTENTION = "vllm.v1.attention.ops.triton_unified_attention"
MOE = "vllm.model_executor.layers.fused_moe.fused_moe"
FP8_BLOCKS = "vllm.model_executor.layers.quantization.utils.fp8_utils"
FILES = (ATTENTION, "vllm.v1.attention.ops.triton_attention_helpers", MOE, "vllm.model_executor.layers.fused_moe.utils", FP8_BLOCKS)


@cache
def load(name: str) -> ModuleType:
    """One of the modules above, from the folder ``vllm/`` on ``sys.path``. Those in ``FILES`` run as they are; whatever else of
    vLLM they import at their top is a stand-in. Raises ImportError if there is no such folder."""
    found = PathFinder.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        raise ImportError("there is no folder vllm/ on sys.path: name the folder of an unpacked wheel by --peers")
    with _only(_Finder(f"{found.submodule_search_locations[0]}/..")):
        return importlib.import_module(name)


def import_error(name: str) -> list[str]:
    """Why a module cannot be loaded; empty if it can."""
    try:
        load(name)
    except Exception as error:  # files of another version raise what they like
        return [f"{name} cannot be loaded: {type(error).__name__}: {error}"]
    return []


@contextmanager
def _only(finder: MetaPathFinder) -> Iterator[None]:
    """Inside, ``vllm`` is what the finder finds; a real one that is imported before or after is unharmed."""
    real = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "vllm"}
    for name in real:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
            del sys.modules[name]
        sys.modules.update(real)


class _Nothing:
    """Something of a module that was not loaded, may be a type: false, and so is whatever it gives."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _Nothing()

    def __bool__(self) -> bool:
        return False

    def __or__(self, other: Any) -> Any:
        return _Nothing()

    __ror__ = __or__

    def __mro_entries__(self, bases: Any) -> tuple[type, ...]:
        return ()


class _Platform(_Nothing):
    """The adapters are for sm_90 alone."""

    def fp8_dtype(self) -> torch.dtype:
        return torch.float8_e4m3fn

    def is_device_capability(self, capability: Any) -> bool:
        return capability in (90, (9, 0))

    def get_device_name(self) -> str:
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "NVIDIA H200"


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None if self.__name__ == "vllm.envs" else _Nothing()  # no variable is set


class _Finder(MetaPathFinder, Loader):
    def __init__(self, root: str) -> None:
        self.root = root

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] != "vllm":
            return None
        if name in FILES:
            return importlib.util.spec_from_file_location(name, f"{self.root}/{name.replace('.', '/')}.py")
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        import triton

        known = {
            "vllm.triton_utils": {"triton": triton, "tl": triton.language},
            "vllm.platforms": {"current_platform": _Platform()},
        }
        vars(module).update(known.get(module.__name__, {}))
