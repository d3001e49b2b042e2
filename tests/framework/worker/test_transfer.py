"""Arrays that travel together: each arrives as it was, at an address that kernels were compiled for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from framework.worker.transfer import all_to_device, packed_bytes, packed_views

ARRAYS = [
    np.arange(5, dtype=np.int64),
    np.arange(3, dtype=np.int32),
    np.zeros(0, dtype=np.int64),
    np.arange(60, dtype=np.int32).reshape(2, 3, 10)[:, :, :7],
    np.arange(9, dtype=np.int32)[2:],
]


def test_views_of_one_buffer_are_aligned_and_do_not_overlap() -> None:
    like = [torch.from_numpy(np.ascontiguousarray(array)) for array in ARRAYS]
    buffer = torch.zeros(packed_bytes(like), dtype=torch.uint8)
    views = packed_views(buffer, like)
    for view, tensor in zip(views, like):
        view.copy_(tensor)
    for view, tensor in zip(views, like):
        assert view.dtype == tensor.dtype and view.is_contiguous() and torch.equal(view, tensor)
        assert (view.data_ptr() - buffer.data_ptr()) % 16 == 0 or not view.numel()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_arrays_arrive(device: str) -> None:
    tensors = all_to_device(ARRAYS, torch.device(device))
    assert [tensor.device.type for tensor in tensors] == [device] * len(ARRAYS)
    for tensor, array in zip(tensors, ARRAYS):
        np.testing.assert_array_equal(tensor.cpu().numpy(), array, strict=True)
