"""Sets of tokens as ``apply_penalties`` takes them: int32 words, bit t % 32 of word t // 32 for token t."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np


def num_words(vocab_size: int) -> int:
    """That hold a bit per token."""
    return -(-vocab_size // 32)


def set_bits(words: np.ndarray, ids: Collection[int], value: bool) -> None:
    """Sets or clears the bits of some tokens in one row of words, in place."""
    index = np.fromiter(ids, dtype=np.int64, count=len(ids))
    flags = np.left_shift(np.uint32(1), (index % 32).astype(np.uint32), dtype=np.uint32)
    bits = words.view(np.uint32)
    if value:
        np.bitwise_or.at(bits, index // 32, flags)
    else:
        np.bitwise_and.at(bits, index // 32, ~flags)
