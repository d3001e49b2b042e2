"""What a grammar adds to a step: batches with and without one, in turn, on this machine.

    python experiments/grammar_cost.py experiments/serving_results/grammar_tiny.csv --model tiny --temperature 1

A batch is 32 requests that decode together; of each the lower quartile of its steps' times is taken, and of the processors' time in
them; of those the median over the rounds. The engine runs in this process, on all processors; the machine should do nothing else.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from framework import Engine, SamplingParams, StructuredOutputsParams, TokensPrompt
from framework.build import build_engine
from framework.engine_args import engine_config
from framework.engine_process import SHORT_WAITS
from framework.study.results import format_table

NUM_REQUESTS, PROMPT_TOKENS = 32, 16
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


def step_ms(engine: Engine, constraint: dict[str, Any] | None, num_tokens: int, temperature: float) -> tuple[float, float]:
    """Of the steps in which all requests decode: the lower quartiles of their times, and of the processors' in all threads."""
    asked = None if constraint is None else StructuredOutputsParams(**constraint)
    for i in range(NUM_REQUESTS):
        params = SamplingParams(
            max_tokens=num_tokens, seed=i, temperature=temperature, ignore_eos=True, detokenize=False, structured_outputs=asked
        )
        engine.add_request(str(i), TokensPrompt(prompt_token_ids=[300 + i] * PROMPT_TOKENS), params)
    times = []
    while engine.has_unfinished():
        before, begun, cpu = engine.num_running, time.perf_counter(), time.process_time()
        engine.step()
        if before == engine.num_running == NUM_REQUESTS:
            times.append((time.perf_counter() - begun, time.process_time() - cpu))
    quartiles = 1e3 * np.percentile(times, 25, axis=0)
    return float(quartiles[0]), float(quartiles[1])


def main(given: Sequence[str] | None = None) -> None:
    """Writes a row per round and constraint, and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="CSV file of the rows")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(given)
    for name, value in SHORT_WAITS.items():  # OpenMP is not loaded yet
        os.environ.setdefault(name, value)
    engine = build_engine(engine_config(arguments.model, device="cpu", max_num_seqs=NUM_REQUESTS, num_gpu_blocks_override=2000))
    rows: list[dict[str, Any]] = []
    for number in range(-1, arguments.rounds):  # the first warms up
        for name, constraint in CONSTRAINTS.items():
            step, cpu = step_ms(engine, constraint, arguments.tokens, arguments.temperature)
            if number >= 0:
                rows.append({"round": number, "constraint": name, "step_ms": round(step, 4), "cpu_ms": round(cpu, 4)})
    arguments.table.parent.mkdir(parents=True, exist_ok=True)
    with arguments.table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    medians = {
        name: [median(row[key] for row in rows if row["constraint"] == name) for key in ("step_ms", "cpu_ms")]
        for name in CONSTRAINTS
    }
    (step, cpu), lines = medians["none"], []
    for name, (own_step, own_cpu) in medians.items():
        lines.append([name, f"{own_step:.3f}", f"{own_step / step:.2f}", f"{own_cpu:.3f}", f"{own_cpu / cpu:.2f}"])
    print(format_table([["constraint", "step (ms)", "ratio", "cpu (ms)", "ratio"], *lines]))


if __name__ == "__main__":
    main()
