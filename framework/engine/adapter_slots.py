"""Slots of the device: which adapter is in which, and who gets the next one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..lora_request import LoRARequest
from .executor import LoadedAdapter
from .request import Request


@dataclass(eq=False)
class Weights:
    """What the host holds of one adapter, or of several that are equal.

    slot   on the device; -1: none
    users  requests that were admitted with it and have not ended, those that were preempted among them: as long as there are any,
           it keeps its slot
    """

    loaded: LoadedAdapter
    slot: int = -1
    users: set[Request] = field(default_factory=set)
    adapters: set[Adapter] = field(default_factory=set)
    last_used: int = 0

    @property
    def is_pinned(self) -> bool:
        return any(adapter.pinned for adapter in self.adapters)


@dataclass(eq=False)
class Adapter:
    """An adapter as it was read once; when its folder is read again in place, there is another one.

    weights   None: they are not on the host
    requests  that wait or run
    failure   what reading it failed with
    """

    request: LoRARequest
    weights: Weights | None = None
    requests: set[Request] = field(default_factory=set)
    pinned: bool = False
    failure: Exception | None = None


class AdapterSlots:
    """A request whose adapter has no slot lays claim to one, in its turn: an empty one, else the one that is idle for longest, else
    the one whose requests have the fewest tokens left. Nobody behind it joins those any more, so that the slot gets empty, and the
    request gets on. One slot at a time is emptied that way: the others serve on."""

    def __init__(self, count: int) -> None:
        self._slots: list[Weights | None] = [None] * count
        self._claims: dict[Adapter, int] = {}  # in this turn of the scheduler
        self._all_claimed = False  # in this turn: nobody else can lay claim
        self._loads: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._slots)

    def start_turn(self) -> None:
        """The scheduler asks from the beginning."""
        self._claims.clear()
        self._all_claimed = False

    def is_ready(self, adapter: Adapter) -> bool:
        """Whether a request with this adapter may use its slot from now on, or the one that it lays claim to."""
        if adapter.weights is not None and adapter.weights.slot >= 0:
            return adapter.weights.slot not in self._claims.values()
        slot = self.claim(adapter)
        return slot is not None and not self._users(slot)

    def claim(self, adapter: Adapter) -> int | None:
        """A slot for an adapter that has none, as soon as that is empty; None: others come first."""
        if adapter in self._claims or self._all_claimed:
            return self._claims.get(adapter)
        claimed = set(self._claims.values())
        empties = any(self._users(slot) for slot in claimed)
        best: tuple[tuple[int, int], int] | None = None
        for slot, weights in enumerate(self._slots):
            if slot in claimed or (weights is not None and (weights.is_pinned or (empties and weights.users))):
                continue
            cost = (0, 0)
            if weights is not None:
                left = max((user.max_total - len(user.token_ids) for user in weights.users), default=0)
                cost = (2, left) if weights.users else (1, weights.last_used)
            if best is None or (cost, slot) < best:
                best = cost, slot
        if best is None:
            self._all_claimed = True
            return None
        self._claims[adapter] = best[1]
        return best[1]

    def fill(self, adapter: Adapter) -> None:
        """Puts an adapter that is ready, and has no slot, into the one that it claimed."""
        weights, slot = adapter.weights, self._claims.pop(adapter)
        assert weights is not None, "it was ready"
        self.empty(slot)
        self._slots[slot], weights.slot = weights, slot
        self._loads.append((slot, weights.loaded.key))

    def empty(self, slot: int) -> None:
        """Forgets what is in a slot."""
        self._all_claimed = False
        if (weights := self._slots[slot]) is not None:
            weights.slot, self._slots[slot] = -1, None

    def loads(self) -> list[tuple[int, str]]:
        """(slot, key of the adapter) of what was not told yet, for the next step."""
        found, self._loads = self._loads, []
        return found

    def lose(self, loads: Iterable[tuple[int, str]]) -> list[Request]:
        """After a step that was to fill slots, and failed: nobody knows what is in them. Returns the requests that use them."""
        users: list[Request] = []
        for slot, _ in loads:
            users += self._users(slot)
            self.empty(slot)
        return users

    def reset(self) -> None:
        """Nobody knows what is in any slot."""
        for slot in range(len(self._slots)):
            self.empty(slot)
        self._loads.clear()

    def _users(self, slot: int) -> set[Request]:
        weights = self._slots[slot]
        return set() if weights is None else weights.users
