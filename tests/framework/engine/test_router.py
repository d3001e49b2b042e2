"""Routers over replicas that are but counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.engine.prompts import EngineInput
from framework.engine.router import ROUTERS, InFlight, LeastLoaded, LeastTokens, PowerOfTwo, PrefixAware, Router


@dataclass
class Counts:
    num_waiting: int = 0
    num_running: int = 0
    num_queued_tokens: int = 0


counts = st.builds(Counts, st.integers(0, 40), st.integers(0, 40), st.integers(0, 500))
prompts = st.lists(st.integers(0, 3), min_size=1, max_size=300)
calls = st.integers(1, 9).flatmap(lambda n: st.lists(st.tuples(prompts, st.lists(counts, min_size=n, max_size=n)), max_size=20))


def route(router: Router, prompt: Sequence[int], replicas: Sequence[Counts]) -> int:
    return router.route(EngineInput(list(prompt)), replicas)


def requests(replica: Counts) -> int:
    return replica.num_waiting + replica.num_running


@pytest.mark.parametrize("name", ROUTERS)
@given(calls=calls, seed=st.integers(0, 99))
def test_every_request_goes_to_a_replica_and_the_same_one_again(
    name: str, calls: list[tuple[list[int], list[Counts]]], seed: int
) -> None:
    first, again = ([route(router, *call) for call in calls] for router in (ROUTERS[name](seed), ROUTERS[name](seed)))
    assert first == again
    assert all(0 <= chosen < len(replicas) for chosen, (_, replicas) in zip(first, calls))


@given(calls=calls)
def test_none_is_less_loaded_than_the_least_loaded(calls: list[tuple[list[int], list[Counts]]]) -> None:
    by_requests, by_tokens = LeastLoaded(0), LeastTokens(0)
    for prompt, replicas in calls:
        chosen = replicas[route(by_requests, prompt, replicas)]
        assert requests(chosen) == min(map(requests, replicas))
        chosen = replicas[route(by_tokens, prompt, replicas)]
        assert chosen.num_queued_tokens == min(replica.num_queued_tokens for replica in replicas)


@pytest.mark.parametrize("name", ["round_robin", "least_loaded", "least_tokens"])
def test_equal_replicas_take_turns(name: str) -> None:
    router = ROUTERS[name](0)
    assert [route(router, [1], [Counts()] * 3) for _ in range(6)] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("name", ["random", "power_of_two"])
def test_chance_leaves_nobody_out(name: str) -> None:
    router = ROUTERS[name](7)
    chosen = [route(router, [1], [Counts()] * 5) for _ in range(1000)]
    assert all(120 < chosen.count(i) < 280 for i in range(5))
    assert chosen != [route(ROUTERS[name](8), [1], [Counts()] * 5) for _ in range(1000)]


def test_two_choices_avoid_the_busiest() -> None:
    router, replicas = PowerOfTwo(0), [Counts(num_running=i) for i in range(4)]
    chosen = [route(router, [1], replicas) for _ in range(600)]
    # Of the 6 pairs, the least loaded one wins 3, the next one 2, the next one 1.
    assert [round(chosen.count(i) / 100) for i in range(4)] == [3, 2, 1, 0]


def test_a_prefix_stays_where_it_was_sent() -> None:
    router, replicas = PrefixAware(0), [Counts() for _ in range(4)]
    texts = [[i] * 200 for i in range(4)]
    assert [route(router, text, replicas) for text in texts] == [0, 1, 2, 3]
    for i in (2, 0, 3, 1):
        replicas[i].num_running = 3  # more than others, but not by far
        assert route(router, texts[i] + [9] * 100, replicas) == i
        replicas[i].num_running = 0
    assert route(router, [*texts[1], *[9] * 100, 7], replicas) == 1, "the longer prefix is there too"


@pytest.mark.parametrize(("loads", "stays"), [((16, 0, 0), True), ((17, 0, 0), False), ((65, 48, 48), True), ((73, 48, 48), False)])
def test_a_prefix_does_not_overload_a_replica(loads: tuple[int, ...], stays: bool) -> None:
    router = PrefixAware(0)
    assert route(router, [1] * 200, [Counts() for _ in range(3)]) == 0
    assert (route(router, [1] * 200, [Counts(num_waiting=load) for load in loads]) == 0) == stays


def test_what_all_prompts_begin_with_draws_none_of_them() -> None:
    router, common = PrefixAware(0), [5] * 64
    chosen = [route(router, common + [i] * 400, [Counts() for _ in range(4)]) for i in range(8)]
    assert chosen == [0, 1, 2, 3, 0, 1, 2, 3]


def test_salted_prompts_share_nothing() -> None:
    router, replicas = PrefixAware(0), [Counts() for _ in range(2)]
    assert [router.route(EngineInput([1] * 200, cache_salt=salt), replicas) for salt in ("a", "b", "a", "b")] == [0, 1, 0, 1]


def test_prefixes_are_forgotten_in_the_order_of_their_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrefixAware, "MAX_BLOCKS", 6)
    router, replicas = PrefixAware(0), [Counts() for _ in range(3)]
    assert [route(router, [i] * 192, replicas) for i in (1, 2, 1, 3)] == [0, 1, 0, 2]
    # Three blocks each, of which the last six stay: those of 1 and 3. So 2 goes to whose turn it is.
    assert route(router, [1] * 192, replicas) == 0
    assert route(router, [2] * 192, replicas) == 0


@given(
    events=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["add", "came", "ended"]), st.integers(1, 3), st.integers(1, 99)))
)
def test_in_flight_is_what_was_sent_and_has_not_ended(events: list[tuple[int, str, int, int]]) -> None:
    found, books = InFlight(), dict[int, list[int]]()
    for key, event, num_completions, num_tokens in events:
        if event == "add":
            if key in books:  # an id is used again once its request has ended
                continue
            found.add(f"{key}", num_completions, num_tokens)
            books[key] = [num_completions, num_tokens]
        else:
            found.take(f"{key}", finished=event == "ended")
            if event == "ended":
                books.pop(key, None)
            elif key in books:
                books[key][1] = 0
        assert [found.num_running, found.num_queued_tokens] == [sum(book[i] for book in books.values()) for i in (0, 1)]
        assert found.num_waiting == 0
