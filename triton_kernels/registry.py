"""Where impls are found: in-tree kernels, installed plugins and extra modules all come by ``add_package``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from .impl import Flags, Impl
from .op import Op
from .ops import OPS

ENTRY_POINT_GROUP = "kernelswap.kernels"


@dataclass(frozen=True)
class LoadFailure:
    """A plugin or module that could not be loaded; the others are unharmed."""

    source: str
    error: str
    trace: str = ""


class Registry:
    """All ops, and for each the impls found. Packages are scanned at first use, so that importing costs nothing."""

    def __init__(self) -> None:
        self.ops: dict[str, Op] = dict(OPS)
        self.failures: list[LoadFailure] = []
        self._packages: list[ModuleType | str] = []
        self._impls: dict[str, dict[str, Impl]] = {name: {"reference": reference_impl(op)} for name, op in OPS.items()}

    @classmethod
    def load(cls, plugins: Iterable[str] = ()) -> Registry:
        """The registry of this installation: every entry point of the group, then ``plugins`` (modules or .py files)."""
        registry = cls()
        entries = sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name != "builtin")
        if not any(e.name == "builtin" for e in entries):  # a checkout that was not installed
            registry.add_package("triton_kernels.impls")
        for entry in entries:
            try:
                entry.load()(registry)
            except Exception as error:  # a broken plugin must not harm the others
                registry._fail(f"entry point {entry.name} = {entry.value}", error)
        for plugin in plugins:
            registry.add_package(plugin)
        return registry

    def add_package(self, package: ModuleType | str) -> None:
        """Adds a package, a module, or the path of a ``.py`` file whose impls are to be found."""
        self._packages.append(package)

    def impls(self, op: str) -> dict[str, Impl]:
        """Impls of an op by name, best priority first."""
        if op not in self.ops:
            raise ValueError(f"no op named {op!r}; the ops are: {', '.join(sorted(self.ops))}")
        self._scan()
        return dict(sorted(self._impls[op].items(), key=lambda item: -item[1].priority))

    def __iter__(self) -> Iterator[Impl]:
        for op in self.ops:
            yield from self.impls(op).values()

    def _scan(self) -> None:
        pending, self._packages = self._packages, []
        for package in pending:
            try:
                module = _import(package)
            except Exception as error:
                self._fail(str(package), error)
                continue
            self._add_module(module)
            for info in pkgutil.walk_packages(getattr(module, "__path__", []), module.__name__ + ".", onerror=lambda _: None):
                try:
                    self._add_module(importlib.import_module(info.name))
                except Exception as error:
                    self._fail(info.name, error)

    def _add_module(self, module: ModuleType) -> None:
        for value in list(vars(module).values()):
            if isinstance(value, Impl) and value.origin == module.__name__:
                self._add(value)

    def _add(self, found: Impl) -> None:
        if found.op not in self.ops:
            self._fail(found.origin, ValueError(f"implements {found.op!r}, which is no op"))
            return
        other = self._impls[found.op].setdefault(found.name, found)
        if other is not found:
            self._fail(found.origin, ValueError(f"{found.op}:{found.name} exists already, from {other.origin or 'the op itself'}"))

    def _fail(self, source: str, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        self.failures.append(LoadFailure(source, text, "".join(traceback.format_exception(error))))


def reference_impl(op: Op) -> Impl:
    """The op's reference as an impl: works on every device, batch invariant, slow."""
    flags = Flags(cuda_graph=False, deterministic=True, batch_invariant=True)
    return Impl(op.name, "reference", 0, flags, op.reference, origin=op.reference.__module__)


def _import(package: ModuleType | str) -> ModuleType:
    if isinstance(package, ModuleType):
        return package
    if not package.endswith(".py"):
        return importlib.import_module(package)
    path = Path(package).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"plugin file {path} does not exist")
    name = f"kernelswap_plugin_{path.stem}_{hashlib.sha1(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        found = importlib.util.spec_from_file_location(name, path)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module
        try:
            found.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
