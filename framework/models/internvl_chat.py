"""InternVL in its original layout, of model_type internvl_chat: its config.json, and the names of its tower's tensors, in the
library's words.

Source: configuration_internvl_chat.py and modeling_internvl_chat.py beside the weights of InternVL2 (arXiv 2404.16821)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .own_layouts import check_computed, check_positive, check_sizes, section

TYPE: Final = "internvl_chat"
PLACEHOLDER: Final = "<image>"
"""Stands for an image in a prompt, and is no token."""
EMBEDDING: Final = "<IMG_CONTEXT>"
"""Token in whose place an embedding comes; its number is the tokenizer's business."""
_NAMES: Final = (
    ("mlp1.0.", "multi_modal_projector.layer_norm."),
    ("mlp1.1.", "multi_modal_projector.linear_1."),
    ("mlp1.3.", "multi_modal_projector.linear_2."),
    ("vision_model.embeddings.class_embedding", "vision_tower.embeddings.cls_token"),
    ("vision_model.embeddings.position_embedding", "vision_tower.embeddings.position_embeddings"),
    ("vision_model.embeddings.patch_embedding.", "vision_tower.embeddings.patch_embeddings.projection."),
    ("vision_model.encoder.layers.", "vision_tower.encoder.layer."),
    (".attn.proj.", ".attention.projection_layer."),
    (".attn.", ".attention."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".ls1", ".lambda_1"),
    (".ls2", ".lambda_2"),
)
"""Parts of names on disk, and the library's."""
_TOWER_DEFAULTS: Final = {
    "hidden_size": 3200,
    "num_hidden_layers": 48,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
    "hidden_act": "gelu",
    "norm_type": "rms_norm",
    "layer_norm_eps": 1e-6,
    "qkv_bias": False,
    "qk_normalization": True,
}
"""Of the fields of vision_config."""
_SIZES: Final = tuple(name for name, value in _TOWER_DEFAULTS.items() if type(value) is int)
_DEFAULTS: Final = {
    "downsample_ratio": 0.5,
    "dynamic_image_size": False,
    "use_thumbnail": False,
    "ps_version": "v1",
    "select_layer": -1,
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 6,
}


def text_fields(found: Mapping[str, Any]) -> dict[str, Any]:
    """llm_config. found: config.json. Raises ValueError where it is none."""
    return dict(section(found, "llm_config"))


def tile_fields(found: Mapping[str, Any]) -> dict[str, Any]:
    """How images are cut into tiles: ``size``, their sides in pixels, ``tokens``, embeddings of each, ``min_patches`` and
    ``max_patches``, as many tiles an image has (of which 1: it is not cut)."""
    config, vision = {**_DEFAULTS, **found}, {**_TOWER_DEFAULTS, **section(found, "vision_config")}
    most = config["max_dynamic_patch"] if config["dynamic_image_size"] else 1
    least = min(config["min_dynamic_patch"], most)
    tokens = int((vision["image_size"] // vision["patch_size"]) ** 2 * config["downsample_ratio"] ** 2)
    return {"size": vision["image_size"], "tokens": tokens, "min_patches": least, "max_patches": most}


def library_config(found: Mapping[str, Any]) -> Any:
    """The library's configuration of the tower and the projector before a text model of the same width. Raises ValueError for what
    its modules do not compute."""
    from transformers import InternVLConfig

    vision, text = {**_TOWER_DEFAULTS, **section(found, "vision_config")}, text_fields(found)
    config = {"force_image_size": vision["image_size"], **_DEFAULTS, **found}
    check_sizes(vision, *_SIZES, within="vision_config")
    check_sizes(text, "hidden_size", within="llm_config")
    check_sizes(config, "min_dynamic_patch", "max_dynamic_patch")
    check_positive(config, "downsample_ratio")
    computed = {
        "ps_version": "v2",
        "use_thumbnail": bool(config["dynamic_image_size"]),
        "select_layer": -1,
        "force_image_size": vision["image_size"],
    }
    check_computed(config, computed, TYPE)
    if vision["qk_normalization"] and vision["layer_norm_eps"] != 1e-6:
        raise ValueError(
            f"the model's config.json (or model.architecture) has vision_config.layer_norm_eps={vision['layer_norm_eps']!r} with "
            "qk_normalization, whose norms are served with 1e-06"
        )
    same = {name: vision[name] for name in _TOWER_DEFAULTS if name not in ("qkv_bias", "qk_normalization")}
    own = {"attention_bias": vision["qkv_bias"], "use_qk_norm": vision["qk_normalization"]}
    small = {"model_type": "llama", "hidden_size": text["hidden_size"], "num_attention_heads": 1}
    ratio = float(config["downsample_ratio"])
    return InternVLConfig(vision_config={**same, **own}, text_config=small, downsample_ratio=ratio)


def library_name(name: str) -> str | None:
    """Of a tensor of the tower or the projector; of one whose rows are queries, keys and values it has ``qkv``. None: it is of the
    text model."""
    if name.startswith("language_model."):
        return None
    for theirs, ours in _NAMES:
        name = name.replace(theirs, ours)
    return name
