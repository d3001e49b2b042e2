"""The door to the kernels: choices are checked, the package's origin too, and the report tells what ran."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import triton_kernels
from framework import LLM, AsyncEngine, EngineConfig, SamplingParams
from framework.config import CacheConfig, ExecutorConfig, ModelConfig
from framework.plan import KernelPlan
from framework.settling import settle_block_size
from framework.worker.target_plan import TargetPlan
from triton_kernels.impl import impl
from triton_kernels.resolve import Choices, NoKernelError, override

CPU = torch.device("cpu")


def test_a_name_that_does_not_exist_is_refused_even_for_an_op_that_the_model_does_not_use() -> None:
    with pytest.raises(NoKernelError, match="no impl named 'nonsense'"):
        KernelPlan({"moe_experts": "nonsense"}, [], CPU, torch.float32)


def test_another_package_of_the_same_name_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(triton_kernels, "__file__", str(tmp_path / "triton_kernels" / "__init__.py"))
    with pytest.raises(ImportError, match="pip uninstall"):
        KernelPlan({}, [], CPU, torch.float32)


def test_the_report_says_what_is_unproven(tmp_path: Path) -> None:
    plugin = tmp_path / "adapter.py"
    plugin.write_text(
        "from triton_kernels.impl import NEVER_MET_ITS_LIBRARY, impl\n\n\n"
        "@impl('gelu_and_mul', 'adapter', unproven=NEVER_MET_ITS_LIBRARY)\n"
        "def adapter(x, approximate):\n    return x\n"
    )
    plan = KernelPlan({"gelu_and_mul": "adapter"}, [str(plugin)], CPU, torch.float32)
    plan.bind("gelu_and_mul", params={"approximate": "tanh"})
    assert plan.report()["gelu_and_mul"]["chosen"] == "name (never met its library)"


def test_the_report_counts_calls_and_joins_impls_of_one_op() -> None:
    plan = KernelPlan({}, [], CPU, torch.float32)
    gelu = plan.bind("gelu_and_mul", params={"approximate": "tanh"})
    plan.choices = Choices(plan.registry, {"gelu_and_mul": "reference"})
    again = plan.bind("gelu_and_mul", params={"approximate": "tanh"})
    x = torch.ones(2, 8)
    torch.testing.assert_close(gelu(x), again(x))
    gelu(x)
    report = plan.report()["gelu_and_mul"]
    assert report["impl"] == "torch+reference" and report["chosen"] == "auto+name" and report["calls"] == 3


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


def small(kernels: dict[str, str], **more: Any) -> EngineConfig:
    return EngineConfig(ModelConfig("tiny"), CacheConfig(num_blocks=16), kernels=kernels, num_threads=1, **more)


def choices_of(llm: LLM) -> dict[str, tuple[str, str]]:
    return {op: (entry["impl"], entry["chosen"]) for op, entry in llm.plan().items()}


def test_a_default_serves_every_op_that_is_not_chosen_itself() -> None:
    found = choices_of(LLM(small({"default": "torch", "sample": "reference", "linear": "auto"})))
    assert found.pop("sample") == ("reference", "name") and found.pop("linear")[1] == "auto"
    assert set(found.values()) == {("torch", "default")} and {"rotary", "kv_cache_write", "copy_blocks"} < set(found)


def test_a_default_that_cannot_run_here_is_refused_with_the_reasons() -> None:
    with pytest.raises(NoKernelError, match=r"linear=triton \(by kernels\.default\) on cpu(.|\n)*triton: .*interpret=true"):
        LLM(small({"default": "triton"}))
    with pytest.raises(
        ValueError, match=r"kernels\.default='cutlass' cannot work: it must be one of auto, reference, torch, triton"
    ):
        LLM(small({"default": "cutlass"}))


def test_an_op_without_an_impl_of_the_default_takes_auto_and_the_plan_says_so() -> None:
    plan = KernelPlan({"default": "torch"}, [], CPU, torch.float32)
    del plan.registry._impls["gelu_and_mul"]["torch"]
    plan.bind("gelu_and_mul", params={"approximate": "tanh"})
    entry = plan.report()["gelu_and_mul"]
    assert (entry["impl"], entry["chosen"]) == ("reference", "auto (has no torch impl)")


def test_triton_by_default_is_the_best_triton_kernel_whatever_its_name() -> None:
    def found(op: str, page_size: int, target: str) -> str:
        plan = TargetPlan.of(EngineConfig(kernels={"default": "triton"}), target, torch.bfloat16)
        plan.registry._add(impl(op, "stranger", priority=99)(lambda *args, **kwargs: None))
        facts = {"head_dim": 64, "value_dim": 64, "num_heads": 4, "num_kv_heads": 2, "kv_dtype": torch.bfloat16}
        spec = plan.spec.with_facts(**facts, page_size=page_size)
        return plan.choices.resolve(op, spec)[0].name

    pytest.importorskip("triton")
    assert found("paged_attention_prefill", 64, "sm_90") == "tma"
    assert found("paged_attention_prefill", 16, "sm_90") == "pointer"
    assert found("paged_attention_prefill", 64, "gfx942") == "pointer"
    assert found("paged_attention_decode", 64, "sm_90") == "balanced"


@pytest.mark.parametrize("device", ["cpu", "xpu"])
def test_what_cannot_be_recorded_on_a_kind_of_device(device: str, tmp_path: Path) -> None:
    """On a CPU what does not promise ``cpu_graph``; on any other kind, also that of a plugin, ``cuda_graph``."""
    plugin = tmp_path / "two.py"
    lines = [
        f"@impl('embedding', '{name}', flags=Flags(cpu_graph={on_cpu}, cuda_graph={not on_cpu}), devices=('{device}',))\n"
        f"def {name}(*args):\n    pass\n"
        for name, on_cpu in (("on_cpu", True), ("on_others", False))
    ]
    plugin.write_text("from triton_kernels.impl import Flags, impl\n" + "".join(lines))
    for name, expected in (("on_cpu", device != "cpu"), ("on_others", device == "cpu")):
        plan = KernelPlan({"embedding": name}, [str(plugin)], torch.device(device), torch.float32, arch="none")
        plan.bind("embedding", {"weight": torch.eye(2)})
        assert plan.not_capturable() == ([f"embedding:{name}"] if expected else [])


@pytest.mark.parametrize("op", ["gemm_w4a16", "merge_attention", "lora_shrink", "verify_draft", "moe_route", "layer_norm"])
def test_a_named_kernel_that_nothing_calls_is_refused(op: str) -> None:
    with pytest.raises(NoKernelError, match=rf"kernels\.{op}=torch would never run: this model never calls it; it calls .*linear"):
        LLM(small({op: "torch"}))
    LLM(small({op: "auto"}))


@pytest.mark.parametrize("kind", ["null", "simulated"])
def test_without_a_device_no_kernel_can_be_named(kind: str) -> None:
    executor = ExecutorConfig(kind)
    with pytest.raises(NoKernelError, match=rf"kernels\.sample=torch would never run: executor\.kind={kind} runs no kernels"):
        LLM(small({"sample": "torch"}, executor=executor))
    with pytest.raises(ValueError, match=r"kernels\.smaple: there is no such op"):
        LLM(small({"smaple": "torch"}, executor=executor))
    LLM(small({"default": "triton", "sample": "auto", "qk_norm_rotary_kv_write": "none"}, executor=executor))


def test_an_argument_comes_before_override_and_override_before_the_config() -> None:
    config = small({"sample": "torch", "rms_norm": "torch", "embedding": "torch", "default": "torch"})
    with override(sample="reference", rms_norm="reference", default="auto"):
        found = choices_of(LLM(config, kernels={"sample": "torch", "default": "reference"}))
    assert (found["sample"][0], found["rms_norm"][0], found["embedding"][0]) == ("torch", "reference", "torch")
    assert found["linear"] == ("reference", "default")


def test_building_an_engine_changes_nothing_in_the_config() -> None:
    config = small({"sample": "torch"})
    before = copy.deepcopy(config)
    with override(sample="reference"):
        engine = LLM(config, kernels={"rms_norm": "torch"}).engine
    assert config == before
    assert engine.config.kernels == {"sample": "reference", "rms_norm": "torch"} and engine.config.cache.block_size == 16
    config.scheduler.max_num_seqs = 1
    assert engine.config.scheduler.max_num_seqs == before.scheduler.max_num_seqs
    assert choices_of(LLM(config))["sample"][0] == "torch"


def test_an_override_reaches_the_process_of_an_engine_and_not_the_config() -> None:
    config = small({"sample": "torch"})
    with override(sample="nonsense"), pytest.raises(NoKernelError, match="no impl named 'nonsense'"):
        AsyncEngine(config)
    assert config == small({"sample": "torch"})


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
    assert settle_block_size(config, target).cache.block_size == expected
    assert config.cache.block_size == given


@pytest.mark.parametrize("kernels", [["sample"], "torch", {"sample": 5}, {"sample": None}])
def test_choices_that_are_no_choices(kernels: Any) -> None:
    with pytest.raises(ValueError, match=r"^kernels.* cannot work"):
        LLM(small({}), kernels=kernels)


def test_a_folder_of_tables_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tuned=.*this is no folder"):
        LLM(EngineConfig(tuned=str(tmp_path / "tables")))


def test_a_plugin_is_text_or_a_path(tmp_path: Path) -> None:
    for plugins in (str(tmp_path / "nope.py"), [tmp_path / "nope.py"]):
        with pytest.raises(ValueError, match=r"nope\.py.*does not exist"):
            LLM("tiny", plugins=plugins)


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
