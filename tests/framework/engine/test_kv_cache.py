"""The books of the KV cache: hashes, reuse, eviction order, windows, forks."""

from __future__ import annotations

import pytest

from framework.config import CacheConfig, EngineConfig, SchedulerConfig
from framework.engine.kv_cache.manager import NEVER, KVCacheManager, PrefixHit
from framework.engine.kv_cache.memory import cache_blocks
from framework.engine.kv_cache.pool import NULL_BLOCK, BlockPool
from framework.engine.kv_cache.prefix import ROOT, chain_hash, extend_hashes, extra_keys
from framework.engine.kv_cache.spec import State, block_bytes, group_layers
from framework.engine.request import Request

from ..engines import FULL, MODELS, WINDOWED, make_request, token_params


def make_manager(model: str = "full", num_blocks: int = 20, prefix_caching: bool = True) -> KVCacheManager:
    return KVCacheManager(MODELS[model], num_blocks, 4, prefix_caching, check_invariants=True)


def admit(manager: KVCacheManager, request: Request) -> int:
    """Computes the whole prompt at once; returns how many of its tokens the cache held."""
    hit = manager.lookup(request)
    manager.admit(request, hit, request.num_tokens)
    manager.advance(request, request.num_tokens)
    return hit.num_tokens


@pytest.mark.parametrize("memory_bytes", [10**18, None])
def test_no_budget_makes_more_blocks_than_lists_hold(memory_bytes: int | None) -> None:
    config = EngineConfig(cache=CacheConfig(1, memory_bytes=memory_bytes), scheduler=SchedulerConfig(max_num_seqs=1 << 20))
    config.validate()
    for each in (0, 8):
        assert cache_blocks(config, 2, 1 << 20, each, lambda: 10**18) == 1 << 24


def test_layers_of_equal_spec_share_groups_of_equal_size() -> None:
    groups = group_layers([WINDOWED, WINDOWED, FULL, WINDOWED, WINDOWED, FULL])
    assert [group.layers for group in groups] == [(0, 1), (3, 4), (2, 5)]
    assert block_bytes(groups, 16) == 2 * 16 * 128 * 4


def test_blocks_are_reused_blank_first_then_least_recently_used() -> None:
    pool = BlockPool(7, 1)
    blocks = pool.allocate(6)
    assert blocks == [1, 2, 3, 4, 5, 6] and pool.num_free == 0 and pool.usage == 1
    for block in (1, 2, 3):
        pool.remember(0, bytes([block]), block)
    pool.release([3, 2, 1])
    pool.release([6, 5])
    assert pool.allocate(5) == [5, 6, 3, 2, 1]
    assert pool.lookup(0, bytes([3])) is None, "what a reused block held is forgotten"


def test_a_shared_block_is_not_evicted_and_not_freed_twice() -> None:
    pool = BlockPool(3, 1)
    (block, other) = pool.allocate(2)
    pool.remember(0, b"k", block)
    pool.release([block, NULL_BLOCK])
    assert pool.num_evictable([block]) == 1
    pool.share([block])
    pool.share([block])
    pool.release([other])
    assert pool.allocate(1) == [other] and pool.num_free == 0
    pool.release([block])
    assert pool.num_free == 0
    pool.release([block])
    assert pool.num_free == 1 and pool.lookup(0, b"k") == block
    pool.check([[other]])


def test_equal_content_is_findable_once() -> None:
    pool = BlockPool(4, 2)
    first, second, third = pool.allocate(3)
    pool.remember(0, b"k", first)
    pool.remember(0, b"k", second)
    pool.remember(1, b"k", third)
    assert (pool.lookup(0, b"k"), pool.lookup(1, b"k")) == (first, third)
    pool.check([[first, second, third]])


def test_corrupt_books_are_noticed() -> None:
    pool = BlockPool(4, 1)
    pool.allocate(2)
    with pytest.raises(AssertionError, match="reference count"):
        pool.check([[1]])


def test_hashes_are_a_chain() -> None:
    request = make_request([1, 2, 3, 4, 5, 6, 7, 8, 9])
    first, second = extend_hashes(request, 2, 4)
    assert first == chain_hash(ROOT, [1, 2, 3, 4]) and second == chain_hash(first, [5, 6, 7, 8])
    assert len(first) == 16 and second != chain_hash(ROOT, [5, 6, 7, 8])


