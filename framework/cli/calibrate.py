"""``kernelswap calibrate``: makes a calibration of the simulator from measured operator times, and judges one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..study.calibration.checking import Error
    from ..study.calibration.tables import Table


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    text = "fit the simulator's operator times to measured tables, or check a fit on tables"
    parser = subparsers.add_parser("calibrate", help=text, description=text)
    parser.add_argument(
        "tables",
        nargs="+",
        type=Path,
        metavar="TABLE",
        help="GPU_OP.csv or .csv.gz of others (h200_gemm.csv.gz), bench.json of `kernelswap kernels bench`, a csv of rows with op, "
        "dtype, dims, q_lens, ctx_lens and us, or the folder of a profiled run",
    )
    parser.add_argument("--device", metavar="NAME", help="the GPU, in place of what the files say")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="calibration to write, .json or .json.gz: executor.calibration=FILE"
    )
    parser.add_argument("--check", action="store_true", help="fit nothing: print the errors of --with on the tables")
    parser.add_argument(
        "--with",
        dest="calibration",
        metavar="FILE",
        help="calibration to check: a file, or a name (h200); of another GPU it is transferred by the device table first",
    )
    parser.add_argument("--source", metavar="TEXT", help="where the tables come from (default: their names)")
    parser.add_argument("--errors", type=Path, metavar="FILE", help="csv file for the table of errors")
    parser.add_argument(
        "--points", type=Path, metavar="FILE", help="csv file for rows of left-out shapes, measured and predicted, evenly picked"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Writes the calibration, if one is made, and prints its errors: on shapes that were left out, or of --check."""
    from ..study.calibration.checking import as_text, write_errors
    from ..study.calibration.tables import read_tables

    if arguments.check != (arguments.calibration is not None) or arguments.check == (arguments.out is not None):
        raise ValueError("give --out FILE to make a calibration, or --check --with FILE to judge one")
    if arguments.check and (arguments.points or arguments.source):
        raise ValueError("--points and --source are of a fit, and --check makes none")
    if arguments.out is not None and not arguments.out.name.endswith((".json", ".json.gz")):
        raise ValueError(f"--out {arguments.out}: expected a name that ends in .json or .json.gz")
    _check_outputs(arguments)
    tables = read_tables(arguments.tables, arguments.device)
    if not any(table.rows for table in tables):
        raise ValueError(f"{', '.join(table.name for table in tables)}: there are no rows")
    errors, summary = _check(tables, arguments.calibration) if arguments.check else _make(tables, arguments)
    print(f"{as_text(errors)}\n\n{summary}")
    if arguments.errors is not None:
        write_errors(errors, arguments.errors)
    return 0


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Raises ValueError for a file that would be written over one that is read, or twice."""
    known = {path.resolve() for path in (*arguments.tables, Path(arguments.calibration or "."))}
    for name in ("out", "errors", "points"):
        path = getattr(arguments, name)
        if path is not None and path.resolve() in known:
            raise ValueError(f"--{name} {path} would overwrite a file of this command: give it a name of its own")
        known |= {path.resolve()} if path is not None else set()


def _check(tables: Sequence[Table], name: str) -> tuple[list[Error], str]:
    from triton_kernels.devices import DEVICE_MODELS

    from ..executor.calibration import Calibration
    from ..plan import op_costs
    from ..study.calibration.checking import check

    calibration, device = Calibration.load(name, op_costs()), tables[0].device
    if device != calibration.device:
        if device not in DEVICE_MODELS:
            known = ", ".join(DEVICE_MODELS)
            raise ValueError(f"tables of {device}, a calibration of {calibration.device}: it can only be transferred to {known}")
        calibration = calibration.on(DEVICE_MODELS[device])
    return check(tables, calibration), f"{calibration.device}: {calibration.source}"


def _make(tables: Sequence[Table], arguments: argparse.Namespace) -> tuple[list[Error], str]:
    from triton_kernels.devices import DEVICE_MODELS

    from ..plan import op_costs
    from ..study.calibration.checking import check_fits
    from ..study.calibration.fitting import calibrate
    from ..study.calibration.points import write_points

    device, rows = tables[0].device, [row for table in tables for row in table.rows]
    source = arguments.source or f"fitted to {', '.join(table.name for table in tables)}"
    known = DEVICE_MODELS.get(device)
    ceilings = None if known is None else {"copy_bytes_s": known.copy_bytes_s, **known.flops_s}
    calibration, fits = calibrate(device, source, rows, op_costs(), ceilings)
    calibration.save(arguments.out)
    if arguments.points is not None:
        write_points(fits, arguments.points)
    return check_fits(fits), f"{arguments.out}: {device}, of {len(rows)} rows; use it as executor.calibration={arguments.out}"
