"""Every Triton kernel compiles without a GPU, and its machine code passes the gates: each for sm_90 and gfx942, and those with
GEMMs or states for sm_80 and sm_100 too (``kernelswap kernels compile --all`` compiles every serving case for every target)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("triton")

from framework.cli.child import compile_for
from triton_kernels.devices import TARGETS
from triton_kernels.lab.aot import Artifact, Compilation
from triton_kernels.lab.gates import check_gates, load_rules
from triton_kernels.lab.loops import LoopFigures
from triton_kernels.registry import Registry

MATRIX = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}
MAX_COMPILATIONS = 246
GEMMS = (
    "linear:triton",
    "linear:triton_invariant",
    "paged_attention_prefill:pointer",
    "paged_attention_prefill:tma",
    "paged_attention_decode:splitkv",
    "paged_attention_decode:balanced",
    "moe_experts:triton",
    "moe_experts:triton_invariant",
    "gemm_w4a16:triton",
    "gemm_w4a16:triton_invariant",
    "gemm_w8a16:triton",
    "gemm_w8a16:triton_invariant",
    "gemm_int8:triton",
    "gemm_fp8:triton",
    "gemm_fp8:triton_invariant",
    "lora_shrink:triton",
    "lora_expand:triton",
)
"""Their matrix instructions differ from target to target."""
GEMM_CASES = ("2048 tokens", "2048 tokens, page 64", "2048 tokens, e4m3", "64 requests, page 16", "llama-8b_64_rank_64")
STATES = ("gated_delta_rule:triton", "ssd_scan:triton", "selective_scan:triton")
"""With products in chunks of tokens, and states in registers."""
WIDE = (
    "linear:triton",
    "paged_attention_prefill:tma",
    "gemm_w4a16:triton",
    "gemm_w8a16:triton",
    "gemm_int8:triton",
    "gemm_fp8:triton",
    "paged_attention_decode:balanced",
)
"""On sm_90, where most are served, also with the tiles of many tokens and of wide heads, and with a quantized cache."""
WIDE_CASES = ("2048 tokens", "2048 tokens, e4m3", "head 256, window, softcap", "64 requests, e4m3, page 64")


ATTENTION = ("paged_attention_prefill:pointer", "paged_attention_decode:balanced")
ATTENTION_CASES = ("latent, 128 heads", "latent, 16 heads", "position bias")
"""Keys of 576 whose first 512 elements are the values, and biases that are read from a table."""


@cache
def kernels() -> tuple[str, ...]:
    return tuple(f"{impl.op}:{impl.name}" for impl in Registry.load() if impl.is_triton)


@cache
def compiled(target: str) -> list[Compilation]:
    attention = compile_for(target, ATTENTION, cases=ATTENTION_CASES)
    if target == "sm_90":
        return attention + compile_for(target, kernels(), max_cases=1) + compile_for(target, WIDE, cases=WIDE_CASES)
    gemms = compile_for(target, GEMMS, cases=GEMM_CASES)
    if target != "gfx942":
        return attention + gemms + compile_for(target, STATES, max_cases=1)
    return attention + gemms + compile_for(target, [name for name in kernels() if name not in GEMMS], max_cases=1)


def artifacts(target: str) -> list[Artifact]:
    return [artifact for result in compiled(target) for artifact in result.artifacts]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_everything_compiles_and_passes_its_gates(target: str) -> None:
    errors = [f"{result.op}:{result.impl} ({result.case}): {result.error}" for result in compiled(target) if result.error]
    assert not errors, "\n".join(errors)
    wanted = set(kernels() if target in ("sm_90", "gfx942") else (*GEMMS, *STATES))
    refusing = {f"{result.op}:{result.impl}" for result in compiled(target) if result.refused}
    nothing = wanted - {f"{a.op}:{a.impl}" for a in artifacts(target)}
    assert not nothing - refusing, f"{nothing - refusing} have no case that is compiled for {target}"
    assert target != "sm_90" or not nothing, f"{nothing} refuse every serving case"
    assert {a.target for a in artifacts(target)} == {target}
    failures = check_gates(artifacts(target))
    assert not failures, "\n".join(failures)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_products_use_the_matrix_unit_of_the_target(target: str) -> None:
    for impl in ("triton", "triton_invariant"):
        found = [a for a in artifacts(target) if (a.op, a.impl, a.kernel) == ("linear", impl, "_matmul_kernel")]
        assert found
        assert all(a.matrix_in_loop.get(MATRIX[target]) for a in found)


@pytest.mark.slow
def test_the_number_of_compilations_stays_small() -> None:
    found = (artifact for target in TARGETS for artifact in artifacts(target))
    once = {str(replace(artifact, op="", impl="", case="", compile_s=0.0)) for artifact in found}  # some impls share kernels
    assert 0 < len(once) <= MAX_COMPILATIONS


BROKEN = """
import triton
import triton.language as tl

from triton_kernels.impl import impl


