"""``kernelswap collect DIR``: the table of all runs below a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

METRICS = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "itl_p99_s", "output_tokens_per_s")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("collect", help="build the table of all runs below a folder, finished or failed")
    parser.add_argument("folder", metavar="DIR", help="output folder of a run, a sweep, or several")
    parser.add_argument("--output", metavar="FILE", help="csv file to write (default: DIR/table.csv)")
    parser.add_argument(
        "--compare", metavar="COLUMN=BASE", help="compare the values of a swept column with BASE, in pairs equal in all else"
    )
    parser.add_argument(
        "--metrics", metavar="NAME,...", help=f"metrics to print (default: of {','.join(METRICS)} those that were observed)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the table and prints its swept columns with the asked metrics, averaged over repeats."""
    from ..study.comparison import compare, summarize
    from ..study.results import TABLE_FILE, collect

    runs = collect(args.folder)
    output = Path(args.output) if args.output else Path(args.folder) / TABLE_FILE
    runs.to_csv(output, index=False)
    names = [name for name in METRICS if f"metric.{name}" in runs] if args.metrics is None else args.metrics.split(",")
    metrics = [f"metric.{name}" for name in names]
    num_failed = int((runs["status"] != "ok").sum())
    if num_failed < len(runs):
        table = summarize(runs, metrics) if args.compare is None else compare(runs, metrics, *args.compare.partition("=")[::2])
        table.columns = table.columns.str.removeprefix("metric.")
        print(table.to_string(index=False, na_rep="-", float_format="{:.4g}".format))
    for error in runs.loc[runs["status"] != "ok", ["run", "error"]].itertuples(index=False):
        print(f"failed: {error.run}:", str(error.error).split("\n")[0])
    print(f"{len(runs)} runs, {num_failed} failed: {output}")
    return 0
