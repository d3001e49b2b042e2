"""Case files: what a run writes down is what is made from it again; what no run can have written is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from triton_kernels.call_shapes import described_ops, shape_reader
from triton_kernels.cases.captured import FORMAT, read_cases
from triton_kernels.lab import calls
from triton_kernels.ops import OPS

CPU = torch.device("cpu")
DECODE: dict[str, Any] = {
    "dims": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "window": 0},
    "options": {"page_size": 16, "kv_dtype": None, "sinks": False, "alibi": False, "softcap": None, "causal": True},
    "q_lens": [1, 1, 2],
    "ctx_lens": [5, 130, 17],
    "count": 3,
}


def write(folder: Path, *entries: Any, op: str = "paged_attention_decode", **head: Any) -> Path:
    path = folder / "cases.json"
    path.write_text(json.dumps({"format": FORMAT, "dtype": "float32", "ops": {op: {"cases": list(entries)}}, **head}))
    return path


@pytest.mark.parametrize("op", described_ops())
def test_a_call_is_made_again_in_the_same_shape(op: str, tmp_path: Path) -> None:
    shapes = []
    for case in OPS[op].cases:
        if "bench" not in case.tags and sum(case.q_lens):
            read = shape_reader(op, calls.make_args(OPS[op], case, torch.float32, CPU))
            assert read is not None
            shapes.append(read())
    entries = [{"dims": dict(s.dims), "options": s.options, "q_lens": s.q_lens, "ctx_lens": s.ctx_lens, "count": 7} for s in shapes]
    found = read_cases(write(tmp_path, *entries, op=op), OPS[op])
    assert len(found.cases) == len(shapes) and found.dtype == torch.float32
    for case, shape in zip(found.cases, shapes, strict=True):
        read = shape_reader(op, calls.make_args(OPS[op], case, torch.float32, CPU))
        assert read is not None
        again = read()
        assert case.count == 7 and (case.q_lens, case.ctx_lens) == (again.q_lens, again.ctx_lens or case.ctx_lens)
        assert (again.dims, again.q_lens, again.ctx_lens) == (shape.dims, shape.q_lens, shape.ctx_lens), case.name
        quantities = {key: value for key, value in shape.options.items() if isinstance(value, bool | str)}
        assert quantities.items() <= again.options.items(), case.name


def test_a_ragged_batch_stays_ragged(tmp_path: Path) -> None:
    (case,) = read_cases(write(tmp_path, DECODE), OPS["paged_attention_decode"]).cases
    meta = calls.make_args(OPS["paged_attention_decode"], case, torch.float32, CPU)["meta"]
    assert meta.seq_lens.tolist() == [5, 130, 17] and meta.cu_q.tolist() == [0, 1, 2, 4]


def wrong(**changes: Any) -> dict[str, Any]:
    return {**DECODE, **changes}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (wrong(dims={"num_heads": 4, "num_kv_heads": 2, "head_dim": 64}), "lacks 'window'"),
        (wrong(q_lens=[1, 1, -2]), "q_lens is .*whole numbers from 0"),
        (wrong(ctx_lens=[5, 130]), "3 q_lens, but 2 ctx_lens"),
        (wrong(ctx_lens=[]), "needs the length of every request"),
        (wrong(ctx_lens=[5, 130, 1]), "more new tokens"),
        (wrong(ctx_lens=[5, 1 << 40, 17]), "ctx_lens is"),
        (wrong(q_lens=[1] * 9000, ctx_lens=[1 << 24] * 9000), "elements, more than"),
        (wrong(dims={**DECODE["dims"], "num_heads": 1 << 40}), "dims.num_heads is"),
        (wrong(dims={**DECODE["dims"], "num_heads": "4"}), "dims.num_heads is"),
        (wrong(dims={**DECODE["dims"], "num_heads": -4}), "dims.num_heads is"),
        (wrong(dims=[]), "dims is"),
        (wrong(options={**DECODE["options"], "kv_dtype": "load"}), "is no dtype"),
        (wrong(options={**DECODE["options"], "page_size": "16"}), "cannot have been a call"),
        (wrong(options={**DECODE["options"], "page_size": 1 << 40}), "options.page_size is"),
        (wrong(options={**DECODE["options"], "page_size": -16}), "options.page_size is"),
        (wrong(count=0), "count is 0"),
        (wrong(count=1.5), "count is 1.5"),
        ("a case", "is str, expected an object"),
    ],
)
def test_what_no_call_can_have_been_is_refused(entry: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_cases(write(tmp_path, entry), OPS["paged_attention_decode"])


def test_what_is_no_case_file_is_refused(tmp_path: Path) -> None:
    op = OPS["paged_attention_decode"]
    with pytest.raises(ValueError, match="holds calls of linear, none of paged_attention_decode"):
        read_cases(write(tmp_path, DECODE, op="linear"), op)
    with pytest.raises(ValueError, match="has no list of 1 to"):
        read_cases(write(tmp_path), op)
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        read_cases(write(tmp_path, DECODE, dtype="int8"), op)
    with pytest.raises(ValueError, match="is no case file"):
        read_cases(write(tmp_path, DECODE, format="another"), op)
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        read_cases(tmp_path / "absent.json", op)
    for text in ("{", "[" * 100_000):
        (tmp_path / "cases.json").write_text(text)
        with pytest.raises(ValueError, match="cannot be read as JSON"):
            read_cases(tmp_path / "cases.json", op)
