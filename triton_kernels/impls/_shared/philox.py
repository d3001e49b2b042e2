"""The random numbers of ``rng.py`` in Triton: the same bits, and the same noise to within a few units in the last place."""

from __future__ import annotations

import triton
import triton.language as tl

from ...rng import MIN_UNIFORM

_MIN_UNIFORM = tl.constexpr(MIN_UNIFORM)


@triton.jit
def quad_words(seed, position, stream, quads):
    """The four Philox words of each quad of tokens (int32 [Q]) -> four uint32 [Q]. seed, position: int64 scalars."""
    low = (position & 0xFFFFFFFF).to(tl.uint32)
    high = ((position >> 32) & 0xFFFFFFFF).to(tl.uint32)
    return tl.philox(seed, quads, low, high, stream)


@triton.jit
def block_words(seed, position, stream, quads, BLOCK: tl.constexpr):
    """uint32 words [BLOCK] of the tokens of quads int32 [BLOCK / 4], four after the other."""
    a, b, c, d = quad_words(seed, position, stream, quads)
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [BLOCK])  # [BLOCK / 4, 2, 2] has a, b, c, d in memory order


@triton.jit
def token_words(seed, position, stream, tokens):
    """uint32 words [N] of tokens int32 [N], in any order."""
    a, b, c, d = quad_words(seed, position, stream, tokens // 4)
    word = tokens % 4
    return tl.where(word < 2, tl.where(word == 0, a, b), tl.where(word == 2, c, d))


@triton.jit
def gumbel(words):
    """f32 Gumbel noise of uint32 words. Triton has no log1p: up to u = 1/2 -log1p(-u) is 2 atanh(u / (2 - u)) by its series,
    above, 1 - u is exact and far enough from 1 for an approximate logarithm."""
    u = tl.maximum(tl.random.uint_to_uniform_float(words), _MIN_UNIFORM)
    z = u / (2.0 - u)
    y = z * z
    series = 1 + y * (1 / 3 + y * (1 / 5 + y * (1 / 7 + y * (1 / 9 + y * (1 / 11 + y * (1 / 13 + y * (1 / 15)))))))
    return -tl.log(tl.where(u < 0.5, 2 * z * series, -tl.log(1.0 - u)))


@triton.jit
def block_noise(seed, position, stream, first_token, BLOCK: tl.constexpr):
    """f32 noise [BLOCK] of the tokens first_token, first_token + 1, ...; first_token is a multiple of 4."""
    return gumbel(block_words(seed, position, stream, first_token // 4 + tl.arange(0, BLOCK // 4), BLOCK))


@triton.jit
def token_noise(seed, position, stream, tokens):
    """f32 noise of tokens int32 [N], in any order."""
    return gumbel(token_words(seed, position, stream, tokens))
