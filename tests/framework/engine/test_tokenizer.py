"""Tokenizers of checkpoints that bring code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from framework.engine.tokenizer import load_tokenizer
from framework.models.hub import resolve_model

CODE = ["tokenization_internlm2.InternLM2Tokenizer", "tokenization_internlm2_fast.InternLM2TokenizerFast"]


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("internlm2", {"tokenizer_class": "InternLM2Tokenizer", "auto_map": {"AutoTokenizer": CODE}}),
        ("minicpm", {"tokenizer_class": "LlamaTokenizer"}),
    ],
)
def test_code_is_neither_run_nor_asked_about(
    model_type: str, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = resolve_model("tiny")
    shutil.copy(tiny / "tokenizer.json", tmp_path)
    code = {"auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **code}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenization_internlm2.py").write_text("raise RuntimeError('this ran')")
    text = "import os\n"
    assert load_tokenizer(tmp_path).encode(text) == load_tokenizer(tiny).encode(text)
    assert "custom code" not in capsys.readouterr().out
