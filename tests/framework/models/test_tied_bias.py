"""An embedding that projects to logits which have a bias."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.models.examples import EXAMPLES

from .checkpoints import make
from .harness import build, error, model_config, reference, sequences, teacher_forced


@pytest.mark.parametrize("name", ["phi", "gptj"])
def test_logits(name: str, tmp_path: Path) -> None:
    example = replace(EXAMPLES[name], config={**EXAMPLES[name].config, "tie_word_embeddings": True})
    theirs = make(example, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in stored and float(stored["lm_head.bias"].abs().max()) > 0.1
    ours = teacher_forced(build(model_config(tmp_path, example)), sequences((12,)), None, num_decodes=2)[0]
    assert error(ours, reference(theirs, sequences((12,))[0])) <= 1e-4
