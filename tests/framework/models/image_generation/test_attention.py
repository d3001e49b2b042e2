"""Attention over dense keys as pages, against torch's in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.models.image_generation.attention import KernelAttention
from framework.models.layers.paged_attention import AttentionKernels, AttentionShape
from framework.plan import BoundKernel, KernelPlan

IMPLS = ["reference", "torch", "auto"]
CPU = torch.device("cpu")


class Layer(torch.nn.Module):
    """As diffusers' attention layers have their projections."""

    def __init__(self, width: int, seen_width: int, heads: int, dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (torch.nn.Linear(n, heads * dim) for n in (width, seen_width, seen_width))
        self.to_out = torch.nn.ModuleList([torch.nn.Linear(heads * dim, width), torch.nn.Dropout(0.5)])

    def expected(self, x: torch.Tensor, seen: torch.Tensor, scale: float) -> torch.Tensor:
        layer = self.double()
        q, k, v = (
            to(given.double()).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for to, given in ((layer.to_q, x), (layer.to_k, seen), (layer.to_v, seen))
        )
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
        return layer.to_out[0](out.transpose(1, 2).flatten(2))


def bound(impl: str, heads: int, dim: int, page_size: int, scale: float) -> BoundKernel:
    plan = KernelPlan({"paged_attention_prefill": impl}, (), CPU, torch.float32)
    shape = AttentionShape(heads, heads, dim, dim, scale, None, None, causal=False)
    return AttentionKernels(plan, page_size, "float32").of_prompts(shape, causal=False, return_lse=False)


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_equal_to_torch_in_float64(impl: str, data: st.DataObject) -> None:
    """More queries than keys, and fewer; lengths that fill pages, and others; widths of heads as they come."""
    rows, queries, keys, heads = (data.draw(st.integers(1, most)) for most in (3, 70, 100, 3))
    dim, page_size = data.draw(st.sampled_from([8, 40, 160])), data.draw(st.sampled_from([16, 64]))
    itself = data.draw(st.booleans())
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x, seen = torch.randn(rows, queries, 24), torch.randn(rows, keys, 24)
    layer = Layer(24, 24, heads, dim).eval()
    attention = KernelAttention(bound(impl, heads, dim, page_size, 0.3), page_size, CPU)
    for _ in range(2):
        with torch.inference_mode():
            found = attention(layer, x) if itself else attention(layer, x, seen)
    expected = layer.expected(x, x if itself else seen, 0.3)
    assert (found - expected).abs().max() < 1e-5 * max(1, expected.abs().max())


def test_whole_pages_are_not_copied() -> None:
    seen: list[Any] = []

    class Recorded:
        def begin_step(self, meta: Any) -> None:
            seen.append(meta)

        def __call__(self, q: torch.Tensor, kv: Any, meta: Any) -> torch.Tensor:
            seen.append((q.untyped_storage().data_ptr(), *(x.untyped_storage().data_ptr() for x in kv[:2]), meta))
            return q

    layer, attention = Layer(8, 8, 2, 4), KernelAttention(Recorded(), 16, CPU)  # type: ignore[arg-type]
    projections = []
    for to in (layer.to_q, layer.to_k, layer.to_v):
        to.register_forward_hook(lambda _, __, out: projections.append(out.untyped_storage().data_ptr()))
    for _ in range(3):
        attention(layer, torch.randn(2, 32, 8))
    metas = [call for call in seen if not isinstance(call, tuple)]
    assert len(metas) == 1 and all(call[3] is metas[0] for call in seen if isinstance(call, tuple)), "planned once"
    assert [place for call in seen if isinstance(call, tuple) for place in call[:3]] == projections
    attention.forget()
    attention(layer, torch.randn(2, 32, 8))
    assert len([call for call in seen if not isinstance(call, tuple)]) == 2


def test_masks_are_refused() -> None:
    attention = KernelAttention(bound("torch", 2, 8, 16, 1.0), 16, CPU)
    with pytest.raises(ValueError, match="masks keys"):
        attention(Layer(8, 8, 2, 8), torch.randn(1, 4, 8), attention_mask=torch.zeros(1, 1, 4))
