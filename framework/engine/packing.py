"""Lists of integers as few bytes, for what crosses processes in every step."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain, islice

Packed = bytes | tuple[int, int]
"""(value, length) where all are equal, else a type code of ``array`` and the values in native byte order."""


def pack(values: Sequence[int]) -> Packed:
    """Of integers of 64 bits, signed; ``unpack`` gives the list again."""
    if not values:
        return b""
    first = values[0]
    if values.count(first) == len(values):
        return first, len(values)
    for code in "hi":
        try:
            return code.encode() + array(code, values).tobytes()
        except OverflowError:
            continue
    return b"q" + array("q", values).tobytes()


def unpack(packed: Packed) -> list[int]:
    if isinstance(packed, tuple):
        value, length = packed
        return [value] * length
    values = array(chr(packed[0]) if packed else "h")
    values.frombytes(memoryview(packed)[1:])
    return values.tolist()


def pack_lists(lists: Sequence[Sequence[int]]) -> tuple[Packed, Packed]:
    """Their lengths, and all values one behind the other."""
    return pack([len(each) for each in lists]), pack(list(chain.from_iterable(lists)))


def unpack_lists(packed: tuple[Packed, Packed]) -> list[list[int]]:
    lengths, values = packed
    rest = iter(unpack(values))
    return [list(islice(rest, length)) for length in unpack(lengths)]


def pack_columns(rows: Sequence[Iterable[int]]) -> tuple[Packed, ...]:
    """Of rows of equal length, column by column."""
    return tuple(pack(column) for column in zip(*rows))


def unpack_columns(columns: Iterable[Packed]) -> list[tuple[int, ...]]:
    return list(zip(*map(unpack, columns)))
