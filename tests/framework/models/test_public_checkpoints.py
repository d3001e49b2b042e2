"""Checkpoints that the public tools themselves wrote (tests/checkpoints, with the scripts that made them) give the logits of their
formats' definitions, computed beside each in float64 without any code of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from framework.config import ModelConfig

from .harness import build, error, teacher_forced

FOLDER = Path(__file__).parents[2] / "checkpoints"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/model.safetensors"))
DEFINITIONS = ("logits_activations_to_127", "logits_quantized_activations", "logits")
"""The first that is there is what a checkpoint's logits are: activations are quantized where its format says so."""


def expected_logits(folder: Path) -> tuple[str, list[int], torch.Tensor]:
    """(definition, tokens, float64 logits [T, V])."""
    stored = load_file(folder / "expected.safetensors")
    name = next(name for name in DEFINITIONS if name in stored)
    return name, stored["input_ids"][0].tolist(), stored[name][0]


def our_logits(folder: Path, choice: str, tokens: list[int], cache_dtype: str = "auto") -> torch.Tensor:
    """[T, V], in chunks, then token by token."""
    model = build(ModelConfig(str(folder), dtype="float32"), {"default": choice}, cache_dtype=cache_dtype)
    return teacher_forced(model, [tokens], 5, num_decodes=3)[0]


@pytest.mark.parametrize("choice", ["reference", "torch", "auto"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_format(name: str, choice: str) -> None:
    folder = FOLDER / name
    definition, tokens, expected = expected_logits(folder)
    errors = sorted(error(row, exact) for row, exact in zip(our_logits(folder, choice, tokens), expected))
    # Where activations are quantized, one that lies on the border between two values may go either way in float32.
    # That of the reference's norms, which are exact, is every other one where the embedding's 8 bits meet a scale of |max| / 127.
    borders = 0 if definition == "logits" else len(tokens) if (name, choice) == ("ct_w8a8_dynamic", "reference") else 2
    assert errors[-1 - borders :][0] <= 1e-3 or borders == len(tokens)
    assert errors[-1] <= (0.03 if borders else 1e-3)


def test_scales_of_the_cache_are_those_of_the_checkpoint() -> None:
    folder = FOLDER / "ct_fp8_kv"
    stored = load_file(folder / "expected.safetensors")
    expected, tokens = stored["logits_quantized_activations_and_cache"][0], stored["input_ids"][0].tolist()

    def errors(cache_dtype: str) -> list[float]:
        logits = our_logits(folder, "reference", tokens, cache_dtype)
        return sorted(error(row, exact) for row, exact in zip(logits, expected))

    assert errors("float8_e4m3fn")[-3] <= 1e-3, "all tokens but those with a number on the border between two values"
    assert errors("float8_e5m2")[3] > 1e-3, "the comparison sees how the cache rounds"


def test_every_checkpoint_says_where_it_comes_from_and_is_small() -> None:
    assert NAMES, f"no checkpoints in {FOLDER}"
    sizes = {name: sum(file.stat().st_size for file in (FOLDER / name).iterdir()) for name in NAMES}
    assert max(sizes.values()) < 1e6 and sum(sizes.values()) < 8e6, sizes
    for name in NAMES:
        meta = json.loads((FOLDER / name / "meta.json").read_text(encoding="utf-8"))
        assert meta["tool"] and meta["versions"] and meta["command"]
