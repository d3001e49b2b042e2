"""``kernelswap bench executor``: what it costs to hand steps to workers. They have no model, so that nothing else is measured."""

from __future__ import annotations

import argparse
import pickle
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ..distributed.kinds import LAUNCHERS
from ..engine.step import NewRequest, StepInput
from ..study.results import format_table

if TYPE_CHECKING:
    from ..config import EngineConfig
    from ..distributed.messages import Place
    from ..engine.executor import Executor

ROWS, BLOCK_SIZE, NUM_BLOCKS = (1, 64, 256, 1024), 16, 2**20


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    text = "measure what a decode step takes from the engine to its workers and back"
    parser = commands.add_parser("executor", help=text, description=text)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8], metavar="N", help="(default: 2 4 8)")
    parser.add_argument("--rows", type=int, default=64, help="of the steps that go round (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--backend", choices=LAUNCHERS, default="processes", help="what workers are (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints two tables."""
    for name in ("rows", "steps"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name}={getattr(arguments, name)} cannot work: it must be 1 or more")
    sizes = [["rows", "bytes", "bytes where all rows begin a block", "pickling (us)", "unpickling (us)"]]
    for num_rows in ROWS:
        usual, most = (pickle.dumps(decode_step(num_rows, every), pickle.HIGHEST_PROTOCOL) for every in (BLOCK_SIZE, 1))
        dumps = _median_us(partial(pickle.dumps, decode_step(num_rows, BLOCK_SIZE), pickle.HIGHEST_PROTOCOL))
        loads = _median_us(partial(pickle.loads, usual))
        sizes.append([str(num_rows), str(len(usual)), str(len(most)), f"{dumps:.1f}", f"{loads:.1f}"])
    print("A decode step to each worker\n" + format_table(sizes))
    trips = [["workers", "p50 (us)", "p99 (us)"]]
    for size in arguments.workers:
        times = sorted(round_trips(size, arguments.rows, arguments.steps, arguments.backend))
        trips.append([str(size), *(f"{times[int(len(times) * part)] * 1e6:.0f}" for part in (0.5, 0.99))])
    print(f"\nA decode step of {arguments.rows} rows, there and back\n" + format_table(trips))
    return 0


def decode_step(num_rows: int, every: int, step_id: int = 10**6) -> StepInput:
    """Of rows of which one in ``every`` begins a block."""
    rng = random.Random(0)
    seats = rng.sample(range(num_rows), num_rows)
    blocks = [(seat, 0, [rng.randrange(NUM_BLOCKS)]) for seat in seats[::every]]
    return StepInput(step_id, seats, [1] * num_rows, [1] * num_rows, new_blocks=blocks)


def null_rank(config: EngineConfig, place: Place) -> Executor:
    """A rank without a model."""
    from ..executor.null import NullExecutor
    from ..executor.shape import ModelShape
    from ..models.read import read_model

    return NullExecutor(config, ModelShape.of(read_model(config.model), config))


def round_trips(num_workers: int, num_rows: int, num_steps: int, backend: str = "processes") -> list[float]:
    """Seconds of each step from its submission to its result."""
    from ..config import CacheConfig, EngineConfig, ExecutorConfig, ParallelConfig, SchedulerConfig
    from ..distributed.executor import DistributedExecutor
    from ..sampling_params import SamplingParams

    config = EngineConfig(
        cache=CacheConfig(BLOCK_SIZE, NUM_BLOCKS),
        scheduler=SchedulerConfig(max_num_seqs=num_rows),
        executor=ExecutorConfig("distributed"),
        parallel=ParallelConfig(num_workers, backend=backend),
    )
    config.validate()
    executor, times = DistributedExecutor(config, null_rank), []
    try:
        params = SamplingParams(seed=0)
        new = [NewRequest(seat, str(seat), [1], 1, 0, [[1 + seat]], params) for seat in range(num_rows)]
        executor.submit(StepInput(0, list(range(num_rows)), [1] * num_rows, [1] * num_rows, new)).result()
        for step_id in range(1, num_steps + 1):
            step = decode_step(num_rows, BLOCK_SIZE, step_id)
            start_s = time.perf_counter()
            executor.submit(step).result()
            times.append(time.perf_counter() - start_s)
    finally:
        executor.shutdown()
    return times


def _median_us(run: Callable[[], object], count: int = 200) -> float:
    times = []
    for _ in range(count):
        start_s = time.perf_counter()
        run()
        times.append(time.perf_counter() - start_s)
    return statistics.median(times) * 1e6
