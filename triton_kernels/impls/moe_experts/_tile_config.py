"""Which tile the grouped GEMMs of a call take: a function of host integers, so that nothing waits for the device.

What counts is how many rows an expert gets. A tile has about as many, because rows that are not there are multiplied all the
same, while every tile of rows reads the expert's weights once more. The steps are those of the tiles that vLLM publishes for its
kernel, found by timing on H100 and H200: 16 rows up to 8 per expert (128 experts of which a token takes 8: up to 128 tokens),
128 x 256 x 64 from 64 per expert (1,024 tokens).
"""

from __future__ import annotations

import torch

from ...devices import DeviceModel, by_arch
from ...spec import Spec
from ._tiles import Tile

LARGE_SHARED = 200 * 1024
"""Bytes of shared memory with which many rows take 256 columns and four stages."""


def tile_config(spec: Spec, num_pairs: int, num_experts: int, columns: int) -> Tile:
    """The tile for ``num_pairs`` choices among ``num_experts`` experts whose hidden state has ``columns`` columns. Expects choices
    to spread evenly, and all experts to be here: of a rank that holds some of them it takes longer tiles than it could."""
    device, scheme = by_arch(spec.arch), spec.fact("scheme", "float")
    if spec.dtype == torch.float32 and scheme in ("float", "w4a16"):
        # Exact f32 GEMMs use no matrix instruction: sums and operands need registers.
        return Tile(16, 32, 32, 4, 2) if scheme == "float" else Tile(16, 64, 128, 4, 2)
    rows = num_pairs / num_experts
    tile = _float_tile(rows, device) if scheme == "float" else _quantized_tile(rows, scheme, device)
    # Few choices leave multiprocessors without a program: half as many columns make twice as many.
    programs = min(num_experts, num_pairs) * -(-columns // tile.block_n)
    return tile._replace(block_n=32) if rows <= 8 and programs < 2 * device.num_sms else tile


def _float_tile(rows: float, device: DeviceModel) -> Tile:
    block_m = _block_m(rows)
    if device.shared_bytes < LARGE_SHARED:
        # At 64 rows four warps of sm_80 spill.
        wide = block_m == 128 or (block_m == 64 and device.arch.startswith("sm_"))
        return Tile(block_m, 64, 64, 8 if wide else 4, _stages(device))
    if block_m == 128:
        return Tile(128, 128, 64, 8, 4)
    return Tile(block_m, 64, 64 if block_m == 64 else 128, 4, 3)


def _quantized_tile(rows: float, scheme: str, device: DeviceModel) -> Tile:
    block_m, stages = _block_m(rows), _stages(device)
    # Two sets of sums, beside unpacked weights or a scale for each row of both operands: more rows take more registers than there
    # are. On sm_100 the sums come from tensor memory all at once.
    if device.arch == "sm_100" and scheme != "w4a16":
        block_m = min(block_m, 32)
    elif scheme == "fp8_block":
        block_m = min(block_m, 64)
    elif device.arch == "sm_80":
        block_m = min(block_m, 32)
    elif scheme == "w4a16" and device.arch == "sm_100":
        block_m = max(block_m, 32)  # with 16 the compiler saves registers until it spills
    num_warps = 8 if block_m == 128 or (block_m == 64 and scheme == "w4a16") else 4
    return Tile(block_m, 64, 128, num_warps, stages if block_m <= 32 else min(stages, 3))


def _block_m(rows: float) -> int:
    return 16 if rows <= 8 else 32 if rows <= 24 else 64 if rows < 64 else 128


def _stages(device: DeviceModel) -> int:
    return 2 if device.shared_bytes < 128 * 1024 else 4
