"""From tokens to text, one token at a time: characters split across tokens, special tokens, stop strings."""

from __future__ import annotations

import codecs
import json
from typing import Any, Protocol

from ..sampling_params import SamplingParams


class Detokenizer(Protocol):
    """The text of one sequence. All pieces together equal ``tokenizer.decode`` of all tokens at once."""

    def push(self, token_id: int) -> str:
        """The text that is certain now: characters that are not complete are held back."""

    def flush(self) -> str:
        """What is left at the end."""


class TokenTexts:
    """What an engine knows of its tokenizer: for byte-level BPE a table token -> bytes, else how to decode windows.

    tokenizer  a Hugging Face tokenizer (``decode``, and ``backend_tokenizer`` if it is fast)
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._bytes = _byte_level_table(backend) if backend is not None else None
        if backend is not None and self._bytes is not None:
            special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
            whole = [_decode_whole(piece) for piece in self._bytes]
            skipping = ["" if i in special else text for i, text in enumerate(whole)]
            self._tables = {False: (whole, self._bytes), True: (skipping, self._bytes)}

    def detokenizer(self, skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True) -> Detokenizer:
        """A detokenizer for a new sequence."""
        if self._bytes is not None:
            return ByteLevelDetokenizer(*self._tables[skip_special_tokens])
        return WindowDetokenizer(self.tokenizer, skip_special_tokens, spaces_between_special_tokens)

    def decoded_token(self, token_id: int) -> str:
        """The text of a token alone; incomplete characters become U+FFFD."""
        if self._bytes is not None:
            return self._bytes[token_id].decode("utf-8", "replace") if token_id < len(self._bytes) else ""
        return self.tokenizer.decode([token_id], skip_special_tokens=False)


class ByteLevelDetokenizer:
    """Byte-level BPE: every token is a string of bytes, whatever its neighbours.

    texts   per token its text, None if its bytes are not UTF-8 by themselves
    pieces  per token its bytes
    """

    __slots__ = ("_decoder", "_pending", "_pieces", "_texts")

    def __init__(self, texts: list[str | None], pieces: list[bytes]) -> None:
        self._texts, self._pieces = texts, pieces
        self._decoder: codecs.IncrementalDecoder | None = None
        self._pending = False

    def push(self, token_id: int) -> str:
        if token_id >= len(self._texts):  # a padding row of the vocabulary
            return ""
        text = self._texts[token_id]
        if text is not None and (not self._pending or not text):
            return text
        if self._decoder is None:
            self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        found = self._decoder.decode(self._pieces[token_id])
        self._pending = bool(self._decoder.getstate()[0])
        return found

    def flush(self) -> str:
        if not self._pending:
            return ""
        assert self._decoder is not None
        self._pending = False
        return self._decoder.decode(b"", True)


class WindowDetokenizer:
    """Any tokenizer: decodes a window that starts with the tokens of the last emitted text, so that what depends on
    neighbours (spaces of sentencepiece, byte fallback) comes out as in the whole."""

    __slots__ = ("_done", "_ids", "_options", "_tokenizer", "_window")

    def __init__(self, tokenizer: Any, skip_special_tokens: bool, spaces_between_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._options: dict[str, Any] = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
        if not getattr(tokenizer, "is_fast", True):
            self._options["spaces_between_special_tokens"] = spaces_between_special_tokens
        self._ids: list[int] = []
        self._window = self._done = 0

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        return self._advance(final=False)

    def flush(self) -> str:
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        before = self._decode(self._ids[self._window : self._done])
        after = self._decode(self._ids[self._window :])
        if (after.endswith("\ufffd") and not final) or len(after) <= len(before):
            return ""
        self._window, self._done = self._done, len(self._ids)
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, **self._options) if ids else ""


class StopStrings:
    """Searches text as it comes for stop strings, and holds back what may become one.

    With ``include`` the stop string stays in the text, so that nothing needs to be held back.
    """

    __slots__ = ("_held", "_include", "_keep", "_seen", "_stop")

    def __init__(self, stop: list[str], include: bool) -> None:
        self._stop, self._include = stop, include
        self._keep = max(map(len, stop)) - 1
        self._seen = ""  # the last _keep characters; of them, the last _held were not emitted
        self._held = 0

    def push(self, text: str, search: bool = True) -> tuple[str, str | None]:
        """The text that may be emitted, and the stop string that ended it: the one that begins first, of those the longest."""
        seen = self._seen + text
        not_emitted = len(seen) - len(text) - self._held
        if search:
            old = len(self._seen)  # a match must end in the new text
            found = [(at, -len(stop), stop) for stop in self._stop if (at := seen.find(stop, max(0, old - len(stop) + 1))) >= 0]
            if found:
                at, _, stop = min(found)
                return seen[not_emitted : at + len(stop) * self._include], stop
        self._held = 0 if self._include else min(self._keep, len(seen) - not_emitted)
        end = len(seen) - self._held
        self._seen = seen[max(len(seen) - self._keep, 0) :] if self._keep else ""
        return seen[not_emitted:end], None

    def flush(self) -> str:
        """What was held back."""
        held, self._held = self._seen[len(self._seen) - self._held :], 0
        return held


def make_stop_strings(params: SamplingParams) -> StopStrings | None:
    """None if no stop strings were given."""
    assert isinstance(params.stop, list)
    return StopStrings(params.stop, params.include_stop_str_in_output) if params.stop else None


def _decode_whole(piece: bytes) -> str | None:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _byte_level_table(backend: Any) -> list[bytes] | None:
    """Token id -> bytes, or None if the tokenizer does not decode byte by byte."""
    state = json.loads(backend.to_str())
    decoder = state["decoder"] or {}
    steps = decoder.get("decoders", [decoder])
    if [step.get("type") for step in steps] != ["ByteLevel"]:
        return None
    byte_of = {char: byte for byte, char in _byte_characters().items()}
    table = [b""] * backend.get_vocab_size(with_added_tokens=True)
    vocabulary = backend.get_vocab(with_added_tokens=True)
    table += [b""] * (max(vocabulary.values(), default=-1) + 1 - len(table))
    for token, token_id in vocabulary.items():
        # A token with characters outside the alphabet was added as plain text.
        plain = any(char not in byte_of for char in token)
        table[token_id] = token.encode() if plain else bytes(byte_of[char] for char in token)
    return table


def _byte_characters() -> dict[int, str]:
    """Byte -> printable character, as byte-level BPE vocabularies are written (Radford et al., GPT-2): printable Latin-1
    characters stand for themselves, the other bytes for the characters from U+0100 on, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}
