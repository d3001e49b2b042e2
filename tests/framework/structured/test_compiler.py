"""Compilation beside the steps: shared, kept, limited in time, and given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from framework.structured.backends.table import backend_of
from framework.structured.compiler import LEAST_BYTES, MAX_STUCK, GrammarCompiler, Job
from framework.structured.config import StructuredOutputsConfig
from framework.structured.spec import GrammarSpec, StructuredOutputsParams

from .vocabularies import EOS, SIZE, TOKENIZER, Vocabulary


class Library:
    """Compiles when it is told; a text of digits takes as many bytes, "bad" cannot be compiled, "empty" allows nothing."""

    def __init__(self) -> None:
        self.may_go = threading.Event()
        self.may_go.set()
        self.compiled: list[str] = []

    def compile(self, spec: GrammarSpec) -> Any:
        self.compiled.append(spec.text)
        self.may_go.wait()
        if spec.text == "bad":
            raise ValueError("it is bad")
        if spec.text == "panic":
            raise BaseException("a panic")
        return Anything(int(spec.text) if spec.text.isdecimal() else 0, -(spec.text != "empty"))


class Anything:
    error = None

    def __init__(self, num_bytes: int, mask: int) -> None:
        self.num_bytes, self.mask = num_bytes, mask

    def matcher(self, stop_token_ids: Sequence[int]) -> Any:
        return self

    @property
    def backend(self) -> Any:
        return self

    def fill(self, matchers: Sequence[Any], drafts: Sequence[Any], masks: np.ndarray, is_short: bool) -> None:
        masks[:] = self.mask


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    library = Library()
    monkeypatch.setattr(GrammarCompiler, "_backend", lambda self, name: library)
    yield library
    library.may_go.set()


def begun(library: Library, compiler: GrammarCompiler, text: str) -> Job:
    """A compilation that is under way, and does not end before the library may go on."""
    library.may_go.clear()
    job = compiler.request(spec(text))
    while not library.compiled:
        time.sleep(0.001)
    return job


def make(**config: Any) -> GrammarCompiler:
    return GrammarCompiler(StructuredOutputsConfig(**config), Vocabulary(TOKENIZER, SIZE, (EOS,)))


def spec(text: str) -> GrammarSpec:
    return GrammarSpec("regex", text)


def wait(compiler: GrammarCompiler, job: Job) -> Any:
    deadline = time.monotonic() + 20
    while (grammar := compiler.result(job)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return grammar


def test_equal_constraints_are_compiled_once_and_kept(library: Library) -> None:
    compiler = make()
    library.may_go.clear()
    jobs = [compiler.request(spec("a")) for _ in range(3)]
    assert compiler.result(jobs[0]) is None
    library.may_go.set()
    assert len({id(wait(compiler, job)) for job in jobs}) == 1
    for job in jobs:
        compiler.release(job)
    assert compiler.result(compiler.request(spec("a"))) is not None and library.compiled == ["a"]


def test_constraints_that_differ_in_anything_are_compiled_apart(library: Library) -> None:
    compiler = make()
    asked = [GrammarSpec(kind, "{}", *flags) for kind in ("json", "regex") for flags in product((False, True), repeat=2)]
    jobs = [compiler.request(each) for each in asked]
    for job in jobs:
        wait(compiler, job)
    assert [job.spec for job in jobs] == asked and len(library.compiled) == len(asked)


def test_what_cannot_be_compiled_is_told_and_not_tried_again(library: Library) -> None:
    compiler = make()
    for _ in range(2):
        for text, words in (("bad", "it is bad"), ("empty", "no output fits it"), ("panic", "could not be compiled.*a panic")):
            with pytest.raises(ValueError, match=f"structured_outputs: .*{words}"):
                wait(compiler, compiler.request(spec(text)))
    assert library.compiled == ["bad", "empty", "panic"]


def test_the_cache_forgets_what_was_asked_for_longest_ago(library: Library) -> None:
    compiler = make(cache_bytes=3 * LEAST_BYTES)
    for text in ("a", "b", str(2 * LEAST_BYTES), "b"):
        job = compiler.request(spec(text))
        wait(compiler, job)
        compiler.release(job)
    compiler.request(spec("c"))
    known = [key[1].text for key in compiler._jobs]
    assert known == ["b", "c"] and library.compiled.count("b") == 1


def test_a_job_that_nobody_waits_for_any_more_is_not_begun(library: Library) -> None:
    compiler = make(num_threads=1)
    library.may_go.clear()
    first, second, third = (compiler.request(spec(text)) for text in "abc")
    compiler.release(second)
    library.may_go.set()
    wait(compiler, first)
    wait(compiler, third)
    assert library.compiled == ["a", "c"]
    library.may_go.clear()
    second.asked_s -= 1000
    again = compiler.request(spec("b"))
    assert compiler.result(again) is None, "its time begins when somebody asks again"
    library.may_go.set()
    assert wait(compiler, again) is not None


def test_what_takes_too_long_is_refused_and_others_go_on(library: Library) -> None:
    compiler = make(num_threads=1, compile_timeout_s=0.05)
    slow = begun(library, compiler, "slow")
    time.sleep(0.06)
    with pytest.raises(ValueError, match=r"regex was not compiled within 0\.05 s .*compile_timeout_s.*simpler"):
        compiler.result(slow)
    next_job = compiler.request(spec("next"))
    while len(library.compiled) < 2:
        compiler._start_workers()
        time.sleep(0.001)
    library.may_go.set()
    assert wait(compiler, next_job) is not None
    with pytest.raises(ValueError, match="not compiled within"):
        compiler.result(slow)
    with pytest.raises(ValueError, match="not compiled within"):
        compiler.result(compiler.request(spec("slow")))


def test_a_compilation_that_hangs_is_given_up_though_nobody_asks_for_it_any_more(library: Library) -> None:
    compiler = make(num_threads=1, compile_timeout_s=0.05)
    left = begun(library, compiler, "hangs")
    compiler.release(left)
    time.sleep(0.06)
    later = compiler.request(spec("later"))
    while len(library.compiled) < 2:
        assert compiler.result(later) is None
        time.sleep(0.001)
    library.may_go.set()
    assert wait(compiler, later) is not None


def test_jobs_that_were_never_begun_are_forgotten(library: Library) -> None:
    compiler = make(num_threads=1, cache_bytes=2 * LEAST_BYTES)
    library.may_go.clear()
    first, *left = (compiler.request(spec(f"a{i}")) for i in range(9))
    for job in left:
        compiler.release(job)
    library.may_go.set()
    wait(compiler, first)
    compiler.request(spec("last"))
    assert len(compiler._jobs) <= 3 and (first.backend, first.spec) in compiler._jobs


def test_threads_that_are_stuck_are_replaced_only_so_often(library: Library) -> None:
    compiler = make(num_threads=1, compile_timeout_s=0.02)
    library.may_go.clear()
    before = threading.active_count()
    for i in range(MAX_STUCK + 5):
        job = compiler.request(spec(f"slow {i}"))
        time.sleep(0.03)
        with pytest.raises(ValueError, match="not compiled within"):
            compiler.result(job)
    assert len(library.compiled) == MAX_STUCK + 1 and threading.active_count() - before <= MAX_STUCK + 1
    library.may_go.set()
    time.sleep(0.1)
    assert wait(compiler, compiler.request(spec("after"))) is not None


def test_the_configuration_restrains_all_requests(library: Library) -> None:
    compiler = make(disable_any_whitespace=True, disable_additional_properties=True)
    job = compiler.request(StructuredOutputsParams(json={"type": "object"}).spec())
    assert not job.spec.any_whitespace and not job.spec.additional_properties


def test_the_library_is_chosen_by_the_constraint() -> None:
    kinds = {
        "llguidance": [{"json": {}}, {"regex": "a"}, {"choice": ["a"]}, {"grammar": "start: A"}],
        "xgrammar": [{"grammar": "root ::= A"}, {"structural_tag": {}}],
    }
    for name, given in kinds.items():
        for each in given:
            found = StructuredOutputsParams(**each).spec()
            assert backend_of("auto", found) == name and backend_of("xgrammar", found) == "xgrammar"
