"""``kernelswap kernels list``: every kernel by op, one line each."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triton_kernels.impl import Impl
    from triton_kernels.op import Op
    from triton_kernels.spec import Spec

WIDTH = 100


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    text = "every kernel by op, what it promises, and whether it can run here"
    parser = commands.add_parser("list", help=text, description=text)
    parser.add_argument("ops", nargs="*", metavar="OP")
    parser.add_argument("--plugin", action="append", default=[], help="module or .py file with further kernels")
    parser.add_argument("-v", "--why", action="store_true", help="also why one cannot run here, its options, and where it is from")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the list, then the plugins that failed to load. No line is wider than WIDTH."""
    from triton_kernels.registry import Registry

    registry = Registry.load(arguments.plugin)
    rows = [["kernel", "here", "priority", "devices", "promises"]]
    details: list[list[str]] = [[]]  # the lines that follow each row
    for name in arguments.ops or registry.ops:
        impls, spec = registry.impls(name), _spec(registry.ops[name])
        rows.append([name, *[""] * 4])
        details.append([])
        for impl in impls.values():
            reasons = impl.unsupported(spec)
            promises = " ".join(_promises(impl))
            rows.append([f"  {impl.name}", "no" if reasons else "yes", str(impl.priority), " ".join(impl.devices), promises])
            details.append(_details(impl, reasons) if arguments.why else [])
    for line, below in zip(_aligned(rows), details):
        print("\n".join([line, *below]))
    if not arguments.why and any(row[1] == "no" for row in rows):
        print("\n--why says why a kernel cannot run here, and shows options and origins.")
    for failure in registry.failures:
        print("\n".join(_wrapped(f"failed to load {failure.source}: {failure.error}", "")))
    return 0


def _spec(op: Op) -> Spec:
    """Of a layer that calls the op on the device at hand: of the op's first case, if it has one."""
    import torch

    from triton_kernels.lab import calls
    from triton_kernels.spec import Spec, device_arch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if not op.cases:
        return Spec(device.type, device_arch(device), dtype)
    return calls.make_spec(op, calls.make_args(op, op.cases[0], dtype, device), dtype, device)


def _promises(impl: Impl) -> list[str]:
    """``graphs``: it can be recorded on all its devices. Invariances share a word, so that lines stay short."""
    recorded = [f"{device}_graph" for device in impl.devices if getattr(impl.flags, f"{device}_graph")]
    graphs = ["graphs"] if len(recorded) == len(impl.devices) else recorded
    kept = ["deterministic"] if impl.flags.deterministic else []
    invariant = "+".join(of for of in ("batch", "rank") if getattr(impl.flags, f"{of}_invariant"))
    return [*graphs, *kept, *([f"{invariant}_invariant"] if invariant else []), *(["own_rng"] if impl.flags.rng == "own" else [])]


def _details(impl: Impl, reasons: Sequence[str]) -> list[str]:
    options = " ".join(f"{key}:{value}" for key, value in impl.options.items())
    facts = {"not here": "; ".join(reasons), "unproven": impl.unproven, "options": options, "from": f"{impl.origin} {impl.version}"}
    return [line for key, text in facts.items() if text for line in _wrapped(f"{key}: {text}", " " * 6)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.rjust(w) if cell.isdigit() else cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)
