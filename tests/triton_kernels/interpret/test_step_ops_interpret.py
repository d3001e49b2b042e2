"""The Triton kernels of the small ops of a step, run by Triton's interpreter and compared with the references."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from triton_kernels.lab import conformance
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry
from triton_kernels.spec import Spec

SMALL_BLOCKS = (
    ("merge_attention", {"rows": 8}),
    ("head_linear", {"block_m": 16, "block_n": 16, "block_k": 16}),
    ("qk_norm_rotary_kv_write", {"block_heads": 1}),
    ("slot_mapping", {"block": 16}),
    ("verify_draft", {"block": 256}),
    ("lora_shrink", {"block_m": 16, "block_r": 16, "block_k": 16, "split": 48}),
    ("lora_expand", {"block_m": 16, "block_n": 16, "block_k": 16}),
    ("moe_align", {"block_p": 16}),
)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.mark.parametrize(("op", "options"), SMALL_BLOCKS, ids=str)
def test_three_and_more_blocks_on_every_axis(registry: Registry, op: str, options: dict[str, int]) -> None:
    [case] = [case for case in OPS[op].cases if "tiled" in case.tags]
    result = conformance.check(OPS[op], registry.impls(op)["triton"], case, torch.float32, interpret=True, options=options)
    assert result.ok and not result.skipped, result.message


def test_one_broken_request_leaves_the_others_their_tokens(registry: Registry) -> None:
    [case] = [case for case in OPS["verify_draft"].cases if case.name == "certain"]
    args: dict[str, Any] = case.make(torch.Generator().manual_seed(7), torch.float32, torch.device("cpu"))
    verify = registry.impls("verify_draft")["triton"].bind(Spec("cpu", "cpu", torch.float32, True))
    first, last = args["cu_rows"][1:3].tolist()
    tokens, accepted = verify(*args.values())
    args["logits"][first:last] = torch.nan
    broken_tokens, broken_accepted = verify(*args.values())
    assert broken_tokens[first:last].tolist() == [-1] * (last - first) and int(broken_accepted[1]) == 0
    others = torch.tensor([row for row in range(len(tokens)) if not first <= row < last])
    assert torch.equal(tokens[others], broken_tokens[others])
    alone = dict(args, cu_rows=args["cu_rows"][2:4] - last, row_to_seat=args["row_to_seat"][2:3])
    rows = slice(last, int(args["cu_rows"][3]))
    alone |= {name: args[name][rows] for name in ("logits", "draft_ids", "position")}
    got, got_accepted = verify(*alone.values())
    assert torch.equal(got, tokens[rows]) and int(got_accepted) == int(accepted[2])


def test_a_shrink_split_that_is_no_multiple_of_its_block_is_refused(registry: Registry) -> None:
    weights = {"lora_a": torch.zeros(1, 8, 16), "scale": torch.ones(1, 8)}
    with pytest.raises(ValueError, match="split=100 is no multiple of block_k=64"):
        registry.impls("lora_shrink")["triton"].bind(
            Spec("cpu", "cpu", torch.float32, True), weights, {}, {"split": 100, "block_k": 64}
        )
