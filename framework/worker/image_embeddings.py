"""What a tower makes of images, on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..engine.encoding import EncoderInput
from ..engine.step import StepInput
from ..multimodal.items import ImageItem
from .transfer import is_device_loss

if TYPE_CHECKING:
    from ..models.image_encoder import ImageEncoder
    from ..models.tower import Tower


class ImageEmbeddings:
    """Of the images that the scheduler's books say are kept.

    is_alone  this rank is the only one; of several, all fail together
    """

    def __init__(self, tower: Tower | ImageEncoder, is_alone: bool) -> None:
        self._tower, self._is_alone = tower, is_alone
        self._kept: dict[bytes, torch.Tensor] = {}
        self._errors: dict[bytes, Exception] = {}  # of this step

    def apply(self, step: StepInput) -> None:
        """Takes in the deltas of a step: what is forgotten, what is encoded."""
        for key in step.forgotten:
            self._kept.pop(key, None)
        self._errors.clear()
        for image in step.images:
            self._encode(image)

    def error(self, image: ImageItem) -> Exception | None:
        """Why there are none of an image: the tower failed, now or, where an earlier step was to encode it, again."""
        if image.key not in self._kept and image.key not in self._errors:
            self._encode(image)
        return self._errors.get(image.key)

    def __getitem__(self, image: ImageItem) -> torch.Tensor:
        """[E, H], of one without ``error``."""
        return self._kept[image.key]

    def encode(self, given: EncoderInput) -> torch.Tensor:
        """[S, H]: of all images of a request, to which layers attend. Raises what the tower failed with."""
        for image in given.images:
            if (error := self.error(image)) is not None:
                raise error
        return torch.cat([self[image] for image in given.images])

    def _encode(self, image: ImageItem) -> None:
        try:
            found = self._tower.encode(image.inputs)
            if len(found) != image.count:
                raise ValueError(
                    f"the tower gives {len(found)} embeddings of an image that has {image.count} placeholders: the files of the "
                    "processor are of another model"
                )
            self._kept[image.key] = found
        except Exception as error:
            if not self._is_alone or is_device_loss(error):
                raise
            self._errors[image.key] = error
