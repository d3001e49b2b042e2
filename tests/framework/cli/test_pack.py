"""A kernel pack: an engine's start on the target compiles nothing, shown by counting in a second process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("triton")

from framework.cli import main
from framework.cli.pack import compile_into
from framework.study.compose import CONFIG_FILE
from triton_kernels.compile_counter import CompileCounter

SMALL = {
    "model_type": "llama",
    "dtype": "float16",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
ENGINE = [
    "model.load_format=dummy",
    "+model.architecture=" + json.dumps(SMALL).replace('"', "").replace(": ", ":"),
    "scheduler.max_num_seqs=2",
    "scheduler.max_num_batched_tokens=16",
    "graphs.batch_sizes=[1,2]",
    "tuned=off",
    "kernels.sample=torch",
    "kernels.gather_logprobs=torch",
    "kernels.apply_penalties=torch",
]


@pytest.mark.slow
def test_a_second_start_compiles_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "pack", *ENGINE, "--target", "sm_90", "--output", str(tmp_path)]) == 0
    assert "compiled 0" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "pack.json").read_text())
    assert manifest["target"] == "sm_90" and manifest["num_compiled_by_a_second_start"] == 0
    expected = {"prefill_kernel", "_rms_norm_kernel", "_fused_kernel", "_slot_mapping_kernel"}
    assert expected <= set(manifest["kernels"])
    binaries = sorted(tmp_path.rglob("*.cubin"))
    assert len(binaries) >= len(manifest["kernels"])
    binaries[0].parent.joinpath(binaries[0].stem + ".json").unlink()  # what is missing is compiled, and counted
    assert len(compile_into(tmp_path, tmp_path / CONFIG_FILE, "sm_90")["compiled"]) == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [(["--target", "sm_1"], "the targets are"), (["model=unheard-of"], "unheard-of"), (["cache.block_sise=16"], "block_sise")],
)
def test_what_cannot_be_packed_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert main(["kernels", "pack", *words, "--output", str(tmp_path)]) == 2
    assert complaint in capsys.readouterr().err


def test_the_counter_tells_compiled_from_loaded_and_passes_on() -> None:
    from triton import knobs

    heard: list[bool] = []
    before = knobs.compilation.listener
    knobs.compilation.listener = lambda *, cache_hit, **more: heard.append(cache_hit)
    try:
        with CompileCounter() as counter:
            for name, cache_hit in (("a", False), ("b", True), ("a", False)):
                knobs.compilation.listener(src=None, metadata={"name": name}, metadata_group={}, times=None, cache_hit=cache_hit)
        assert counter.compiled == ["a", "a"] and counter.loaded == ["b"]
        assert heard == [False, True, False]
        knobs.compilation.listener(cache_hit=True)
        assert counter.loaded == ["b"], "counts no longer"
    finally:
        knobs.compilation.listener = before
