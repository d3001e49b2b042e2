"""Images in the prompts of a workload. Everything is a pure function of its arguments."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
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
        _check_sizes(config)
        width, height = (_bounds(side, config.image_spread)[0] for side in (config.image_width, config.image_height))
        asked = f"workload.num_images={config.num_images} of {width} x {height} pixels cannot work"
        try:
            image = found._drawn(0, width, height)
        except ValueError as error:
            raise ValueError(f"{asked} (workload.image_width, image_height): {error}") from error
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
        places = self._places
        taken = {places.token_id, places.placeholder_id}
        other = min({0, 1, 2} - taken)
        text = [other if token in taken else token for token in prompt]
        spots, names = _chosen(self._config, index, first, len(text))
        for spot in reversed(spots):
            text.insert(spot, places.placeholder_id)
        return places.of_tokens(text, [self._image(name) for name in names])

    def _image(self, name: int) -> PreparedImage:
        if self._config.num_distinct_images is None:
            return self._drawn(name, *_size(self._config, name))
        if name not in self._known:
            self._known[name] = self._drawn(name, *_size(self._config, name))
        return self._known[name]

    def _drawn(self, name: int, width: int, height: int) -> PreparedImage:
        if isinstance(self._places, SizedImages):
            return self._places.of_size(width, height, f"{self._config.seed} {name}".encode())
        return self._places.prepared(picture(self._config.seed, name, width, height))


@dataclass(frozen=True)
class SentImage:
    """An image for a server, which prepares it itself. start: the token of the prompt that it stands before; url: its bytes."""

    start: int
    url: str


class SentPictures:
    """The same images at the same places of a workload whose prompts are sent to a server as text."""

    def __init__(self, config: WorkloadConfig) -> None:
        """Raises ValueError for images that no server takes."""
        _check_sizes(config)
        self._config = config

    def of(self, index: int, num_tokens: int, first: int) -> tuple[SentImage, ...]:
        """Of request ``index``, whose prompt has ``num_tokens``; where they stand is as of ``Pictures.put``."""
        return tuple(SentImage(spot, self._url(name)) for spot, name in zip(*_chosen(self._config, index, first, num_tokens)))

    def _url(self, name: int) -> str:
        file = io.BytesIO()
        picture(self._config.seed, name, *_size(self._config, name)).save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _check_sizes(config: WorkloadConfig) -> None:
    """Raises ValueError where an image could be drawn that is refused."""
    widths, heights = (_bounds(side, config.image_spread) for side in (config.image_width, config.image_height))
    try:
        for width in widths:
            for height in heights:
                check_size(width, height)
    except ValueError as error:
        raise ValueError(f"workload.image_width, image_height and image_spread cannot work: {error}") from error


def _chosen(config: WorkloadConfig, index: int, first: int, num_tokens: int) -> tuple[list[int], list[int]]:
    """Of the images of request ``index``: the tokens that they stand before, in order, and their names."""
    rng, first = stream(config.seed, IMAGE_PLACES, index), min(first, num_tokens)
    spots = [(first, int(rng.integers(first, num_tokens + 1)), num_tokens)[rng.integers(3)] for _ in range(config.num_images)]
    names = [index * config.num_images + nth for nth in range(config.num_images)]
    if config.num_distinct_images is not None:
        names = [int(rng.integers(config.num_distinct_images)) for _ in names]
    return sorted(spots), names


def _size(config: WorkloadConfig, name: int) -> tuple[int, int]:
    rng = stream(config.seed, IMAGE_SIZES, name)
    (least_width, most_width), (least_height, most_height) = (
        _bounds(side, config.image_spread) for side in (config.image_width, config.image_height)
    )
    return int(rng.integers(least_width, most_width + 1)), int(rng.integers(least_height, most_height + 1))


def picture(seed: int, name: int, width: int, height: int) -> Any:
    """A PIL image of random colors."""
    from PIL import Image

    colors = stream(seed, IMAGES, name).integers(0, 256, (_GRAIN, _GRAIN, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((width, height), Image.Resampling.NEAREST)


def _bounds(mean: int, spread: float) -> tuple[int, int]:
    return max(1, round(mean * (1 - spread))), max(1, round(mean * (1 + spread)))
