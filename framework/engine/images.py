"""From images to what a model's image tower takes. Needs Pillow."""

from __future__ import annotations

import base64
import binascii
import functools
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_LONGEST_SIDES = 200
"""Times that one side may be longer than the other: towers bring the shorter one to their size, and the other along."""
_SCHEME = "data:image/"


def image_from_url(url: object) -> Any:
    """A PIL image of a ``data:`` URL; of one that moves, the first picture. Raises ValueError for what is none, and for URLs that
    something would have to be fetched from."""
    if not isinstance(url, str) or not url.startswith(_SCHEME):
        raise ValueError(
            f"an image must be a URL of the form {_SCHEME}png;base64,...; found {str(url)[:60]!r}. Other URLs are not fetched: "
            "a server does not let its clients choose what it asks others for"
        )
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ValueError(f"an image's data URL must be in base64; found {head[:60]!r}")
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"an image's data URL holds no base64: {error}") from None
    Image = _pillow()
    try:
        return Image.open(io.BytesIO(data))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"an image's data URL holds no image that Pillow can open: {str(error)[:200]}") from None


class ImageProcessor:
    """What the library makes of images for the model in ``folder``, whose preprocessor_config.json says how."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def pixels(self, prompt: Mapping[str, Any]) -> np.ndarray:
        """float32 [3, height, width] of ``{"prompt": "", "multi_modal_data": {"image": a PIL image}}``. Raises ValueError for a
        prompt of another form, and for an image that cannot be taken."""
        found = prompt["multi_modal_data"]
        if not isinstance(found, Mapping) or set(found) != {"image"}:
            raise ValueError(f"a prompt's 'multi_modal_data' must be {{'image': a PIL image}}; found {str(found)[:80]}")
        if others := {key: value for key, value in prompt.items() if key != "multi_modal_data" and value != ""}:
            raise ValueError(
                f"a prompt is a text or an image, which are embedded apart: leave out {', '.join(map(str, others))}, or give two"
            )
        return self._prepared(_checked(found["image"]))

    def _prepared(self, image: Any) -> np.ndarray:
        try:
            # Of an image with a side of 1 or 3 the library would take that for its colors.
            found = self._processor(np.asarray(image.convert("RGB")), input_data_format="channels_last", return_tensors="np")
        except Exception as error:  # Pillow reads pixels only now, and its decoders raise anything
            raise ValueError(f"the image cannot be read: {type(error).__name__}: {str(error)[:200]}") from error
        pixels: np.ndarray = found["pixel_values"][0]
        return np.ascontiguousarray(pixels, dtype=np.float32)

    @functools.cached_property
    def _processor(self) -> Any:
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(self._folder, trust_remote_code=False)


def _checked(image: Any) -> Any:
    """The image, before its pixels are read. Raises ValueError."""
    Image = _pillow()
    if not isinstance(image, Image.Image):
        raise ValueError(f"an image must be a PIL image; found {type(image).__name__}")
    width, height = image.size
    most = Image.MAX_IMAGE_PIXELS
    if not width or not height or (most is not None and width * height > most):
        raise ValueError(f"an image of {width} x {height} cannot work: it must have from 1 to {most} pixels")
    if max(width, height) > _LONGEST_SIDES * min(width, height):
        raise ValueError(
            f"an image of {width} x {height} cannot work: one side may be {_LONGEST_SIDES} times as long as the other at most"
        )
    return image


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("images need Pillow, which is not installed: pip install 'kernelswap[images]'") from None
    return Image
