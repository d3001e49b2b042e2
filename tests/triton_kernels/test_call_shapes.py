import pytest
import torch

from triton_kernels.call_shapes import described_ops, shape_reader
from triton_kernels.lab import calls
from triton_kernels.ops import OPS

CPU = torch.device("cpu")
EXCEPTIONS = (("gemm_w4a16", "one_row"), ("qk_norm_rotary_kv_write", "wider_cache"))
"""A group as wide as the row is no group; a cache of float32 is not wider than activations of float32."""


@pytest.mark.parametrize("op", described_ops())
def test_the_shape_of_a_call_is_what_its_case_says_by_hand(op: str) -> None:
    for case in OPS[op].cases:
        if "bench" in case.tags or (op, case.name) in EXCEPTIONS:
            continue
        read = shape_reader(op, calls.make_args(OPS[op], case, torch.float32, CPU))
        assert read is not None
        shape = read()
        assert dict(shape.dims) == dict(case.dims), case.name
        assert sum(shape.q_lens) == sum(case.q_lens), case.name
        assert not shape.ctx_lens or shape.ctx_lens == case.ctx_lens
        sizes = {"act_bytes": 4, "weight_bytes": 4, "kv_bytes": 4}
        ours = OPS[op].cost({**sizes, **shape.dims}, shape.q_lens, shape.ctx_lens)
        assert ours == OPS[op].cost({**sizes, **case.dims}, case.q_lens, case.ctx_lens), case.name


def test_lengths_are_read_anew() -> None:
    (case,) = (case for case in OPS["paged_attention_decode"].cases if case.name == "uneven")
    args = calls.make_args(OPS["paged_attention_decode"], case, torch.float32, CPU)
    read = shape_reader("paged_attention_decode", args)
    assert read is not None and read().ctx_lens == (1, 16, 17, 90, 33)
    args["meta"].seq_lens[3] = 91
    assert read().ctx_lens == (1, 16, 17, 91, 33)
    assert read().q_lens == (1,) * 5


def test_an_op_without_a_description_has_no_shape() -> None:
    assert shape_reader("copy_blocks", {}) is None
