"""One implementation of an op: a named object that binds to a layer."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from .spec import Spec
from .tuning import NOT_TUNED, TunedTables

NEVER_MET_ITS_LIBRARY = "never met its library"
"""``Impl.unproven`` of an adapter that ran against a stand-in for its library only."""
NEVER_RAN_ACROSS_DEVICES = "never ran across devices"
"""``Impl.unproven`` of a collective for several GPUs."""


class Bound(Protocol):
    """An impl ready to be called by one layer. One of ``linear`` may have ``panels``: the weight that it has packed, as
    ``embedding`` reads a table."""

    def __call__(self, *args: Any) -> Any:
        """Runs the op on its call arguments (``Op.call_args``), by position."""


@dataclass(frozen=True)
class Flags:
    """What an impl promises; each promise is re-proved by the conformance tests.

    cuda_graph       capture-safe: no host synchronization, no allocation that depends on data
    cpu_graph        the same on a CPU: all that a call does are native kernels and torch operations
    deterministic    equal bits on repeated runs
    batch_invariant  a row's bits do not depend on the other rows
    rank_invariant   of products and of sums over ranks: neighbours are added in pairs, then pairs, within a rank and across ranks,
                     so that bits do not depend on how many ranks (1, 2, 4, 8, ...) share K if all who add promise this
    rng              "contract": the project's Philox stream, returns the reference's token; "own": any other generator
    """

    cuda_graph: bool = True
    cpu_graph: bool = False
    deterministic: bool = True
    batch_invariant: bool = False
    rank_invariant: bool = False
    rng: Literal["contract", "own"] = "contract"


@dataclass(frozen=True)
class Impl:
    """An implementation as the registry holds it. Made by :func:`impl`, never by hand."""

    op: str
    name: str
    priority: int
    flags: Flags
    target: Callable[..., Any]
    requires: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")
    options: Mapping[str, Any] = field(default_factory=dict)
    tune_space: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    origin: str = ""
    version: str = ""
    unproven: str = ""

    @property
    def is_triton(self) -> bool:
        return "triton" in self.requires

    def unsupported(self, spec: Spec, options: Mapping[str, Any] | None = None) -> list[str]:
        """Every reason why this impl cannot serve ``spec``; empty when it can."""
        reasons = [f"needs the package {p}" for p in self.requires if importlib.util.find_spec(p) is None]
        if spec.device not in self.devices:
            reasons.append(f"runs on {' or '.join(self.devices)}, not on {spec.device}")
        elif self.is_triton and spec.device == "cpu" and not spec.interpret:
            reasons.append("is a Triton kernel; on a CPU it runs only in the interpreter (set interpret=true)")
        unknown = sorted(set(options or {}) - set(self.options))
        if unknown:
            known = ", ".join(f"{k}:{v}" for k, v in self.options.items()) or "none"
            reasons.append(f"has no option {', '.join(unknown)} (options and defaults: {known})")
        lacking = [name for name in str(spec.fact("given", "")).split() if not self._takes(name)]
        if lacking:
            reasons.append(f"does not take {', '.join(lacking)}")
        check = getattr(self.target, "unsupported", None)
        informed = spec.with_facts(options={**self.options, **(options or {})})
        return reasons + (list(check(informed)) if check and not reasons else [])

    def _takes(self, name: str) -> bool:
        """Whether it serves a call with this optional argument of its op."""
        if inspect.isclass(self.target):
            return name in getattr(self.target, "takes", ())
        parameters = inspect.signature(self.target).parameters
        return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def bind(
        self,
        spec: Spec,
        weights: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        tables: TunedTables | None = None,
    ) -> Bound:
        """Makes the impl ready for one layer. A class packs its weights in ``__init__(spec, weights, params, **options)``;
        a plain function gets the bound arguments as keywords. ``tables`` replace the defaults of options that ``options``
        does not set; a class with ``tuned_by_tokens`` gets what they say as ``tuned``, because it depends on the call."""
        weights, params = dict(weights or {}), dict(params or {})
        tuned = tables.lookup(self.op, self.name, self.options, spec) if tables is not None and self.options else NOT_TUNED
        chosen = {**self.options, **tuned.at(), **(options or {})}
        if getattr(self.target, "tuned_by_tokens", False):
            chosen["tuned"] = tuned
        is_class = inspect.isclass(self.target)  # apart from the call: narrowing would lose the signature
        return (
            self.target(spec, weights, params, **chosen)
            if is_class
            else functools.partial(self.target, **weights, **params, **chosen)
        )


def impl(
    op: str,
    name: str,
    *,
    priority: int = 0,
    flags: Flags = Flags(),
    requires: tuple[str, ...] = (),
    devices: tuple[str, ...] = ("cpu", "cuda"),
    options: Mapping[str, Any] | None = None,
    tune_space: Mapping[str, tuple[Any, ...]] | None = None,
    unproven: str = "",
) -> Callable[[Callable[..., Any]], Impl]:
    """Turns a class or a function into an :class:`Impl`. Registers nothing: the registry finds it in a scanned package.

    op, name   the op it implements, and its own name, unique per op
    priority   ``auto`` takes the highest that has no reason against it; reference is 0, plain torch 10
    requires   packages that must be importable ("triton" makes it a Triton kernel)
    devices    torch device types it can run on
    options    defaults of what a choice can set: ``splitkv@num_splits:8``
    tune_space   values of options that tuning tries, in the combinations that a class's ``tune_filter(options, num_tokens)``
               lets pass
    unproven   what speaks against trusting it yet (``NEVER_MET_ITS_LIBRARY``); lists and plans say it until it is taken out
    """

    def decorate(target: Callable[..., Any]) -> Impl:
        module = inspect.getmodule(target)
        version = getattr(importlib.import_module(module.__name__.split(".")[0]), "__version__", "") if module else ""
        return Impl(
            op,
            name,
            priority,
            flags,
            target,
            tuple(requires),
            tuple(devices),
            dict(options or {}),
            dict(tune_space or {}),
            target.__module__,
            version,
            unproven,
        )

    return decorate
