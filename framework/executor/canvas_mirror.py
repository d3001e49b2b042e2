"""The mirror of a model that denoises."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine.step import StepInput, StepOutput
from .mirror import Mirror, MirroredRow
from .pseudo import PassPlan, pseudo_tokens


class _Canvas:
    """That of a row, from ``start`` on. offered: by place, the tokens that passes over it found."""

    __slots__ = ("num_passes", "offered", "said", "start")

    def __init__(self, start: int) -> None:
        self.start, self.num_passes, self.said = start, 0, 0
        self.offered: dict[int, set[int]] = {}


class CanvasMirror(Mirror):
    """Keys and values of a token stand for all that it sees: the tokens before it, and those of its canvas, masks included, so
    that a canvas that was not computed once more when it was whole is not what others read. What is settled must be what a pass
    found."""

    def __init__(self, *shape: Any, plan: PassPlan) -> None:
        super().__init__(*shape)
        self._plan, self._size, self._mask = plan, plan.canvas_size, plan.diffusion.mask_token_id
        self._canvases: dict[int, _Canvas] = {}  # by seat

    def _run(self, step: StepInput, rows: list[MirroredRow]) -> StepOutput:
        assert step.num_computed is not None and step.drafts is not None, "the scheduler brings canvases"
        for request in step.new:
            self._canvases.pop(request.seat, None)
        found = StepOutput(step.step_id, [])
        written: set[tuple[int, int]] = set()
        parts = list(zip(step.seats, rows, step.num_computed, step.num_tokens, step.num_logits, step.drafts, strict=True))
        for seat, row, first, count, wanted, given in parts:
            assert first == row.num_computed, f"seat {seat} has computed {row.num_computed} tokens"
            if not row.chain:
                row.chain = self._chain_of(row, 0, row.tokens[:first], 0, None)
            self._take(row, first, first + count, wanted, given, self._canvases.get(seat))
            self._write_places(row, first, first + count, written)
        for seat, row, first, count, wanted, given in parts:
            self._check_reads(row, first, count)
            row.num_computed = first + count
            if wanted:
                row.num_computed -= self._size
                self._pass(seat, row, given[-wanted:], found)
        return found

    def _take(self, row: MirroredRow, first: int, end: int, wanted: int, given: list[int], canvas: _Canvas | None) -> None:
        """The tokens of a row that stand behind its prompt may have changed. Extends the chain over them."""
        start, num_known = max(first, row.num_prompt), end - wanted
        assert len(given) == max(end - start, 0), "a row brings what stands behind its prompt"
        for place, token in enumerate(given, start):
            if place < len(row.tokens):
                assert place < num_known and token == row.tokens[place], f"token {place} has changed"
            elif place < num_known:
                assert canvas is not None and token in canvas.offered.get(place, ()), f"no pass found token {place}"
                row.tokens.append(token)
            elif canvas is not None and self._mask is not None and token != self._mask:
                assert token in canvas.offered.get(place, ()), f"no pass found token {place}"
        assert num_known <= len(row.tokens), "a row computes tokens that are not known"
        behind = given[len(given) - wanted :]
        assert not wanted or self._mask is None or self._mask in behind, "a whole canvas needs no pass"
        row.chain[first:] = self._chain_of(row, first, [*row.tokens[first:num_known], *behind], wanted, canvas)

    def _chain_of(self, row: MirroredRow, first: int, tokens: list[int], wanted: int, canvas: _Canvas | None) -> list[int]:
        """What keys and values of these tokens stand for."""
        found: list[int] = []
        before = row.chain[first - 1] if first else 0
        num_causal = len(tokens) - wanted
        if self._mask is not None:
            causal_end = row.num_prompt // self._size * self._size * self._plan.diffusion.causal_prompt
            num_causal = min(max(causal_end - first, 0), len(tokens))
        for token in tokens[:num_causal]:
            before = hash((before, token))
            found.append(before)
        for start in range(num_causal, len(tokens), self._size):
            part = tokens[start : start + self._size]
            assert len(part) == self._size, "a canvas is computed in parts"
            said = canvas.said if self._mask is None and canvas is not None and canvas.start == first + start else 0
            seen = hash((before, tuple(part), said))
            found += [hash((seen, offset)) for offset in range(self._size)]
            before = found[-1]
        return found

    def _pass(self, seat: int, row: MirroredRow, behind: list[int], found: StepOutput) -> None:
        """Appends what a pass finds for the places ``behind`` the known tokens: functions of all that they see."""
        start, num_known = row.num_computed, self._size - len(behind)
        if (canvas := self._canvases.get(seat)) is None or canvas.start != start:
            canvas = self._canvases[seat] = _Canvas(start)
            settled = ((place, token) for place, token in enumerate(behind, start + num_known) if token != self._mask)
            canvas.offered = {place: {token} for place, token in settled}  # in another seat
        canvas.num_passes += 1
        seed = row.seed & (2**64 - 1)
        seeds, starts = np.array([seed], dtype=np.uint64), np.array([start])
        places = np.arange(start, start + self._size)
        seen = np.array([(seed ^ row.chain[place]) & (2**64 - 1) for place in places.tolist()], dtype=np.uint64)
        drawn = pseudo_tokens(seen, places.view(np.uint64), self._vocab_size, self._mask).tolist()
        if self._mask is None:
            best = pseudo_tokens(seeds ^ np.uint64(row.chain[start - 1] & (2**64 - 1)), places.view(np.uint64), self._vocab_size)
            entropies = self._plan.entropies(seeds, starts, np.array([canvas.num_passes]))[0]
            canvas.offered = {place: {token} for place, token in zip(places.tolist(), best.tolist())}
            canvas.said = hash((canvas.said, tuple(drawn)))
            found.best += best.tolist()
            found.entropies += entropies.tolist()
        else:
            is_masked = [False] * num_known + [token == self._mask for token in behind]
            confidences = self._plan.confidences(self._plan.order(seeds, starts), np.array([is_masked]))[0]
            for place, token, is_free in zip(places.tolist(), drawn, is_masked):
                if is_free:
                    canvas.offered.setdefault(place, set()).add(token)
            found.confidences += confidences[num_known:].tolist()
        found.token_ids += drawn[num_known:]
