"""How often what followed what, in texts that come and go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


class Run:
    """Tokens that always follow each other behind the runs above: ``text[start:end]``, as far as the text goes.

    total     places where its first token stands (behind the runs above)
    followed  how many of them go on behind its last one
    children  first token -> run behind it
    best      of which total is largest (of equals the smallest token); None = not known
    """

    __slots__ = ("best", "children", "end", "followed", "start", "text", "total")

    def __init__(self, text: list[int], start: int, end: int, total: int = 1) -> None:
        self.text, self.start, self.end, self.total = text, start, end, total
        self.followed = 0
        self.best: int | None = None
        self.children: dict[int, Run] | None = None

    def __len__(self) -> int:
        return min(self.end, len(self.text)) - self.start

    def cut(self, length: int, total: int) -> Run:
        """Shortens it to ``length``; returns what it loses, a run behind it that stands at ``total`` places."""
        rest = Run(self.text, self.start + length, self.end, total)
        rest.followed, rest.children, rest.best = self.followed, self.children, self.best
        first = self.text[rest.start]
        self.end, self.followed, self.children, self.best = rest.start, total, {first: rest}, first
        return rest

    def best_child(self) -> Run:
        """Of one that is followed."""
        assert self.children
        if self.best is None:
            _, self.best = min((-child.total, token) for token, child in self.children.items())
        return self.children[self.best]

    def go(self, token: int, text: list[int], end: int) -> Run | None:
        """Counts that ``token``, the last one of ``text``, came behind it; None if it never did before: the new run goes on in the
        text up to ``end``."""
        self.followed += 1
        if self.children is None:
            self.children = {}
        child = self.children.get(token)
        if child is None:
            self.children[token] = Run(text, len(text) - 1, end)
            total = 1
        else:
            child.total += 1
            total = child.total
        if self.best is None:
            self.best = token if self.followed == 1 else None
        elif token != self.best:
            most = self.children[self.best].total
            if total > most or (total == most and token < self.best):
                self.best = token
        return child


Ends = list[tuple[Run, int]]
"""Of a text that grows, where its last 0, 1, 2, ... tokens end: in which run, behind how many of its tokens. As many as stand
elsewhere too."""


@dataclass(frozen=True)
class Drafts:
    """score: how many of them are expected to be right."""

    score: float = 0.0
    token_ids: list[int] = field(default_factory=list)


class SuffixTree:
    """All runs of up to ``depth`` tokens in some texts, of which one at a time may grow: a compressed suffix tree, of not more than
    two nodes for each place where the texts differ.

    texts  number -> tokens, in the order in which they came
    """

    def __init__(self, depth: int) -> None:
        self.depth, self.texts = depth, dict[int, list[int]]()
        self._root = Run([], 0, 0)

    def open(self, number: int) -> Ends:
        """A new text, without tokens."""
        self.texts[number] = []
        return [(self._root, 0)]

    def append(self, number: int, token: int, ends: Ends) -> Ends:
        """Lets the text grow. ends: of the text so far; they are of no use afterwards."""
        text = self.texts[number]
        text.append(token)
        grown: Ends = [(self._root, 0)]
        for depth, (run, length) in enumerate(ends):
            place = run.start + length
            if place < run.end and place < len(run.text):  # inside the run; len(run) costs a call
                if run.text[place] == token:
                    grown.append((run, length + 1))
                    continue
                self._cut(run, length, grown, ends, depth)
            child = run.go(token, text, len(text) - 1 + self.depth - depth)
            if child is not None:
                grown.append((child, 1))
        if len(grown) > self.depth:
            grown.pop()
        return grown

    def add(self, number: int, tokens: Iterable[int]) -> None:
        """A text that is complete."""
        ends = self.open(number)
        for token in tokens:
            ends = self.append(number, token, ends)
        for depth, (run, length) in enumerate(ends):  # what ends inside a run is not followed by its rest
            if length < len(run):
                self._cut(run, length, ends[:depth], ends, depth)

    def remove(self, number: int) -> None:
        """Forgets a text that is complete."""
        text = self.texts.pop(number)
        for start in range(len(text)):
            run, position, end = self._root, start, min(start + self.depth, len(text))
            while position < end:
                token = text[position]
                run.followed -= 1
                assert run.children is not None
                child = run.children[token]
                child.total -= 1
                if run.best == token:
                    run.best = None
                if not child.total:
                    del run.children[token]
                    break
                run = child
                position += len(child)

    def drafts(self, end: list[int], limits: Sequence[tuple[int, int]], most: int, min_probability: float) -> Drafts:
        """The best behind an end of ``end``, each time the token that most often came next (of equals the smallest).

        limits           (tokens of the end, drafts behind it), by falling numbers of drafts
        most             drafts
        min_probability  that a draft and all before it are right
        """
        best = Drafts()
        for length, limit in limits:
            limit = min(limit, most)
            if limit <= best.score:
                break
            if length <= len(end) and (found := self._find(end[-length:])) is not None:
                drafts = _follow(*found, limit, min_probability)
                if drafts.score > best.score:
                    best = drafts
        return best

    def _cut(self, run: Run, length: int, before: Ends, ends: Ends, depth: int) -> None:
        """Behind a place where ``ends[depth]`` ends. before: those of the shorter ends, which do not reach the rest either."""
        total = run.total - 1 - sum(other is run for other, _ in before)
        rest = run.cut(length, total)
        for i in range(depth + 1, len(ends)):
            if ends[i][0] is run:
                ends[i] = rest, ends[i][1] - length

    def _find(self, tokens: list[int]) -> tuple[Run, int] | None:
        """Where a path ends: in which run, behind how many of its tokens."""
        run, size, num_found = self._root, 0, 0
        while num_found < len(tokens):
            child = run.children.get(tokens[num_found]) if run.children else None
            if child is None:
                return None
            run, size = child, min(len(child), len(tokens) - num_found)
            if run.text[run.start : run.start + size] != tokens[num_found : num_found + size]:
                return None
            num_found += size
        return run, size


def _follow(run: Run, length: int, limit: int, min_probability: float) -> Drafts:
    token_ids: list[int] = []
    score, probability = 0.0, 1.0
    while True:
        first = run.start + length
        rest = run.text[first : min(run.end, first + limit - len(token_ids))]
        token_ids += rest
        score += probability * len(rest)
        if len(token_ids) == limit or not run.followed:
            break
        child = run.best_child()
        probability *= child.total / run.followed
        if probability < min_probability:
            break
        run, length = child, 0
    return Drafts(score, token_ids)
