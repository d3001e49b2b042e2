"""Time per output token, greedy, with drafts and without: python experiments/speculation_speed.py methods|depth [FILE.csv]

methods  what drafts, and how many, for one request at a time
depth    how many drafts of a method that costs next to nothing, fixed or adaptive, for several requests at a time

All settings serve the same held-out prompts in one process, round by round in turn, so that what the machine does in the meantime
meets all alike; a prompt is served once, so that suffix decoding knows none of them. Time is that of the one thread that works:
without what other processes took of the machine, which here is what a clock on the wall shows if there are none. Ratios are paired
by round: times_faster is to no drafts, of_best to the best setting but the adaptive one.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from framework.clock import WallClock
from framework.llm import LLM
from framework.outputs import RequestOutput
from framework.study.results import format_table, write_csv
from framework.study.statistics import mean_interval
from framework.study.time_shares import TimeShares
from framework.study.workload import WorkloadConfig, WorkloadRequest, build_workload

Settings = dict[str, dict[str, Any]]

NGRAM = {"method": "ngram", "prompt_lookup_min": 2, "prompt_lookup_max": 5, "prompt_lookup_match": "rightmost"}
METHODS: Settings = {
    "none": {},
    **{f"ngram, {k}": {**NGRAM, "num_speculative_tokens": k} for k in (3, 7)},
    **{f"suffix, {k}": {"method": "suffix", "num_speculative_tokens": k} for k in (3, 7)},
    "draft_model, 3": {"method": "draft_model", "model": "tiny-draft", "num_speculative_tokens": 3},
    "medusa, 3": {"method": "medusa", "model": "tiny-medusa", "num_speculative_tokens": 3},
    "eagle3, 3": {"method": "eagle3", "model": "tiny-eagle3", "num_speculative_tokens": 3},
    "mtp, 3": {"method": "mtp", "model": "tiny-mtp", "num_speculative_tokens": 3},
}
DEPTHS: Settings = {
    "none": {},
    **{f"ngram, {k}": {**NGRAM, "num_speculative_tokens": k} for k in (1, 3, 7)},
    "adaptive": {**NGRAM, "num_speculative_tokens": 7, "adaptive_depth": True},
}
ROUNDS = {1: 20, 4: 12, 16: 8, 64: 6}
"""By how many requests run at a time."""
HELDOUT = WorkloadConfig("heldout", prompt_tokens=256, prompt_spread=0, output_tokens=128, output_spread=0)
WARMUP = replace(HELDOUT, source="python", seed=1)


class CpuClock(WallClock):
    """Time in which this process computes."""

    def now(self) -> float:
        return time.process_time()


def serve(llm: LLM, requests: list[WorkloadRequest]) -> list[RequestOutput]:
    """All at once."""
    prompts = [{"prompt_token_ids": request.prompt_token_ids} for request in requests]
    return llm.generate(prompts, [request.sampling for request in requests], use_tqdm=False)


def tpot_s(outputs: list[RequestOutput]) -> float:
    """Seconds per token after the first, mean of the requests."""
    times = [output.metrics.token_times_s for output in outputs if output.metrics is not None]
    return float(np.mean([(each[-1] - each[0]) / (len(each) - 1) for each in times]))


def measure(settings: Settings, batch: int) -> list[dict[str, Any]]:
    """A row per setting."""
    torch.set_num_threads(1)  # as many as one row can use
    fixed = {"device": "cpu", "max_num_seqs": batch, "max_num_batched_tokens": batch * HELDOUT.prompt_tokens}
    llms = {name: LLM("tiny", speculative_config=spec or None, **fixed) for name, spec in settings.items()}
    for llm in llms.values():
        llm.engine.clock = CpuClock()
    rounds, warmup = (
        rounds_of(replace(HELDOUT, num_requests=batch * ROUNDS[batch]), batch, llms["none"]),
        rounds_of(replace(WARMUP, num_requests=batch * 4), batch, llms["none"]),
    )
    for requests in warmup:
        for llm in llms.values():
            serve(llm, requests)
    shares = {name: TimeShares(llm.engine) for name, llm in llms.items()}
    outputs: dict[str, list[list[RequestOutput]]] = {name: [] for name in llms}
    for nth, requests in enumerate(rounds):
        for i in range(len(llms)):  # who comes first, changes
            name = list(llms)[(nth + i) % len(llms)]
            outputs[name].append(serve(llms[name], requests))
    times = {name: np.array([tpot_s(found) for found in of_rounds]) for name, of_rounds in outputs.items()}
    best = min((name for name in times if name != "adaptive"), key=lambda name: float(np.log(times[name]).mean()))
    rows = []
    for name, of_rounds in outputs.items():
        found = [output for of_round in of_rounds for output in of_round]
        plain = [output for of_round in outputs["none"] for output in of_round]
        same = sum(ours.outputs[0].token_ids == other.outputs[0].token_ids for ours, other in zip(found, plain))
        steps = [len(set(output.metrics.token_times_s)) for output in found if output.metrics is not None]
        rows.append(
            {
                "batch": batch,
                "setting": name,
                "tpot_mean_ms": round(1e3 * float(times[name].mean()), 4),
                "tokens_per_step": round(len(found) * HELDOUT.output_tokens / sum(steps), 3),
                **ratio("times_faster", times["none"] / times[name]),
                **ratio("of_best", times[best] / times[name]),
                **{share: round(value, 3) for share, value in shares[name].metrics().items()},
                "equal_outputs": f"{same}/{len(found)}",
            }
        )
    return rows


def rounds_of(config: WorkloadConfig, batch: int, llm: LLM) -> list[list[WorkloadRequest]]:
    tokenizer = llm.get_tokenizer()
    requests = build_workload(config, tokenizer.vocab_size, tokenizer.encode)
    return [requests[i : i + batch] for i in range(0, len(requests), batch)]


def ratio(name: str, ratios: np.ndarray) -> dict[str, float]:
    """The geometric mean with its 95 % interval; none of a setting beside itself."""
    logs = np.log(ratios)
    if not logs.any():
        return {}
    interval = mean_interval(logs)
    values = {name: float(logs.mean()), f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {key: round(math.exp(value), 3) for key, value in values.items()}


if __name__ == "__main__":
    mode, *files = sys.argv[1:]
    asked = {"methods": (METHODS, [1]), "depth": (DEPTHS, ROUNDS)}
    settings, batches = asked[mode]
    rows = [row for batch in batches for row in measure(settings, batch)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print(format_table([columns, *([str(row.get(key, "")) for key in columns] for row in rows)]))
    if files:
        write_csv(Path(files[0]), rows, columns)
