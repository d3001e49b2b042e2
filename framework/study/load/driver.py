"""Asks a server for a workload, at the times of the workload, whatever the server does; and records what came when."""

from __future__ import annotations

import asyncio
import math
import resource
import time
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from ..driver import Arrivals
from ..records import RequestRecord
from ..workload import WorkloadRequest
from .answer import Answer, BadAnswer
from .bodies import body
from .client import Client, Refused
from .config import HttpConfig


@dataclass
class HttpRecord(RequestRecord):
    """What a client saw of one request. It arrives when the workload says; where max_concurrency held it back, when it was let go.

    queued_s      how long it was held back
    sent_s        when it was sent: later than it arrived, by what the client was late
    ended_s       when its answer ended, or failed
    chunk_times_s   when every chunk came that brought tokens
    token_ids     where the server gives them
    counted_by    how tokens were counted, see ``answer``; None without any
    num_usage_tokens  output tokens as the server counts them, None where it does not
    """

    queued_s: float = 0.0
    sent_s: float = math.nan
    ended_s: float = math.nan
    chunk_times_s: Sequence[float] = field(default_factory=lambda: array("d"))
    token_ids: Sequence[int] = ()
    counted_by: str | None = None
    num_usage_tokens: int | None = None


@dataclass(frozen=True)
class Loaded:
    """records: in the order of their arrival; cpu_s: of this process, while it asked."""

    records: list[HttpRecord]
    cpu_s: float


async def ask_all(
    client: Client, config: HttpConfig, model: str, workload: Sequence[WorkloadRequest], tokenizer: Any, progress: bool = False
) -> Loaded:
    """Asks for every request of ``workload`` when it arrives, of the model of that name. One that the server refuses, breaks off or
    does not answer in time is recorded with the reason."""
    bodies = [body(request, config, model, tokenizer) for request in workload]
    _allow_connections()
    places = asyncio.Semaphore(config.max_concurrency or len(workload) or 1)
    arrivals, ended = Arrivals(workload), asyncio.Event()
    records, answers = list[HttpRecord](), list[Answer]()

    async def ask(index: int, record: HttpRecord, answer: Answer) -> None:
        held_back = places.locked()
        async with places:
            record.sent_s = client.now_s()
            if held_back:
                record.queued_s, record.arrival_s = record.sent_s - record.arrival_s, record.sent_s
            try:
                await client.ask(bodies[index], answer)
                record.finish_reason = answer.finish_reason
            except Refused as error:
                record.error = str(error)
            except BadAnswer as error:
                record.error, record.finish_reason = str(error), "error"
            record.ended_s = client.now_s()
        arrivals.finished(index, record.ended_s)
        bar.update()
        ended.set()

    with tqdm(total=len(workload), unit="req", disable=None if progress else True) as bar:
        async with asyncio.TaskGroup() as tasks:
            cpu_s = time.process_time()
            client.start()
            while len(records) < len(workload):
                if arrivals.next_s is None or arrivals.next_s > client.now_s():
                    ended.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(None if arrivals.next_s is None else arrivals.next_s - client.now_s()):
                            await ended.wait()  # in a closed loop, somebody may come earlier now
                    continue
                arrival_s, index = arrivals.pop()
                request = workload[index]
                record = HttpRecord(
                    str(index),
                    request.user,
                    arrival_s,
                    len(request.prompt_token_ids),
                    priority=request.priority,
                    num_known_tokens=request.num_known_tokens,
                    num_images=len(request.sent_images),
                )
                records.append(record)
                answers.append(Answer())
                tasks.create_task(ask(index, record, answers[-1]))
        loaded = Loaded(records, time.process_time() - cpu_s)
    for record, answer in zip(records, answers):  # now that nobody waits for it
        _complete(record, answer, tokenizer)
    return loaded


def _complete(record: HttpRecord, answer: Answer, tokenizer: Any) -> None:
    tokens = answer.tokens(None if tokenizer is None else lambda text: len(tokenizer.encode(text, add_special_tokens=False)))
    record.token_times_s, record.chunk_times_s, record.token_ids = tokens.times_s, tokens.chunk_times_s, answer.token_ids
    record.counted_by = tokens.counted_by if tokens.times_s else None
    record.num_usage_tokens = answer.num_tokens
    if answer.prompt_tokens is not None:
        record.num_prompt_tokens = answer.prompt_tokens


def _allow_connections() -> None:
    """As many open files as the system lets a process have: every request under way is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
