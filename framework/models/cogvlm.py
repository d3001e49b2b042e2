"""CogVLM and CogVLM2, whose code stands beside their weights: what their config.json leaves to it.

Source: modeling_cogvlm.py and visual.py beside the weights of THUDM's cogvlm-chat-hf and cogvlm2-llama3-chat-19B (arXiv 2311.03079,
2408.16500)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .own_layouts import check_computed, check_positive, check_sizes, section

TYPE: Final = "cogvlm"
ARCHITECTURE: Final = "CogVLMForCausalLM"
"""By which config.json is told, that names no model_type."""
PLACEHOLDER: Final = "<image>"
"""Stands for the image in a prompt, and is no token."""
PREFIX: Final = "model.vision."
"""Of the tower's tensors."""
NUM_ENDS: Final = 2
"""Embeddings of an image beside those of its patches: one before them, one behind."""
_FIELDS: Final = ("hidden_size", "num_heads", "num_hidden_layers", "intermediate_size", "image_size", "patch_size")


@dataclass(frozen=True)
class TowerSizes:
    """Of EVA2-CLIP and of the gated projection behind it. image_size and patch_size in pixels; text_size and text_inner: columns of
    embeddings, and within the projection; joins: 2 x 2 patches become one embedding (CogVLM2)."""

    hidden_size: int
    num_heads: int
    num_hidden_layers: int
    intermediate_size: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    text_size: int
    text_inner: int
    joins: bool

    @property
    def num_embeddings(self) -> int:
        """Of an image."""
        side = self.image_size // self.patch_size // (2 if self.joins else 1)
        return side * side + NUM_ENDS


def tower_sizes(found: Mapping[str, Any]) -> TowerSizes:
    """found: config.json. Raises ValueError for another kind of tower."""
    vision = {"hidden_act": "gelu", "in_channels": 3, "layer_norm_eps": 1e-6, **section(found, "vision_config")}
    check_sizes(vision, *_FIELDS, within="vision_config")
    check_sizes(found, "hidden_size", "intermediate_size")
    check_positive(vision, "layer_norm_eps", within="vision_config")
    check_computed(vision, {"hidden_act": "gelu", "in_channels": 3}, TYPE, within="vision_config")
    joins = is_second(found)
    for name, whole, size in (
        ("num_heads", vision["hidden_size"], vision["num_heads"]),
        ("patch_size", vision["image_size"], vision["patch_size"] * (2 if joins else 1)),
    ):
        if whole % size:
            raise ValueError(
                f"the model's config.json (or model.architecture) has vision_config.{name}={vision[name]}, of which {whole} is no "
                "multiple"
            )
    return TowerSizes(
        **{name: vision[name] for name in _FIELDS},
        layer_norm_eps=vision["layer_norm_eps"],
        text_size=found["hidden_size"],
        text_inner=found["intermediate_size"],
        joins=joins,
    )


def is_second(found: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of CogVLM2."""
    return found.get("num_multi_query_heads") is not None


def placeholder_id(found: Mapping[str, Any]) -> int:
    """The token in whose place embeddings come, which pads elsewhere. Raises ValueError for what is none."""
    given = found.get("pad_token_id")
    if given is None:
        return 128002 if is_second(found) else 0
    if type(given) is not int or given < 0:
        raise ValueError(f"the model's config.json (or model.architecture) has pad_token_id={given!r}, expected a token id")
    return given


def library_name(name: str) -> str | None:
    """Of a tensor of the tower, in ``CogVlmTower``; None: it is of the text model."""
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else None
