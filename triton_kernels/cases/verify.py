"""Cases of ``verify_draft``: greedy and random requests in one batch, drafts that are often right, broken rows, requests
without a seat, and rows that belong to nobody."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..op import Case
from . import BENCH, SMALL, TILED


def _make(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    drafts: tuple[int, ...],
    vocab_size: int,
    probs: bool = True,
    broken: bool = False,
    padding: int = 0,
    greedy: tuple[int, ...] = (0,),
    sharp: float = 2.0,
    strided: bool = False,
) -> dict[str, Any]:
    """``drafts``: their number per request, -1 for a request without rows. ``greedy``: requests of temperature 0.
    ``padding``: rows after the last request's. ``broken``: rows with NaN, with nothing but -inf, and with some -inf."""
    rows_of = [n + 1 for n in drafts]
    cu_rows = torch.tensor([0, *rows_of]).cumsum(0).int()
    num_rows, num_reqs = sum(rows_of) + padding, len(drafts)
    logits = sharp * torch.randn(num_rows, vocab_size + 8 * strided, generator=generator)
    draft_logits = logits[:, :vocab_size] + torch.randn(num_rows, vocab_size, generator=generator)
    likely = torch.softmax(draft_logits, -1)
    draft_ids = torch.multinomial(likely, 1, generator=generator)[:, 0].int() if num_rows else torch.zeros(0, dtype=torch.int32)
    for request in greedy:  # else a random draft is hardly ever the best token
        rows = slice(int(cu_rows[request]), int(cu_rows[request + 1]))
        draft_ids[rows] = logits[rows, :vocab_size].to(dtype).argmax(-1).int()
        draft_ids[rows][2::3] = 0
    draft_ids[cu_rows[1:].long()[torch.tensor(rows_of, dtype=torch.int64) > 0] - 1] = -1
    if broken:
        logits[1::7, 3] = torch.nan
        logits[3::7] = -torch.inf
        logits[5::7, ::2] = -torch.inf
    seats = torch.randperm(num_reqs + 2, generator=generator)[:num_reqs].int()
    temperature = 0.5 + torch.rand(num_reqs + 2, generator=generator)
    temperature[seats[list(greedy)].long()] = 0.0
    if broken:
        seats[-1] = -1
    args = {
        "logits": logits.to(dtype),
        "draft_ids": draft_ids,
        "draft_probs": likely if probs else None,
        "cu_rows": cu_rows,
        "row_to_seat": seats,
        "temperature": temperature,
        "seed": torch.randint(-(2**63), 2**63 - 1, (num_reqs + 2,), generator=generator),
        "position": torch.randint(0, 2**40, (num_rows,), generator=generator),
    }
    on_device = {name: None if value is None else value.to(device) for name, value in args.items()}
    return on_device | {"logits": on_device["logits"][:, :vocab_size]}  # type: ignore[index]


def _case(name: str, tags: frozenset[str], drafts: tuple[int, ...], vocab_size: int, **more: Any) -> Case:
    make = partial(_make, drafts=drafts, vocab_size=vocab_size, **more)
    dims = {"vocab_size": vocab_size, "draft_probs": float(more.get("probs", True))}
    rows = tuple(n + 1 for n in drafts)
    return Case(name, make, tags, dims, rows, rows)


CASES = (
    _case("one", SMALL, (3,), 64, greedy=()),
    _case("tiled", TILED, (4, 2, 7, 0, 5, 3), 1031, greedy=(1, 4)),
    _case("certain", SMALL, (3, 5, 1, 4), 203, probs=False),
    _case("certain_sharp", SMALL, (3, 5, 2), 97, probs=False, sharp=9.0, greedy=()),
    _case("broken", SMALL, (4, 3, 5, 2, 4, 3), 55, broken=True, greedy=(0, 3), padding=3),
    _case("no_rows", SMALL, (2, -1, 3, -1), 40, padding=2, strided=True),
    _case("bonus_only", SMALL, (0, 0, 0), 131, greedy=(2,)),
    _case("empty", SMALL, (), 16, greedy=()),
    _case("llama-8b_8x4", BENCH, (4,) * 8, 128256, greedy=()),
    _case("llama-8b_8x4_certain", BENCH, (4,) * 8, 128256, probs=False, greedy=()),
)
