"""Which kernel is worth writing: how TTFT, TPOT and goodput of a workload move if one op's time is scaled.

    python experiments/sensitivity.py workload=closed_loop                              tiny, on this machine's processor
    python experiments/sensitivity.py workload=closed_loop --twice linear,silu_and_mul  ... held to kernels that work twice
    python experiments/sensitivity.py model=llama-3-8b model.load_format=dummy executor=simulated workload=random
                                                                                        a device that is not here, exactly

On a simulated device an op's time is a factor. On a processor each of its calls is followed by a busy wait, as long as
(factor - 1) times what that call took; a faster op is all others, and the rest of each step (``host``), slower by 1 / factor while
requests come so much later, and all times rescaled; it is compared with a run where the op is slower, too, since waits themselves
change caches and clocks. On a GPU the waits are spin kernels of a fixed length, (factor - 1) times the
op's mean time, and factors below 1 are not available. Runs take turns in a new order in every repeat, and every op has a run
without change of its own beside its factors; repeats differ in the workload's seed.

A processor shared with others changes its speed all the time. No delay changes how long the calls themselves take, so that what
they took in a run tells how fast the machine was then: a metric is divided by that (TTFT by the calls of steps with prompts,
TPOT by those of steps without). runs.csv has metrics as they came, and beside them the seconds that they are divided by.

Overrides are those of experiments/serve.py. The folder gets elasticities.csv, runs.csv, sensitivity.png and config.json; what it
holds of the same config already is not measured again.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.scaled_runs import OnProcessor, Rebuilt, measure
from framework.build import freeze_garbage
from framework.executor.kinds import EXECUTORS
from framework.study.compose import CONFIG_FILE, ServeConfig, compose, load_config, save_config
from framework.study.plot_kinds import PLOT_KINDS
from framework.study.results import format_table, write_csv
from framework.study.sensitivity import METRICS, agreement, as_rows, as_text, elasticities, ratios, read_rows, shares

ROOT = Path(__file__).resolve().parents[1]
FACTORS = (0.5, 0.8, 1.25, 2.0)
TABLE_FILE, RUNS_FILE, AGREEMENT_FILE, PLOT_FILE = "elasticities.csv", "runs.csv", "agreement.csv", "sensitivity.png"


def main(given: Sequence[str] | None = None) -> None:
    """Measures, writes the tables and the figure, and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the run, as experiments/serve.py takes them")
    parser.add_argument("--factors", default=",".join(map(str, FACTORS)), help="on the time of a part (default: %(default)s)")
    parser.add_argument("--parts", default="", help="ops, and host; default: all that the workload calls")
    parser.add_argument("--repeats", type=int, default=8, help="of every run (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=math.inf, metavar="SECONDS", help="begin no repeat after so long")
    parser.add_argument("--twice", default="", metavar="OP,...", help="ops to measure with a kernel that works twice, too")
    parser.add_argument("--output", type=Path, default=Path("outputs/sensitivity"), help="folder (default: %(default)s)")
    arguments = parser.parse_intermixed_args(given)
    config = compose(arguments.overrides, ROOT / "conf")
    config.validate()
    config.workload.validate()
    factors = _factors(arguments.factors)
    has_device = EXECUTORS[config.executor.kind].has_device
    on_processor = has_device and EXECUTORS[config.executor.kind].load().runs_on(config)[1] == "cpu"
    subject = OnProcessor(config) if on_processor else Rebuilt(config)
    parts = _known(arguments.parts, subject.parts, "--parts") or subject.parts
    twice = _known(arguments.twice, parts, "--twice")
    freeze_garbage()
    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    same = (folder / CONFIG_FILE).is_file() and load_config(folder / CONFIG_FILE, ServeConfig) == config
    rows = read_rows(folder / RUNS_FILE) if same else []
    save_config(config, folder / CONFIG_FILE)
    start_s = time.perf_counter()
    left = [repeat for repeat in range(arguments.repeats) if repeat not in {row["repeat"] for row in rows}]
    for found_rows in measure(subject, parts, factors, twice, left, config.seed):
        rows += found_rows
        write_csv(folder / RUNS_FILE, rows)
        if time.perf_counter() - start_s > arguments.budget:
            break
    of_calls = shares(rows)
    found = [each for metric in METRICS for each in elasticities(metric, ratios(rows, metric))]
    write_csv(folder / TABLE_FILE, as_rows(found, of_calls))
    PLOT_KINDS["elasticities"].draw_rows(folder / TABLE_FILE).savefig(folder / PLOT_FILE, dpi=150)
    print(as_text(found, of_calls))
    if twice:
        lines = agreement(rows)
        write_csv(folder / AGREEMENT_FILE, [dict(zip(lines[0], line)) for line in lines[1:]])
        print("\n" + format_table(lines))
    print(f"\n{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def _factors(text: str) -> list[float]:
    try:
        factors = [float(part) for part in text.split(",")]
    except ValueError:
        factors = []
    if not factors or min(factors) <= 0 or 1.0 in factors or not all(map(math.isfinite, factors)):
        raise ValueError(f"--factors {text}: expected positive numbers other than 1, as in 0.8,1.25")
    return factors


def _known(text: str, parts: Sequence[str], option: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in parts:
            raise ValueError(f"{option} {name}: this workload has no such part; it has {', '.join(parts)}")
    return names


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
