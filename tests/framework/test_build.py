"""How an engine is put together: what is read, what is refused before anything is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from framework.build import build_engine, input_processor
from framework.clock import VirtualClock, WallClock
from framework.config import CacheConfig, EngineConfig, ExecutorConfig, ModelConfig, ParallelConfig, SchedulerConfig
from framework.executor.kinds import EXECUTORS
from framework.models.hub import resolve_model
from framework.models.read import read_model
from framework.sampling_params import SamplingParams
from framework.speculation.config import SpeculativeConfig
from framework.study.environment import environment

SHAPE = {
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
    "eos_token_id": [7, 8],
}
DUMMY = ModelConfig("shape", load_format="dummy", architecture=SHAPE)
KINDS = ("local", "distributed", "null", "simulated")


def small(model: ModelConfig, kind: str = "local", **more: Any) -> EngineConfig:
    cache, scheduler = CacheConfig(num_blocks=20), SchedulerConfig(max_num_seqs=2)
    return EngineConfig(model, cache, scheduler, ExecutorConfig(kind), device="cpu", num_threads=1, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_read_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    read_text = Path.read_text

    def count(path: Path, *args: Any, **kwargs: Any) -> str:
        read.append(path.name)
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", count)
    build_engine(small(ModelConfig("tiny", skip_tokenizer=True), kind)).shutdown()
    assert read.count("config.json") == read.count("generation_config.json") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_ends_where_its_model_says(kind: str) -> None:
    """A model without a checkpoint has an end too."""
    engine = build_engine(small(DUMMY, kind))
    assert engine.inputs.eos_token_ids == {7, 8}
    engine.shutdown()


def test_where_the_model_names_no_end_the_tokenizers_counts() -> None:
    architecture = {**SHAPE, "eos_token_id": None}
    endless = ModelConfig("shape", load_format="dummy", architecture=architecture)
    borrowing = ModelConfig("shape", "tiny", load_format="dummy", architecture=architecture)
    inputs = input_processor(borrowing, read_model(borrowing))
    assert inputs.eos_token_ids == {inputs.tokenizer.eos_token_id}
    assert not input_processor(endless, read_model(endless)).eos_token_ids


def test_without_a_tokenizer_ids_are_served(tmp_path: Path) -> None:
    for file in resolve_model("tiny").iterdir():
        if not file.name.startswith("tokenizer"):
            shutil.copy(file, tmp_path)
    with pytest.raises(ValueError, match="no tokenizer could be loaded"):
        build_engine(small(ModelConfig(str(tmp_path))))
    engine = build_engine(small(ModelConfig(str(tmp_path), skip_tokenizer=True)))
    assert engine.inputs.tokenizer is None
    engine.add_request("r", [5, 6, 7], SamplingParams(max_tokens=3, ignore_eos=True, detokenize=False))
    outputs = [output for _ in range(3) for output in engine.step()]
    assert len(outputs[-1].outputs[0].token_ids) == 3
    with pytest.raises(ValueError, match="no tokenizer"):
        engine.add_request("s", "text")
    engine.shutdown()


@pytest.mark.parametrize("length", [0, -1])
def test_lengths_without_room_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match=rf"model.max_model_len={length} cannot work: it must be a positive number"):
        build_engine(small(ModelConfig("tiny", max_model_len=length)))


@pytest.mark.parametrize(
    ("kind", "clock", "device"),
    [
        ("local", WallClock, "cpu"),
        ("distributed", WallClock, "cpu"),
        ("null", WallClock, "null"),
        ("simulated", VirtualClock, "simulated h200"),
    ],
)
def test_the_table_of_executors_decides(kind: str, clock: type, device: str) -> None:
    engine = build_engine(small(DUMMY, kind))
    assert type(engine.clock) is clock
    assert environment(engine.config)["env.device"] == device
    engine.shutdown()


def test_every_kind_of_executor_is_covered_here() -> None:
    assert set(KINDS) == set(EXECUTORS)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (EngineConfig(executor=ExecutorConfig("local ")), r"kind=.local . .* must be one of local, distributed, simulated, null"),
        (EngineConfig(scheduler=SchedulerConfig("random")), r"scheduler.policy='random' .* must be one of fcfs, priority"),
        (EngineConfig(ModelConfig(backend="jax")), r"model.backend='jax' .* must be one of auto, native, transformers"),
        (EngineConfig(ModelConfig(load_format="gguf")), r"model.load_format='gguf' .* must be one of auto, dummy"),
        (EngineConfig(cache=CacheConfig(dtype="int3")), r"cache.dtype='int3' .* must be one of auto, float32, "),
    ],
)
def test_a_name_that_is_in_no_table_is_refused_with_those_that_are(config: EngineConfig, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build_engine(config)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"device": None}, "device=None cannot work: it must be of type str"),
        ({"seed": 1.5}, "seed=1.5 cannot work: it must be of type int"),
        ({"num_threads": True}, "num_threads=True"),
        ({"num_threads": -1}, "num_threads=-1 cannot work: it must be 0"),
        ({"plugins": [Path("a.py")]}, r"plugins=.* of type list\[str\]"),
        ({"kernels": {"sample": None}}, r"kernels=.* of type dict\[str, str\]"),
        ({"cache": None}, "cache=None cannot work: it must be of type CacheConfig"),
        ({"model": ModelConfig(max_model_len=2.5)}, r"model.max_model_len=2.5 .* of type int \| None"),  # type: ignore[arg-type]
        ({"executor": ExecutorConfig(efficiency=0.0)}, "executor.efficiency=0.0 .* more than 0"),
        ({"executor": ExecutorConfig(step_overhead_s=-1.0)}, "executor.step_overhead_s=-1.0 .* 0 or more"),
        ({"executor": ExecutorConfig(op_scale={"linear": -1.0})}, "executor.op_scale.linear=-1.0 .* 1 or more"),
        (
            {"executor": ExecutorConfig(noise=0.1)},
            "executor.noise=0.1 .* 0.0 .executor.kind=local does not read it; simulated does",
        ),
        ({"executor": ExecutorConfig("simulated", efficiency=0.5)}, "executor.efficiency=0.5 .*only executor.calibration=roofline"),
        ({"parallel": ParallelConfig(tp=0)}, "parallel.tp=0 .* from 1 to 4096"),
        ({"parallel": ParallelConfig(pp=2)}, "parallel.pp=2 .* 1 .executor.kind=local does not read it; .*simulated does"),
        ({"router": "nearest"}, "router='nearest' .* round_robin"),
        ({"parallel": ParallelConfig(dp=2)}, "parallel.dp=2 is several engines: LLM and AsyncEngine start them"),
        ({"parallel": ParallelConfig(first_device=-1)}, "parallel.first_device=-1 .* 0 or more"),
        ({"parallel": ParallelConfig(step_timeout_s=5)}, r"parallel.step_timeout_s=5 .*\(executor.kind=local does not read it"),
        ({"parallel": ParallelConfig(tp=4, ep=2)}, "parallel.ep=2 .* 1, or 4 as parallel.tp"),
        (
            {"executor": ExecutorConfig("simulated"), "speculative_config": SpeculativeConfig("ngram", 2)},
            "rejection_sample_method=None .* it must be synthetic",
        ),
    ],
)
def test_values_of_a_wrong_type_or_out_of_range_are_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build_engine(EngineConfig(**values))
    EngineConfig(executor=ExecutorConfig("simulated", calibration="roofline", efficiency=1)).validate()  # a whole number is one
