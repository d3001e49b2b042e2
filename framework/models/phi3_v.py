"""Phi-3-Vision, of model_type phi3_v, of which the library has no classes: what its config.json leaves to the code beside it.

Source: image_embedding_phi3_v.py and image_processing_phi3_v.py beside the weights of Microsoft's Phi-3-vision-128k-instruct (arXiv
2404.14219)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .own_layouts import check_computed, check_sizes, section

TYPE: Final = "phi3_v"
PLACEHOLDER: Final = "<|image_{}|>"
"""Stands for an image in a prompt, with its number from 1 on, and is no token."""
EMBEDDING: Final = "<|image|>"
"""Token in whose place an embedding comes."""
PREFIX: Final = "model.vision_embed_tokens."
"""Of the tower's tensors."""
SIDE: Final = 336
"""Pixels of a crop."""
GRID: Final = 12
"""Embeddings in a row of a crop."""
HEAD_DIM: Final = 64
"""Of the tower's attention."""
_EMBEDDING_LAYER: Final = {"hd_transform_order": "sub_glb", "use_hd_transform": True, "with_learnable_separator": True}


def tower_sizes(found: Mapping[str, Any]) -> tuple[int, int]:
    """(width of the tower, width of embeddings). found: config.json. Raises ValueError for another kind of tower."""
    images = section(found, "img_processor")
    check_computed(section(found, "embd_layer"), _EMBEDDING_LAYER, TYPE, within="embd_layer")
    check_computed(images, {"name": "clip_vision_model", "num_img_tokens": GRID**2}, TYPE, within="img_processor")
    check_sizes(images, "image_dim_out", within="img_processor")
    check_sizes(found, "hidden_size")
    if (size := images["image_dim_out"]) % HEAD_DIM:
        raise ValueError(
            f"the model's config.json (or model.architecture) has img_processor.image_dim_out={size}, expected a multiple of "
            f"{HEAD_DIM}"
        )
    return size, found["hidden_size"]


def num_embeddings(rows: int, columns: int) -> int:
    """Of an image in so many crops, and as a whole, with those that separate lines."""
    return (rows * columns + 1) * GRID**2 + 1 + (rows + 1) * GRID


def library_name(name: str) -> str | None:
    """Of a tensor of the tower, in ``Phi3VisionTower``; None: it is of the text model."""
    if not name.startswith(PREFIX) or name.startswith(f"{PREFIX}wte."):
        return None
    return name.removeprefix(PREFIX).replace("img_processor.vision_model.", "img_processor.")
