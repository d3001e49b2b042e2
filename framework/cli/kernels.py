"""``kernelswap kernels``: which kernels there are, whether they keep their contracts, what they compile to, and how fast
a device could run them at best."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..study.results import format_table
from . import bench, kernel_list, pack, tune
from .child import DTYPES, compile_for, run_module
from .loop_table import loop_rows, write_table

if TYPE_CHECKING:
    from triton_kernels.impl import Impl
    from triton_kernels.lab.aot import Compilation
    from triton_kernels.registry import Registry

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("kernels", help="list, check, compile, measure, tune and pack kernels; rooflines")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--plugin", action="append", default=[], help="module or .py file with further kernels")
        added.set_defaults(run=run)
        return added

    kernel_list.add_parser(commands)

    check = command("check", _check, "hold kernels to their contracts, on all cases of their ops")
    check.add_argument("kernels", nargs="+", metavar="OP[:IMPL[@key:value]]", help="OP or OP:all means all of the op")
    check.add_argument("--dtype", action="append", choices=DTYPES, help="default: fp32 and fp16, on a GPU also bf16")
    check.add_argument("--interpret", action="store_true", help="on the CPU, in Triton's interpreter, even where a GPU is")

    build = command("compile", _compile, "compile Triton kernels for devices that need not be here, and check their gates")
    build.add_argument("kernels", nargs="*", metavar="OP[:IMPL]")
    build.add_argument("--all", action="store_true", help="every Triton kernel there is")
    build.add_argument("--target", action="append", choices=TARGETS, help="may be repeated (default: all)")
    build.add_argument("--dtype", choices=DTYPES, default="bf16", help="of activations and weights (default: %(default)s)")
    build.add_argument("--case", action="append", default=[], help="a serving case by name; may be repeated (default: all)")
    build.add_argument("--output", type=Path, metavar="FILE", help="write the artifacts as JSON")
    build.add_argument("--table", type=Path, metavar="FILE", help="write the table of main loops as CSV")
    bench.add_peers_argument(build)

    roofline = command("roofline", _roofline, "the least time that each case of an op can take on a device")
    roofline.add_argument("op", metavar="OP")
    roofline.add_argument("--device", default="h200", help="a name of the device table (default: %(default)s)")
    roofline.add_argument("--measured", action="store_true", help="of the shapes that other projects measured, not the op's cases")

    for module in (bench, tune, pack):
        module.add_parser(commands)


def _select(registry: Registry, names: Iterable[str], triton_only: bool = False) -> list[Impl]:
    """Impls that ``OP``, ``OP:all`` and ``OP:IMPL`` name; references are left out unless named."""
    chosen: list[Impl] = []
    for name in names:
        op, _, impl = name.partition(":")
        found = registry.impls(op)
        if impl in ("", "all"):
            chosen += [i for i in found.values() if i.name != "reference" and (i.is_triton or not triton_only)]
        elif impl not in found:
            raise ValueError(f"{op} has no impl named {impl!r}; there are {', '.join(found)}{_failures(registry)}")
        elif triton_only and not found[impl].is_triton:
            raise ValueError(f"{name} is no Triton kernel, there is nothing to compile")
        else:
            chosen.append(found[impl])
    return chosen


def _failures(registry: Registry) -> str:
    return "".join(f"\nfailed to load {failure.source}: {failure.error}" for failure in registry.failures)


def _check(arguments: argparse.Namespace) -> int:
    import torch

    on_gpu = torch.cuda.is_available() and not arguments.interpret
    if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        words = ["kernels", "check", *arguments.kernels, "--interpret"]
        words += [word for dtype in arguments.dtype or () for word in ("--dtype", dtype)]
        words += [word for plugin in arguments.plugin for word in ("--plugin", plugin)]
        return run_module("framework.cli", words, interpret=True).returncode
    from triton_kernels.lab import conformance
    from triton_kernels.registry import Registry
    from triton_kernels.resolve import Choice, parse_choice

    registry = Registry.load(arguments.plugin)
    names = arguments.dtype or (["fp32", "fp16", "bf16"] if on_gpu else ["fp32", "fp16"])
    rows = [["kernel", "case", "dtype", "error", "limit", "verdict"]]
    problems = []
    wishes = [(name.partition(":")[0], parse_choice(name.partition(":")[2] or "all")) for name in arguments.kernels]
    for impl, options in ((i, wish.options) for op, wish in wishes for i in _select(registry, [f"{op}:{wish.name}"])):
        op, label = registry.ops[impl.op], f"{impl.op}:{Choice(impl.name, options)}"
        for case in (case for case in op.cases if "bench" not in case.tags):
            for dtype in names:
                device = "cuda" if on_gpu else "cpu"
                result = conformance.check(
                    op, impl, case, getattr(torch, DTYPES[dtype]), device, interpret=not on_gpu, options=options
                )
                verdict = "refused" if result.skipped else "ok" if result.ok else "FAILED"
                rows.append([label, case.name, dtype, f"{result.error:.1e}", f"{result.limit:.0e}", verdict])
                if not result.ok:
                    problems.append(f"{label}, {case.name}, {dtype}: {result.message}")
    num_refused = sum(row[-1] == "refused" for row in rows)
    print(format_table(rows))
    print("\n".join(["", *problems]) if problems else f"\n{len(rows) - 1 - num_refused} checks passed, {num_refused} cases refused")
    return 1 if problems else 0


def _compile(arguments: argparse.Namespace) -> int:
    """Kernels of peers are compiled beside ours, but held to no gates."""
    with bench.first_on_path(arguments.peers):
        return _compile_all(arguments)


def _compile_all(arguments: argparse.Namespace) -> int:
    from triton_kernels.lab.gates import check_gates, load_rules, violations
    from triton_kernels.registry import Registry

    plugins = [*arguments.plugin, *bench.peer_files(arguments.peers)]
    registry = Registry.load(plugins)
    if arguments.all == bool(arguments.kernels):
        raise ValueError("name the kernels to compile (OP or OP:IMPL), or give --all")
    selected = _select(registry, registry.ops if arguments.all else arguments.kernels, triton_only=True)
    beside = [i for op in dict.fromkeys(i.op for i in selected) for i in registry.impls(op).values() if i.is_triton]
    selected += [i for i in beside if bench.is_peer(i, arguments.peers) and i not in selected]
    if not selected:
        raise ValueError(f"there is no Triton kernel to compile{_failures(registry)}")
    rules, peers = load_rules(), {(impl.op, impl.name) for impl in selected if bench.is_peer(impl, arguments.peers)}
    results: list[Compilation] = []
    for target in arguments.target or TARGETS:
        names = [f"{impl.op}:{impl.name}" for impl in selected]
        results += compile_for(target, names, plugins, arguments.dtype, arguments.case, path=arguments.peers)
    if not results:
        raise ValueError(f"none of the kernels has a serving case named {' or '.join(arguments.case)}")
    rows = [
        ["kernel", "case", "target", "warps", "stages", "shared", "registers", "spills", "matrix", "wide loads", "per SM", "gates"]
    ]
    for artifact in (artifact for result in results for artifact in result.artifacts):
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
                "-" if (artifact.op, artifact.impl) in peers else "FAILED" if violations(artifact, rules) else "ok",
            ]
        )
    loops = loop_rows(registry, results)
    if arguments.table is not None:
        write_table(arguments.table, loops)
    ours = [result for result in results if (result.op, result.impl) not in peers]
    failures = check_gates((artifact for result in ours for artifact in result.artifacts), rules)
    failures += [f"{r.op}:{r.impl} ({r.case}) for {r.target}: {r.error}" for r in ours if r.error]
    refused = [f"{r.op}:{r.impl} ({r.case}) for {r.target} failed: {r.error}" for r in results if r.error and r not in ours]
    refused += [f"{r.op}:{r.impl} ({r.case}) for {r.target} refused: {r.refused}" for r in results if r.refused]
    shown = ("kernel", "case", "target", "instructions", "loaded_bytes", "buffers", "wait", "turns", "waves", "cap_us", "bound_by")
    table = [[name.replace("_", " ") for name in shown], *([str(row[name]) for name in shown] for row in loops)]
    print("\n".join([format_table(rows), "", "Main loops, per warp and turn:", format_table(table), "", *refused, *failures]))
    print(f"{len(rows) - 1} kernels compiled, {len(failures)} violations")
    if arguments.output is not None:
        content = {"compilations": [asdict(result) for result in results], "failures": failures}
        arguments.output.write_text(json.dumps(content, indent=1) + "\n")
    return 1 if failures else 0


def _roofline(arguments: argparse.Namespace) -> int:
    from triton_kernels.devices import DEVICE_MODELS
    from triton_kernels.lab.roofline import measured_rooflines, rooflines
    from triton_kernels.registry import Registry

    registry = Registry.load(arguments.plugin)
    registry.impls(arguments.op)  # says which ops there are
    if arguments.device not in DEVICE_MODELS:
        raise ValueError(f"no device named {arguments.device!r}; the device table has {', '.join(DEVICE_MODELS)}")
    device = DEVICE_MODELS[arguments.device]
    rows = [["case", "GEMMs in", "GFLOP", "MB", "least time (us)", "bound by", "TFLOP/s there", "TB/s there", "measured (us)"]]
    draw = measured_rooflines if arguments.measured else rooflines
    for found in draw(registry.ops[arguments.op], device):
        if found.arithmetic_s is None:
            rows.append([found.case, found.format, *["-"] * 3, f"{device.name} has none", "-", "-", "-"])
            continue
        rows.append(
            [
                found.case,
                found.format,
                f"{found.cost.flops / 1e9:.3f}",
                f"{found.cost.bytes / 1e6:.3f}",
                f"{found.least_s * 1e6:.2f}",
                "arithmetic" if found.arithmetic_s > found.memory_s else "memory",
                f"{found.cost.flops / found.least_s / 1e12:.1f}",
                f"{found.cost.bytes / found.least_s / 1e12:.2f}",
                ", ".join(f"{kernel} {us:.1f}" for kernel, us in found.measured_us.items()) or "-",
            ]
        )
    print(format_table(rows))
    peaks = ", ".join(f"{kind} {flops / 1e12:.0f}" for kind, flops in device.flops_s.items())
    print(f"\n{device.name}: {peaks} TFLOP/s, {device.copy_bytes_s / 1e12:.1f} TB/s ({device.source})")
    if any(row[-1] != "-" for row in rows[1:]):
        print("measured: other projects' kernels, see triton_kernels/lab/measured/README.md")
    return 0
