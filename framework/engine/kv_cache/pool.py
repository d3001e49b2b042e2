"""The blocks of the cache: reference counts, free blocks, and which of them still hold a prefix that can be reused."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

NULL_BLOCK: Final = 0
"""Stands in block tables for a block that left its window. Never allocated, never read."""


class BlockPool:
    """Blocks 1 .. num_blocks-1. A free block is either blank (reused first, last freed first) or cached (evicted least
    recently used first). The prefix map of a group leads from hash to the one block that holds it."""

    def __init__(self, num_blocks: int, num_groups: int) -> None:
        self.num_blocks = num_blocks
        self.ref_counts = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, 0, -1))
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._block_of: list[dict[bytes, int]] = [{} for _ in range(num_groups)]
        self._key_of: dict[int, tuple[int, bytes]] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated, cached ones included."""
        return len(self._blank) + len(self._evictable)

    @property
    def usage(self) -> float:
        """Fraction of the blocks that requests hold."""
        usable = self.num_blocks - 1
        return 1.0 - self.num_free / usable if usable else 0.0

    def allocate(self, count: int) -> list[int]:
        """``count`` blocks with one reference each; the caller has checked ``num_free``."""
        blank, counts, blocks = self._blank, self.ref_counts, []
        for _ in range(count):
            if blank:
                block = blank.pop()
            else:
                block, _ = self._evictable.popitem(last=False)
                self._forget(block)
            counts[block] = 1
            blocks.append(block)
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Adds a reference to each block; null blocks are passed over."""
        counts = self.ref_counts
        for block in blocks:
            if block != NULL_BLOCK:
                if counts[block] == 0:
                    del self._evictable[block]
                counts[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drops a reference of each block, in the order in which they should be evicted."""
        counts, key_of = self.ref_counts, self._key_of
        for block in blocks:
            if block != NULL_BLOCK:
                counts[block] -= 1
                if counts[block] == 0:
                    if block in key_of:
                        self._evictable[block] = None
                    else:
                        self._blank.append(block)

    def num_evictable(self, blocks: Iterable[int]) -> int:
        """How many of ``blocks`` are free: sharing them takes them out of ``num_free``."""
        return sum(block in self._evictable for block in blocks)

    def lookup(self, group: int, key: bytes) -> int | None:
        """The block of ``group`` that holds the prefix with this hash."""
        return self._block_of[group].get(key)

    def remember(self, group: int, key: bytes, block: int) -> None:
        """Makes ``block``, in use and fully computed, findable. If another one holds the same content already, that one stays."""
        if block != NULL_BLOCK and block not in self._key_of and key not in self._block_of[group]:
            self._block_of[group][key] = block
            self._key_of[block] = group, key

    def forget_all(self) -> bool:
        """Empties the prefix maps; False, and nothing happens, while any block is in use."""
        if self.num_free != self.num_blocks - 1:
            return False
        self._blank.extend(self._evictable)
        self._evictable.clear()
        self._key_of.clear()
        for block_of in self._block_of:
            block_of.clear()
        return True

    def check(self, tables: Iterable[Iterable[int]]) -> None:
        """Asserts that the books agree with ``tables``, all block tables that hold references."""
        expected = [0] * self.num_blocks
        for table in tables:
            for block in table:
                expected[block] += 1
        expected[NULL_BLOCK] = 0
        assert expected == self.ref_counts, "a reference count differs from the number of tables that hold the block"
        free = [*self._blank, *self._evictable]
        assert len(set(free)) == len(free), "a block is free twice"
        assert set(free) == {b for b in range(1, self.num_blocks) if expected[b] == 0}, "a block is free and in use, or lost"
        assert all(block in self._key_of for block in self._evictable), "a blank block waits for eviction"
        assert not any(block in self._key_of for block in self._blank), "a blank block still has a hash"
        assert self._key_of == {b: (g, k) for g, block_of in enumerate(self._block_of) for k, b in block_of.items()}

    def _forget(self, block: int) -> None:
        group, key = self._key_of.pop(block)
        del self._block_of[group][key]
