"""What can guess: one table of the methods, on the host and on the device, open to plugins."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final, Literal

ENTRY_POINT_GROUP: Final = "kernelswap.proposers"


@dataclass(frozen=True)
class ProposerKind:
    """What is known of a method before anything of it is imported.

    weights  whether ``speculative_config.model`` names them: needed, optional, or none (it is refused)
    target   module:Class of a HostProposer; None: drafts are made where the model runs, see ``framework.worker.drafting.drafter``
    """

    weights: Literal["needed", "optional", "none"]
    target: str | None = None

    @property
    def place(self) -> Literal["host", "device"]:
        """Where drafts are made."""
        return "device" if self.target is None else "host"

    def load(self) -> Any:
        """The class, of a method on the host."""
        assert self.target is not None
        module, _, name = self.target.partition(":")
        return getattr(import_module(module), name)


PROPOSERS: Final = {
    "ngram": ProposerKind("none", "framework.speculation.ngram:Ngram"),
    "suffix": ProposerKind("none", "framework.speculation.suffix:Suffix"),
    "forced": ProposerKind("none", "framework.speculation.forced:Forced"),
    "draft_model": ProposerKind("needed"),
    "medusa": ProposerKind("needed"),
    "eagle": ProposerKind("needed"),
    "eagle3": ProposerKind("needed"),
    "mtp": ProposerKind("optional"),
}
"""The methods of this package. On the host, one more is a file and an entry; others come as ``module:Class``, or by the name of an
entry point of an installed package."""


def proposer_kind(method: str) -> ProposerKind:
    """Of ``speculative_config.method``. Raises ValueError for one that is not there, or is no proposer."""
    if method in PROPOSERS:
        return PROPOSERS[method]
    targets = {entry.name: entry.value for entry in entry_points(group=ENTRY_POINT_GROUP)}
    target = method if ":" in method else targets.get(method)
    if target is None:
        names = ", ".join([*PROPOSERS, *sorted(targets)])
        raise ValueError(
            f"speculative_config.method={method!r} cannot work: it must be one of {names}, or module:Class of your own"
        )
    kind = ProposerKind("optional", target)
    try:
        found = kind.load()
    except Exception as error:
        raise ValueError(
            f"speculative_config.method={method!r} comes from {target}, which could not be loaded: {type(error).__name__}: {error}"
        ) from error
    if not all(callable(getattr(found, name, None)) for name in ("start", "propose", "stop")):
        raise ValueError(
            f"speculative_config.method={method!r} is no proposer: {target} must have start, propose and stop "
            "(framework.speculation.proposer.HostProposer)"
        )
    return kind
