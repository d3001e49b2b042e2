"""``kernelswap kernels``: which kernels there are, whether they keep their contracts, what they compile to, and how fast
a device could run them at best."""

from __future__ import annotations

import argparse

from ..study.results import format_table
from . import bench, check, compile, kernel_list, pack, tune


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("kernels", help="list, check, compile, measure, tune and pack kernels; rooflines")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (kernel_list, check, compile):
        module.add_parser(commands)

    text = "the least time that each case of an op can take on a device"
    roofline = commands.add_parser("roofline", help=text, description=text)
    roofline.add_argument("op", metavar="OP")
    roofline.add_argument("--device", default="h200", help="a name of the device table (default: %(default)s)")
    roofline.add_argument("--measured", action="store_true", help="of the shapes that other projects measured, not the op's cases")
    roofline.add_argument("--plugin", action="append", default=[], help="module or .py file with further kernels")
    roofline.set_defaults(run=_roofline)

    for module in (bench, tune, pack):
        module.add_parser(commands)


def _roofline(arguments: argparse.Namespace) -> int:
    from triton_kernels.devices import DEVICE_MODELS
    from triton_kernels.lab.roofline import measured_rooflines, rooflines
    from triton_kernels.registry import Registry

    registry = Registry.load(arguments.plugin)
    registry.impls(arguments.op)  # says which ops there are
    if arguments.device not in DEVICE_MODELS:
        raise ValueError(f"no device named {arguments.device!r}; the device table has {', '.join(DEVICE_MODELS)}")
    device = DEVICE_MODELS[arguments.device]
    rows = [["case", "GEMMs in", "GFLOP", "MB", "least time (us)", "bound by", "TFLOP/s there", "TB/s there", "measured (us)"]]
    draw = measured_rooflines if arguments.measured else rooflines
    for found in draw(registry.ops[arguments.op], device):
        if found.arithmetic_s is None:
            rows.append([found.case, found.format, *["-"] * 3, f"{device.name} has none", "-", "-", "-"])
            continue
        rows.append(
            [
                found.case,
                found.format,
                f"{found.cost.flops / 1e9:.3f}",
                f"{found.cost.bytes / 1e6:.3f}",
                f"{found.least_s * 1e6:.2f}",
                "arithmetic" if found.arithmetic_s > found.memory_s else "memory",
                f"{found.cost.flops / found.least_s / 1e12:.1f}",
                f"{found.cost.bytes / found.least_s / 1e12:.2f}",
                ", ".join(f"{kernel} {us:.1f}" for kernel, us in found.measured_us.items()) or "-",
            ]
        )
    print(format_table(rows))
    peaks = ", ".join(f"{kind} {flops / 1e12:.0f}" for kind, flops in device.flops_s.items())
    print(f"\n{device.name}: {peaks} TFLOP/s, {device.copy_bytes_s / 1e12:.1f} TB/s ({device.source})")
    if any(row[-1] != "-" for row in rows[1:]):
        print("measured: other projects' kernels, see triton_kernels/lab/measured/README.md")
    return 0
