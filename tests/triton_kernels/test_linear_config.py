"""Launch configurations of the matrix product are plain arithmetic: they must fit every device for every shape."""

from __future__ import annotations

from itertools import product

import pytest
import torch

pytest.importorskip("triton")

from triton_kernels.devices import DEVICE_MODELS, by_arch
from triton_kernels.impls.linear.triton import MAX_SPLIT_K, MIN_BLOCKS_PER_SPLIT, Config, launch_config

TOKENS = (1, 2, 15, 16, 17, 32, 33, 64, 65, 256, 257, 2048, 16384)
SHAPES = ((48, 64), (6144, 4096), (4096, 14336), (128256, 4096), (971, 2113), (576, 7168))
ARCHS = (*(device.arch for device in DEVICE_MODELS.values()), "sm_86", "cpu")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_configuration_fits_its_device(arch: str, dtype: torch.dtype) -> None:
    for num_tokens, (num_out, num_in) in product(TOKENS, SHAPES):
        config = launch_config(num_tokens, num_out, num_in, dtype, arch, num_in % 16 == 0)
        stage_bytes = (config.block_m + config.block_n) * config.block_k * dtype.itemsize
        assert stage_bytes * config.num_stages <= by_arch(arch).shared_bytes
        assert config.block_m * config.block_n <= 128 * 32 * config.num_warps, "the accumulator takes over half of the registers"
        assert config == launch_config(num_tokens, num_out, num_in, dtype, arch, num_in % 16 == 0)


@pytest.mark.parametrize("arch", ARCHS)
def test_few_tokens_fill_the_device_without_short_loops(arch: str) -> None:
    for num_tokens, (num_out, num_in) in product(TOKENS, SHAPES):
        config = launch_config(num_tokens, num_out, num_in, torch.bfloat16, arch, num_in % 16 == 0)
        blocks = -(-num_in // config.block_k)
        if config.split_k > 1:
            assert num_tokens <= 64
            assert blocks // config.split_k >= MIN_BLOCKS_PER_SPLIT
        elif num_tokens <= 64:
            assert programs(config, num_tokens, num_out) >= by_arch(arch).num_sms or blocks < 2 * MIN_BLOCKS_PER_SPLIT
        assert config.split_k <= MAX_SPLIT_K


def test_few_tokens_are_the_narrow_side_of_the_matrix_instruction() -> None:
    """64 weight rows by 16 tokens is the smallest product of a warp group."""
    config = launch_config(1, 6144, 4096, torch.bfloat16, "sm_90", True)
    assert config.swap and config.block_n == 64 and config.block_m == 16
    assert not launch_config(128, 6144, 4096, torch.bfloat16, "sm_90", True).swap


def programs(config: Config, num_tokens: int, num_out: int) -> int:
    return -(-num_tokens // config.block_m) * -(-num_out // config.block_n) * config.split_k
