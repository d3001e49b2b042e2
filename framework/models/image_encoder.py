"""Encoders of images that layers of the decoder attend to: the library's tower, with its projector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from .tower import Tower


class ImageEncoder:
    """tower: whose module has a projector."""

    def __init__(self, tower: Tower) -> None:
        self.module, self._dtype, self._device = tower.module, tower.dtype, tower.device

    @torch.inference_mode()
    def encode(self, inputs: Mapping[str, np.ndarray]) -> torch.Tensor:
        """inputs of one image, as its processor makes them -> [E, H] of all of its tiles, but those that are padding."""
        tensors = {name: torch.from_numpy(value).to(self._device) for name, value in inputs.items()}
        tensors["pixel_values"] = tensors["pixel_values"].to(self._dtype)
        tiles = int(inputs["aspect_ratio_mask"].sum())
        found = self.module.vision_model(**tensors).last_hidden_state[0, 0, :tiles]
        return self.module.multi_modal_projector(found).flatten(0, 1).to(self._dtype)
