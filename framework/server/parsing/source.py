"""Text that is still coming, as the formats read it."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeVar

from .deltas import Call, Content, Reasoning

T = TypeVar("T")
Steps = Generator[Content | Reasoning | Call | None, None, T]
"""What is certain, or None: nothing more can be said before more text comes, or the end."""

_OUTSIDE_STRING, _INSIDE_STRING = re.compile(r'["{}\[\]]'), re.compile(r'["\\]')


class Source:
    """The text that came and was not taken yet. Positions count from its start, so they hold until the next ``take``.

    Methods that return ``Steps`` wait for as much text as their answer needs; at the end of the text they answer from what
    there is."""

    def __init__(self) -> None:
        self.text = ""
        self.closed = False

    def take(self, end: int) -> str:
        """Removes the text before ``end`` and returns it."""
        taken, self.text = self.text[:end], self.text[end:]
        return taken

    def space_end(self, start: int) -> Steps[int]:
        """Where the white space at ``start`` ends."""
        while not (rest := self.text[start:].lstrip()) and not self.closed:
            yield None
        return len(self.text) - len(rest)

    def skip_space(self) -> Steps[None]:
        self.take((yield from self.space_end(0)))

    def starts(self, tag: str, start: int) -> Steps[bool]:
        """Whether ``tag`` is what stands at ``start``."""
        while not self.closed and len(self.text) < start + len(tag) and tag.startswith(self.text[start:]):
            yield None
        return self.text.startswith(tag, start)

    def skip(self, tag: str) -> Steps[bool]:
        """Takes ``tag`` and the white space behind it, if it is what stands first. Returns whether it was."""
        found = yield from self.starts(tag, 0)
        if found:
            self.take(len(tag))
            yield from self.skip_space()
        return found

    def find(self, tag: str, start: int) -> Steps[int]:
        """Where ``tag`` is next, at ``start`` or later; -1 if nowhere."""
        while (at := self.text.find(tag, start)) < 0 and not self.closed:
            start = max(start, len(self.text) - len(tag) + 1)
            yield None
        return at

    def stream_until(self, tags: tuple[str, ...], kind: Callable[[str], Content | Reasoning]) -> Steps[int]:
        """Yields the text before the first of the tags, and returns where the tag is; -1 if it never came, and all is yielded.

        White space before the tag is neither yielded nor taken: whether it is more than a separator is for the caller to say."""
        while True:
            found = [at for tag in tags if (at := self.text.find(tag)) >= 0]
            tag_at = min(found) if found else len(self.text) - _begun(self.text, tags)
            certain = len(self.text[:tag_at].rstrip())
            if self.closed and not found:
                tag_at, certain = -1, len(self.text)
            if certain:
                yield kind(self.take(certain))
            if found or self.closed:
                return tag_at - certain if found else -1
            yield None

    def stream_rest(self, kind: Callable[[str], Content | Reasoning | Call]) -> Steps[None]:
        """Yields everything up to the end."""
        while self.text or not self.closed:
            yield kind(self.take(len(self.text))) if self.text else None

    def object_end(self, start: int) -> Steps[int]:
        """Where the JSON object that begins at ``start`` ends: behind the bracket that closes its first. What else is wrong with
        it is left to the parser of JSON; the end of the text where it never ends; ``start`` where there is none."""
        while len(self.text) <= start and not self.closed:
            yield None
        if not self.text.startswith("{", start):
            return start
        depth, in_string, position = 0, False, start
        while True:
            found = (_INSIDE_STRING if in_string else _OUTSIDE_STRING).search(self.text, position)
            if found is None:
                if self.closed:
                    return len(self.text)
                position = max(position, len(self.text))  # it may be behind the end, after a backslash
                yield None
                continue
            position = found.end()
            if found[0] == "\\":
                position += 1
            elif found[0] == '"':
                in_string = not in_string
            else:
                depth += 1 if found[0] in "{[" else -1
                if depth == 0:
                    return position


def _begun(text: str, tags: tuple[str, ...]) -> int:
    """How many characters at the end may be the beginning of a tag."""
    longest = max(map(len, tags)) - 1
    return next((n for n in range(min(longest, len(text)), 0, -1) if any(tag.startswith(text[-n:]) for tag in tags)), 0)
