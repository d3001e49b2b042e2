"""``kernelswap kernels bench``: times kernels side by side on the device at hand."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..study.results import format_table
from .child import DTYPES

if TYPE_CHECKING:
    import torch

    from triton_kernels.impl import Impl
    from triton_kernels.lab.bench import Row
    from triton_kernels.op import Case, Op
    from triton_kernels.registry import Registry

ROWS_FILE, PLOT_FILE = "bench.json", "roofline.png"


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    text = "time kernels side by side, correctness first, against ceilings measured in the same run"
    parser = commands.add_parser("bench", help=text, description=text)
    parser.add_argument("kernels", nargs="*", metavar="OP[:IMPL[@key:value]]", help="OP means all impls that can run")
    parser.add_argument("--all", action="store_true", help="every op that has cases for it")
    parser.add_argument(
        "--shapes",
        metavar="NAME,...",
        default="",
        help="cases whose name begins so: llama-8b,qwen3-30b-a3b (default: all for benchmarks)",
    )
    add_cases_argument(parser)
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of activations and weights (default: bf16 on a GPU, fp32 on a CPU; that of --cases)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: %(default)s)")
    parser.add_argument("--reference", action="store_true", help="time the references too (float64, slow)")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="begin no case after so long")
    parser.add_argument("--case-seconds", type=float, default=5.0, help="time for the samples of a case (default: %(default)s)")
    parser.add_argument("--tuned", default="auto", help="tuned tables: auto, a folder, or off (default: %(default)s)")
    parser.add_argument("--plugin", action="append", default=[], help="module or .py file with further kernels")
    add_peers_argument(parser)
    folder = parser.add_mutually_exclusive_group()
    folder.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        default=Path("outputs/kernels"),
        help="folder for bench.json and roofline.png (default: %(default)s)",
    )
    folder.add_argument("--resume", type=Path, metavar="DIR", help="the same, and measure only what is not in there yet")
    parser.set_defaults(run=run)


def add_cases_argument(parser: argparse.ArgumentParser) -> None:
    """``--cases``, see its help."""
    text = "the calls of a served workload in place of the op's own cases, each counted as often as it was made: the cases.json of "
    parser.add_argument("--cases", type=Path, metavar="FILE", help=text + "a run with capture=[OP]")


def captured_cases(path: Path | None, registry: Registry, kernels: Sequence[str]) -> tuple[dict[str, Sequence[Case]], str | None]:
    """The cases of a file for the ops of ``kernels``, and the short name of their dtype; nothing without a file."""
    if path is None:
        return {}, None
    from triton_kernels.cases.captured import read_cases

    ops = dict.fromkeys(name.partition(":")[0] for name in kernels)
    if not ops:
        raise ValueError(f"--cases {path}: name the ops whose calls to replay")
    files = {op: read_cases(path, _op(registry, op)) for op in ops}
    (dtype,) = {file.dtype for file in files.values()}
    short = next(short for short, name in DTYPES.items() if str(dtype) == f"torch.{name}")
    return {op: file.cases for op, file in files.items()}, short


def _op(registry: Registry, name: str) -> Op:
    registry.impls(name)  # raises ValueError for one that there is not
    return registry.ops[name]


def add_peers_argument(parser: argparse.ArgumentParser) -> None:
    """``--peers``, see its help."""
    parser.add_argument(
        "--peers",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="kernels of other projects beside ours: the .py files in DIR (but those named _...) are loaded as plugins, with "
        "DIR first on sys.path, so that a wheel may lie unpacked beside them; what they implement meets the named "
        "ops, even where only some impls are named. May be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measures, writes after each case, and prints the table. Exit code 1 if an impl was wrong or failed."""
    with first_on_path(arguments.peers):
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from triton_kernels.lab.bench import run as measure
    from triton_kernels.lab.bench import select_tasks
    from triton_kernels.registry import Registry
    from triton_kernels.tuning import TunedTables

    if arguments.all == bool(arguments.kernels):
        raise ValueError("name what to measure (OP or OP:IMPL), or give --all")
    registry = Registry.load([*arguments.plugin, *peer_files(arguments.peers)])
    captured, captured_dtype = captured_cases(arguments.cases, registry, arguments.kernels)
    device, dtype = find_device(arguments.device, arguments.dtype or captured_dtype)
    if device.type == "cuda" and device.index is not None:
        import torch

        torch.cuda.set_device(device)  # Triton launches on the current device
    shapes = [shape for shape in arguments.shapes.split(",") if shape]
    tasks = select_tasks(registry, with_peers(arguments.kernels, registry, arguments.peers), shapes, arguments.reference, captured)
    folder = arguments.resume or arguments.output
    known = read_rows(folder / ROWS_FILE) if arguments.resume else []
    name = _device_name(device)
    done = {(r["op"], r["case"]) for r in known if (r["dtype"], r["device"]) == (str(dtype).removeprefix("torch."), name)}
    env = _environment()
    tables = TunedTables.load(arguments.tuned)
    measured = measure(tasks, device, dtype, done=done, budget_s=arguments.budget, limit_s=arguments.case_seconds, tables=tables)
    for count, rows in enumerate(measured, 1 + sum(task.key in done for task in tasks)):
        known += [{**row.flat(), **env} for row in rows]
        write_rows(folder / ROWS_FILE, known)
        print(f"[{count}/{len(tasks)}] {_line(rows)}", flush=True)
    print("\n" + table(known))
    if captured:
        print("\n" + weighted_table(known))
    if any(row.get("median_us") for row in known):
        draw(known, folder / PLOT_FILE)
    left = len([task for task in tasks if task.key not in {(row["op"], row["case"]) for row in known}])
    print(f"\n{folder / ROWS_FILE}" + (f"; {left} cases are left: --resume {folder}" if left else ""))
    bad = [row for row in known if row["status"] in ("wrong", "error")]
    for row in bad:
        print(f"{row['status']}: {row['op']}:{row['impl']} ({row['case']}): {row['message']}")
    for failure in registry.failures:
        print(f"failed to load {failure.source}: {failure.error}")
    return 1 if bad else 0


