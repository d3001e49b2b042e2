"""CogVLM's images, whose model comes without a processor for the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..models.cogvlm import tower_sizes
from .crops import MEAN, STD


class SquareImages:
    """Called as a processor of the library is, for one image, which is made a square of the tower's size, whatever its shape."""

    chat_template = None

    def __init__(self, config: Mapping[str, Any], token: str) -> None:
        """config: config.json; token: in whose place an embedding comes."""
        sizes = tower_sizes(config)
        self._side, self._text = sizes.image_size, token * sizes.num_embeddings

    def __call__(self, images: Sequence[np.ndarray], **_: Any) -> dict[str, Any]:
        """images: one, uint8 [height, width, 3]. Returns what the tower takes, f32 [1, 3, side, side], and the text in the place of
        the image."""
        from PIL import Image

        square = Image.fromarray(images[0]).resize((self._side, self._side), Image.Resampling.BICUBIC)
        pixels = ((np.asarray(square, dtype=np.float32) / 255 - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)[None]
        return {"pixel_values": pixels, "text_replacement_offsets": [[{"replacement": self._text}]]}
