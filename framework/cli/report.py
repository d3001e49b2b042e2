"""``kernelswap report DIR...``: a page about all runs below folders."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    text = "write a page: the question, what differs, the table, figures, failures, environment, the command to repeat it"
    parser = subparsers.add_parser("report", help=text, description=text)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="output folder of a run, a sweep, or several; or a table")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="the page (default: report.html in DIR, or in the folder that holds them all); the same in Markdown, the figures and "
        "the table come beside it",
    )
    parser.add_argument("--metrics", metavar="NAME,...", default="", help="of the table (default: as the study says, or the usual)")
    parser.add_argument("--compare", metavar="COLUMN=BASE", default="", help="compare the values of a swept column with BASE")
    parser.add_argument(
        "--figure",
        metavar="KIND[ OPTION=VALUE]",
        action="append",
        default=[],
        help='what to draw, as "lines x=workload.rate y=goodput_per_s"; may be given several times (default: as the study says, or '
        "by what was swept)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the page and says where."""
    from ..study.report_page import build_report
    from ..study.report_writing import write_report
    from ..study.results import collect, common_folder

    folder = common_folder(args.folders)
    output = args.output or folder / "report.html"
    if output.suffix not in (".html", ".htm"):
        raise ValueError(f"--output {output}: the page is HTML, so its name must end in .html")
    metrics = args.metrics.split(",") if args.metrics else []
    for path in write_report(build_report(folder, collect(*args.folders), metrics, args.compare, args.figure), output):
        print(path)
    return 0
