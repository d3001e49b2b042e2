"""The benchmark: order of work, correctness before speed, what a row says, and times of calls whose length is known."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from framework.cli import main
from framework.study.kernel_plots import kernel_roofline
from triton_kernels.impl import impl
from triton_kernels.lab.bench import Contender, Row, Task, measure, run, select_tasks
from triton_kernels.lab.ceilings import Ceilings
from triton_kernels.lab.timing import Subject, interleave, num_copies
from triton_kernels.registry import Registry
from triton_kernels.resolve import parse_choice

CPU, FP32 = torch.device("cpu"), torch.float32
KNOWN = Ceilings(CPU, 1e12, {"fp32": 1e12})


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


def wrong(x: torch.Tensor) -> torch.Tensor:
    return x[:, : x.shape[1] // 2] * x[:, x.shape[1] // 2 :]


def failing(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("out of luck")


def contenders(registry: Registry) -> dict[str, Contender]:
    found = registry.impls("silu_and_mul")
    made = {"wrong": impl("silu_and_mul", "wrong")(wrong), "failing": impl("silu_and_mul", "failing")(failing)}
    return {name: Contender(each, parse_choice(name)) for name, each in {**found, **made}.items()}


def rows_of(registry: Registry, *names: str, case: str = "odd") -> dict[str, Row]:
    op = registry.ops["silu_and_mul"]
    task = Task(op, next(c for c in op.cases if c.name == case), tuple(contenders(registry)[name] for name in names))
    return {row.impl: row for row in measure(task, CPU, FP32, KNOWN, limit_s=0.05)}


def test_samples_are_seconds_per_call_and_taken_in_turn() -> None:
    order: list[str] = []

    def sleeper(name: str, seconds: float) -> Subject:
        def call() -> None:
            order.append(name)
            time.sleep(seconds)

        return Subject([call])

    timings = interleave({"short": sleeper("a", 0.003), "long": sleeper("b", 0.009)}, CPU, num_rounds=5)
    assert 0.003 <= timings["short"].p25_s <= timings["short"].median_s <= timings["short"].p75_s
    assert timings["long"].median_s >= 0.009 and timings["long"].p25_s > timings["short"].p25_s
    assert "".join(order[-10:]) == "ababababab"
    assert timings["short"].num_samples == 5 and timings["short"].mode == "eager"


def test_short_calls_are_repeated_within_a_sample_and_copies_taken_in_turn() -> None:
    used: list[int] = []
    timing = interleave({"": Subject([lambda i=i: used.append(i) for i in range(3)])}, CPU, num_rounds=2)[""]  # type: ignore[misc]
    assert timing.calls_per_sample > 100 and timing.median_s < 1e-4
    assert used[-6:] in ([0, 1, 2, 0, 1, 2], [1, 2, 0, 1, 2, 0], [2, 0, 1, 2, 0, 1])


@pytest.mark.gpu
def test_on_a_gpu_captured_graphs_are_timed() -> None:
    """A copy of 256 MiB moves twice as many bytes; no device does that in a microsecond, and none takes a second."""
    device = torch.device("cuda")
    source = torch.randn(1 << 26, device=device)
    target = torch.empty_like(source)
    subjects = {name: Subject([lambda: target.copy_(source)], capture=name == "graph") for name in ("graph", "eager")}
    timings = interleave(subjects, device, num_rounds=5)
    assert {name: timing.mode for name, timing in timings.items()} == {"graph": "graph", "eager": "eager"}
    assert 1e-6 < timings["graph"].median_s < 1 and timings["graph"].median_s < 1.2 * timings["eager"].median_s
    assert torch.equal(target, source)


def test_so_many_copies_that_none_is_left_in_the_cache() -> None:
    megabyte = 1 << 20
    assert num_copies(10 * megabyte, 10 * megabyte, 60 * megabyte) == 12
    assert num_copies(500 * megabyte, 500 * megabyte, 60 * megabyte) == 1
    assert num_copies(megabyte, 1 << 30, 60 * megabyte) == 8, "memory limits the copies"
    assert num_copies(1000, 1000, 0) == 1, "without a known cache there is one"


def test_rows_say_what_is_right_wrong_refused_and_failed(registry: Registry) -> None:
    rows = rows_of(registry, "torch", "reference", "wrong", "failing", "triton")
    assert {name: row.status for name, row in rows.items()} == {
        "torch": "ok",
        "reference": "ok",
        "wrong": "wrong",
        "failing": "error",
        "triton": "refused",
    }
    assert "interpret=true" in rows["triton"].message and "out of luck" in rows["failing"].message
    assert rows["triton"].median_us is None and rows["wrong"].error > rows["wrong"].limit  # type: ignore[operator]


def test_rates_follow_from_time_and_cost(registry: Registry) -> None:
    row = rows_of(registry, "torch", "reference")["torch"]
    seconds = row.median_us * 1e-6  # type: ignore[operator]
    assert row.bytes == 3 * 4 * 5 * 37 and row.bound_by == "memory"
    assert row.tb_s == pytest.approx(row.bytes / seconds / 1e12) and row.tflops_s == pytest.approx(row.flops / seconds / 1e12)
    assert row.percent_of_ceiling == pytest.approx(100 * row.bytes / 1e12 / seconds)
    assert row.flat()["ratio.reference"] == row.ratios["reference"] > 0 and "ratio.torch" not in row.flat()


def test_a_yardstick_is_timed_beside_the_impls_and_compared_with_nothing(registry: Registry) -> None:
    op = registry.ops["lora_expand"]
    task = Task(
        op, next(c for c in op.cases if c.name == "slices"), (Contender(registry.impls(op.name)["torch"], parse_choice("torch")),)
    )
    rows = {row.impl: row for row in measure(task, CPU, FP32, KNOWN, limit_s=0.05)}
    beside = rows["one dense product"]
    assert (
        beside.error is None
        and beside.median_us is not None
        and rows["torch"].ratios
        == {
            "one dense product": beside.median_us / rows["torch"].median_us  # type: ignore[operator]
        }
    )
    assert beside.bytes < rows["torch"].bytes, "it reads one adapter"


def test_important_ops_come_first_and_every_op_before_second_cases(registry: Registry) -> None:
    tasks = select_tasks(registry)
    names = [task.op.name for task in tasks]
    assert names[:2] == ["paged_attention_decode", "paged_attention_prefill"]
    num_ops = len(set(names))
    assert len(set(names[:num_ops])) == num_ops
    assert all("bench" in task.case.tags for task in tasks)
    assert {task.case.name.split("_")[0] for task in select_tasks(registry, shapes=["qwen3-30b-a3b"])} == {"qwen3-30b-a3b"}


def test_choices_with_options_can_be_measured_and_unknown_ones_are_refused(registry: Registry) -> None:
    (task,) = select_tasks(registry, ["silu_and_mul:triton@block:512", "silu_and_mul:torch"], ["odd"])
    assert [c.label for c in task.contenders] == ["triton@block:512", "torch"]
    with pytest.raises(ValueError, match="there are"):
        select_tasks(registry, ["silu_and_mul:nonsense"])
    with pytest.raises(ValueError, match="begins with nonsense"):
        select_tasks(registry, ["silu_and_mul"], ["nonsense"])


def test_a_spent_budget_begins_nothing_and_done_cases_are_left_out(registry: Registry) -> None:
    tasks = select_tasks(registry, ["silu_and_mul:torch"], ["odd", "tiled"])
    assert list(run(tasks, CPU, FP32, budget_s=-1.0)) == []
    (rows,) = run(tasks, CPU, FP32, done=[tasks[0].key], limit_s=0.01)
    assert rows[0].case == tasks[1].case.name


def test_the_command_writes_resumes_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["kernels", "bench", "silu_and_mul:torch", "silu_and_mul:reference", "--case-seconds", "0.01", "--device", "cpu"]
    assert main([*words, "--shapes", "odd", "--output", str(tmp_path)]) == 0
    first = json.loads((tmp_path / "bench.json").read_text())
    assert main([*words, "--shapes", "odd,tiled", "--resume", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "bench.json").read_text())
    assert rows[: len(first)] == first and {row["case"] for row in rows} == {"odd", "tiled"}
    assert all(isinstance(value, str | int | float | bool | None) for row in rows for value in row.values())
    assert (tmp_path / "roofline.png").stat().st_size > 10_000
    assert "% of ceiling" in capsys.readouterr().out
    assert main(["kernels", "bench", "--device", "cpu"]) == 2


def test_the_roofline_needs_something_that_computes() -> None:
    with pytest.raises(ValueError, match="no roofline"):
        kernel_roofline([{"median_us": 1.0, "flops": 0.0}])


def test_a_wrong_kernel_is_named_and_sets_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = Path(__file__).parents[2] / "plugins" / "wrong.py"
    found = [impl for impl in Registry.load([str(plugin)]) if impl.origin.startswith("kernelswap_plugin")]
    assert found, "the plugin has a wrong kernel"
    name = f"{found[0].op}:{found[0].name}"
    words = ["kernels", "bench", name, "--shapes", "odd", "--plugin", str(plugin), "--case-seconds", "0.01", "--device", "cpu"]
    assert main([*words, "--output", str(tmp_path)]) == 1
    assert f"wrong: {name} (odd)" in capsys.readouterr().out
