"""Triton's Philox and the noise made of it, written out."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from triton_kernels.impls._shared.philox import block_noise, quad_words


@triton.jit
def _words_kernel(place, out, stream, QUADS: tl.constexpr):
    quads = tl.arange(0, QUADS)
    a, b, c, d = quad_words(tl.load(place), tl.load(place + 1), stream, quads)
    tl.store(out + quads, a.to(tl.int64))
    tl.store(out + QUADS + quads, b.to(tl.int64))
    tl.store(out + 2 * QUADS + quads, c.to(tl.int64))
    tl.store(out + 3 * QUADS + quads, d.to(tl.int64))


@triton.jit
def _noise_kernel(place, out, stream, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK), block_noise(tl.load(place), tl.load(place + 1), stream, 0, BLOCK))


def triton_words(seed: int, position: int, stream: int, num_quads: int, device: str = "cuda") -> torch.Tensor:
    """int64 [4, num_quads]."""
    out = torch.empty(4, num_quads, dtype=torch.int64, device=device)
    _words_kernel[(1,)](torch.tensor([seed, position], device=device), out, stream, QUADS=num_quads)
    return out


def triton_noise(seed: int, position: int, stream: int, num_tokens: int, device: str = "cuda") -> torch.Tensor:
    """f32 [num_tokens]."""
    out = torch.empty(num_tokens, dtype=torch.float32, device=device)
    _noise_kernel[(1,)](torch.tensor([seed, position], device=device), out, stream, BLOCK=num_tokens)
    return out
