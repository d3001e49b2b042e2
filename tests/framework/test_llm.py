"""The offline interface on the embedded model, against the transformers library."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoModelForCausalLM, AutoTokenizer

import framework
from framework import LLM, EngineConfig, Logprob, RequestOutput, SamplingParams, TokensPrompt
from framework.config import CacheConfig, ModelConfig
from framework.engine.errors import EngineDeadError
from framework.engine.step import NewRequest
from framework.metrics import Counter, Gauge, Histogram
from triton_kernels.resolve import NoKernelError, override

TINY = Path(__file__).parents[2] / "framework" / "assets" / "tiny"
PROMPTS = ["def read_file(path):\n", "import os\n", "class Parser:\n    def __init__(self", "# The following"]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("tiny", dtype="float32", num_gpu_blocks_override=512)


def test_the_quick_start_of_vllm_runs_with_only_the_import_changed() -> None:
    prompts = ["Hello, my name is", "The president of the United States is", "The capital of France is", "The future of AI is"]
    sampling_params = SamplingParams(temperature=0.8, top_p=0.95)
    llm = LLM(model="tiny")
    outputs = llm.generate(prompts, sampling_params)
    for output, prompt in zip(outputs, prompts):
        assert output.prompt == prompt
        assert output.outputs[0].text
        assert len(output.outputs[0].token_ids) == 16


SCRIPT = """
from vllm import LLM, SamplingParams, TextPrompt, TokensPrompt

llm = LLM(
    model="tiny", tokenizer="tiny", tokenizer_mode="auto", skip_tokenizer_init=False, trust_remote_code=False, revision=None,
    tensor_parallel_size=1, pipeline_parallel_size=1, dtype="half", quantization=None, load_format="safetensors", seed=0,
    hf_overrides=None, gpu_memory_utilization=0.9, enforce_eager=True, max_model_len=128, max_num_seqs=8,
    max_num_batched_tokens=64, block_size=16, kv_cache_dtype="auto", enable_prefix_caching=True, enable_chunked_prefill=True,
    max_logprobs=5, disable_log_stats=False, generation_config="vllm",
)
params = llm.get_default_sampling_params()
params.max_tokens, params.logprobs, params.seed = 4, 5, 0
prompts = [TextPrompt(prompt="import os"), TokensPrompt(prompt_token_ids=llm.get_tokenizer().encode("def f")), "class A:"]
outputs = llm.generate(prompts, params, use_tqdm=False)
for output in outputs:
    print(output.prompt, output.outputs[0].text, output.outputs[0].logprobs[0])
