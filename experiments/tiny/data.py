"""Training windows: a reproducible stream of token batches that can be resumed."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from experiments.tiny.tokenizer import encode_file
from framework.corpus import SourceFile

Tokens = NDArray[np.uint16]


def encode_files(tokenizer: Tokenizer, files: Sequence[SourceFile]) -> list[Tokens]:
    """Token ids of every file, each between begin and end marks."""
    return [np.asarray(encode_file(tokenizer, file.text), dtype=np.uint16) for file in files]


class Stream(Protocol):
    """Where a run takes its batches from."""

    @property
    def epoch(self) -> int:
        """Number of the current pass over the files, from 0 on."""

    def next_batch(self, length: int, batch: int) -> torch.Tensor:
        """The next ``batch`` windows of ``length + 1`` tokens."""

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a position that ``state_dict`` gave."""


class WindowStream:
    """Batches of contiguous windows cut from the files in a fresh order each epoch.

    Every epoch shuffles the files, joins them without padding and cuts windows from a
    random offset on.  Generated files join an epoch with probability ``generated_share``.
    The order is a function of the seed and the epoch number alone, so ``state_dict``
    is three integers.
    """

    def __init__(self, documents: Sequence[Tokens], generated: Sequence[bool], generated_share: float, seed: int) -> None:
        self._documents = documents
        self._keep_chance = np.where(np.asarray(generated), generated_share, 1.0)
        self._seed = seed
        self._epoch = -1
        self._length = 0
        self._cursor = 0
        self._stream: NDArray[np.int64] = np.empty(0, np.int64)
        self._starts: NDArray[np.int64] = np.empty(0, np.int64)

    @property
    def epoch(self) -> int:
        """Number of the current pass over the files, from 0 on."""
        return self._epoch

    def next_batch(self, length: int, batch: int) -> torch.Tensor:
        """The next ``batch`` windows of ``length + 1`` tokens (inputs and their targets)."""
        if length != self._length or self._cursor + batch > len(self._starts):
            self._begin_epoch(self._epoch + 1, length)
        starts = self._starts[self._cursor : self._cursor + batch]
        self._cursor += batch
        return torch.from_numpy(self._stream[starts[:, None] + np.arange(length + 1)])

    def state_dict(self) -> dict[str, int]:
        """Position in the stream."""
        return {"epoch": self._epoch, "length": self._length, "cursor": self._cursor}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Return to a position that ``state_dict`` gave."""
        self._begin_epoch(state["epoch"], state["length"])
        self._cursor = state["cursor"]

    def _begin_epoch(self, epoch: int, length: int) -> None:
        rng = np.random.default_rng([self._seed, epoch])
        kept = rng.random(len(self._documents)) < self._keep_chance
        order = [i for i in rng.permutation(len(self._documents)) if kept[i]]
        self._stream = np.concatenate([self._documents[i] for i in order]).astype(np.int64)
        offset = int(rng.integers(length))
        self._starts = np.arange(offset, len(self._stream) - length, length)
        rng.shuffle(self._starts)
        self._epoch, self._length, self._cursor = epoch, length, 0


class HalfAndHalf:
    """Batches of which each of two streams gives a half; the passes that are counted are the first one's."""

    def __init__(self, first: Stream, second: Stream) -> None:
        self._streams = first, second

    @property
    def epoch(self) -> int:
        """Number of the current pass over the first stream's files, from 0 on."""
        return self._streams[0].epoch

    def next_batch(self, length: int, batch: int) -> torch.Tensor:
        """The next ``batch`` windows of ``length + 1`` tokens, the first stream's before the second's."""
        return torch.cat([stream.next_batch(length, batch // 2) for stream in self._streams])

    def state_dict(self) -> dict[str, Any]:
        """Position in both streams."""
        return {"epoch": self.epoch, "streams": [stream.state_dict() for stream in self._streams]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a position that ``state_dict`` gave."""
        for stream, position in zip(self._streams, state["streams"], strict=True):
            stream.load_state_dict(position)
