"""Cases of ``slot_mapping``: ragged requests, requests without a token, padding, tables inside wider ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ..op import Case
from . import BENCH, SMALL, TILED


def _make(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    queries: Sequence[int],
    contexts: Sequence[int],
    page_size: int = 16,
    unowned: int = 0,
    wider: int = 0,
) -> dict[str, Any]:
    """queries, contexts: new tokens and length of each request. unowned: tokens past the last request's. wider: columns of the
    table that is passed a slice of."""
    del dtype  # integers only
    width = max([1, *(-(-length // page_size) for length in contexts)])
    pages = torch.randperm(len(queries) * (width + wider), generator=generator, dtype=torch.int32) + 1
    positions = [torch.arange(count) + max(length - count, 0) for count, length in zip(queries, contexts, strict=True)]
    return {
        "positions": torch.cat([*positions, torch.zeros(unowned, dtype=torch.int64)]).to(device),
        "cu_q": torch.tensor([0, *queries]).cumsum(0).int().to(device),
        "seq_lens": torch.tensor(contexts, dtype=torch.int32, device=device),
        "block_table": pages.view(len(queries), width + wider).to(device)[:, :width],
        "page_size": page_size,
    }


def _case(name: str, tags: frozenset[str], queries: Sequence[int], contexts: Sequence[int], **more: Any) -> Case:
    make = partial(_make, queries=queries, contexts=contexts, **more)
    return Case(name, make, tags, {}, tuple(queries), tuple(contexts))


CASES = (
    _case("one_row", SMALL, (1,), (38,)),
    _case("tiled", TILED, (1, 1, 3, 0, 21, 1, 40), (17, 33, 3, 5, 50, 16, 41), wider=5),
    _case("padding", SMALL, (1, 1, 1, 1, 1), (7, 19, 1, 0, 0), page_size=4, wider=3),
    _case("unowned", SMALL, (2, 0, 3), (9, 4, 3), page_size=7, unowned=6),
    _case("page_of_one", SMALL, (5, 2), (11, 2), page_size=1),
    _case("no_request", SMALL, (), (), unowned=3),
    _case("empty", SMALL, (0, 0), (3, 0)),
    _case("decode_256", BENCH, (1,) * 256, (2048,) * 256),
    _case("mixed_2048", BENCH, (*(1,) * 64, 1000, 984), (*(4096,) * 64, 1000, 8192)),
)
