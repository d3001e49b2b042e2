"""The engine on a device: the same tokens however steps are run, no waiting, nothing compiled late, memory that suffices."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from framework import LLM, EngineConfig, SamplingParams
from framework.config import CACHE_DTYPES, CacheConfig, GraphConfig, ModelConfig, SchedulerConfig
from framework.models.hub import resolve_model
from framework.plan import count_compilations
from framework.worker.local_executor import LocalExecutor

from ..framework.worker.test_cuda_host_path import EVERYTHING, PARAMS, PROMPTS

LLAMA = Path(__file__).parents[2] / "conf" / "model" / "llama-3-8b.yaml"
GPU = pytest.mark.gpu
DEVICES = [pytest.param("cpu", id="cpu"), pytest.param("cuda", marks=GPU, id="cuda")]
INVARIANT = {"cpu": {"linear": "torch"}, "cuda": {"linear": "triton_invariant"}}
"""Kernels whose results do not depend on how a step is padded and cut."""
QUANTIZED = [dtype for dtype in CACHE_DTYPES if dtype not in ("auto", "float32", "float16", "bfloat16")]


def engine(
    device: str,
    *,
    dtype: str = "float32",
    kernels: dict[str, str] | None = None,
    graphs: bool = True,
    in_flight: int = 1,
    cache: dict[str, Any] | None = None,
    model: ModelConfig | None = None,
    **scheduler: int,
) -> LLM:
    return LLM(
        EngineConfig(
            model or ModelConfig("tiny", dtype=dtype, max_logprobs=-1),
            CacheConfig(**{"num_blocks": 300, **(cache or {})}),
            SchedulerConfig(**{"max_num_seqs": 8, "max_num_batched_tokens": 64, "in_flight_steps": in_flight, **scheduler}),
            graphs=GraphConfig(graphs, [1, 2, 4, 8]),
            kernels=kernels or {},
            device=device,
            num_threads=1,
        )
    )


def completions(llm: LLM) -> list[list[list[int]]]:
    return [[c.token_ids for c in output.outputs] for output in llm.generate(PROMPTS, PARAMS, use_tqdm=False)]


def strictly(llm: LLM) -> LLM:
    """From now on a step that waits for the device raises; results, which have to wait, are taken outside."""
    executor = llm.engine.executor
    assert isinstance(executor, LocalExecutor)
    submit = executor.submit

    def without_waiting(step: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return submit(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    executor.submit = without_waiting  # type: ignore[method-assign]
    return llm


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_do_not_depend_on_how_steps_are_run(device: str, dtype: str) -> None:
    """Recorded or launched, one in flight or two."""
    common: dict[str, Any] = {"dtype": dtype, "kernels": INVARIANT[device]}
    expected = completions(engine(device, graphs=False, **common))
    for graphs, in_flight in ((True, 1), (True, 2), (False, 2)):
        assert completions(engine(device, graphs=graphs, in_flight=in_flight, **common)) == expected, (graphs, in_flight)


@GPU
@pytest.mark.parametrize("decode", ["splitkv", "balanced"])
def test_recordings_keep_the_memory_that_they_use(decode: str) -> None:
    """What was freed since they were captured goes back to the device, and others write NaN over it."""
    common: dict[str, Any] = {"kernels": {**INVARIANT["cuda"], "paged_attention_decode": decode}}
    expected = completions(engine("cuda", graphs=False, **common))
    llm = engine("cuda", **common)
    gc.collect()
    torch.cuda.empty_cache()
    others = [torch.full((size,), 0xFF, dtype=torch.uint8, device="cuda") for size in [1 << 12, 1 << 16, 1 << 20, 1 << 24] * 64]
    assert completions(llm) == expected
    del others


@GPU
@pytest.mark.parametrize("decode", ["splitkv", "balanced"])
@pytest.mark.parametrize("block_size", [16, 64])
def test_tokens_do_not_depend_on_the_attention_kernel(decode: str, block_size: int) -> None:
    expected = completions(
        engine("cuda", kernels=dict.fromkeys(("paged_attention_decode", "paged_attention_prefill"), "reference"))
    )
    ours = completions(engine("cuda", kernels={"paged_attention_decode": decode}, cache={"block_size": block_size}))
    assert ours == expected


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "slack"), [("float32", 1e-3), ("bfloat16", 0.25)])
@pytest.mark.parametrize("backend", ["native", "transformers"])
def test_tokens_are_those_of_transformers(device: str, dtype: str, slack: float, backend: str) -> None:
    """Each greedy token has the largest of the library's logits, given the tokens before it, or one within ``slack`` of it."""
    from transformers import AutoModelForCausalLM

    folder = resolve_model("tiny")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
    llm = engine(device, model=ModelConfig("tiny", dtype=dtype, backend=backend))
    outputs = llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True), use_tqdm=False)
    num_equal = 0
    for output in outputs:
        prompt, completion = output.prompt_token_ids, output.outputs[0].token_ids
        with torch.inference_mode():
            logits = theirs(torch.tensor([[*prompt, *completion]], device=device)).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits.gather(1, torch.tensor(completion, device=device)[:, None])[:, 0]
        assert float((logits.amax(-1) - chosen).max()) <= slack
        num_equal += int((logits.argmax(-1).cpu() == torch.tensor(completion)).sum())
    assert num_equal >= 0.95 * 40 * len(outputs)


