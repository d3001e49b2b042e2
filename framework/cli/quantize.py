"""``kernelswap quantize MODEL OUT --scheme S``: writes a quantized checkpoint."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..config import QUANT_SCHEMES, QuantConfig


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    text = "write a model's checkpoint with quantized weights, in a format that other tools read too"
    parser = subparsers.add_parser("quantize", help=text, description=text)
    usual = QuantConfig()
    parser.add_argument("model", metavar="MODEL", help="a folder, a Hugging Face id, or an embedded model")
    parser.add_argument("output", metavar="OUT", type=Path, help="a new or an empty folder")
    parser.add_argument("--scheme", required=True, choices=QUANT_SCHEMES[1:], help="what to quantize to, and how")
    parser.add_argument(
        "--group-size",
        type=int,
        default=usual.group_size,
        metavar="N",
        help="4 bits: inputs of a row that share a scale; -1 = all (default: %(default)s)",
    )
    zeros = parser.add_mutually_exclusive_group()
    zeros.add_argument("--sym", dest="symmetric", action="store_const", const=True, help="4 bits: no zero points")
    zeros.add_argument("--asym", dest="symmetric", action="store_const", const=False, help="4 bits: zero points (usual for AWQ)")
    parser.add_argument("--calib", metavar="FILE", help="calibration text (default: modules of the standard library)")
    parser.add_argument(
        "--samples", type=int, default=usual.num_samples, metavar="N", help="of the calibration (default: %(default)s)"
    )
    parser.add_argument(
        "--sample-tokens", type=int, default=usual.sample_tokens, metavar="N", help="of each sample (default: %(default)s)"
    )
    parser.add_argument("--act-order", action="store_true", help="gptq-int4: inputs are rounded in the order of their size")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Writes the checkpoint and prints what it saves."""
    from ..models.hub import resolve_model
    from ..quantize import quantize_checkpoint

    config = QuantConfig(
        arguments.scheme, arguments.group_size, arguments.symmetric, arguments.calib, arguments.samples, arguments.sample_tokens
    )
    start = time.perf_counter()
    quantize_checkpoint(arguments.model, arguments.output, config, act_order=arguments.act_order)
    seconds = time.perf_counter() - start
    before, after = (_weight_bytes(folder) for folder in (resolve_model(arguments.model), arguments.output))
    print(f"{arguments.output}: {after:,} bytes of weights, were {before:,} ({before / after:.2f}x); {seconds:.1f} s")
    return 0


def _weight_bytes(folder: Path) -> int:
    from ..models.tensor_files import tensor_files

    return sum((folder / file).stat().st_size for file in set(tensor_files(folder).values()))
