"""The Triton kernels of the ops with states, run by Triton's interpreter: chunks, and what they may not touch."""

from __future__ import annotations

import pytest
import torch

from triton_kernels.lab import conformance
from triton_kernels.lab.calls import bind, make_args, make_spec
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry

from ..chunked_states import whole_and_in_chunks

REGISTRY = Registry.load()
CPU = torch.device("cpu")


SMALL_CHUNKS = {
    "gated_delta_rule": {"chunk": 16, "block_v": 16},
    "ssd_scan": {"chunk": 16, "block_p": 16},
    "selective_scan": {"block_c": 16},
}


QUICK = {"one_token", "prompts", "half_state", "float16_state", "bfloat16_state", "nobody", "no_tokens"}


def check(op_name: str, dtype: torch.dtype, names: set[str]) -> None:
    op, impl = OPS[op_name], REGISTRY.impls(op_name)["triton"]
    for case in (case for case in op.cases if case.name in names):
        result = conformance.check(op, impl, case, dtype, interpret=True, options=SMALL_CHUNKS[op_name])
        assert result.ok and not result.skipped, f"{case.name}: {result.message}"


@pytest.mark.parametrize("op_name", SMALL_CHUNKS)
def test_prompts_and_slots_conform_in_small_chunks(op_name: str) -> None:
    check(op_name, torch.float32, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("op_name", SMALL_CHUNKS)
def test_every_case_conforms_in_small_chunks(op_name: str, dtype: torch.dtype) -> None:
    check(op_name, dtype, {case.name for case in OPS[op_name].cases if "bench" not in case.tags})


@pytest.mark.parametrize(
    ("op_name", "options"), [("causal_conv1d", {"block_t": 16, "block_c": 64}), ("selective_scan", {"block_c": 16})]
)
def test_chunks_have_the_bits_of_the_whole(op_name: str, options: dict[str, int]) -> None:
    """Of kernels that go from token to token."""
    op = OPS[op_name]
    [case] = [case for case in op.cases if case.name == "chunks"]
    args = make_args(op, case, torch.float32, CPU)
    bound = bind(op, REGISTRY.impls(op_name)["triton"], make_spec(op, args, torch.float32, CPU, interpret=True), args, options)
    for whole, pieces in zip(*whole_and_in_chunks(op, bound, "chunks", seed=0), strict=True):
        assert torch.equal(whole.nan_to_num(7.0), pieces.nan_to_num(7.0))
