"""Models that the transformers library computes, without a device: a simulated step calls what a real one does, and what the
library launches beside that is what torch sees of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from framework.build import build_engine
from framework.config import (
    CacheConfig,
    EngineConfig,
    ExecutorConfig,
    GraphConfig,
    LoraConfig,
    ModelConfig,
    ParallelConfig,
    QuantConfig,
    SchedulerConfig,
)
from framework.engine.diffusion import DiffusionConfig
from framework.engine.engine import Engine
from framework.executor.encoders import LIBRARY
from framework.models.dry_run import DryRun
from framework.models.launches import ELEMENTWISE, Launch
from framework.models.read import read_model
from framework.plan import BoundKernel
from framework.sampling_params import SamplingParams

from ...counted_launches import CountedLaunches
from ...models.test_diffusion_gemma import ARCHITECTURE, CANVAS, TEXT
from ..engines import run, tokens
from .test_canvases import in_common

SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "max_position_embeddings": 256}
LLAMA = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
GPT_OSS = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8, "head_dim": 16}
MODELS: dict[str, dict[str, Any]] = {
    "diffusion_gemma": ARCHITECTURE,
    "llama": {**LLAMA, "model_type": "llama"},
    "gpt2": {"model_type": "gpt2", "vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "gemma2": {**LLAMA, "model_type": "gemma2", "head_dim": 8, "sliding_window": 8, "attn_logit_softcapping": None},
    "qwen3_moe": {**LLAMA, **MOE, "model_type": "qwen3_moe"},
    "gpt_oss": {**LLAMA, **GPT_OSS, "model_type": "gpt_oss"},
}


def config(kind: str, name: str, **given: Any) -> EngineConfig:
    model = ModelConfig(
        "none", load_format="dummy", dtype="float32", backend="auto" if name == "diffusion_gemma" else "transformers",
        skip_tokenizer=True, architecture=MODELS[name], max_model_len=200,
    )  # fmt: skip
    kernels = {"default": "reference"} if kind == "local" else {}
    executor = given.pop("executor", ExecutorConfig(kind))
    cache = given.pop("cache", CacheConfig(16, num_blocks=200))
    return EngineConfig(
        model, cache, executor=executor, kernels=kernels, num_threads=int(kind == "local"), graphs=GraphConfig(False), **given
    )


def serve(engine: Engine) -> None:
    """Prompts of one token and of more than one chunk, first one, then beside each other."""
    for counts in ((1,), (9, 1, 51, 33)):
        for index, count in enumerate(counts):
            params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, seed=index)
            engine.add_request(str(index), {"prompt_token_ids": [5 + index] * count}, params)
        while engine.has_unfinished():
            engine.step()


@pytest.mark.parametrize("name", MODELS)
def test_a_simulated_step_calls_what_a_real_one_does(name: str) -> None:
    found, weights, groups = [], [], []
    for kind in ("local", "simulated"):
        given: dict[str, Any] = {"profile": True, "scheduler": SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=40)}
        if name == "diffusion_gemma":
            given["diffusion"] = DiffusionConfig(max_passes=2)
        engine = build_engine(config(kind, name, **given))
        serve(engine)
        assert engine.executor.call_times is not None
        calls: Counter[Any] = Counter()
        for call, _, _, count in engine.executor.call_times:
            if call.op != LIBRARY:
                op, *described = in_common(replace(call, options=call.options if name == "diffusion_gemma" else ()))
                calls[op, *described] += count
        found.append(calls)
        weights.append(engine.executor.weight_bytes)
        groups.append(engine.executor.groups)
    real, simulated = found
    assert simulated == real and {"linear", "paged_attention_prefill", "sample"} <= {op for op, *_ in real}
    assert groups[0] == groups[1]
    assert weights[1] <= weights[0] <= weights[1] + 20000, "beside weights there are angles, and constants"


def shapes(number: int, launch: Launch) -> list[tuple[float, ...]]:
    """Rows and weights of the products that a launch of the library's stands for."""
    dims = dict(launch.dims)
    if launch.op == "linear":
        return [(number, dims["in_features"], dims["out_features"])]
    experts, hidden, inner = (dims[name] for name in ("num_experts", "hidden_size", "intermediate_size"))
    rows = number * dims["top_k"]
    return [(rows, experts, hidden, 2 * inner), (rows, experts, inner, hidden)]


