"""InternVL's images in its original layout, which comes without a processor for the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from ..models.internvl_chat import EMBEDDING, tile_fields

_MEAN: Final = (0.485, 0.456, 0.406)
_STD: Final = (0.229, 0.224, 0.225)
"""Of ImageNet, as the code beside the weights has them."""


class TiledImages:
    """Called as a processor of the library is, for one image. It is cut into the grid of tiles that is nearest to its shape, and a
    thumbnail of the whole comes after them where they are several (arXiv 2404.16821, dynamic aspect ratio matching)."""

    chat_template = None

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: config.json."""
        import transformers

        fields, library = tile_fields(config), transformers
        self._text = EMBEDDING * fields.pop("tokens")
        size = fields.pop("size")
        pillow: Any = library.GotOcr2ImageProcessorPil
        self._processor = pillow(
            size={"height": size, "width": size}, crop_to_patches=True, image_mean=_MEAN, image_std=_STD, **fields
        )

    def __call__(self, images: Sequence[np.ndarray], input_data_format: str, **_: Any) -> dict[str, Any]:
        """images: one, uint8 [height, width, 3]. Returns what the tower takes, f32 [tiles, 3, size, size], and the text in the
        place of the image."""
        pixels = self._processor(list(images), input_data_format=input_data_format, return_tensors="np")["pixel_values"]
        text = f"<img>{self._text * len(pixels)}</img>"
        return {"pixel_values": pixels, "text_replacement_offsets": [[{"replacement": text}]]}
