"""Cases of ``apply_penalties``, ``sample``, ``filter_logits`` and ``gather_logprobs``: filters of every kind in one batch, several
rows per seat, rows without a seat, ties, and vocabularies that divide nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..op import Case

# temperature, top_k, top_p, min_p of a seat
_FILTERS = (
    (0.0, 5, 0.5, 0.5),
    (1.0, 0, 1.0, 0.0),
    (0.7, 3, 1.0, 0.0),
    (1.0, 0, 0.9, 0.0),
    (1.3, 0, 1.0, 0.05),
    (0.9, 40, 0.8, 0.02),
    (2.0, 0, 0.97, 0.01),
    (1.0, 1, 1.0, 0.0),
    (0.6, 1 << 20, 0.5, 0.0),
    (1.0, 0, 0.01, 0.0),
)


def _logits(generator: torch.Generator, shape: tuple[int, int], dtype: torch.dtype, ties: bool, strided: bool) -> torch.Tensor:
    logits = 3 * torch.randn(shape[0], shape[1] + 8 * strided, generator=generator)
    if ties:  # few distinct values, some of them -inf
        logits = logits.round().masked_fill(logits < -5, -torch.inf)
    return logits.to(dtype)[:, : shape[1]]


def _seats(num_rows: int, num_seats: int) -> torch.Tensor:
    """Each seat in turn; where there are more rows than seats, the first and some others have none."""
    rows = torch.arange(num_rows, dtype=torch.int32)
    return rows if num_rows <= num_seats else rows % (num_seats + 1) - 1


def _sample(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    *,
    num_rows: int,
    vocab_size: int,
    ties: bool = False,
    strided: bool = False,
    filters: tuple[tuple[float, int, float, float], ...] = _FILTERS,
) -> dict[str, Any]:
    temperature, top_k, top_p, min_p = (torch.tensor(column, device=device) for column in zip(*filters, strict=True))
    num_seats = len(filters)
    return {
        "logits": _logits(generator, (num_rows, vocab_size), dtype, ties, strided).to(device),
        "row_to_seat": _seats(num_rows, num_seats).to(device),
        "temperature": temperature.float(),
        "top_k": top_k.int(),
        "top_p": top_p.float(),
        "min_p": min_p.float(),
        "seed": torch.randint(-(2**63), 2**63 - 1, (num_seats,), generator=generator).to(device),
        "position": torch.randint(0, 2**40, (num_rows,), generator=generator).to(device),
        "stream": 0,
    }


def _filter(generator: torch.Generator, dtype: torch.dtype, device: torch.device, **sizes: Any) -> dict[str, Any]:
    args = _sample(generator, dtype, device, **sizes)
    return {name: args[name] for name in ("logits", "row_to_seat", "temperature", "top_k", "top_p", "min_p")}


def _penalties(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    *,
    num_rows: int,
    vocab_size: int,
    bitmask: bool,
    num_bias: int = 5,
    num_seats: int = 6,
    num_drafts: int = 0,
) -> dict[str, Any]:
    del dtype  # logits are always f32
    words, bits = -(-vocab_size // 32), partial(torch.randint, -(2**31), 2**31, dtype=torch.int32, generator=generator)
    counts = torch.randint(0, 12, (num_seats, vocab_size), generator=generator, dtype=torch.int32)
    repetition, frequency, presence = 0.5 + torch.rand(3, num_seats, generator=generator)
    repetition[0], frequency[0], presence[0] = 1.0, 0.0, 0.0
    ids = torch.randint(-1, vocab_size, (num_seats, num_bias), generator=generator, dtype=torch.int32)
    ids[1] = -1
    ids[2:, -1] = ids[2:, 0]  # an id twice counts twice
    drafts = torch.randint(-1, min(vocab_size, 40), (num_rows, num_drafts), generator=generator, dtype=torch.int32)
    drafts[:, 1:2] = drafts[:, :1]  # a draft too
    args = {
        "logits": 3 * torch.randn(num_rows, vocab_size, generator=generator),
        "row_to_seat": _seats(num_rows, num_seats),
        "bitmask": bits((num_rows, words)) | bits((num_rows, words)) if bitmask else None,
        "prompt_mask": bits((num_seats, words)) & bits((num_seats, words)),
        "output_counts": (counts - 8).clamp_min(0),
        "repetition": repetition,
        "frequency": frequency,
        "presence": presence,
        "bias_ids": ids,
        "bias_values": 4 * torch.randn(num_seats, num_bias, generator=generator),
        "drafts": drafts if num_drafts else None,
    }
    return {name: None if value is None else value.to(device) for name, value in args.items()}


def _logprobs(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    *,
    num_rows: int,
    vocab_size: int,
    num_top: int,
    ties: bool = False,
    strided: bool = False,
) -> dict[str, Any]:
    return {
        "logits": _logits(generator, (num_rows, vocab_size), dtype, ties, strided).to(device),
        "token_ids": torch.randint(0, vocab_size, (num_rows,), generator=generator).to(device),
        "num_top": num_top,
    }


def _case(name: str, make: Callable[..., dict[str, Any]], tags: str, num_rows: int, vocab_size: int, **more: Any) -> Case:
    filled = partial(make, num_rows=num_rows, vocab_size=vocab_size, **more)
    return Case(name, filled, frozenset(tags.split()), {"vocab_size": vocab_size}, (1,) * num_rows, (1,) * num_rows)


APPLY_PENALTIES_CASES = (
    _case("mask", _penalties, "odd", 9, 203, bitmask=True),
    _case("no_mask", _penalties, "odd", 8, 97, bitmask=False),
    _case("one_bias", _penalties, "", 4, 64, bitmask=False, num_bias=1),
    _case("drafts", _penalties, "odd", 9, 203, bitmask=False, num_drafts=7),
    _case("one_draft", _penalties, "", 6, 128, bitmask=True, num_drafts=1),
    _case("tiled", _penalties, "tiled", 3, 10007, bitmask=True, num_drafts=3),
    _case("vocab_128k", _penalties, "bench", 64, 128256, bitmask=False),
)
SAMPLE_CASES = (
    _case("filters", _sample, "odd", 11, 1031),
    _case("ties", _sample, "odd", 6, 515, ties=True, filters=_FILTERS[2:7]),
    _case("strided", _sample, "", 5, 256, strided=True),
    _case("tiny", _sample, "odd", 6, 5, filters=_FILTERS[5:]),
    _case("small", _sample, "odd", 5, 75, ties=True, filters=_FILTERS[4:9]),
    _case("tiled", _sample, "tiled", 4, 13001, filters=_FILTERS[1:5]),
    _case("plain_128k", _sample, "bench", 64, 128256, filters=((1.0, 0, 1.0, 0.0),)),
    _case("top_k_128k", _sample, "bench", 64, 128256, filters=((1.0, 50, 1.0, 0.0),)),
    _case("top_p_128k", _sample, "bench", 64, 128256, filters=((1.0, 0, 0.9, 0.0),)),
)
FILTER_LOGITS_CASES = (
    _case("filters", _filter, "odd", 11, 1031),
    _case("ties", _filter, "odd", 6, 515, ties=True, filters=_FILTERS[2:7]),
    _case("strided", _filter, "", 5, 256, strided=True),
    _case("tiny", _filter, "odd", 6, 5, filters=_FILTERS[5:]),
    _case("tiled", _filter, "tiled", 4, 13001, filters=_FILTERS[1:5]),
    _case("top_p_128k", _filter, "bench", 64, 128256, filters=((1.0, 0, 0.9, 0.0),)),
)
GATHER_LOGPROBS_CASES = (
    _case("top_5", _logprobs, "odd", 7, 331, num_top=5),
    _case("ties", _logprobs, "odd", 5, 130, num_top=20, ties=True),
    _case("none", _logprobs, "", 4, 64, num_top=0, strided=True),
    _case("all", _logprobs, "", 3, 90, num_top=90),
    _case("tiled", _logprobs, "tiled", 3, 13001, num_top=3),
    _case("vocab_128k", _logprobs, "bench", 64, 128256, num_top=20),
)
