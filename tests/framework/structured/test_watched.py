"""Calls beside the engine's thread: those that hang are left behind, and concern no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from framework.structured.watched import WatchedThread


@pytest.fixture
def may_end() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def run(thread: WatchedThread, calls: Sequence[Callable[[], None]]) -> dict[int, BaseException]:
    thread.begin(calls)
    return thread.finish()


def test_calls_run_beside_the_caller() -> None:
    thread, is_done = WatchedThread(1.0), threading.Event()
    thread.begin([is_done.set])
    assert is_done.wait(20)
    assert not thread.finish() and not thread.finish()


def test_errors_are_told_by_index_and_others_go_on() -> None:
    thread, made = WatchedThread(1.0), []

    def bad() -> None:
        raise KeyboardInterrupt("a panic")

    for _ in range(3):
        errors = run(thread, [lambda: made.append(0), bad, lambda: made.append(2)])
        assert list(errors) == [1] and isinstance(errors[1], KeyboardInterrupt)
    assert made == [0, 2] * 3 and not thread.num_stuck and not run(thread, [])


def test_calls_made_here_are_done_at_once_and_their_errors_told_later() -> None:
    thread, made = WatchedThread(1.0), []

    def bad() -> None:
        raise BaseException("a panic")

    thread.begin([lambda: made.append(threading.current_thread()), bad, lambda: made.append(threading.current_thread())], here=True)
    assert made == [threading.current_thread()] * 2
    assert list(thread.finish()) == [1] and not thread.finish()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        thread.begin([stop], here=True)
    assert not run(thread, [lambda: made.append(threading.current_thread())]) and made[-1] is not threading.current_thread()


def test_what_computes_too_long_is_left_behind_and_the_rest_is_done(may_end: threading.Event) -> None:
    thread, made = WatchedThread(0.02), []

    def endless() -> None:
        while not may_end.is_set():
            pass

    errors = run(thread, [lambda: made.append(0), endless, lambda: made.append(2), endless])
    assert list(errors) == [1, 3] and all(isinstance(error, TimeoutError) for error in errors.values())
    assert made == [0, 2] and thread.num_stuck == 2
    may_end.set()
    deadline = time.monotonic() + 20
    while thread.num_stuck:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert not run(thread, [lambda: made.append(4)]) and made == [0, 2, 4]


def test_a_machine_that_does_not_let_a_call_compute_is_not_its_fault() -> None:
    assert not run(WatchedThread(0.01), [lambda: time.sleep(0.1)])


def test_the_thread_ends_with_its_owner() -> None:
    thread = WatchedThread(1.0)
    run(thread, [lambda: None])
    (worker,) = (t for t in threading.enumerate() if t is thread._worker.thread)
    del thread
    worker.join(20)
    assert not worker.is_alive()
