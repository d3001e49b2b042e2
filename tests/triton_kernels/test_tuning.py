"""Tuned tables: which entry a layer gets, what takes precedence, and what candidates survive before anything is timed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from framework.cli import main
from triton_kernels.impl import Impl, impl
from triton_kernels.lab.aot import Artifact, Compilation
from triton_kernels.lab.bench import Row
from triton_kernels.lab.loops import LoopFigures
from triton_kernels.lab.tune import Scores, add_scores, best_entry, candidates, judge
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry
from triton_kernels.spec import Spec
from triton_kernels.tuning import Entry, Tuned, TunedTables, layer_bucket, save_entries, table_path, triton_version

SPEC = Spec("cuda", "sm_90", torch.bfloat16, facts={"in_features": 4096, "out_features": 6144, "weight_dtype": torch.bfloat16})


class _Layer:
    tuned_by_tokens = True

    def __init__(self, spec: Spec, weights: dict, params: dict, tuned: Tuned, **options: int) -> None:
        self.tuned, self.options = tuned, options

    @staticmethod
    def tune_filter(options: dict[str, int], num_tokens: int) -> bool:
        return options["block"] <= 2 * num_tokens


BY_TOKENS = impl("linear", "mine", options={"block": 0, "stages": 0}, tune_space={"block": (16, 32, 64), "stages": (2, 3)})(_Layer)


def plain(x: torch.Tensor, *, block: int) -> int:
    return block


PLAIN = impl("silu_and_mul", "mine", options={"block": 1024}, tune_space={"block": (512, 2048)})(plain)


def entry(num_tokens: int | None, block: int, spec: Spec = SPEC, name: str = "mine") -> Entry:
    return Entry(name, json.loads(json.dumps(layer_bucket(spec, num_tokens))), {"block": block})


def sized(factor: float) -> Spec:
    return SPEC.with_facts(in_features=int(4096 * factor))


def bound(tables: TunedTables, spec: Spec = SPEC, **options: int) -> _Layer:
    found = BY_TOKENS.bind(spec, options=options, tables=tables)
    assert isinstance(found, _Layer)
    return found


def test_options_follow_the_number_of_tokens(tmp_path: Path) -> None:
    save_entries(tmp_path, "linear", "sm_90", [entry(1, 16), entry(64, 64)])
    tuned = bound(TunedTables([tmp_path])).tuned
    assert [tuned.at(n) for n in (1, 2, 33, 64, 127, 128)] == [{"block": b} for b in (16, 16, 64, 64, 64, 64)]
    assert tuned.at(8) == {} == tuned.at(4096), "far from every entry the impl's own rule decides"


@pytest.mark.parametrize(
    ("spec", "is_known"),
    [
        (SPEC, True),
        (sized(0.5), True),
        (sized(4), True),
        (sized(0.2), False),
        (replace(SPEC, dtype=torch.float16), False),
        (SPEC.with_facts(weight_dtype=torch.int8), False),
        (replace(SPEC, arch="sm_80"), False),
        (SPEC.with_facts(more=1), True),
    ],
)
def test_near_sizes_share_an_entry_and_other_layers_do_not(tmp_path: Path, spec: Spec, is_known: bool) -> None:
    save_entries(tmp_path, "linear", "sm_90", [entry(64, 64)])
    assert bool(bound(TunedTables([tmp_path]), spec).tuned.at(64)) == is_known


def test_the_nearest_bucket_counts_and_among_equals_the_users(tmp_path: Path) -> None:
    package, user = tmp_path / "package", tmp_path / "user"
    save_entries(package, "linear", "sm_90", [entry(64, 16), entry(64, 32, sized(2))])
    save_entries(user, "linear", "sm_90", [entry(64, 64)])
    tables = TunedTables([package, user])
    assert bound(tables).tuned.at(64) == {"block": 64}
    assert bound(tables, sized(2)).tuned.at(64) == {"block": 32}
    assert bound(TunedTables([package])).tuned.content_hash != bound(tables).tuned.content_hash != ""


def test_a_choice_beats_the_table_and_the_table_the_default(tmp_path: Path) -> None:
    spec = Spec("cuda", "sm_90", torch.bfloat16)
    save_entries(tmp_path, "silu_and_mul", "sm_90", [Entry("mine", layer_bucket(spec), {"block": 2048})])
    tables = TunedTables([tmp_path])
    assert PLAIN.bind(spec)(None) == 1024
    assert PLAIN.bind(spec, tables=tables)(None) == 2048
    assert PLAIN.bind(spec, options={"block": 64}, tables=tables)(None) == 64
    assert TunedTables.load("off").lookup(PLAIN.op, PLAIN.name, PLAIN.options, spec) == Tuned()


def test_the_matrix_product_takes_tuned_options(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    linear = Registry.load().impls("linear")["triton"]
    weight = torch.empty(6144, 4096, dtype=torch.bfloat16)
    save_entries(tmp_path, "linear", "sm_90", [Entry("triton", layer_bucket(SPEC, 64), {"block_m": 64, "num_stages": 5})])
    tables = TunedTables([tmp_path])
    assert linear.bind(SPEC, {"weight": weight}, tables=tables).launch(64).num_stages == 5  # type: ignore[attr-defined]
    fixed = linear.bind(SPEC, {"weight": weight}, options={"num_stages": 2}, tables=tables)
    assert fixed.launch(64).num_stages == 2 and fixed.launch(64).block_m == 64  # type: ignore[attr-defined]
    assert fixed.launch(2048) == linear.bind(SPEC, {"weight": weight}, options={"num_stages": 2}).launch(2048)  # type: ignore[attr-defined]


def test_tables_of_another_triton_and_options_that_are_gone_are_not_used(tmp_path: Path) -> None:
    path = save_entries(tmp_path, "linear", "sm_90", [entry(64, 64), Entry("mine", layer_bucket(SPEC, 1), {"unroll": 4})])
    assert set(bound(TunedTables([tmp_path])).tuned.by_tokens) == {64}
    path.write_text(json.dumps({**json.loads(path.read_text()), "triton": "2.0.0"}))
    assert bound(TunedTables([tmp_path])).tuned == Tuned()


def test_saving_replaces_an_impls_bucket_and_keeps_the_others(tmp_path: Path) -> None:
    save_entries(tmp_path, "linear", "sm_90", [entry(1, 16), entry(64, 32), entry(64, 32, name="theirs")])
    table = json.loads(save_entries(tmp_path, "linear", "sm_90", [entry(64, 64)]).read_text())
    found = sorted((e["impl"], e["bucket"]["num_tokens"], e["options"]["block"]) for e in table["entries"])
    assert found == [("mine", 1, 16), ("mine", 64, 64), ("theirs", 64, 32)]
    assert table["triton"] == triton_version()


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    table_path(tmp_path, "linear", "sm_90").write_text('{"entries": 3}')
    with pytest.raises(ValueError, match=r"linear\.sm_90\.json"):
        bound(TunedTables([tmp_path]))


def test_candidates_are_filtered_few_and_always_the_same() -> None:
    assert candidates(BY_TOKENS, 16) == [{"block": b, "stages": s} for b in (16, 32) for s in (2, 3)]
    few = candidates(BY_TOKENS, 64, limit=3)
    assert len(few) == 3 and few == candidates(BY_TOKENS, 64, limit=3)
    with pytest.raises(ValueError, match="tune_space"):
        candidates(Impl("linear", "none", 0, BY_TOKENS.flags, plain), 1)


def _artifact(loops: list[LoopFigures]) -> Artifact:
    return Artifact(
        op="linear",
        impl="",
        case="64 tokens",
        dtype="bfloat16",
        kernel="_matmul_kernel",
        target="sm_90",
        triton="3.6.0",
        config="",
        num_warps=4,
        num_stages=3,
        shared_bytes=65536,
        registers=128,
        spills=0,
        matrix={},
        matrix_in_loop={},
        wide_loads=16,
        programs_per_sm=2,
        explicit_fusion=True,
        compile_s=0.1,
        loops=loops,
        turns=[64] * len(loops),
        programs=96,
    )


def test_gates_drop_candidates_before_they_are_timed() -> None:
    artifact = _artifact([])
    compiled = [
        Compilation("linear", f"mine@block:{block}", "64 tokens", "bfloat16", "sm_90", artifacts, refused, error)
        for block, artifacts, refused, error in (
            (1, [artifact], "", ""),
            (2, [replace(artifact, spills=4)], "", ""),
            (3, [replace(artifact, shared_bytes=300_000)], "", ""),
            (4, [], "", "ValueError: no"),
            (5, [], "refused", ""),
        )
    ]
    judged = judge(OPS["linear"], BY_TOKENS, [{"block": block} for block in range(1, 6)], compiled, [{"max_spills": 0}])
    assert [bool(candidate.reasons) for candidate in judged] == [False, True, True, True, True]
    assert "4 spills" in judged[1].reasons[0] and "shared memory" in judged[2].reasons[0] and "ValueError" in judged[3].reasons[0]


def test_the_model_puts_the_candidate_first_whose_main_loop_asks_for_less() -> None:
    loop = LoopFigures(
        {"tensor": 8, "alu": 20}, loaded_bytes=16384, buffers=3, wait=2, cover=None, tensor_flops=2 * 64 * 64 * 64, format="bf16"
    )
    slower = replace(loop, instructions={"tensor": 8, "alu": 2000})
    compiled = [
        Compilation("linear", f"mine@block:{block}", "64 tokens", "bfloat16", "sm_90", [_artifact([figures])])
        for block, figures in ((1, slower), (2, loop))
    ]
    judged = judge(OPS["linear"], BY_TOKENS, [{"block": 1}, {"block": 2}], compiled, [])
    assert [candidate.options["block"] for candidate in judged] == [2, 1]
    assert 0 < judged[0].predicted_us < judged[1].predicted_us < math.inf


def test_the_best_candidate_must_be_right_faster_and_so_in_every_case() -> None:
    def row(label: str, median_us: float, status: str = "ok") -> Row:
        return Row("linear", label, "case", "bfloat16", "gpu", "sm_90", status, median_us=median_us)

    options = [{"block": block} for block in (1, 2, 3, 4)]
    first = [[row("mine", 100.0), row("mine@block:1", 80.0), row("mine@block:2", 20.0, "wrong"), row("mine@block:3", 50.0)]]
    second = [[row("mine", 10.0), row("mine@block:1", 9.0), row("mine@block:3", 9.9, "error")]]
    scores = Scores({"dtype": "bfloat16"})
    add_scores(scores, first, options, BY_TOKENS)
    found = best_entry(scores, BY_TOKENS)
    assert found is not None and found.options == {"block": 3} and found.default_us == 100.0
    add_scores(scores, second, options, BY_TOKENS)
    found = best_entry(scores, BY_TOKENS)
    assert found is not None and found.options == {"block": 1}
    slow = Scores({})
    add_scores(slow, [[row("mine", 10.0), row("mine@block:4", 9.9)]], options, BY_TOKENS)
    assert best_entry(slow, BY_TOKENS) is None, "one percent is noise"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="would tune for minutes")
def test_without_a_gpu_the_command_says_what_is_worth_timing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton")
    words = ["kernels", "tune", "silu_and_mul", "--shapes", "llama-8b", "--candidates", "2", "--output", str(tmp_path)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "silu_and_mul:triton:" in out and "of 2 candidates are worth timing" in out
    assert "no GPU was found" in out and "block:" in out
    assert not list(tmp_path.iterdir()), "nothing was measured, so nothing is written"
    assert main(["kernels", "tune", "embedding"]) == 2 and "no impl of embedding" in capsys.readouterr().err
    assert main(["kernels", "tune", "silu_and_mul:torch"]) == 2 and "tune_space" in capsys.readouterr().err