@triton.jit
def _kernel(x_ptr):
    tl.store(x_ptr + tl.arange(0, 3), 0.0)


@impl("silu_and_mul", "broken", requires=("triton",))
def broken(x):
    _kernel[(1,)](x)
    return x


@impl("silu_and_mul", "refusing", requires=("triton",), devices=("cpu",))
def refusing(x):
    return x
"""


def test_a_kernel_that_does_not_compile_is_reported(tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(BROKEN)
    names = ["silu_and_mul:broken", "silu_and_mul:refusing", "silu_and_mul:triton"]
    broken, refusing, good = compile_for("sm_80", names, [str(plugin)], cases=["2048 tokens"])
    assert "CompilationError" in broken.error and not broken.artifacts
    assert "not on cuda" in refusing.refused and not refusing.error
    assert [a.kernel for a in good.artifacts] == ["gated_kernel"] and not good.error


OVERLAPPED = LoopFigures({"tensor": 4}, 49152, buffers=3, wait=2, cover=None, tensor_flops=4194304, format="bf16")
PASSING = Artifact(
    op="linear",
    impl="triton",
    case="256 tokens",
    dtype="bfloat16",
    kernel="_matmul_kernel",
    target="sm_90",
    triton="3.6.0",
    config="",
    num_warps=8,
    num_stages=4,
    shared_bytes=131072,
    registers=112,
    spills=0,
    matrix={"HGMMA": 4},
    matrix_in_loop={"HGMMA": 4},
    wide_loads=32,
    programs_per_sm=1,
    explicit_fusion=True,
    compile_s=0.2,
    loops=[OVERLAPPED],
)

ON_AMD = {
    "target": "gfx942",
    "matrix_in_loop": {"v_mfma": 4},
    "shared_bytes": 65536,
    "loops": [replace(OVERLAPPED, wait=None, buffers=1, cover=4)],
}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"spills": 8}, "8 spills, at most 0"),
        ({**ON_AMD, "scalar_spills": 1}, "1 spills of scalar registers"),
        ({**ON_AMD, "loops": [replace(OVERLAPPED, wait=None, cover=0)]}, "0 matrix instructions between a tile's load"),
        ({"shared_bytes": 300_000}, "shared memory"),
        ({"matrix_in_loop": {}}, "no HGMMA inside a loop"),
        ({"matrix_in_loop": {"HMMA": 16}}, "no HGMMA inside a loop"),
        ({**ON_AMD, "matrix_in_loop": {"HGMMA": 4}}, "no v_mfma"),
        ({"wide_loads": 0}, "0 wide loads"),
        ({"case": "1 token"}, "1 programs per multiprocessor"),
        ({"explicit_fusion": False}, "enable_fp_fusion"),
        ({"loops": [replace(OVERLAPPED, buffers=1)]}, "1 buffers per tile in loop 1 of 1, at least 2"),
        ({"loops": [OVERLAPPED, replace(OVERLAPPED, wait=0)]}, "0 loads under way behind the one waited for in loop 2 of 2"),
        ({"loops": [replace(OVERLAPPED, wait=None)]}, "0 loads under way behind the one waited for in loop 1 of 1"),
        (
            {"op": "qk_norm_rotary_kv_write", "kernel": "_fused_kernel", "programs_per_sm": 8, "load_widths": {"qkv_ptr": 8}},
            "qkv_ptr is loaded by 8 bytes per thread",
        ),
        (
            {"op": "paged_attention_prefill", "impl": "tma", "kernel": "prefill_kernel", "case": "2048 tokens, page 64"},
            "0 loads of tiles",
        ),
        (
            {
                "op": "gemm_w4a16",
                "kernel": "packed_kernel",
                "case": "1 token",
                "registers": 64,
                "programs_per_sm": 6,
                "loop_load_bytes": 164,
            },
            "164 bytes loaded",
        ),
    ],
)
def test_gates_catch(change: dict[str, object], complaint: str) -> None:
    assert check_gates([PASSING]) == []
    failures = check_gates([replace(PASSING, **change)])  # type: ignore[arg-type]
    assert len(failures) == 1 and complaint in failures[0], failures


def test_tiles_of_tuning_are_held_to_spills_memory_and_the_instruction_only() -> None:
    change = {"impl": "triton@block_n:256", "wide_loads": 0, "registers": 255, "loops": [replace(OVERLAPPED, wait=0)]}
    candidate = replace(PASSING, **change)  # type: ignore[arg-type]
    assert check_gates([candidate]) == []
    assert len(check_gates([replace(candidate, impl="triton")])) == 2
    for fault in ({"spills": 8}, {"shared_bytes": 300_000}, {"matrix_in_loop": {}}):
        assert len(check_gates([replace(candidate, **fault)])) == 1, fault  # type: ignore[arg-type]


def test_rules_with_unknown_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "gates.json"
    path.write_text('[{"kernel": "linear:*", "max_spill": 0}]')
    with pytest.raises(ValueError, match="max_spill"):
        load_rules(path)
    assert load_rules()
