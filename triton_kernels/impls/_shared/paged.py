"""What the torch impls share about a paged cache: its slots as rows of one flat tensor."""

from __future__ import annotations

import torch


def slot_rows(cache: torch.Tensor) -> tuple[torch.Tensor, int]:
    """A view [rows, Hk, D] of a cache [pages, page_size, Hk, D] (of scales: without D), and how many rows lie from one page to the
    next.

    Slot ``offset`` of ``page`` is row ``page * rows_per_page + offset``, also where keys and values of a page lie side by
    side in memory (then rows_per_page is twice the page size and the rows between belong to the other tensor).
    """
    page_stride, slot_stride = cache.stride(0), cache.stride(1)
    if page_stride % slot_stride:
        raise ValueError(f"the strides {cache.stride()} of a paged cache do not place its pages on slot borders")
    rows_per_page = page_stride // slot_stride
    rows = (cache.shape[0] - 1) * rows_per_page + cache.shape[1]
    return cache.as_strided((rows, *cache.shape[2:]), cache.stride()[1:]), rows_per_page
