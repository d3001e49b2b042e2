"""What the plan makes of the fused kernel between projection and attention: when it runs, and what runs otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from framework import LLM, EngineConfig, SamplingParams
from framework.build import build_engine
from framework.config import CacheConfig, ExecutorConfig, ModelConfig, SchedulerConfig
from framework.executor.simulated import SimulatedExecutor
from framework.models.binding.binder import Binder
from framework.models.parallel import Parallel
from framework.models.quantization.unquantized import Unquantized
from framework.models.read import read_model
from framework.models.weights import DummyWeights
from framework.plan import KernelPlan
from framework.worker.target_plan import TargetPlan
from triton_kernels.resolve import NoKernelError

FUSED = "qk_norm_rotary_kv_write"
SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 1,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {**SIZES, "model_type": "llama"},
    "qwen3": {**SIZES, "model_type": "qwen3", "tie_word_embeddings": True},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 300,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "eos_token_id": 1,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
    },
}


def config(architecture: str, kernels: dict[str, str], dtype: str = "float32", **more: Any) -> EngineConfig:
    model = ModelConfig(architecture=ARCHITECTURES[architecture], load_format="dummy", dtype=dtype)
    return EngineConfig(
        model, CacheConfig(block_size=16, num_blocks=16), SchedulerConfig(max_num_seqs=2), kernels=kernels, num_threads=1, **more
    )


def bound(architecture: str, kernels: dict[str, str], target: str | None = None, dtype: str = "float32") -> dict[str, str]:
    """op -> impl, of the model alone."""
    engine = config(architecture, kernels, dtype)
    info, device, kind = read_model(engine.model), torch.device("cpu"), getattr(torch, dtype)
    assert info.architecture is not None
    plan = TargetPlan.of(engine, target, kind) if target else KernelPlan.from_config(engine, device, kind)
    weights = DummyWeights(device, kind, Unquantized(), 0, 0.0)
    Binder(info, info.architecture, weights, plan, device, Parallel(), 16, "auto").build()
    plan.check_bound()
    return {op: entry["impl"] for op, entry in plan.report().items()}


def fuses(*args: Any, **kwargs: Any) -> bool:
    """Whether it does, everywhere or nowhere."""
    report = bound(*args, **kwargs)
    assert (FUSED in report) != ("kv_cache_write" in report)
    return FUSED in report


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_priorities_decide_where_nothing_is_named(architecture: str) -> None:
    pytest.importorskip("triton")
    assert fuses(architecture, {}, target="sm_90", dtype="bfloat16")
    if bound(architecture, {FUSED: "none"})["rotary"] == "native":  # else there is no C compiler
        assert not fuses(architecture, {}), "on a CPU the ops in C come before what fuses"


@pytest.mark.parametrize(
    ("op", "architecture", "expected"),
    [
        ("rotary", "llama", False),
        ("kv_cache_write", "llama", False),
        ("rms_norm", "llama", True),
        ("rms_norm", "qwen3", False),
        ("linear", "qwen3", True),
    ],
)
def test_a_named_part_is_not_fused_away(op: str, architecture: str, expected: bool) -> None:
    pytest.importorskip("triton")
    assert fuses(architecture, {op: "triton"}, target="sm_90", dtype="bfloat16") == expected


def test_none_and_a_name_are_obeyed() -> None:
    assert bound("llama", {FUSED: "torch"})[FUSED] == "torch"
    assert not fuses("llama", {FUSED: "none"}, target="sm_90", dtype="bfloat16")
    with pytest.raises(NoKernelError, match=f"kernels.{FUSED}=torch would never run: this model never calls it"):
        bound("gpt2", {FUSED: "torch"})  # without rotation nothing fuses
    with pytest.raises(NoKernelError, match="no impl named 'none'"):
        KernelPlan({"rotary": "none"}, [], torch.device("cpu"), torch.float32)
    with pytest.raises(NoKernelError, match=f"{FUSED}=triton"):
        bound("llama", {FUSED: "triton"})


@pytest.mark.parametrize("op", ["rotary", "kv_cache_write"])
def test_a_named_kernel_that_would_never_run_is_refused(op: str) -> None:
    with pytest.raises(NoKernelError, match=rf"kernels\.{op}=reference would never run.*kernels\.{FUSED}=none"):
        bound("llama", {FUSED: "torch", op: "reference"})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["torch", "reference"])
def test_a_default_runs_kernels_of_its_kind_only(kind: str, architecture: str) -> None:
    llm = LLM(config(architecture, {"default": kind}))
    llm.generate({"prompt_token_ids": [5, 6, 7]}, SamplingParams(max_tokens=3, detokenize=False, ignore_eos=True), use_tqdm=False)
    ran = {op: entry["impl"] for op, entry in llm.plan().items() if entry["calls"]}
    assert set(ran.values()) == {kind} and {"kv_cache_write", "slot_mapping"} <= set(ran)
    assert ("rotary" in ran) == (architecture != "gpt2") and FUSED not in ran


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_triton_by_default_binds_triton_kernels_only(architecture: str) -> None:
    pytest.importorskip("triton")
    found = bound(architecture, {"default": "triton"}, target="sm_90", dtype="bfloat16")
    assert set(found.values()) == {"triton", "pointer", "balanced"}
    assert (FUSED in found) == (architecture != "gpt2") and ("kv_cache_write" in found) == (architecture == "gpt2")


def test_under_a_default_the_fused_kernel_can_be_named() -> None:
    assert bound("qwen3", {"default": "reference", FUSED: "torch"})[FUSED] == "torch"
    assert not fuses("llama", {"default": "triton", FUSED: "none"}, target="sm_90", dtype="bfloat16")


def test_the_simulator_counts_the_calls_that_the_plan_would_make() -> None:
    def num_calls(architecture: str, **kernels: str) -> int:
        engine = build_engine(config(architecture, kernels, executor=ExecutorConfig("simulated", calibration="free")))
        engine.add_request("", [1] * 5, SamplingParams(max_tokens=1))
        engine.step()
        assert isinstance(engine.executor, SimulatedExecutor)
        return sum(time.calls for time in engine.executor.op_times().values())

    layers = SIZES["num_hidden_layers"]
    for architecture, saved in (("llama", 1), ("qwen3", 3)):
        separate = num_calls(architecture, **{FUSED: "none"})
        assert separate - num_calls(architecture) == saved * layers
        assert separate == num_calls(architecture, default="torch")
