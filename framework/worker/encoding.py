"""What encoders give, in the cache."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch

from ..engine.encoding import EncoderInput, View
from ..engine.step import StepInput
from ..models.decoder import Decoder
from ..models.encoder import Encoder
from ..plan import BoundKernel, LayerKV
from .image_embeddings import ImageEmbeddings
from .request_rows import RequestRows
from .transfer import is_device_loss, to_device

_logger = logging.getLogger(__name__)


class EncoderRunner:
    """Runs an encoder for each request that takes a seat, and has every layer that attends to that write its keys and values.

    groups        KV groups of what layers keep of it
    slot_mapping  the bound op
    """

    def __init__(
        self,
        encoder: Encoder | ImageEmbeddings,
        decoder: Decoder,
        rows: RequestRows,
        caches: Mapping[int, LayerKV],
        groups: list[int],
        slot_mapping: BoundKernel,
    ) -> None:
        self._encoder, self._decoder, self._rows, self._caches = encoder, decoder, rows, caches
        self.groups, self._slot_mapping = groups, slot_mapping

    def apply(self, step: StepInput) -> dict[int, str]:
        """After the rows have taken in the step. Row -> why what its request gave was not encoded."""
        if isinstance(self._encoder, ImageEmbeddings):
            self._encoder.apply(step)
        failed = {}
        for new in step.new:
            if new.encoder_input is not None:
                try:
                    encoded = self._encoder.encode(new.encoder_input)
                except Exception as error:
                    if is_device_loss(error):
                        raise
                    _logger.error("an encoder failed", exc_info=error)
                    failed[step.seats.index(new.seat)] = f"an encoder failed: {type(error).__name__}: {error}"
                    continue
                slots = self._slots(new.seat, new.encoder_input.num_tokens, _places(new.encoder_input))
                self._decoder.store_encoded(encoded, self._caches, slots)
        return failed

    def _slots(self, seat: int, count: int, places: np.ndarray) -> dict[int, torch.Tensor]:
        """count: places in all."""
        device = self._rows.device
        positions = to_device(places, device)
        bounds = torch.tensor([0, len(places)], dtype=torch.int32, device=device)
        length = torch.tensor([count], dtype=torch.int32, device=device)
        width = self._rows.table_width(count)
        tables = to_device(self._rows.tables[self.groups, seat, :width], device)
        return {group: self._slot_mapping(positions, bounds, length, table[None]) for group, table in zip(self.groups, tables)}


def _places(given: EncoderInput) -> np.ndarray:
    """int64 [S]: of each vector that the encoder gives, in the request's part of the cache."""
    if not given.views:
        return np.arange(given.num_tokens)
    before = [View(0, -1, 0), *given.views]  # of one that stands beside it, an image sees the vectors, too
    own = [view.length - last.length * (last.start == view.start) for last, view in zip(before, given.views)]
    ends = [view.start + view.length for view in given.views]
    return np.concatenate([np.arange(end - count, end) for end, count in zip(ends, own)])
