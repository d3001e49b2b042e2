"""``kernelswap plot KIND DIR``: a figure from the runs below a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

KINDS = {
    "latency": "distributions of TTFT and TPOT",
    "load": "TTFT and TPOT against the offered load",
    "pareto": "tokens/s/user over tokens/s, with the frontier",
}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("plot", help="draw a figure from all runs below a folder")
    parser.add_argument("kind", choices=KINDS, help="; ".join(f"{kind}: {what}" for kind, what in KINDS.items()))
    parser.add_argument("folder", metavar="DIR", help="output folder of a run, a sweep, or several")
    parser.add_argument("--output", metavar="FILE", help="png, pdf or svg file to write (default: DIR/KIND.png)")
    parser.add_argument("--x", default="workload.rate", help="load: the swept column on the horizontal axis (default: %(default)s)")
    parser.add_argument(
        "--where",
        metavar="COLUMN=VALUE",
        action="append",
        default=[],
        help="only the runs with this value; may be given several times",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draws and writes the figure."""
    from ..study import plots
    from ..study.results import collect, collect_requests, select

    runs = collect(args.folder)
    for condition in args.where:
        column, _, value = condition.partition("=")
        runs = select(runs, column, value)
    if args.kind == "latency":
        figure = plots.latency(collect_requests(args.folder, runs), runs)
    elif args.kind == "load":
        figure = plots.load(runs, args.x)
    else:
        figure = plots.pareto(runs)
    output = Path(args.output) if args.output else Path(args.folder) / f"{args.kind}.png"
    figure.savefig(output, dpi=150)
    print(output)
    return 0
