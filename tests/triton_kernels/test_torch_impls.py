"""What the conformance tests do not see of the CPU impls: several buckets, several layers and steps, memory, sizes."""

from __future__ import annotations

import copy
import gc
import weakref
from functools import partial
from typing import Any

import pytest
import torch

from triton_kernels.attention_meta import AttentionMeta
from triton_kernels.cases.attention import _make
from triton_kernels.lab.conformance import relative_error
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry
from triton_kernels.spec import Spec

REGISTRY = Registry.load()
DECODE, PREFILL = REGISTRY.impls("paged_attention_decode"), REGISTRY.impls("paged_attention_prefill")
SPEC = Spec("cpu", "cpu", torch.float32)
make_attention = partial(_make, dtype=torch.float32, device=torch.device("cpu"), num_heads=4, num_kv_heads=2, head_dim=32)


def call_attention(bound: Any, args: dict[str, Any]) -> torch.Tensor:
    out: torch.Tensor = bound(args["q"], args["kv"], args["meta"])
    return out


def test_decode_of_many_requests_falls_into_several_buckets() -> None:
    lengths = tuple(torch.randint(1, 400, (24,), generator=torch.Generator().manual_seed(1)).tolist())
    args = make_attention(torch.Generator().manual_seed(2), q_lens=(1,) * 24, seq_lens=lengths)
    bound: Any = DECODE["torch"].bind(SPEC, {}, {"scale": args["scale"]})
    bound.begin_step(args["meta"])
    got = call_attention(bound, args)
    assert len(args["meta"].workspace[bound.key].buckets) > 2
    assert relative_error(got, OPS["paged_attention_decode"].reference(**args)) < 1e-6


@pytest.mark.parametrize("found", [DECODE["torch"], PREFILL["torch"]], ids=["decode", "prefill"])
def test_the_layout_of_a_step_is_shared_by_layers_and_forgotten_at_the_next_step(found: Any) -> None:
    args = make_attention(torch.Generator().manual_seed(2), q_lens=(1, 1), seq_lens=(20, 31))
    meta = args["meta"]
    layers = [found.bind(SPEC, {}, {"scale": 0.2, "window": window}) for window in (None, 7)]
    for _ in range(2):
        layers[0].begin_step(meta)
        for layer, window in zip(layers, (None, 7)):
            expected = OPS[found.op].reference(args["q"], args["kv"], meta, 0.2, window=window)
            assert relative_error(call_attention(layer, args), expected) < 1e-6
        meta.seq_lens -= 3  # the same objects carry the next step


def test_native_attention_gives_a_token_the_same_bits_whole_in_chunks_and_alone() -> None:
    """So that chunked prefill, and recomputing what was decoded, change no token."""
    if reasons := PREFILL["native"].unsupported(SPEC):
        pytest.skip(reasons[0])
    args = make_attention(torch.Generator().manual_seed(3), q_lens=(301,), seq_lens=(301,))
    bound, meta = PREFILL["native"].bind(SPEC, {}, {"scale": 0.2}), args["meta"]
    whole = call_attention(bound, args)
    for first, last in ((0, 130), (130, 137), (300, 301)):
        part = AttentionMeta(
            torch.tensor([0, last - first]).int(), torch.tensor([last]).int(), meta.block_table, last - first, last
        )
        chunk = bound(args["q"][first:last], args["kv"], part)
        assert torch.equal(chunk, whole[first:last])


@pytest.mark.parametrize(("window", "length"), [(1, 128), (5, 200), (129, 201)])
def test_native_attention_reads_nothing_that_left_the_window(window: int, length: int) -> None:
    """Those pages are the null block's or another request's, of which a NaN must not get in."""
    if reasons := PREFILL["native"].unsupported(SPEC):
        pytest.skip(reasons[0])
    args = make_attention(torch.Generator().manual_seed(3), q_lens=(1,), seq_lens=(length,))
    bound = PREFILL["native"].bind(SPEC, {}, {"scale": 0.2, "window": window})
    (k, v, *_), table = args["kv"], args["meta"].block_table
    expected = call_attention(bound, args)
    k[0], v[0] = float("nan"), float("nan")
    table[0, : (length - window) // k.shape[1]] = 0
    assert torch.equal(call_attention(bound, args), expected)


def test_the_packed_linear_keeps_no_second_copy_of_its_weight() -> None:
    weight = torch.randn(64, 48)
    bound = REGISTRY.impls("linear")["onednn"].bind(SPEC, {"weight": weight}, {"bias": None})
    alive, x, expected = weakref.ref(weight), torch.randn(3, 48), weight.clone()
    del weight
    gc.collect()
    assert alive() is None
    assert relative_error(bound(x), x.double() @ expected.double().T) < 1e-6


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(("op", "dtype"), [("rms_norm", torch.bfloat16), ("layer_norm", torch.float32)])
def test_norms_of_a_row_do_not_depend_on_the_batch_at_model_sizes(op: str, dtype: torch.dtype, num_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for hidden_size in (768, 4097):
            weights = {"weight": torch.randn(hidden_size).to(dtype)}
            params = {"eps": 1e-5, "bias": None} if op == "layer_norm" else {"eps": 1e-5}
            bound = REGISTRY.impls(op)["torch"].bind(SPEC, weights, params)
            x = torch.randn(257, hidden_size).to(dtype)
            whole = bound(x, None)
            for rows in (slice(0, 1), slice(200, 201), slice(3, 40)):
                assert torch.equal(bound(x[rows], None), whole[rows])
    finally:
        torch.set_num_threads(before)


def test_rotary_of_separate_and_of_adjacent_heads_are_the_same() -> None:
    [case] = [c for c in OPS["rotary"].cases if c.name == "neox_tiled"]
    args = case.make(torch.Generator().manual_seed(0), torch.float32, torch.device("cpu"))
    bound = REGISTRY.impls("rotary")["torch"].bind(SPEC, {"cos_sin": args["cos_sin"]}, {"style": "neox"})
    adjacent, apart = copy.deepcopy(args), {**args, "q": args["q"].clone(), "k": args["k"].clone()}
    for call in (adjacent, apart):
        bound(call["q"], call["k"], call["positions"])
    assert torch.equal(adjacent["q"], apart["q"]) and torch.equal(adjacent["k"], apart["k"])
