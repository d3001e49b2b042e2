"""Time per output token with drafts and without: python experiments/speculation_speed.py methods|depth [FILE.csv]

methods  what drafts, and how many, for one request at a time, greedy
depth    how many drafts of a method that costs next to nothing, fixed or adaptive, by how many requests run at a time, greedy

All settings serve the same held-out prompts in one process, round by round in turn, so that what the machine does in the meantime
meets all alike; a prompt is served once, so that suffix decoding knows none of them. Time counts until the first request of a round
has ended: so long the batch is as large as it is called. It is that of the one thread that works: without what other processes took
of the machine, which here is what a clock on the wall shows if there are none. Ratios are paired by round: times_faster is to no
drafts, of_best to the best setting but the adaptive one.
"""

from __future__ import annotations

import math
import random
import sys
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from framework.build import freeze_garbage
from framework.clock import WallClock
from framework.llm import LLM
from framework.outputs import RequestOutput
from framework.study.metrics import acceptance
from framework.study.results import format_table, write_csv
from framework.study.statistics import mean_interval
from framework.study.sweep_plots import heatmap
from framework.study.time_shares import TimeShares
from framework.study.workload import WorkloadConfig, WorkloadRequest, build_workload

Settings = dict[str, dict[str, Any]]
HELDOUT = WorkloadConfig("heldout", prompt_tokens=256, prompt_spread=0, output_tokens=128, output_spread=0)


class Mode(NamedTuple):
    """rounds: how many, by how many requests run at a time; num_warmups: rounds before them that do not count."""

    settings: Settings
    rounds: dict[int, int]
    workload: WorkloadConfig = HELDOUT
    num_warmups: int = 16


NGRAM = {"method": "ngram", "prompt_lookup_min": 2, "prompt_lookup_max": 5, "prompt_lookup_match": "rightmost"}
METHODS: Settings = {
    **{f"ngram, {k}": {**NGRAM, "num_speculative_tokens": k} for k in (3, 7)},
    **{f"suffix, {k}": {"method": "suffix", "num_speculative_tokens": k} for k in (3, 7)},
    "draft_model, 3": {"method": "draft_model", "model": "tiny-draft", "num_speculative_tokens": 3},
    "medusa, 3": {"method": "medusa", "model": "tiny-medusa", "num_speculative_tokens": 3},
    "eagle3, 3": {"method": "eagle3", "model": "tiny-eagle3", "num_speculative_tokens": 3},
    "mtp, 3": {"method": "mtp", "model": "tiny-mtp", "num_speculative_tokens": 3},
}
DEPTHS: Settings = {
    **{f"ngram, {k}": {**NGRAM, "num_speculative_tokens": k} for k in (1, 3, 7)},
    "adaptive": {**NGRAM, "num_speculative_tokens": 7, "adaptive_depth": True},
}
MODES = {"methods": Mode({"none": {}, **METHODS}, {1: 20}), "depth": Mode({"none": {}, **DEPTHS}, {1: 40, 4: 16, 16: 36, 64: 8})}


class CpuClock(WallClock):
    """Time in which this process computes."""

    def now(self) -> float:
        return time.process_time()


def serve(llm: LLM, requests: list[WorkloadRequest]) -> list[RequestOutput]:
    """All at once."""
    prompts = [{"prompt_token_ids": request.prompt_token_ids} for request in requests]
    return llm.generate(prompts, [request.sampling for request in requests], use_tqdm=False)


def tpot_s(outputs: list[RequestOutput]) -> float:
    """Seconds per token of a request while all run: from when each has its first token on until one has its last."""
    times = [output.metrics.token_times_s for output in outputs if output.metrics is not None]
    start, end = max(each[0] for each in times), min(each[-1] for each in times)
    return len(times) * (end - start) / sum(start < each <= end for each in chain(*times))


