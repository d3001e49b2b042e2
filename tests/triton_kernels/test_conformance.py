"""Every impl in the registry keeps its contract; and impls that break it in some way are found out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from triton_kernels.attention_meta import LayerKV
from triton_kernels.impl import Flags, Impl, impl
from triton_kernels.lab.conformance import CheckResult, check, given_dtype
from triton_kernels.op import Case, Op
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry

REGISTRY = Registry.load()
OWN = [i for i in REGISTRY if i.origin.startswith("triton_kernels.")]
CHECKS = [(i, case) for i in OWN for case in OPS[i.op].cases if "bench" not in case.tags]


def every(checks: list[tuple[Impl, Case]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("found", "case"), checks, ids=[f"{i.op}-{i.name}-{case.name}" for i, case in checks])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@every([(i, case) for i, case in CHECKS if not i.is_triton])
def test_impl_keeps_the_contract(found: Impl, case: Case, dtype: torch.dtype) -> None:
    report(check(OPS[found.op], found, case, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@every([(i, case) for i, case in CHECKS if i.options.get("whole_batch") is False])
def test_attention_of_a_whole_padded_batch(found: Impl, case: Case, dtype: torch.dtype) -> None:
    report(check(OPS[found.op], found, case, dtype, options={"whole_batch": True}))


def report(result: CheckResult) -> None:
    if result.skipped:
        pytest.skip(result.message)
    assert result.ok, result.message


@pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))
def test_fake_has_the_shapes_and_dtypes_of_the_reference(op: Op) -> None:
    for case in op.cases:
        if "bench" in case.tags:
            continue
        args = case.make(torch.Generator().manual_seed(0), torch.float32, torch.device("cpu"))
        fake, real = op.fake(**args), op.reference(**args)
        as_tuple = [x if isinstance(x, tuple) else () if x is None else (x,) for x in (fake, real)]
        assert [(t.shape, t.dtype) for t in as_tuple[0]] == [(t.shape, given_dtype(t.dtype)) for t in as_tuple[1]], case.name


@pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))
def test_cases_cover_what_they_must(op: Op) -> None:
    tags = {tag for case in op.cases for tag in case.tags}
    assert {"odd", "tiled", "bench"} <= tags
    assert len({case.name for case in op.cases}) == len(op.cases)
    for case in op.cases:
        cost = op.cost(case.dims, case.q_lens, case.ctx_lens)
        assert cost.bytes > 0 or not any(case.q_lens), case.name


def broken(op: str, flags: Flags = Flags()) -> Callable[[Callable[..., Any]], Impl]:  # noqa: B008  (frozen)
    return impl(op, "broken", flags=flags)


def silu(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


@broken("silu_and_mul")
def wrong_value(x: torch.Tensor) -> torch.Tensor:
    return silu(x) * (1 + 1e-4)


@broken("silu_and_mul")
def wrong_dtype(x: torch.Tensor) -> torch.Tensor:
    return silu(x).double()


@broken("silu_and_mul")
def leaves_a_hole(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(x.shape[0], x.shape[1] // 2)
    out[:, 1:] = silu(x)[:, 1:]
    return out


@broken("silu_and_mul")
def changes_its_input(x: torch.Tensor) -> torch.Tensor:
    out = silu(x)
    x[0] += 1
    return out


@broken("silu_and_mul")
def returns_a_view(x: torch.Tensor) -> torch.Tensor:
    x[:, : x.shape[1] // 2] = silu(x)
    return x[:, : x.shape[1] // 2]


@broken("silu_and_mul", Flags(deterministic=True))
class NotDeterministic:
    def __init__(self, spec: Any, weights: Any, params: Any) -> None:
        self.calls = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return silu(x) * (1 + 1e-6 * self.calls)


@broken("silu_and_mul", Flags(batch_invariant=True))
def depends_on_the_batch(x: torch.Tensor) -> torch.Tensor:
    return silu(x) * (1 + 1e-6 * x.shape[0])


@broken("rotary")
def writes_beside(q: torch.Tensor, k: torch.Tensor, positions: Any, cos_sin: torch.Tensor, style: str) -> None:
    OPS["rotary"].reference(q, k, positions, cos_sin, style)
    q.as_strided((q.shape[0], q.shape[1] + k.shape[1] + 1, q.shape[2]), q.stride())[:, -1] = 0


@broken("kv_cache_write")
def writes_skipped_tokens(k: torch.Tensor, v: torch.Tensor, kv: LayerKV, slot_mapping: torch.Tensor) -> None:
    OPS["kv_cache_write"].reference(k, v, kv, slot_mapping.clamp_min(0))


@broken("kv_cache_write")
def writes_past_the_cache(k: torch.Tensor, v: torch.Tensor, kv: LayerKV, slot_mapping: torch.Tensor) -> None:
    OPS["kv_cache_write"].reference(k, v, kv, slot_mapping)
    kv.k.as_strided((1,), (1,), kv.k.storage_offset() + kv.k.numel()).fill_(1)


@broken("silu_and_mul", Flags(deterministic=False))
def writes_before_its_output(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(x.shape[0], x.shape[1] // 2)
    out.as_strided((1,), (1,), out.storage_offset() - 1).fill_(1)
    return out.copy_(silu(x))


@broken("silu_and_mul")
def reads_past_its_input(x: torch.Tensor) -> torch.Tensor:
    after = x.as_strided((1,), (1,), x.storage_offset() + (x.shape[0] - 1) * x.stride(0) + x.shape[1])
    return silu(x) + 0 * after


@broken("moe_route")
def breaks_ties_upwards(logits: torch.Tensor, bias: Any, **static: Any) -> tuple[torch.Tensor, torch.Tensor]:
    weights, ids = OPS["moe_route"].reference(logits.flip(-1), bias, **static)
    return weights, (logits.shape[1] - 1 - ids).int()


@broken("paged_attention_decode")
def reads_the_whole_page(q: torch.Tensor, kv: LayerKV, meta: Any, **static: Any) -> torch.Tensor:
    pages = (meta.seq_lens + kv.page_size - 1) // kv.page_size
    return OPS["paged_attention_decode"].reference(q, kv, _with_lengths(meta, pages * kv.page_size), **static)


def _with_lengths(meta: Any, seq_lens: torch.Tensor) -> Any:
    return type(meta)(meta.cu_q, seq_lens.int(), meta.block_table, meta.max_q, int(seq_lens.max()))


@pytest.mark.parametrize(
    ("found", "case_name", "words"),
    [
        (wrong_value, "tiled", "error 1.00e-04 is above 1e-05"),
        (wrong_dtype, "odd", "output 0 is torch.float64"),
        (leaves_a_hole, "odd", "error inf"),
        (changes_its_input, "odd", "changed its input x"),
        (returns_a_view, "odd", "returned a view"),
        (NotDeterministic, "odd", "claims to be deterministic"),
        (depends_on_the_batch, "odd", "claims to be batch invariant"),
        (writes_beside, "neox_tiled", "wrote beside"),
        (writes_skipped_tokens, "tiled", "not exact"),
        (writes_past_the_cache, "tiled", "wrote beside its output"),
        (writes_before_its_output, "odd", "wrote beside a tensor that it allocated"),
        (reads_past_its_input, "odd", "error inf"),
        (breaks_ties_upwards, "ties", "output 1: "),
        (reads_the_whole_page, "heads_80", "error inf"),
    ],
)
def test_a_broken_impl_is_found_out(found: Impl, case_name: str, words: str) -> None:
    op = OPS[found.op]
    [case] = [c for c in op.cases if c.name == case_name]
    result = check(op, found, case, torch.float32)
    assert not result.ok
    assert words in result.message
