"""``sample`` in torch calls. On a CPU, work follows the data: greedy rows cost one argmax; rows without top-k and top-p
draw noise only for tokens close enough to the best to win; the others look at their best few hundred tokens, and at more
only when those do not settle it. On a GPU nothing may depend on the data (no host synchronization), so every
row is sorted and gets all its noise, some rows at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...impl import Flags, impl
from ...rng import NOISE_SPAN, quad_noise
from .._shared.row_sum import row_sum

_FEW = 256
"""Tokens that a top-p row without top-k looks at first."""
_CHUNK = 1 << 12
"""Quads of tokens that get their noise at once: their words stay in a core's cache."""
_CHUNK_SCORES = 1 << 22
"""Scores that are worked on at once, to bound memory."""


class _Rows(NamedTuple):
    """Parameters of the rows at hand, each [R]."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor
    position: torch.Tensor

    def take(self, rows: torch.Tensor | slice) -> _Rows:
        return _Rows(*(values[rows] for values in self))


@impl("sample", "torch", priority=10, flags=Flags(batch_invariant=True))
def sample(
    logits: torch.Tensor,
    row_to_seat: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    stream: int = 0,
) -> torch.Tensor:
    seats = row_to_seat.clamp_min(0).long()
    heat = temperature[seats]
    random = heat != 0
    tokens = torch.argmax(logits, dim=-1)  # of NaN, if there is one
    best = logits.gather(1, tokens[:, None])[:, 0].float() / torch.where(random, heat, 1.0)
    valid = best.isfinite() & (row_to_seat >= 0)
    random &= valid
    if logits.device.type == "cpu" and not bool(random.any()):
        return torch.where(valid, tokens, -1).int()
    rows = _Rows(heat, top_k[seats], top_p[seats], min_p[seats], seed[seats], position)
    num_rows = max(1, _CHUNK_SCORES // logits.shape[1])
    if logits.device.type != "cpu":
        for start in range(0, len(tokens), num_rows):
            part = slice(start, start + num_rows)
            drawn = _draw_dense(logits[part], rows.take(part), stream)
            tokens[part] = torch.where(random[part], drawn, tokens[part])
    else:
        filtered = (rows.top_p < 1) | _limits(rows.top_k, logits.shape[1])
        for kind, draw in ((random & ~filtered, _draw_plain), (random & filtered, _draw_filtered)):
            for part in _batches(kind, num_rows):
                tokens[part] = draw(_scores(logits[part], rows.take(part)), rows.take(part), stream)
    return torch.where(valid, tokens, -1).int()


def _batches(wanted: torch.Tensor, num_rows: int) -> list[torch.Tensor]:
    """The rows where ``wanted``, so many at a time."""
    return [rows for rows in wanted.nonzero()[:, 0].split(num_rows) if len(rows)]


def _scores(logits: torch.Tensor, rows: _Rows) -> torch.Tensor:
    return logits.float() / rows.temperature[:, None]


def _draw_dense(logits: torch.Tensor, rows: _Rows, stream: int) -> torch.Tensor:
    """Tokens int64 [R] of random rows, without a look at the data. Other rows give anything."""
    ranked, order = torch.sort(_scores(logits, rows), dim=-1, descending=True, stable=True)
    kept = torch.arange(ranked.shape[1], device=ranked.device) < num_kept(ranked, None, rows.top_k, rows.top_p, rows.min_p)[:, None]
    quads = torch.arange(-(-ranked.shape[1] // 4), device=ranked.device)
    noise = quad_noise(rows.seed[:, None], rows.position[:, None], stream, quads).flatten(1)
    noisy = (ranked + noise.gather(1, order)).masked_fill(~kept, -torch.inf)
    return torch.argmax(torch.empty_like(noisy).scatter_(1, order, noisy), dim=-1)


def _draw_plain(scores: torch.Tensor, rows: _Rows, stream: int) -> torch.Tensor:
    """Tokens int64 [R] of rows without top-k and top-p."""
    best = scores.amax(dim=-1)
    can_win = best - NOISE_SPAN - 1e-6 * best.abs()  # below it the largest noise loses to the best with the smallest
    floor = torch.maximum(can_win, torch.where(rows.min_p > 0, (best.double() + rows.min_p.double().log()).float(), -torch.inf))
    padded = torch.nn.functional.pad(scores, (0, -scores.shape[1] % 4), value=-torch.inf).unflatten(1, (-1, 4))
    alive = padded >= floor[:, None, None]
    row, quad = alive.any(-1).nonzero(as_tuple=True)
    values = padded[row, quad].masked_fill_(~alive[row, quad], -torch.inf)
    noisy = torch.cat([values[part] + _noise(rows, row[part], stream, quad[part]) for part in _parts(row)])
    word = noisy.argmax(dim=-1)
    return _best_per_row(noisy.gather(1, word[:, None])[:, 0], row, 4 * quad + word, len(scores))


def _draw_filtered(scores: torch.Tensor, rows: _Rows, stream: int, fetched: int = 0) -> torch.Tensor:
    """Tokens int64 [R] of rows with top-k or top-p, from their best ``fetched`` scores, or as many as it takes."""
    width = scores.shape[1]
    if not fetched:
        limited = rows.top_k.where(_limits(rows.top_k, width), _FEW)
        fetched = min(width, int(limited.max()) + 1)
    ranked, order = _top(scores, fetched)
    kept = num_kept(ranked, scores, rows.top_k, rows.top_p, rows.min_p)
    tokens = _draw_ranked(ranked, order, kept, rows, stream)
    # What was fetched settles a row if it goes on below the last kept score, so that all equals of that one are in it.
    is_open = ranked.gather(1, kept[:, None] - 1)[:, 0] <= ranked[:, -1]
    if fetched < width and bool(is_open.any()):
        more = is_open.nonzero()[:, 0]
        tokens[more] = _draw_filtered(scores[more], rows.take(more), stream, min(width, 16 * fetched))
    return tokens


def _limits(top_k: torch.Tensor, width: int) -> torch.Tensor:
    return (top_k > 0) & (top_k < width)


def _top(scores: torch.Tensor, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``num`` best scores and their tokens, best first, equal ones by token (which of the last equals is open)."""
    order = scores.topk(num, dim=-1, sorted=False).indices.sort(dim=-1).values
    ranked, index = torch.sort(scores.gather(1, order), dim=-1, descending=True, stable=True)
    return ranked, order.gather(1, index)


