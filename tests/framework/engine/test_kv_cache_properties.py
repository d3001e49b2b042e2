"""10,000 random operations on the KV manager: its books stay right, hits tell the truth, and every block is free at the end."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.engine.kv_cache.manager import KVCacheManager
from framework.engine.kv_cache.pool import NULL_BLOCK
from framework.engine.kv_cache.prefix import extra_keys
from framework.engine.kv_cache.spec import PagedKV
from framework.engine.request import Request

from ..engines import MODELS, make_request

OPERATIONS, RUNS = 200, 50
STATEFUL = {"states alone": (), "states beside a cache": MODELS["full"], "states beside windows": MODELS["hybrid"]}
KINDS = MODELS | STATEFUL


class Books:
    """A manager, its live requests, and what a device would hold: block -> (group, tokens up to the block's end), and snapshot ->
    the tokens that its states are of."""

    def __init__(self, model: str, num_blocks: int, block_size: int, seed: int) -> None:
        self.groups, self.has_states = KINDS[model], model in STATEFUL
        snapshots = {"has_states": True, "num_snapshots": 1 + seed % 5} if self.has_states else {}
        self.manager = KVCacheManager(self.groups, num_blocks, block_size, check_invariants=True, **snapshots)
        self.states: dict[int, tuple[object, ...]] = {}
        self.size = block_size
        self.random = random.Random(seed)
        self.live: dict[Request, int] = {}  # request -> computed tokens
        self.contents: dict[int, tuple[int, tuple[int, ...]]] = {}
        self.num_hits = self.num_forks = self.num_refused = 0

    def step(self) -> None:
        operation = self.random.choice((self.admit, self.admit, self.compute, self.compute, self.compute, self.fork, self.free))
        operation()
        if not self.live and self.random.random() < 0.02:
            assert self.manager.reset_prefix_cache()

    def pick(self) -> Request | None:
        return self.random.choice(list(self.live)) if self.live else None

    def admit(self) -> None:
        tokens = [self.random.randrange(2) for _ in range(self.random.randrange(1, 8 * self.size))]
        request = make_request(tokens, extra_keys=extra_keys(self.random.choice((None, None, "a"))))
        request.params.skip_reading_prefix_cache = self.random.random() < 0.05
        hit = self.manager.lookup(request)
        assert hit.num_tokens % self.size == 0 and hit.num_tokens < len(tokens)
        count = self.cut(hit.snapshot_ends, hit.num_tokens, len(tokens))
        if not self.manager.has_room(request, hit, count, 0):
            self.num_refused += 1
            return
        self.manager.admit(request, hit, count)
        self.num_hits += hit.num_tokens > 0
        self.live[request] = hit.num_tokens
        assert (request.snapshot >= 0) == (self.has_states and hit.num_tokens > 0)
        if request.snapshot >= 0:
            assert self.states[request.snapshot] == (*request.extra_keys, *tokens[: hit.num_tokens])
        self.check_reads(request, hit.num_tokens)
        self.write(request, count)

    def compute(self) -> None:
        if (request := self.pick()) is None:
            return
        while len(request.token_ids) <= self.live[request]:
            request.token_ids.append(self.random.randrange(2))
            request.num_tokens += 1
        count = self.cut(request.snapshot_ends, self.live[request], len(request.token_ids))
        if self.manager.grow(request, count) is None:
            self.num_refused += 1
            self.manager.free(request)
            del self.live[request]
        else:
            self.write(request, count)

    def fork(self) -> None:
        leader = self.pick()
        if leader is None or self.live[leader] < leader.num_prompt_tokens:
            return
        child = make_request(leader.token_ids[: leader.num_prompt_tokens], extra_keys=leader.extra_keys)
        copies = self.manager.fork(leader, child)
        if copies is not None:
            self.num_forks += 1
            self.live[child] = child.num_prompt_tokens - 1
            for group, source, destination in copies:
                assert source in leader.blocks[group] and destination in child.blocks[group]
            self.write(child, child.num_prompt_tokens)

    def free(self) -> None:
        if (request := self.pick()) is not None:
            self.manager.free(request)
            del self.live[request]

    def cut(self, ends: Sequence[int], start: int, most: int) -> int:
        """Tokens that are computed with the next step, of which none of ``ends`` is passed."""
        return self.random.randrange(start + 1, 1 + next((end for end in ends if start < end <= most), most))

    def write(self, request: Request, num_computed: int) -> None:
        """Full blocks written by this step must belong to nobody else. Some are committed only with a later step."""
        first = self.live[request] // self.size
        for group, table in enumerate(request.blocks):
            for index in range(first, -(-num_computed // self.size)):
                assert self.manager.pool.ref_counts[table[index]] == 1, "a shared block is written"
                end = (index + 1) * self.size
                self.contents[table[index]] = group, (*request.extra_keys, *request.token_ids[:end]) if end <= num_computed else ()
        self.check_reads(request, num_computed)
        self.live[request] = request.num_computed = num_computed
        if (snapshot := self.manager.snapshot(request)) is not None:
            self.states[snapshot] = (*request.extra_keys, *request.token_ids[:num_computed])
        if not self.has_states or self.random.random() < 0.8:
            self.manager.advance(request, num_computed)

    def check_reads(self, request: Request, num_computed: int) -> None:
        """Every full block that the next token sees holds this request's tokens."""
        for group, spec in enumerate(self.groups):
            assert isinstance(spec.spec, PagedKV)
            window = spec.spec.window or 1 << 30
            for index in range(max(0, num_computed - window + 1) // self.size, num_computed // self.size):
                block = request.blocks[group][index]
                assert block != NULL_BLOCK
                found = self.contents[block]
                assert found == (group, (*request.extra_keys, *request.token_ids[: (index + 1) * self.size]))


@pytest.mark.parametrize("model", list(KINDS))
@settings(max_examples=-(-RUNS // len(KINDS)), deadline=None, derandomize=True)
@given(num_blocks=st.integers(10, 80), block_size=st.sampled_from([1, 2, 4, 16]), seed=st.integers(0, 2**32))
def test_random_operations(model: str, num_blocks: int, block_size: int, seed: int) -> None:
    books = Books(model, num_blocks, block_size, seed)
    for _ in range(OPERATIONS):
        books.step()
    for request in list(books.live):
        books.manager.free(request)
    assert books.manager.pool.num_free == num_blocks - 1
    assert books.manager.reset_prefix_cache()
    books.manager.check_invariants()


@pytest.mark.parametrize("model", list(KINDS))
def test_the_random_operations_reach_every_mechanism(model: str) -> None:
    books = Books(model, 60, 2, seed=1)
    for _ in range(OPERATIONS):
        books.step()
    assert books.num_hits > 0 and (books.num_refused > 0 or not books.groups)
    assert (books.num_forks > 0) != books.has_states
