"""Images of which only the size counts, for a model that is described by its shape: as the library's processors would lay them
out, by closed forms. What a checkpoint says of its processor alone is here as the published ones have it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, Protocol

import numpy as np

from ..config import EngineConfig, ModelConfig
from ..engine.encoding import ImageViews
from ..engine.images import MOST_TIMES_LONGER, as_rgb, check_size, checked_image, unreadable
from ..models import cogvlm, internvl_chat, phi3_v
from ..models.read import ModelInfo
from ..models.vision import tile_grids
from .crops import crop_grid
from .items import ImageItem
from .places import ImagePlaces, PreparedImage

QWEN_PIXELS: Final = (56 * 56, 12_845_056)
"""Fewest and most of an image: min_pixels and max_pixels of the preprocessor_config.json of Qwen2-VL and Qwen2.5-VL (that of
Qwen/Qwen2-VL-2B, and copies of those of larger ones; the library's own default of the most is a twelfth of it)."""
INTERNVL_TILES: Final = (1, 12)
"""Fewest and most of an image: min_patches and max_patches of the library's GotOcr2ImageProcessor, which prepares images for
InternVL; the files of its checkpoints could not be read."""
PHI3_CROPS: Final = 16
"""num_crops in the preprocessor_config.json of microsoft/Phi-3-vision-128k-instruct; that of Phi-3.5-vision, of which no shape is
here, has 4."""


@dataclass(frozen=True)
class Sized:
    """What comes of an image. count, inputs, grid: as in ImageItem, with pixels that take no memory; before, after: tokens around
    its placeholders that the processor adds."""

    count: int
    inputs: dict[str, np.ndarray]
    before: int = 0
    after: int = 0
    grid: tuple[int, int] | None = None


class Sizing(Protocol):
    """Width and height of an image, in pixels -> what comes of it."""

    def __call__(self, width: int, height: int) -> Sized: ...

    def sizes(self, most: int) -> Iterable[tuple[int, int]]:
        """Of images among which is one of those that a tower computes most for, of at most ``most`` embeddings."""


class SizedImages(ImagePlaces):
    """In prompts of token ids. Prompts of text hold none: what would stand for one is the tokenizer's business."""

    def __init__(self, config: ModelConfig, model: ModelInfo, views: ImageViews | None, most: int | None) -> None:
        """Raises ValueError for a tower whose images no closed form is known of."""
        vision = model.vision
        assert vision is not None and model.architecture is not None
        super().__init__(vision.model_type, vision.experts, vision.whole, views, most)
        # A token that only a tokenizer could number: one that models seldom use.
        rare, tokens = model.architecture.vocab_size - 1, (vision.token_id, vision.placeholder_id)
        self.token_id, self.placeholder_id = (token if isinstance(token, int) else rare for token in tokens)
        self.placeholder, self.token_name = f"token {self.placeholder_id}", f"token {self.token_id}"
        if (strategy := model.config.get("vision_feature_select_strategy", "default")) != "default":
            raise ValueError(
                f"the model's config.json (or model.architecture) has vision_feature_select_strategy={strategy!r}: of such a model "
                "images work where it has a folder with a processor (model.name)"
            )
        self.sizing = read_sizing(config, model)

    def prepared(self, image: Any) -> PreparedImage:
        """Of a PIL image."""
        image = checked_image(image, still=True)
        try:
            pixels = as_rgb(image)
        except Exception as error:  # Pillow reads pixels only now, and its decoders raise anything
            raise unreadable(error) from error
        width, height = image.size
        return self.of_size(width, height, pixels.tobytes())

    def of_size(self, width: int, height: int, name: bytes) -> PreparedImage:
        """Of an image that nobody drew: those of a size and a name are the same. Raises ValueError."""
        check_size(width, height)
        found = self.sizing(width, height)
        if found.count < 1:
            raise ValueError(
                "an image would have no embeddings: change vision_config.image_size or patch_size of the model's config.json (or "
                "model.architecture)"
            )
        around = 1 if self.token_id == 0 else 0
        ids = [around] * found.before + [self.token_id] * found.count + [around] * found.after
        key = blake2b(f"{width} {height} ".encode() + name, digest_size=16).digest()
        return PreparedImage("", ids, found.count, key, found.inputs, found.grid)

    def of_text(
        self, text: str, images: Sequence[Any], encode: Callable[[str], list[int]]
    ) -> tuple[list[int], tuple[ImageItem, ...]]:
        if images:
            raise ValueError(
                f"a text cannot hold images here: the model is described by its shape, without a tokenizer of its own; pass "
                f"prompt_token_ids, with {self.placeholder_id} in the place of each image"
            )
        return encode(text), ()

    def as_text(self, text: str) -> str:
        return text


def read_sizing(config: ModelConfig, model: ModelInfo) -> Sizing:
    """Of a model that reads images. Raises ValueError for a tower whose images no closed form is known of."""
    assert model.vision is not None
    name, found = model.vision.model_type, model.config
    if name == internvl_chat.TYPE:
        fields = internvl_chat.tile_fields(found)
        return Tiles(fields["size"], fields["tokens"], fields["min_patches"], fields["max_patches"])
    if name == phi3_v.TYPE:
        return Crops(PHI3_CROPS)
    if name == cogvlm.TYPE:
        sizes = cogvlm.tower_sizes(found)
        return Squares(sizes.image_size, sizes.num_embeddings)
    from ..models.library import library_config  # slow to import, and needed for few models

    theirs = library_config(config, model.folder, name)
    return _SIZINGS[name](theirs, theirs.vision_config)


def largest_image(config: EngineConfig, model: ModelInfo) -> Mapping[str, np.ndarray] | None:
    """Inputs of one that the tower computes most for, of no meaning, with pixels that take no memory; None where there is no image
    whose embeddings are kept, and fit into a prompt."""
    most, sizing = min(config.scheduler.encoder_cache, model.max_model_len), read_sizing(config.model, model)
    found = (sizing(*size) for size in sizing.sizes(most))
    fitting = (sized.inputs for sized in found if sized.count <= most)
    return max(fitting, key=lambda inputs: inputs["pixel_values"].size, default=None)


@dataclass(frozen=True)
class Squares:
    """Each becomes a square of ``side`` pixels with ``count`` embeddings, whatever its shape."""

    side: int
    count: int
    around: int = 0

    def __call__(self, width: int, height: int) -> Sized:
        return Sized(self.count, {"pixel_values": _zeros(1, 3, self.side, self.side)}, self.around, self.around)

    def sizes(self, most: int) -> Iterable[tuple[int, int]]:
        return ((self.side, self.side),)


@dataclass(frozen=True)
class Merged:
    """Qwen2-VL: patches of ``patch`` pixels, ``merge`` x ``merge`` of which make an embedding, as many as its size asks for, from
    ``least`` to ``most`` pixels (``smart_resize`` of the library)."""

    patch: int
    merge: int
    patch_inputs: int
    least: int
    most: int

    def __call__(self, width: int, height: int) -> Sized:
        factor = self.patch * self.merge
        rows, columns = (round(side / factor) for side in (height, width))
        if rows * columns * factor**2 > self.most:
            scale = math.sqrt(height * width / self.most)
            rows, columns = (max(1, math.floor(side / scale / factor)) for side in (height, width))
        elif rows * columns * factor**2 < self.least:
            scale = math.sqrt(self.least / (height * width))
            rows, columns = (math.ceil(side * scale / factor) for side in (height, width))
        grid = np.array([[1, rows * self.merge, columns * self.merge]])
        inputs = {"pixel_values": _zeros(rows * columns * self.merge**2, self.patch_inputs), "image_grid_thw": grid}
        return Sized(rows * columns, inputs, grid=(rows, columns))

    def sizes(self, most: int) -> Iterable[tuple[int, int]]:
        factor = self.patch * self.merge
        count = max(min(most, self.most // factor**2), 1)
        yield from ((count // rows * factor, rows * factor) for rows in range(1, math.isqrt(count) + 1))
        yield from ((columns * factor, factor) for columns in range(1, MOST_TIMES_LONGER + 1))  # which ``most`` does not bound


@dataclass(frozen=True)
class Tiles:
    """InternVL: the grid of from ``least`` to ``most`` tiles whose shape is nearest to the image's, each of ``side`` pixels and
    ``tokens`` embeddings; where they are several, the whole image is one more (arXiv 2404.16821)."""

    side: int
    tokens: int
    least: int
    most: int
    table: list[tuple[int, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pairs = ((columns, rows) for columns, rows in tile_grids(self.most) if columns * rows >= self.least)
        object.__setattr__(self, "table", sorted(pairs, key=lambda pair: pair[0] * pair[1]))

    def __call__(self, width: int, height: int) -> Sized:
        best, least = (1, 1), math.inf
        for columns, rows in self.table:
            apart = abs(width / height - columns / rows)
            # Of those as near, a larger one, if the image fills half of it.
            if apart < least or (apart == least and width * height > 0.5 * self.side**2 * columns * rows):
                best, least = (columns, rows), apart
        count = best[0] * best[1]
        count += count > 1
        return Sized(count * self.tokens, {"pixel_values": _zeros(count, 3, self.side, self.side)}, 1, 1)

    def sizes(self, most: int) -> Iterable[tuple[int, int]]:
        return ((columns * self.side, rows * self.side) for columns, rows in self.table)


@dataclass(frozen=True)
class Pinpoints:
    """LLaVA-NeXT: the image as a whole, and tiles of ``side`` pixels, of ``patches`` x ``patches`` embeddings each, as the one of
    ``pinpoints`` (height, width) has that fits it best; what pads them is left out, and each line ends with an embedding more."""

    side: int
    patches: int
    pinpoints: tuple[tuple[int, int], ...]

    def __call__(self, width: int, height: int) -> Sized:
        best = max(self.pinpoints, key=lambda size: self._fit(width, height, *size))
        tiles = best[0] // self.side * (best[1] // self.side)
        rows, columns = (self.patches * (side // self.side) for side in best)
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        pixels = _zeros(1, 1 + tiles, 3, self.side, self.side)
        inputs = {"pixel_values": pixels, "image_sizes": np.array([[height, width]])}
        return Sized(self.patches**2 + rows * columns + rows, inputs)

    def sizes(self, most: int) -> Iterable[tuple[int, int]]:
        for height, width in self.pinpoints:  # and of as many tiles with the most padding, which has no embeddings
            yield from ((width, height), (width - self.side + 1, height), (width, height - self.side + 1))

    def _fit(self, width: int, height: int, rows: int, columns: int) -> tuple[int, int]:
        """The more pixels of the image are kept, and then the fewer are padding, the better."""
        scale = min(columns / width, rows / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - rows * columns


@dataclass(frozen=True)
class Canvases:
    """Llama 3.2: the grid of at most ``most`` tiles of ``side`` pixels that enlarges an image least, or else makes it least small;
    the tower takes ``most`` of them, with padding."""

    side: int
    most: int

    def __call__(self, width: int, height: int) -> Sized:
        grids = list(tile_grids(self.most))
        scales = [min(rows * self.side / height, columns * self.side / width) for rows, columns in grids]
        larger = [scale for scale in scales if scale >= 1]
        wanted = min(larger) if larger else max(scales)
        best = min((rows * columns, nth) for nth, (rows, columns) in enumerate(grids) if scales[nth] == wanted)
        pixels = _zeros(1, 1, self.most, 3, self.side, self.side)
        mask = (np.arange(self.most) < best[0]).astype(np.int64)[None, None]
        return Sized(1, {"pixel_values": pixels, "aspect_ratio_ids": np.array([[best[1] + 1]]), "aspect_ratio_mask": mask})

    def sizes(self, most: int) -> Iterable[tuple[int, int]]:
        return ((self.side, self.most * self.side),)


@dataclass(frozen=True)
class Crops:
    """Phi-3-Vision: see ``CroppedImages``."""

    most: int

    def __call__(self, width: int, height: int) -> Sized:
        rows, columns = crop_grid(width, height, self.most)
        pixels = _zeros(1 + rows * columns, 3, phi3_v.SIDE, phi3_v.SIDE)
        return Sized(phi3_v.num_embeddings(rows, columns), {"pixel_values": pixels, "grid": np.array([rows, columns])})

    def sizes(self, most: int) -> Iterable[tuple[int, int]]:
        return ((columns * phi3_v.SIDE, rows * phi3_v.SIDE) for rows, columns in tile_grids(self.most))


def _zeros(*shape: int) -> np.ndarray:
    """float32, all in one place."""
    return np.broadcast_to(np.float32(0), shape)


def _llava(theirs: Any, vision: Any) -> Sizing:
    return Squares(vision.image_size, _patches(vision) ** 2)


def _llava_next(theirs: Any, vision: Any) -> Sizing:
    sizes = tuple((height, width) for height, width in theirs.image_grid_pinpoints)
    return Pinpoints(vision.image_size, _patches(vision), sizes)


def _patches(vision: Any) -> int:
    return int(vision.image_size // vision.patch_size)


def _qwen(theirs: Any, vision: Any) -> Sizing:
    inputs = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return Merged(vision.patch_size, vision.spatial_merge_size, inputs, *QWEN_PIXELS)


def _internvl(theirs: Any, vision: Any) -> Sizing:
    side, patch = (size[0] if isinstance(size, list | tuple) else size for size in (vision.image_size, vision.patch_size))
    return Tiles(side, int((side // patch) ** 2 * theirs.downsample_ratio**2), *INTERNVL_TILES)


_SIZINGS: Final[Mapping[str, Callable[[Any, Any], Sizing]]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "gemma3": lambda theirs, vision: Squares(vision.image_size, theirs.mm_tokens_per_image, around=2),
    "internvl": _internvl,
    "mllama": lambda theirs, vision: Canvases(vision.image_size, vision.max_num_tiles),
}
