"""Every Triton kernel compiles without a GPU, and its machine code passes the gates: all serving cases for sm_90, the first one
for gfx942, and that of the products for sm_80 (``kernelswap kernels compile --all`` compiles everything for every target)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("triton")

from framework.cli.kernels import compile_for
from triton_kernels.aot import Artifact, Compilation
from triton_kernels.gates import check_gates, load_rules
from triton_kernels.registry import Registry

TARGETS = ("sm_80", "sm_90", "gfx942")
MATRIX = {"sm_80": "HMMA", "sm_90": "HGMMA", "gfx942": "v_mfma"}
MAX_COMPILATIONS = 150
PRODUCTS = (
    "linear:triton", "linear:triton_invariant", "paged_attention_prefill:pointer", "paged_attention_decode:splitkv",
    "moe_experts:triton", "gemm_w4a16:triton", "gemm_int8:triton",
)  # fmt: skip
"""What is compiled for sm_80, whose matrix instructions are others than those of sm_90; it shares everything else."""


@cache
def kernels() -> tuple[str, ...]:
    return tuple(f"{impl.op}:{impl.name}" for impl in Registry.load() if impl.is_triton)


@cache
def compiled(target: str) -> list[Compilation]:
    if target == "sm_90":
        return compile_for(target, kernels())
    return compile_for(target, PRODUCTS if target == "sm_80" else kernels(), max_cases=1)


def artifacts(target: str) -> list[Artifact]:
    return [artifact for result in compiled(target) for artifact in result.artifacts]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_everything_compiles_and_passes_its_gates(target: str) -> None:
    errors = [f"{result.op}:{result.impl} ({result.case}): {result.error}" for result in compiled(target) if result.error]
    assert not errors, "\n".join(errors)
    nothing = set(kernels()) - {f"{a.op}:{a.impl}" for a in artifacts(target)}
    assert all(result.refused for result in compiled(target) if f"{result.op}:{result.impl}" in nothing)
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
    assert 0 < sum(len(artifacts(target)) for target in TARGETS) <= MAX_COMPILATIONS


BROKEN = '''
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
'''


def test_a_kernel_that_does_not_compile_is_reported(tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(BROKEN)
    names = ["silu_and_mul:broken", "silu_and_mul:refusing", "silu_and_mul:triton"]
    broken, refusing, good = compile_for("sm_80", names, [str(plugin)])
    assert "CompilationError" in broken.error and not broken.artifacts
    assert "not on cuda" in refusing.refused and not refusing.error
    assert [a.kernel for a in good.artifacts] == ["_silu_and_mul_kernel"] and not good.error


PASSING = Artifact(
    op="linear", impl="triton", case="256 tokens", dtype="bfloat16", kernel="_matmul_kernel", target="sm_90",
    triton="3.6.0", config="", num_warps=8, num_stages=4, shared_bytes=131072, registers=112, spills=0,
    matrix={"HGMMA": 4}, matrix_in_loop={"HGMMA": 4}, wide_loads=32, programs_per_sm=1, explicit_fusion=True, compile_s=0.2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"spills": 8}, "spills 8"),
        ({"target": "gfx942", "scalar_spills": 1, "matrix_in_loop": {"v_mfma": 4}, "shared_bytes": 65536}, "spills 1 scalar"),
        ({"shared_bytes": 300_000}, "shared memory"),
        ({"matrix_in_loop": {}}, "no HGMMA inside a loop"),
        ({"matrix_in_loop": {"HMMA": 16}}, "no HGMMA inside a loop"),
        ({"target": "gfx942", "shared_bytes": 65536}, "no v_mfma"),
        ({"wide_loads": 0}, "0 wide loads"),
        ({"case": "1 token"}, "1 programs per multiprocessor"),
        ({"explicit_fusion": False}, "enable_fp_fusion"),
    ],
)
def test_gates_catch(change: dict[str, object], complaint: str) -> None:
    assert check_gates([PASSING]) == []
    failures = check_gates([replace(PASSING, **change)])  # type: ignore[arg-type]
    assert len(failures) == 1 and complaint in failures[0], failures


def test_rules_with_unknown_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "gates.json"
    path.write_text('[{"kernel": "linear:*", "max_spill": 0}]')
    with pytest.raises(ValueError, match="max_spill"):
        load_rules(path)
    assert load_rules()
