"""The engine's path for GPUs, without a GPU: steps wait for nothing, devices do not mix, launches are well formed.

On a device that is only claimed (see ``claimed_cuda.py``): with the kernels that a GPU gets, whose results are 0, and with torch's,
whose results are right.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from framework import LLM, EngineConfig, LoRARequest, SamplingParams
from framework.config import CacheConfig, GraphConfig, ModelConfig, SchedulerConfig
from framework.lora_request import LoraConfig
from framework.speculation.config import SpeculativeConfig
from framework.worker import adapter_host
from framework.worker.local_executor import LocalExecutor
from tests.speculating import METHODS
from triton_kernels.impl import Impl
from triton_kernels.lab import calls, conformance
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry

from ...claimed_cuda import CUDA, ClaimedCuda, DeviceMixError, WaitError, claimed_cuda, names
from ...tiny_adapters import write_tiny_adapter

pytest.importorskip("triton")
SEPARATE = {"default": "torch"}
TORCH = SEPARATE | {"qk_norm_rotary_kv_write": "torch"}
PROMPTS = ["def main():\n    return 1\n", "import os", "class A:\n    def f(self):\n        return self.x\n", "x = [1, 2]\n" * 6]
_COMMON = {"vocab_size": 300, "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 256, "eos_token_id": 1}
_GATED = {**_COMMON, "intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": _GATED,
    "qwen3_moe": {**_GATED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "gemma2": {**_GATED, "sliding_window": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 30.0},
    "gpt2": {"vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "eos_token_id": 1},
    "gpt_neox": {**_COMMON, "intermediate_size": 96, "num_hidden_layers": 2},
}
"""The parts that models are made of: norms of heads, experts, windows and soft caps, learned positions, parallel layers."""
EVERYTHING = SamplingParams(
    temperature=1.0,
    top_k=5,
    top_p=0.9,
    min_p=0.1,
    seed=3,
    max_tokens=9,
    logprobs=3,
    prompt_logprobs=2,
    min_tokens=2,
    repetition_penalty=1.1,
    frequency_penalty=0.3,
    presence_penalty=0.2,
    logit_bias={3: 1.0},
    bad_words=["def x", "self"],
    ignore_eos=True,
)
PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True),
    EVERYTHING,
    SamplingParams(temperature=0.8, seed=4, n=3, max_tokens=7, ignore_eos=True),
    SamplingParams(temperature=0.8, seed=5, logprobs=-1, allowed_token_ids=[5, 6, 7, 800], max_tokens=4, ignore_eos=True),
]


@pytest.fixture
def cuda() -> Iterator[ClaimedCuda]:
    with claimed_cuda() as mode:
        yield mode


def config(
    device: str, kernels: dict[str, str], cache: dict[str, Any], model: ModelConfig | None = None, **scheduler: int
) -> EngineConfig:
    """A budget of 24 tokens cuts prompts, so that steps mix prompts and decodes."""
    model = model or ModelConfig("tiny")
    model.dtype, model.max_logprobs = "float32" if kernels else "bfloat16", -1
    return EngineConfig(
        model,
        CacheConfig(**cache),
        SchedulerConfig(**{"max_num_seqs": 8, "max_num_batched_tokens": 24, **scheduler}),
        graphs=GraphConfig(batch_sizes=[1, 4, 8, 64]),
        kernels=kernels,
        device=device,
        num_threads=1,
    )


def strict_llm(
    cuda: ClaimedCuda,
    kernels: dict[str, str],
    cache: dict[str, Any] | None = None,
    model: ModelConfig | None = None,
    speculative: dict[str, Any] | None = None,
    max_loras: int = 0,
    **scheduler: int,
) -> LLM:
    """An engine on the claimed device; a step that would wait raises."""
    settled = config("cuda", kernels, cache or {}, model, **scheduler)
    settled.lora = LoraConfig(True, max_loras, 8) if max_loras else LoraConfig()
    settled.speculative_config = SpeculativeConfig.of(speculative or {})
    llm = LLM(settled)
    executor = llm.engine.executor
    assert isinstance(executor, LocalExecutor)
    submit = executor.submit

    def strictly(step: Any) -> Any:
        with cuda.strict():
            handle = submit(step)
        if step.masked:
            sample = handle.sample

            def strict_sample(masks: np.ndarray) -> None:
                with cuda.strict():
                    sample(masks)

            handle.sample = strict_sample
        return handle

    executor.submit = strictly  # type: ignore[method-assign]
    return llm


def completions(llm: LLM) -> list[list[list[int]]]:
    return [[c.token_ids for c in output.outputs] for output in llm.generate(PROMPTS, PARAMS, use_tqdm=False)]


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize(
    ("kernels", "block_size", "expected"),
    [
        ({}, 16, {"prefill_kernel", "work_list_kernel", "balanced_kernel"}),
        ({"paged_attention_decode": "splitkv"}, 64, {"prefill_kernel", "splitkv_kernel"}),
    ],
    ids=["pages_of_16", "pages_of_64"],
)
def test_no_step_on_triton_kernels_waits(
    cuda: ClaimedCuda, kernels: dict[str, str], block_size: int, expected: set[str], in_flight: int
) -> None:
    llm = strict_llm(cuda, kernels, {"block_size": block_size}, in_flight_steps=in_flight)
    captured = len(cuda.launches)
    assert captured, "decode graphs are captured"
    completions(llm)
    eager = names(cuda.launches[captured:])
    assert expected | {"scan_kernel", "choose_kernel", "penalties_kernel", "partials_kernel", "copy_blocks_kernel"} <= eager


def test_graphs_replay_what_was_captured(cuda: ClaimedCuda) -> None:
    llm = strict_llm(cuda, {})
    llm.generate("x", SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True), use_tqdm=False)
    cuda.launches.clear()
    llm.generate("x", SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True), use_tqdm=False)
    assert "balanced_kernel" not in names(cuda.launches), "a decode step launched its kernels one by one"


@pytest.mark.parametrize("decode", ["balanced", "splitkv"])
def test_what_a_recording_points_at_stays(cuda: ClaimedCuda, decode: str) -> None:
    llm = strict_llm(cuda, {"paged_attention_decode": decode}, {"block_size": 64}, max_num_seqs=64)
    gc.collect()
    assert len(cuda.recorded) > len(llm.engine.executor._runner.caches)
    assert not [storage for storage in cuda.recorded if storage.expired()], "recordings point at memory that was freed"


def family(name: str) -> ModelConfig:
    return ModelConfig(name, load_format="dummy", architecture={**FAMILIES[name], "model_type": name})


def tokens(llm: LLM) -> list[list[int]]:
    """Of a dummy model, without text."""
    prompts = [{"prompt_token_ids": list(range(5, 5 + n))} for n in (3, 30, 17)]
    params = [SamplingParams(temperature=t, seed=2, max_tokens=20, detokenize=False, ignore_eos=True) for t in (0.0, 1.0, 0.0)]
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]


@pytest.mark.parametrize("cache_dtype", ["auto", "float8_e4m3fn", "int8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_waits(cuda: ClaimedCuda, name: str, cache_dtype: str) -> None:
    tokens(strict_llm(cuda, {}, {"num_blocks": 80, "dtype": cache_dtype}, family(name)))


@pytest.mark.filterwarnings("ignore:decode steps run without CUDA graphs")
@pytest.mark.parametrize("cache_dtype", ["auto", "int8"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if "moe" not in name])  # torch's experts do wait
def test_families_on_torch_kernels_give_the_tokens_of_a_cpu(name: str, cache_dtype: str) -> None:
    cache = {"num_blocks": 80, "dtype": cache_dtype}
    expected = tokens(LLM(config("cpu", SEPARATE, cache, family(name))))
    with claimed_cuda() as cuda:
        assert tokens(strict_llm(cuda, SEPARATE, cache, family(name))) == expected


@pytest.mark.parametrize("in_flight", [1, 2])
def test_torch_kernels_give_the_tokens_of_a_cpu(in_flight: int) -> None:
    expected = completions(LLM(config("cpu", TORCH, {"num_blocks": 60})))
    with claimed_cuda() as cuda, pytest.warns(UserWarning, match="without CUDA graphs"):
        assert completions(strict_llm(cuda, TORCH, {"num_blocks": 60}, in_flight_steps=in_flight)) == expected


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("oracle", "forced")])
def test_drafts_are_made_and_checked_without_waiting(method: str, in_flight: int) -> None:
    """How many of them were right is known to the device alone, while the next step is on its way."""
    expected = completions(LLM(config("cpu", TORCH, {"num_blocks": 60})))
    speculative = {**METHODS[method], "num_speculative_tokens": 3}
    with claimed_cuda() as cuda, pytest.warns(UserWarning, match="without CUDA graphs"):
        llm = strict_llm(cuda, TORCH, {"num_blocks": 60}, speculative=speculative, in_flight_steps=in_flight)
        assert completions(llm) == expected
    assert sum(llm.engine.stats().drafts.drafts)


@pytest.mark.parametrize("method", ["ngram", "draft_model", "mtp", "eagle3"])
def test_no_step_with_drafts_on_triton_kernels_waits(cuda: ClaimedCuda, method: str) -> None:
    completions(strict_llm(cuda, {}, speculative={**METHODS[method], "num_speculative_tokens": 3}))


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_steps_with_masks_wait_for_nothing_either(in_flight: int) -> None:
    """Some rows follow a grammar; the tokens of the step before come to the host anyway."""
    constraint: Any = {"regex": "[a-z ]{3,8}[0-9]{2}"}
    forms = [None, constraint, None, constraint]
    params = [SamplingParams(temperature=0.9, seed=7, max_tokens=12, structured_outputs=form) for form in forms]

    def tokens(llm: LLM) -> list[list[int]]:
        return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params, use_tqdm=False)]

    expected = tokens(LLM(config("cpu", TORCH, {"num_blocks": 60})))
    with claimed_cuda() as cuda, pytest.warns(UserWarning, match="without CUDA graphs"):
        assert tokens(strict_llm(cuda, TORCH, {"num_blocks": 60}, in_flight_steps=in_flight)) == expected


class SameThread(Executor):
    """In others, nobody claims a device."""

    def __init__(self, *settings: Any, **named: Any) -> None:
        pass

    def submit(self, function: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*args, **named))
        return done


@pytest.fixture
def reads_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_host, "ThreadPoolExecutor", SameThread)


def adapters(folder: Path) -> list[LoRARequest | None]:
    """Of the prompts."""
    made = [write_tiny_adapter(folder / str(i), i, targets=("o_proj", "up_proj", "embed_tokens", "lm_head")) for i in (1, 2, 3)]
    return [None, *made]


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.usefixtures("reads_here")
def test_adapters_are_loaded_and_added_without_waiting(in_flight: int, tmp_path: Path) -> None:
    params, requests = SamplingParams(temperature=0.0, max_tokens=9, prompt_logprobs=1, ignore_eos=True), adapters(tmp_path)

    def tokens(llm: LLM) -> list[list[int]]:
        outputs = llm.generate(PROMPTS, params, use_tqdm=False, lora_request=requests)
        return [output.outputs[0].token_ids for output in outputs]

    on_cpu = config("cpu", TORCH, {"num_blocks": 60})
    on_cpu.lora = LoraConfig(True, 3, 8)
    expected = tokens(LLM(on_cpu))
    with claimed_cuda() as cuda, pytest.warns(UserWarning, match="without CUDA graphs"):
        assert tokens(strict_llm(cuda, TORCH, {"num_blocks": 60}, max_loras=2, in_flight_steps=in_flight)) == expected


@pytest.mark.usefixtures("reads_here")
def test_rows_are_grouped_by_adapter_once_per_step(cuda: ClaimedCuda, tmp_path: Path) -> None:
    llm = strict_llm(cuda, {}, max_loras=3, max_num_batched_tokens=256)
    assert {"shrink_kernel", "expand_kernel", "group_kernel"} <= names(cuda.launches), "there are graphs with adapters"
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    cuda.launches.clear()
    llm.generate(PROMPTS[0], params, use_tqdm=False, lora_request=adapters(tmp_path)[1])
    eager = [name.strip("_") for name in cuda.launches]
    layers = len(llm.engine.executor._runner.caches)
    assert [eager.count(kind) for kind in ("group_kernel", "shrink_kernel")] == [2, 4 * layers + 1], "of tokens, and of logits"
    cuda.launches.clear()
    llm.generate(PROMPTS[0], params, use_tqdm=False)
    assert not {"shrink_kernel", "expand_kernel", "group_kernel"} & names(cuda.launches), "nobody has an adapter"


def test_preempted_requests_resume(cuda: ClaimedCuda) -> None:
    llm = strict_llm(cuda, {}, {"num_blocks": 9, "block_size": 8, "prefix_caching": False})
    llm.generate(PROMPTS[:2] * 3, SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True), use_tqdm=False)
    assert llm.engine.stats().num_preemptions > 0


@pytest.mark.parametrize("max_num_batched_tokens", [24, 5000])
def test_the_cache_takes_what_a_forward_pass_leaves(max_num_batched_tokens: int) -> None:
    """Also of a step that has room for more than one of the longest prompts."""
    with claimed_cuda(free_bytes=1 << 24) as cuda:
        cache = {"block_size": 16, "memory_fraction": 0.9}
        llm = strict_llm(cuda, {}, cache, max_num_batched_tokens=max_num_batched_tokens)
        assert "prefill_kernel" in cuda.launches
        block = (
            sum(t.nbytes for kv in llm.engine.executor._runner.caches.values() for t in (kv.k, kv.v))
            // llm.engine.executor.num_blocks
        )
    budget = (1 << 24) - 0.1 * (1 << 25)
    assert budget - block < llm.engine.executor.num_blocks * block <= budget


REGISTRY = Registry.load()
COMPILED_BY_TORCH = ("flex",)  # for a device that has to be there
ACROSS_RANKS = ("nccl", "threads", "symm_mem")  # that serve several only
ON_CUDA = [
    i
    for i in REGISTRY
    if "cuda" in i.devices
    and i.origin.startswith("triton_kernels.impls")
    and i.requires in ((), ("triton",))
    and i.name not in (*COMPILED_BY_TORCH, *ACROSS_RANKS)
]


@pytest.mark.parametrize("found", ON_CUDA, ids=lambda i: f"{i.op}-{i.name}")
def test_an_impl_on_a_gpu_waits_for_nothing(cuda: ClaimedCuda, found: Impl) -> None:
    """And its launches are well formed; torch impls are right on their paths for GPUs."""
    op = OPS[found.op]
    served = 0
    for case in op.cases:
        if "bench" in case.tags:
            continue
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            args = calls.make_args(op, case, dtype, CUDA)
            spec = calls.make_spec(op, args, dtype, CUDA)
            if found.unsupported(spec):
                continue
            served += 1
            try:
                bound = calls.bind(op, found, spec, args)
            except (NotImplementedError, RuntimeError) as error:  # torch has this for GPUs only
                pytest.skip(str(error).splitlines()[0])
            try:
                if found.flags.cuda_graph:
                    with cuda.strict():
                        calls.call(op, bound, args)
                if not found.is_triton and dtype != torch.float16:
                    result = conformance.check(op, found, case, dtype, CUDA)
                    assert result.ok, f"{case.name}: {result.message}"
            except NotImplementedError:  # a product of 16-bit numbers in float32
                assert args.get("partial")
    assert served, "every case was refused"


@pytest.mark.parametrize(
    ("error", "act"),
    [
        (WaitError, lambda x, host: x.sum().item()),
        (WaitError, lambda x, host: bool((x > 0).any())),
        (WaitError, lambda x, host: x[x > 0]),
        (WaitError, lambda x, host: x[host.long()]),
        (WaitError, lambda x, host: x[: x.long()[0]]),
        (WaitError, lambda x, host: x.nonzero()),
        (WaitError, lambda x, host: x.copy_(host)),
        (WaitError, lambda x, host: x.copy_(host, non_blocking=True)),
        (WaitError, lambda x, host: x.cpu()),
        (WaitError, lambda x, host: host.to(CUDA)),
        (WaitError, lambda x, host: torch.tensor([1, 2], device=CUDA)),
        (WaitError, lambda x, host: list(range(x.long()[0]))),
        (DeviceMixError, lambda x, host: x + host),
        (DeviceMixError, lambda x, host: torch.cat([x, host])),
        (DeviceMixError, lambda x, host: x + torch.arange(4)),
    ],
)
def test_what_a_gpu_would_not_do_is_found(
    cuda: ClaimedCuda, error: type[Exception], act: Callable[[torch.Tensor, torch.Tensor], Any]
) -> None:
    with cuda.strict(), pytest.raises(error):
        act(torch.ones(4, device=CUDA), torch.ones(4))


def test_what_does_not_wait_is_let_through(cuda: ClaimedCuda) -> None:
    with cuda.strict():
        x = torch.ones(4).pin_memory().to(CUDA, non_blocking=True)
        x[1] = 3.0
        x[torch.tensor([0, 2]).pin_memory().to(CUDA, non_blocking=True)] += torch.where(x > 0, x, 0.0)[:2]
        back = torch.empty_like(x, device="cpu", pin_memory=True).copy_(x, non_blocking=True)
    assert back.tolist() == [2.0, 3.0, 4.0, 1.0] and x.device.type == "cuda" and not back.is_cuda
