"""CogVLM and CogVLM2, whose code stands beside their weights: what their config.json leaves to it.

Source: modeling_cogvlm.py and visual.py beside the weights of THUDM's cogvlm-chat-hf and cogvlm2-llama3-chat-19B (arXiv 2311.03079,
2408.16500)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

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
    section = found.get("vision_config")
    if not isinstance(section, Mapping):
        raise ValueError(f"the model's config.json (or model.architecture) has vision_config={section!r}, expected an object")
    given = {f"vision_config.{name}": section.get(name) for name in _FIELDS}
    given |= {name: found.get(name) for name in ("hidden_size", "intermediate_size")}
    for name, value in given.items():
        if type(value) is not int or value < 1:
            raise ValueError(
                f"the model's config.json (or model.architecture) has {name}={value!r}, expected a positive whole number"
            )
    for name, computed in {"hidden_act": "gelu", "in_channels": 3}.items():
        if section.get(name, computed) != computed:
            raise ValueError(
                f"the model's config.json (or model.architecture) has vision_config.{name}={section[name]!r}, but images of "
                f"{ARCHITECTURE} are served where it is {computed!r}"
            )
    if section["hidden_size"] % section["num_heads"]:
        raise ValueError(
            f"the model's config.json (or model.architecture) has {section['num_heads']} heads (vision_config.num_heads) in a "
            f"hidden_size of {section['hidden_size']}"
        )
    return TowerSizes(
        **{name: section[name] for name in _FIELDS},
        layer_norm_eps=section.get("layer_norm_eps", 1e-6),
        text_size=found["hidden_size"],
        text_inner=found["intermediate_size"],
        joins=is_second(found),
    )


def is_second(found: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of CogVLM2."""
    return found.get("num_multi_query_heads") is not None


def placeholder_id(found: Mapping[str, Any]) -> int:
    """The token in whose place embeddings come, which pads elsewhere."""
    given: int | None = found.get("pad_token_id")
    return given if given is not None else 128002 if is_second(found) else 0


def library_name(name: str) -> str | None:
    """Of a tensor of the tower, in ``CogVlmTower``; None: it is of the text model."""
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else None
