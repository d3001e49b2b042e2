"""From a wish ("auto", "torch", "splitkv@num_splits:8", "tma|pointer") to an impl, or to an error that lists every reason."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from .impl import Impl
from .registry import Registry
from .spec import Spec

KINDS: Mapping[str, Callable[[Impl], bool]] = MappingProxyType(
    {
        "reference": lambda impl: impl.name == "reference",
        "torch": lambda impl: impl.name == "torch",
        "triton": lambda impl: impl.is_triton,
    }
)
"""What ``default`` can ask of every op beside ``auto``."""


class NoKernelError(ValueError):
    """No impl can serve what was asked. The text names what was asked and, for each impl, why not."""


@dataclass(frozen=True)
class Choice:
    """A parsed choice: an impl's name ("auto" lets priority decide), its options, and what is to serve if it cannot, in order."""

    name: str
    options: Mapping[str, Any]
    others: tuple[Choice, ...] = ()

    def __str__(self) -> str:
        first = "@".join([self.name, *(f"{k}:{_text(v)}" for k, v in self.options.items())])
        return "|".join([first, *map(str, self.others)])

    @property
    def names(self) -> list[str]:
        """Of all impls that it asks for, best first."""
        return [self.name, *(other.name for other in self.others)]

    @property
    def is_name(self) -> bool:
        """Whether it asks for one impl, which then has to run."""
        return self.name not in ("auto", "none")


def parse_choice(text: str) -> Choice:
    """``name`` or ``name@key:value@key:value``, or several of these, best first, with ``|`` between. Values are read as int, float
    or bool where they look like one."""
    first, *others = str(text).split("|")
    name, *parts = first.split("@")
    options = {}
    for part in parts:
        key, colon, value = part.partition(":")
        if not (name and key and colon and value):
            raise ValueError(f"cannot read the kernel choice {text!r}: expected name or name@key:value (e.g. splitkv@num_splits:8)")
        options[key] = _value(value)
    if not name:
        raise ValueError("a kernel choice is empty; write the name of an impl, or auto")
    return Choice(name, options, tuple(map(parse_choice, others)))


_overrides: ContextVar[Mapping[str, str]] = ContextVar("kernel_overrides", default=MappingProxyType({}))


@contextlib.contextmanager
def override(**choices: str) -> Iterator[None]:
    """Choices by op for engines built inside the block: ``with override(sample="torch"): LLM(...)``. Beats the config."""
    token = _overrides.set({**_overrides.get(), **choices})
    try:
        yield
    finally:
        _overrides.reset(token)


def active_overrides() -> dict[str, str]:
    """The choices of the surrounding ``override`` blocks, to be folded into a config before it crosses a process border."""
    return dict(_overrides.get())


def resolve(registry: Registry, op: str, spec: Spec, choice: str | Choice = "auto") -> tuple[Impl, Choice]:
    """The impl for ``choice``: by name, the first that can serve of several, or for ``auto`` the best priority without a reason
    against it (never one that brings its own random numbers). Raises :class:`NoKernelError` rather than fall back."""
    wish = choice if isinstance(choice, Choice) else parse_choice(choice)
    found = registry.impls(op)
    missing = [f"There is no impl named {name!r}." for name in wish.names if name not in ("auto", *found)]
    for one in (wish, *wish.others) if not missing else ():
        if one.name == "auto":
            best = _best(found.values(), spec, one.options)
        else:
            best = None if found[one.name].unsupported(spec, one.options) else found[one.name]
        if best is not None:
            return best, Choice(best.name, one.options)
    raise NoKernelError(_explain(registry, op, spec, f"{op}={wish}", wish, missing))


