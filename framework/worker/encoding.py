"""What encoders give, in the cache."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..engine.step import StepInput
from ..models.decoder import Decoder
from ..models.encoder import Encoder
from ..plan import BoundKernel, LayerKV
from .request_rows import RequestRows
from .transfer import to_device


class EncoderRunner:
    """Runs an encoder for each request that takes a seat, and has every layer of the decoder write its keys and values of that.

    groups        KV groups of what layers keep of it
    slot_mapping  the bound op
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        rows: RequestRows,
        caches: Mapping[int, LayerKV],
        groups: list[int],
        slot_mapping: BoundKernel,
    ) -> None:
        self._encoder, self._decoder, self._rows, self._caches = encoder, decoder, rows, caches
        self.groups, self._slot_mapping = groups, slot_mapping

    def apply(self, step: StepInput) -> None:
        """After the rows have taken in the step."""
        for new in step.new:
            if new.encoder_input is not None:
                encoded = self._encoder.encode(new.encoder_input)
                self._decoder.store_encoded(encoded, self._caches, self._slots(new.seat, len(encoded)))

    def _slots(self, seat: int, count: int) -> dict[int, torch.Tensor]:
        device = self._rows.device
        positions = torch.arange(count, device=device)
        bounds = torch.tensor([0, count], dtype=torch.int32, device=device)
        length = torch.tensor([count], dtype=torch.int32, device=device)
        width = self._rows.table_width(count)
        tables = to_device(self._rows.tables[self.groups, seat, :width], device)
        return {group: self._slot_mapping(positions, bounds, length, table[None]) for group, table in zip(self.groups, tables)}
