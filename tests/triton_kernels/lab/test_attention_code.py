"""What the compiled attention kernels promise on sm_90: tiles in flight beyond the one that is waited for, programs that fit the
grid, and keys that are read once for all queries of a draft without changing their rows' bits."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch

pytest.importorskip("triton")

from triton_kernels.devices import by_arch
from triton_kernels.impls.paged_attention_decode._call import DecodeTiles
from triton_kernels.lab import aot, calls
from triton_kernels.registry import Registry

DECODE, PREFILL = "paged_attention_decode", "paged_attention_prefill"
ONE_QUERY, EIGHT_QUERIES = "64 requests, page 64", "8 requests, 8 queries"


@cache
def compiled(op: str, impl: str, case_name: str) -> tuple[aot.Launch, aot.Artifact]:
    """The attention kernel of one serving case."""
    registry = Registry.load()
    [case] = [case for case in aot.serving_cases(op) if case.name == case_name]
    spec, args = aot._spec_and_args(registry.ops[op], case, "sm_90", torch.bfloat16)
    with aot.compile_only("sm_90") as launches:
        bound = calls.bind(registry.ops[op], registry.impls(op)[impl], spec, args)
        calls.call(registry.ops[op], bound, args)
    [launch] = [launch for launch in launches if "C" in launch.keywords]
    return launch, aot._artifact(aot.Compilation(op, impl, case_name, "bfloat16", "sm_90"), launch)


def ttgir(launch: aot.Launch) -> str:
    return str(launch.kernel.asm["ttgir"])


@pytest.mark.slow
def test_a_tile_of_decode_loads_while_another_is_multiplied() -> None:
    text = ttgir(compiled(DECODE, "splitkv", ONE_QUERY)[0])
    assert len(re.findall(r"local_alloc : \(\) -> !ttg.memdesc<2x64x128xbf16", text)) == 4, "K and V, with and without masks"
    assert max(int(num) for num in re.findall(r"async_wait.*num = (\d+)", text)) == 2


@pytest.mark.slow
def test_three_tiles_of_tma_prefill_are_in_flight() -> None:
    text = ttgir(compiled(PREFILL, "tma", "2048 tokens, page 64")[0])
    assert len(re.findall(r"local_alloc : \(\) -> !ttg.memdesc<3x1x64x1x128xbf16", text)) >= 2, "K and V of the loop without masks"


@pytest.mark.slow
def test_rows_of_a_draft_share_keys_and_keep_their_bits() -> None:
    """A program has all 32 rows, reads a tile once, and multiplies 16 at a time, in the layout of a single query."""
    (one, one_code), (eight, eight_code) = (compiled(DECODE, "splitkv", case) for case in (ONE_QUERY, EIGHT_QUERIES))
    assert one.keywords["CUTS"].ROWS == 16 and eight.keywords["CUTS"].ROWS == 32
    assert eight_code.loop_load_bytes == one_code.loop_load_bytes
    assert eight_code.matrix_in_loop["HMMA"] == 2 * one_code.matrix_in_loop["HMMA"]
    layouts = [set(re.findall(r"#ttg.nvidia_mma<\{.*?\}>", ttgir(launch))) for launch in (one, eight)]
    assert layouts[0] == layouts[1] and len(layouts[0]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", [ONE_QUERY, EIGHT_QUERIES, "64 requests, e4m3, page 64", "64 requests, head 256"])
def test_the_grid_is_what_the_device_holds(case: str) -> None:
    [serving] = [serving for serving in aot.serving_cases(DECODE) if serving.name == case]
    op = Registry.load().ops[DECODE]
    spec, args = aot._spec_and_args(op, serving, "sm_90", torch.bfloat16)
    tiles = DecodeTiles.choose(spec, chunk=256, block_n=0, num_warps=0, num_stages=0)
    assert tiles.num_programs(args["meta"]) == by_arch("sm_90").num_sms * compiled(DECODE, "balanced", case)[1].programs_per_sm
