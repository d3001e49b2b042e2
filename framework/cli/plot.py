"""``kernelswap plot KIND DIR...``: a figure from the runs below folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..study.plot_kinds import PLOT_KINDS, FigureSpec


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand, and below it one per kind of figure with what that takes."""
    parser = subparsers.add_parser("plot", help="draw a figure from all runs below folders")
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    for name, kind in PLOT_KINDS.items():
        added = kinds.add_parser(name, help=kind.shows, description=kind.shows)
        where = f"{name}.png beside FILE" if kind.of_rows else f"{name}.png in DIR, or in the folder that holds them all"
        added.add_argument("--output", metavar="FILE", help=f"png, pdf or svg file to write (default: {where})")
        added.set_defaults(run=run, kind=name)
        if kind.of_rows:
            added.add_argument("folders", nargs=1, metavar="FILE", help="csv file of rows")
            continue
        added.add_argument("folders", nargs="+", metavar="DIR", help="output folder of a run, a sweep, or several; or a table")
        added.add_argument(
            "--where",
            metavar="COLUMN=VALUE",
            action="append",
            default=[],
            help="only the runs with this value; may be given several times",
        )
        for option, text in kind.options.items():
            added.add_argument(f"--{option}", default=argparse.SUPPRESS, required=option in kind.required, help=text)


def run(args: argparse.Namespace) -> int:
    """Draws and writes the figure."""
    from ..study.results import collect, common_folder

    kind, folder = PLOT_KINDS[args.kind], common_folder(args.folders)
    if kind.of_rows:
        figure = kind.draw_rows(Path(args.folders[0]))
    else:
        options = {name: getattr(args, name) for name in kind.options if hasattr(args, name)}
        figure = FigureSpec(args.kind, options, args.where).draw(folder, collect(*args.folders))
    output = Path(args.output) if args.output else folder / f"{args.kind}.png"
    figure.savefig(output, dpi=150)
    print(output)
    return 0
