"""``kernelswap models``: no type without a path or a reason, and the README says the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from framework.cli import main
from framework.cli.models import markdown

README = Path(__file__).parents[3] / "README.md"


@pytest.fixture(scope="module")
def served() -> dict[str, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", printed.append)
        assert main(["models", "--all", "--json"]) == 0
    return {each["model_type"]: each for each in json.loads(printed[0])}


def test_every_type_has_a_path_or_a_reason(served: dict[str, dict[str, Any]]) -> None:
    assert set(served) >= {*CONFIG_MAPPING_NAMES, *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    for each in served.values():
        assert each["path"] in ("native", "transformers", "diffusers", "refused")
        assert bool(each["tasks"]) == (each["path"] != "refused"), each
        assert each["reason"] or each["path"] == "native", each
    assert sum(each["path"] == "native" for each in served.values()) >= 38


@pytest.mark.parametrize(
    ("model_type", "path", "reason"),
    [
        ("llama", "native", ""),
        ("gemma3", "native", ""),
        ("minicpm", "native", ""),
        ("jamba", "native", ""),
        ("ministral3", "transformers", "no native family"),
        ("bert", "native", ""),
        ("electra", "refused", "not causal"),
        ("zamba2", "refused", "does not use the attention interface"),
        ("t5", "native", ""),
        ("mt5", "refused", "encoder-decoder"),
        ("mllama", "native", ""),
        ("vit", "refused", "no causal language model"),
        ("siglip2", "refused", "its images keep their shapes"),
        ("llada2_moe", "native", ""),
        ("diffusion_gemma", "transformers", "no native family"),
        ("StableDiffusionXLPipeline", "diffusers", "model_index.json"),
    ],
)
def test_paths(model_type: str, path: str, reason: str, served: dict[str, dict[str, Any]]) -> None:
    found = served[model_type]
    assert found["path"] == path and reason in found["reason"]


def test_tasks(served: dict[str, dict[str, Any]]) -> None:
    pooled = ["embed", "classify", "score"]
    images = ["generate", "images", *pooled]
    expected = {
        "llama": ["generate", *pooled],
        "llava": images,
        "gemma3": images,
        "mllama": ["generate", "images"],
        "mllama_text_model": ["generate"],
        "cogvlm": images,
        "bert": pooled,
        "clip": ["embed"],
        "siglip": ["embed"],
        "ministral3": ["generate"],
        "sdar": ["generate"],
        "diffusion_gemma": ["generate"],
        "StableDiffusionPipeline": ["text-to-image"],
    }
    assert {name: served[name]["tasks"] for name in expected} == expected


def test_the_readme_lists_the_native_types(served: dict[str, dict[str, Any]]) -> None:
    native = [name for name, each in served.items() if each["path"] == "native"]
    assert markdown(native) in README.read_text(), "run kernelswap models --markdown"


def test_the_causal_types_are_listed_with_their_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["llama", "native", "generate,", "embed,", "classify,", "score"] for line in lines)
    assert f"{len(lines) - 2} types" in lines[-1] and "native" in lines[-1]
