"""Phi-3-Vision's images, whose model comes without a processor for the library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..models.hub import read_json
from ..models.phi3_v import EMBEDDING, SIDE, num_embeddings

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP."""


class CroppedImages:
    """Called as a processor of the library is, for one image. It is made as large as ``num_crops`` crops allow, padded with
    white to whole crops, and comes before them as a whole (the HD transform)."""

    chat_template = None

    def __init__(self, folder: Path) -> None:
        """Raises ValueError for a preprocessor_config.json that cannot be."""
        most: Any = read_json(folder, "preprocessor_config.json").get("num_crops")
        if type(most) is not int or most < 1:
            raise ValueError(f"the preprocessor_config.json in {folder} has num_crops={most!r}, expected a positive number")
        self._most = most

    def __call__(self, images: Sequence[np.ndarray], **_: Any) -> dict[str, Any]:
        """images: one, uint8 [height, width, 3]. Returns what the tower takes, and the text in the place of the image."""
        import torch
        from PIL import Image

        image = Image.fromarray(images[0])
        lies = image.width >= image.height
        grid = crop_grid(image.width, image.height, self._most)
        if not lies:
            image = image.transpose(Image.Transpose.TRANSPOSE)
        rows, width = min(grid), max(grid) * SIDE
        height = int(width / (image.width / image.height))
        padded = Image.new("RGB", (width, rows * SIDE), (255, 255, 255))
        padded.paste(image.resize((width, height), Image.Resampling.BILINEAR), (0, (rows * SIDE - height) // 2))
        if not lies:
            padded = padded.transpose(Image.Transpose.TRANSPOSE)
        pixels = ((np.asarray(padded, dtype=np.float32) / 255 - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)
        whole = torch.nn.functional.interpolate(torch.from_numpy(pixels)[None], (SIDE, SIDE), mode="bicubic").numpy()
        crops = pixels.reshape(3, grid[0], SIDE, grid[1], SIDE).transpose(1, 3, 0, 2, 4).reshape(-1, 3, SIDE, SIDE)
        found = {"pixel_values": np.concatenate((whole, crops)), "grid": np.array(grid)}
        return {**found, "text_replacement_offsets": [[{"replacement": EMBEDDING * num_embeddings(*grid)}]]}


def crop_grid(width: int, height: int, most: int) -> tuple[int, int]:
    """Rows and columns of the at most ``most`` crops of an image."""
    ratio = max(width, height) / min(width, height)
    scale = max(scale for scale in range(1, most + 1) if scale * math.ceil(scale / ratio) <= most)
    other = math.ceil(int(scale * SIDE / ratio) / SIDE)
    return (other, scale) if width >= height else (scale, other)
