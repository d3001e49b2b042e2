"""What can guess: one table of the methods, on the host and on the device, open to plugins."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final, Literal

ENTRY_POINT_GROUP: Final = "kernelswap.proposers"

Place = Literal["host", "device"]


@dataclass(frozen=True)
class ProposerKind:
    """A class of proposers, so that nobody has to import it (and torch) to know its name.

    place   host: a HostProposer; device: a DeviceProposer, whose drafts stay where the model runs
    target  module:Class
    weights  whether ``speculative_config.model`` names them: needed, optional, or none (it is refused)
    """

    place: Place
    target: str
    weights: Literal["needed", "optional", "none"] = "optional"

    def load(self) -> Any:
        """The class."""
        module, _, name = self.target.partition(":")
        return getattr(import_module(module), name)


PROPOSERS: Final = {
    "ngram": ProposerKind("host", "framework.speculation.ngram:Ngram", "none"),
    "suffix": ProposerKind("host", "framework.speculation.suffix:Suffix", "none"),
    "forced": ProposerKind("host", "framework.speculation.forced:Forced", "none"),
    "draft_model": ProposerKind("device", "framework.worker.drafting.draft_model:DraftModel", "needed"),
    "medusa": ProposerKind("device", "framework.worker.drafting.medusa:Medusa", "needed"),
    "eagle": ProposerKind("device", "framework.worker.drafting.eagle:Eagle", "needed"),
    "eagle3": ProposerKind("device", "framework.worker.drafting.eagle:Eagle3", "needed"),
    "mtp": ProposerKind("device", "framework.worker.drafting.mtp:Mtp"),
}
"""The methods of this package; adding one is a file and an entry. Others come as ``module:Class``, or by the name of an entry point
of an installed package."""


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
    try:
        found = ProposerKind("host", target).load()
    except Exception as error:
        raise ValueError(
            f"speculative_config.method={method!r} comes from {target}, which could not be loaded: {type(error).__name__}: {error}"
        ) from error
    place = _place(found)
    if place is None:
        raise ValueError(
            f"speculative_config.method={method!r} is no proposer: {target} must have start, propose and stop (a HostProposer), or "
            "cache_specs and propose (a DeviceProposer)"
        )
    return ProposerKind(place, target)


def _place(found: Any) -> Place | None:
    for place, methods in _METHODS.items():
        if all(callable(getattr(found, name, None)) for name in methods):
            return place
    return None


_METHODS: Final[dict[Place, tuple[str, ...]]] = {"host": ("start", "propose", "stop"), "device": ("cache_specs", "propose")}
