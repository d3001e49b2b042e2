"""Where images stand among the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..engine.encoding import ImageViews
from .items import ImageItem

BREAK: Final = "\ufdd0"
"""Stands in a placeholder that a user spelled, so that it is none; a noncharacter, which no text has."""


@dataclass(frozen=True)
class PreparedImage:
    """text: what takes the place of the image in a prompt; token_ids: the same; the others as in ImageItem."""

    text: str
    token_ids: list[int]
    count: int
    key: bytes
    inputs: dict[str, np.ndarray]
    grid: tuple[int, int] | None


class ImagePlaces:
    """Of a model of type ``model_type``.

    token_id        of the placeholders that embeddings replace
    placeholder_id  of the token that stands for an image in a prompt
    placeholder     the text that does
    is_spelled      that is no token, but text, also in messages, which chat templates take as they are
    chat_template   the processor's own; None: it has none
    is_single       a prompt has one image at most
    whole           as ``Vision`` has it
    views           of a model whose layers attend to images; None: their embeddings take the place of tokens
    most            images in a prompt; None: no limit
    """

    token_id: int
    placeholder_id: int
    placeholder: str
    token_name: str
    is_spelled = False

    def __init__(self, model_type: str, is_single: bool, whole: bool, views: ImageViews | None, most: int | None) -> None:
        self.whole, self.views, self._model_type, self._is_single, self._most = whole, views, model_type, is_single, most

    def prepared(self, image: Any) -> PreparedImage:
        """Of each image alone: several may be padded to the size of the largest. Raises ValueError for one that cannot work."""
        raise NotImplementedError

    def of_text(
        self, text: str, images: Sequence[Any], encode: Callable[[str], list[int]]
    ) -> tuple[list[int], tuple[ImageItem, ...]]:
        """Token ids of a text, with as many placeholders for each image as it has embeddings. Raises ValueError."""
        raise NotImplementedError

    def as_text(self, text: str) -> str:
        """A user's text, in which a placeholder that is spelled stands for no image."""
        raise NotImplementedError

    def nth_placeholder(self, nth: int) -> str:
        """That of the image number ``nth``, from 1 on."""
        return self.placeholder

    @property
    def chat_template(self) -> str | None:
        """See above."""
        return None

    def of_tokens(self, token_ids: list[int], images: Sequence[Any]) -> tuple[list[int], tuple[ImageItem, ...]]:
        """Token ids with as many placeholders for each image as it has embeddings, of those with one placeholder for each; images
        may be prepared already. Raises ValueError."""
        self._check_placeholders(token_ids.count(self.placeholder_id), images)
        prepared = [image if isinstance(image, PreparedImage) else self.prepared(image) for image in images]
        waiting, ids = iter(prepared), list[int]()
        for token in token_ids:
            ids += next(waiting).token_ids if token == self.placeholder_id else (token,)
        return ids, self._placed(ids, prepared)

    def check_count(self, count: int, what: str) -> None:
        """Raises ValueError for more images than a prompt may have. what: has so many."""
        if self._is_single and count > 1:
            raise ValueError(f"{what} {count} images, but models of type {self._model_type!r} read one: leave out the others")
        if self._most is not None and count > self._most:
            raise ValueError(
                f"{what} {count} images, but this engine takes {self._most} of one prompt: give fewer, or raise "
                "limit_mm_per_prompt (model.limit_mm_per_prompt.image)"
            )

    def _check_placeholders(self, count: int, images: Sequence[Any]) -> None:
        if count != len(images):
            raise ValueError(
                f"the prompt has {count} times {self.placeholder!r}, the placeholder of an image, and multi_modal_data has "
                f"{len(images)} images: give one for each"
            )
        self.check_count(count, "the prompt has")

    def _placed(self, ids: list[int], prepared: Sequence[PreparedImage]) -> tuple[ImageItem, ...]:
        places = np.flatnonzero(np.array(ids) == self.token_id)
        if len(places) != (wanted := sum(found.count for found in prepared)):
            raise ValueError(
                f"the prompt has {len(places)} placeholders of embeddings, and its images have {wanted}: leave "
                f"{self.token_name!r} out of it"
            )
        items, first = [], 0
        for found in prepared:
            items.append(ImageItem(int(places[first]), found.count, found.key, found.inputs, found.grid))
            first += found.count
        return tuple(items)
