"""What a grammar adds to a step: batches with and without one, in turn, on this machine.

    python experiments/grammar_cost.py experiments/serving_results/grammar_tiny.csv --model tiny --temperature 1

A batch is requests that decode together; of each the lower quartile of its steps' times is taken, and of those the median over
the rounds. A ratio is the mean over the rounds, with its 95 % interval, of what the batch took over what the one without a
constraint took in the same round. The engine runs in this process, on all processors; the machine should do nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from framework import Engine, SamplingParams, StructuredOutputsParams, TokensPrompt
from framework.build import build_engine
from framework.engine_args import engine_config
from framework.engine_process import SHORT_WAITS
from framework.study.results import format_table, write_csv
from framework.study.statistics import mean_interval

PROMPT_TOKENS = 16
TIMES = {"step_ms": time.perf_counter, "thread_cpu_ms": time.thread_time, "cpu_ms": time.process_time}
"""Of a step: its time, the processors' in the engine's thread, and in all threads."""
_LONG_TEXT = {"type": "string", "minLength": 200, "maxLength": 400}
_ITEM = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
CONSTRAINTS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "json, long strings": {
        "json": {
            "type": "object",
            "properties": {f"k{i}": _LONG_TEXT for i in range(8)},
            "required": [f"k{i}" for i in range(8)],
            "additionalProperties": False,
        }
    },
    "json, short items": {"json": {"type": "array", "items": _ITEM, "minItems": 100}, "disable_any_whitespace": True},
    "regex": {"regex": "[a-z0-9 ,.]{600}"},
}


def step_times(
    engine: Engine, constraint: dict[str, Any] | None, num_requests: int, num_tokens: int, temperature: float
) -> list[float]:
    """Of the steps in which all requests decode: the lower quartiles of TIMES."""
    asked = None if constraint is None else StructuredOutputsParams(**constraint)
    for i in range(num_requests):
        params = SamplingParams(
            max_tokens=num_tokens, seed=i, temperature=temperature, ignore_eos=True, detokenize=False, structured_outputs=asked
        )
        engine.add_request(str(i), TokensPrompt(prompt_token_ids=[300 + i] * PROMPT_TOKENS), params)
    times = []
    while engine.has_unfinished():
        before, begun = engine.num_running, [clock() for clock in TIMES.values()]
        engine.step()
        if before == engine.num_running == num_requests:
            times.append([clock() - start for clock, start in zip(TIMES.values(), begun)])
    return [round(1e3 * float(quartile), 4) for quartile in np.percentile(times, 25, axis=0)]


def main(given: Sequence[str] | None = None) -> None:
    """Writes a row per round and constraint, and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="CSV file of the rows")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(given)
    for name, value in SHORT_WAITS.items():  # OpenMP is not loaded yet
        os.environ.setdefault(name, value)
    config = engine_config(arguments.model, device="cpu", max_num_seqs=arguments.requests, num_gpu_blocks_override=2000)
    engine = build_engine(config)
    rows: list[dict[str, Any]] = []
    for number in range(-1, arguments.rounds):  # the first warms up
        for name, constraint in CONSTRAINTS.items():
            found = step_times(engine, constraint, arguments.requests, arguments.tokens, arguments.temperature)
            if number >= 0:
                rows.append({"round": number, "constraint": name, **dict(zip(TIMES, found))})
    write_csv(arguments.table, rows)
    lines = []
    for name in CONSTRAINTS:
        line = [name]
        for column in TIMES:
            own, without = ([row[column] for row in rows if row["constraint"] == one] for one in (name, "none"))
            ratios = [one / other for one, other in zip(own, without)]
            interval = mean_interval(ratios)
            line += [f"{median(own):.3f}", f"{mean(ratios):.2f} ({interval.low:.2f}-{interval.high:.2f})"]
        lines.append(line)
    print(format_table([["constraint", *(head for column in TIMES for head in (column, "ratio"))], *lines]))


if __name__ == "__main__":
    main()
