"""Tiny random models that read images, as the library saves them, with a tokenizer of bytes and a processor."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCAB = 320
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": None,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
_CLIP_PIXELS = {
    "size": {"shortest_edge": 28},
    "crop_size": {"height": 28, "width": 28},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.3, 0.2, 0.25],
}
_LLAVA_TOKENS = {"image_token": "<image>"}
_QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}
_QWEN_TEXT = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
_QWEN_PIXELS = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 64 * 24}}


@dataclass(frozen=True)
class Kind:
    """A type of model. tokens: of its tokenizer, by their names; template: what stands for an image in a prompt's text."""

    config: Callable[[], Any]
    tokens: dict[str, str]
    processor: dict[str, Any]
    preprocessor: dict[str, Any]
    template: str


def _llava() -> Any:
    return transformers.LlavaConfig(
        text_config={"model_type": "llama", **TEXT}, vision_config=_CLIP, image_token_index=258, vision_feature_layer=-2
    )


def _llava_next() -> Any:
    return transformers.LlavaNextConfig(
        text_config={"model_type": "mistral", **TEXT, "sliding_window": None},
        vision_config=_CLIP,
        image_token_index=258,
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
    )


def _qwen2_vl() -> Any:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    return transformers.Qwen2VLConfig(
        text_config=_QWEN_TEXT, vision_config=vision, image_token_id=258, video_token_id=259, vision_start_token_id=260
    )


def _qwen2_5_vl() -> Any:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    return transformers.Qwen2_5_VLConfig(
        text_config=_QWEN_TEXT, vision_config=vision, image_token_id=258, video_token_id=259, vision_start_token_id=260
    )


def _gemma3() -> Any:
    text = {
        **TEXT,
        "head_dim": 16,
        "sliding_window": 16,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    siglip = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
    return transformers.Gemma3Config(
        text_config=text,
        vision_config={**siglip, "patch_size": 4, "vision_use_head": False},
        mm_tokens_per_image=16,
        image_token_index=258,
        boi_token_index=259,
        eoi_token_index=260,
    )


def _internvl() -> Any:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 7,
    }
    return transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config=vision,
        image_token_id=258,
        image_seq_length=4,
        tie_word_embeddings=False,
    )


def _mllama() -> Any:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_global_layers": 1,
        "attention_heads": 2,
        "vision_output_dim": 96,
        "intermediate_layers_indices": [0, 2],
        "image_size": 28,
        "patch_size": 7,
    }
    text = {**TEXT, "vocab_size": 256, "num_hidden_layers": 4, "cross_attention_layers": [1, 3]}
    return transformers.MllamaConfig(text_config=text, vision_config=vision, image_token_index=258)


_GEMMA_TOKENS = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
_INTERNVL_TOKENS = {
    "context_image_token": "<IMG_CONTEXT>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "video_token": "<video>",
}
_LLAVA_PARTS = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
_QWEN_PROMPT = "<|vision_start|><|image_pad|><|vision_end|>"
KINDS = {
    "llava": Kind(
        _llava,
        _LLAVA_TOKENS,
        {"processor_class": "LlavaProcessor", **_LLAVA_PARTS},
        {"image_processor_type": "CLIPImageProcessor", **_CLIP_PIXELS},
        "<image>",
    ),
    "llava_next": Kind(
        _llava_next,
        _LLAVA_TOKENS,
        {"processor_class": "LlavaNextProcessor", **_LLAVA_PARTS},
        {"image_processor_type": "LlavaNextImageProcessor", **_CLIP_PIXELS, "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]]},
        "<image>",
    ),
    "qwen2_vl": Kind(
        _qwen2_vl,
        _QWEN_TOKENS,
        {"processor_class": "Qwen2VLProcessor"},
        {"image_processor_type": "Qwen2VLImageProcessor", **_QWEN_PIXELS},
        _QWEN_PROMPT,
    ),
    "qwen2_5_vl": Kind(
        _qwen2_5_vl,
        _QWEN_TOKENS,
        {"processor_class": "Qwen2_5_VLProcessor"},
        {"image_processor_type": "Qwen2VLImageProcessor", **_QWEN_PIXELS},
        _QWEN_PROMPT,
    ),
    "gemma3": Kind(
        _gemma3,
        _GEMMA_TOKENS,
        {"processor_class": "Gemma3Processor", "image_seq_length": 16},
        {
            "image_processor_type": "Gemma3ImageProcessor",
            "size": {"height": 32, "width": 32},
            "image_mean": [0.5, 0.4, 0.3],
            "image_std": [0.3, 0.2, 0.25],
        },
        "<start_of_image>",
    ),
    "internvl": Kind(
        _internvl,
        _INTERNVL_TOKENS,
        {"processor_class": "InternVLProcessor", "image_seq_length": 4},
        {
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 28, "width": 28},
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": 4,
            "image_mean": [0.5, 0.4, 0.3],
            "image_std": [0.3, 0.2, 0.25],
        },
        "<IMG_CONTEXT>",
    ),
}
MLLAMA = Kind(
    _mllama,
    {"image_token": "<|image|>", "bos_token": "\u0100"},
    {"processor_class": "MllamaProcessor"},
    {
        "image_processor_type": "MllamaImageProcessor",
        "size": {"height": 28, "width": 28},
        "max_image_tiles": 4,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.3, 0.2, 0.25],
    },
    "<|image|>",
)
"""Its decoder attends to images. The token that stands for one has no logit; what begins a text is the byte 0, which has."""


def tokenizer(tokens: dict[str, str]) -> PreTrainedTokenizerFast:
    """A token for each byte, then <s>, </s> and ``tokens``, which are attributes of it; its bos_token may be there already."""
    alphabet = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    found = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    more = {name: token for name, token in tokens.items() if name != "bos_token"}
    made = PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>", eos_token="</s>", extra_special_tokens=more)
    made.bos_token = tokens.get("bos_token", made.bos_token)
    return made


def make(name: str, folder: Path, seed: int = 0) -> Any:
    """Saves a model of a kind, and returns the library's."""
    kind = MLLAMA if name == "mllama" else KINDS[name]
    config = kind.config()
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    randomize(model)
    model.save_pretrained(folder)
    _save_processor(kind, folder)
    return model


def make_without_weights(name: str, folder: Path) -> None:
    """Saves all but the weights of a model of a kind."""
    kind = MLLAMA if name == "mllama" else KINDS[name]
    kind.config().save_pretrained(folder)
    _save_processor(kind, folder)


def _save_processor(kind: Kind, folder: Path) -> None:
    tokenizer(kind.tokens).save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(kind.processor))
    (folder / "preprocessor_config.json").write_text(json.dumps(kind.preprocessor))


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """Of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def randomize(model: Any) -> None:
    """Weights larger than the library makes them, so that what is wrong is seen."""
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * (weight.shape[-1] ** -0.5 if weight.dim() > 1 else 0.1) + (weight.dim() == 1)
