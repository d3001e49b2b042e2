"""``kernelswap collect DIR...``: the table of all runs below folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..study.labels import USUAL_METRICS
from ..study.sweep import split_condition


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
        "--compare",
        metavar="COLUMN=BASE",
        help="compare the values of a swept column with BASE, in pairs equal in all else: paired bootstrap intervals (Student's t "
        "for few pairs), effect size, and whether the difference is within noise",
    )
    parser.add_argument(
        "--metrics", metavar="NAME,...", help=f"metrics to print (default: of {','.join(USUAL_METRICS)} those that were observed)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the table and prints its swept columns with the asked metrics, averaged over repeats, or compared."""
    from ..study.comparison import chance_caveat, compare, environment_caveat, outliers, summarize, usual_metrics
    from ..study.joining import join_quality
    from ..study.results import TABLE_FILE, collect, common_folder

    base = None if args.compare is None else split_condition(args.compare, "--compare")
    runs = collect(*args.folders)
    if args.join:
        runs = join_quality(runs)
    names = usual_metrics(runs) if args.metrics is None else args.metrics.split(",")
    metrics = [f"metric.{name}" for name in names]
    num_failed = int((runs["status"] != "ok").sum())
    if num_failed < len(runs):
        runs["outlier"] = outliers(runs, metrics)
        table = compare(runs, metrics, *base) if base else summarize(runs, metrics)
        table.columns = table.columns.str.removeprefix("metric.")
        if args.compare:
            table["metric"] = table["metric"].str.removeprefix("metric.")
        print(table.to_string(index=False, na_rep="-", float_format="{:.4g}".format))
        if args.compare:
            print(f"estimates: ratio (or difference) to {args.compare} over pairs of equal repeats; low and high: 95 % confidence")
        for caveat in [*(chance_caveat(table) if args.compare else []), *environment_caveat(runs)]:
            print(caveat)
        for run in runs[runs["outlier"] != ""].itertuples(index=False):
            print(f"outlier, counted all the same: {run.run}: {run.outlier}")
    elif args.compare:
        raise ValueError(f"all {len(runs)} runs failed: nothing to compare; the first: {runs['error'].iloc[0]}")
    for error in runs.loc[runs["status"] != "ok", ["run", "error"]].itertuples(index=False):
        print(f"failed: {error.run}:", str(error.error).split("\n")[0])
    output = Path(args.output) if args.output else common_folder(args.folders) / TABLE_FILE
    runs.to_csv(output, index=False)
    print(f"{len(runs)} runs, {num_failed} failed: {output}")
    return 0
