"""Adapters of kernel libraries: what they ask of the library, checked on a CPU with stand-ins for it, and what they refuse."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from triton_kernels.attention_meta import AttentionMeta
from triton_kernels.impl import NEVER_MET_ITS_LIBRARY, NEVER_RAN_ACROSS_DEVICES, Impl
from triton_kernels.impls._shared.flex import FlexAttention, _compiled
from triton_kernels.impls._shared.padded import Bucket
from triton_kernels.lab.calls import bind, call, make_args, make_spec
from triton_kernels.lab.conformance import check
from triton_kernels.op import Case
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry
from triton_kernels.resolve import resolve
from triton_kernels.spec import Spec

from . import stand_in_steps, stand_ins
from .test_sampling_ops import arguments, kept_tokens

REGISTRY = Registry.load()
PREFILL, DECODE = "paged_attention_prefill", "paged_attention_decode"
HOPPER = Spec("cuda", "sm_90", torch.bfloat16, facts={"head_dim": 128, "value_dim": 128, "page_size": 256, "num_kv_heads": 8})
FEATURES = {"sinks", "rounded_alibi", "position_bias", "all_features", "value_dim", "aliased", "latent"}
# The cases that an adapter refuses (by how their names start), besides quantized ones; all others it must compute.
REFUSED: dict[tuple[str, str], set[str]] = {
    **{(op, "flash_attn"): FEATURES for op in (PREFILL, DECODE)},
    **{(op, "flash_attn_3"): {*FEATURES, "alibi"} for op in (PREFILL, DECODE)},
    **{(op, "flashinfer"): {*FEATURES, "alibi", "not_causal_window", "heads_80", "heads_96"} for op in (PREFILL, DECODE)},
    ("rms_norm", "flashinfer"): set(),
    ("silu_and_mul", "flashinfer"): set(),
    ("gelu_and_mul", "flashinfer"): set(),
    ("rotary", "flashinfer"): {"neox_tiled", "neox_partial", "gptj_partial_tiled", "empty"},
    ("sample", "flashinfer"): set(),
    ("gemm_fp8", "flashinfer"): {"odd", "tiled", "static", "long_k", "blocks", "long_blocks", "e5m2", "empty"},
}
# Quantized caches and outputs: none of these libraries has the op's rules for them.
QUANTIZED = ("does not take out_dtype", "a scale per token")
ADAPTERS = pytest.mark.parametrize(("op", "name"), REFUSED, ids=[f"{op}-{name}" for op, name in REFUSED])


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = stand_ins.BatchPrefillWithPagedKVCacheWrapper, stand_ins.BatchDecodeWithPagedKVCacheWrapper
    flashinfer = stand_ins.module("flashinfer", *attention, *stand_in_steps.STEPS)
    stand_ins.install(monkeypatch, stand_ins.flash_attn(), stand_ins.flash_attn_interface(), flashinfer)


COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "all_reduce_add_rms_norm")


def test_adapters_say_that_they_never_met_their_library() -> None:
    """Whoever runs one against its library takes that out, and names it here."""
    adapters = [impl for impl in REGISTRY if set(impl.requires) - {"triton"}]
    assert {f"{impl.op}-{impl.name}" for impl in adapters} >= {f"{op}-{name}" for op, name in REFUSED}
    assert {impl.unproven for impl in adapters} == {NEVER_MET_ITS_LIBRARY}
    across = {impl.unproven for impl in REGISTRY if impl.unproven and impl not in adapters and "cuda" in impl.devices}
    assert across == {NEVER_RAN_ACROSS_DEVICES}
    assert all(impl.op in COLLECTIVES for impl in REGISTRY if impl.unproven and impl not in adapters)


def on_cpu(op: str, name: str) -> Impl:
    """An adapter that its stand-in lets run here, with a small workspace."""
    found = REGISTRY.impls(op)[name]
    small = {"workspace_mib": 1} if "workspace_mib" in found.options else {}
    return replace(found, devices=("cpu",), options={**found.options, **small})


def cases(op: str, name: str) -> list[Case]:
    found = [case for case in OPS[op].cases if "bench" not in case.tags]
    if name == "flash_attn":  # its pages are larger than those of the cases
        found = [replace(case, make=partial(case.make, page_size=256)) for case in found]
    return found


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@ADAPTERS
def test_adapter_keeps_the_contract(libraries: None, op: str, name: str, dtype: torch.dtype) -> None:
    results = [check(OPS[op], on_cpu(op, name), case, dtype) for case in cases(op, name)]
    assert not [f"{result.case}: {result.message}" for result in results if not result.ok]
    refused = {result.case for result in results if result.skipped and not any(text in result.message for text in QUANTIZED)}
    known = REFUSED[op, name]
    assert not {case for case in refused if not case.startswith(tuple(known))}
    assert all(any(case.startswith(start) for case in refused) for start in known), refused
    assert not all(result.skipped for result in results)


@pytest.mark.parametrize("name", ["flash_attn", "flash_attn_3", "flashinfer"])
@pytest.mark.parametrize("op", [PREFILL, DECODE])
@pytest.mark.parametrize("base", ["window", "padding_rows"])
def test_attention_adapter_serves_other_features(libraries: None, op: str, name: str, base: str) -> None:
    case = next(case for case in cases(op, name) if case.name == base)
    for static in ({}, {"window": 1}, {"window": 1000}, {"causal": False, "window": 3}, {"softcap": 1.5, "window": 5}):

        def make(*context: Any, static: Mapping[str, Any] = static) -> dict[str, Any]:
            return {**case.make(*context), "scale": 0.3, "return_lse": True, **static}

        result = check(OPS[op], on_cpu(op, name), replace(case, make=make), torch.float16)
        if name == "flashinfer" and "causal" in static:
            assert result.skipped and "none ahead of it" in result.message
            continue
        assert result.ok and not result.skipped, f"{static}: {result.message}"


def test_flashinfer_plans_once_per_step_for_all_layers(libraries: None) -> None:
    op, case = OPS[DECODE], next(case for case in OPS[DECODE].cases if case.name == "uneven")
    args = make_args(op, case, torch.float16, torch.device("cpu"))
    bound = bind(op, on_cpu(DECODE, "flashinfer"), make_spec(op, args, torch.float16, torch.device("cpu")), args)
    meta: AttentionMeta = args["meta"]
    for step in range(3):
        meta = args["meta"] = replace(meta, seq_lens=meta.seq_lens - 1 if step else meta.seq_lens)  # a workspace for all steps
        meta.seq_lens.clamp_min_(1)
        out, expected = call(op, bound, args)[0], op.reference(**args)
        again = bound(*(args[name] for name in op.call_args))  # the next layer
        torch.testing.assert_close(out.double(), expected.double(), rtol=2e-3, atol=2e-3)
        assert torch.equal(out, again)
        (wrapper,) = meta.workspace["flashinfer"].wrappers.values()
        assert wrapper.num_plans == step + 1


@pytest.mark.parametrize("window", [None, 1, 100, 300])
@pytest.mark.parametrize("causal", [True, False])
def test_flex_lists_the_blocks_that_its_mask_sees(causal: bool, window: int | None) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    counts, lengths = torch.tensor([300, 1, 0, 257, 130]), torch.tensor([700, 640, 0, 257, 131])
    cu_q = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
    meta = AttentionMeta(cu_q, lengths.int(), torch.zeros(5, 50, dtype=torch.int32), 300, 700)
    attention = FlexAttention(Spec("cpu", "cpu", torch.float32), {}, {"scale": 1.0, "causal": causal, "window": window}, True)
    bucket = Bucket(meta, None, 300, 700, int(counts.sum()), False)
    got = attention._make_block_mask(bucket)
    expected = create_block_mask(got.mask_mod, 5, None, 300, 700, device="cpu")
    assert got.shape[-2:] == expected.shape[-2:]
    assert torch.equal(got.to_dense(), expected.to_dense())
    assert int(got.full_kv_num_blocks.sum()) > 0 or window is not None
    for b, q in got.full_kv_num_blocks[:, 0].nonzero().tolist():
        blocks = got.full_kv_indices[b, 0, q, : got.full_kv_num_blocks[b, 0, q]]
        i, j = torch.meshgrid(torch.arange(q * 128, min(q * 128 + 128, 300)), torch.arange(128), indexing="ij")
        for block in blocks.tolist():
            assert bool(got.mask_mod(torch.tensor(b), torch.tensor(0), i, j + block * 128).all())


def test_flex_may_be_compiled_for_many_kinds_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))

    def attend(x: torch.Tensor, kind: str) -> torch.Tensor:
        return x + len(kind)

    compiled = _compiled(attend)
    assert [float(compiled(torch.zeros(3), "a" * n)[0]) for n in range(12)] == list(range(12))


@pytest.mark.parametrize(
    ("op", "name", "facts", "arch", "reason"),
    [
        (PREFILL, "flash_attn", {"page_size": 16}, "sm_90", "pages of 256 tokens"),
        (PREFILL, "flash_attn", {}, "sm_75", "sm_80 or later"),
        (PREFILL, "flash_attn", {}, "gfx942", "CUDA kernels"),
        (PREFILL, "flash_attn", {"alibi": True, "causal": False}, "sm_90", "absolute value"),
        (DECODE, "flash_attn", {"alibi": True, "return_lse": True}, "sm_90", "shifts the LSE"),
        (DECODE, "flash_attn", {"kv_dtype": torch.float8_e4m3fn}, "sm_90", "scale per token"),
        (DECODE, "flash_attn", {"head_dim": 100, "value_dim": 100}, "sm_90", "multiple of 8"),
        (DECODE, "flash_attn_3", {}, "sm_100", "made for sm_90"),
        (DECODE, "flash_attn_3", {"sinks": True}, "sm_90", "sinks"),
        (DECODE, "flashinfer", {"head_dim": 96, "value_dim": 96}, "sm_90", "head_dim 64, 128 and 256"),
        (PREFILL, "flashinfer", {"kv_dtype": torch.int8}, "sm_90", "scale per token"),
        (PREFILL, "flashinfer", {}, "gfx942", "sm_80 or later"),
        ("gemm_fp8", "flashinfer", {"recipe": "block"}, "sm_90", "not by block"),
        ("gemm_fp8", "flashinfer", {}, "sm_80", "sm_89 or later"),
        ("rotary", "flashinfer", {"rot_dim": 48}, "sm_90", "multiple of 32"),
        ("rms_norm", "flashinfer", {"given": "out_dtype"}, "sm_90", "does not take out_dtype"),
    ],
)
def test_what_a_library_lacks_is_a_reason(
    libraries: None, op: str, name: str, facts: dict[str, Any], arch: str, reason: str
) -> None:
    spec = replace(HOPPER, arch=arch).with_facts(**facts)
    assert any(reason in text for text in REGISTRY.impls(op)[name].unsupported(spec))


@ADAPTERS
def test_adapters_stand_between_triton_and_torch(libraries: None, op: str, name: str) -> None:
    adapter, known = REGISTRY.impls(op)[name], REGISTRY.impls(op)
    assert not adapter.unsupported(HOPPER) and adapter.unsupported(replace(HOPPER, device="cpu", arch="cpu"))
    assert adapter.unsupported(replace(HOPPER, dtype=torch.float32)) or op in ("sample", "gemm_fp8")
    triton = [i.priority for i in known.values() if i.is_triton and not i.name.endswith("_invariant")]
    assert known["torch"].priority < adapter.priority < min(triton, default=100)
    choice = "auto" if op == "sample" else name
    assert (resolve(REGISTRY, op, HOPPER, choice)[0].name == name) == (op != "sample")


@ADAPTERS
def test_a_missing_library_is_the_reason(op: str, name: str) -> None:
    package = REGISTRY.impls(op)[name].requires[0]
    missing = importlib.util.find_spec(package) is None
    assert (f"needs the package {package}" in REGISTRY.impls(op)[name].unsupported(HOPPER)) == missing


def test_flashinfer_samples_what_the_filters_keep(libraries: None) -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(3)) * 2
    sample = on_cpu("sample", "flashinfer").bind(Spec("cpu", "cpu", torch.float32), params={"stream": 0})
    num = 4000

    def draw(**parameters: Any) -> torch.Tensor:
        args = arguments(logits.expand(num, -1), [0] * num, position=torch.arange(num), **parameters)
        return sample(*(args[name] for name in OPS["sample"].call_args))

    filters: dict[str, Any] = {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.02}
    tokens = draw(**filters)
    kept = kept_tokens(logits[0].numpy(), *filters.values())
    assert set(tokens.tolist()) == set(kept)
    expected = torch.softmax(logits[0, kept] / 0.8, 0)
    frequency = torch.bincount(tokens.long(), minlength=50)[kept] / num
    assert float((num * (frequency - expected).square() / expected).sum()) < 3 * len(kept) + 10  # chi-square, far in its tail
    assert torch.equal(tokens, draw(**filters))
    assert not torch.equal(tokens, draw(**filters, seed=1))
