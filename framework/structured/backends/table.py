"""Which library compiles what."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from ..spec import GrammarSpec

AUTO: Final = "auto"


@dataclass(frozen=True)
class BackendKind:
    """Where a Backend is, so that nobody has to import its library to know its name."""

    module: str
    class_name: str

    def load(self) -> Any:
        """The class."""
        return getattr(import_module(f"framework.structured.backends.{self.module}"), self.class_name)


BACKENDS: Final = {
    "llguidance": BackendKind("llguidance", "LlguidanceBackend"),
    "xgrammar": BackendKind("xgrammar", "XgrammarBackend"),
}
"""The table of libraries; adding one is a file and an entry. ``structured_outputs.backend`` names them."""


def backend_of(asked: str, spec: GrammarSpec) -> str:
    """The name of the library for a constraint. The automatic one is the most exact of those that know its notation: llguidance
    lets nothing pass that a JSON schema forbids."""
    if asked != AUTO:
        return asked
    return "xgrammar" if spec.kind == "structural_tag" or (spec.kind == "grammar" and "::=" in spec.text) else "llguidance"
