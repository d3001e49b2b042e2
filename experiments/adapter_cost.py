"""What slots for adapters, and adapters in them, add to a step, on this machine.

    python experiments/adapter_cost.py experiments/serving_results/adapters_unused.csv --settings unused --engines 20 --rounds 6
    python experiments/adapter_cost.py experiments/serving_results/adapters_ranks.csv --engines 4 --rounds 2

Of requests that decode together, which is what their time per output token consists of. An engine without slots and one with slots
decode the same batch in one process, step by step in turn, so that what the machine does in the meantime meets both alike. Both are
built anew several times, because where in memory an engine's weights come to lie makes it some percent faster or slower for as long
as it lives. A ratio is the mean over the builds, with its 95 % interval, of the median of what a step took over what the same one
took without slots.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.made_up_adapters import write_adapter
from framework import Engine, LoRARequest, SamplingParams, TokensPrompt
from framework.build import build_engine
from framework.config import ModelConfig
from framework.engine_args import engine_config
from framework.engine_process import SHORT_WAITS
from framework.study.results import format_table, write_csv
from framework.study.statistics import mean_interval
from framework.study.workload import POPULARITIES, WorkloadConfig, draw_adapters

PROMPT_TOKENS = 16
RANKS = 8, 64
SETTINGS = ("unused", *(f"rank {rank}, {popularity}" for rank in RANKS for popularity in POPULARITIES))
"""Of an engine with slots for adapters of the largest rank, one for each request of a batch: which of as many adapters its requests
have is as workloads say it."""


def adapters_of(setting: str, folder: Path, model: ModelConfig, num_requests: int) -> list[LoRARequest | None]:
    """Of each request of a batch; they are written into the folder."""
    if setting == "unused":
        return [None] * num_requests
    rank, popularity = setting.removeprefix("rank ").split(", ")
    own = folder / rank
    if not own.exists():
        own.mkdir()
        for number in range(1, num_requests + 1):
            write_adapter(own / str(number), model, int(rank), number)
    workload = WorkloadConfig(num_loras=num_requests, lora_popularity=popularity, lora_folder=str(own))
    found = draw_adapters(workload, num_requests)
    return [
        one and replace(one, lora_name=f"{rank}/{one.lora_name}", lora_int_id=1000 * int(rank) + one.lora_int_id) for one in found
    ]


def start(engine: Engine, adapters: Sequence[LoRARequest | None], num_tokens: int) -> None:
    """Up to where all requests decode."""
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
    for adapter in dict.fromkeys(adapters):
        if adapter is not None:
            engine.add_lora(adapter)
    for i, adapter in enumerate(adapters):
        prompt = TokensPrompt(prompt_token_ids=[300 + i] * PROMPT_TOKENS)
        engine.add_request(str(i), prompt, params, lora_request=adapter)
    while engine.num_waiting:
        engine.step()


def measure(without: Engine, engine: Engine, adapters: Sequence[LoRARequest | None], num_tokens: int) -> dict[str, float]:
    """Medians of a batch's steps without slots, of those with slots, and of their ratios."""
    start(without, [None] * len(adapters), num_tokens)
    start(engine, adapters, num_tokens)
    times: list[dict[Engine, float]] = []
    while without.num_running == engine.num_running == len(adapters):
        taken = {}
        for one in (without, engine) if len(times) % 2 else (engine, without):
            begun_s = time.perf_counter()
            one.step()
            taken[one] = 1e3 * (time.perf_counter() - begun_s)
        times.append(taken)
    assert not without.has_unfinished() and not engine.has_unfinished()
    plain, found = (np.array([taken[one] for taken in times]) for one in (without, engine))
    medians = {"without_ms": np.median(plain), "step_ms": np.median(found), "ratio": np.median(found / plain)}
    return {name: round(float(value), 5) for name, value in medians.items()}


def summary(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line per setting, under a head."""
    lines = [["setting", "without slots (ms)", "step (ms)", "ratio"]]
    for setting, of_setting in pd.DataFrame(rows).groupby("setting", sort=False):
        ratios = of_setting.groupby("engines")["ratio"].median()
        interval, medians = mean_interval(ratios.to_numpy()), of_setting[["without_ms", "step_ms"]].median()
        shown = f"{ratios.mean():.3f} ({interval.low:.3f}-{interval.high:.3f})"
        lines.append([str(setting), *(f"{median:.3f}" for median in medians), shown])
    return lines


def main(given: Sequence[str] | None = None) -> None:
    """Writes a row per batch, and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="CSV file of the rows")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--requests", type=int, default=8, help="that decode together")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--engines", type=int, default=5, help="how often both are built")
    parser.add_argument("--rounds", type=int, default=4, help="batches of each setting that such engines serve")
    arguments = parser.parse_args(given)
    for name, value in SHORT_WAITS.items():  # OpenMP is not loaded yet
        os.environ.setdefault(name, value)
    num_requests, rows = arguments.requests, []
    fixed: dict[str, Any] = {"device": "cpu", "max_num_seqs": num_requests, "num_gpu_blocks_override": 1000}
    slots = {"enable_lora": True, "max_loras": num_requests, "max_lora_rank": max(RANKS), "max_cpu_loras": 4 * num_requests}
    configs = [engine_config(arguments.model, **fixed, **more) for more in ({}, slots)]
    with tempfile.TemporaryDirectory() as folder:
        adapters = {name: adapters_of(name, Path(folder), configs[0].model, num_requests) for name in arguments.settings}
        for build in range(arguments.engines):
            turn = 1 if build % 2 else -1
            without, engine = [build_engine(config) for config in configs[::turn]][::turn]
            for nth in range(-1, arguments.rounds):  # the first warms up
                for name, of_requests in adapters.items():
                    found = measure(without, engine, of_requests, arguments.tokens)
                    if nth >= 0:
                        rows.append({"engines": build, "round": nth, "setting": name, **found})
            without.shutdown()
            engine.shutdown()
    write_csv(arguments.table, rows)
    print(format_table(summary(rows)))


if __name__ == "__main__":
    main()
