"""The YAML files against their schema: everything composes, and what does not fit is refused at composition."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, MissingConfigException

from framework.config import EngineConfig
from framework.study.compose import (
    LoadConfig,
    QualityConfig,
    ServeConfig,
    hydra_version_base,
    load_config,
    register_schema,
    save_config,
    to_config,
)
from framework.study.results import config_columns
from triton_kernels.ops import OPS

CONF = Path(__file__).parents[3] / "conf"
CHOICES = [
    f"{path.parent.name}={path.stem}"
    for group in ("model", "workload", "scheduler", "cache", "executor", "kernels", "parallel", "speculative", "experiment")
    for path in sorted((CONF / group).glob("*.yaml"))
]


register_schema()


@pytest.fixture(autouse=True)
def hydra_session() -> Iterator[None]:
    with initialize_config_dir(str(CONF), **hydra_version_base()):
        yield
    GlobalHydra.instance().clear()


def composed(*overrides: str) -> ServeConfig:
    return to_config(compose("serve", list(overrides)), ServeConfig)


def test_the_default_is_the_tiny_model_under_a_poisson_workload() -> None:
    config = composed()
    assert (config.model.name, config.workload.source, config.workload.rate) == ("tiny", "auto", 8)
    assert type(config.engine()) is EngineConfig
    config.engine().validate()
    config.workload.validate()


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes(choice: str) -> None:
    simulated = choice.startswith(("parallel", "speculative=simulated"))
    executor = "distributed" if choice == "parallel=dp2_ep2" else "simulated"
    composed(choice, *[f"executor={executor}"] * simulated).validate()


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice.startswith(("workload", "model", "experiment"))])
def test_a_server_is_asked_for_what_an_engine_would_be(choice: str) -> None:
    ours = config_columns(composed(choice))
    theirs = config_columns(to_config(compose("load", [choice]), LoadConfig))
    told = {key for key in theirs if key not in ours or theirs[key] != ours[key]}
    assert {key.partition(".")[0] for key in told} == {"http", "name", "system"} - ({"name"} if "experiment" in choice else set())


@pytest.mark.parametrize("choice", ["auto", "reference", "torch", "triton"])
def test_a_preset_of_kernels_is_a_default(choice: str) -> None:
    assert composed(f"kernels={choice}").kernels == composed(f"kernels.default={choice}").kernels == {"default": choice}


def test_every_op_takes_a_choice_one_of_a_plugin_too() -> None:
    chosen = dict.fromkeys([*OPS, "op_of_a_plugin"], "auto") | {"qk_norm_rotary_kv_write": "none"}
    config = composed("plugins=[a.py]", *(f"kernels.{op}={choice}" for op, choice in chosen.items()))
    assert config.kernels == {"default": "auto", **chosen}


def test_kernels_of_a_study_with_a_config_of_its_own() -> None:
    assert compose("peers_cpu", ["kernels.linear=torch"]).kernels == {"default": "auto", "linear": "torch"}


def test_overrides_reach_their_fields() -> None:
    config = composed("kernels.linear=packed@threads:2", "workload.rate=inf", "seed=7", "workload=random", "cache.num_blocks=null")
    assert config.kernels["linear"] == "packed@threads:2"
    assert math.isinf(config.workload.rate)
    assert (config.seed, config.workload.seed, config.workload.source) == (7, 7, "random")


def test_a_simulated_device_takes_a_factor_on_any_op(tmp_path: Path) -> None:
    config = composed("executor=simulated", "executor.op_scale.linear=0.5", "parallel=tp8", "speculative=simulated_eagle3")
    config.validate()
    assert config.executor.op_scale == {"linear": 0.5} and config.parallel.tp == 8
    assert config.speculative_config.acceptance_rates() == [0.7296, 0.5208, 0.3545]
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json", ServeConfig) == config


def test_a_shape_without_its_checkpoint_composes() -> None:
    config = composed("model=llama-3-8b", "model.load_format=dummy", "device=cuda")
    assert config.model.load_format == "dummy" and config.model.architecture["hidden_size"] == 4096


@pytest.mark.parametrize(
    "override",
    [
        "scheduler.polcy=fcfs",
        "kernels.sample=null",
        "kernels.sample=[torch]",
        "cache.block_size=many",
        "workload.rate=fast",
        "model=unheard-of",
        "cache.num_blocks=1.5",
    ],
)
def test_unknown_keys_and_wrong_types_fail_at_composition(override: str) -> None:
    with pytest.raises((ConfigCompositionException, MissingConfigException)):
        composed(override)


@pytest.mark.parametrize("key", ["foo", "kernel.sample", "scheduler.polcy", "workload.sampling.topp"])
def test_a_key_that_does_not_exist_cannot_be_added(key: str) -> None:
    """Hydra itself proposes ``+`` for a key that it does not know."""
    with pytest.raises(ValueError, match=f"no key {key.removesuffix('.sample')}"):
        composed(f"+{key}=1")
    assert composed("+kernels.sample=torch", "+model.architecture.hidden_size=8").kernels["sample"] == "torch"


def test_a_config_survives_its_file(tmp_path: Path) -> None:
    config = composed("workload.rate=inf", "kernels.sample=torch", "plugins=[a.py]")
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json", ServeConfig) == config


def test_a_file_that_does_not_fit_the_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"scheduler": {"polcy": "fcfs"}}')
    with pytest.raises(ValueError, match="polcy"):
        load_config(tmp_path / "config.json", ServeConfig)


def test_a_quality_run_takes_the_groups_of_a_serving_run(tmp_path: Path) -> None:
    overrides = ["quant=rtn-int4", "cache=fp8", "kernels.linear=torch", "num_windows=3", "baseline.dtype=auto"]
    config = to_config(compose("quality", overrides), QualityConfig)
    config.validate()
    assert (config.quant.group_size, config.cache.dtype, config.kernels["linear"]) == (64, "float8_e4m3fn", "torch")
    served = composed(*overrides[:3])
    assert (config.model, config.quant, config.cache) == (served.model, served.quant, served.cache)
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json", QualityConfig) == config


def test_the_baseline_has_nothing_of_what_is_measured() -> None:
    overrides = ["quant=rtn-int4", "cache=fp8", "kernels=triton", "model.revision=a", "cache.block_size=8"]
    base = to_config(compose("quality", overrides), QualityConfig).baseline_engine()
    assert (base.quant.scheme, base.cache.dtype, base.cache.block_size, base.kernels) == ("none", "auto", 8, {"default": "torch"})
    assert (base.model.name, base.model.dtype, base.model.revision) == ("tiny", "float32", "a")
    other = to_config(compose("quality", [*overrides, "baseline.model=b", "baseline.dtype=auto"]), QualityConfig).baseline_engine()
    assert (other.model.name, other.model.dtype, other.model.revision) == ("b", "auto", None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("window_tokens=1", "window_tokens=1 cannot work: it must be 2 or more"),
        ("num_windows=0", "num_windows=0 cannot work: it must be 1 or more"),
        ("executor.kind=simulated", "executor.kind=simulated computes no logits"),
        ("model.load_format=dummy", "load_format=dummy has random weights"),
        ("quant.scheme=int3", "quant.scheme='int3' cannot work"),
        ("+windows=3", "no key windows"),
    ],
)
def test_a_quality_run_that_cannot_work_is_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_config(compose("quality", [override]), QualityConfig).validate()


@pytest.mark.parametrize("override", ["chunk_tokes=1", "baseline.cache=fp8", "workload.rate=3", "num_windows=some"])
def test_unknown_keys_of_a_quality_run_fail_at_composition(override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        compose("quality", [override])
