"""An image of a prompt, as the engine carries it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class ImageItem:
    """An image among the tokens of a prompt.

    start   its first placeholder
    count   placeholders, one after the other: as many as it has embeddings
    key     16 bytes, a hash of ``inputs``: of its pixels and of how they were prepared
    inputs  what the library's ``get_image_features`` takes of it, by name
    grid    (rows, columns) of its embeddings, where positions are three (Qwen2-VL); None: they are not
    """

    start: int
    count: int
    key: bytes
    inputs: Mapping[str, np.ndarray]
    grid: tuple[int, int] | None = None

    @property
    def end(self) -> int:
        """The token after its last placeholder."""
        return self.start + self.count


def overlaps(
    images: Sequence[Sequence[ImageItem]], first: Sequence[int], ends: Sequence[int]
) -> list[tuple[int, ImageItem, int, int]]:
    """(row, image, start, end): the tokens of an image, by their place in the sequence, that a step computes. images: of each row,
    which computes the tokens from ``first`` to ``ends``."""
    spans = (
        (row, image, max(image.start, begin), min(image.end, until))
        for row, (own, begin, until) in enumerate(zip(images, first, ends))
        for image in own
    )
    return [(row, image, start, end) for row, image, start, end in spans if start < end]


def rotary_positions(num_tokens: int, images: tuple[ImageItem, ...]) -> tuple[np.ndarray, int]:
    """int64 [3, num_tokens]: time, row and column of each token of a prompt, by which Qwen2-VL rotates (arXiv 2409.12191); and how
    much more than its place those of a later token are. Text counts on in all three; an image stands at one time, and the text
    after it goes on behind the longer of its sides. An image without a grid has three places, the same in all three: of its first
    token, of its last, and one of all between them (CogVLM, arXiv 2311.03079)."""
    positions = np.empty((3, num_tokens), dtype=np.int64)
    token = position = 0
    for image in images:
        text = image.start - token
        positions[:, token : image.start] = np.arange(position, position + text)
        position += text
        if image.grid is None:
            positions[:, image.start : image.end] = position + 1
            positions[:, image.start] -= 1
            positions[:, image.end - 1] += 1
            position += 3
        else:
            rows, columns = np.divmod(np.arange(image.count), image.grid[1])
            positions[:, image.start : image.end] = position + np.stack([np.zeros_like(rows), rows, columns])
            position += max(image.grid)
        token = image.end
    positions[:, token:] = np.arange(position, position + num_tokens - token)
    return positions, position - token
