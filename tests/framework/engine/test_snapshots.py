"""States that are kept of prefixes: where prompts are cut for them, who finds them, and which go first."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from framework.clock import VirtualClock
from framework.config import CacheConfig
from framework.engine.engine import Engine
from framework.engine.inputs import InputProcessor
from framework.engine.kv_cache.manager import KVCacheManager
from framework.engine.kv_cache.snapshots import Snapshots
from framework.engine.request import Request
from framework.executor.null import NullExecutor
from framework.executor.shape import ModelShape
from framework.lora_request import LoraConfig

from .. import engines
from ..engines import MODELS, assert_idle, finish, make_config, make_request, token_params, tokens_of

STATEFUL = {"states alone": (), "states beside a cache": MODELS["full"], "states beside windows": MODELS["hybrid"]}


def make_manager(model: str = "states beside a cache", num_snapshots: int = 4, num_blocks: int = 300) -> KVCacheManager:
    groups = STATEFUL[model]
    return KVCacheManager(groups, num_blocks, 4, check_invariants=True, has_states=True, num_snapshots=num_snapshots)


def make_engine(model: str, num_snapshots: int, num_blocks: int = 100, **scheduler: int) -> Engine:
    """On an executor that checks what states are of."""
    config = make_config(num_blocks, prefix_caching=num_snapshots > 0, **scheduler)
    config.cache.state_snapshots = num_snapshots
    executor = NullExecutor(config, ModelShape(STATEFUL[model], 50, 200, state_bytes=8))
    return Engine(config, executor, InputProcessor(None, {}, ()), VirtualClock())


def serve(manager: KVCacheManager, tokens: list[int], commits: bool = True) -> tuple[int, list[int], Request]:
    """Computes a prompt, cut where it is to be. Returns the tokens of the hit and the ends of the chunks that were kept."""
    request, kept = make_request(tokens), []
    hit = manager.lookup(request)
    manager.admit(request, hit, len(tokens))
    for end in (*hit.snapshot_ends, len(tokens)):
        request.num_computed = end
        if manager.snapshot(request) is not None:
            kept.append(end)
        if commits:
            manager.advance(request, end)
    return hit.num_tokens, kept, request


@pytest.mark.parametrize("model", list(STATEFUL))
def test_states_are_kept_at_the_last_block_of_a_prompt_and_where_prompts_part(model: str) -> None:
    manager = make_manager(model)
    first, second, third = ([*range(17), *range(100 * i, 100 * i + 10)] for i in (1, 2, 3))
    assert serve(manager, first)[:2] == (0, [24])
    assert serve(manager, first)[:2] == (24, []), "the last token is computed again, and what is there is not kept twice"
    assert serve(manager, second)[:2] == (0, [16, 24])
    assert serve(manager, third)[:2] == (16, [24])
    assert serve(manager, [*first, *range(30, 40)])[:2] == (24, [36]), "a conversation goes on"
    assert serve(manager, first[:24])[:2] == (16, [20]), "the token whose logits are wanted is not part of a hit"
    assert serve(manager, first[:4])[:2] == (0, []), "there is no whole block before the last token"


def test_a_prefix_needs_its_blocks_too() -> None:
    manager = make_manager(num_blocks=12)
    prompt = list(range(17))
    manager.free(serve(manager, prompt)[2])
    assert manager.lookup(make_request(prompt)).num_tokens == 16
    manager.free(serve(manager, list(range(100, 133)))[2])  # takes blocks that held the first
    found = manager.lookup(make_request(prompt))
    assert found.num_tokens == 0 and found.snapshot_ends == (), "its states are still kept"


@pytest.mark.parametrize(("model", "found"), [("states beside a cache", 16), ("states beside windows", 0)])
def test_windows_reach_back_from_where_states_are_kept(model: str, found: int) -> None:
    manager = make_manager(model, num_snapshots=2, num_blocks=60)
    first, second = ([*range(17), *range(100 * i, 100 * i + 24)] for i in (1, 2))
    serve(manager, first)
    manager.free(serve(manager, second[:18])[2])
    assert manager.lookup(make_request(first)).num_tokens == 40
    serve(manager, list(range(300, 352)))  # takes the states after 40 tokens, and blocks that windows have left
    assert manager.lookup(make_request(first)).num_tokens == found


def test_other_keys_are_other_prefixes() -> None:
    manager = make_manager()
    prompt = list(range(17))
    serve(manager, prompt)
    assert manager.lookup(make_request(prompt)).num_tokens == 16
    assert manager.lookup(make_request(prompt, extra_keys=((0, b"salt:a"),))).num_tokens == 0


def test_who_does_not_read_prefixes_keeps_states_all_the_same() -> None:
    manager = make_manager()
    prompt = list(range(17))
    wanting = make_request(prompt)
    wanting.params = replace(wanting.params, prompt_logprobs=0)
    hit = manager.lookup(wanting)
    assert (hit.num_tokens, hit.snapshot_ends) == (0, (16,))
    serve(manager, prompt)
    hit = manager.lookup(wanting)
    assert (hit.num_tokens, hit.snapshot_ends) == (0, ()), "they are there already"


def test_what_is_not_committed_is_not_found_and_given_up_with_its_request() -> None:
    manager = make_manager(num_snapshots=1)
    prompt, other = list(range(17)), list(range(50, 67))
    _, kept, request = serve(manager, prompt, commits=False)
    assert kept == [16] and manager.lookup(make_request(prompt)).num_tokens == 0
    assert serve(manager, prompt)[1] == [], "it is being made"
    assert serve(manager, other)[1] == [], "no row is free"
    manager.free(request)
    assert serve(manager, other)[1] == [16]


def test_of_several_those_are_found_whose_step_is_committed() -> None:
    manager = make_manager("states alone")
    first, second = ([*range(17), *range(100 * i, 100 * i + 10)] for i in (1, 2))
    serve(manager, first)
    request = make_request(second)
    hit = manager.lookup(request)
    manager.admit(request, hit, len(second))
    assert hit.snapshot_ends == (16, 24)
    for end in hit.snapshot_ends:
        request.num_computed = end
        assert manager.snapshot(request) is not None
    for end in hit.snapshot_ends:
        manager.advance(request, end)
        assert manager.lookup(make_request(second)).num_tokens == end


@pytest.mark.parametrize("budget", [10, 64])
@pytest.mark.parametrize("model", list(STATEFUL))
def test_a_prompt_is_cut_for_its_states_in_the_step_that_reaches_them(model: str, budget: int) -> None:
    """In a later one, or in its first."""
    engine = make_engine(model, 2, max_num_batched_tokens=budget)
    for name in ("first", "again"):
        engine.add_request(name, list(range(27)), token_params(max_tokens=2))
        finish(engine)
    assert engine.stats().prefix_hit_tokens == 24


def test_the_least_recently_used_goes_first() -> None:
    manager = make_manager(num_snapshots=2)
    prompts = [[*range(100 * i, 100 * i + 9)] for i in range(3)]
    for prompt in (prompts[0], prompts[1], prompts[0], prompts[2]):
        serve(manager, prompt)
    assert [manager.lookup(make_request(prompt)).num_tokens for prompt in prompts] == [8, 0, 8]


@pytest.mark.parametrize("model", list(STATEFUL))
def test_a_reset_forgets_them_once_nobody_runs(model: str) -> None:
    manager = make_manager(model)
    prompt = list(range(17))
    request = serve(manager, prompt)[2]
    assert not manager.reset_prefix_cache() and manager.lookup(make_request(prompt)).num_tokens == 16
    manager.free(request)
    assert manager.reset_prefix_cache()
    assert serve(manager, [*prompt[:9], *range(50, 58)])[:2] == (0, [16]), "nobody knows where it parts from the first"
    assert serve(manager, prompt)[:2] == (0, [8, 16])
    manager.check_invariants()


def test_it_is_forgotten_what_prompts_came_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.engine.kv_cache.snapshots.MAX_SEEN", 3)
    books, (a, b, c, d, e) = Snapshots(2), (bytes([i]) for i in range(5))
    books.see([a, b])
    assert books.ends([a, b, c], 0) == [2, 3] and books.ends([a, d, e], 0) == [1, 3]
    books.see([a, d, e])
    assert books.ends([a, b, c], 0) == [1, 3], "the last blocks go first"
    books.see([b, c])
    assert books.ends([a, d, e], 0) == [1, 3]


@pytest.mark.parametrize("model", list(STATEFUL))
@pytest.mark.parametrize("in_flight_steps", [1, 3])
def test_tokens_are_the_same_with_and_without(model: str, in_flight_steps: int) -> None:
    """Conversations that go on, prompts that part, preemptions and aborts, on an executor whose tokens depend on all before them
    as its states have them."""
    rng = random.Random(5)
    shared = [rng.choices(range(50), k=rng.randrange(5, 40)) for _ in range(3)]
    prompts = [[*rng.choice(shared), *rng.choices(range(50), k=rng.randrange(1, 12))] for _ in range(40)]
    prompts += [[*prompt, *rng.choices(range(50), k=9)] for prompt in prompts[:20]]
    found = []
    for num_snapshots in (0, 5):
        engine = make_engine(model, num_snapshots, 80, max_num_batched_tokens=23, max_num_seqs=6, in_flight_steps=in_flight_steps)
        outputs = {}
        for index, prompt in enumerate(prompts):
            engine.add_request(str(index), prompt, token_params(max_tokens=6, n=1 + (index % 5 == 0), seed=index))
            if index % 7 == 3:
                engine.add_request(f"doomed {index}", prompt, token_params(max_tokens=50))
            outputs.update((output.request_id, output) for output in engine.step())
            engine.abort([f"doomed {index - 2}"])
        outputs.update(finish(engine))
        found.append([tokens_of(outputs[str(index)]) for index in range(len(prompts))])
        assert_idle(engine)
        stats = engine.stats()
        assert (stats.prefix_hit_tokens > 300) == (num_snapshots > 0) and stats.num_chunked_prefills
        assert engine.reset_prefix_cache()
    assert found[0] == found[1]


def test_the_configuration_says_what_cannot_be() -> None:
    config = engines.make_config()
    for cache, scheduler, why in (
        (CacheConfig(state_snapshots=-1), config.scheduler, r"cache.state_snapshots=-1 .* from 0 \(none\)"),
        (CacheConfig(num_blocks=64, state_snapshots=1 << 40), config.scheduler, r"cache.state_snapshots=1099511627776 .* to 2\^20"),
        (CacheConfig(num_blocks=1 << 40), config.scheduler, r"cache.num_blocks=1099511627776 .* at most 2\^24"),
        (config.cache, replace(config.scheduler, max_num_seqs=1 << 40), r"max_num_seqs=1099511627776 .* to 2\^20"),
        (CacheConfig(prefix_caching=False, state_snapshots=2), config.scheduler, "it must be 0 with cache.prefix_caching=false"),
        (
            CacheConfig(state_snapshots=2),
            replace(config.scheduler, chunked_prefill=False),
            "it must be 0 with scheduler.chunked_prefill=false",
        ),
    ):
        with pytest.raises(ValueError, match=why):
            replace(config, cache=cache, scheduler=scheduler).validate()
    with pytest.raises(ValueError, match=r"lora.max_loras=1099511627776 .* from 1 to 2\^20"):
        replace(config, lora=LoraConfig(enabled=True, max_loras=1 << 40)).validate()
