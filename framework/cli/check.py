"""``kernelswap kernels check``: holds kernels to their contracts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..study.results import format_table
from .child import DTYPES, run_module
from .selection import select

if TYPE_CHECKING:
    from triton_kernels.impl import Impl
    from triton_kernels.registry import Registry
    from triton_kernels.resolve import Choice

    Wishes = Sequence[tuple[Impl, Choice]]


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    text = "hold kernels to their contracts, on all cases of their ops"
    parser = commands.add_parser("check", help=text, description=text)
    parser.add_argument("kernels", nargs="+", metavar="OP[:IMPL[@key:value]]", help="OP or OP:all means all of the op")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="default: fp32 and fp16, on a GPU also bf16")
    parser.add_argument("--interpret", action="store_true", help="on the CPU, in Triton's interpreter, even where a GPU is")
    tools = parser.add_mutually_exclusive_group()
    tools.add_argument("--sanitize", action="store_true", help="can an access leave its tensors? By triton-viz, interpreted")
    tools.add_argument("--viz", type=int, nargs="?", const=8000, metavar="PORT", help="triton-viz's view of the first case (8000)")
    parser.add_argument("--plugin", action="append", default=[], help="module or .py file with further kernels")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Checks every case in every format, in a child process that interprets where there is no GPU."""
    import torch

    followed = arguments.sanitize or arguments.viz is not None
    on_gpu = torch.cuda.is_available() and not arguments.interpret and not followed
    if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        words = ["kernels", "check", *arguments.kernels, "--interpret"]
        words += [word for dtype in arguments.dtype or () for word in ("--dtype", dtype)]
        words += [word for plugin in arguments.plugin for word in ("--plugin", plugin)]
        words += ["--sanitize"] if arguments.sanitize else []
        words += [] if arguments.viz is None else ["--viz", str(arguments.viz)]
        return run_module("framework.cli", words, interpret=True).returncode
    from triton_kernels.registry import Registry

    registry = Registry.load(arguments.plugin)
    wishes = list(_wishes(registry, arguments.kernels, triton_only=followed))
    if followed:
        return _follow(arguments, registry, wishes)
    return _compare(arguments, registry, wishes, on_gpu)


def _wishes(registry: Registry, names: Sequence[str], triton_only: bool) -> Iterator[tuple[Impl, Choice]]:
    """The impls that are asked for, each with its options."""
    from triton_kernels.resolve import Choice, parse_choice

    for name in names:
        op, _, text = name.partition(":")
        choice = parse_choice(text or "all")
        for impl in select(registry, [f"{op}:{choice.name}"], triton_only):
            yield impl, Choice(impl.name, choice.options)


def _compare(arguments: argparse.Namespace, registry: Registry, wishes: Wishes, on_gpu: bool) -> int:
    import torch

    from triton_kernels.lab import conformance

    names = arguments.dtype or (["fp32", "fp16", "bf16"] if on_gpu else ["fp32", "fp16"])
    rows = [["kernel", "case", "dtype", "error", "limit", "verdict"]]
    problems = []
    for impl, choice in wishes:
        op, label = registry.ops[impl.op], f"{impl.op}:{choice}"
        for case in (case for case in op.cases if "bench" not in case.tags):
            for dtype in names:
                device = "cuda" if on_gpu else "cpu"
                result = conformance.check(
                    op, impl, case, getattr(torch, DTYPES[dtype]), device, interpret=not on_gpu, options=choice.options
                )
                verdict = "refused" if result.skipped else "ok" if result.ok else "FAILED"
                rows.append([label, case.name, dtype, f"{result.error:.1e}", f"{result.limit:.0e}", verdict])
                if not result.ok:
                    problems.append(f"{label}, {case.name}, {dtype}: {result.message}")
    num_refused = sum(row[-1] == "refused" for row in rows)
    print(format_table(rows))
    print("\n".join(["", *problems]) if problems else f"\n{len(rows) - 1 - num_refused} checks passed, {num_refused} cases refused")
    return 1 if problems else 0


def _follow(arguments: argparse.Namespace, registry: Registry, wishes: Wishes) -> int:
    """Runs the cases under triton-viz: its sanitizer on all of them, or its tracer on the first that is not refused."""
    import torch

    from triton_kernels.lab import sanitizer

    if reason := sanitizer.missing():
        raise ValueError(reason)
    rows, problems, unknown = [["kernel", "case", "dtype", "launch", "verdict"]], [], []
    for impl, choice in wishes:
        op, label = registry.ops[impl.op], f"{impl.op}:{choice}"
        for case in (case for case in op.cases if "bench" not in case.tags):
            for dtype in arguments.dtype or ["fp32"]:
                wanted = (op, impl, case, getattr(torch, DTYPES[dtype]), choice.options)
                if arguments.viz is not None and sanitizer.trace(*wanted):
                    print(f"{label}, {case.name}, {dtype}: http://127.0.0.1:{arguments.viz}")
                    sanitizer.view(arguments.viz)
                    return 0
                for finding in sanitizer.sanitize(*wanted) if arguments.sanitize else ():
                    verdict = "OUTSIDE" if finding.outside else "not followed" if finding.unknown else "inside"
                    rows.append([label, case.name, dtype, finding.kernel, verdict])
                    problems += [f"{label}, {case.name}, {dtype}: {access}" for access in finding.outside]
                    unknown += [f"{finding.kernel}: {finding.unknown}"] if finding.unknown else []
    if arguments.viz is not None:
        raise ValueError("every case is refused, so there is nothing to view; kernelswap kernels list --why says why")
    print(format_table(rows))
    print("\n".join(["", *problems, *(f"not followed: {reason}" for reason in dict.fromkeys(unknown))]))
    print(f"{len(rows) - 1} launches, {len(unknown)} that triton-viz does not follow, {len(problems)} accesses outside")
    return 1 if problems else 0
