"""Packed tensors of checkpoints become canonical ones bit by bit. The tensors are packed here, one value at a time, as the formats
are described: GPTQ has its values along the input features, one after another in a stream of bits, the first in the lowest,
and stores zero points less one in its first version; AWQ has eight output features per word, in the order 0 2 4 6 1 3 5 7;
compressed-tensors fills each word by itself, along the input features, and packs zero points along the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from framework.models.families import FAMILIES
from framework.models.quantization.awq import AwqFormat
from framework.models.quantization.bitsandbytes import CodebookFormat, Int8Format
from framework.models.quantization.canonical import dequantized
from framework.models.quantization.compressed_tensors import PackedFormat, ScaledFormat
from framework.models.quantization.fp8 import Fp8Format
from framework.models.quantization.gptq import GptqFormat
from framework.models.quantization.mxfp4 import mxfp4_values
from framework.models.quantization.scheme import Format, LoadedPart, Module
from framework.models.quantization.unquantized import Unquantized
from framework.models.weights import Checkpoint
from triton_kernels.ops.gemm import gemm_w4a16_reference, gemm_w8a16_reference

NUM_IN, NUM_OUT, GROUP = 64, 32, 16
NUM_GROUPS = NUM_IN // GROUP
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
MODULE = Module("model.layers.0.mlp.down_proj", NUM_OUT, NUM_IN)


def stream(values: Sequence[int], bits: int) -> list[int]:
    """Values as signed words of 32 bits: one stream of bits, the first value in the lowest ones."""
    whole = sum(int(value) << bits * place for place, value in enumerate(values))
    words = [whole >> 32 * i & 0xFFFFFFFF for i in range(len(values) * bits // 32)]
    return [word - 2**32 if word >= 2**31 else word for word in words]


def by_word(values: Sequence[int], bits: int) -> list[int]:
    """The same, each word by itself."""
    per_word = 32 // bits
    filled = [*values, *[0] * (-len(values) % per_word)]
    words = (stream([*filled[i : i + per_word]] if bits * per_word == 32 else [], bits) for i in range(0, len(filled), per_word))
    return [word for group in words for word in group]


def packed(rows: np.ndarray, bits: int) -> torch.Tensor:
    """[R, C] -> int32 [R, C * bits / 32]."""
    return torch.tensor([stream(list(row), bits) for row in rows], dtype=torch.int32)


def load(found: Format, tensors: dict[str, torch.Tensor], folder: Path, module: Module = MODULE) -> LoadedPart:
    save_file({f"{module.name}.{name}": tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    source = Checkpoint(folder, FAMILIES["llama"], torch.device("cpu"), torch.float32, Unquantized())
    return found.load(module, source)


def layer(bits: int, num_groups: int = NUM_GROUPS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantized values [K, N], zero points [K/G, N], scales [K/G, N]."""
    random = np.random.default_rng(7)
    values = random.integers(0, 2**bits, (NUM_IN, NUM_OUT))
    zeros = random.integers(0, 2**bits, (num_groups, NUM_OUT))
    return values, zeros, random.uniform(0.5, 2, (num_groups, NUM_OUT)).astype(np.float16)


def dense(values: np.ndarray, zeros: np.ndarray, scales: np.ndarray, g_idx: np.ndarray | None = None) -> np.ndarray:
    """float64 [N, K]."""
    groups = np.arange(NUM_IN) // (NUM_IN // len(scales)) if g_idx is None else g_idx
    return ((values - zeros[groups]) * scales[groups].astype(np.float64)).T


