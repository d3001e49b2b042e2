"""``kernelswap collect DIR...``: the table of all runs below folders."""

from __future__ import annotations

import argparse
from pathlib import Path

METRICS = (
    *("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "itl_p99_s", "output_tokens_per_s"),
    *("bits_per_byte", "kl_mean", "kl_p99", "top1_agreement", "weight_bytes"),
)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("collect", help="build the table of all runs below folders, finished or failed")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="output folder of a run, a sweep, or several")
    parser.add_argument(
        "--output", metavar="FILE", help="csv file to write (default: table.csv in DIR, or in the folder that holds them all)"
    )
    parser.add_argument(
        "--join",
        action="store_true",
        help="only serving runs, each with the metrics of the quality run of the same model, quantization, cache and kernels",
    )
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
    from ..study.joining import join_quality
    from ..study.results import TABLE_FILE, collect, common_folder

    runs = collect(*args.folders)
    if args.join:
        runs = join_quality(runs)
    output = Path(args.output) if args.output else common_folder(args.folders) / TABLE_FILE
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
