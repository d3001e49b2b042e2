"""Pipelines of the diffusers library with random weights, from the shapes of their parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from framework.models.image_generation.load import diffusers_library

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"


def write_pipeline(folder: Path, shape: Mapping[str, Mapping[str, Any]], seed: int) -> None:
    """Writes a Stable Diffusion pipeline, of Stable Diffusion XL where there is a text_encoder_2.

    shape  part -> fields of its configuration, over the library's own; of a vae how wide its blocks are is enough

    Raises ValueError for parts that are missing, and others."""
    if wrong := set(shape) - set(PARTS) or {"unet", "vae", "text_encoder"} - set(shape):
        raise ValueError(f"shape has {', '.join(shape)}; expected {', '.join(PARTS)}, the last for Stable Diffusion XL: {wrong}")
    diffusers = diffusers_library()
    tokenizer = _byte_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {
            "unet": diffusers.UNet2DConditionModel(**shape["unet"]),
            "vae": diffusers.AutoencoderKL(**_vae(**shape["vae"])),
            "text_encoder": transformers.CLIPTextModel(_text_config(tokenizer, shape["text_encoder"])),
        }
        if "text_encoder_2" in shape:
            config = _text_config(tokenizer, shape["text_encoder_2"])
            parts |= {"text_encoder_2": transformers.CLIPTextModelWithProjection(config), "tokenizer_2": tokenizer}
    beta = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = diffusers.DDIMScheduler(**beta, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    parts |= {"tokenizer": tokenizer, "scheduler": scheduler}
    if "text_encoder_2" in shape:
        pipeline: Any = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = diffusers.StableDiffusionPipeline(**parts, **none)
    pipeline.save_pretrained(folder)


def _vae(block_out_channels: list[int], **given: Any) -> dict[str, Any]:
    count = len(block_out_channels)
    kinds = {f"{way.lower()}_block_types": [f"{way}{kind}coderBlock2D"] * count for way, kind in (("Down", "En"), ("Up", "De"))}
    groups = min(32, block_out_channels[0] // 2)
    return {**kinds, "latent_channels": 4, "norm_num_groups": groups, "block_out_channels": block_out_channels, **given}


def _text_config(tokenizer: Any, given: Mapping[str, Any]) -> Any:
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    return transformers.CLIPTextConfig(**{"vocab_size": len(tokenizer), **ids, **given})


def _byte_tokenizer(folder: Path) -> Any:
    """CLIP's, whose words are bytes."""
    alphabet = sorted(ByteLevel.alphabet())
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), _BEGIN, _END]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)
