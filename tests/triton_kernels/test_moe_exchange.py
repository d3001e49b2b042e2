"""Tokens to their experts and back: threads against all experts on one rank; DeepEP's adapter against a stand-in for DeepEP."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from triton_kernels.cases.moe_exchange import experts
from triton_kernels.lab.conformance import check
from triton_kernels.ops import OPS
from triton_kernels.resolve import Choices, NoKernelError, resolve
from triton_kernels.spec import Spec

from ..thread_ranks import run_ranks
from . import stand_ins
from .ranks import IMPLS, REGISTRY

OP, H100 = OPS["moe_exchange"], Spec("cuda", "sm_90", torch.bfloat16, facts={"backend": "nccl", "ranks": 8})
SIZE, ROWS, WIDTH, SLOTS, TOP_K = 3, 5, 16, 6, 2


def own_experts(matrices: torch.Tensor, rank: int) -> Any:
    """Those of one rank: the others' rows are zeros."""
    size = len(matrices) // SIZE
    own = torch.zeros_like(matrices)
    own[rank * size : (rank + 1) * size] = matrices[rank * size : (rank + 1) * size]
    return partial(experts, matrices=own)


@pytest.mark.parametrize("name", ["reference", "torch"])
@pytest.mark.parametrize("rows", [ROWS, 0])
def test_every_row_gets_the_sum_of_its_experts(name: str, rows: int) -> None:
    generator = torch.Generator().manual_seed(1)
    matrices = torch.randn(SLOTS, WIDTH, generator=generator)
    x = torch.randn(SIZE, rows, WIDTH, generator=generator)
    weights = torch.rand(SIZE, rows, TOP_K, generator=generator)
    ids = torch.randint(-1, SLOTS, (SIZE, rows, TOP_K), generator=generator, dtype=torch.int32)

    def call(group: Any) -> torch.Tensor:
        rank = group.rank
        params = {"experts": own_experts(matrices, rank), "group": group, "num_slots": SLOTS, "out_dtype": torch.float32}
        bound = IMPLS["moe_exchange"][name].bind(Spec("cpu", "cpu", torch.float32), {}, params)
        return bound(x[rank], weights[rank], ids[rank])

    for rank, found in enumerate(run_ranks(SIZE, call)):
        torch.testing.assert_close(found, experts(x[rank], weights[rank], ids[rank], matrices))


class Config:
    def get_nvl_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        return hidden_bytes * num_ranks

    def get_rdma_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        return 0


class Buffer:
    """Of one rank: a token that chose no expert does not come."""

    get_dispatch_config = get_combine_config = staticmethod(lambda num_ranks: Config())

    def __init__(self, group: Any, num_nvl_bytes: int, num_rdma_bytes: int) -> None:
        stand_ins.require(num_nvl_bytes > 0 and num_rdma_bytes == 0, "buffers of the sizes that were hinted at")

    def get_dispatch_layout(self, topk_idx: torch.Tensor, num_experts: int) -> tuple[Any, ...]:
        stand_ins.require(topk_idx.dtype == torch.int64 and topk_idx.is_contiguous(), "int64 ids")
        sent = (topk_idx >= 0).any(1)
        counts = torch.bincount(topk_idx[topk_idx >= 0], minlength=num_experts).int()
        return sent.sum().int()[None], None, counts, sent[:, None], None

    def dispatch(self, x: torch.Tensor, *, topk_idx: torch.Tensor, topk_weights: torch.Tensor, **layout: Any) -> tuple[Any, ...]:
        stand_ins.require(x.dtype == torch.bfloat16 and x.is_contiguous() and x.shape[1] * 2 % 16 == 0, "rows of 16 bytes")
        stand_ins.require(topk_weights.dtype == torch.float32, "weights of float32")
        (sent,) = layout["is_token_in_rank"].nonzero()[:, :1].T
        stand_ins.require(len(sent) == int(layout["num_tokens_per_rank"]), "the layout is of these ids")
        counts = layout["num_tokens_per_expert"].tolist()
        return x[sent], topk_idx[sent], topk_weights[sent], counts, (sent, len(x)), None

    def combine(self, x: torch.Tensor, handle: tuple[torch.Tensor, int]) -> tuple[Any, ...]:
        sent, count = handle
        stand_ins.require(x.dtype == torch.bfloat16 and len(x) == len(sent), "what came is sent back")
        return x.new_zeros(count, x.shape[1]).index_copy_(0, sent, x), None, None


def test_deep_ep_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.install(monkeypatch, stand_ins.module("deep_ep", Buffer))
    adapter = REGISTRY.impls("moe_exchange")["deep_ep"]
    assert not adapter.unsupported(H100)
    target: Any = adapter.target
    monkeypatch.setattr(target, "unsupported", staticmethod(lambda spec: []))  # a CPU is no sm_90
    for case in OP.cases:
        if "bench" not in case.tags:
            result = check(OP, replace(adapter, devices=("cpu",)), case, torch.bfloat16)
            assert result.ok and not result.skipped, f"{case.name}: {result.message}"


def test_why_deep_ep_cannot_serve_is_said() -> None:
    adapter = REGISTRY.impls("moe_exchange")["deep_ep"]
    assert adapter.unsupported(H100) == ["needs the package deep_ep"]
    with pytest.raises(NoKernelError, match="needs the package deep_ep"):
        resolve(REGISTRY, "moe_exchange", H100, "deep_ep")
    target: Any = adapter.target
    for spec, reason in (
        (replace(H100, dtype=torch.float16), "sends bfloat16, not torch.float16"),
        (replace(H100, arch="gfx942"), "has CUDA kernels for sm_80 or later, not for gfx942"),
        (H100.with_facts(backend="gloo"), "serves groups of nccl and solo, this one is of gloo"),
    ):
        assert target.unsupported(spec) == [reason]
    assert Choices(REGISTRY, {"moe_exchange": "deep_ep"}).named
