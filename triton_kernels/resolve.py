"""From a wish ("auto", "torch", "splitkv@num_splits:8") to an impl, or to an error that lists every reason."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from .impl import Impl
from .registry import Registry
from .spec import Spec


class NoKernelError(ValueError):
    """No impl can serve what was asked. The text names what was asked and, for each impl, why not."""


@dataclass(frozen=True)
class Choice:
    """A parsed choice: an impl's name ("auto" lets priority decide) and its options."""

    name: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        return "@".join([self.name, *(f"{k}:{_text(v)}" for k, v in self.options.items())])


def parse_choice(text: str) -> Choice:
    """``name`` or ``name@key:value@key:value``. Values are read as int, float or bool where they look like one."""
    name, *parts = str(text).split("@")
    options = {}
    for part in parts:
        key, colon, value = part.partition(":")
        if not (name and key and colon and value):
            raise ValueError(f"cannot read the kernel choice {text!r}: expected name or name@key:value (e.g. splitkv@num_splits:8)")
        options[key] = _value(value)
    if not name:
        raise ValueError("a kernel choice is empty; write the name of an impl, or auto")
    return Choice(name, options)


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
    """The impl for ``choice``: by name, or for ``auto`` the best priority without a reason against it (never one that
    brings its own random numbers). Raises :class:`NoKernelError` rather than fall back."""
    wish = choice if isinstance(choice, Choice) else parse_choice(choice)
    found = registry.impls(op)
    if wish.name == "auto":
        for candidate in found.values():
            if candidate.flags.rng == "contract" and not candidate.unsupported(spec, wish.options):
                return candidate, Choice(candidate.name, wish.options)
    elif wish.name in found and not found[wish.name].unsupported(spec, wish.options):
        return found[wish.name], wish
    raise NoKernelError(_explain(registry, op, spec, wish, found))


def _explain(registry: Registry, op: str, spec: Spec, wish: Choice, found: Mapping[str, Impl]) -> str:
    facts = ", ".join(f"{k}={v}" for k, v in spec.facts.items())
    asked = f"{op}={wish} on {spec.device} ({spec.arch}), {str(spec.dtype).removeprefix('torch.')}"
    lines = [f"no kernel for {asked}{', ' + facts if facts else ''}."]
    if wish.name != "auto" and wish.name not in found:
        lines.append(f"There is no impl named {wish.name!r}.")
    lines.append(f"Impls of {op}:")
    for name, candidate in found.items():
        options = wish.options if name == wish.name or wish.name == "auto" else {}
        reasons = candidate.unsupported(spec, options)
        if wish.name == "auto" and candidate.flags.rng == "own":
            reasons.append("has its own random numbers, so it is never chosen automatically")
        lines.append(f"  {name}: {'; '.join(reasons) if reasons else 'available'}")
    lines += [f"  (failed to load) {f.source}: {f.error}" for f in registry.failures]
    lines.append("Choose one that is available, or auto.")
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
