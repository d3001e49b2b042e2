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

MOST_TIMES_LONGER = 200
"""Times that one side may be longer than the other: towers bring the shorter one to their size, and the other along."""
_SCHEME = "data:image/"
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Of data URLs. Others that Pillow knows are rare, and one of them (EPS) is a program that it would have Ghostscript run."""


def image_from_url(url: object, still: bool = False) -> Any:
    """A PIL image of a ``data:`` URL, upright, as its EXIF data say (so the library's ``load_image``); of one that moves, the first
    picture, unless it is to be ``still``. Raises ValueError for what is none, and for URLs that something would have to be fetched
    from."""
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
        opened = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Exception as error:  # Pillow's readers raise anything
        said = f"{str(error)[:200]} (formats: {', '.join(_FORMATS)})"
        raise ValueError(f"an image's data URL holds no image that Pillow can open: {said}") from None
    from PIL import ImageOps

    checked = checked_image(opened, still)
    try:
        return ImageOps.exif_transpose(checked)
    except Exception as error:  # likewise
        raise unreadable(error) from error


class ImageProcessor:
    """What the library makes of images for the model in ``folder``, whose preprocessor_config.json says how. size: pixels of each
    side that the model takes."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self._shape = folder, (3, size, size)

    def pixels(self, prompt: Mapping[str, Any]) -> np.ndarray:
        """float32 [3, size, size] of ``{"prompt": "", "multi_modal_data": {"image": a PIL image}}``. Raises ValueError for a prompt
        of another form, and for an image that cannot be taken."""
        found = prompt["multi_modal_data"]
        if not isinstance(found, Mapping) or set(found) != {"image"}:
            raise ValueError(f"a prompt's 'multi_modal_data' must be {{'image': a PIL image}}; found {str(found)[:80]}")
        if others := [key for key, value in prompt.items() if key != "multi_modal_data" and not (key == "prompt" and value == "")]:
            raise ValueError(
                f"a prompt is a text or an image, which are embedded apart: leave out {', '.join(map(str, others))}, or give two"
            )
        return self._prepared(checked_image(found["image"]))

    def _prepared(self, image: Any) -> np.ndarray:
        processor = self._processor
        try:
            # Of an image with a side of 1 or 3 the library would take that for its colors.
            found = processor(as_rgb(image), input_data_format="channels_last", return_tensors="np")
        except Exception as error:  # Pillow reads pixels only now, and its decoders raise anything
            raise unreadable(error) from error
        pixels: np.ndarray = np.ascontiguousarray(found["pixel_values"][0], dtype=np.float32)
        if pixels.shape != self._shape or not np.isfinite(pixels).all():
            raise ValueError(
                f"the model cannot take images: it wants {self._shape} finite numbers of each, and the preprocessor_config.json in "
                f"{self._folder} makes {pixels.shape}, from {pixels.min()} to {pixels.max()}"
            )
        return pixels

    @functools.cached_property
    def _processor(self) -> Any:
        from transformers import AutoImageProcessor

        try:
            return AutoImageProcessor.from_pretrained(self._folder, trust_remote_code=False)
        except Exception as error:  # it is missing, no JSON, of another model, ...
            raise ValueError(
                f"the model cannot take images: of the preprocessor_config.json in {self._folder} transformers says "
                f"{type(error).__name__}: {str(error)[:200]}"
            ) from error


def check_reads_images(what: str, image_prompts: object | None, no_images: str) -> None:
    """Raises ValueError where images cannot be taken, as there are no ``image_prompts``. what: has one; no_images: why not."""
    if image_prompts is None:
        raise ValueError(f"{what} holds an image, and this engine takes none: {no_images}")


def checked_image(image: Any, still: bool = False) -> Any:
    """The image, before its pixels are read. still: one that moves is refused. Raises ValueError."""
    Image = _pillow()
    if not isinstance(image, Image.Image):
        raise ValueError(f"an image must be a PIL image; found {type(image).__name__}")
    check_size(*image.size)
    if still and getattr(image, "is_animated", False):
        raise ValueError(f"an image with {image.n_frames} pictures cannot work: this model reads one; give it alone")
    if image.mode in ("I", "F"):
        raise ValueError(
            f"an image of mode {image.mode!r} cannot work: nothing says which of its numbers are black and white; convert it to RGB"
        )
    return image


def check_size(width: int, height: int) -> None:
    """Raises ValueError for pixels that are too many, or too far from a square. Needs Pillow, which says what is too many."""
    most = _pillow().MAX_IMAGE_PIXELS
    if not width or not height or (most is not None and width * height > most):
        raise ValueError(f"an image of {width} x {height} cannot work: it must have from 1 to {most} pixels")
    if max(width, height) > MOST_TIMES_LONGER * min(width, height):
        raise ValueError(
            f"an image of {width} x {height} cannot work: one side may be {MOST_TIMES_LONGER} times as long as the other at most"
        )


def as_rgb(image: Any) -> np.ndarray:
    """uint8 [height, width, 3] of a checked image. Of 16 bits a channel the upper 8 are kept, where Pillow would take all above 255
    for white. Raises whatever Pillow's decoders do, which read pixels only now."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def unreadable(error: Exception) -> ValueError:
    return ValueError(f"the image cannot be read: {type(error).__name__}: {str(error)[:200]}")


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("images need Pillow, which is not installed: pip install 'kernelswap[images]'") from None
    return Image
