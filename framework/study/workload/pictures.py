"""Images in the prompts of a workload. Everything is a pure function of its arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...engine.images import check_size
from ...multimodal.items import ImageItem
from ...multimodal.places import ImagePlaces, PreparedImage
from ...multimodal.sized import SizedImages
from .config import WorkloadConfig
from .prompts import IMAGE_PLACES, IMAGE_SIZES, IMAGES, stream

if TYPE_CHECKING:
    from ...engine.inputs import InputProcessor

_GRAIN = 8
"""Squares of a color along each side of a picture: what costs is the number of pixels."""


class Pictures:
    """Puts the images of a workload into its prompts, prepared as the model takes them: before a run, as prompts are tokenized."""

    def __init__(self, config: WorkloadConfig, places: ImagePlaces) -> None:
        self._config, self._places, self._known = config, places, dict[int, PreparedImage]()

    @classmethod
    def of(cls, config: WorkloadConfig, inputs: InputProcessor, max_model_len: int) -> Pictures | None:
        """None for a workload without images. Raises ValueError for images that no request of an engine could have."""
        if not config.num_images:
            return None
        places = inputs.image_prompts
        if places is None:
            raise ValueError(f"workload.num_images={config.num_images} cannot work: {inputs.no_images}")
        places.check_count(config.num_images, "workload.num_images asks for")
        found = cls(config, places)
        widths, heights = (_bounds(side, config.image_spread) for side in (config.image_width, config.image_height))
        (width, most_width), (height, most_height) = widths, heights
        asked = f"workload.num_images={config.num_images} of {width} x {height} pixels cannot work"
        try:
            for size in ((width, most_height), (most_width, height), (most_width, most_height)):
                check_size(*size)
            image = found._drawn(0, width, height)
        except ValueError as error:
            raise ValueError(f"{asked} (workload.image_width, image_height, image_spread): {error}") from error
        num_tokens = config.num_images * len(image.token_ids)
        if num_tokens >= max_model_len:
            raise ValueError(
                f"{asked}: they are {num_tokens} tokens of a prompt, and a request may have {max_model_len} in all "
                "(model.max_model_len): ask for fewer images, or for smaller ones (workload.image_width, image_height)"
            )
        return found

    def put(self, index: int, prompt: list[int], first: int) -> tuple[list[int], tuple[ImageItem, ...]]:
        """The prompt of request ``index`` with its images, of which each stands before the token ``first``, behind the last, or
        anywhere between, as often; and with as many placeholders as they have embeddings."""
        config, places, rng = self._config, self._places, stream(self._config.seed, IMAGE_PLACES, index)
        taken = {places.token_id, places.placeholder_id}
        other = min({0, 1, 2} - taken)
        text = [other if token in taken else token for token in prompt]
        first = min(first, len(text))
        spots = [(first, int(rng.integers(first, len(text) + 1)), len(text))[rng.integers(3)] for _ in range(config.num_images)]
        for spot in sorted(spots, reverse=True):
            text.insert(spot, places.placeholder_id)
        return places.of_tokens(text, [self._image(index, nth, rng) for nth in range(config.num_images)])

    def _image(self, index: int, nth: int, rng: np.random.Generator) -> PreparedImage:
        config = self._config
        if config.num_distinct_images is None:
            return self._sized(index * config.num_images + nth)
        name = int(rng.integers(config.num_distinct_images))
        if name not in self._known:
            self._known[name] = self._sized(name)
        return self._known[name]

    def _sized(self, name: int) -> PreparedImage:
        config, rng = self._config, stream(self._config.seed, IMAGE_SIZES, name)
        sides = (_bounds(side, config.image_spread) for side in (config.image_width, config.image_height))
        width, height = (int(rng.integers(least, most + 1)) for least, most in sides)
        return self._drawn(name, width, height)

    def _drawn(self, name: int, width: int, height: int) -> PreparedImage:
        if isinstance(self._places, SizedImages):
            return self._places.of_size(width, height, f"{self._config.seed} {name}".encode())
        return self._places.prepared(picture(self._config.seed, name, width, height))


def picture(seed: int, name: int, width: int, height: int) -> Any:
    """A PIL image of random colors."""
    from PIL import Image

    colors = stream(seed, IMAGES, name).integers(0, 256, (_GRAIN, _GRAIN, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((width, height), Image.Resampling.NEAREST)


def _bounds(mean: int, spread: float) -> tuple[int, int]:
    return max(1, round(mean * (1 - spread))), max(1, round(mean * (1 + spread)))
