"""The Triton attention kernels, run by Triton's interpreter and compared with the float64 reference."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from triton_kernels.attention_meta import AttentionMeta, LayerKV
from triton_kernels.impls.paged_attention_decode._call import DecodeTiles
from triton_kernels.lab import calls, conformance
from triton_kernels.op import Case
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry

PREFILL, DECODE = "paged_attention_prefill", "paged_attention_decode"
TILES: Mapping[str, dict[str, int]] = {
    "pointer": {"block_m": 16, "block_n": 16},
    "tma": {"block_m": 16, "block_n": 32},
    "splitkv": {"chunk": 32, "block_n": 16},
    "balanced": {"chunk": 32, "block_n": 16, "num_programs": 5},
}
CASES = {(op, case.name): case for op in (PREFILL, DECODE) for case in OPS[op].cases if "bench" not in case.tags}
HALF = ("tiled", "chunked_tiled", "latent", "all_features", "e4m3", "e5m2_page64", "int8_all_features")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


def check(registry: Registry, op: str, name: str, case: Case, dtype: torch.dtype, **options: int) -> None:
    chosen = {**TILES[name], **options}
    result = conformance.check(OPS[op], registry.impls(op)[name], case, dtype, interpret=True, options=chosen)
    assert result.ok, f"{case.name}: {result.message}"
    assert not result.skipped, f"{case.name} was refused: {result.message}"


def run(registry: Registry, op: str, name: str, args: dict[str, Any]) -> list[torch.Tensor]:
    dtype = args["q"].dtype
    spec = calls.make_spec(OPS[op], args, dtype, torch.device("cpu"), interpret=True)
    bound = calls.bind(OPS[op], registry.impls(op)[name], spec, args, TILES[name])
    return calls.call(OPS[op], bound, args)


def arguments(op: str, case: str, dtype: torch.dtype = torch.float32, **more: Any) -> dict[str, Any]:
    chosen = CASES[op, case]
    return calls.make_args(OPS[op], replace(chosen, make=partial(chosen.make, **more)), dtype, torch.device("cpu"))


def equal_bits(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(("op", "case"), CASES, ids=["-".join(key) for key in CASES])
def test_conforms(registry: Registry, op: str, case: str) -> None:
    name = "pointer" if op == PREFILL else "splitkv"
    for dtype in (torch.float32, torch.float16) if case in HALF else (torch.float32,):
        check(registry, op, name, CASES[op, case], dtype)


@pytest.mark.parametrize(
    ("op", "name", "page_size"), [(PREFILL, "pointer", 32), (PREFILL, "pointer", 128), (DECODE, "splitkv", 128)]
)
def test_page_sizes(registry: Registry, op: str, name: str, page_size: int) -> None:
    case = CASES[op, "all_features"]
    check(registry, op, name, replace(case, make=partial(case.make, page_size=page_size)), torch.float32)


@pytest.mark.parametrize("case", ["chunked_tiled", "padding_rows", "all_features", "value_dim", "heads_256", "e4m3"])
def test_tma_conforms(registry: Registry, case: str) -> None:
    chosen = CASES[PREFILL, case]
    page_size = 128 if case == "chunked_tiled" else 64
    check(registry, PREFILL, "tma", replace(chosen, make=partial(chosen.make, page_size=page_size)), torch.float16)


def test_tma_reads_the_cache_of_the_call_and_lets_go_of_it(registry: Registry) -> None:
    """Layers of equal shape share a kernel, and its tensor descriptors."""
    args = arguments(PREFILL, "lse", page_size=64)
    spec = calls.make_spec(OPS[PREFILL], args, torch.float32, torch.device("cpu"), interpret=True)
    bound = calls.bind(OPS[PREFILL], registry.impls(PREFILL)["tma"], spec, args, TILES["tma"])
    first = calls.call(OPS[PREFILL], bound, args)
    other = args | {"kv": LayerKV(-args["kv"].k, args["kv"].v * 2)}
    caches = [weakref.ref(cache) for cache in other["kv"][:2]]
    second = calls.call(OPS[PREFILL], bound, other)
    assert not equal_bits(first, second)
    assert equal_bits(second, run(registry, PREFILL, "tma", other))
    assert equal_bits(calls.call(OPS[PREFILL], bound, args), first)
    del other
    gc.collect()
    assert not any(cache() is not None for cache in caches)


@pytest.mark.parametrize("case", ["uneven", "ragged_queries", "padding_rows", "window", "heads_128"])
def test_balanced_has_the_bits_of_splitkv(registry: Registry, case: str) -> None:
    args = arguments(DECODE, case)
    expected = run(registry, DECODE, "splitkv", copy.deepcopy(args))
    assert equal_bits(run(registry, DECODE, "balanced", args), expected)


@pytest.mark.parametrize("case", ["tiled", "all_features"])
def test_balanced_conforms(registry: Registry, case: str) -> None:
    check(registry, DECODE, "balanced", CASES[DECODE, case], torch.float32)


@pytest.mark.parametrize("name", ["splitkv", "balanced"])
def test_host_bounds_do_not_change_bits(registry: Registry, name: str) -> None:
    """A captured graph knows larger bounds than an eager step, and pads the batch. With five queries a program has two blocks of
    rows."""
    args = arguments(DECODE, "lse")
    tight = run(registry, DECODE, name, copy.deepcopy(args))
    meta: AttentionMeta = args["meta"]
    args["meta"] = replace(meta, max_q=5, max_seq_len=190, workspace={})
    args["q"] = torch.cat([args["q"], args["q"][:2]])
    out, lse = run(registry, DECODE, name, args)
    num_tokens = tight[0].shape[0]
    assert equal_bits([out[:num_tokens], lse[:num_tokens]], tight)
    assert not out[num_tokens:].any()
    assert bool((lse[num_tokens:] == -torch.inf).all())


@pytest.mark.parametrize("name", ["pointer", "tma"])
def test_tokens_past_the_last_request_are_zero(registry: Registry, name: str) -> None:
    args = arguments(PREFILL, "lse", page_size=64)
    expected = run(registry, PREFILL, name, copy.deepcopy(args))
    args["q"] = torch.cat([args["q"], args["q"][:20]])
    out, lse = run(registry, PREFILL, name, args)
    num_tokens = expected[0].shape[0]
    assert equal_bits([out[:num_tokens], lse[:num_tokens]], expected)
    assert not out[num_tokens:].any()
    assert bool((lse[num_tokens:] == -torch.inf).all())


@pytest.mark.parametrize(("op", "name"), [(PREFILL, "pointer"), (PREFILL, "tma"), (DECODE, "splitkv")])
def test_pages_before_the_window_are_not_used(registry: Registry, op: str, name: str) -> None:
    """They have been freed: their entries are the null page, which is full of NaN."""
    page_size = 64 if name == "tma" else 16
    args = arguments(op, "window", page_size=page_size)
    args["kv"].k[0] = args["kv"].v[0] = torch.nan
    meta: AttentionMeta = args["meta"]
    expected = run(registry, op, name, copy.deepcopy(args))
    lengths, queries = meta.seq_lens, meta.cu_q.diff()
    for r, first in enumerate((lengths - queries - args["window"] + 1).clamp(min=0).tolist()):
        meta.block_table[r, : first // page_size] = 0
    assert equal_bits(run(registry, op, name, args), expected)


@pytest.mark.parametrize("name", ["splitkv", "balanced"])
def test_one_kv_head_has_more_than_64_splits(registry: Registry, name: str) -> None:
    """65 chunks of 16 keys; the scratch shows that each is a split."""
    chosen = CASES[DECODE, "one_token"]
    case = replace(chosen, make=partial(chosen.make, seq_lens=(1030,)))
    check(registry, DECODE, name, case, torch.float32, chunk=16)
    args = calls.make_args(OPS[DECODE], case, torch.float32, torch.device("cpu"))
    spec = calls.make_spec(OPS[DECODE], args, torch.float32, torch.device("cpu"), interpret=True)
    tiles = DecodeTiles.choose(spec, chunk=16, block_n=16, num_warps=0, num_stages=0)
    assert tiles.splits(args["meta"], None) == 65
    assert DecodeTiles.choose(spec.with_facts(num_kv_heads=8, num_heads=8), 16, 16, 0, 0).splits(args["meta"], None) == 64


def test_work_list_is_rewritten_each_step(registry: Registry) -> None:
    args = arguments(DECODE, "uneven")
    spec = calls.make_spec(OPS[DECODE], args, torch.float32, torch.device("cpu"), interpret=True)
    bound = calls.bind(OPS[DECODE], registry.impls(DECODE)["balanced"], spec, args, TILES["balanced"])
    calls.call(OPS[DECODE], bound, args)
    scratch = {key: tensor.data_ptr() for key, tensor in args["meta"].workspace.items()}
    args["meta"].seq_lens -= 1
    second = calls.call(OPS[DECODE], bound, args)
    assert {key: tensor.data_ptr() for key, tensor in args["meta"].workspace.items()} == scratch
    fresh = args | {"meta": replace(args["meta"], workspace={})}
    assert equal_bits(second, run(registry, DECODE, "splitkv", fresh))


@pytest.mark.parametrize("name", ["splitkv", "balanced"])
def test_scratch_grows_with_the_batch_and_stays(registry: Registry, name: str) -> None:
    """The steps of an engine share one workspace: a batch of one request, then all, then one again."""
    args = arguments(DECODE, "uneven")
    one, _ = calls.take_rows(OPS[DECODE], args, 0, 1)
    whole = run(registry, DECODE, name, copy.deepcopy(args))
    alone = run(registry, DECODE, name, copy.deepcopy(one))
    workspace = one["meta"].workspace
    args["meta"].workspace = workspace
    assert equal_bits(run(registry, DECODE, name, one), alone)
    small = {key: tensor.numel() for key, tensor in workspace.items()}
    assert equal_bits(run(registry, DECODE, name, args), whole)
    grown = {key: tensor.data_ptr() for key, tensor in workspace.items()}
    assert any(workspace[key].numel() > small[key] for key in small)
    assert equal_bits(run(registry, DECODE, name, one), alone)
    assert {key: tensor.data_ptr() for key, tensor in workspace.items()} == grown


def test_refusals_say_why(registry: Registry) -> None:
    args = arguments(PREFILL, "whole", torch.float16)
    spec = calls.make_spec(OPS[PREFILL], args, torch.float16, torch.device("cpu"), interpret=True)
    tma = registry.impls(PREFILL)["tma"]
    assert "pages of 64" in tma.unsupported(spec)[0]
    hopper = replace(spec.with_facts(page_size=64), device="cuda", arch="sm_90", interpret=False)
    assert not tma.unsupported(hopper)
    assert "TMA" in tma.unsupported(replace(hopper, arch="sm_80"))[0]
    pointer = registry.impls(PREFILL)["pointer"]
    assert "float8_e4m3fn" in pointer.unsupported(replace(hopper, arch="sm_80").with_facts(kv_dtype=torch.float8_e4m3fn))[0]
    latent = hopper.with_facts(head_dim=576, value_dim=512, aliased=True)
    assert not pointer.unsupported(latent) and "where they lie in them" in tma.unsupported(latent)[0]
    assert (
        "activations of 16 bits" in pointer.unsupported(replace(latent, dtype=torch.float32).with_facts(kv_dtype=torch.float32))[0]
    )
    assert "head_dim 576 is above 256" in pointer.unsupported(latent.with_facts(aliased=False))[0]
    assert "the activations' dtype" in pointer.unsupported(latent.with_facts(kv_dtype=torch.int8))[0]
    with pytest.raises(ValueError, match="multiple of block_n"):
        registry.impls(DECODE)["splitkv"].bind(spec, {}, {"scale": 1.0}, {"chunk": 24, "block_n": 16})
