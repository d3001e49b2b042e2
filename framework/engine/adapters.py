"""Which adapters the host holds, and which of them have a slot on the device."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..lora_request import LoraConfig, LoRARequest, check_lora_request
from .executor import AdapterLoad, HoldsAdapters, LoadedAdapter
from .kv_cache.prefix import extra_keys
from .request import Request

_logger = logging.getLogger(__name__)
WAIT_S = 0.002
"""Between two looks whether an adapter is read."""


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


class Adapters:
    """The books of an engine's adapters: at most ``num_host_loras`` on the host, those being read included, and ``max_loras`` of
    them in slots, both least recently used first out. What requests use stays.

    A request is asked for in the order of the scheduler's policy whether its adapter is there. If not, those behind it are let by,
    but its adapter lays claim to a slot: an empty one, else the one that is idle for longest, else the one whose requests have the
    fewest tokens left. Nobody behind it joins those any more, so that the slot gets empty, and the request gets on. One slot at a
    time is emptied that way: the others serve on.
    """

    def __init__(self, config: LoraConfig, executor: HoldsAdapters) -> None:
        self._executor, self._num_host = executor, config.num_host_loras
        self._known: dict[int, Adapter] = {}  # by id
        self._by_name: dict[str, Adapter] = {}  # the same
        self._superseded: set[Adapter] = set()
        self._reading: dict[Adapter, AdapterLoad] = {}
        self._weights: dict[str, Weights] = {}  # by key
        self._slots: list[Weights | None] = [None] * config.max_loras
        self._clock = itertools.count(1)
        self._claims: dict[Adapter, int] = {}  # in this turn of the scheduler
        self._asked: set[Adapter] = set()  # likewise
        self._loads: list[tuple[int, str]] = []
        self._all_claimed = False  # in this turn: nobody else can lay claim
        self._num_refused = 0  # in this turn
        self._settled: int | None = None  # so many were refused, and nothing has changed since

    def find(self, request: LoRARequest) -> Adapter:
        """The adapter of a request, known or not. Raises ValueError for an id or a name that another one has, and for one that
        could not be served while all slots are pinned."""
        known = self._known.get(request.lora_int_id)
        for other in (known, self._by_name.get(request.lora_name)):
            if other is not None and not _is_same(other.request, request):
                raise ValueError(
                    f"{_shown(request)} cannot be served: {_shown(other.request)} is there. Give every adapter a name and an id of "
                    "its own, or new weights under the old ones with load_inplace=True"
                )
        if self._num_pinned() >= len(self._slots) and not (known is not None and known.pinned):
            raise ValueError(
                f"{_shown(request)} cannot be served: all {len(self._slots)} slots are pinned (pin_lora). Remove an adapter, or "
                "build the engine with a larger max_loras"
            )
        return Adapter(request) if known is None or request.load_inplace or known.failure else known

    def add(self, request: Request) -> None:
        """A request that waits from now on."""
        self._settled = None
        adapter = self._of(request)
        self._register(adapter)
        adapter.requests.add(request)

    def hold_back(self, request: Request) -> None:
        """Lets others by until the request's adapter is there, as well as what it waits for otherwise."""
        others = request.is_ready
        request.is_ready = lambda: (others is None or others()) and self.is_ready(request)

    def start_turn(self) -> None:
        """The scheduler asks from the beginning."""
        for adapter, load in list(self._reading.items()):
            if load.done():
                self._take_in(adapter, load)
        if self._settled is None:
            self._start_asking()

    def is_settled(self, num_waiting: int) -> bool:
        """Whether all who wait would be refused, as they were last time: then nobody needs to be asked."""
        if self._settled is not None and self._settled != num_waiting:
            self._start_asking()
        return self._settled is not None

    def end_turn(self, num_waiting: int) -> None:
        """All who wait were asked."""
        self._settled = num_waiting if num_waiting == self._num_refused else None

    def is_ready(self, request: Request) -> bool:
        """Whether it can be admitted now, as far as its adapter goes. Raises what reading that failed with."""
        ready = self._is_ready(request)
        self._num_refused += not ready
        return ready

    def _is_ready(self, request: Request) -> bool:
        adapter = self._of(request)
        if adapter.weights is not None and request in adapter.weights.users:
            return True  # it was preempted
        self._asked.add(adapter)
        self._read(adapter)
        if adapter.failure is not None:
            raise adapter.failure
        if (weights := adapter.weights) is None:
            self._claim(adapter)
            return False
        weights.last_used = next(self._clock)
        if weights.slot >= 0:
            if weights.slot in self._claims.values():
                return False
        elif (slot := self._claim(adapter)) is None or ((found := self._slots[slot]) is not None and found.users):
            return False
        self._bind(request, weights.loaded.key)
        return True

    def take(self, request: Request) -> int:
        """The slot of a request that is ready and was admitted; ``loads`` says what is new in it."""
        adapter = self._of(request)
        weights = adapter.weights
        assert weights is not None, "it was ready"
        if weights.slot < 0:
            slot = self._claims.pop(adapter)
            self._all_claimed = False
            self._empty(slot)
            self._slots[slot], weights.slot = weights, slot
            self._loads.append((slot, weights.loaded.key))
        weights.users.add(request)
        return weights.slot

    def loads(self) -> list[tuple[int, str]]:
        """(slot, key of the adapter) of what was not told yet, for the next step."""
        found, self._loads = self._loads, []
        return found

    def finish(self, request: Request) -> None:
        """A request that has ended, in whatever state."""
        self._settled = None
        adapter = self._of(request)
        adapter.requests.discard(request)
        if adapter.weights is not None:
            adapter.weights.users.discard(request)
        self._forget_unused(adapter)

    def lose(self, loads: Iterable[tuple[int, str]]) -> list[Request]:
        """After a step that was to fill slots, and failed: nobody knows what is in them. Returns the requests that use them."""
        users: list[Request] = []
        for slot, _ in loads:
            if (weights := self._slots[slot]) is not None:
                users += weights.users
                self._empty(slot)
        return users

    def reset(self) -> None:
        """No request is left, and nobody knows what is in the slots. What the host holds stays."""
        for slot in range(len(self._slots)):
            self._empty(slot)
        for weights in self._weights.values():
            weights.users.clear()
        for adapter in self._all():
            adapter.requests.clear()
            self._forget_unused(adapter)
        self._loads.clear()

    def load(self, request: LoRARequest) -> Adapter:
        """Begins to read an adapter, if it is not there; ``is_loaded`` asks for the end. Raises ValueError as ``find``, and if
        there is no room on the host."""
        adapter = self.find(request)
        self._register(adapter)
        self._read(adapter)
        if adapter.weights is not None:
            adapter.weights.last_used = next(self._clock)
        if adapter.weights is None and adapter not in self._reading and adapter.failure is None:
            self._forget_unused(adapter)
            raise ValueError(
                f"{_shown(request)} cannot be loaded: all {self._num_host} adapters that the host has room for are in use or "
                "pinned. Build the engine with a larger max_cpu_loras"
            )
        return adapter

    def is_loaded(self, adapter: Adapter) -> bool:
        """Raises what reading it failed with."""
        self._read(adapter)
        if adapter.failure is not None:
            raise adapter.failure
        return adapter not in self._reading

    def remove(self, lora_id: int) -> bool:
        """Forgets an adapter; False if it is not known. Raises ValueError while requests use it."""
        if (adapter := self._known.get(lora_id)) is None:
            return False
        if adapter.requests:
            raise ValueError(
                f"{_shown(adapter.request)} cannot be removed: {len(adapter.requests)} requests use it: wait, or abort them"
            )
        self._supersede(adapter)
        return True

    def pin(self, lora_id: int) -> bool:
        """Keeps an adapter on the host, and in its slot once it has one. Raises ValueError for one that is not loaded, and if no
        slot were left for adapters that others wait for."""
        adapter = self._known.get(lora_id)
        if adapter is None or adapter.weights is None:
            raise ValueError(f"the adapter with the id {lora_id} cannot be pinned: it is not loaded; add_lora loads it")
        num_left = len(self._slots) - self._num_pinned() - (not adapter.pinned)
        others = [other for other in self._all() if other.requests and not other.pinned and other is not adapter]
        if num_left < 0 or (not num_left and others):
            raise ValueError(
                f"{_shown(adapter.request)} cannot be pinned: of {len(self._slots)} slots {self._num_pinned()} are, and the rest "
                "is needed. Build the engine with a larger max_loras"
            )
        adapter.pinned, self._settled = True, None
        return True

    def ids(self) -> set[int]:
        """Of the adapters that the host holds."""
        return {lora_id for lora_id, adapter in self._known.items() if adapter.weights is not None}

    def names(self) -> tuple[list[str], list[str]]:
        """Of adapters with requests that wait, and that run."""
        waiting, running = set(), set()
        for adapter in self._all():
            users = adapter.requests & adapter.weights.users if adapter.weights is not None else set()
            if any(user.seat >= 0 for user in users):
                running.add(adapter.request.lora_name)
            if len(adapter.requests) > sum(user.seat >= 0 for user in users):
                waiting.add(adapter.request.lora_name)
        return sorted(waiting), sorted(running)

    def _of(self, request: Request) -> Adapter:
        assert request.adapter is not None
        return request.adapter

    def _all(self) -> list[Adapter]:
        return [*self._known.values(), *self._superseded]

    def _num_pinned(self) -> int:
        return sum(adapter.pinned for adapter in self._known.values())

    def _register(self, adapter: Adapter) -> None:
        request = adapter.request
        before = self._known.get(request.lora_int_id)
        if before is adapter or adapter in self._superseded:
            return
        if before is not None:
            adapter.pinned = before.pinned
            self._supersede(before)
        self._known[request.lora_int_id] = self._by_name[request.lora_name] = adapter

    def _supersede(self, adapter: Adapter) -> None:
        """It is known no more, but to the requests that have it."""
        self._settled = None
        adapter.pinned = False
        self._unlist(adapter)
        self._superseded.add(adapter)
        self._forget_unused(adapter)

    def _unlist(self, adapter: Adapter) -> None:
        del self._known[adapter.request.lora_int_id], self._by_name[adapter.request.lora_name]

    def _read(self, adapter: Adapter) -> None:
        """Begins to, if there is room; and takes in what has come."""
        if adapter.weights is not None or adapter.failure is not None:
            return
        if adapter not in self._reading and self._make_room():
            self._reading[adapter] = self._executor.load_adapter(adapter.request)
        if (load := self._reading.get(adapter)) is not None and load.done():
            self._take_in(adapter, load)

    def _take_in(self, adapter: Adapter, load: AdapterLoad) -> None:
        del self._reading[adapter]
        self._settled = None
        try:
            loaded = load.result()
        except Exception as error:
            _logger.warning("%s cannot be served: %s", _shown(adapter.request), error)
            adapter.failure = error
        else:
            weights = self._weights.get(loaded.key)
            if weights is None:
                weights = self._weights[loaded.key] = Weights(loaded)
            else:
                self._executor.drop_adapter(loaded.key)  # it holds one of two equal copies
            adapter.weights, weights.last_used = weights, next(self._clock)
            weights.adapters.add(adapter)
        if adapter in self._superseded or adapter.failure is not None:
            self._forget_unused(adapter)

    def _make_room(self) -> bool:
        """On the host, for one more, without those asked for in this turn."""
        if len(self._weights) + len(self._reading) < self._num_host:
            return True
        idle = [
            weights
            for weights in self._weights.values()
            if not (weights.users or weights.is_pinned or weights.adapters & self._asked)
        ]
        if not idle:
            return False
        self._drop(min(idle, key=lambda weights: weights.last_used))
        return True

    def _drop(self, weights: Weights) -> None:
        if weights.slot >= 0:
            self._empty(weights.slot)
        del self._weights[weights.loaded.key]
        for adapter in weights.adapters:
            adapter.weights = None
            self._forget_unused(adapter)
        self._executor.drop_adapter(weights.loaded.key)

    def _forget_unused(self, adapter: Adapter) -> None:
        """Of an adapter whose weights are not here the name alone is known; for one that was superseded nobody asks any more."""
        if adapter.requests or adapter in self._reading:
            return
        if adapter in self._superseded:
            self._superseded.discard(adapter)
            if (weights := adapter.weights) is not None:
                weights.adapters.discard(adapter)
                if not weights.adapters:
                    self._drop(weights)
        elif adapter.weights is None and self._known.get(adapter.request.lora_int_id) is adapter:
            self._unlist(adapter)

    def _start_asking(self) -> None:
        self._claims.clear()
        self._asked.clear()
        self._num_refused, self._all_claimed, self._settled = 0, False, None

    def _claim(self, adapter: Adapter) -> int | None:
        """A slot for an adapter that has none, as soon as that is empty; None: others come first."""
        if adapter in self._claims or self._all_claimed:
            return self._claims.get(adapter)
        claimed = set(self._claims.values())
        empties = any((weights := self._slots[slot]) is not None and weights.users for slot in claimed)
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

    def _empty(self, slot: int) -> None:
        self._settled, self._all_claimed = None, False
        if (weights := self._slots[slot]) is not None:
            weights.slot, self._slots[slot] = -1, None

    def _bind(self, request: Request, key: str) -> None:
        """What its blocks hold depends on these weights; before it was admitted, others may have been looked at for it."""
        keys = (*extra_keys(lora=key), *(found for found in request.extra_keys if not found[1].startswith(b"lora:")))
        if keys != request.extra_keys:
            request.extra_keys = keys
            request.block_hashes.clear()


