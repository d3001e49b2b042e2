"""``kernelswap kernels compile``: what kernels compile to on devices that need not be here, their main loops, their gates."""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..study.results import format_table
from .bench import add_peers_argument, first_on_path, is_peer, peer_files
from .child import DTYPES, compile_for
from .selection import failures, select

if TYPE_CHECKING:
    from triton_kernels.impl import Impl
    from triton_kernels.lab.aot import Artifact, Compilation
    from triton_kernels.lab.gates import Rule
    from triton_kernels.lab.loop_table import LoopRow


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    from triton_kernels.devices import TARGETS

    text = "compile Triton kernels for devices that need not be here, and check their gates"
    parser = commands.add_parser("compile", help=text, description=text)
    parser.add_argument("kernels", nargs="*", metavar="OP[:IMPL]")
    parser.add_argument("--all", action="store_true", help="every Triton kernel there is")
    parser.add_argument("--target", action="append", choices=TARGETS, help="may be repeated (default: all)")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of activations and weights (default: %(default)s)")
    parser.add_argument("--case", action="append", default=[], help="a serving case by name; may be repeated (default: all)")
    jobs = "targets that are compiled for at a time (default: %(default)s)"
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, len(TARGETS)), metavar="N", help=jobs)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the artifacts as JSON")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the figures of the main loops as CSV")
    parser.add_argument("--plugin", action="append", default=[], help="module or .py file with further kernels")
    add_peers_argument(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compiles, prints the kernels and their main loops, and says which gates fail. Peers are held to none."""
    with first_on_path(arguments.peers):
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from triton_kernels.devices import TARGETS
    from triton_kernels.lab.gates import check_gates, load_rules
    from triton_kernels.lab.loop_table import LoopRow, loop_rows
    from triton_kernels.registry import Registry

    plugins = [*arguments.plugin, *peer_files(arguments.peers)]
    registry = Registry.load(plugins)
    if arguments.all == bool(arguments.kernels):
        raise ValueError("name the kernels to compile (OP or OP:IMPL), or give --all")
    selected = select(registry, registry.ops if arguments.all else arguments.kernels, triton_only=True)
    if arguments.jobs < 1:
        raise ValueError(f"--jobs {arguments.jobs} cannot work: it must be 1 or more")
    if not selected:
        raise ValueError(f"there is no Triton kernel to compile{failures(registry)}")
    beside = [i for op in dict.fromkeys(i.op for i in selected) for i in registry.impls(op).values() if i.is_triton]
    selected += [i for i in beside if is_peer(i, arguments.peers) and i not in selected]
    peers = {(i.op, i.name) for i in selected if is_peer(i, arguments.peers)}
    rules = load_rules()
    results = _compile(selected, arguments.target or TARGETS, plugins, arguments)
    if not results:
        raise ValueError(f"none of the kernels has a serving case named {' or '.join(arguments.case)}")
    artifacts = [artifact for result in results for artifact in result.artifacts]
    loops, ours = loop_rows(artifacts, registry.ops), [result for result in results if (result.op, result.impl) not in peers]
    broken = check_gates((artifact for result in ours for artifact in result.artifacts), rules)
    broken += [f"{r.op}:{r.impl} ({r.case}) for {r.target}: {r.error}" for r in ours if r.error]
    refused = [f"{r.op}:{r.impl} ({r.case}) for {r.target} failed: {r.error}" for r in results if r.error and r not in ours]
    refused += [f"{r.op}:{r.impl} ({r.case}) for {r.target} refused: {r.refused}" for r in results if r.refused]
    print("\n".join([_kernel_table(artifacts, rules, peers), "", _loop_table(loops), "", *refused, *broken]))
    print(f"{len(artifacts)} kernels compiled, {len(broken)} violations")
    if arguments.output is not None:
        content = {"compilations": [asdict(result) for result in results], "failures": broken}
        arguments.output.write_text(json.dumps(content, indent=1) + "\n")
    if arguments.table is not None:
        with arguments.table.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(field.name for field in fields(LoopRow))
            writer.writerows(map(astuple, loops))
    return 1 if broken else 0


def _compile(
    impls: Sequence[Impl], targets: Sequence[str], plugins: Sequence[str], arguments: argparse.Namespace
) -> list[Compilation]:
    """In the order of the targets. Shows how far it is."""
    from triton_kernels.cases.serving import serving_cases

    names, wanted = [f"{impl.op}:{impl.name}" for impl in impls], arguments.case
    num_cases = sum(not wanted or case.name in wanted for impl in impls for case in serving_cases(impl.op))
    with tqdm(total=num_cases * len(targets), unit="case") as bar, ThreadPoolExecutor(arguments.jobs) as pool:

        def count() -> None:
            with bar.get_lock():
                bar.update()

        def compile_one(target: str) -> list[Compilation]:
            return compile_for(target, names, plugins, arguments.dtype, wanted, path=arguments.peers, done=count)

        return [result for found in pool.map(compile_one, targets) for result in found]


def _kernel_table(artifacts: list[Artifact], rules: Sequence[Rule], peers: Collection[tuple[str, str]]) -> str:
    from triton_kernels.lab.gates import violations

    head = "kernel,case,target,warps,stages,shared,registers,spills,matrix,wide loads,per SM,waves,gates"
    rows = [head.split(",")]
    for artifact in artifacts:
        matrix = " ".join(f"{name}x{count}" for name, count in artifact.matrix_in_loop.items())
        numbers = (artifact.num_warps, artifact.num_stages, artifact.shared_bytes, artifact.registers, artifact.spills)
        rows.append(
            [
                f"{artifact.op}:{artifact.impl}/{artifact.kernel}",
                artifact.case,
                artifact.target,
                *map(str, numbers),
                matrix or "-",
                str(artifact.wide_loads),
                str(artifact.programs_per_sm or "-"),
                f"{artifact.waves:.2f}",
                "-" if (artifact.op, artifact.impl) in peers else "FAILED" if violations(artifact, rules) else "ok",
            ]
        )
    return format_table(rows)


def _loop_table(loops: list[LoopRow]) -> str:
    """Instructions are those that a warp issues per turn; "wait": loads under way behind the one that is waited for."""
    from triton_kernels.lab.loops import PIPES

    rows = [
        ["main loop", "case", "target", *PIPES, "all", "KB", "MFLOP", "buffers", "wait", "cover", "turns", "cap (us)", "bound by"]
    ]
    for loop in loops:
        rows.append(
            [
                f"{loop.kernel} {loop.loop}",
                loop.case,
                loop.target,
                *(str(getattr(loop, pipe)) for pipe in PIPES),
                str(loop.instructions),
                f"{loop.loaded_bytes / 1024:.1f}",
                f"{loop.tensor_flops / 1e6:.2f}",
                str(loop.buffers),
                "-" if loop.wait is None else str(loop.wait),
                "-" if loop.cover is None else str(loop.cover),
                "-" if loop.turns is None else str(loop.turns),
                f"{loop.cap_us:.2f}",
                loop.bound_by,
            ]
        )
    return format_table(rows)
