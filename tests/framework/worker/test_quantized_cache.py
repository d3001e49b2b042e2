"""Quantized KV caches: what they cost in memory, time and quality, and who refuses them."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from framework import LLM, EngineConfig, SamplingParams
from framework.clock import VirtualClock
from framework.config import CACHE_DTYPES, CacheConfig, ExecutorConfig, ModelConfig, SchedulerConfig
from framework.engine.kv_cache.spec import ELEMENT_BYTES, PagedKV, block_bytes, group_layers
from framework.engine.step import NewRequest, StepInput
from framework.executor.shape import ModelShape
from framework.executor.simulated import SimulatedExecutor
from framework.models.read import read_model
from framework.worker.cache_memory import allocate_caches
from triton_kernels.resolve import NoKernelError

from ..executor.test_simulated import LLAMA_8B

QUANTIZED = ("int8", "float8_e4m3fn", "float8_e5m2")
GEMMA3 = {
    "model_type": "gemma3_text",
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 96,
    "sliding_window": 9,
    "sliding_window_pattern": 3,
    "initializer_range": 0.3,
    "eos_token_id": 1,
}
TEXT = (
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total / len(values)\n\n\n"
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n"
    "    def push(self, item):\n        self.items.append(item)\n\n"
    "    def pop(self):\n        if not self.items:\n            raise IndexError('pop from an empty stack')\n"
    "        return self.items.pop()\n"
)


@pytest.mark.parametrize("dtype", ELEMENT_BYTES)
def test_what_is_allocated_is_what_is_accounted(dtype: str) -> None:
    """Groups of different shapes: one has the larger keys, the other the larger values, a third more heads."""
    shapes = [(2, 32, 8, None), (2, 8, 24, 64), (3, 16, 4, 7)]
    groups = group_layers([PagedKV(heads, k, v, dtype, window) for heads, k, v, window in shapes for _ in range(2)])
    caches = allocate_caches(groups, 5, 4, torch.device("cpu"))
    assert len(caches) == 6
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for kv in caches.values() for t in kv if t is not None}
    assert sum(storages.values()) == 5 * block_bytes(groups, 4)
    for kv, (heads, k, v, _) in zip(caches.values(), (shape for shape in shapes for _ in range(2))):
        assert kv.k.shape == (5, 4, heads, k) and kv.v.shape == (5, 4, heads, v)
        assert kv.k.dtype == kv.v.dtype == getattr(torch, dtype)
        if dtype in QUANTIZED:
            assert kv.k_scale is not None and kv.v_scale is not None
            assert kv.k_scale.shape == kv.v_scale.shape == (5, 4, heads) and kv.k_scale.dtype == torch.float32
        else:
            assert kv.k_scale is kv.v_scale is None


def test_values_that_lie_in_keys_take_no_memory() -> None:
    latent, plain = PagedKV(1, 40, 32, "float16", aliased=True), PagedKV(1, 16, 8, "float16", window=7)
    groups = group_layers([latent, latent, plain, plain])
    assert latent.part_bytes() == (80, 0, 0, 0) and block_bytes(groups, 4) == 2 * 4 * (80 + 16)
    caches = allocate_caches(groups, 5, 4, torch.device("cpu"))
    kv = caches[0]
    assert kv.is_aliased and kv.v.shape == (5, 4, 1, 32) and not caches[2].is_aliased
    kv.k[3] = torch.arange(160.0).view(4, 1, 40)
    assert torch.equal(kv.v[3], kv.k[3][..., :32]) and [tensor.shape for tensor in kv.stored()] == [kv.k.shape]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for kv in caches.values() for t in kv if t is not None}
    assert sum(storages.values()) == 5 * block_bytes(groups, 4)
    with pytest.raises(ValueError, match=r"cache\.dtype=int8 cannot work"):
        PagedKV(1, 40, 32, "int8", aliased=True)


def test_a_head_of_128_takes_132_bytes() -> None:
    assert block_bytes(group_layers([PagedKV(8, 128, 128, "int8")] * 32), 16) == 32 * 16 * 2 * 8 * (128 + 4)


def test_the_names_are_those_of_torch_and_an_error_lists_them() -> None:
    assert all(getattr(torch, name).itemsize == size for name, size in ELEMENT_BYTES.items())
    with pytest.raises(ValueError, match=r"auto, float32, .*float8_e4m3fn, float8_e5m2, int8"):
        EngineConfig(cache=CacheConfig(dtype="fp4")).validate()
    assert {"auto", *QUANTIZED} < set(CACHE_DTYPES)


def test_kernels_for_floats_refuse_it() -> None:
    cache_config = CacheConfig(num_blocks=20, dtype="int8")
    for op in ("kv_cache_write", "paged_attention_decode"):
        kernels = {"qk_norm_rotary_kv_write": "none", op: "native"}
        with pytest.raises(NoKernelError, match=r"torch\.int8"):
            LLM(EngineConfig(ModelConfig("tiny"), cache_config, kernels=kernels, num_threads=1))


def test_a_simulated_device_has_more_blocks_and_reads_fewer_bytes() -> None:
    def run(dtype: str) -> tuple[SimulatedExecutor, list[float]]:
        """Attention's seconds in steps of 64 requests with short and with long contexts."""
        model = ModelConfig(load_format="dummy", architecture=LLAMA_8B)
        info = read_model(model)
        simulated = ExecutorConfig("simulated", calibration="roofline", efficiency=1.0, kernel_overhead_s=0.0)
        config = EngineConfig(model, CacheConfig(16, dtype=dtype, memory_bytes=1 << 34), executor=simulated)
        assert ModelShape.of(info, config).groups[0].spec == PagedKV(8, 128, 128, "bfloat16" if dtype == "auto" else dtype)
        executor = SimulatedExecutor(config, info, VirtualClock())
        taken = []
        for step_id, context in enumerate((1, 8001)):
            seats = list(range(64))
            new = [NewRequest(seat, "", [0] * context, context, context - 1, [[0]], SamplingParams(seed=0)) for seat in seats]
            before = executor.op_times()["paged_attention_decode"].seconds
            executor.submit(StepInput(step_id, seats, [1] * 64, [1] * 64, new))
            taken.append(executor.op_times()["paged_attention_decode"].seconds - before)
        return executor, taken

    (full, _), (_, _), (narrow, _) = runs = [run(dtype) for dtype in ("auto", "float32", "int8")]
    assert narrow.num_blocks == pytest.approx(full.num_blocks * 256 / 132, rel=1e-3)
    reads = [long - short for _, (short, long) in runs]  # of the cache alone
    assert reads[1] == pytest.approx(2 * reads[0], rel=0.01)
    assert reads[2] == pytest.approx(132 / 256 * reads[0], rel=0.01)


