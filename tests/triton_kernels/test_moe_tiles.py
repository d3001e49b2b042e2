"""Tiles of the experts' GEMMs are plain arithmetic: they fit every device, and grow with the rows that an expert gets."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from triton_kernels.devices import DEVICE_MODELS, by_arch
from triton_kernels.impls.moe_experts._tile_config import tile_config
from triton_kernels.impls.moe_experts._tiles import Tile
from triton_kernels.lab.tune import candidates
from triton_kernels.registry import Registry
from triton_kernels.spec import Spec
from triton_kernels.tuning import Entry, TunedTables, layer_bucket, save_entries

ARCHS = (*(device.arch for device in DEVICE_MODELS.values()), "sm_86", "cpu")
SCHEMES = {"float": 2.0, "w4a16": 0.5, "fp8_channel": 1.0, "fp8_block": 1.0}
"""Bytes of a weight."""
TOKENS = (1, 2, 4, 16, 64, 128, 129, 256, 512, 1024, 4096, 16384)
QWEN, MIXTRAL = (128, 8, 768), (8, 2, 14336)
"""Experts, how many of them a token takes, columns of the hidden state."""


def tile_of(num_tokens: int, shape: tuple[int, int, int], scheme: str = "float", arch: str = "sm_90") -> Tile:
    num_experts, top_k, columns = shape
    return tile_config(Spec("cuda", arch, torch.bfloat16, facts={"scheme": scheme}), num_tokens * top_k, num_experts, columns)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_tile_fits_its_device(arch: str, scheme: str) -> None:
    for num_tokens, shape in product(TOKENS, (QWEN, MIXTRAL)):
        tile = tile_of(num_tokens, shape, scheme, arch)
        x_bytes = 1 if scheme.startswith("fp8") else 2
        stage_bytes = (tile.block_m * x_bytes + 2 * tile.block_n * SCHEMES[scheme]) * tile.block_k
        buffers = tile.num_stages - arch.startswith("gfx")  # there the next tile waits in registers
        assert stage_bytes * buffers <= by_arch(arch).shared_bytes
        # What is promoted or scaled after a block needs two sets of sums.
        sums = tile.block_m * 2 * tile.block_n * (1 if scheme == "float" else 2)
        assert sums <= 128 * 32 * tile.num_warps, "the sums take over half of the registers"


def test_rows_follow_what_an_expert_gets() -> None:
    found = {num_tokens: tile_of(num_tokens, QWEN) for num_tokens in (1, 128, 256, 384, 512, 1024, 8192)}
    assert {n: tile.block_m for n, tile in found.items()} == {1: 16, 128: 16, 256: 32, 384: 32, 512: 64, 1024: 128, 8192: 128}
    assert found[1024] == Tile(128, 128, 64, 8, 4), "128 x 256 x 64: the weights are those of gate and of up"
    assert [tile_of(n, MIXTRAL).block_m for n in (32, 33, 96, 128, 256)] == [16, 32, 32, 64, 128]
    assert tile_of(512, QWEN, arch="sm_80") == Tile(64, 64, 64, 8, 4), "with four warps the first GEMM spills"
    for scheme, arch, shape in product(SCHEMES, ARCHS, (QWEN, MIXTRAL)):
        assert all(a.block_m <= b.block_m for a, b in pairwise(tile_of(n, shape, scheme, arch) for n in TOKENS))


def test_rows_of_quantized_tiles_have_the_bounds_beyond_which_compilers_spill() -> None:
    bounds = {
        (scheme, arch): (min(rows), max(rows))
        for scheme, arch in product(("w4a16", "fp8_channel", "fp8_block"), ("sm_80", "sm_90", "sm_100"))
        for rows in [[tile_of(n, QWEN, scheme, arch).block_m for n in TOKENS]]
        if arch != "sm_80" or scheme == "w4a16"
    }
    assert bounds == {
        ("w4a16", "sm_80"): (16, 32),
        ("w4a16", "sm_90"): (16, 128),
        ("w4a16", "sm_100"): (32, 128),
        ("fp8_channel", "sm_90"): (16, 128),
        ("fp8_channel", "sm_100"): (16, 32),
        ("fp8_block", "sm_90"): (16, 64),
        ("fp8_block", "sm_100"): (16, 32),
    }


def test_few_choices_take_narrow_tiles() -> None:
    """Eight experts of 768 columns are 96 programs of 64 columns, on 132 multiprocessors."""
    assert [tile_of(n, QWEN).block_n for n in (1, 2, 4, 128)] == [32, 32, 64, 64]
    assert tile_of(1, MIXTRAL).block_n == 64


def bound(name: str, tables: TunedTables | None = None, **options: int) -> Any:
    facts = {"num_experts": 8, "hidden_size": 64, "intermediate_size": 32, "weight_dtype": torch.bfloat16, "scheme": "float"}
    spec = Spec("cuda", "sm_90", torch.bfloat16, facts=facts)
    weights = {"w13": torch.empty(8, 64, 64, dtype=torch.bfloat16), "w2": torch.empty(8, 64, 32, dtype=torch.bfloat16)}
    return Registry.load().impls("moe_experts")[name].bind(spec, weights, {}, options, tables)


def test_tables_and_options_change_the_tile_of_so_many_tokens(tmp_path: Path) -> None:
    spec = bound("triton").spec
    save_entries(tmp_path, "moe_experts", "sm_90", [Entry("triton", layer_bucket(spec, 64), {"block_m": 64, "num_stages": 5})])
    tuned = bound("triton", TunedTables([tmp_path]), num_warps=8)
    assert tuned.launch(64, 2) == tuned.config(128)._replace(block_m=64, num_stages=5, num_warps=8)
    assert tuned.launch(1, 2) == tuned.config(2)._replace(num_warps=8), "the table knows nothing near one token"


def test_the_invariant_impl_has_one_tile() -> None:
    found = bound("triton_invariant")
    assert found.only_tile == found.config(32 * 8) and found.only_tile.block_m == 64


def test_candidates_of_few_tokens_have_few_rows() -> None:
    impl = Registry.load().impls("moe_experts")["triton"]
    assert {c["block_m"] for c in candidates(impl, 1, limit=1000)} == {16}
    many = candidates(impl, 4096, limit=1000)
    assert {c["block_m"] for c in many} == {16, 32, 64, 128}
    assert all(c["block_m"] * c["block_n"] <= 64 * 32 * c["num_warps"] for c in many)
