"""What the arguments of LLM and of the server make of a configuration."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from framework import LLM, EngineConfig, SamplingParams
from framework.engine_args import ATTENTION_BACKENDS, engine_config
from triton_kernels.registry import Registry
from triton_kernels.resolve import NoKernelError, override, parse_choice

ATTENTION = ("paged_attention_prefill", "paged_attention_decode")


@pytest.fixture(autouse=True)
def no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_ATTENTION_BACKEND", raising=False)


def test_nothing_given_is_the_default_configuration() -> None:
    assert engine_config() == EngineConfig()


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ({"chunked_prefill_size": 96}, "scheduler.max_chunk_tokens", 96),
        ({"dtype": torch.bfloat16}, "model.dtype", "bfloat16"),
        ({"kv_cache_dtype": "fp8"}, "cache.dtype", "float8_e4m3fn"),
        ({"quantization": "fp8_per_block"}, "quant.scheme", "fp8-block"),
        ({"gpu_memory_utilization": 0.5}, "cache.memory_fraction", 0.5),
        ({"plugins": "mine.py"}, "plugins", ["mine.py"]),
        ({"enforce_eager": True}, "graphs.enabled", False),
        ({"tokenizer": "other"}, "model.tokenizer", "other"),
        ({"revision": "main"}, "model.revision", "main"),
        ({"load_format": "dummy"}, "model.load_format", "dummy"),
        ({"hf_overrides": {"num_hidden_layers": 1}}, "model.architecture", {"num_hidden_layers": 1}),
        ({"max_model_len": 96}, "model.max_model_len", 96),
        ({"max_logprobs": 3}, "model.max_logprobs", 3),
        ({"limit_mm_per_prompt": {"image": 2}}, "model.limit_mm_per_prompt", {"image": 2}),
        ({"kv_cache_dtype": "fp8_e5m2"}, "cache.dtype", "float8_e5m2"),
        ({"kv_cache_memory_bytes": 2**20}, "cache.memory_bytes", 2**20),
        ({"num_gpu_blocks_override": 96}, "cache.num_blocks", 96),
        ({"block_size": 32}, "cache.block_size", 32),
        ({"enable_prefix_caching": False}, "cache.prefix_caching", False),
        ({"state_snapshots": 8}, "cache.state_snapshots", 8),
        ({"enable_chunked_prefill": False}, "scheduler.chunked_prefill", False),
        ({"max_num_seqs": 96}, "scheduler.max_num_seqs", 96),
        ({"max_num_batched_tokens": 96}, "scheduler.max_num_batched_tokens", 96),
        ({"scheduling_policy": "priority"}, "scheduler.policy", "priority"),
        ({"structured_outputs_config": {"backend": "guidance"}}, "structured_outputs.backend", "llguidance"),
        ({"diffusion_config": {"threshold": 0.5}}, "diffusion.threshold", 0.5),
        ({"tensor_parallel_size": 2}, "parallel.tp", 2),
        ({"tensor_parallel_size": 2}, "executor.kind", "distributed"),
        ({"pipeline_parallel_size": 2}, "parallel.pp", 2),
        ({"data_parallel_size": 2}, "parallel.dp", 2),
        ({"tensor_parallel_size": 4, "enable_expert_parallel": True}, "parallel.ep", 4),
        ({"data_parallel_size": 2, "enable_expert_parallel": True}, "parallel.ep", 2),
        ({"data_parallel_size": 2, "enable_expert_parallel": True}, "executor.kind", "distributed"),
        ({"enable_expert_parallel": True}, "executor.kind", "local"),
        ({"distributed_executor_backend": "mp"}, "executor.kind", "distributed"),
        ({"distributed_executor_backend": "mp"}, "parallel.backend", "processes"),
        ({"distributed_executor_backend": "ray"}, "parallel.backend", "ray"),
        ({"tensor_parallel_size": 2, "step_timeout_s": 7.5}, "parallel.step_timeout_s", 7.5),
        ({"tensor_parallel_size": 2, "start_timeout_s": 7.5}, "parallel.start_timeout_s", 7.5),
        ({"step_timeout_s": 7.5}, "executor.kind", "local"),
        ({"seed": 3}, "seed", 3),
    ],
)
def test_an_argument_lands_in_its_key(given: dict[str, Any], key: str, value: Any) -> None:
    found: Any = engine_config(**given)
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value


def test_a_prompt_is_cut_into_chunks_of_the_size_that_was_asked_for() -> None:
    llm = LLM("tiny", chunked_prefill_size=16, num_gpu_blocks_override=64)
    llm.generate([list(range(5, 55))], SamplingParams(max_tokens=1), use_tqdm=False)
    assert llm.engine.stats().num_steps == 4  # 50 tokens


@pytest.mark.parametrize("name", ATTENTION_BACKENDS)
def test_a_backend_names_impls_of_both_attention_ops(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = engine_config(attention_backend=name)
    registry = Registry.load()
    assert set(config.kernels) == set(ATTENTION)
    for op, choice in config.kernels.items():
        assert set(parse_choice(choice).names) <= set(registry.impls(op))
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", name)
    assert engine_config() == config
    assert engine_config(EngineConfig()) == EngineConfig(), "a configuration says it all"


def test_the_triton_backend_is_all_triton_kernels_best_first() -> None:
    registry = Registry.load()
    for op, choice in engine_config(attention_backend="TRITON_ATTN").kernels.items():
        assert parse_choice(choice).names == [name for name, impl in registry.impls(op).items() if impl.is_triton]


def test_a_backend_runs_and_one_that_cannot_says_why() -> None:
    llm = LLM("tiny", attention_backend="FLEX_ATTENTION", num_gpu_blocks_override=64)
    llm.generate([[5, 6, 7]], SamplingParams(max_tokens=2), use_tqdm=False)
    assert [llm.plan()[op]["impl"] for op in ATTENTION] == ["flex", "flex"]
    if not torch.cuda.is_available():
        with pytest.raises(
            NoKernelError, match=r"flash_attn_3\|flash_attn(.|\n)*  flash_attn: (needs .*; )?runs on cuda, not on cpu"
        ):
            LLM("tiny", attention_backend="FLASH_ATTN")


def test_kernels_go_before_a_backend_and_before_override() -> None:
    kernels = {"paged_attention_decode": "torch"}
    with override(paged_attention_decode="reference", paged_attention_prefill="torch"):
        llm = LLM("tiny", attention_backend="FLEX_ATTENTION", kernels=kernels, num_gpu_blocks_override=64)
    assert [llm.plan()[op]["impl"] for op in ATTENTION] == ["torch", "torch"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attention_backend": "XFORMERS"}, "attention_backend='XFORMERS' cannot work: no kernel here calls xFormers"),
        ({"attention_backend": "CUSTOM"}, "must be one of FLASH_ATTN, FLASHINFER, TRITON_ATTN, FLEX_ATTENTION"),
        ({"distributed_executor_backend": "mpi"}, "backend='mpi' cannot work: it must be one of mp, processes"),
        ({"distributed_executor_backend": ["mp"]}, r"backend=.'mp'. cannot work: it must be one of mp, processes"),
        ({"distributed_executor_backend": 0}, "backend=0 cannot work: it must be one of mp, processes"),
        ({"enable_expert_parallel": "no"}, "enable_expert_parallel='no' cannot work: it must be of type bool"),
        ({"kernels": ["sample"]}, "kernels=.* must map ops to choices"),
        ({"model": EngineConfig(), "attention_backend": "FLASHINFER"}, "attention_backend cannot be given beside an EngineConfig"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine_config(**given)


def test_a_wrong_backend_of_the_environment_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "XFORMERS")
    with pytest.raises(ValueError, match="VLLM_ATTENTION_BACKEND='XFORMERS'"):
        LLM("tiny")


def test_llm_shows_the_arguments_that_it_takes() -> None:
    assert inspect.signature(LLM).parameters == inspect.signature(engine_config).parameters
