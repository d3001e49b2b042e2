"""Quantized values of 2 to 8 bits in the words of checkpoints. Nothing is rounded here."""

from __future__ import annotations

from collections.abc import Sequence

import torch

WORD_BITS = 32
AWQ_COLUMN_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)


def unpack_stream(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [..., W] -> uint8 [..., W * 32 / bits]: values follow each other bit by bit, the first in the lowest bits, across the
    borders of words where bits do not divide 32 (then W is a multiple of bits). GPTQ's order."""
    if WORD_BITS % bits == 0:
        return unpack_words(words, bits)
    units = words.unflatten(-1, (-1, bits)).long() & 0xFFFFFFFF
    first_bit = bits * torch.arange(WORD_BITS, device=words.device)
    word, shift = first_bit // WORD_BITS, first_bit % WORD_BITS
    low, high = units[..., word] >> shift, units[..., (word + 1).clamp_max(bits - 1)] << (WORD_BITS - shift)
    return ((low | high) & ((1 << bits) - 1)).to(torch.uint8).flatten(-2)


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [..., W] -> uint8 [..., W * (32 // bits)]: each word by itself, the first value in the lowest bits."""
    shifts = bits * torch.arange(WORD_BITS // bits, device=words.device, dtype=torch.int32)
    return ((words[..., None] >> shifts) & ((1 << bits) - 1)).to(torch.uint8).flatten(-2)


def unpack_awq(words: torch.Tensor) -> torch.Tensor:
    """int32 [R, N/8] -> uint8 [R, N] in the order of columns, from AWQ's 0 2 4 6 1 3 5 7."""
    nibbles = unpack_words(words, 4).unflatten(-1, (-1, WORD_BITS // 4))
    columns = torch.empty_like(nibbles)
    columns[..., list(AWQ_COLUMN_OF_NIBBLE)] = nibbles
    return columns.flatten(-2)


def pack_words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [R, C] -> int32 [R, ceil(C / (32 // bits))], the inverse of ``unpack_words``, with zeros behind the last value."""
    per_word = WORD_BITS // bits
    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % per_word))
    shifts = bits * torch.arange(per_word, device=values.device)
    return (padded.long().unflatten(1, (-1, per_word)) << shifts).sum(-1).to(torch.int32)


def pack_awq(values: torch.Tensor) -> torch.Tensor:
    """uint8 [R, N] -> int32 [R, N/8], the inverse of ``unpack_awq``."""
    return pack_words(values.unflatten(-1, (-1, WORD_BITS // 4))[..., list(AWQ_COLUMN_OF_NIBBLE)].flatten(-2), 4)


def concatenated(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """Along a dimension, without arithmetic: not every device concatenates float8."""
    dtype = tensors[0].dtype
    if dtype.is_floating_point and dtype.itemsize == 1:
        return torch.cat([tensor.view(torch.uint8) for tensor in tensors], dim).view(dtype)
    return torch.cat(list(tensors), dim)