def num_kept(
    ranked: torch.Tensor, scores: torch.Tensor | None, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    """How many of each row's best scores [R, K] survive, int64 [R] >= 1; exact where it is below K. ``scores`` [R, V] give
    the probability mass of rows without top-k; None when ``ranked`` has all."""
    best = ranked[:, :1]
    rank = torch.arange(ranked.shape[1], device=ranked.device)
    floor = torch.where(min_p > 0, best[:, 0].double() + min_p.double().log(), -torch.inf)[:, None]
    alive = (ranked >= floor) & (ranked > -torch.inf)
    alive &= (rank < top_k[:, None]) | (top_k <= 0)[:, None]
    weight = (ranked.double() - best.double()).exp().masked_fill(~alive, 0.0)
    cumulative = weight.cumsum(-1)
    total = cumulative[:, -1]
    if scores is not None:
        everything = row_sum((scores - best).exp_().masked_fill_(scores < floor, 0.0))
        total = torch.where(_limits(top_k, scores.shape[1]), total, everything.double())
    alive &= (cumulative - weight < (top_p.double() * total)[:, None]) | (top_p >= 1)[:, None]
    return alive.sum(-1).clamp_min(1)


def _draw_ranked(ranked: torch.Tensor, order: torch.Tensor, num_kept: torch.Tensor, rows: _Rows, stream: int) -> torch.Tensor:
    row, rank = (torch.arange(ranked.shape[1]) < num_kept[:, None]).nonzero(as_tuple=True)
    token, values = order[row, rank], ranked[row, rank]
    noise = [_noise(rows, row[part], stream, token[part] >> 2).gather(1, (token[part] & 3)[:, None])[:, 0] for part in _parts(row)]
    return _best_per_row(values + torch.cat(noise), row, token, len(ranked))


def _parts(flat: torch.Tensor) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, len(flat), _CHUNK)]


def _noise(rows: _Rows, row: torch.Tensor, stream: int, quad: torch.Tensor) -> torch.Tensor:
    return quad_noise(rows.seed[row], rows.position[row], stream, quad)


def _best_per_row(noisy: torch.Tensor, row: torch.Tensor, token: torch.Tensor, num_rows: int) -> torch.Tensor:
    """The token of each row's largest value (ties: lowest token), from flat candidates [N]."""
    best = noisy.new_full((num_rows,), -torch.inf).scatter_reduce_(0, row, noisy, "amax")
    wins = noisy == best[row]
    largest = torch.iinfo(torch.int64).max
    return token.new_full((num_rows,), largest).scatter_reduce_(0, row[wins], token[wins], "amin")
