"""Chunked attention: the rows that a request becomes give what a mask gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from framework.config import ModelConfig
from framework.models.layers.chunks import in_chunks
from triton_kernels.attention_meta import AttentionMeta, LayerKV
from triton_kernels.ops.attention import reference

from ...models.examples import EXAMPLES
from .checkpoints import make
from .harness import build

PAGE, CHUNK = 4, 12


@pytest.mark.parametrize(
    ("counts", "lengths"),
    [
        ([1, 1, 1, 1], [1, 12, 13, 40]),  # one query each, at both sides of a border
        ([8, 3, 1, 2], [40, 37, 24, 2]),  # drafts that cross one
        ([30, 1, 0, 12, 25], [50, 13, 0, 24, 25]),  # prompts over three chunks, and a row without tokens
        ([1, 1, 1], [14, 0, 0]),  # padding, whose query is none
    ],
    ids=["decode", "drafts", "prompts", "padding"],
)
def test_rows_see_their_chunk_alone(counts: list[int], lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    pages = -(-max(lengths) // PAGE)
    table = torch.randperm(len(counts) * pages, generator=generator).int().view(len(counts), -1) + 1
    keys, values = torch.randn(2, 1 + table.numel(), PAGE, 1, 8, generator=generator)
    q = torch.randn(sum(counts), 2, 8, generator=generator)
    bounds = torch.tensor([0, *counts]).cumsum(0)
    meta = AttentionMeta(bounds.int(), torch.tensor(lengths, dtype=torch.int32), table, max(counts), max(lengths))
    cut = in_chunks(meta, CHUNK, PAGE)
    assert int(cut.seq_lens.max()) <= cut.max_seq_len == CHUNK and int(cut.cu_q.diff().max()) <= cut.max_q
    assert (cut.cu_q.dtype, cut.seq_lens.dtype, cut.block_table.dtype) == (torch.int32,) * 3
    found = reference(q, LayerKV(keys, values), cut, scale=0.5)
    assert isinstance(found, torch.Tensor)
    for row, (count, length) in enumerate(zip(counts, lengths)):
        for i in range(count):
            result = found[bounds[row] + i]
            if length == 0:
                assert not result.any()
                continue
            position = length - count + i
            seen = range(position // CHUNK * CHUNK, position + 1)
            k, v = (torch.stack([each[table[row, p // PAGE], p % PAGE, 0] for p in seen]).double() for each in (keys, values))
            expected = torch.softmax(0.5 * q[bounds[row] + i].double() @ k.T, -1) @ v
            torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6)


def test_sequences_of_one_chunk_stay_as_they_are() -> None:
    meta = AttentionMeta(torch.tensor([0, 1]).int(), torch.tensor([12]).int(), torch.zeros(1, 3).int(), 1, CHUNK)
    assert in_chunks(meta, CHUNK, PAGE) is meta


def test_chunks_that_are_no_whole_blocks_are_refused(tmp_path: Path) -> None:
    make(EXAMPLES["llama4-chunks"], tmp_path)
    (tmp_path / "model.safetensors").unlink()  # which is not even looked for
    with pytest.raises(ValueError, match=r"chunks of 12 positions, which are no whole blocks of 8: set cache.block_size"):
        build(ModelConfig(str(tmp_path), dtype="float32"), block_size=8)
