"""A plugin of tests: x @ weight.T whose tiles of k lie where a table says. The chain table -> tiles consumes the pipeline's
stages in ``serial``; ``overlapped`` carries the next number as a loop variable; the copy engine's tiles need three stages."""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from triton_kernels.impl import impl


@triton.jit
def chained_kernel(x, weight, out, table, n, k, CARRIED: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    rows, columns, inner = tl.arange(0, M)[:, None], tl.arange(0, N)[:, None], tl.arange(0, K)[None, :]
    x += tl.program_id(0) * M * k + rows * k
    weight += tl.program_id(1) * N * k + columns * k
    acc = tl.zeros((M, N), tl.float32)
    carried = tl.load(table)
    for block in range(0, k // K):
        place = carried if CARRIED else tl.load(table + block)
        if CARRIED:
            carried = tl.load(table + block + 1, mask=block + 1 < k // K, other=0)
        acc = tl.dot(tl.load(x + place * K + inner), tl.load(weight + place * K + inner).T, acc)
    tl.store(out + (tl.program_id(0) * M + rows) * n + tl.program_id(1) * N + tl.arange(0, N)[None, :], acc)


@triton.jit
def tma_kernel(x, weight, out, n, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    row, column = tl.program_id(0) * M, tl.program_id(1) * N
    acc = tl.zeros((M, N), tl.float32)
    for block in range(0, k // K):
        acc = tl.dot(x.load([row, block * K]), weight.load([column, block * K]).T, acc)
    tl.store(out + (row + tl.arange(0, M)[:, None]) * n + column + tl.arange(0, N)[None, :], acc)


def _grid(x, weight):
    return x.shape[0] // 64, weight.shape[0] // 64


def _chained(name, carried, num_stages):
    @impl("linear", name, requires=("triton",))
    def launch(x, weight, bias=None):
        (m, k), n = x.shape, weight.shape[0]
        table, out = torch.arange(k // 64, dtype=torch.int32, device=x.device), x.new_empty(m, n)
        tiles = {"M": 64, "N": 64, "K": 64, "num_warps": 4, "num_stages": num_stages, "enable_fp_fusion": True}
        chained_kernel[_grid(x, weight)](x, weight, out, table, n, k, CARRIED=carried, **tiles)
        return out

    return launch


def _by_tma(name, num_stages):
    @impl("linear", name, requires=("triton",))
    def launch(x, weight, bias=None):
        (m, k), n = x.shape, weight.shape[0]
        out = x.new_empty(m, n)
        boxes = (TensorDescriptor.from_tensor(tensor, [64, 64]) for tensor in (x, weight))
        tiles = {"M": 64, "N": 64, "K": 64, "num_warps": 4, "num_stages": num_stages, "enable_fp_fusion": True}
        tma_kernel[_grid(x, weight)](*boxes, out, n, k, **tiles)
        return out

    return launch


serial, overlapped, unpipelined = _chained("serial", False, 3), _chained("overlapped", True, 3), _chained("unpipelined", True, 1)
tma_serial, tma_overlapped = _by_tma("tma_serial", 2), _by_tma("tma_overlapped", 3)
