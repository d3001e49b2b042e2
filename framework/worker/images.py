"""Images on the device: what was encoded, and where it stands among the tokens of running requests."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..engine.step import StepInput
from ..models.batch import ExpertTokens, ImageTokens
from ..multimodal.items import ImageItem, overlaps, rotary_positions
from .image_embeddings import ImageEmbeddings
from .step_rows import StepRows
from .transfer import all_to_device, to_device

if TYPE_CHECKING:
    from ..models.vision import Vision

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Seat:
    """A request with images. positions: int64 [3, prompt] where they are not places; None: they are. delta: what those of later
    tokens are more than their place."""

    images: tuple[ImageItem, ...]
    positions: np.ndarray | None
    delta: int


class Images:
    """The images of the requests that hold a seat, whose embeddings take the place of tokens.

    whole          tokens of an image see each other
    max_model_len  rows of the tables of angles for single ones
    deltas         int64 [seats + 1]: of each request; None: places are positions
    """

    def __init__(
        self, embeddings: ImageEmbeddings, num_seats: int, max_model_len: int, device: torch.device, vision: Vision
    ) -> None:
        self.whole, self._has_experts = vision.whole, vision.experts
        self._embeddings, self._max_model_len, self._device = embeddings, max_model_len, device
        self._seats: dict[int, _Seat] = {}
        self._found: tuple[StepRows, list[tuple[int, ImageItem, int, int]]] | None = None
        self.deltas = np.zeros(num_seats + 1, dtype=np.int64) if vision.has_positions else None

    def apply(self, step: StepInput) -> None:
        """Takes in the deltas of a step: what is forgotten, what is encoded, new requests."""
        self._embeddings.apply(step)
        for seat in step.released:
            self._leave(seat)
        for new in step.new:
            self._leave(new.seat)
            if new.images:
                positions, delta = None, 0
                if self.deltas is not None:
                    positions, delta = rotary_positions(new.num_prompt_tokens, new.images)
                    self.deltas[new.seat] = delta
                self._seats[new.seat] = _Seat(new.images, positions, delta)

    def failures(self, rows: StepRows) -> dict[int, str]:
        """Rows of a step that compute tokens of images without embeddings, and why."""
        found = {}
        for row, image, *_ in self._overlaps(rows):
            if (error := self._embeddings.error(image)) is not None:
                _logger.error("an image was not encoded", exc_info=error)
                found[row] = f"an image was not encoded: {type(error).__name__}: {error}"
        return found

    def are_in(self, rows: StepRows) -> bool:
        """Whether a step computes tokens of images."""
        return bool(self._overlaps(rows))

    def tokens(self, rows: StepRows) -> ImageTokens | None:
        """Those of a step that are placeholders, but for those of its ``failures``; None: there are none."""
        tokens, parts, lasts = [], [], []
        for row, image, start, end in self._encoded(rows):
            place = int(rows.bounds[row] - rows.first[row])
            tokens.append(np.arange(place + start, place + end))
            parts.append(self._embeddings[image][start - image.start : end - image.start])
            lasts += [place + end - 1] if end == image.end else []
        if not parts:
            return None
        of_images = np.concatenate(tokens)
        found = ImageTokens(to_device(of_images, self._device), torch.cat(parts))
        if self._has_experts and len(seen := np.setdiff1d(of_images, lasts)):
            others = np.setdiff1d(np.arange(rows.bounds[-1]), seen)
            found.experts = ExpertTokens(*all_to_device((seen, others), self._device))
        return found

    def spans(self, rows: StepRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """int64 of each image of which a step has ``tokens``: its row, how many tokens, and the place behind them."""
        row, count, end = zip(*((row, end - start, end) for row, _, start, end in self._encoded(rows)))
        return np.array(row), np.array(count), np.array(end)

    def positions(self, rows: StepRows, places: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """places: int64 [T], of a step's tokens in their sequences -> by which row of the tables of angles each rotates [T], and
        the three positions of those that have a row of their own [3, M]. None: places are positions."""
        if self.deltas is None or not any(seat in self._seats for seat in rows.seats.tolist()):
            return None
        found, mixed, count = places.copy(), [], 0
        for row, seat in enumerate(rows.seats.tolist()):
            if (own := self._seats.get(seat)) is None or own.positions is None:
                continue
            first, end, begin = int(rows.first[row]), int(rows.lengths[row]), int(rows.bounds[row])
            found[begin : begin + end - first] += own.delta
            three = own.positions[:, first:end]
            known = found[begin : begin + three.shape[1]]
            known[:] = three[0]
            apart = np.flatnonzero((three != three[0]).any(axis=0))
            known[apart] = self._max_model_len + count + np.arange(len(apart))
            mixed.append(three[:, apart])
            count += len(apart)
        return found, np.concatenate(mixed, axis=1)

    def _encoded(self, rows: StepRows) -> list[tuple[int, ImageItem, int, int]]:
        """The same as ``_overlaps``, of images that have embeddings."""
        return [found for found in self._overlaps(rows) if self._embeddings.error(found[1]) is None]

    def _overlaps(self, rows: StepRows) -> list[tuple[int, ImageItem, int, int]]:
        """As ``multimodal.items.overlaps`` has them: found once for a step, which asks several times."""
        if self._found is None or self._found[0] is not rows:
            first = rows.first.tolist()
            seats = zip((self._seats.get(seat) for seat in rows.seats.tolist()), first)
            images = [own.images if own is not None and begin < own.images[-1].end else () for own, begin in seats]
            self._found = rows, overlaps(images, first, rows.lengths.tolist()) if any(images) else []
        return self._found[1]

    def _leave(self, seat: int) -> None:
        self._seats.pop(seat, None)
        if self.deltas is not None:
            self.deltas[seat] = 0
