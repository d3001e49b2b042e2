"""Which blocks each request holds: allocation, prefix reuse, windows, forks. Pure bookkeeping; no tensors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..request import Request
from .pool import NULL_BLOCK, BlockPool
from .prefix import extend_hashes
from .snapshots import Snapshots
from .spec import CacheGroup, CrossKV

NEVER: Final = sys.maxsize


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """Blocks per group that hold the first ``num_tokens`` tokens; null blocks where a window does not reach. snapshot_ends: as of
    ``Request``."""

    num_tokens: int
    blocks: list[list[int]]
    snapshot_ends: Sequence[int] = ()

    @property
    def shared(self) -> list[int]:
        """The blocks of all groups."""
        return [block for table in self.blocks for block in table if block != NULL_BLOCK]


class KVCacheManager:
    """The block tables of all requests over one pool.

    Every group has as many entries in a request's table; a window turns entries into null blocks. A model of recurrent layers alone
    has no group: its requests hold no blocks. Tables of ``CrossKV`` are as long as what an encoder gave for a request, from its
    admission on.
    """

    def __init__(
        self,
        groups: tuple[CacheGroup, ...],
        num_blocks: int,
        block_size: int,
        prefix_caching: bool = True,
        check_invariants: bool = False,
        reads_ahead: bool = False,
        has_states: bool = False,
        num_snapshots: int = 0,
    ) -> None:
        """has_states: some layers keep states, of which nothing can be shared, and a prefix be found only where it is one of the
        ``num_snapshots`` whose states are kept.
        reads_ahead: what is kept of a token depends on the token after it, too: the last block of a cached prefix does not
        count, behind which another token may have stood."""
        self.block_size = block_size
        self.pool = BlockPool(num_blocks, len(groups))
        self._cross = [i for i, g in enumerate(groups) if isinstance(g.spec, CrossKV)]
        self._growing = [i for i in range(len(groups)) if i not in self._cross]
        self._windows = {i: g.spec.window for i, g in enumerate(groups) if g.spec.window is not None}
        self._unlimited = [i for i in self._growing if i not in self._windows]
        self._num_groups, self._has_states = len(groups), has_states
        self.prefix_caching = prefix_caching and not self._cross and (num_snapshots > 0 or not has_states)
        self._snapshots = Snapshots(num_snapshots) if self.prefix_caching and has_states else None
        self._check_invariants, self._reads_ahead = check_invariants, reads_ahead
        self._holders: set[Request] = set()

    def blocks_for(self, num_tokens: int, num_uncommitted: int, num_encoded: int = 0) -> int:
        """Most blocks that a request alone can hold while its first ``num_tokens`` tokens are computed, when at most
        ``num_uncommitted`` of them are in steps that were not committed, so that windows could not move past them; nor do they
        within a block, see ``_next_event``. num_encoded: as of ``Request``."""
        total, ahead = self._ceil(num_tokens), self._ceil(num_uncommitted - 1)
        windowed = sum(min(total, self._ceil(window - 1) + 1 + ahead) for window in self._windows.values())
        return len(self._unlimited) * total + windowed + len(self._cross) * self._ceil(num_encoded)

    def reads_prefix(self, request: Request) -> bool:
        """Whether the prefix cache is asked for this request. Never if it wants log-probabilities of its prompt, whatever else it
        says: cached tokens are not computed, and so have none."""
        params = request.params
        return self.prefix_caching and not params.skip_reading_prefix_cache and params.prompt_logprobs is None

    def lookup(self, request: Request) -> PrefixHit:
        """The longest cached prefix that holds for every group, and of which states are kept if there are any. The last known token
        is always left to compute, because its logits are wanted. Takes no references."""
        reads, snapshots = self.reads_prefix(request), self._snapshots
        if not reads and snapshots is None:
            return PrefixHit(0, [[] for _ in range(self._num_groups)])
        limit = (request.num_tokens - 1) // self.block_size
        hashes = extend_hashes(request, limit, self.block_size)
        limit *= reads
        find = self.pool.lookup
        for group in self._unlimited:
            limit = next((i for i in range(limit) if find(group, hashes[i]) is None), limit)
        limit = max(limit - self._reads_ahead, 0)
        settled = False
        while not settled:  # a shorter hit for one window may be none for another
            settled = True
            for group, window in self._windows.items():
                shorter = self._windowed_hit(group, window, hashes, limit)
                settled, limit = settled and shorter == limit, shorter
            if snapshots is not None:
                shorter = snapshots.longest(hashes, limit)
                settled, limit = settled and shorter == limit, shorter
        blocks: list[list[int]] = [[] for _ in range(self._num_groups)]
        for group in self._growing:
            first = self._first_live(group, limit * self.block_size)
            blocks[group] = [NULL_BLOCK if i < first else find(group, hashes[i]) or NULL_BLOCK for i in range(limit)]
        ends = () if snapshots is None else snapshots.ends(self._prompt_hashes(request), limit)
        return PrefixHit(limit * self.block_size, blocks, tuple(count * self.block_size for count in ends))

    def has_room(self, request: Request, hit: PrefixHit, num_tokens: int, num_reserved: int) -> bool:
        """Whether the free blocks would do for ``admit``, and for ``num_reserved`` blocks in all."""
        num_new = self._ceil(num_tokens) - self._ceil(hit.num_tokens)
        shared, num_cross = hit.shared, self._ceil(request.num_encoded)
        needed = max(num_reserved - len(shared), num_new * len(self._growing) + num_cross * len(self._cross))
        return needed <= self.pool.num_free - self.pool.num_evictable(shared)

    def admit(self, request: Request, hit: PrefixHit, num_tokens: int) -> None:
        """Gives a request the blocks of ``hit`` and new ones for ``num_tokens`` tokens in all, for which there is room."""
        num_hit = self._ceil(hit.num_tokens)
        num_new, num_cross = self._ceil(num_tokens) - num_hit, self._ceil(request.num_encoded)
        self.pool.share(hit.shared)
        request.blocks = hit.blocks
        for group in self._growing:
            request.blocks[group] = hit.blocks[group] + self.pool.allocate(num_new)
        for group in self._cross:
            request.blocks[group] = self.pool.allocate(num_cross)
        if self._snapshots is not None:
            self._snapshots.see(self._prompt_hashes(request))
            request.snapshot_ends = hit.snapshot_ends
            request.snapshot = self._snapshots.use(request.block_hashes[num_hit - 1]) if num_hit else -1
        self._hold(request, hit.num_tokens)

    def snapshot(self, request: Request) -> int | None:
        """The row that is to keep the states of the tokens that a request has computed with the step that is being made up; None:
        none is."""
        if self._snapshots is None or request.num_computed not in request.snapshot_ends:
            return None
        key = request.block_hashes[request.num_computed // self.block_size - 1]
        return self._snapshots.make(request, request.num_computed, key)

    def grow(self, request: Request, num_tokens: int) -> list[tuple[int, list[int]]] | None:
        """Appends blocks until ``num_tokens`` tokens fit: (group, new blocks) per group. None, and nothing happens, if there
        are not enough."""
        num_new = self._ceil(num_tokens) - request.capacity // self.block_size
        if num_new <= 0:
            return []
        if num_new * len(self._growing) > self.pool.num_free:
            return None
        grown = [(group, self.pool.allocate(num_new)) for group in self._growing]
        for group, blocks in grown:
            request.blocks[group] += blocks
        request.capacity += num_new * self.block_size
        self._check()
        return grown

    def fork(self, leader: Request, child: Request) -> list[tuple[int, int, int]] | None:
        """Lets ``child``, a request with the same prompt, share the full blocks of all but the last token of the prompt that
        ``leader`` has computed; a partial block is to be copied: (group, source, destination). The child computes the last
        token itself, because its logits are wanted. None, and nothing happens, if the blocks do not suffice or are gone."""
        num_shared_tokens = child.num_prompt_tokens - 1
        num_full, partial = divmod(num_shared_tokens, self.block_size)
        num_own = self._ceil(child.num_prompt_tokens) - num_full
        if self._has_states or self._cross or num_own * len(self._growing) > self.pool.num_free:
            return None
        shared: list[list[int]] = [[] for _ in range(self._num_groups)]
        for group in self._growing:
            first = self._first_live(group, num_shared_tokens)
            shared[group] = [NULL_BLOCK if i < first else leader.blocks[group][i] for i in range(num_full + (partial > 0))]
            if NULL_BLOCK in shared[group][first:]:  # the leader's window has moved on
                return None
        copies = []
        for group in self._growing:
            self.pool.share(shared[group][:num_full])
            own = self.pool.allocate(num_own)
            if partial and shared[group][num_full] != NULL_BLOCK:
                copies.append((group, shared[group][num_full], own[0]))
            shared[group][num_full:] = own
        child.blocks = shared
        self._hold(child, num_shared_tokens)
        return copies

    def advance(self, request: Request, num_computed: int) -> None:
        """The first ``num_computed`` tokens are in the cache now: makes their full blocks findable, and gives back blocks that
        every later token's window has left. Sets ``next_event`` to the count at which to call again."""
        if self.prefix_caching:
            num_full = num_computed // self.block_size
            hashes = extend_hashes(request, num_full, self.block_size)
            for group in self._growing:
                table = request.blocks[group]
                for i in range(request.num_hashed, num_full):
                    self.pool.remember(group, hashes[i], table[i])
            request.num_hashed = num_full
        if self._snapshots is not None:
            self._snapshots.keep(request, num_computed)
        for group in self._windows:
            table = request.blocks[group]
            i = self._first_live(group, num_computed) - 1
            while i >= 0 and table[i] != NULL_BLOCK:  # all entries before a null block are null
                self.pool.release((table[i],))
                table[i] = NULL_BLOCK
                i -= 1
        request.next_event = self._next_event(num_computed)
        self._check()

    def free(self, request: Request) -> None:
        """Takes everything back. Later blocks are evicted before earlier ones, which more prefixes share."""
        if self._snapshots is not None:
            self._snapshots.drop(request)
        for table in request.blocks:
            self.pool.release(reversed(table))
        request.blocks = []
        request.capacity = request.num_hashed = 0
        self._holders.discard(request)
        self._check()

    def reset_prefix_cache(self) -> bool:
        """Forgets every cached prefix; False, and nothing happens, while any request holds blocks or states."""
        if self._holders or not self.pool.forget_all():
            return False
        if self._snapshots is not None:
            self._snapshots.forget_all()
        return True

    def check_invariants(self) -> None:
        """Asserts that pool and tables agree."""
        self.pool.check(table for request in self._holders for table in request.blocks)
        if self._snapshots is not None:
            self._snapshots.check(self._holders)
        for request in self._holders:
            for group in self._growing:
                assert len(request.blocks[group]) * self.block_size == request.capacity
            for group in self._cross:
                assert len(request.blocks[group]) == self._ceil(request.num_encoded)
            for group in self._unlimited:
                assert NULL_BLOCK not in request.blocks[group]

    def _hold(self, request: Request, num_computed: int) -> None:
        self._holders.add(request)
        request.capacity = len(request.blocks[self._growing[0]]) * self.block_size if self._growing else NEVER
        request.num_hashed = num_computed // self.block_size
        request.next_event = self._next_event(num_computed)
        self._check()

    def _next_event(self, num_computed: int) -> int:
        if self.prefix_caching or self._windows:
            return (num_computed // self.block_size + 1) * self.block_size
        return NEVER

    def _windowed_hit(self, group: int, window: int, hashes: list[bytes], limit: int) -> int:
        """Longest prefix in blocks, at most ``limit``, of which ``group`` holds what the next token's window reaches."""
        wanted, found = self._ceil(window - 1), 0
        for i in range(limit - 1, -1, -1):
            if found == wanted:
                return i + 1 + found
            found = found + 1 if self.pool.lookup(group, hashes[i]) is not None else 0
        return found

    def _first_live(self, group: int, num_computed: int) -> int:
        """First block that the token after ``num_computed`` can see."""
        window = self._windows.get(group)
        return 0 if window is None else max(0, num_computed - window + 1) // self.block_size

    def _prompt_hashes(self, request: Request) -> list[bytes]:
        """Of the blocks before the last token of its prompt, which another request with this prompt computes again."""
        return request.block_hashes[: (request.num_prompt_tokens - 1) // self.block_size]

    def _ceil(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _check(self) -> None:
        if self._check_invariants:
            self.check_invariants()
