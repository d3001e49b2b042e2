"""``kernelswap kernels tune OP[:IMPL]``: looks for better options, first among those whose machine code passes the gates."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..study.results import format_table
from .bench import add_cases_argument, captured_cases, find_device
from .child import DTYPES, compile_for

if TYPE_CHECKING:
    import torch

    from triton_kernels.impl import Impl
    from triton_kernels.lab.bench import Task
    from triton_kernels.lab.tune import Candidate
    from triton_kernels.op import Op
    from triton_kernels.registry import Registry
    from triton_kernels.tuning import Entry


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    text = "find better options of a kernel for the architecture at hand; without a GPU, those worth timing"
    parser = commands.add_parser("tune", help=text, description=text)
    parser.add_argument("kernel", metavar="OP[:IMPL]", help="OP means all its impls that declare what to try")
    parser.add_argument("--shapes", metavar="NAME,...", default="", help="cases whose name begins so (default: all for benchmarks)")
    add_cases_argument(parser)
    parser.add_argument("--dtype", choices=DTYPES, help="of activations and weights (default: bf16, or that of --cases)")
    parser.add_argument("--target", default="sm_90", help="what to compile for where no GPU is (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=40, metavar="N", help="most to compile per case (default: %(default)s)")
    parser.add_argument("--time", type=int, metavar="N", help="time only so many per case, the model's first (default: all)")
    parser.add_argument("--case-seconds", type=float, default=3.0, help="time for the samples of a group (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the tables (default: the user's, which engines read)")
    parser.add_argument("--plugin", action="append", default=[], help="module or .py file with further kernels")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compiles and judges the candidates of every case, times the survivors on a GPU, writes the table."""
    import torch

    from triton_kernels.lab.bench import select_tasks
    from triton_kernels.registry import Registry
    from triton_kernels.spec import device_arch
    from triton_kernels.tuning import save_entries, user_dir

    on_gpu = torch.cuda.is_available()
    target = device_arch(torch.device("cuda")) if on_gpu else arguments.target
    shapes = [shape for shape in arguments.shapes.split(",") if shape]
    registry = Registry.load(arguments.plugin)
    captured, captured_dtype = captured_cases(arguments.cases, registry, [arguments.kernel])
    arguments.dtype = arguments.dtype or captured_dtype or "bf16"
    for name in _tunable(registry, arguments.kernel):
        tasks = select_tasks(registry, [name], shapes, captured=captured)
        op, impl = tasks[0].op, tasks[0].contenders[0].impl
        judged = _prune(arguments, tasks, impl, target)
        print(f"{name}:")
        _show(judged, target)
        if not on_gpu:
            continue
        device, dtype = find_device("cuda", arguments.dtype)
        entries = _time(op, impl, tasks, judged, device, dtype, arguments)
        for entry in entries:
            print(f"{entry.bucket}: {entry.options}, {entry.median_us:.2f} us instead of {entry.default_us:.2f} us")
        if entries:
            print(save_entries(arguments.output or user_dir(), op.name, target, entries))
        else:
            print("the defaults are as good as any candidate; nothing was written")
    if not on_gpu:
        print(
            f"\nno GPU was found, so nothing was timed. On one of {target}, the same command times the candidates that are left\n"
            f"and writes what is best to {arguments.output or user_dir()}"
        )
    return 0


def _tunable(registry: Registry, kernel: str) -> list[str]:
    """``OP:IMPL`` itself, or for ``OP`` each of its impls that has a tune space."""
    if ":" in kernel:
        return [kernel]
    found = [f"{kernel}:{impl.name}" for impl in registry.impls(kernel).values() if impl.tune_space]
    if not found:
        raise ValueError(f"no impl of {kernel} declares a tune_space, so there is nothing to try")
    return found


def _prune(arguments: argparse.Namespace, tasks: list[Task], impl: Impl, target: str) -> dict[str, list[Candidate]]:
    """The candidates of each case, judged. Cases whose candidates are compiled for the same calls share the compilation."""
    from triton_kernels.lab.gates import load_rules
    from triton_kernels.lab.tune import candidates, judge, near_serving_cases
    from triton_kernels.resolve import Choice

    rules, compiled = load_rules(), {}
    judged = {}
    for task in tasks:
        num_tokens = sum(task.case.q_lens)
        options = candidates(impl, num_tokens, arguments.candidates)
        near = near_serving_cases(impl.op, num_tokens)
        names = tuple(f"{impl.op}:{Choice(impl.name, chosen)}" for chosen in options)
        if (names, *near) not in compiled:
            compiled[names, *near] = compile_for(target, names, arguments.plugin, arguments.dtype, near)
        judged[task.case.name] = judge(task.op, impl, options, compiled[names, *near], rules)
    return judged


def _show(judged: dict[str, list[Candidate]], target: str) -> None:
    rows = [["case", "options", "model (us)", f"on {target}"]]
    for case, found in judged.items():
        for candidate in found:
            options = " ".join(f"{key}:{value}" for key, value in candidate.options.items())
            verdict = "dropped: " + candidate.reasons[0][:90] if candidate.reasons else "worth timing"
            rows.append([case, options, f"{candidate.predicted_us:.2f}", verdict])
    print(format_table(rows))
    for case, found in judged.items():
        print(f"{case}: {sum(not candidate.reasons for candidate in found)} of {len(found)} candidates are worth timing")


def _time(
    op: Op,
    impl: Impl,
    tasks: list[Task],
    judged: dict[str, list[Candidate]],
    device: torch.device,
    dtype: torch.dtype,
    arguments: argparse.Namespace,
) -> list[Entry]:
    import json

    from triton_kernels.lab import tune
    from triton_kernels.lab.ceilings import Ceilings

    ceilings = Ceilings.measure(device)
    buckets: dict[str, tune.Scores] = {}
    for task in tasks:
        options = [candidate.options for candidate in judged[task.case.name] if not candidate.reasons][: arguments.time]
        bucket = tune.bucket_of(op, impl, task.case, device, dtype)
        scores = buckets.setdefault(json.dumps(bucket, sort_keys=True), tune.Scores(bucket))
        rows = list(tune.time_candidates(op, impl, task.case, options, device, dtype, ceilings, arguments.case_seconds))
        tune.add_scores(scores, rows, options, impl, task.case.count)
        print(f"{task.case.name}: timed {sum(len(group) - 1 for group in rows)} candidates", flush=True)
    return [entry for scores in buckets.values() if (entry := tune.best_entry(scores, impl)) is not None]
