"""Which of several engines serves a request. Pure: a router sees prompts and counts, and keeps no other state than its own."""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from .kv_cache.prefix import ROOT, chain_hash, extra_keys

if TYPE_CHECKING:
    from .prompts import EngineInput


class Replica(Protocol):
    """What a router may know of an engine: its own books, or those that are kept of what was sent to it (``InFlight``).

    num_waiting, num_running  requests without a seat, and with one
    num_queued_tokens         tokens that are known and not yet computed, of all of them
    """

    @property
    def num_waiting(self) -> int: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_queued_tokens(self) -> int: ...


class InFlight:
    """A replica by what was sent to it and has not ended: exact at every moment, where a count that the engine sends is as old as
    its last step. Who waits there is not known, and counts as running. Any thread may call any method.

    num_running        completions
    num_queued_tokens  prompt tokens of the requests of which nothing came back yet
    """

    num_waiting = 0

    def __init__(self) -> None:
        self.num_running = self.num_queued_tokens = 0
        self._lock = threading.Lock()
        self._requests: dict[str, tuple[int, int]] = {}

    def add(self, key: str, num_completions: int, num_prompt_tokens: int) -> None:
        """A request is sent."""
        with self._lock:
            self._requests[key] = num_completions, num_prompt_tokens
            self.num_running += num_completions
            self.num_queued_tokens += num_prompt_tokens

    def take(self, key: str, finished: bool) -> None:
        """Something came of a request, or its end. Keys that are not in flight are passed over."""
        with self._lock:
            if (found := self._requests.pop(key, None)) is None:
                return
            num_completions, num_queued = found
            self.num_queued_tokens -= num_queued
            if finished:
                self.num_running -= num_completions
            else:
                self._requests[key] = num_completions, 0


class Router(Protocol):
    """Called once per request, in the order of arrival; ``seed`` is of all that it leaves to chance."""

    def __init__(self, seed: int) -> None: ...

    def route(self, request: EngineInput, replicas: Sequence[Replica]) -> int:
        """Index of the replica that takes the request; there are as many at every call."""


def load(replica: Replica) -> int:
    """Requests that are there."""
    return replica.num_waiting + replica.num_running


class RoundRobin:
    """One after the other."""

    def __init__(self, seed: int) -> None:
        self._num_routed = 0

    def route(self, request: EngineInput, replicas: Sequence[Replica]) -> int:
        self._num_routed += 1
        return (self._num_routed - 1) % len(replicas)


class Random:
    """Each as likely."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def route(self, request: EngineInput, replicas: Sequence[Replica]) -> int:
        return self._random.randrange(len(replicas))


class LeastLoaded:
    """The fewest requests; among equals, the one whose turn is longest ago."""

    def __init__(self, seed: int) -> None:
        self._num_routed = 0
        self._last: dict[int, int] = {}

    def route(self, request: EngineInput, replicas: Sequence[Replica]) -> int:
        chosen = min(range(len(replicas)), key=lambda i: (*self._load(replicas[i]), self._last.get(i, -1)))
        self._last[chosen] = self._num_routed
        self._num_routed += 1
        return chosen

    def _load(self, replica: Replica) -> tuple[float, ...]:
        return (load(replica),)


class LeastTokens(LeastLoaded):
    """The fewest tokens to compute, then the fewest requests: long prompts weigh what they cost."""

    def _load(self, replica: Replica) -> tuple[float, ...]:
        return replica.num_queued_tokens, load(replica)


class PowerOfTwo:
    """The one with fewer requests of two that chance picks (Mitzenmacher, IEEE TPDS 2001): nearly as even as the least loaded of
    all, and asks but two."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def route(self, request: EngineInput, replicas: Sequence[Replica]) -> int:
        pair = self._random.sample(range(len(replicas)), min(2, len(replicas)))
        return min(pair, key=lambda i: load(replicas[i]))


class PrefixAware:
    """Where the longest prefix of the prompt was sent before, if that is long enough to matter and no replica has far more
    requests than another; else the least loaded (as SGLang's router does).

    It remembers what it sent where, not what caches still hold: blocks of BLOCK_TOKENS tokens, the latest MAX_BLOCKS of them.
    """

    BLOCK_TOKENS: Final = 64
    MAX_BLOCKS: Final = 1 << 20
    MIN_SHARE: Final = 0.3  # of the prompt: what every prompt begins with must not send them all to one place
    MAX_AHEAD, MAX_RATIO = 16, 1.5  # requests that one replica may have more than another; both must be exceeded

    def __init__(self, seed: int) -> None:
        self._fallback = LeastLoaded(seed)
        self._places: OrderedDict[bytes, int] = OrderedDict()  # hash of a prefix -> bit set of replicas

    def route(self, request: EngineInput, replicas: Sequence[Replica]) -> int:
        hashes = self._hashes(request)
        places, num_found = (1 << len(replicas)) - 1, 0
        for key in hashes:
            if not (here := places & self._places.get(key, 0)):
                break
            places, num_found = here, num_found + 1
        loads = [load(replica) for replica in replicas]
        most, least = max(loads), min(loads)
        unbalanced = most - least > self.MAX_AHEAD and most > self.MAX_RATIO * least
        if unbalanced or num_found * self.BLOCK_TOKENS < self.MIN_SHARE * len(request.token_ids):
            chosen = self._fallback.route(request, replicas)
        else:
            chosen = min((i for i in range(len(replicas)) if places >> i & 1), key=loads.__getitem__)
        for key in hashes:
            self._places[key] = self._places.pop(key, 0) | 1 << chosen
        while len(self._places) > self.MAX_BLOCKS:
            self._places.popitem(last=False)
        return chosen

    def _hashes(self, request: EngineInput) -> list[bytes]:
        """Of the prompt's full blocks."""
        ids, size, hashes = request.token_ids, self.BLOCK_TOKENS, [ROOT]
        salt = tuple(key for _, key in extra_keys(request.cache_salt))
        for end in range(size, len(ids) + 1, size):
            hashes.append(chain_hash(hashes[-1], ids[end - size : end], salt if end == size else ()))
        return hashes[1:]


ROUTERS: dict[str, type[Router]] = {
    "round_robin": RoundRobin,
    "random": Random,
    "least_loaded": LeastLoaded,
    "least_tokens": LeastTokens,
    "power_of_two": PowerOfTwo,
    "prefix_aware": PrefixAware,
}
"""The table of routers; adding one is an entry. ``router`` names them."""