assert llm.reset_prefix_cache()
metrics = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
"""


def test_a_script_for_vllm_runs_with_only_the_import_changed() -> None:
    names: dict[str, Any] = {}
    exec(SCRIPT.replace("from vllm", "from framework"), names)
    llm, outputs = names["llm"], names["outputs"]
    config = llm.engine.config
    assert not config.graphs.enabled and config.model.dtype == "float16" and config.model.load_format == "auto"
    assert llm.engine.executor.max_model_len == 128 and config.model.max_logprobs == 5
    assert [len(output.outputs[0].token_ids) for output in outputs] == [4, 4, 4]
    assert all(isinstance(entry, Logprob) for entry in outputs[0].outputs[0].logprobs[0].values())
    metrics = names["metrics"]
    assert metrics["vllm:generation_tokens"] == 12
    assert metrics["vllm:prompt_tokens"] == sum(len(output.prompt_token_ids) for output in outputs)
    assert metrics["vllm:num_requests_running"] == metrics["vllm:kv_cache_usage_perc"] == 0
    assert {type(metric) for metric in llm.get_metrics()} == {Counter, Gauge, Histogram}
    assert llm.get_metrics()[0].labels == {"model_name": "tiny", "engine": "0"}


def storages() -> dict[int, StorageWeakRef]:
    """The memory of all tensors that Python knows of, by address."""
    tensors = [found for found in gc.get_objects() if type(found) in (torch.Tensor, torch.nn.Parameter)]  # others have no memory
    held = [tensor.untyped_storage() for tensor in tensors if tensor.layout == torch.strided]
    return {storage.data_ptr(): StorageWeakRef(storage) for storage in held}


@pytest.mark.parametrize("how", ["deleted", "shut down"])
def test_weights_cache_and_recordings_go_with_their_llm(how: str) -> None:
    """At once: a device has no room for the next model until the garbage collector comes by."""
    LLM("tiny", num_gpu_blocks_override=64, block_size=16).shutdown()  # imports leave circles of their own
    gc.collect()
    gc.disable()  # from the start, so that a circle that loading leaves is noticed whenever the collector would have come by
    try:
        before = storages()
        llm = LLM("tiny", num_gpu_blocks_override=64, block_size=16)
        llm.generate(PROMPTS, SamplingParams(max_tokens=8), use_tqdm=False)
        held = [storage for address, storage in storages().items() if address not in before]
        assert len(held) > 30
        if how == "deleted":
            del llm
        else:
            llm.shutdown()
        assert all(storage.expired() for storage in held)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trust_remote_code": True}, "code that comes with a model is never run"),
        ({"tokenizer_mode": "mistral"}, "tokenizer_mode='mistral'"),
        ({"quantization": "awq"}, "'tiny' is not quantized"),
        ({"load_format": "pt"}, "model.load_format='pt'"),
        ({"dtype": "int4"}, "int4"),
        ({"max_logprobs": -2}, "model.max_logprobs=-2"),
        ({"swap_space": 4, "cpu_offload_gb": 0}, "LLM has no swap_space, cpu_offload_gb .* max_num_seqs"),
        ({"model": EngineConfig(), "max_model_len": 10}, "max_model_len cannot be given beside an EngineConfig"),
    ],
)
def test_arguments_that_cannot_be_met_are_refused_with_a_reason(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LLM(**{"model": "tiny", **arguments})


def test_a_folder_without_a_tokenizer_serves_ids(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ValueError, match="skip_tokenizer_init"):
        LLM(str(folder), num_gpu_blocks_override=64)
    llm = LLM(str(folder), skip_tokenizer_init=True, num_gpu_blocks_override=64)
    [output] = llm.generate(
        [TokensPrompt(prompt_token_ids=[5, 6, 7])], SamplingParams(max_tokens=3, ignore_eos=True), use_tqdm=False
    )
    assert len(output.outputs[0].token_ids) == 3 and output.outputs[0].text == "" and output.prompt is None
    assert llm.generate([5, 6, 7], use_tqdm=False)[0].outputs[0].token_ids
    with pytest.raises(ValueError, match="no tokenizer"):
        llm.generate("text", use_tqdm=False)
    with pytest.raises(ValueError, match="no tokenizer"):
        llm.get_tokenizer()


def test_what_comes_later_says_so(llm: LLM) -> None:
    for call in (llm.sleep, llm.wake_up):
        with pytest.raises(NotImplementedError, match="in this version"):
            call()


def test_after_shutdown_every_use_is_refused() -> None:
    llm = LLM("tiny", num_gpu_blocks_override=64)
    llm.shutdown()
    llm.shutdown()
    for call in (lambda: llm.generate("x"), lambda: llm.chat([{"role": "user", "content": "x"}]), llm.plan, llm.get_tokenizer):
        with pytest.raises(RuntimeError, match="was shut down"):
            call()


@pytest.mark.parametrize(("name", "value"), [("top_k", 2**31), ("repetition_penalty", 1e39), ("n", 20_000), ("seed", 2**70)])
def test_parameters_changed_to_what_no_executor_holds_are_refused_and_the_engine_serves_on(llm: LLM, name: str, value: Any) -> None:
    params = SamplingParams(max_tokens=2)
    setattr(params, name, value)
    with pytest.raises(ValueError, match=f"SamplingParams: {name}="):
        llm.generate(PROMPTS, [SamplingParams(max_tokens=2)] * 3 + [params], use_tqdm=False)
    assert not llm.engine.has_unfinished()
    assert len(llm.generate(PROMPTS, SamplingParams(max_tokens=2), use_tqdm=False)) == len(PROMPTS)


@pytest.mark.parametrize(
    ("prompts", "given", "message"),
    [
        (PROMPTS, {"sampling_params": {"max_tokens": 3}}, "must be SamplingParams"),
        (PROMPTS, {"sampling_params": [SamplingParams()]}, "give one each"),
        (PROMPTS, {"priority": [0, 1, 2, "high"]}, "priority='high'"),
        (PROMPTS, {"priority": 3}, "give one each"),
        (b"bytes", {}, "found b'bytes'"),
        ([b"bytes"], {}, "found b'bytes'"),
        ([True, False], {}, "found True"),
        (5, {}, "found 5"),
        (None, {}, "found None"),
        ([{"prompt": "x", "multi_modal_data": {"image": 1}}], {}, "takes none: the model reads text alone"),
    ],
)
def test_misread_input_is_refused(llm: LLM, prompts: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        llm.generate(prompts, use_tqdm=False, **given)
    assert not llm.engine.has_unfinished()


@pytest.mark.parametrize("ids", [[5, 6, 7], (5, 6, 7), np.array([5, 6, 7])])
def test_token_ids_alone_are_one_prompt(llm: LLM, ids: Any) -> None:
    [output] = llm.generate(ids, SamplingParams(max_tokens=1), use_tqdm=False)
    assert output.prompt_token_ids == [5, 6, 7]
    assert len(llm.generate([ids, ids], SamplingParams(max_tokens=1), use_tqdm=False)) == 2


def test_a_request_that_fails_ends_the_call_with_its_cause(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    step = llm.engine.step

    def failing() -> list[RequestOutput]:
        outputs = step()
        for request_id in list(llm.engine.processor.groups)[1:2]:
            [output] = llm.engine.abort([request_id])
            output.error = "OutOfMemoryError: no memory"
            outputs.append(output)
        return outputs

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="prompt 1 of 4 failed: OutOfMemoryError"):
        patched.setattr(llm.engine, "step", failing)
        llm.generate(PROMPTS, SamplingParams(max_tokens=4), use_tqdm=False)
    assert llm.engine.stats().num_running == llm.engine.stats().num_waiting == 0
    assert len(llm.generate(PROMPTS, SamplingParams(max_tokens=2), use_tqdm=False)) == len(PROMPTS)


def test_every_export_exists() -> None:
    assert all(getattr(framework, name) is not None for name in framework.__all__)


def test_greedy_tokens_and_text_equal_those_of_transformers(llm: LLM) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    outputs = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=48), use_tqdm=False)
    for prompt, output in zip(PROMPTS, outputs):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        assert output.prompt_token_ids == ids[0].tolist()
        expected = model.generate(ids, do_sample=False, max_new_tokens=48)[0, ids.shape[1] :].tolist()
        got = output.outputs[0]
        assert got.token_ids == expected
        assert got.text == tokenizer.decode([t for t in expected if t != tokenizer.eos_token_id])


def test_logprobs_equal_those_of_transformers(llm: LLM) -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=3, prompt_logprobs=2)
    output = llm.generate(PROMPTS[0], params, use_tqdm=False)[0]
    ids = [*output.prompt_token_ids, *output.outputs[0].token_ids]
    expected = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None and output.outputs[0].logprobs is not None
    entries = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
    assert len(entries) == len(ids) - 1
    for position, entry in enumerate(entries):
        assert entry is not None
        ranked = expected[position].argsort(descending=True).tolist()
        assert set(entry) >= set(ranked[: 2 if position < len(output.prompt_token_ids) - 1 else 3])
        for token, logprob in entry.items():
            assert logprob.logprob == pytest.approx(float(expected[position, token]), abs=2e-4)
            assert logprob.rank == ranked.index(token) + 1


def test_chat_renders_the_models_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "def f(x):"}]
    output = llm.chat(messages, SamplingParams(temperature=0, max_tokens=4), use_tqdm=False)[0]
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert output.prompt == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert len(output.outputs[0].token_ids) <= 4
    with pytest.raises(ValueError, match="chat template cannot render these messages: no such role"):
        llm.chat(messages, chat_template="{{ raise_exception('no such role') }}", use_tqdm=False)


def test_default_parameters_come_from_the_generation_config(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    given = json.loads((folder / "generation_config.json").read_text()) | {"temperature": 0.25, "top_p": 0.5, "top_k": 7}
    (folder / "generation_config.json").write_text(json.dumps(given))
    params = LLM(str(folder), num_gpu_blocks_override=64).get_default_sampling_params()
    assert (params.temperature, params.top_p, params.top_k) == (0.25, 0.5, 7)
    params = LLM(str(folder), num_gpu_blocks_override=64, generation_config="vllm").get_default_sampling_params()
    assert (params.temperature, params.top_p, params.top_k) == (1.0, 1.0, 0)


def test_what_cannot_fit_is_refused_and_leaves_nothing_behind(llm: LLM) -> None:
    too_long = {"prompt_token_ids": [5] * (llm.engine.executor.max_model_len + 1)}
    with pytest.raises(ValueError, match="max_model_len"):
        llm.generate([PROMPTS[0], too_long], SamplingParams(max_tokens=4), use_tqdm=False)
    assert not llm.engine.has_unfinished()
    assert len(llm.generate(PROMPTS[0], SamplingParams(max_tokens=4), use_tqdm=False)) == 1


@pytest.mark.parametrize("arguments", [{"kernels": {"sample": "nonsense"}}, {"kernels": {"linear": "torch@tile:4"}}])
def test_a_choice_that_cannot_run_stops_the_engine(arguments: dict) -> None:
    with pytest.raises(NoKernelError, match="Impls of"):
        LLM("tiny", **arguments)


def test_an_unknown_op_is_named() -> None:
    with pytest.raises(ValueError, match="no such op"):
        LLM("tiny", kernels={"smaple": "torch"})


def test_overrides_reach_the_plan_and_calls_are_counted() -> None:
    with override(sample="reference"):
        llm = LLM("tiny", kernels={"rms_norm": "reference"}, num_gpu_blocks_override=64)
    llm.generate("x = ", SamplingParams(temperature=0, max_tokens=5), use_tqdm=False)
    plan = llm.plan()
    assert plan["sample"]["impl"] == "reference" and plan["sample"]["calls"] == 5
    assert plan["rms_norm"]["impl"] == "reference" and plan["rms_norm"]["calls"] > 5
    assert "moe_experts" not in plan, "only ops that the model uses are in its plan"


def test_rows_without_a_usable_score_end_with_an_error_and_harm_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM("tiny", dtype="float32", num_gpu_blocks_override=512, enforce_eager=True)
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=1)
    expected = [output.outputs[0] for output in llm.generate(PROMPTS, params, use_tqdm=False)]
    model, num_calls = llm.engine.executor._model, 0  # type: ignore[attr-defined]
    logits_of = model.logits

    def broken(hidden: torch.Tensor, lora: None) -> torch.Tensor:
        nonlocal num_calls
        num_calls += 1
        logits = logits_of(hidden)
        if num_calls == 3:
            logits[0, 7], logits[2] = torch.nan, -torch.inf
        return logits

    monkeypatch.setattr(model, "logits", broken)
    got = [output.outputs[0] for output in llm.generate(PROMPTS, params, use_tqdm=False)]
    assert [completion.finish_reason for completion in got] == ["error", "length", "error", "length"]
    for completion, whole, length in zip(got, expected, (2, 6, 2, 6)):
        assert completion.token_ids == whole.token_ids[:length]
        assert completion.logprobs is not None and len(completion.logprobs) == length


FAULT_PARAMS = SamplingParams(temperature=0.7, seed=5, max_tokens=6, repetition_penalty=1.2, logprobs=1)


class FailsOnce:
    """Stands for a part of the runner that does its work, and raises ``error`` at its call ``number``."""

    def __init__(self, whole: Any, number: int, error: BaseException) -> None:
        self.whole, self.number, self.error, self.num_calls = whole, number, error, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.whole(*args, **kwargs)
        self.num_calls += 1
        if self.num_calls == self.number:
            raise self.error
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_kernel_that_fails_once_harms_no_later_request(depth: int) -> None:
    """In the middle of a step: rows are taken in, half of the layers computed, or all but the tokens."""
    config = EngineConfig(ModelConfig("tiny", dtype="float32"), CacheConfig(num_blocks=128, check_invariants=True))
    config.scheduler.in_flight_steps, config.graphs.enabled = depth, False  # a replay calls no layer
    llm = LLM(config)
    prompts = [PROMPTS[i] * (1 + i) for i in range(3)]
    expected = [output.outputs[0].token_ids for output in llm.generate(prompts, FAULT_PARAMS, use_tqdm=False)]
    runner = llm.engine.executor._runner  # type: ignore[attr-defined]
    mistake, memory, interrupt = RuntimeError("a kernel failed"), MemoryError("out of memory"), KeyboardInterrupt()
    for error, number, name in ((mistake, 3, "layer"), (memory, 2, "sample"), (mistake, 1, "rows"), (interrupt, 2, "layer")):
        with pytest.MonkeyPatch.context() as patch:
            if name == "layer":
                layers = list(runner.model.layers)
                layers[1] = FailsOnce(layers[1], number, error)
                patch.setattr(runner.model, "layers", layers)
            elif name == "sample":
                patch.setattr(runner.sampler, "_draw", FailsOnce(runner.sampler._draw, number, error))
            else:
                patch.setattr(runner.rows, "apply", FailsOnce(runner.rows.apply, number, error))
            with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else RuntimeError) as caught:
                llm.generate(prompts[:2], FAULT_PARAMS, use_tqdm=False)
            if not isinstance(error, KeyboardInterrupt):
                assert f"{type(error).__name__}: {error}" in str(caught.value)
            assert not llm.engine.scheduler.requests
            again = [output.outputs[0].token_ids for output in llm.generate(prompts, FAULT_PARAMS, use_tqdm=False)]
        assert again == expected
        assert not llm.engine.has_unfinished() and llm.engine.manager.pool.usage == 0


def test_a_request_that_the_sampler_cannot_take_in_ends_alone(llm: LLM) -> None:
    expected = llm.generate(PROMPTS[:2], FAULT_PARAMS, use_tqdm=False)
    sampler = llm.engine.executor._runner.sampler  # type: ignore[attr-defined]
    whole, engine = sampler.add, llm.engine

    def fail_at_bad(request: NewRequest) -> None:
        if request.request_id == "0_bad" and not request.sampling.greedy:
            raise OverflowError("too large for int32")
        whole(request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "add", fail_at_bad)
        for name, prompt in (("0", PROMPTS[0]), ("bad", PROMPTS[2]), ("1", PROMPTS[1])):
            engine.add_request(name, engine.inputs.prompt(prompt), FAULT_PARAMS)
        outputs: dict[str, RequestOutput] = {}
        while engine.has_unfinished():
            outputs.update((output.request_id, output) for output in engine.step())
    assert outputs["bad"].error == "OverflowError: too large for int32" and outputs["bad"].outputs[0].token_ids == []
    for i in (0, 1):
        assert outputs[str(i)].error is None and outputs[str(i)].outputs[0].token_ids == expected[i].outputs[0].token_ids


def test_a_lost_device_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = LLM("tiny", dtype="float32", num_gpu_blocks_override=64)
    runner = lost.engine.executor._runner  # type: ignore[attr-defined]

    def fail(*args: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(runner.sampler, "sample", fail)
    with pytest.raises(RuntimeError, match="DeviceLostError: CUDA error"):
        lost.generate("x", use_tqdm=False)
    assert lost.engine.errored is not None
    with pytest.raises(EngineDeadError, match="build a new engine"):
        lost.generate("x", use_tqdm=False)


@pytest.mark.parametrize("error", [TypeError("wrong"), KeyboardInterrupt()])
def test_a_failure_halfway_through_a_batch_leaves_nothing_queued(
    llm: LLM, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, num_added = llm.engine.scheduler.add, 0

    def fail_at_third(request: Any) -> None:
        nonlocal num_added
        add(request)
        num_added += 1
        if num_added == 3:
            raise error

    monkeypatch.setattr(llm.engine.scheduler, "add", fail_at_third)
    with pytest.raises(type(error)):
        llm.generate(PROMPTS, SamplingParams(n=2), use_tqdm=False)
    assert not llm.engine.has_unfinished() and not llm.engine.processor.groups