@contextmanager
def first_on_path(folders: Sequence[Path]) -> Iterator[None]:
    """Puts folders at the front of ``sys.path`` for a while. Raises ValueError for one that is none."""
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"--peers {folder}: there is no such folder; expected one with .py files that hold kernels")
    before = list(sys.path)
    sys.path[:0] = [str(folder.resolve()) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before


def peer_files(folders: Sequence[Path]) -> list[str]:
    """The plugins in folders of peers."""
    return [str(path.resolve()) for folder in folders for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")]


def is_peer(impl: Impl, folders: Sequence[Path]) -> bool:
    """Whether an impl comes from one of the folders of peers."""
    return getattr(sys.modules.get(impl.origin), "__file__", None) in peer_files(folders)


def with_peers(kernels: Sequence[str], registry: Registry, folders: Sequence[Path]) -> list[str]:
    """``kernels``, and for each op of which only some impls are named also those that come from the folders."""
    whole = {name for name in kernels if ":" not in name}
    ops = dict.fromkeys(name.partition(":")[0] for name in kernels)
    found = (impl for op in ops if op not in whole for impl in registry.impls(op).values() if is_peer(impl, folders))
    peers = [f"{impl.op}:{impl.name}" for impl in found]
    return [*kernels, *(name for name in peers if name not in kernels)]


def find_device(name: str, dtype: str | None) -> tuple[torch.device, torch.dtype]:
    """The device ("auto": a GPU if there is one) and the dtype by its short name, or the device's usual one."""
    import torch

    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name} was asked for, but torch {torch.__version__} finds no GPU here")
    return device, getattr(torch, DTYPES[dtype or ("bf16" if device.type == "cuda" else "fp32")])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an earlier run; none if there was none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes all rows in one move, so that an interrupted run leaves a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text("[\n" + ",\n".join(json.dumps(_finite(row)) for row in rows) + "\n]\n", encoding="utf-8")
    draft.replace(path)


def table(rows: Iterable[dict[str, Any]]) -> str:
    """What was measured, as text: medians with half the distance of the quartiles, rates, the ratio to each baseline, and
    what others measured."""
    rows = list(rows)
    lines = [
        ["kernel", "case", "verdict", "us", "+-", "TFLOP/s", "TB/s", "% of ceiling", "bound by", "faster than", "elsewhere (us)"]
    ]
    for row in rows:
        name = f"{row['op']}:{row['impl']}"
        if row["median_us"] is None:
            lines.append([name, row["case"], row["status"], *["-"] * 6, row["message"].partition("\n")[0][:60], _elsewhere(row)])
            continue
        ratios = {key.removeprefix("ratio."): value for key, value in row.items() if key.startswith("ratio.") and value is not None}
        lines.append(
            [
                name,
                row["case"],
                row["status"],
                f"{row['median_us']:.2f}",
                f"{(row['p75_us'] - row['p25_us']) / 2:.2f}",
                f"{row['tflops_s']:.3g}",
                f"{row['tb_s']:.3g}",
                f"{row['percent_of_ceiling']:.1f}",
                row["bound_by"],
                " ".join(f"{baseline} {ratio:.2f}x" for baseline, ratio in ratios.items()) or "-",
                _elsewhere(row),
            ]
        )
    return format_table(lines)


def weighted_table(rows: Iterable[dict[str, Any]]) -> str:
    """Of captured calls: what all of them take together, and one on average, each case counted as often as it was called. An impl
    that could not be timed on every case has no sum."""
    calls: dict[str, dict[str, int]] = {}
    times: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row.get("count"):
            calls.setdefault(row["op"], {})[row["case"]] = row["count"]
            timed = times.setdefault((row["op"], row["impl"]), {})
            if row["median_us"] is not None:
                timed[row["case"]] = row["median_us"]
    lines = [["kernel", "cases", "calls", "all calls (ms)", "mean (us)"]]
    for (op, impl), timed in times.items():
        weights, num_calls = calls[op], sum(calls[op][case] for case in timed)
        if len(timed) < len(weights):
            lines.append([f"{op}:{impl}", f"{len(timed)} of {len(weights)}", f"{num_calls}", "-", "-"])
            continue
        total_us = sum(weights[case] * us for case, us in timed.items())
        lines.append([f"{op}:{impl}", f"{len(timed)}", f"{num_calls}", f"{total_us / 1e3:.2f}", f"{total_us / num_calls:.2f}"])
    return format_table(lines)


def _elsewhere(row: Mapping[str, Any]) -> str:
    """What other projects' kernels took for the shape, measured by others on the device of the table for this architecture."""
    times = {key.removeprefix("measured_us."): value for key, value in row.items() if key.startswith("measured_us.") and value}
    return " ".join(f"{kernel} {us:.1f}" for kernel, us in times.items()) or "-"


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The roofline plot of measured rows."""
    from ..study.kernel_plots import kernel_roofline

    kernel_roofline(rows).savefig(path, dpi=150)


def _line(rows: Sequence[Row]) -> str:
    timed = [f"{row.impl} {row.median_us:.1f} us" + (" (WRONG)" if row.status == "wrong" else "") for row in rows if row.median_us]
    return f"{rows[0].op} {rows[0].case}: {', '.join(timed) or rows[0].status}"


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity (the error of outputs with NaN): null."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def _device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _environment() -> dict[str, str]:
    import torch

    from triton_kernels.tuning import triton_version

    return {"torch": torch.__version__, "triton": triton_version(), "date": datetime.date.today().isoformat()}
