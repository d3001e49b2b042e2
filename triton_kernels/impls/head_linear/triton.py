"""A GEMM per head. Grid: blocks of outputs x blocks of tokens x heads; a program computes a BLOCK_M x BLOCK_N tile of one head,
with the accumulator in float32 registers and the tiles of the next steps along K in flight in shared memory. Heads lie side by
side in x and in the output, so nothing is transposed before or after. One tile shape for any number of tokens: a row has the same
bits in any batch. Made for decode, where a head's weights are read once for all requests.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl

from ...devices import by_arch
from ...impl import Flags, impl
from ...spec import Spec
from .._shared.launch import Launch, cdiv


@triton.jit(do_not_specialize=["num_tokens"])
def head_linear_kernel(
    x_ptr,
    out_ptr,
    num_tokens,
    stride_token,
    stride_head,
    weight_ptr,
    num_in,
    num_out,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    first_n, first_m, head = tl.program_id(0) * BLOCK_N, tl.program_id(1) * BLOCK_M, tl.program_id(2)
    m, n, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    # Rows past the end read the last row again: what they compute is never stored, and loads need no row mask.
    m_read, n_read = tl.minimum(m, num_tokens - 1 - first_m), tl.minimum(n, num_out - 1 - first_n)
    x = x_ptr + first_m.to(tl.int64) * stride_token + head.to(tl.int64) * stride_head
    x_ptrs = x + m_read[:, None] * stride_token + k[None, :]
    weight_ptrs = weight_ptr + (head.to(tl.int64) * num_out + first_n) * num_in + n_read[:, None] * num_in + k[None, :]
    # The interpreter multiplies bf16 bit patterns, and its GEMMs round by a row's place in the tile: wider numbers there.
    acc_dtype: tl.constexpr = tl.float64 if INTERPRET else tl.float32
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=acc_dtype)
    for start in range(0, num_in, BLOCK_K):
        if EVEN_K:
            a, b = tl.load(x_ptrs), tl.load(weight_ptrs)
        else:
            left = k[None, :] < num_in - start
            a, b = tl.load(x_ptrs, mask=left, other=0.0), tl.load(weight_ptrs, mask=left, other=0.0)
        if INTERPRET:
            a, b = a.to(tl.float64), b.to(tl.float64)
        acc = tl.dot(a, tl.trans(b), acc, input_precision="ieee", out_dtype=acc_dtype)
        x_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K
    out = out_ptr + (first_m.to(tl.int64) * tl.num_programs(2) + head) * num_out + first_n
    inside = (m[:, None] < num_tokens - first_m) & (n[None, :] < num_out - first_n)
    tl.store(out + m[:, None] * (tl.num_programs(2) * num_out) + n[None, :], acc.to(out_ptr.dtype.element_ty), mask=inside)


@impl(
    "head_linear",
    "triton",
    priority=8,  # below PyTorch (cuBLAS) until measured against it
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"block_m": 0, "block_n": 0, "block_k": 0, "num_warps": 0, "num_stages": 0},
    tune_space={"block_m": (16, 64, 128), "block_n": (64, 128), "block_k": (32, 64), "num_warps": (4, 8), "num_stages": (2, 3, 4)},
)
class TritonHeadLinear:
    """Options of 0 follow the arch and the dtype."""

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: object, **options: int) -> None:
        weight = weights["weight"].contiguous()
        self.num_heads, self.num_out, num_in = weight.shape
        exact = spec.dtype == torch.float32  # no matrix instruction: needs registers
        stages = 3 if by_arch(spec.arch).shared_bytes >= 128 * 1024 and not exact else 2
        usual = {
            "block_m": 64,
            "block_n": 64 if exact else 128,
            "block_k": 32 if exact else 64,
            "num_warps": 4,
            "num_stages": stages,
        }
        chosen = {name: options[name] or value for name, value in usual.items()}
        self.block_m, self.block_n = chosen["block_m"], chosen["block_n"]
        self.launch = Launch(
            head_linear_kernel,
            weight_ptr=weight,
            num_in=num_in,
            num_out=self.num_out,
            EVEN_K=num_in % chosen["block_k"] == 0,
            BLOCK_M=self.block_m,
            BLOCK_N=self.block_n,
            BLOCK_K=chosen["block_k"],
            INTERPRET=spec.interpret,
            num_warps=chosen["num_warps"],
            num_stages=chosen["num_stages"],
            enable_fp_fusion=True,
        )

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        kind = spec.fact("weight_dtype", spec.dtype)
        return [] if kind == spec.dtype else [f"needs weights in the dtype of the activations ({spec.dtype}), not {kind}"]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x if x.stride(2) == 1 else x.contiguous()
        num_tokens = x.shape[0]
        out = x.new_empty(num_tokens, self.num_heads, self.num_out)
        if num_tokens:
            grid = (cdiv(self.num_out, self.block_n), cdiv(num_tokens, self.block_m), self.num_heads)
            self.launch(grid, x, out, num_tokens, *x.stride()[:2])
        return out
