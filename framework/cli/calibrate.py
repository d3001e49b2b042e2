"""``kernelswap calibrate``: makes a calibration of the simulator from measured operator times, and judges one."""

from __future__ import annotations

import argparse
from pathlib import Path


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
    from ..executor.calibration import Calibration
    from ..plan import device_model, op_costs
    from ..study.calibration.checking import as_text, check, check_fits, write_csv
    from ..study.calibration.fitting import calibrate
    from ..study.calibration.points import write_points
    from ..study.calibration.tables import read_tables

    if arguments.check != (arguments.calibration is not None) or arguments.check == (arguments.out is not None):
        raise ValueError("give --out FILE to make a calibration, or --check --with FILE to judge one")
    costs = op_costs()
    calibration = Calibration.load(arguments.calibration, costs) if arguments.check else None
    tables = read_tables(arguments.tables, arguments.device)
    if calibration is not None:
        if calibration.device != tables[0].device:
            calibration = calibration.on(device_model(tables[0].device))
        errors = check(tables, calibration)
        print(as_text(errors))
        print(f"\n{calibration.device}: {calibration.source}")
    else:
        rows = [row for table in tables for row in table.rows]
        device = tables[0].device
        source = arguments.source or f"fitted to {', '.join(table.name for table in tables)}"
        calibration, fits = calibrate(device, source, rows, costs, device_ceilings(device))
        calibration.save(arguments.out)
        errors = check_fits(fits)
        if arguments.points is not None:
            write_points(fits, arguments.points)
        print(as_text(errors))
        print(f"\n{arguments.out}: {device}, of {len(rows)} rows; use it as executor.calibration={arguments.out}")
    if arguments.errors is not None:
        write_csv(errors, arguments.errors)
    return 0


def device_ceilings(name: str) -> dict[str, float] | None:
    """Of a device of the table; None if it is not there."""
    from triton_kernels.devices import DEVICE_MODELS

    device = DEVICE_MODELS.get(name)
    return None if device is None else {"copy_bytes_s": device.copy_bytes_s, **device.flops_s}