def test_extra_keys_change_their_block_and_all_after_it() -> None:
    tokens = list(range(12))
    plain = extend_hashes(make_request(tokens), 3, 4)
    salted = extend_hashes(make_request(tokens, extra_keys=extra_keys("s")), 3, 4)
    adapted = extend_hashes(make_request(tokens, extra_keys=extra_keys(lora="s")), 3, 4)
    media = extend_hashes(make_request(tokens, extra_keys=extra_keys(media=((5, b"picture"),))), 3, 4)
    assert len({*plain, *salted, *adapted}) == 9
    assert media[0] == plain[0] and not {*media[1:]} & {*plain}
    assert extra_keys() == ()


def test_a_prefix_is_found_in_whole_blocks_and_the_last_token_is_left() -> None:
    manager = make_manager()
    first = make_request(list(range(12)))
    assert admit(manager, first) == 0
    assert manager.lookup(make_request(list(range(12)))).num_tokens == 8
    assert manager.lookup(make_request(list(range(13)))) == PrefixHit(12, [first.blocks[0][:3]])
    assert manager.lookup(make_request([0, 1, 2, 3, 9, 9, 9, 9, 9])).num_tokens == 4
    assert manager.lookup(make_request([9, *range(12)])).num_tokens == 0
    assert manager.lookup(make_request(list(range(13)), extra_keys=extra_keys("salt"))).num_tokens == 0
    skipping = Request("s", list(range(13)), token_params(skip_reading_prefix_cache=True), 100)
    assert manager.lookup(skipping).num_tokens == 0
    manager.free(first)
    assert manager.lookup(make_request(list(range(13)))).num_tokens == 12, "free blocks can be found until they are reused"


@pytest.mark.parametrize("model", ["full", "windowed"])
def test_where_tokens_read_ahead_the_last_cached_block_does_not_count(model: str) -> None:
    """The cache holds the same prompt, but for the token behind its second block."""
    manager = KVCacheManager(MODELS[model], 40, 4, check_invariants=True, reads_ahead=True)
    assert admit(manager, make_request(range(8))) == 0
    assert admit(manager, make_request([*range(8), 50, 51, 52])) == 4
    assert admit(manager, make_request([*range(8), 60, 61])) == 4
    assert admit(manager, make_request(range(5))) == 0


def test_only_computed_blocks_are_found() -> None:
    manager = make_manager()
    request = make_request(list(range(12)))
    manager.admit(request, manager.lookup(request), 12)
    assert manager.lookup(make_request(list(range(13)))).num_tokens == 0
    manager.advance(request, 7)
    assert manager.lookup(make_request(list(range(13)))).num_tokens == 4 and request.next_event == 8


def test_freed_prefixes_are_evicted_from_their_end() -> None:
    manager = make_manager(num_blocks=5)
    request = make_request(list(range(16)))
    admit(manager, request)
    manager.free(request)
    admit(manager, make_request([7, 7, 7], "other"))
    assert manager.lookup(make_request(list(range(17)))).num_tokens == 12


def test_admission_counts_the_free_blocks_it_reuses() -> None:
    manager = make_manager(num_blocks=5)
    request = make_request(list(range(16)))
    admit(manager, request)
    manager.free(request)
    longer = make_request(list(range(20)))
    hit = manager.lookup(longer)
    assert hit.num_tokens == 16 and not manager.has_room(longer, hit, 20, 0)
    manager.check_invariants()
    assert manager.pool.num_free == 4


def test_a_reservation_keeps_a_prompt_out_that_would_not_fit_later() -> None:
    manager = make_manager(num_blocks=5)
    request = make_request(list(range(16)))
    assert not manager.has_room(request, manager.lookup(request), 4, num_reserved=5)
    assert manager.has_room(request, manager.lookup(request), 4, num_reserved=4)
    manager.admit(request, manager.lookup(request), 4)
    assert request.capacity == 4 and manager.grow(request, 4) == []
    assert manager.grow(request, 9) == [(0, request.blocks[0][1:])] and request.capacity == 12
    assert manager.grow(request, 17 + 4) is None and request.capacity == 12


def test_the_cache_is_reset_only_when_nobody_uses_it() -> None:
    manager = make_manager()
    request = make_request(list(range(12)))
    admit(manager, request)
    assert not manager.reset_prefix_cache()
    manager.free(request)
    assert manager.reset_prefix_cache()
    assert manager.lookup(make_request(list(range(13)))).num_tokens == 0
    manager.check_invariants()


