"""Other systems on the same requests: equal tokens, arrivals respected, rows that stand in one table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.peers.serving import Mode, open_mode, serve_workload
from experiments.peers.transformers_library import Completion, Library, generation_config
from experiments.serve_job import run
from framework import LLM, SamplingParams
from framework.cli import main
from framework.config import CacheConfig, ExecutorConfig, ModelConfig, QuantConfig, SchedulerConfig
from framework.models.read import read_model
from framework.study.compose import CONFIG_FILE, ServeConfig, save_config
from framework.study.metrics import compute_metrics
from framework.study.workload import SamplingConfig, WorkloadConfig, WorkloadRequest

PROMPTS = [list(range(10, 10 + length)) for length in (5, 33, 18, 50)]
LIMITS = [7, 12, 1, 9]
LIBRARY = ("transformers", "transformers_static")


def config(system: str, workload: WorkloadConfig | None = None) -> ServeConfig:
    few = WorkloadConfig(num_requests=5, prompt_tokens=20, output_tokens=6)
    return ServeConfig(
        model=ModelConfig("tiny", dtype="float32"),
        device="cpu",
        system=system,
        workload=workload or few,
        scheduler=SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=64),
        num_warmup_requests=1,
    )


def requests(num: int = len(PROMPTS), arrivals: tuple[float, ...] = (0, 0, 0, 0)) -> list[WorkloadRequest]:
    params = [SamplingParams(temperature=0, max_tokens=limit, ignore_eos=True) for limit in LIMITS]
    return [WorkloadRequest(arrivals[i], PROMPTS[i], params[i], i) for i in range(num)]


@pytest.fixture(scope="module")
def library() -> Library:
    engine = config("transformers").engine()
    return Library.load(engine, read_model(engine.model))


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    params = [request.sampling for request in requests()]
    outputs = LLM("tiny", dtype="float32", device="cpu").generate(PROMPTS, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def completions(mode: Mode) -> list[Completion]:
    try:
        for index, (prompt, limit) in enumerate(zip(PROMPTS, LIMITS)):
            mode.add(str(index), prompt, limit)
        found: list[Completion] = []
        while len(found) < len(PROMPTS):
            found += mode.finished(None)
    finally:
        mode.close()
    return sorted(found, key=lambda completion: int(completion.request_id))


@pytest.mark.parametrize("system", LIBRARY)
def test_the_library_gives_our_tokens_and_when_they_came(system: str, library: Library, expected: list[list[int]]) -> None:
    found = completions(open_mode(library, config(system), requests(), ()))
    assert [completion.token_ids for completion in found] == expected
    for completion in found:
        assert len(completion.times_s) == len(completion.token_ids) and completion.times_s == sorted(completion.times_s)


@pytest.mark.parametrize("system", LIBRARY)
def test_an_end_of_sequence_token_ends_its_request_only(system: str, library: Library, expected: list[list[int]]) -> None:
    end = expected[1][5]
    workload = WorkloadConfig(ignore_eos=False)
    found = completions(open_mode(library, config(system, workload), requests(), {end}))
    cut = [tokens[: tokens.index(end) + 1] if end in tokens else tokens for tokens in expected]
    assert [completion.token_ids for completion in found] == cut and cut != expected


@pytest.mark.parametrize("system", LIBRARY)
def test_requests_are_served_after_they_arrive(system: str, library: Library) -> None:
    workload = requests(arrivals=(0.0, 0.2, 0.25, 0.6))
    mode = open_mode(library, config(system), workload, ())
    try:
        record = serve_workload(mode, library, workload)
    finally:
        mode.close()
    metrics = compute_metrics(record, config(system).slo)
    assert metrics["num_output_tokens"] == sum(LIMITS) and metrics["num_completed"] == len(LIMITS)
    assert all(r.token_times_s[0] > r.arrival_s and r.finish_reason == "length" for r in record.requests)
    assert metrics["duration_s"] > 0.6
    assert "num_steps" not in metrics and "kv_usage_mean" not in metrics, "what was not observed is absent"


def test_a_closed_loop_waits_for_its_completions(library: Library) -> None:
    closed = [
        WorkloadRequest(0.0, prompt, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True), 0, 0.05) for prompt in PROMPTS
    ]
    mode = open_mode(library, config("transformers"), closed, ())
    try:
        record = serve_workload(mode, library, closed)
    finally:
        mode.close()
    for before, after in zip(record.requests, record.requests[1:]):
        assert after.arrival_s == pytest.approx(before.token_times_s[-1] + 0.05)


def test_a_prompt_that_is_too_long_is_refused_and_the_rest_is_served(library: Library) -> None:
    long = WorkloadRequest(0.0, [7] * (library.max_model_len + 1), requests()[0].sampling, 9)
    workload = [*requests(2), long]
    mode = open_mode(library, config("transformers_static"), workload, ())
    record = serve_workload(mode, library, workload)
    assert [request.error is None for request in record.requests] == [True, True, False]
    assert "max_model_len" in str(record.requests[-1].error)


@pytest.mark.parametrize(
    ("sampling", "system", "complaint"),
    [
        (SamplingConfig(presence_penalty=0.5), "transformers_static", "presence_penalty"),
        (SamplingConfig(temperature=1, frequency_penalty=0.5), "transformers", "frequency_penalty"),
        (SamplingConfig(repetition_penalty=1.2), "transformers", "transformers_static"),
    ],
)
def test_what_the_library_lacks_is_refused(library: Library, sampling: SamplingConfig, system: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        open_mode(library, config(system, WorkloadConfig(sampling=sampling)), requests(), ())


def test_the_library_does_not_quantize() -> None:
    engine = replace(config("transformers").engine(), quant=QuantConfig("int8"))
    with pytest.raises(ValueError, match=r"quant\.scheme=int8.*quant=none"):
        Library.load(engine, read_model(engine.model))


@pytest.mark.parametrize(
    "asked",
    [
        {"profile": True},
        {"capture": ["linear"]},
        {"executor": ExecutorConfig(op_scale={"linear": 2.0})},
        {"executor": ExecutorConfig(op_delay_s={"linear": 1e-3})},
    ],
)
def test_what_is_asked_of_our_kernel_calls_is_refused(asked: dict) -> None:
    """Nothing that was given is dropped."""
    engine = replace(config("transformers").engine(), **asked)
    with pytest.raises(ValueError, match="only our engine's kernel calls are seen"):
        Library.load(engine, read_model(engine.model))


def test_sampling_reaches_the_library() -> None:
    found = generation_config(SamplingConfig(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.1))
    assert (found.do_sample, found.temperature, found.top_p, found.top_k, found.min_p) == (True, 0.7, 0.9, 5, 0.1)
    assert found.repetition_penalty == 1.1 and generation_config(SamplingConfig()).do_sample is False


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"executor": ExecutorConfig(kind="simulated")}, "executor.kind=simulated"),
        ({"cache": CacheConfig(dtype="bfloat16")}, "cache.dtype"),
        ({"system": "nonsense"}, "system='nonsense'"),
    ],
)
def test_what_cannot_work_is_said(changed: dict, complaint: str, tmp_path: Path) -> None:
    wrong = config("transformers")
    for key, value in changed.items():
        setattr(wrong, key, value)
    save_config(wrong, tmp_path / CONFIG_FILE)
    assert not run(tmp_path)
    row = json.loads((tmp_path / "run.json").read_text())
    assert row["status"] == "failed" and complaint in row["error"]


def test_systems_stand_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    penalized = WorkloadConfig(num_requests=2, prompt_tokens=8, output_tokens=2, sampling=SamplingConfig(presence_penalty=0.5))
    jobs = {"ours": config("kernelswap"), "theirs": config("transformers"), "failed": config("transformers", penalized)}
    for name, job in jobs.items():
        (tmp_path / name).mkdir()
        save_config(job, tmp_path / name / CONFIG_FILE)
    assert [run(tmp_path / name) for name in jobs] == [True, True, False]
    ours, theirs = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("ours", "theirs"))
    for column in ("num_prompt_tokens", "num_output_tokens", "num_completed"):
        assert ours[f"metric.{column}"] == theirs[f"metric.{column}"]
    for metric in ("ttft_p50_s", "tpot_p50_s", "itl_p99_s", "output_tokens_per_s", "goodput_per_s", "load_s"):
        assert ours[f"metric.{metric}"] >= 0 and theirs[f"metric.{metric}"] >= 0
    assert theirs["plan.system.mode"] == "continuous batching" and theirs["plan.system.version"] and "plan.sample" not in theirs
    assert ours["plan.system"] == "kernelswap" and ours["plan.sample"]
    capsys.readouterr()
    assert main(["collect", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "3 runs, 1 failed" in shown and "failed: failed: ValueError: workload.sampling.presence_penalty" in shown
    (tmp_path / "failed" / "run.json").unlink()
    assert main(["collect", str(tmp_path), "--compare", "system=transformers"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    system, metric, runs, pairs, scale, ratio = line.split()[:6]
    assert (system, metric, runs, pairs, scale) == ("kernelswap", "ttft_p50_s", "1", "1", "ratio")
    assert float(ratio) == pytest.approx(ours["metric.ttft_p50_s"] / theirs["metric.ttft_p50_s"], rel=1e-3)


def test_a_model_without_a_checkpoint_is_served_by_both(tmp_path: Path) -> None:
    """Random prompts too: workload.source=auto finds no tokenizer."""
    shape = {
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 2,
    }
    rows = []
    for system in ("kernelswap", *LIBRARY):
        job = config(system, WorkloadConfig(source="auto", num_requests=3, prompt_tokens=12, output_tokens=4))
        job.model = ModelConfig("shape", load_format="dummy", architecture=shape)
        (tmp_path / system).mkdir()
        save_config(job, tmp_path / system / CONFIG_FILE)
        assert run(tmp_path / system)
        rows.append(json.loads((tmp_path / system / "run.json").read_text()))
    assert len({row["metric.num_output_tokens"] for row in rows}) == 1
    assert [row["plan.system"] for row in rows] == ["kernelswap", *LIBRARY]
