"""The Triton kernels of mixtures of experts, run by Triton's interpreter and compared with the float64 references."""

from __future__ import annotations

import pytest
import torch

from triton_kernels.impls.moe_align.triton import group_by_expert
from triton_kernels.lab import conformance
from triton_kernels.op import Case
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry
from triton_kernels.spec import Spec

SMALL_TILES = {"block_m": 16, "block_n": 16, "block_k": 16}
CASES = [(op, case) for op in ("moe_route", "moe_experts") for case in OPS[op].cases if "bench" not in case.tags]
QUANTIZED = ("w4a16", "fp8")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.mark.parametrize(("op", "case"), CASES, ids=[f"{op}-{case.name}" for op, case in CASES])
def test_conforms(registry: Registry, op: str, case: Case) -> None:
    tiled, quantized = "tiled" in case.tags, case.name.startswith(QUANTIZED)
    options = {"block_m": 16} if quantized else SMALL_TILES if op == "moe_experts" and tiled else None
    dtypes = (torch.float16,) if quantized else (torch.float32, torch.float16, torch.bfloat16)
    for dtype in dtypes if tiled else (torch.float32,):
        check(registry, op, case.name, dtype, options)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("w4a16_group_32", {"block_m": 16, "block_n": 128}),
        ("w4a16_shard", {"block_n": 32}),
        ("w4a16_shard", {}),
        ("fp8_shard", {"block_m": 16, "block_n": 32}),
        ("fp8_shard", {"block_n": 128}),
        ("fp8_tiled", {"block_m": 16, "block_n": 128}),
        ("strided", {"block_m": 64, "block_n": 16, "block_k": 16}),
    ],
    ids=str,
)
def test_other_tiles(registry: Registry, case: str, options: dict[str, int]) -> None:
    """Half a tile of packed rows, tiles wider than a matrix or than a block of scales, those of the devices; and of floats with the
    tokens as the long side."""
    check(registry, "moe_experts", case, torch.float16, options)


@pytest.mark.parametrize("case", ["tiled", "empty_experts", "shard", "w4a16_group_32", "fp8_shard"])
def test_bits_do_not_depend_on_the_batch(registry: Registry, case: str) -> None:
    """Conformance compares them with those of a smaller batch."""
    assert registry.impls("moe_experts")["triton_invariant"].flags.batch_invariant
    check(registry, "moe_experts", case, torch.float16, None, "triton_invariant")


def check(registry: Registry, op: str, case: str, dtype: torch.dtype, options: dict[str, int] | None, name: str = "triton") -> None:
    [found] = [c for c in OPS[op].cases if c.name == case]
    result = conformance.check(OPS[op], registry.impls(op)[name], found, dtype, interpret=True, options=options)
    assert result.ok and not result.skipped, result.message


@pytest.mark.parametrize(("expert_start", "num_experts"), [(0, 7), (3, 2), (6, 5)])
def test_groups_are_a_stable_sort(expert_start: int, num_experts: int) -> None:
    """Against torch's stable sort, with several blocks of choices and several tiles of one expert."""
    ids = torch.randint(0, 7, (33, 3), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    ids[:20, 0] = 3
    groups = group_by_expert(ids, num_experts, expert_start, block_m=4, block_p=16)
    local = ids.flatten().long() - expert_start
    kept = ((local >= 0) & (local < num_experts)).nonzero().flatten()
    assert torch.equal(groups.pairs[: len(kept)].long(), kept[local[kept].sort(stable=True).indices])
    counts = torch.bincount(local[kept], minlength=num_experts)
    assert groups.starts.tolist() == [0, *counts.cumsum(0).tolist()]
    for expert in range(num_experts):
        assert int((groups.tile_expert == expert).sum()) == -(-int(counts[expert]) // 4)
    assert set(groups.tile_expert.tolist()) <= {-1, *range(num_experts)}


def test_a_token_of_nan_harms_no_other(registry: Registry) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(5, 12, generator=generator)
    route = registry.impls("moe_route")["triton"].bind(Spec("cpu", "cpu", torch.float32, True), {}, {"top_k": 3})
    weights, ids = route(logits)
    logits[2] = torch.nan
    poisoned_weights, poisoned_ids = route(logits)
    others = [0, 1, 3, 4]
    assert torch.equal(weights[others], poisoned_weights[others])
    assert torch.equal(ids[others], poisoned_ids[others])
    assert bool(((poisoned_ids >= 0) & (poisoned_ids < 12)).all())


def test_weights_may_lie_in_memory_by_columns(registry: Registry) -> None:
    generator = torch.Generator().manual_seed(3)
    x, weights = torch.randn(3, 24, generator=generator), torch.rand(3, 2, generator=generator)
    ids = torch.tensor([[0, 1], [1, 0], [1, 1]], dtype=torch.int32)
    w13, w2 = torch.randn(2, 24, 32, generator=generator).mT, torch.randn(2, 16, 24, generator=generator).mT
    spec = Spec("cpu", "cpu", torch.float32, True, {"weight_dtype": torch.float32})
    bound = registry.impls("moe_experts")["triton"].bind(spec, {"w13": w13, "w2": w2}, {}, {"block_m": 16})
    torch.testing.assert_close(bound(x, weights, ids), OPS["moe_experts"].reference(x, weights, ids, w13, w2), atol=1e-4, rtol=1e-4)


def test_experts_refuse_weights_of_another_dtype(registry: Registry) -> None:
    spec = Spec("cpu", "cpu", torch.float16, True, {"weight_dtype": torch.int8})
    assert "int8" in registry.impls("moe_experts")["triton"].unsupported(spec)[0]
