"""``model_index.json``: what is refused before anything is loaded, and by which name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from framework import LLM, EngineConfig
from framework.models.hub import pipeline_folder
from framework.models.image_generation.index import read_index

STABLE_DIFFUSION = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.0",
    "requires_safety_checker": True,
    "feature_extractor": [None, None],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
NEEDED = {"scheduler", "text_encoder", "tokenizer", "unet", "vae"}


def write(folder: Path, **changes: Any) -> Path:
    """A pipeline's folder with empty parts, without a safety checker's. None: an entry is left out."""
    found = {key: value for key, value in (STABLE_DIFFUSION | changes).items() if value is not None}
    (folder / "model_index.json").write_text(json.dumps(found))
    for part in NEEDED:
        (folder / part).mkdir(exist_ok=True)
    return folder


def test_a_pipeline_has_the_parts_that_lie_there(tmp_path: Path) -> None:
    assert read_index("m", write(tmp_path)) == ("StableDiffusionPipeline", NEEDED)
    (tmp_path / "safety_checker").mkdir()
    assert read_index("m", tmp_path) == ("StableDiffusionPipeline", NEEDED | {"safety_checker"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_class_name": "FluxPipeline"}, "'FluxPipeline' .*StableDiffusionPipeline, StableDiffusionXLPipeline"),
        ({"_class_name": ["pipeline", "Mine"]}, r"\['pipeline', 'Mine'\]"),
        ({"_class_name": None}, "None"),
        ({"unet": None}, "has no unet"),
        ({"unet": [None, None]}, "has no unet"),
        ({"unet": ["diffusers", "UNet3DConditionModel"]}, "UNet3DConditionModel"),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderModel; only CLIPTextModel"),
        ({"unet": ["my_unet", "UNet2DConditionModel"]}, "'my_unet'.*code of checkpoints is not run"),
        ({"unet": ["diffusers"]}, r"unet=\['diffusers'\]"),
        ({"unet": [1, "UNet2DConditionModel"]}, "unet="),
        ({"vae": "AutoencoderKL"}, "has no vae"),
        ({"controlnet": ["diffusers", "ControlNetModel"]}, "controlnet, which StableDiffusionPipeline does not take"),
        ({"_class_name": "StableDiffusionXLPipeline"}, "has no text_encoder_2, tokenizer_2"),
    ],
)
def test_what_cannot_run_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"(?s)model 'm' cannot make images.*{said}"):
        read_index("m", write(tmp_path, **changes))


def test_a_part_that_is_named_must_lie_there(tmp_path: Path) -> None:
    (write(tmp_path) / "vae").rmdir()
    with pytest.raises(ValueError, match=r"names vae, but has no such folder"):
        read_index("m", tmp_path)


def test_an_index_that_is_none_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[1]"):
        (tmp_path / "model_index.json").write_text(text)
        with pytest.raises(ValueError, match="model_index"):
            read_index("m", tmp_path)


def test_each_interface_names_the_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"framework.ImagePipeline runs \(pip install 'kernelswap\[diffusers\]'\)"):
        LLM(str(write(tmp_path)))
    assert pipeline_folder(str(tmp_path)) == tmp_path
    (tmp_path / "model_index.json").unlink()
    for name in (str(tmp_path), EngineConfig().model.name):
        with pytest.raises(ValueError, match=r"no model_index.json.*framework.LLM serves models of text"):
            pipeline_folder(name)