class Choices:
    """What is asked of the kernels of one engine.

    ``given`` maps ops to choices, and ``default`` to what all other ops take: ``auto``, or a kind of impl: ``reference``,
    ``torch``, or ``triton`` (of an op's Triton impls the best that runs here, whatever its name). A fused op takes ``none`` too,
    so that the ops run whose work it does; that is what a default of reference or torch means for it.

    Raises ValueError for an op or a default that there is not. Names of impls are looked up when they are resolved.
    """

    def __init__(self, registry: Registry, given: Mapping[str, str]) -> None:
        self._registry, self._default = registry, given.get("default", "auto")
        if self._default not in ("auto", *KINDS):
            raise ValueError(
                f"kernels.default={self._default!r} cannot work: it must be one of auto, {', '.join(KINDS)}; "
                "an impl is named per op (kernels.<op>=<name>)"
            )
        self._given = {op: parse_choice(choice) for op, choice in given.items() if op != "default"}
        for op in sorted(set(self._given) - set(registry.ops)):
            raise ValueError(f"kernels.{op}: there is no such op; the ops are {', '.join(sorted(registry.ops))}")
        for op, choice in self._given.items():
            if choice.name == "none" and not registry.ops[op].fuses:
                fused = ", ".join(name for name, found in registry.ops.items() if found.fuses)
                raise NoKernelError(f"kernels.{op}=none: there is no impl named 'none'; fused ops alone take it ({fused})")

    def of(self, op: str) -> Choice:
        """What is asked of one op, a kind of impl aside: that is ``auto`` here."""
        if op in self._given:
            return self._given[op]
        separate = self._registry.ops[op].fuses and self._default in ("reference", "torch")
        return Choice("none" if separate else "auto", {})

    @property
    def named(self) -> dict[str, Choice]:
        """The ops of which an impl is asked for by name."""
        return {op: choice for op, choice in self._given.items() if choice.is_name}

    def fuse(self, op: str, replaced: Iterable[str]) -> bool | None:
        """Whether the fused ``op`` is to run in place of the ops in ``replaced``: True if it is chosen by name, False if its choice
        is ``none`` or it is ``auto`` and one of those is chosen by name, None if priorities decide."""
        if self.of(op).name != "auto":
            return self.of(op).is_name
        return False if any(other in self.named for other in replaced) else None

    def resolve(self, op: str, spec: Spec) -> tuple[Impl, Choice, str]:
        """The impl, the choice that stands for it, and what chose it: ``name``, ``default`` or ``auto`` (with the reason, if a
        default was asked for). Raises :class:`NoKernelError` if what was asked for cannot serve."""
        if op in self._given or self._default == "auto":
            choice = self.of(op)
            return *resolve(self._registry, op, spec, choice), "name" if choice.is_name else "auto"
        of_kind = [impl for impl in self._registry.impls(op).values() if KINDS[self._default](impl)]
        if not of_kind:
            return *resolve(self._registry, op, spec), f"auto (has no {self._default} impl)"
        if best := _best(of_kind, spec, {}):
            return best, Choice(best.name, {}), "default"
        asked = f"{op}={self._default} (by kernels.default)"
        raise NoKernelError(_explain(self._registry, op, spec, asked, Choice("auto", {})))


def _best(candidates: Iterable[Impl], spec: Spec, options: Mapping[str, Any]) -> Impl | None:
    usable = (c for c in candidates if c.flags.rng == "contract" and not c.unsupported(spec, options))
    return next(usable, None)


def _explain(registry: Registry, op: str, spec: Spec, asked: str, wish: Choice, missing: Iterable[str] = ()) -> str:
    facts = ", ".join(f"{k}={v}" for k, v in spec.facts.items())
    where = f"{spec.device} ({spec.arch}), {str(spec.dtype).removeprefix('torch.')}"
    lines = [f"no kernel for {asked} on {where}{', ' + facts if facts else ''}.", *missing, f"Impls of {op}:"]
    for name, candidate in registry.impls(op).items():
        options = next((one.options for one in (wish, *wish.others) if one.name in (name, "auto")), {})
        reasons = candidate.unsupported(spec, options)
        if wish.name == "auto" and candidate.flags.rng == "own":
            reasons.append("has its own random numbers, so it is never chosen automatically")
        lines.append(f"  {name}: {'; '.join(reasons) if reasons else 'available'}")
    lines += [f"  (failed to load) {f.source}: {f.error}" for f in registry.failures]
    none = f", or none (then {', '.join(registry.ops[op].fuses)} run)" if registry.ops[op].fuses else ""
    lines.append(f"Set kernels.{op} to one that is available, or to auto{none}.")
    return "\n".join(lines)


def _value(text: str) -> int | float | bool | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
