"""The simulator against the real engine on this machine's processor: calibrated on one workload, held to two others.

    python experiments/simulated_against_real.py experiments/simulated_against_real_results

One run with profile=true gives the times of all kernel calls, which ``kernelswap calibrate`` fits, and what the host takes per
step. Then the other workloads are served for real and simulated, with the same requests; medians are over the requests of all
seeds. What is in the folder already is not run again. The machine should do nothing else.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from framework.engine_process import SHORT_WAITS
from framework.study.profile import STEPS_FILE
from framework.study.results import REQUESTS_FILE, format_table

SERVE = Path(__file__).with_name("serve.py")
COMMON = ("num_threads=1", "workload.think_time_s=0", "kernels.qk_norm_rotary_kv_write=none")
CALIBRATED_ON = ("workload=closed_loop", "workload.num_users=16", "workload.num_requests=96")
WORKLOADS = {
    "8 users, prompts of 128 tokens": ("workload=closed_loop", "workload.num_users=8", "workload.num_requests=48"),
    "12 users, prompts of 256 tokens": (
        "workload=closed_loop",
        "workload.num_users=12",
        "workload.num_requests=48",
        "workload.prompt_tokens=256",
        "workload.output_tokens=32",
    ),
}
SEEDS = (0, 1, 2)
CALIBRATION_FILE, TABLE_FILE = "calibration.json.gz", "table.csv"


def run(folder: Path, overrides: Sequence[str]) -> None:
    """One run in its own process, unless the folder has it."""
    if not (folder / REQUESTS_FILE).is_file():
        command = [sys.executable, str(SERVE), f"hydra.run.dir={folder}", *overrides]
        subprocess.run(command, check=True, env=SHORT_WAITS | dict(os.environ))


def host_s(folder: Path) -> float:
    """What a step takes beside its kernel calls and their timing: the median."""
    with (folder / STEPS_FILE).open(newline="", encoding="utf-8") as file:
        steps = [float(row["step_s"]) - float(row["ops_s"]) - float(row["profile_s"]) for row in csv.DictReader(file)]
    return float(np.median(steps))


def medians(folders: Sequence[Path]) -> dict[str, float]:
    """Of TTFT and TPOT over the requests of all folders."""
    rows = []
    for folder in folders:
        with (folder / REQUESTS_FILE).open(newline="", encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    return {metric: float(np.median([float(row[f"{metric}_s"]) for row in rows])) for metric in ("ttft", "tpot")}


def main(given: Sequence[str] | None = None) -> None:
    """Runs what is missing, writes the table, and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the table, the calibration and the runs")
    folder: Path = parser.parse_args(given).folder
    profiled, calibration = folder / "runs" / "profiled", folder / CALIBRATION_FILE
    run(profiled, [*COMMON, *CALIBRATED_ON, "profile=true"])
    for seed in SEEDS:
        for number, workload in enumerate(WORKLOADS.values()):
            run(folder / "runs" / f"real_{number}_{seed}", [*COMMON, *workload, f"seed={seed}"])
    if not calibration.is_file():
        command = [sys.executable, "-m", "framework.cli", "calibrate", str(profiled), "--device", "cpu", "--out", str(calibration)]
        subprocess.run(command, check=True)
    simulated = [*COMMON, "executor=simulated", "executor.device=cpu", f"executor.calibration={calibration}", "executor.launch_s=0"]
    simulated += [f"executor.step_overhead_s={host_s(profiled):.3g}", "scheduler.in_flight_steps=1"]
    simulated += ["cache.num_blocks=4096", "cache.block_size=16"]
    for seed in SEEDS:
        for number, workload in enumerate(WORKLOADS.values()):
            run(folder / "runs" / f"simulated_{number}_{seed}", [*simulated, *workload, f"seed={seed}"])
    lines = [["workload", "metric", "real (ms)", "simulated (ms)", "error"]]
    for number, name in enumerate(WORKLOADS):
        real, found = (medians([folder / "runs" / f"{kind}_{number}_{seed}" for seed in SEEDS]) for kind in ("real", "simulated"))
        for metric in real:
            times = [f"{1e3 * medians_of[metric]:.2f}" for medians_of in (real, found)]
            lines.append([name, f"{metric.upper()} p50", *times, f"{found[metric] / real[metric] - 1:+.1%}"])
    with (folder / TABLE_FILE).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    print(format_table(lines))
    print(f"the host took {1e3 * host_s(profiled):.2f} ms per step")


if __name__ == "__main__":
    main()
