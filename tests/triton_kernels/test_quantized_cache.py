"""What is written into a quantized cache stands for what was given, and attention over it is attention over those numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from triton_kernels.attention_meta import AttentionMeta, LayerKV
from triton_kernels.cases.kv_cache import empty_cache
from triton_kernels.lab.conformance import relative_error
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry
from triton_kernels.spec import Spec

REGISTRY = Registry.load()
NAMES = ("reference", "torch")
LARGEST_ERROR = {  # of a number, relative to itself or to the largest of its head: half a step between quantized values
    torch.int8: (0.0, 0.5 / 127),
    torch.float8_e4m3fn: (2**-4, 2**-10 / 448),
    torch.float8_e5m2: (2**-3, 2**-17 / 57344),
}
SLOTS = torch.tensor([9, -1, 4, 15, 8])
CPU = torch.device("cpu")


def bind(op: str, name: str, weights: dict[str, Any] | None = None, **params: Any) -> Any:
    return REGISTRY.impls(op)[name].bind(Spec("cpu", "cpu", torch.float32), weights, params)


def numbers(kv: LayerKV) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 [slots, heads, dim] that k and v stand for."""
    assert kv.k_scale is not None and kv.v_scale is not None
    k, v = (
        (quantized.double() * scale.double()[..., None]).flatten(0, 1)
        for quantized, scale in ((kv.k, kv.k_scale), (kv.v, kv.v_scale))
    )
    return k, v


def assert_close(got: torch.Tensor, given: torch.Tensor, dtype: torch.dtype) -> None:
    relative, of_largest = LARGEST_ERROR[dtype]
    given = given.double()
    allowed = torch.maximum(relative * given.abs(), of_largest * given.abs().amax(-1, keepdim=True))
    error = (got - given).abs()
    assert bool((error <= allowed * (1 + 1e-6)).all())
    assert float(error.max()) > 0.1 * float(allowed.max()), "more precise than quantized values can be"


@pytest.mark.parametrize("dtype", LARGEST_ERROR, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_number_is_off_by_half_a_step(name: str, dtype: torch.dtype) -> None:
    k, v = torch.randn(2, 5, 3, 48, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 5)[:, None, None]
    kv = empty_cache(4, 4, 3, 48, dtype, CPU)
    bind("kv_cache_write", name)(k, v, kv, SLOTS)
    written = SLOTS >= 0
    for got, given in zip(numbers(kv), (k, v), strict=True):
        assert_close(got[SLOTS[written]], given[written], dtype)
        assert int(got.isfinite().all(-1).any(-1).sum()) == int(written.sum()), "a slot that nothing was written to"


@pytest.mark.parametrize("dtype", LARGEST_ERROR, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_fused_op_rounds_keys_once(name: str, dtype: torch.dtype) -> None:
    """Rotated keys are off by half a step of the quantized values, although the activations have 8 bits of precision only."""
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(5, (2 + 2 * 3) * 48, generator=generator).bfloat16()
    angles = torch.rand(20, 24, generator=generator) * 6
    positions, cos_sin = torch.tensor([0, 7, 3, 19, 1]), torch.cat([angles.cos(), angles.sin()], -1)
    kv = empty_cache(4, 4, 3, 48, dtype, CPU)
    bind("qk_norm_rotary_kv_write", name, {"cos_sin": cos_sin}, num_heads=2, num_kv_heads=3)(qkv, positions, kv, SLOTS)
    heads = qkv.double().view(5, 8, 48)
    pairs = torch.view_as_complex(torch.stack(heads[:, 2:5].chunk(2, -1), -1))
    rotated = pairs * torch.exp(1j * angles[positions].double())[:, None]
    written = SLOTS >= 0
    for got, given in zip(numbers(kv), (torch.cat([rotated.real, rotated.imag], -1), heads[:, 5:]), strict=True):
        assert_close(got[SLOTS[written]], given[written], dtype)


@pytest.mark.parametrize("dtype", LARGEST_ERROR, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("op", ["paged_attention_prefill", "paged_attention_decode"])
def test_attention_reads_what_was_written(op: str, name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    k, v = torch.randn(2, 7, 2, 32, generator=generator)
    slots, kv = torch.tensor([12, 13, 14, 15, 4, 5, 6]), empty_cache(4, 4, 2, 32, dtype, CPU)
    bind("kv_cache_write", "torch")(k, v, kv, slots)
    meta = AttentionMeta(
        torch.tensor([0, 3], dtype=torch.int32),
        torch.tensor([7], dtype=torch.int32),
        torch.tensor([[3, 1, 0]], dtype=torch.int32),
        3,
        7,
    )
    q = torch.randn(3, 4, 32, generator=generator)
    bound = bind(op, name, scale=0.2)
    got = bound(q, kv, meta)
    keys, values = (cache[slots].transpose(0, 1) for cache in numbers(kv))
    mask = torch.ones(3, 7, dtype=torch.bool).tril(4)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.double().transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, scale=0.2, enable_gqa=True
    )
    assert relative_error(got, expected[0].transpose(0, 1)) < 1e-5


@pytest.mark.parametrize("op", ["kv_cache_write", "qk_norm_rotary_kv_write", "paged_attention_prefill", "copy_blocks"])
def test_a_scale_is_memory_that_moves(op: str) -> None:
    dims = {"num_heads": 4.0, "num_kv_heads": 2.0, "head_dim": 64.0, "num_blocks": 3.0, "page_size": 16.0, "act_bytes": 2.0}
    wide, narrow = (OPS[op].cost({**dims, "kv_bytes": size}, [5], [9]).bytes for size in (2, 1))
    heads = {"kv_cache_write": 5, "qk_norm_rotary_kv_write": 5, "paged_attention_prefill": 9, "copy_blocks": 2 * 3 * 16}[op] * 2 * 2
    assert wide - narrow == heads * (64 - 4)