@GPU
@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("dtype", ["bfloat16", *QUANTIZED])
def test_no_step_of_a_warm_engine_waits(dtype: str, block_size: int, in_flight: int) -> None:
    cache = {"dtype": dtype, "block_size": block_size, "prefix_caching": False}
    llm = engine("cuda", dtype="bfloat16", in_flight=in_flight, cache=cache)
    expected = completions(llm)  # compiles and loads, which may wait
    assert completions(strictly(llm)) == expected


@GPU
def test_steps_on_torch_kernels_do_not_wait() -> None:
    ops = (
        "paged_attention_prefill",
        "paged_attention_decode",
        "qk_norm_rotary_kv_write",
        "linear",
        "rms_norm",
        "sample",
        "apply_penalties",
        "gather_logprobs",
        "copy_blocks",
        "embedding",
        "silu_and_mul",
    )
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        llm = engine("cuda", kernels=dict.fromkeys(ops, "torch"), cache={"prefix_caching": False})
    expected = completions(llm)
    assert completions(strictly(llm)) == expected


@GPU
def test_a_warm_engine_compiles_nothing() -> None:
    llm = engine("cuda", dtype="bfloat16")
    completions(llm)
    completions(llm)  # with cached prefixes
    llm.generate([p * 2 for p in PROMPTS] * 2, EVERYTHING, use_tqdm=False)
    with count_compilations() as compiled:
        completions(llm)
        llm.generate([p * 3 for p in PROMPTS] * 2, EVERYTHING, use_tqdm=False)
    assert compiled == []


def llama(num_layers: int) -> ModelConfig:
    """Llama 3 8B with fewer layers and random weights."""
    settings = yaml.safe_load(LLAMA.read_text(encoding="utf-8"))
    return ModelConfig("llama", load_format="dummy", architecture={**settings["architecture"], "num_hidden_layers": num_layers})


@GPU
@pytest.mark.parametrize("cache_dtype", ["auto", *QUANTIZED])
def test_large_shapes_give_the_same_tokens_however_steps_are_run(cache_dtype: str) -> None:
    prompts = [{"prompt_token_ids": list(range(5, 5 + n))} for n in (3, 600, 64, 1, 200, 2000)]
    params = [SamplingParams(temperature=t, seed=7, top_p=0.9, max_tokens=12, detokenize=False) for t in (0.0, 1.0) * 3]
    found = []
    for graphs, in_flight in ((False, 1), (True, 2)):
        llm = engine(
            "cuda",
            model=llama(2),
            kernels=INVARIANT["cuda"],
            graphs=graphs,
            in_flight=in_flight,
            cache={"block_size": 64, "dtype": cache_dtype},
            max_num_batched_tokens=1024,
        )
        found.append([o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)])
        llm.engine.shutdown()
    assert found[0] == found[1]


@GPU
def test_the_cache_leaves_room_for_the_largest_step() -> None:
    """Blocks are counted from a forward pass; a full batch of the longest prompts then fits."""
    llm = engine(
        "cuda",
        model=llama(2),
        cache={"num_blocks": None, "memory_fraction": 0.5, "block_size": 64},
        max_num_seqs=64,
        max_num_batched_tokens=8192,
    )
    _, total = torch.cuda.mem_get_info()
    assert torch.cuda.memory_reserved() <= 0.5 * total
    assert llm.engine.executor.num_blocks > 1000
    prompts = [{"prompt_token_ids": [7] * 4000} for _ in range(64)]
    llm.generate(prompts, SamplingParams(temperature=1.0, max_tokens=4, detokenize=False, logprobs=5), use_tqdm=False)
    assert torch.cuda.max_memory_reserved() <= 0.6 * total


@GPU
def test_kernels_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from framework.cli import main

    assert (
        main(
            [
                "kernels",
                "bench",
                "silu_and_mul",
                "rms_norm:triton",
                "--case-seconds",
                "0.2",
                "--budget",
                "20",
                "--device",
                "cuda",
                "--output",
                str(tmp_path),
            ]
        )
        == 0
    )
    assert "silu_and_mul" in capsys.readouterr().out
