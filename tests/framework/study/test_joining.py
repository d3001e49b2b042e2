"""Quality and serving runs in one table, joined by what they are runs of."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from framework.cli import main
from framework.config import CacheConfig, EngineConfig, ModelConfig, QuantConfig, SchedulerConfig
from framework.study.compose import QualityConfig, ServeConfig
from framework.study.joining import join_quality
from framework.study.results import collect, config_columns, write_run

TOKENS_PER_S, KL = "metric.output_tokens_per_s", "metric.kl_mean"


def write(folder: Path, config: EngineConfig, **metrics: float) -> None:
    found = {f"metric.{name}": value for name, value in metrics.items()}
    write_run(folder, {**config_columns(config), **found, "status": "ok", "error": None})


def auto(**kernels: str) -> dict[str, str]:
    return {"default": "auto", **kernels}


@pytest.fixture
def studies(tmp_path: Path) -> tuple[Path, Path]:
    """Serving runs of two schemes and two seeds, one of a third; quality runs of the two, and of what differs from them."""
    serving, quality = tmp_path / "out" / "serve", tmp_path / "out" / "quality"
    for i, (scheme, seed, speed) in enumerate(
        (("none", 0, 100), ("none", 1, 104), ("int8", 0, 200), ("int8", 1, 204), ("fp8", 0, 90))
    ):
        config = ServeConfig(
            quant=QuantConfig(scheme), kernels=auto(sample="torch"), seed=seed, scheduler=SchedulerConfig(max_num_seqs=8)
        )
        write(serving / str(i), config, output_tokens_per_s=speed, load_s=1)
    write_run(serving / "5", {**config_columns(ServeConfig()), "status": "failed", "error": "too slow"})
    for i, (scheme, kl) in enumerate((("none", 0.0001), ("int8", 0.002), ("rtn-int4", 0.04))):
        write(quality / str(i), QualityConfig(quant=QuantConfig(scheme), kernels=auto()), kl_mean=kl, load_s=5)
    write(quality / "3", QualityConfig(model=ModelConfig("tiny-draft"), kernels=auto()), kl_mean=7)
    write(quality / "4", QualityConfig(cache=CacheConfig(dtype="int8"), kernels=auto()), kl_mean=8)
    write(quality / "5", QualityConfig(kernels=auto(linear="torch")), kl_mean=9)
    write_run(quality / "6", {**config_columns(QualityConfig(quant=QuantConfig("fp8"))), "status": "failed", "error": "no kernel"})
    return serving, quality


def test_serving_runs_get_the_quality_of_their_configuration(studies: tuple[Path, Path]) -> None:
    runs = collect(*studies)
    assert list(runs["run"][:2]) == ["quality/0", "quality/1"] and len(runs) == 13
    joined = join_quality(runs)
    assert list(joined["run"]) == [f"serve/{i}" for i in range(6)]
    assert list(joined[KL].fillna(-1)) == [0.0001, 0.0001, 0.002, 0.002, -1, 0.0001]
    assert list(joined[TOKENS_PER_S][:5]) == [100, 104, 200, 204, 90]
    assert list(joined["metric.load_s"][:5]) == [1] * 5, "what both measure stays that of the serving run"


def test_kernels_of_the_model_bear_and_those_after_the_logits_do_not(tmp_path: Path) -> None:
    """An op without a choice of its own has the default's."""
    write(tmp_path / "s0", ServeConfig(kernels={"default": "torch"}), output_tokens_per_s=1)
    write(tmp_path / "s1", ServeConfig(kernels=auto(linear="torch", sample="triton")), output_tokens_per_s=2)
    write(tmp_path / "s2", ServeConfig(kernels=auto(rms_norm="auto")), output_tokens_per_s=3)
    write(tmp_path / "q0", QualityConfig(kernels={"default": "torch", "linear": "torch"}), kl_mean=0.1)
    write(tmp_path / "q1", QualityConfig(kernels=auto(linear="torch")), kl_mean=0.2)
    write(tmp_path / "q2", QualityConfig(), kl_mean=0.3)
    assert list(join_quality(collect(tmp_path))[KL]) == [0.1, 0.2, 0.3]


def test_of_repeats_the_last_counts_and_differing_texts_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", ServeConfig(), output_tokens_per_s=1)
    write(tmp_path / "q0", QualityConfig(), kl_mean=0.1)
    write(tmp_path / "q1", QualityConfig(), kl_mean=0.2)
    assert list(join_quality(collect(tmp_path))[KL]) == [0.2]
    write(tmp_path / "q2", QualityConfig(text="a.txt", window_tokens=512), kl_mean=0.3)
    with pytest.raises(ValueError, match="differ in text, window_tokens"):
        join_quality(collect(tmp_path))


def test_what_cannot_be_joined_is_an_error(studies: tuple[Path, Path], tmp_path: Path) -> None:
    for folder, missing in zip(studies, ("quality.py", "serve.py")):
        with pytest.raises(ValueError, match=f"no run of experiments/{missing} to join"):
            join_quality(collect(folder))
    write(tmp_path / "other" / "s", ServeConfig(quant=QuantConfig("fp8"), kernels=auto()), output_tokens_per_s=1)
    with pytest.raises(ValueError, match=r"the nearest differ in quant.scheme \(fp8, none\)"):
        join_quality(collect(tmp_path / "other", studies[1]))


def test_collect_joins_on_request(studies: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", "--join", *map(str, studies)]) == 0
    shown = capsys.readouterr().out
    header, *lines = shown.splitlines()
    assert header.split()[-2:] == ["kl_mean", "kl_mean.ci95"]
    assert [line.split()[-2] for line in lines[:3]] == ["0.0001", "0.002", "-"]
    assert f"6 runs, 1 failed: {studies[0].parent / 'table.csv'}" in shown
    table = pd.read_csv(studies[0].parent / "table.csv")
    assert list(table[KL].dropna()) == [0.0001, 0.0001, 0.002, 0.002, 0.0001]
    assert main(["collect", str(studies[1])]) == 0
    assert "kl_mean" in capsys.readouterr().out and (studies[1] / "table.csv").is_file()


def test_the_figure_needs_no_table_before(studies: tuple[Path, Path]) -> None:
    assert main(["plot", "quality", *map(str, studies)]) == 0
    assert (studies[0].parent / "quality.png").read_bytes().startswith(b"\x89PNG")
