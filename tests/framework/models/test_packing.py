"""Packed checkpoint tensors become canonical ones bit by bit. The tensors are packed here, one value at a time, as the formats
are described: GPTQ has eight quantized per word along the input features, the first in the lowest bits, and stores zero points
less one in its first version; AWQ has eight output features per word, in the order 0 2 4 6 1 3 5 7."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from framework.models.quantization.packing import CanonicalInt4, awq_to_canonical, gptq_to_canonical
from triton_kernels.ops.gemm import gemm_w4a16_reference

NUM_IN, NUM_OUT, GROUP = 64, 24, 16
NUM_GROUPS = NUM_IN // GROUP
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Layer = tuple[np.ndarray, np.ndarray, np.ndarray]


def word(nibbles: list[int]) -> int:
    """Eight quantized values, the first in the lowest bits, as the signed number that a checkpoint holds."""
    value = sum(int(nibble) << 4 * place for place, nibble in enumerate(nibbles))
    return value - 2**32 if value >= 2**31 else value


def gptq_pack(quantized: np.ndarray) -> torch.Tensor:
    """[K, N] -> int32 [K/8, N]."""
    rows, columns = quantized.shape
    words = [[word(list(quantized[8 * r : 8 * r + 8, c])) for c in range(columns)] for r in range(rows // 8)]
    return torch.tensor(words, dtype=torch.int32)


def pack_along_columns(quantized: np.ndarray, order: tuple[int, ...]) -> torch.Tensor:
    """[R, N] -> int32 [R, N/8]; nibble p holds column order[p] of its eight."""
    words = [[word([row[8 * w + column] for column in order]) for w in range(len(row) // 8)] for row in quantized]
    return torch.tensor(words, dtype=torch.int32)


@pytest.fixture
def layer() -> Layer:
    """Codes [K, N], zero points [K/G, N], scales [K/G, N]."""
    random = np.random.default_rng(7)
    quantized = random.integers(0, 16, (NUM_IN, NUM_OUT))
    zeros = random.integers(0, 16, (NUM_GROUPS, NUM_OUT))
    return quantized, zeros, random.uniform(0.5, 2, (NUM_GROUPS, NUM_OUT)).astype(np.float16)


def canonical_values(found: CanonicalInt4) -> np.ndarray:
    """[N, K], read from the words by plain arithmetic."""
    words = found.qweight.numpy().astype(np.int64) & 0xFFFFFFFF
    return np.stack([words >> 4 * place & 15 for place in range(8)], axis=-1).reshape(NUM_OUT, NUM_IN)


@pytest.mark.parametrize("version", [1, 2])
def test_gptq(layer: Layer, version: int) -> None:
    quantized, zeros, scales = layer
    stored = (zeros - 1) % 16 if version == 1 else zeros
    qzeros = pack_along_columns(stored, tuple(range(8)))
    found = gptq_to_canonical(gptq_pack(quantized), qzeros, torch.from_numpy(scales), zero_offset=2 - version)
    assert np.array_equal(canonical_values(found), quantized.T)
    assert found.zeros is not None and np.array_equal(found.zeros.numpy(), zeros.T)
    assert np.array_equal(found.scales.numpy(), scales.T) and found.scales.dtype == torch.float16
    assert found.perm is None


@pytest.mark.parametrize(("version", "nibble"), [(1, 0x77777777), (2, 0x88888888 - 2**32)])
def test_symmetric_gptq_has_no_zero_points(layer: Layer, version: int, nibble: int) -> None:
    quantized, _, scales = layer
    qzeros = torch.full((NUM_GROUPS, NUM_OUT // 8), nibble, dtype=torch.int32)
    found = gptq_to_canonical(gptq_pack(quantized), qzeros, torch.from_numpy(scales), zero_offset=2 - version)
    assert found.zeros is None


def test_gptq_with_act_order_is_the_product_in_the_order_of_the_checkpoint(layer: Layer) -> None:
    quantized, zeros, scales = layer
    g_idx = np.random.default_rng(1).permutation(np.arange(NUM_IN) // GROUP)
    qzeros = pack_along_columns((zeros - 1) % 16, tuple(range(8)))
    groups = torch.from_numpy(g_idx).int()
    found = gptq_to_canonical(gptq_pack(quantized), qzeros, torch.from_numpy(scales), groups, zero_offset=1)
    assert found.perm is not None and sorted(found.perm.tolist()) == list(range(NUM_IN))
    dense = (quantized - zeros[g_idx]) * scales[g_idx].astype(np.float64)
    x = np.random.default_rng(2).standard_normal((3, NUM_IN))
    got = gemm_w4a16_reference(torch.from_numpy(x), *found)
    np.testing.assert_allclose(got.numpy(), x @ dense, rtol=1e-12)


def test_group_indices_in_order_need_no_permutation(layer: Layer) -> None:
    quantized, zeros, scales = layer
    g_idx = torch.arange(NUM_IN, dtype=torch.int32) // GROUP
    qzeros = pack_along_columns(zeros, tuple(range(8)))
    assert gptq_to_canonical(gptq_pack(quantized), qzeros, torch.from_numpy(scales), g_idx, zero_offset=0).perm is None


def test_awq(layer: Layer) -> None:
    quantized, zeros, scales = layer
    found = awq_to_canonical(
        pack_along_columns(quantized, AWQ_ORDER), pack_along_columns(zeros, AWQ_ORDER), torch.from_numpy(scales)
    )
    assert np.array_equal(canonical_values(found), quantized.T)
    assert found.zeros is not None and np.array_equal(found.zeros.numpy(), zeros.T)
    assert np.array_equal(found.scales.numpy(), scales.T)
    assert found.perm is None


def test_tensors_that_do_not_fit_are_refused(layer: Layer) -> None:
    quantized, zeros, scales = layer
    qweight, qzeros = gptq_pack(quantized), pack_along_columns(zeros, tuple(range(8)))
    with pytest.raises(ValueError, match=r"scales have the shape \[4, 23\]"):
        gptq_to_canonical(qweight, qzeros, torch.from_numpy(scales[:, :-1].copy()), zero_offset=1)
    with pytest.raises(ValueError, match="qzeros have the shape"):
        gptq_to_canonical(qweight, qzeros[:-1], torch.from_numpy(scales), zero_offset=1)
    with pytest.raises(ValueError, match="equal size"):
        gptq_to_canonical(qweight, qzeros, torch.from_numpy(scales), torch.zeros(NUM_IN, dtype=torch.int32), zero_offset=1)
