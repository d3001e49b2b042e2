"""Rounding to grids: hand-computed values, and bounds in float64."""

from __future__ import annotations

import pytest
import torch

from framework.models.quantization.rounding import fp8_blocks, fp8_channels, int8_channels, int_groups

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def random_weight(rows: int, columns: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3)).to(dtype)


def test_symmetric_groups_by_hand() -> None:
    """Steps of 7.5 * 2 / 15 = 1 and of 2: the largest magnitude is half a step beyond the grid on the side of the positive ones."""
    weight = torch.tensor([[7.5, -7.5, 0.4, -0.6, 15.0, -15.0, 2.9, 3.1]])
    quantized, scales, zeros = int_groups(weight, 4, 4, symmetric=True)
    assert zeros is None
    assert scales.tolist() == [[1.0, 2.0]]
    assert quantized.tolist() == [[15, 0, 8, 7, 15, 0, 9, 10]]


def test_asymmetric_groups_by_hand() -> None:
    """From -1 to 2 in steps of 1 (2 bits); from 0, although the least is 3, to 6 in steps of 2."""
    weight = torch.tensor([[-1.0, 2.0, 0.6, -0.4, 3.0, 6.0, 4.9, 5.1]])
    quantized, scales, zeros = int_groups(weight, 2, 4, symmetric=False)
    assert zeros is not None
    assert scales.tolist() == [[1.0, 2.0]]
    assert zeros.tolist() == [[1, 0]]
    assert quantized.tolist() == [[0, 3, 2, 1, 2, 3, 2, 3]]  # 3.0 / 2 is 1.5, to the even 2


def test_int8_by_hand() -> None:
    quantized, scales = int8_channels(torch.tensor([[127.0, -63.4, 0.6], [0.5, -2.54, 0.03]]))
    assert quantized.tolist() == [[127, -63, 1], [25, -127, 2]]
    torch.testing.assert_close(scales, torch.tensor([[1.0], [0.02]]))


def test_fp8_by_hand() -> None:
    """e4m3 has three bits behind the leading one: 100 lies between 96 and 104, 17 between 16 and 18 (to the even 16)."""
    quantized, scales = fp8_channels(torch.tensor([[448.0, 101.0, 17.0, -0.0], [-896.0, 202.0, 34.0, 4.0]]))
    assert scales.tolist() == [[1.0], [2.0]]
    assert quantized.tolist() == [[448.0, 104.0, 16.0, 0.0], [-448.0, 104.0, 16.0, 2.0]]


def test_fp8_blocks_by_hand() -> None:
    """130 x 129: four blocks, the last ones of 2 rows and of 1 column."""
    weight = torch.zeros(130, 129)
    weight[0, 0], weight[127, 127], weight[5, 128], weight[129, 3], weight[128, 128] = 448.0, 100.0, 896.0, -1344.0, 44.8
    quantized, scales = fp8_blocks(weight)
    torch.testing.assert_close(scales, torch.tensor([[1.0, 2.0], [3.0, 0.1]]))
    assert quantized.shape == (130, 129)
    assert quantized.is_contiguous()
    assert [float(quantized[i, j]) for i, j in ((0, 0), (127, 127), (5, 128), (129, 3), (128, 128))] == [448, 96, 448, -448, 448]
    assert int((quantized.float() != 0).sum()) == 5


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("group_size", [16, -1])
def test_asymmetric_groups_are_within_half_a_step(bits: int, dtype: torch.dtype, group_size: int) -> None:
    weight = random_weight(24, 64, dtype) + 0.3
    quantized, scales, zeros = int_groups(weight, bits, group_size, symmetric=False)
    assert zeros is not None
    assert (quantized.dtype, scales.dtype, zeros.dtype) == (torch.uint8, dtype, torch.uint8)
    length = 64 if group_size == -1 else group_size
    step, zero = (t.double().repeat_interleave(length, 1) for t in (scales, zeros))
    error = ((quantized.double() - zero) * step - weight.double()).abs() / step
    # The zero point is rounded, and the scale to its dtype: the ends of the range can be clipped by one more half step.
    assert float(error.max()) <= 1.0 + (2**bits - 1) * torch.finfo(dtype).eps
    assert float((error > 0.5 + 1e-5).double().mean()) < 2 / length
    assert int(quantized.max()) <= 2**bits - 1


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_symmetric_groups_are_within_half_a_step(bits: int) -> None:
    weight = random_weight(24, 64)
    quantized, scales, _ = int_groups(weight, bits, 16, symmetric=True)
    step = scales.double().repeat_interleave(16, 1)
    error = ((quantized.double() - 2 ** (bits - 1)) * step - weight.double()).abs() / step
    assert float(error.max()) <= 0.5 + 1e-4
    assert int(quantized.max()) == 2**bits - 1


def test_int8_and_fp8_are_within_their_steps() -> None:
    weight = random_weight(40, 96)
    weight[:, ::3] *= 1e-5
    quantized, scales = int8_channels(weight)
    assert float(((quantized.double() * scales.double() - weight.double()) / scales).abs().max()) <= 0.5 + 1e-4
    fp8, fp8_scales = fp8_channels(weight)
    error = (fp8.double() * fp8_scales.double() - weight.double()).abs()
    normal = weight.double().abs() / fp8_scales > 2**-6  # below, steps are 2^-9 of the scale
    assert float((error / weight.double().abs())[normal].max()) <= 2**-4 + 1e-6
    assert float((error / fp8_scales)[~normal].max()) <= 2**-10 + 1e-6


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_zeros_stay_zeros(dtype: torch.dtype) -> None:
    """All zero, and so small that the scale is 0 in its dtype."""
    weight = torch.zeros(4, 64, dtype=dtype)
    weight[1] = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    for symmetric in (True, False):
        quantized, scales, zeros = int_groups(weight, 4, 32, symmetric)
        zero = torch.full_like(scales, 8) if zeros is None else zeros
        values = (quantized.double() - zero.double().repeat_interleave(32, 1)) * scales.double().repeat_interleave(32, 1)
        assert torch.isfinite(values).all()
        assert float(values.abs().max()) <= float(weight.max())
    for function in (int8_channels, fp8_channels):
        values, scales = function(weight)
        assert torch.isfinite(scales).all()
        assert not values[0].float().any()
        assert float((values.double() * scales.double()).abs().max()) <= 2 * float(weight.max())
    blocks, scales = fp8_blocks(weight)
    assert torch.isfinite(blocks.float() * scales).all()


def test_leading_dimensions_are_kept() -> None:
    experts = torch.stack([random_weight(130, 160), 2 * random_weight(130, 160)])
    for function in (int8_channels, fp8_channels, fp8_blocks):
        stacked, single = function(experts), [function(expert) for expert in experts]
        for index, tensor in enumerate(stacked):
            assert torch.equal(tensor.float(), torch.stack([found[index] for found in single]).float())
    quantized, scales, _ = int_groups(experts, 4, 32, symmetric=True)
    assert (quantized.shape, scales.shape) == ((2, 130, 160), (2, 130, 5))


@pytest.mark.parametrize("group_size", [128, 0, -2, 65])
def test_group_sizes_that_do_not_divide(group_size: int) -> None:
    with pytest.raises(ValueError, match=rf"group_size={group_size} does not divide the 704 inputs.*64, 32, 16, -1"):
        int_groups(random_weight(2, 704), 4, group_size, symmetric=True)
