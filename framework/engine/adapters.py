"""Which adapters an engine knows, and which of them the host holds."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable

from ..lora_request import LoraConfig, LoRARequest
from .adapter_slots import Adapter, AdapterSlots, Weights
from .executor import AdapterLoad, HoldsAdapters
from .kv_cache.prefix import extra_keys
from .request import Request

_logger = logging.getLogger(__name__)


class Adapters:
    """The books of an engine's adapters: at most ``num_host_loras`` on the host, those being read included, and ``max_loras`` of
    them in slots, both least recently used first out. What requests use stays.

    A request is asked for in the order of the scheduler's policy whether its adapter is there. If not, those behind it are let by;
    who gets a slot, AdapterSlots says.
    """

    def __init__(self, config: LoraConfig, executor: HoldsAdapters) -> None:
        self._executor, self._num_host = executor, config.num_host_loras
        self._known: dict[int, Adapter] = {}  # by id
        self._by_name: dict[str, Adapter] = {}  # the same
        self._superseded: set[Adapter] = set()
        self._reading: dict[Adapter, AdapterLoad] = {}
        self._weights: dict[str, Weights] = {}  # by key
        self._slots = AdapterSlots(config.max_loras)
        self._clock = itertools.count(1)
        self._asked: set[Adapter] = set()  # in this turn of the scheduler
        self._num_refused = 0  # likewise
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
        adapter = _of(request)
        self._register(adapter)
        adapter.requests.add(request)

    def hold_back(self, request: Request) -> None:
        """Lets others by until the request's adapter is there, as well as what it waits for otherwise."""
        others = request.is_ready
        request.is_ready = lambda: (others is None or others()) and self.is_ready(request)

    def start_turn(self) -> None:
        """The scheduler asks from the beginning."""
        for adapter in list(self._reading):
            self._receive(adapter)
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
        adapter = _of(request)
        if adapter.weights is not None and request in adapter.weights.users:
            return True  # it was preempted
        self._asked.add(adapter)
        self._read(adapter)
        if adapter.failure is not None:
            raise adapter.failure
        if (weights := adapter.weights) is None:
            self._slots.claim(adapter)
            return False
        weights.last_used = next(self._clock)
        if not self._slots.is_ready(adapter):
            return False
        _bind(request, weights.loaded.key)
        return True

    def take(self, request: Request) -> int:
        """The slot of a request that is ready and was admitted; ``loads`` says what is new in it."""
        adapter = _of(request)
        weights = adapter.weights
        assert weights is not None, "it was ready"
        if weights.slot < 0:
            self._slots.fill(adapter)
        weights.users.add(request)
        return weights.slot

    def loads(self) -> list[tuple[int, str]]:
        """(slot, key of the adapter) of what was not told yet, for the next step."""
        return self._slots.loads()

    def finish(self, request: Request) -> None:
        """A request that has ended, in whatever state."""
        self._settled = None
        adapter = _of(request)
        adapter.requests.discard(request)
        if adapter.weights is not None:
            adapter.weights.users.discard(request)
        self._forget_unused(adapter)

    def lose(self, loads: Iterable[tuple[int, str]]) -> list[Request]:
        """After a step that was to fill slots, and failed: nobody knows what is in them. Returns the requests that use them."""
        self._settled = None
        return self._slots.lose(loads)

    def reset(self) -> None:
        """No request is left, and nobody knows what is in the slots. What the host holds stays."""
        self._settled = None
        self._slots.reset()
        for weights in self._weights.values():
            weights.users.clear()
        for adapter in self._all():
            adapter.requests.clear()
            self._forget_unused(adapter)

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
        """Whether it has been read. Raises what that failed with."""
        self._receive(adapter)
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
        """Begins to, if it is needed and there is room; and takes in what has come."""
        if adapter.weights is not None or adapter.failure is not None:
            return
        if adapter not in self._reading and self._make_room():
            self._reading[adapter] = self._executor.load_adapter(adapter.request)
        self._receive(adapter)

    def _receive(self, adapter: Adapter) -> None:
        """Takes in what has come of reading it."""
        load = self._reading.get(adapter)
        if load is None or not load.done():
            return
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
            self._settled = None
            self._slots.empty(weights.slot)
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
        self._slots.start_turn()
        self._asked.clear()
        self._num_refused, self._settled = 0, None


def _of(request: Request) -> Adapter:
    assert request.adapter is not None
    return request.adapter


def _bind(request: Request, key: str) -> None:
    """What its blocks hold depends on these weights; before it was admitted, others may have been looked at for it."""
    keys = (*extra_keys(lora=key), *(found for found in request.extra_keys if not found[1].startswith(b"lora:")))
    if keys != request.extra_keys:
        request.extra_keys = keys
        request.block_hashes.clear()


def _is_same(known: LoRARequest, asked: LoRARequest) -> bool:
    """Whether they are of one adapter, whose folder may be another if it is read anew."""
    same_path = asked.load_inplace or known.lora_path == asked.lora_path
    return same_path and (known.lora_int_id, known.lora_name) == (asked.lora_int_id, asked.lora_name)


def _shown(request: LoRARequest) -> str:
    return f"the adapter {request.lora_name!r} (id {request.lora_int_id}, {request.lora_path})"
