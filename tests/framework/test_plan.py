"""The door to the kernels: choices are checked, the package's origin too, and the report tells what ran."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import triton_kernels
from framework import LLM, EngineConfig, SamplingParams
from framework.build import settle_block_size
from framework.config import CacheConfig, ExecutorConfig, ModelConfig
from framework.plan import KernelPlan
from triton_kernels.resolve import NoKernelError

CPU = torch.device("cpu")


def test_a_name_that_does_not_exist_is_refused_even_for_an_op_that_the_model_does_not_use() -> None:
    with pytest.raises(NoKernelError, match="no impl named 'nonsense'"):
        KernelPlan({"moe_experts": "nonsense"}, [], CPU, torch.float32)


def test_another_package_of_the_same_name_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(triton_kernels, "__file__", str(tmp_path / "triton_kernels" / "__init__.py"))
    with pytest.raises(ImportError, match="pip uninstall"):
        KernelPlan({}, [], CPU, torch.float32)


def test_the_report_counts_calls_and_joins_impls_of_one_op() -> None:
    plan = KernelPlan({}, [], CPU, torch.float32)
    gelu = plan.bind("gelu_and_mul", params={"approximate": "tanh"})
    plan.choices["gelu_and_mul"] = "reference"
    again = plan.bind("gelu_and_mul", params={"approximate": "tanh"})
    x = torch.ones(2, 8)
    torch.testing.assert_close(gelu(x), again(x))
    gelu(x)
    report = plan.report()["gelu_and_mul"]
    assert report["impl"] == "torch+reference" and report["calls"] == 3


def test_a_wider_cache_is_served_by_kernels_that_can_read_it() -> None:
    config = EngineConfig(ModelConfig("tiny"), CacheConfig(num_blocks=64, dtype="float32"), num_threads=1)
    llm = LLM(config)
    output = llm.generate("import os\n", SamplingParams(temperature=0, max_tokens=6), use_tqdm=False)[0]
    expected = LLM("tiny", num_gpu_blocks_override=64).generate(
        "import os\n", SamplingParams(temperature=0, max_tokens=6), use_tqdm=False
    )
    assert output.outputs[0].token_ids == expected[0].outputs[0].token_ids
    assert llm.plan()["paged_attention_decode"]["impl"] == "reference"


def test_a_cache_dtype_that_is_not_available_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cache\.dtype='fp8_e4m3'"):
        LLM(EngineConfig(cache=CacheConfig(dtype="fp8_e4m3")))


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "conf" / "kernels").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_preset_names_kernels_that_exist(file: Path) -> None:
    choices = dict(line.split(": ") for line in file.read_text().splitlines() if line and not line.startswith("#"))
    KernelPlan(choices, [], CPU, torch.float32)


@pytest.mark.parametrize(
    ("given", "kind", "device", "target", "expected"),
    [
        (0, "local", "cpu", None, 16),
        (32, "local", "cpu", None, 32),
        (0, "simulated", "cpu", None, 64),
        (0, "local", "cpu", "gfx942", 16),
        (0, "local", "cpu", "sm_80", 16),
        (0, "local", "cpu", "sm_90", 64),
        (0, "null", "cpu", None, 16),
    ],
)
def test_blocks_have_the_size_that_kernels_like(given: int, kind: str, device: str, target: str | None, expected: int) -> None:
    config = EngineConfig(cache=CacheConfig(given), executor=ExecutorConfig(kind), device=device)
    settle_block_size(config, target)
    assert config.cache.block_size == expected


def test_vllms_names_of_cache_dtypes() -> None:
    llm = LLM("tiny", kv_cache_dtype="fp8", num_gpu_blocks_override=8, max_model_len=64)
    assert llm.engine.config.cache.dtype == "float8_e4m3fn"


def test_a_plugin_that_was_asked_for_must_load(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nope\.py.*does not exist"):
        KernelPlan({}, [str(tmp_path / "nope.py")], CPU, torch.float32)
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_library")
    with pytest.raises(ValueError, match=r"broken\.py.*no_such_library"):
        KernelPlan({}, [str(broken)], CPU, torch.float32)
