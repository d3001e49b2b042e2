"""A run whose system is a server: the same as one in this process, seen through HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ..compose import LoadConfig
from ..machine_load import machine_load
from ..records import RunRecord
from ..served import Served
from ..workload import WorkloadRequest, build_workload, warmup_workload
from .client import Client
from .config import HttpConfig
from .driver import ask_all
from .metrics import client_metrics
from .scrape import added, counters, kernels


def load(config: LoadConfig, vocab_size: int, tokenizer: Any, progress: bool = True) -> Served:
    """Asks the server of the config for the workload.

    vocab_size, tokenizer  of the model that it serves; None where there is no tokenizer

    Raises ValueError for a config that cannot work, a server that is not there, and one that does not even serve the warm-up."""
    encode = tokenizer.encode if tokenizer else None
    workload = build_workload(config.workload, vocab_size, encode)
    warmup = warmup_workload(config.num_warmup_requests, config.seed, vocab_size, encode)
    return asyncio.run(_load(config.http, workload, warmup, tokenizer, progress)).checked(config.system)


async def _load(
    http: HttpConfig, workload: Sequence[WorkloadRequest], warmup: Sequence[WorkloadRequest], tokenizer: Any, progress: bool
) -> Served:
    async with Client.open(http) as client:
        model = await client.model()
        warmed = await ask_all(client, http, model, warmup, tokenizer)
        if failed := next((record.error for record in warmed.records if record.error), None):
            raise ValueError(f"the server at {http.url} fails to serve the warm-up: {failed}")
        before = counters(await client.metrics())
        with machine_load() as busy:
            loaded = await ask_all(client, http, model, workload, tokenizer, progress)
        scraped = await client.metrics()
        version = await client.version()
    counted = added(before, counters(scraped))
    record = RunRecord([*loaded.records])
    record.prefix_query_tokens = counted.pop("prefix_query_tokens", 0)
    record.prefix_hit_tokens = counted.pop("prefix_hit_tokens", 0)
    system = {"version": version, "counted_by": ",".join(sorted({r.counted_by for r in loaded.records if r.counted_by}))}
    plan = {op: {"impl": impl} for op, impl in kernels(scraped).items()}
    further = client_metrics(loaded) | counted
    return Served(record, plan, system, further, busy, is_here=False)
