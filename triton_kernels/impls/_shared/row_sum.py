"""A sum whose order is fixed."""

from __future__ import annotations

import torch

_BLOCK = 1024


def row_sum(values: torch.Tensor) -> torch.Tensor:
    """Sums f32 [R, V] over V -> [R], in an order that depends on neither R nor the number of threads.

    On a CPU torch cuts the sum of a single long row among threads, but never the sums of several short ones. On a GPU it cuts
    every sum by the number of rows, so that there halves are added elementwise until one column is left.
    """
    if values.device.type == "cpu":
        blocks = torch.nn.functional.pad(values, (0, -values.shape[1] % _BLOCK)).unflatten(1, (-1, _BLOCK))
        return blocks.sum(-1).sum(-1)
    width = 1 << max(0, values.shape[1] - 1).bit_length()
    values = torch.nn.functional.pad(values, (0, width - values.shape[1]))
    while width > 1:
        width //= 2
        values = values[:, :width] + values[:, width:]
    return values[:, 0]
