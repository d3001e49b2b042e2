"""A run whose system is a server: the same as one in this process, seen through HTTP."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..compose import LoadConfig
from ..machine_load import machine_load
from ..metrics import PERCENTILES
from ..records import RunRecord
from ..served import Served
from ..workload import SentPictures, WorkloadRequest, build_workload, warmup_workload
from .client import Client
from .config import HttpConfig
from .driver import Loaded, ask_all
from .metrics import client_metrics
from .scrape import added, counters, drafts, kernels, structured_backends


def load(
    config: LoadConfig, vocab_size: int, tokenizer: Any, percentiles: Sequence[float] = PERCENTILES, progress: bool = True
) -> Served:
    """Asks the server of the config for the workload.

    vocab_size, tokenizer  of the model that it serves; None where there is no tokenizer
    percentiles            of the client's own latencies

    Raises ValueError for a config that cannot work, a server that is not there, and one that serves nothing or not even the
    warm-up."""
    if count := config.workload.decoder_tokens:
        raise ValueError(f"workload.decoder_tokens={count} cannot work: no HTTP request says what a decoder begins with")
    encode = tokenizer.encode if tokenizer else None
    pictures = SentPictures(config.workload) if config.workload.num_images and config.http.is_chat else None
    workload = build_workload(config.workload, vocab_size, encode, pictures)
    warmup = warmup_workload(config.num_warmup_requests, config.seed, vocab_size, encode)
    asked = asyncio.run(_ask(config.http, workload, warmup, tokenizer, progress))
    record = RunRecord([*asked.loaded.records])
    counted = added(counters(asked.before), counters(asked.scrape))
    record.drafts = drafts(asked.scrape).since(drafts(asked.before))
    record.prefix_query_tokens = counted.pop("prefix_query_tokens", 0)
    record.prefix_hit_tokens = counted.pop("prefix_hit_tokens", 0)
    record.num_image_queries = counted.pop("num_image_queries", 0)
    record.num_image_hits = counted.pop("num_image_hits", 0)
    record.num_images_encoded = counted.pop("num_images_encoded", record.num_image_queries - record.num_image_hits)
    counted_by = sorted({request.counted_by for request in asked.loaded.records if request.counted_by})
    system = {"version": asked.version, "counted_by": ",".join(counted_by)}
    if backends := structured_backends(asked.scrape):
        system["structured_backend"] = ",".join(backends)
    plan = {op: {"impl": impl} for op, impl in kernels(asked.scrape).items()}
    further = client_metrics(asked.loaded, percentiles) | counted
    return Served(record, plan, system, further, asked.busy, is_here=False).checked(config.system)


def served_model(http: HttpConfig) -> str:
    """What the server calls its model, once it is ready. Raises ValueError if it is not in time."""

    async def ask() -> str:
        async with Client.open(http) as client:
            return await client.model()

    return asyncio.run(ask())


@dataclass(frozen=True)
class _Asked:
    """before, scrape: the server's own metrics before and after; busy: as of ``machine_load``."""

    loaded: Loaded
    before: str
    scrape: str
    version: str
    busy: dict[str, float]


async def _ask(
    http: HttpConfig, workload: Sequence[WorkloadRequest], warmup: Sequence[WorkloadRequest], tokenizer: Any, progress: bool
) -> _Asked:
    if http.extensions:  # a run finds no blocks of the runs before it, as with an engine of its own
        http = replace(http, extra_body={"cache_salt": uuid.uuid4().hex} | http.extra_body)
    async with Client.open(http) as client:
        model = await client.model()
        warmed = await ask_all(client, http, model, warmup, tokenizer)
        if failed := next((record.error for record in warmed.records if record.error), None):
            raise ValueError(f"the server at {http.url} fails to serve the warm-up: {failed}")
        before = await client.metrics()
        with machine_load() as busy:
            loaded = await ask_all(client, http, model, workload, tokenizer, progress)
        return _Asked(loaded, before, await client.metrics(), await client.version(), busy)
