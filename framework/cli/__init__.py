"""The command line. Each subcommand is a module of this package with ``add_parser(subparsers)``, which sets ``run``: a
function from the parsed arguments to an exit code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from .flags import Parser

SUBCOMMANDS = ("serve", "bench_serve", "kernels", "models", "collect", "plot", "report", "quantize", "calibrate")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``kernelswap``. Returns 0, 1 when a check failed, or 2 when what was asked cannot be done."""
    parser = Parser(prog="kernelswap", description="Swap a kernel, run the same serving workload again, read off what changed.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in SUBCOMMANDS:
        importlib.import_module(f".{name}", __name__).add_parser(subparsers)
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"kernelswap: {error}", file=sys.stderr)
        return 2
