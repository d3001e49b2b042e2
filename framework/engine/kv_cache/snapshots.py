"""Which prefixes' states are kept. A state is of all tokens before it: what is to be found later has to be copied in time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Final

from ..request import Request

MAX_SEEN: Final = 2**16
"""Hashes of blocks that requests came with, of which it is remembered that they did: 10 MB."""


class Snapshots:
    """Rows of copies of states, found by the hash of the tokens that they are of. A row is blank; or being made, by a step that was
    not committed; or kept until room is needed, the least recently used first.

    Copies are many times as large as a block, so they are made only where one may be of use: at the last full block of a prompt,
    for requests that go on from it, and where a prompt leaves what another one began with, for the next that begins so.
    """

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._blank = list(range(num_rows - 1, -1, -1))
        self._kept: OrderedDict[bytes, int] = OrderedDict()
        self._making: dict[Request, list[tuple[int, bytes, int]]] = {}  # tokens, hash, row
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def longest(self, hashes: Sequence[bytes], limit: int) -> int:
        """Blocks, at most ``limit``, of the longest prefix whose states are kept."""
        return next((count for count in range(limit, 0, -1) if hashes[count - 1] in self._kept), 0)

    def ends(self, hashes: Sequence[bytes], num_hit: int) -> list[int]:
        """Numbers of blocks, more than ``num_hit``, after which states of a prompt with these hashes are worth a copy."""
        seen = next((count for count, key in enumerate(hashes) if key not in self._seen), len(hashes))
        return [count for count in sorted({seen, len(hashes)}) if count > num_hit and not self._is_there(hashes[count - 1])]

    def see(self, hashes: Sequence[bytes]) -> None:
        """Remembers that a prompt came with these hashes."""
        for key in reversed(hashes):  # so that the first blocks, without which the others are not found, are forgotten last
            self._seen[key] = None
            self._seen.move_to_end(key)
        while len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)

    def use(self, key: bytes) -> int:
        """The row with this hash."""
        self._kept.move_to_end(key)
        return self._kept[key]

    def make(self, request: Request, num_tokens: int, key: bytes) -> int | None:
        """A row for the states after the first tokens of a request, whose hash is ``key``, which a step is about to compute; None
        if there is one already, or none can be had."""
        if self._is_there(key) or not (self._blank or self._kept):
            return None
        row = self._blank.pop() if self._blank else self._kept.popitem(last=False)[1]
        self._making.setdefault(request, []).append((num_tokens, key, row))
        return row

    def keep(self, request: Request, num_computed: int) -> None:
        """What was to be made of the first ``num_computed`` tokens of a request is there."""
        making = self._making.pop(request, [])
        done = [made for made in making if made[0] <= num_computed]
        for _, key, row in done:
            self._kept[key] = row
        if rest := making[len(done) :]:
            self._making[request] = rest

    def drop(self, request: Request) -> None:
        """Gives up what is still being made of a request."""
        self._blank += [row for _, _, row in self._making.pop(request, ())]

    def forget_all(self) -> None:
        """Of no request anything is being made."""
        self._blank += self._kept.values()
        self._kept.clear()
        self._seen.clear()

    def check(self, holders: Collection[Request]) -> None:
        """Asserts that every row is in one place, and no copy is made twice, or for a request that is gone."""
        making = [made for of_request in self._making.values() for made in of_request]
        rows = [*self._blank, *self._kept.values(), *(row for _, _, row in making)]
        assert sorted(rows) == list(range(self.num_rows)), "a row of states has two uses, or is lost"
        keys = [*self._kept, *(key for _, key, _ in making)]
        assert len(set(keys)) == len(keys), "states are kept twice"
        assert all(self._making.values()) and self._making.keys() <= set(holders), "states are being made of nobody"

    def _is_there(self, key: bytes) -> bool:
        """Or will be."""
        return key in self._kept or any(key == other for made in self._making.values() for _, other, _ in made)
