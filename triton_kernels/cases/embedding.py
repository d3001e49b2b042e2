"""Cases of ``embedding``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..op import Case
from . import BENCH, SMALL, TILED, randn


def _make(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    vocab_size: int,
    hidden_size: int,
    vocab_start: int = 0,
    id_dtype: torch.dtype = torch.int64,
    panels: bool = False,
) -> dict[str, Any]:
    low, high = (0, vocab_size) if vocab_start == 0 else (0, vocab_start + 2 * vocab_size)
    ids = torch.randint(low, high, (tokens,), generator=generator).to(id_dtype).to(device)
    weight = randn(generator, dtype, device, vocab_size, hidden_size)
    if panels:  # of 4 rows, in which two columns stand together
        weight = weight.view(-1, 4, hidden_size // 2, 2).transpose(1, 2).contiguous().transpose(1, 2)
    return {"token_ids": ids, "weight": weight, "vocab_start": vocab_start}


def _case(name: str, tags: frozenset[str], tokens: int, vocab_size: int, hidden_size: int, **more: Any) -> Case:
    make = partial(_make, tokens=tokens, vocab_size=vocab_size, hidden_size=hidden_size, **more)
    return Case(name, make, tags, {"hidden_size": hidden_size}, (tokens,))


CASES = (
    _case("one_row", SMALL, 1, 64, 32),
    _case("tiled", TILED, 99, 131, 203),
    _case("int32_ids", SMALL, 7, 50, 40, id_dtype=torch.int32),
    _case("shard", SMALL, 41, 30, 37, vocab_start=60),
    _case("empty", SMALL, 0, 16, 8),
    _case("panels", SMALL, 9, 36, 10, panels=True),
    _case("shard_in_panels", SMALL, 41, 32, 38, vocab_start=60, panels=True),
    _case("llama-8b", BENCH, 2048, 128256, 4096),
)
