"""Grammars compiled beside the steps: threads, a cache of the last ones, and a limit on their time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from .backends.protocol import Backend, Grammar, Vocabulary
from .backends.table import BACKENDS, backend_of
from .config import StructuredOutputsConfig
from .spec import GrammarSpec

MAX_STUCK: Final = 8
"""Compilations that outlasted their time, and cannot be interrupted, beside which others go on; with more, those wait."""

LEAST_BYTES: Final = 1 << 20
"""That a job is counted as in the cache: what grammars gather while they are used is not always told."""


@dataclass(eq=False)
class Job:
    """One compilation, for all requests that ask for the same.

    num_waiting  requests; a job that nobody waits for is not begun
    is_queued    it will be begun
    """

    spec: GrammarSpec
    backend: str
    asked_s: float = 0.0
    num_waiting: int = 0
    is_queued: bool = False
    worker: threading.Thread | None = None
    grammar: Grammar | None = None
    error: ValueError | None = None

    @property
    def is_done(self) -> bool:
        return self.grammar is not None or self.error is not None


class GrammarCompiler:
    """``request``, then ``result`` until it is there; all methods are quick, and called from one thread.

    Jobs that are done stay known, failed ones too, until newer ones need their room. Threads are started where there is work, and
    nobody waits for one when the process ends.
    """

    def __init__(self, config: StructuredOutputsConfig, vocabulary: Vocabulary) -> None:
        self._config, self.vocabulary = config, vocabulary
        self._jobs: OrderedDict[tuple[str, GrammarSpec], Job] = OrderedDict()
        self._queue: deque[Job] = deque()
        self._workers: list[threading.Thread] = []
        self._stuck: list[threading.Thread] = []
        self._queue_lock, self._backends_lock = threading.Lock(), threading.Lock()
        self._backends: dict[str, Backend] = {}

    def request(self, spec: GrammarSpec) -> Job:
        """A job that is new, under way or done; it is to be given back with ``release``."""
        config = self._config
        spec = replace(
            spec,
            any_whitespace=spec.any_whitespace and not config.disable_any_whitespace,
            additional_properties=spec.additional_properties and not config.disable_additional_properties,
        )
        key = backend_of(config.backend, spec), spec
        job = self._jobs.setdefault(key, Job(spec, key[0]))
        self._jobs.move_to_end(key)
        with self._queue_lock:
            job.num_waiting += 1
            if not (job.is_queued or job.is_done or job.worker is not None):
                job.is_queued, job.asked_s = True, time.monotonic()
                self._queue.append(job)
        self._start_workers()
        self._evict()
        return job

    def release(self, job: Job) -> None:
        """Its request has its grammar, or wants it no more."""
        job.num_waiting -= 1

    def result(self, job: Job) -> Grammar | None:
        """None while it is compiled. Raises ValueError for what cannot be compiled, or not in time."""
        if not job.is_done:
            if self._is_late(job):
                self._give_up(job)
            self._start_workers()
        if job.error is not None:
            raise ValueError(f"structured_outputs: {job.error}")
        return job.grammar

    def _is_late(self, job: Job) -> bool:
        return time.monotonic() - job.asked_s > self._config.compile_timeout_s

    def _give_up(self, job: Job) -> None:
        limit = f"{self._config.compile_timeout_s:g} s (structured_outputs.compile_timeout_s)"
        job.error = ValueError(f"{job.spec.kind} was not compiled within {limit}: make it simpler")
        if (worker := job.worker) in self._workers:
            self._workers.remove(worker)
            self._stuck.append(worker)

    def _start_workers(self) -> None:
        """As many as there is work for."""
        self._workers = [worker for worker in self._workers if worker.is_alive()]
        self._stuck = [worker for worker in self._stuck if worker.is_alive()]
        if self._queue and len(self._workers) == self._config.num_threads:
            for job in [job for job in self._jobs.values() if job.worker in self._workers and self._is_late(job)]:
                self._give_up(job)  # nobody may be left to ask for its result
        if len(self._stuck) <= MAX_STUCK:
            for _ in range(min(len(self._queue), self._config.num_threads - len(self._workers))):
                worker = threading.Thread(target=self._work, daemon=True, name="kernelswap-grammars")
                self._workers.append(worker)
                worker.start()

    def _work(self) -> None:
        """Runs in a thread, until the queue is empty, or its job was given up and another thread took its place."""
        while (job := self._next()) is not None:
            grammar, error = self._compile(job)
            if job.error is not None:
                return
            job.error, job.grammar, job.worker = error, grammar, None

    def _next(self) -> Job | None:
        with self._queue_lock:
            while self._queue:
                job = self._queue.popleft()
                job.is_queued = False
                if job.num_waiting and not job.is_done:
                    job.worker = threading.current_thread()
                    return job
        return None

    def _compile(self, job: Job) -> tuple[Grammar | None, ValueError | None]:
        try:
            grammar = self._backend(job.backend).compile(job.spec)
            matcher = grammar.matcher(self.vocabulary.eos_token_ids)
            masks = np.full((1, self.vocabulary.num_words), -1, dtype=np.int32)
            matcher.backend.fill([matcher], [()], masks, is_short=False)
            works = matcher.error is None and masks.any()
            return (grammar, None) if works else (None, ValueError(f"{job.spec.kind} cannot work: no output fits it"))
        except ValueError as error:
            return None, error
        except BaseException as error:  # a library's panic is no Exception
            return None, ValueError(f"{job.spec.kind} could not be compiled: {type(error).__name__}: {error}")

    def _backend(self, name: str) -> Backend:
        """Made by the first compilation, because it takes as long as one."""
        with self._backends_lock:
            if name not in self._backends:
                self._backends[name] = BACKENDS[name].load()(self.vocabulary)
            return self._backends[name]

    def _evict(self) -> None:
        """Forgets the jobs asked for longest ago that nobody waits for and that do not run, beyond the cache's size."""
        total = 0
        for key, job in reversed(list(self._jobs.items())):
            total += max(LEAST_BYTES, job.grammar.num_bytes if job.grammar is not None else 0)
            if total > self._config.cache_bytes and not job.num_waiting and (job.is_done or job.worker is None):
                del self._jobs[key]