class AdapterMethods:
    """What an engine's users do with adapters. All raise ValueError where the engine takes none."""

    _adapters: Adapters | None

    def start_lora(self, request: LoRARequest) -> Callable[[], bool]:
        """Begins to read an adapter. Returns what tells whether that is done, which raises ValueError for an adapter that cannot be
        served. Raises it itself for one that cannot be read now."""
        check_lora_request(request, self._adapters is not None)
        adapters = self._enabled()
        adapter = adapters.load(request)
        return lambda: adapters.is_loaded(adapter)

    def add_lora(self, request: LoRARequest) -> bool:
        """Reads an adapter before a request asks for it. Raises ValueError for one that cannot be served."""
        is_done = self.start_lora(request)
        while not is_done():
            time.sleep(WAIT_S)
        return True

    def remove_lora(self, lora_id: int) -> bool:
        """Forgets an adapter; False if it is not known. Raises ValueError while requests use it."""
        return self._enabled().remove(lora_id)

    def pin_lora(self, lora_id: int) -> bool:
        """Keeps an adapter that is loaded where it is, whatever others need. Raises ValueError if it cannot be."""
        return self._enabled().pin(lora_id)

    def list_loras(self) -> set[int]:
        """Ids of the adapters that the host holds."""
        return self._enabled().ids()

    def _find_adapter(self, request: LoRARequest | None) -> Adapter | None:
        check_lora_request(request, self._adapters is not None)
        return None if request is None else self._enabled().find(request)

    def _enabled(self) -> Adapters:
        if self._adapters is None:
            raise ValueError("this engine takes no adapters: build it with enable_lora=True (lora.enabled)")
        return self._adapters


def _is_same(known: LoRARequest, asked: LoRARequest) -> bool:
    """Whether they are of one adapter, whose folder may be another if it is read anew."""
    same_path = asked.load_inplace or known.lora_path == asked.lora_path
    return same_path and (known.lora_int_id, known.lora_name) == (asked.lora_int_id, asked.lora_name)


def _shown(request: LoRARequest) -> str:
    return f"the adapter {request.lora_name!r} (id {request.lora_int_id}, {request.lora_path})"