@cache
def logprobs(dtype: str) -> torch.Tensor:
    """f64 [tokens - 1, vocabulary] of what follows each token of TEXT."""
    llm = LLM(
        EngineConfig(ModelConfig("tiny", dtype="float32", max_logprobs=-1), CacheConfig(num_blocks=40, dtype=dtype), num_threads=1)
    )
    [output] = llm.generate([TEXT], SamplingParams(max_tokens=1, prompt_logprobs=-1), use_tqdm=False)
    assert output.prompt_logprobs is not None
    rows = [[row[token].logprob for token in range(len(row))] for row in output.prompt_logprobs if row is not None]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    ("dtype", "least", "most"), [("int8", 5e-6, 2e-4), ("float8_e4m3fn", 2e-4, 3e-3), ("float8_e5m2", 1e-3, 1e-2)]
)
def test_the_quality_that_a_quantized_cache_costs(dtype: str, least: float, most: float) -> None:
    """Mean KL divergence, in nats per token, from the same model with a float32 cache. A mistake in scales or quantized values
    costs much more; less would mean that nothing was quantized."""
    full = logprobs("auto")
    divergence = float((full.exp() * (full - logprobs(dtype))).sum(-1).mean())
    assert least < divergence < most


def generate(dtype: str, kernels: dict[str, str], budget: int, block_size: int, num_blocks: int) -> list[list[int]]:
    llm = LLM(
        EngineConfig(
            ModelConfig(load_format="dummy", architecture=GEMMA3, dtype="float32"),
            CacheConfig(block_size, num_blocks, dtype=dtype, check_invariants=True),
            SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=budget),
            kernels=kernels,
            num_threads=1,
        )
    )
    prompts = [{"prompt_token_ids": [(7 * i + 11 * n) % 290 + 5 for i in range(n)]} for n in (5, 23, 40)]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=12, detokenize=False, ignore_eos=True), use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_layers_with_windows(dtype: str) -> None:
    """A block that fell out of a window serves another group: 27 blocks do what would take 81."""
    reference = {"default": "reference"}
    expected = generate(dtype, reference, budget=512, block_size=16, num_blocks=200)
    assert len(set(map(tuple, expected))) == 3
    assert generate(dtype, reference, budget=9, block_size=4, num_blocks=28) == expected
    assert generate(dtype, {}, budget=512, block_size=16, num_blocks=200) == expected
