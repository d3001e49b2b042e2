"""Attention within chunks of the positions, by kernels that know none: each chunk that a request's queries reach is a row."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ...plan import AttentionMeta


def in_chunks(meta: AttentionMeta, chunk: int, page_size: int) -> AttentionMeta:
    """The same queries where one at position p sees only keys from p // chunk * chunk on. chunk: a multiple of page_size.

    A request becomes as many rows as the longest has chunks at most; those it does not need have no queries. Lengths stay on the
    device.
    """
    if meta.max_seq_len <= chunk:
        return meta
    device, pages = meta.seq_lens.device, chunk // page_size
    counts = meta.cu_q.diff()[:, None]
    first = (meta.seq_lens[:, None] - counts).clamp_min(0)  # of the queries; padding has length 0
    numbers = first // chunk + torch.arange((meta.max_q + chunk - 2) // chunk + 1, dtype=torch.int32, device=device)
    begins = numbers * chunk
    starts = meta.cu_q[:-1, None] + torch.minimum((begins - first).clamp_min(0), counts)
    lengths = (meta.seq_lens[:, None] - begins).clamp(0, chunk)
    columns = (numbers * pages)[..., None] + torch.arange(pages, device=device)
    within = columns.clamp_max(meta.block_table.shape[1] - 1).flatten(1)
    return replace(
        meta,
        cu_q=torch.cat((starts.flatten(), meta.cu_q[-1:])),
        seq_lens=lengths.flatten(),
        block_table=meta.block_table.gather(1, within).view(-1, pages),
        max_q=min(meta.max_q, chunk),
        max_seq_len=chunk,
    )