def test_blocks_outside_the_window_are_freed_and_stay_findable() -> None:
    manager = make_manager("windowed")  # window 9: token 20 sees 12..20
    request = make_request(list(range(20)))
    admit(manager, request)
    assert request.blocks[0][:3] == [NULL_BLOCK] * 3 and NULL_BLOCK not in request.blocks[0][3:]
    assert manager.pool.num_free == 19 - 2
    hit = manager.lookup(make_request(list(range(21))))
    assert hit.num_tokens == 20 and hit.blocks[0][:3] == [NULL_BLOCK] * 3
    assert manager.lookup(make_request(list(range(9)))).num_tokens == 8


def test_a_window_needs_only_its_last_blocks_and_all_groups_must_agree() -> None:
    manager = make_manager("hybrid", num_blocks=60)
    request = make_request(list(range(32)))
    admit(manager, request)
    hashes = request.block_hashes
    narrow, wide = (manager.pool.lookup(group, hashes[2]) for group in (1, 2))
    assert narrow is not None and wide is not None
    manager.pool._forget(narrow)  # block 2 of the narrow window: prefixes of 3 and 4 blocks need it
    probe = [make_request(list(range(4 * n + 1))) for n in range(9)]
    assert [manager.lookup(request).num_tokens // 4 for request in probe] == [0, 1, 2, 2, 2, 5, 6, 7, 8]
    manager.pool._forget(wide)  # the wide one needs it from 3 to 7
    assert [manager.lookup(request).num_tokens // 4 for request in probe] == [0, 1, 2, 2, 2, 2, 2, 2, 8]


def test_nothing_of_a_model_with_states_is_shared() -> None:
    manager = KVCacheManager(MODELS["full"], 20, 4, check_invariants=True, has_states=True)
    request = make_request(list(range(12)))
    assert admit(manager, request) == 0 and [len(table) for table in request.blocks] == [3]
    assert request.next_event == NEVER and manager.lookup(make_request(list(range(13)))).num_tokens == 0
    assert manager.blocks_for(12, 12) == 3 and manager.fork(request, make_request(list(range(12)))) is None


def test_requests_of_a_model_without_a_cache_hold_no_blocks() -> None:
    assert group_layers([None, None]) == () and block_bytes((), 16) == 0
    manager = KVCacheManager((), 1, 4, check_invariants=True, has_states=True)
    request = make_request(list(range(12)))
    assert admit(manager, request) == 0 and request.blocks == [] and manager.grow(request, 10**6) == []
    assert manager.blocks_for(10**6, 10**6) == 0 and manager.pool.usage == 0
    manager.free(request)


def test_layers_without_a_cache_are_in_no_group() -> None:
    groups = group_layers([None, FULL, None, WINDOWED, FULL])
    assert [group.layers for group in groups] == [(1,), (4,), (3,)]
    assert State(((3, 8), (2, 4, 4)), ("bfloat16", "float32")).row_bytes() == 48 + 128


@pytest.mark.parametrize("length", [1, 4, 5, 7, 8, 9])
@pytest.mark.parametrize("model", ["full", "hybrid"])
def test_a_fork_shares_full_blocks_and_copies_the_partial_one(model: str, length: int) -> None:
    manager = make_manager(model, num_blocks=60, prefix_caching=False)
    leader, child = make_request(list(range(length))), make_request(list(range(length)), "child")
    admit(manager, leader)
    copies = manager.fork(leader, child)
    full, partial = divmod(length - 1, 4)
    assert copies is not None and len(copies) == (manager._num_groups if partial else 0)
    for group, source, destination in copies:
        assert source == leader.blocks[group][full] and destination == child.blocks[group][full] != source
    for group in range(manager._num_groups):
        assert leader.blocks[group][:full] == child.blocks[group][:full] and len(child.blocks[group]) == -(-length // 4)
    manager.free(leader)
    manager.free(child)
    assert manager.pool.num_free == 59


def test_no_fork_from_a_leader_whose_window_moved_on() -> None:
    manager = make_manager("windowed", prefix_caching=False)
    leader = make_request(list(range(12)))
    admit(manager, leader)
    assert manager.grow(leader, 16) is not None
    manager.advance(leader, 16)
    assert manager.fork(leader, make_request(list(range(12)))) is None
    manager.check_invariants()