def stored_zeros(zeros: np.ndarray, bits: int, version: int) -> torch.Tensor:
    """Version 1 is one less, of words as wholes where values do not cross them."""
    if version == 2:
        return packed(zeros, bits)
    if bits == 3:
        return packed((zeros - 1) % 2**bits, bits)
    ones = torch.tensor(stream([1] * (32 // bits), bits), dtype=torch.int32)
    return packed(zeros, bits) - ones


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits: int, version: int, tmp_path: Path) -> None:
    values, zeros, scales = layer(bits)
    tensors = {
        "qweight": packed(values.T, bits).T,
        "qzeros": stored_zeros(zeros, bits, version),
        "scales": torch.from_numpy(scales),
    }
    found = load(GptqFormat(bits, GROUP, False, 2 - version), tensors, tmp_path)
    assert found.op == ("gemm_w8a16" if bits == 8 else "gemm_w4a16")
    assert np.array_equal(dequantized(found).numpy(), dense(values, zeros, scales))
    assert found.tensors["scales"].dtype == torch.float16 and found.tensors["perm"] is None  # type: ignore[union-attr]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_symmetric_gptq_needs_no_zero_points(bits: int, tmp_path: Path) -> None:
    values, zeros, scales = layer(bits)
    zeros[:] = 2 ** (bits - 1)
    tensors = {"qweight": packed(values.T, bits).T, "qzeros": packed(zeros - 1, bits), "scales": torch.from_numpy(scales)}
    for symmetric in (True, False):
        found = load(GptqFormat(bits, GROUP, symmetric, 1), tensors, tmp_path)
        assert found.tensors["zeros"] is None
        assert np.array_equal(dequantized(found).numpy(), dense(values, zeros, scales))


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_with_act_order_is_the_product_in_the_order_of_the_checkpoint(bits: int, tmp_path: Path) -> None:
    values, zeros, scales = layer(bits)
    g_idx = np.random.default_rng(1).permutation(np.arange(NUM_IN) // GROUP)
    tensors = {"qweight": packed(values.T, bits).T, "qzeros": stored_zeros(zeros, bits, 1)}
    tensors |= {"scales": torch.from_numpy(scales), "g_idx": torch.from_numpy(g_idx).int()}
    found = load(GptqFormat(bits, GROUP, False, 1), tensors, tmp_path)
    perm = found.tensors["perm"]
    assert perm is not None and sorted(perm.tolist()) == list(range(NUM_IN))
    x = np.random.default_rng(2).standard_normal((3, NUM_IN))
    multiply = gemm_w4a16_reference if bits == 4 else gemm_w8a16_reference
    got = multiply(torch.from_numpy(x), **found.tensors)
    np.testing.assert_allclose(got.numpy(), x @ dense(values, zeros, scales, g_idx).T, rtol=1e-12)
    assert np.array_equal(dequantized(found).numpy(), dense(values, zeros, scales, g_idx))


def test_group_indices_in_order_need_no_permutation(tmp_path: Path) -> None:
    values, zeros, scales = layer(4)
    tensors = {"qweight": packed(values.T, 4).T, "qzeros": packed(zeros, 4), "scales": torch.from_numpy(scales)}
    tensors["g_idx"] = torch.arange(NUM_IN, dtype=torch.int32) // GROUP
    assert load(GptqFormat(4, GROUP, False, 0), tensors, tmp_path).tensors["perm"] is None


def test_one_word_of_gptq_and_one_of_awq_by_hand(tmp_path: Path) -> None:
    """0x76543210 holds 0 to 7 from the lowest nibble up: inputs 0 to 7 of GPTQ; of AWQ outputs 0 2 4 6 1 3 5 7."""
    module = Module(MODULE.name, 8, 8)
    ones, sevens = torch.ones(1, 8, dtype=torch.float16), torch.full((1, 1), 0x77777777, dtype=torch.int32)
    words = torch.full((1, 8), 0x76543210, dtype=torch.int32)
    gptq = load(GptqFormat(4, -1, False, 1), {"qweight": words, "qzeros": sevens, "scales": ones}, tmp_path, module)
    assert dequantized(gptq).tolist() == [[float(i - 8) for i in range(8)]] * 8
    awq = load(AwqFormat(-1), {"qweight": words.T, "qzeros": sevens, "scales": ones}, tmp_path, module)
    assert dequantized(awq).T.tolist() == [[-7.0, -3.0, -6.0, -2.0, -5.0, -1.0, -4.0, 0.0]] * 8


def test_awq(tmp_path: Path) -> None:
    values, zeros, scales = layer(4)

    def columns(rows: np.ndarray) -> torch.Tensor:
        return packed(rows.reshape(len(rows), -1, 8)[..., AWQ_ORDER].reshape(len(rows), -1), 4)

    tensors = {"qweight": columns(values), "qzeros": columns(zeros), "scales": torch.from_numpy(scales)}
    found = load(AwqFormat(GROUP), tensors, tmp_path)
    assert found.op == "gemm_w4a16" and np.array_equal(dequantized(found).numpy(), dense(values, zeros, scales))
    del tensors["qzeros"]
    zeros[:] = 8
    found = load(AwqFormat(GROUP, zero_point=False), tensors, tmp_path)
    assert np.array_equal(dequantized(found).numpy(), dense(values, zeros, scales))


@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors_packed(bits: int, tmp_path: Path) -> None:
    values, zeros, scales = layer(bits)
    g_idx = np.random.default_rng(1).permutation(np.arange(NUM_IN) // GROUP)
    tensors = {"weight_packed": torch.tensor([by_word(list(row), bits) for row in values.T], dtype=torch.int32)}
    tensors["weight_zero_point"] = torch.tensor([by_word(list(row), bits) for row in zeros], dtype=torch.int32).T
    tensors["weight_scale"] = torch.from_numpy(scales).T.contiguous()
    found = load(PackedFormat(bits, GROUP, False), tensors, tmp_path)
    assert np.array_equal(dequantized(found).numpy(), dense(values, zeros, scales))
    tensors["weight_g_idx"] = torch.from_numpy(g_idx).int()
    found = load(PackedFormat(bits, GROUP, False), tensors, tmp_path)
    assert np.array_equal(dequantized(found).numpy(), dense(values, zeros, scales, g_idx))
    tensors["weight_g_idx"] = torch.full((NUM_IN,), -1, dtype=torch.int32)  # what some tools write where there is no order
    found = load(PackedFormat(bits, GROUP, True), tensors, tmp_path)
    assert np.array_equal(dequantized(found).numpy(), dense(values, np.full_like(zeros, 2 ** (bits - 1)), scales))


def test_scales_of_blocks_multiply_despite_their_name(tmp_path: Path) -> None:
    module, generator = Module(MODULE.name, 130, 200), torch.Generator().manual_seed(1)
    weight = torch.randn(130, 200, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.tensor([[2.0, 4.0], [8.0, 16.0]])
    found = load(Fp8Format(blocks=True, static=False), {"weight": weight, "weight_scale_inv": scales}, tmp_path, module)
    expected = weight.double()
    for rows, columns, factor in ((0, 0, 2), (0, 128, 4), (128, 0, 8), (128, 128, 16)):
        expected[rows : rows + 128, columns : columns + 128] *= factor
    assert torch.equal(dequantized(found), expected) and found.op == "gemm_fp8"


def test_one_scale_for_a_tensor_may_have_any_shape(tmp_path: Path) -> None:
    weight = torch.arange(-32, 32, dtype=torch.int8).repeat(NUM_OUT, 1)
    for shape in ((), (1,), (1, 1)):
        tensors = {"weight": weight, "weight_scale": torch.full(shape, 0.5), "input_scale": torch.full(shape, 0.25)}
        found = load(ScaledFormat(torch.int8, "static"), tensors, tmp_path)
        assert torch.equal(dequantized(found), weight * 0.5)
        assert found.input is not None and found.input.tensors["static_scale"].tolist() == [[0.25]]  # type: ignore[union-attr]


def test_mxfp4_by_hand() -> None:
    """Codes 0 to 15 are 0 .5 1 1.5 2 3 4 6 and their negatives, the low half of a byte first; scale 128 is 2, 126 is 1/2."""
    packed_values = torch.tensor([[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 2] * 2, dtype=torch.uint8)
    positive = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    row = torch.tensor([*positive, *[-value for value in positive]] * 2, dtype=torch.float64)
    found = mxfp4_values(packed_values, torch.tensor([[128], [126]], dtype=torch.uint8))
    assert torch.equal(found, torch.stack((row * 2, row / 2)))


def test_codebooks_of_bitsandbytes_by_hand(tmp_path: Path) -> None:
    """The first of two values is in the high half of a byte; a nested scale is an entry of the second table, times its own scale,
    plus an offset."""
    module, table = Module(MODULE.name, 2, 64), torch.linspace(-1, 1, 16)
    weight = torch.full((64, 1), 0x1F, dtype=torch.uint8)
    row = torch.stack((table[1], table[15])).double().repeat(32)
    state = '{"shape": [2, 64], "blocksize": 64, "nested_blocksize": 256, "nested_offset": 0.5}'
    tensors = {
        "weight": weight,
        "weight.absmax": torch.tensor([1, 3], dtype=torch.uint8),
        "weight.quant_map": table,
        "weight.nested_absmax": torch.tensor([4.0]),
        "weight.nested_quant_map": torch.arange(256).float() / 8,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(state.encode()), dtype=torch.uint8),
    }
    found = load(CodebookFormat("nf4"), tensors, tmp_path, module)
    torch.testing.assert_close(dequantized(found), torch.stack((row * 1.0, row * 2.0)), rtol=1e-6, atol=0)
    assert "NF4" in found.note
    tensors["weight.absmax"] = torch.tensor([1.0, 2.0])
    assert torch.equal(dequantized(load(CodebookFormat("nf4"), tensors, tmp_path, module)), dequantized(found))


def test_rows_of_bitsandbytes_int8(tmp_path: Path) -> None:
    weight = torch.arange(-32, 32, dtype=torch.int8).repeat(NUM_OUT, 1)
    scales = torch.arange(1.0, NUM_OUT + 1)
    found = load(Int8Format(), {"weight": weight, "SCB": 127 * scales}, tmp_path)
    assert torch.equal(dequantized(found), weight * scales[:, None].double()) and found.op == "gemm_w8a16"


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    values, zeros, scales = layer(4)
    tensors = {"qweight": packed(values.T, 4).T, "qzeros": packed(zeros, 4), "scales": torch.from_numpy(scales)}
    found = GptqFormat(4, GROUP, False, 1)
    for name, wrong, message in (
        ("scales", tensors["scales"][:, :-1], r"model.safetensors: tensor .*down_proj.scales has shape \(4, 31\)"),
        ("qzeros", tensors["qzeros"][:-1], r"down_proj.qzeros has shape \(3, 4\), but config.json asks for \(4, 4\)"),
        ("qweight", tensors["qweight"].float(), r"down_proj.qweight is torch.float32, but its format asks for torch.int32"),
        ("g_idx", torch.zeros(NUM_IN, dtype=torch.int32), "equal size"),
        ("g_idx", torch.full((NUM_IN,), -1, dtype=torch.int32), "equal size"),
    ):
        with pytest.raises(ValueError, match=message):
            load(found, {**tensors, name: wrong}, tmp_path)
    with pytest.raises(ValueError, match=r"no tensor .*down_proj\.qzeros"):
        load(found, {name: tensor for name, tensor in tensors.items() if name != "qzeros"}, tmp_path)
    with pytest.raises(ValueError, match="group size 48 does not divide its 64 inputs"):
        load(GptqFormat(4, 48, False, 1), tensors, tmp_path)
    with pytest.raises(ValueError, match="30 outputs of 4 bits"):
        load(found, tensors, tmp_path, Module(MODULE.name, 30, NUM_IN))