@pytest.mark.parametrize("name", ["diffusion_gemma", "gpt_oss", "gpt2"])
def test_launches_are_those_that_torch_sees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"diffusion": DiffusionConfig(max_passes=2)} if name == "diffusion_gemma" else {}
    given["scheduler"] = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=40)
    asked = config("local", name, **given)
    engine, seen = build_engine(asked), CountedLaunches()
    dry = DryRun(asked, read_model(asked.model))
    launches = dry.launches()
    model, steps, mixed = engine.executor._runner.model, list[tuple[int, int, int]](), list[bool]()
    kernel = BoundKernel.__call__

    def ours(self: BoundKernel, *args: Any) -> Any:
        seen.is_ours, before = True, seen.is_ours
        try:
            return kernel(self, *args)
        finally:
            seen.is_ours = before

    def watched(call: Any) -> Any:
        def run(*args: Any) -> Any:
            with seen:
                return call(*args)

        return run

    plain = watched(model.forward)

    def forward(batch: Any) -> Any:
        groups = [group.whole for group in batch.groups if group.whole is not None and group.whole.slots is not None]
        steps.append((batch.num_tokens, len(batch.logits_indices), groups[0].slots.numel() if groups else 0))
        mixed.append(all(group.decode and group.prefill for group in batch.groups))
        return plain(batch)

    monkeypatch.setattr(BoundKernel, "__call__", ours)
    monkeypatch.setattr(model, "forward", forward)
    monkeypatch.setattr(model, "logits", watched(model.logits))
    if name == "diffusion_gemma":
        monkeypatch.setattr(model, "said", watched(model.said))
        monkeypatch.setattr("framework.worker.runner.entropies", watched(engine.executor._runner._sample.__globals__["entropies"]))
    serve(engine)
    count = num_bytes = num_calls = 0.0
    products: Counter[Any] = Counter()
    for rows in steps:
        for number, counted in zip(rows, (launches.tokens, launches.logits, launches.taken)):
            for launch, times in counted.items() if number else ():
                num_calls += times * launch.library
                if launch.op == ELEMENTWISE:
                    count += times
                    num_bytes += times * (launch.each * number + launch.fixed)
                elif launch.library:
                    for shape in shapes(number, launch):
                        products[shape] += times
    if name == "diffusion_gemma":  # the sampler's division by temperatures, and its most probable tokens
        with_logits = sum(bool(rows[1]) for rows in steps)
        count -= 2 * with_logits
        num_bytes -= sum(rows[1] * (3 * TEXT["vocab_size"] * 4 + 4 + 8) for rows in steps)
        assert any(rows[2] for rows in steps) and any(rows[1] and not rows[2] for rows in steps)
    simulated = build_engine(config("simulated", name, **given))
    serve(simulated)
    assert simulated.executor.op_times()[LIBRARY].calls == num_calls
    assert products == seen.products and products
    assert any(mixed), "in each layer what attention gives of decodes is put beside that of other rows then, by us"
    width = sum(layer.dims["num_heads"] * layer.dims["head_dim"] for layer in dry.attention)
    count += 3 * sum(mixed)
    num_bytes += sum(2 * 4 * width * rows[0] for rows, is_mixed in zip(steps, mixed) if is_mixed)
    assert count == seen.count
    if name == "diffusion_gemma":  # beside prompts, what is done to all tokens for canvases is counted by the tokens of these alone
        assert num_bytes == pytest.approx(seen.num_bytes, rel=0.01)
    else:
        assert num_bytes == seen.num_bytes


@pytest.mark.parametrize("kind", ["null", "simulated"])
def test_mixes_change_nothing(kind: str) -> None:
    """Canvases that are drawn anew in a mean number of passes, whatever else is computed beside them; the null executor checks what
    each of them reads."""
    jobs = [
        ([5 + index] * count, SamplingParams(max_tokens=3 * CANVAS - index, ignore_eos=True, seed=index))
        for index, count in enumerate((1, 40, 9, 33, 8, 60))
    ]
    checked = CacheConfig(4, num_blocks=400, prefix_caching=False, check_invariants=True)
    unchecked = replace(checked, check_invariants=False)
    executor, rule = ExecutorConfig("null", passes_per_canvas=2.5), DiffusionConfig(max_passes=6)
    alone = build_engine(config("null", "diffusion_gemma", executor=executor, diffusion=rule, cache=unchecked))
    expected = [tokens(run(alone, [job]))[0] for job in jobs]
    for scheduler, num_blocks in ((SchedulerConfig(), 400), (SchedulerConfig(max_num_seqs=3, max_num_batched_tokens=24), 46)):
        given: dict[str, Any] = {"diffusion": rule, "scheduler": scheduler}
        cache = replace(unchecked, num_blocks=num_blocks, prefix_caching=None)
        engine = build_engine(config(kind, "diffusion_gemma", executor=replace(executor, kind=kind), cache=cache, **given))
        assert tokens(run(engine, jobs)) == expected
        assert num_blocks == 400 or engine.stats().num_preemptions > 0
        assert engine.stats().num_denoising_passes >= alone.stats().num_denoising_passes
    if kind == "null":
        mirrored = config(kind, "diffusion_gemma", executor=executor, cache=replace(cache, check_invariants=True), **given)
        assert [len(*each) for each in tokens(run(build_engine(mirrored), jobs))] == [len(*each) for each in expected]


def test_what_depends_on_numbers_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    layer = transformers.models.gpt2.modeling_gpt2.GPT2Block
    plain = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, x, *args, **given: plain(self, x * float(x.sum()), *args, **given))
    for kind in ("null", "simulated"):
        with pytest.raises(ValueError, match=r"model 'none' cannot be simulated: .* without its numbers: .*meta"):
            build_engine(config(kind, "gpt2"))


@pytest.mark.parametrize("name", ["gpt2", "diffusion_gemma"])
def test_what_the_library_cannot_have_is_refused(name: str) -> None:
    for given, said in (
        ({"parallel": ParallelConfig(tp=2)}, r"parallel\.tp=2"),
        ({"quant": QuantConfig(scheme="int8")}, "cannot have quantized weights"),
    ):
        with pytest.raises(ValueError, match=said):
            build_engine(config("simulated", name, **given))
    with pytest.raises(ValueError, match=r"lora|adapters"):
        build_engine(config("null", name, lora=LoraConfig(enabled=True)))