def measure(mode: Mode, batch: int) -> list[dict[str, Any]]:
    """A row per setting."""
    torch.set_num_threads(1)  # as many as one row can use
    fixed: dict[str, Any] = {"device": "cpu", "max_num_seqs": batch, "max_num_batched_tokens": batch * mode.workload.prompt_tokens}
    llms = {name: LLM("tiny", speculative_config=spec or None, **fixed) for name, spec in mode.settings.items()}
    for llm in llms.values():
        llm.engine.clock = CpuClock()
    shares = {name: TimeShares(llm.engine) for name, llm in llms.items()}
    warmup = replace(mode.workload, source="python", num_requests=batch * mode.num_warmups)
    for requests in rounds_of(warmup, batch, llms["none"]):
        for llm in llms.values():
            serve(llm, requests)
    freeze_garbage()  # one collection takes as long as a hundred steps, and would meet one setting
    rounds = rounds_of(replace(mode.workload, num_requests=batch * mode.rounds[batch]), batch, llms["none"])
    return [{"batch": batch, **row} for row in compare(llms, shares, rounds)]


def rounds_of(config: WorkloadConfig, batch: int, llm: LLM) -> list[list[WorkloadRequest]]:
    tokenizer = llm.get_tokenizer()
    requests = build_workload(config, tokenizer.vocab_size, tokenizer.encode)
    return [requests[i : i + batch] for i in range(0, len(requests), batch)]


def compare(llms: dict[str, LLM], shares: dict[str, TimeShares], rounds: list[list[WorkloadRequest]]) -> list[dict[str, Any]]:
    """A row per setting."""
    for each in shares.values():
        each.clear()
    before = {name: llm.engine.stats().drafts for name, llm in llms.items()}
    outputs: dict[str, list[list[RequestOutput]]] = {name: [] for name in llms}
    for nth, requests in enumerate(rounds):
        for name in random.Random(nth).sample(list(llms), len(llms)):  # whom one comes after, changes
            outputs[name].append(serve(llms[name], requests))
    times = {name: np.array([tpot_s(found) for found in of_rounds]) for name, of_rounds in outputs.items()}
    best = min((name for name in times if name != "adaptive"), key=lambda name: float(np.log(times[name]).mean()))
    rows = []
    for name, of_rounds in outputs.items():
        found, plain = (list(chain(*each)) for each in (of_rounds, outputs["none"]))
        num_steps = sum(len(set(output.metrics.token_times_s)) for output in found if output.metrics is not None)
        drafts = llms[name].engine.stats().drafts.since(before[name])
        metrics = shares[name].metrics() | (acceptance(drafts) if any(drafts.drafts) else {})
        rows.append(
            {
                "setting": name,
                "tpot_mean_ms": round(1e3 * float(times[name].mean()), 4),
                "tokens_per_step": round(sum(len(output.outputs[0].token_ids) for output in found) / num_steps, 3),
                **ratio("times_faster", times["none"] / times[name]),
                **ratio("of_best", times[best] / times[name]),
                **{metric: round(value, 3) for metric, value in metrics.items()},
                "equal_outputs": sum(a.outputs[0].token_ids == b.outputs[0].token_ids for a, b in zip(found, plain)),
                "outputs": len(found),
            }
        )
    return rows


def ratio(name: str, ratios: np.ndarray) -> dict[str, float]:
    """The geometric mean with its 95 % interval; none of a setting beside itself."""
    logs = np.log(ratios)
    if not logs.any():
        return {}
    interval = mean_interval(logs)
    values = {name: float(logs.mean()), f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {key: round(math.exp(value), 3) for key, value in values.items()}


def draw(rows: list[dict[str, Any]]) -> Figure:
    """How many times faster than no drafts, by setting and batch."""
    runs = pd.DataFrame([{key: row[key] for key in ("batch", "setting")} for row in rows])
    runs = runs.assign(status="ok", **{"metric.times_faster": [row.get("times_faster", 1.0) for row in rows]})
    return heatmap(runs, "batch", "setting", "times_faster")


if __name__ == "__main__":
    name, *files = sys.argv[1:]
    mode = MODES[name]
    rows: list[dict[str, Any]] = []
    for batch in mode.rounds:
        rows += measure(mode, batch)
        if files:
            write_csv(Path(files[0]), rows)
            if len(mode.rounds) > 1 and batch == max(mode.rounds):
                draw(rows).savefig(Path(files[0]).with_suffix(".png"), dpi=150)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print(format_table([columns, *([str(row.get(key, "")) for key in columns] for row in rows)]))
