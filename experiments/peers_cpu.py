"""Measure ours beside transformers' ``generate`` on this CPU.

    python experiments/peers_cpu.py
    python experiments/peers_cpu.py dtypes=[float32] rounds=5 kernels.linear=torch
    python experiments/peers_cpu.py dtypes=[bfloat16] engines=[kernelswap,kernelswap/int8,kernelswap/rtn-int4,transformers]

Every engine is a resident process; the rounds are interleaved and all processes but the measured one are stopped, so that both
meet the same moods of the machine. Ratios are of the same round.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from omegaconf import DictConfig, OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.peers.checkpoint import random_llama
from framework.study.compose import hydra_version_base, register_schema
from framework.study.results import format_table, write_csv

register_schema()

Row = dict[str, Any]


class Peer:
    """An engine in a process of its own, stopped whenever it is not being measured."""

    def __init__(self, engine: str, model: Path, dtype: str, threads: int, kernels: dict[str, str]) -> None:
        worker = Path(__file__).parent / "peers" / "worker.py"
        command = [sys.executable, str(worker), engine, str(model), dtype, str(threads), json.dumps(kernels)]
        self.engine = engine
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self._read()["ready"]
        self._process.send_signal(signal.SIGSTOP)

    def measure(self, workload: list[Any]) -> dict[str, Any]:
        """Serves a workload: wall time in seconds, and the tokens."""
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(workload) + "\n")
        self._process.stdin.flush()
        reply = self._read()
        self._process.send_signal(signal.SIGSTOP)
        return reply

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker of {self.engine} ended with code {self._process.wait()}; its error is printed above")
        return json.loads(line)


@contextmanager
def peers(config: DictConfig, model: Path, dtype: str) -> Iterator[list[Peer]]:
    """One running peer per engine; all are ended at the end."""
    kernels = dict(config.kernels)
    with ExitStack() as stack:
        running = []
        for engine in config.engines:
            running.append(peer := Peer(engine, model, dtype, config.threads, kernels))
            stack.callback(peer.close)
        yield running


def requests(lengths: list[list[int]], vocab_size: int, seed: int) -> list[tuple[list[int], int]]:
    """Random prompts of the given lengths, with the output lengths."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(4, vocab_size, num_prompt).tolist(), num_output) for num_prompt, num_output in lengths]


def measure(config: DictConfig, model: Path) -> list[Row]:
    """One row per dtype, workload, round and engine; ``agreement`` is the share of tokens equal to the last engine's."""
    rows: list[Row] = []
    vocab_size = config.model.architecture.vocab_size
    workloads = {name: requests(lengths, vocab_size, config.seed) for name, lengths in config.workloads.items()}
    for dtype in config.dtypes:
        with peers(config, model, dtype) as running:
            for number in range(config.rounds):
                for name, workload in workloads.items():
                    found = [peer.measure(workload) for peer in running]
                    num_output = sum(n for _, n in workload)
                    for peer, reply in zip(running, found):
                        pairs = zip(reply["outputs"], found[-1]["outputs"])
                        equal = sum(a == b for ours, theirs in pairs for a, b in zip(ours, theirs))
                        rows.append(
                            {
                                "dtype": dtype,
                                "workload": name,
                                "round": number,
                                "engine": peer.engine,
                                "version": peer.version,
                                "wall_s": reply["wall_s"],
                                "output_tokens_per_s": num_output / reply["wall_s"],
                                "agreement": equal / num_output,
                            }
                        )
    return rows


def table(rows: list[Row], engines: list[str]) -> str:
    """Medians over the rounds; the ratio is to the last engine, round by round, with its smallest and largest value."""
    lines = [["dtype workload engine", "wall s", "output tok/s", "speed ratio", "(range)", "equal tokens"]]
    for dtype, workload in dict.fromkeys((row["dtype"], row["workload"]) for row in rows):
        of = {e: [r for r in rows if (r["dtype"], r["workload"], r["engine"]) == (dtype, workload, e)] for e in engines}
        for engine in engines:
            ratios = [base["wall_s"] / row["wall_s"] for row, base in zip(of[engine], of[engines[-1]])]
            wall, speed, agreement = (
                statistics.median(row[key] for row in of[engine]) for key in ("wall_s", "output_tokens_per_s", "agreement")
            )
            lines.append(
                [
                    f"{dtype} {workload} {engine}",
                    f"{wall:.2f}",
                    f"{speed:.1f}",
                    f"{statistics.median(ratios):.2f}x",
                    f"{min(ratios):.2f}-{max(ratios):.2f}",
                    f"{agreement:.1%}",
                ]
            )
    return format_table(lines)


@hydra.main(config_path="../conf", config_name="peers_cpu", **hydra_version_base())
def main(config: DictConfig) -> None:
    """Measures, prints the table, writes every row."""
    folder = Path(config.work_dir)
    rows = measure(config, random_llama(folder, OmegaConf.to_object(config.model.architecture), config.seed))
    write_csv(folder / "rows.csv", rows)
    print(f"{table(rows, list(config.engines))}\n\n{config.threads} threads; every round: {folder / 'rows.csv'}")


if __name__ == "__main__":
    main()
