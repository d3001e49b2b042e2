"""The random numbers of sampling: Philox 4x32-10, bit for bit what ``tl.philox`` computes.

Stateless: a number is a function of (seed, position, stream, token), so it depends neither on the batch nor on the step.
The key is the seed; the counter is (token >> 2, low and high word of the position, stream); the token takes word token & 3.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np
import torch

STREAM_TARGET, STREAM_DRAFT, STREAM_ACCEPT, STREAM_RECOVERED = 0, 1, 2, 3
MIN_UNIFORM = 4.66e-10
"""Uniforms are clamped here from below, so that no noise is infinite."""
NOISE_SPAN = 24.3
"""Largest noise (21.487, of the clamped uniform) less the smallest (-2.812, of the largest uniform, 1 - 2^-24), rounded up."""

_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def philox(
    seed: torch.Tensor, c0: torch.Tensor, c1: torch.Tensor, c2: torch.Tensor, c3: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four 32-bit words (in int64, 0..2^32-1) of Philox 4x32-10 for a 64-bit key and a counter of four words (int64).

    The arguments broadcast against each other. A 32x32-bit product wraps around in int64, which loses no bit of it.
    """
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        a, b = c0 * _ROUND_A, c2 * _ROUND_B
        c0, c1 = ((b >> 32) & _MASK) ^ c1 ^ k0, b & _MASK
        c2, c3 = ((a >> 32) & _MASK) ^ c3 ^ k1, a & _MASK
        k0, k1 = (k0 + _KEY_A) & _MASK, (k1 + _KEY_B) & _MASK
    return c0, c1, c2, c3


def uniform(words: torch.Tensor) -> torch.Tensor:
    """f32 in [0, 1) from 32-bit words, as ``tl.rand`` maps them."""
    positive = torch.where(words >= 2**31, _MASK - words, words)
    return positive.to(torch.float32) * 4.6566127342e-10


def quad_noise(seed: torch.Tensor, position: torch.Tensor, stream: int, quads: torch.Tensor) -> torch.Tensor:
    """f32 Gumbel noise -log(-log1p(-u)), u clamped at 4.66e-10, of the tokens 4q .. 4q + 3.

    seed, position, quads: int64 that broadcast to [...] -> [..., 4]. On a CPU the bits come from numpy, which has the
    32-bit unsigned words that :func:`philox` does without.
    """
    if position.device.type == "cpu":
        u = _quad_uniform_numpy(seed.numpy(), position.numpy(), stream, quads.numpy())
    else:
        words = philox(seed, quads, position & _MASK, (position >> 32) & _MASK, torch.full_like(position, stream))
        u = uniform(torch.stack(torch.broadcast_tensors(*words), dim=-1))
    return u.clamp_(min=MIN_UNIFORM).neg_().log1p_().neg_().log_().neg_()


def _quad_uniform_numpy(seed: np.ndarray, position: np.ndarray, stream: int, quads: np.ndarray) -> torch.Tensor:
    k0, k1, half = seed.astype(np.uint32), (seed >> 32).astype(np.uint32), np.uint64(32)
    c0, c1, c2 = quads.astype(np.uint32), position.astype(np.uint32), (position >> 32).astype(np.uint32)
    c3 = np.full_like(c2, stream)
    with np.errstate(over="ignore"):
        for _ in range(10):
            a, b = c0 * np.uint64(_ROUND_A), c2 * np.uint64(_ROUND_B)
            c0, c1 = (b >> half).astype(np.uint32) ^ c1 ^ k0, b.astype(np.uint32)
            c2, c3 = (a >> half).astype(np.uint32) ^ c3 ^ k1, a.astype(np.uint32)
            k0, k1 = k0 + np.uint32(_KEY_A), k1 + np.uint32(_KEY_B)
    signed = np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).view(np.int32)
    return torch.from_numpy(signed ^ (signed >> 31)).to(torch.float32).mul_(4.6566127342e-10)


def token_uniform(seed: torch.Tensor, position: torch.Tensor, stream: int, token_ids: torch.Tensor) -> torch.Tensor:
    """f32 uniforms, one per (row, token). seed, position: int64 [R]; token_ids: int64 [V] -> [R, V]."""
    quads, inverse = torch.unique(token_ids >> 2, return_inverse=True)
    low, high = (position & _MASK)[:, None], ((position >> 32) & _MASK)[:, None]
    words = philox(seed[:, None], quads, low, high, torch.full_like(low, stream))
    return uniform(torch.stack(torch.broadcast_tensors(*words), dim=-1)[:, inverse, token_ids & 3])


def row_uniform(seed: torch.Tensor, position: torch.Tensor, stream: int, token: torch.Tensor) -> torch.Tensor:
    """f32 uniforms [R] of one token per row, without a look at the data. All int64 [R]."""
    words = philox(seed, token >> 2, position & _MASK, (position >> 32) & _MASK, torch.full_like(token, stream))
    return uniform(torch.stack(words, dim=-1).gather(1, (token & 3)[:, None])[:, 0])


def gumbel_noise(seed: torch.Tensor, position: torch.Tensor, stream: int, token_ids: torch.Tensor) -> torch.Tensor:
    """f32 Gumbel noise of the sampling contract; arguments and result as :func:`token_uniform`."""
    u = token_uniform(seed, position, stream, token_ids).clamp_min(MIN_UNIFORM)
    return -torch.log(-torch.log1p(-u))
