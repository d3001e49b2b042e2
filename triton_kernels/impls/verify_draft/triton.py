"""Draft verification in four kernels, which read every logit once and one row per request a second time.
Scan, grid (rows, blocks of the vocabulary): a program keeps ``block`` scores in registers and leaves their best, its token,
and the sum of exponentials. Accept, grid (requests): walks the request's rows in order, joins their blocks, tests the draft
(greedy: is it the best token; else u q(x) < p(x)), and stops at the first failure; a greedy request is finished there.
Draw, grid (requests, blocks), only for requests that sample: the rejected draft's row or the bonus row is read again, with
the draft's distribution where there is one, and each block leaves its best noisy token, of what p has more than q and, should
rounding have left nothing of that, of p. Choose, grid (requests): the best of the blocks. How many rows a request ends up
with never reaches the host. Noise is computed for one row per request, not for all.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from ...rng import STREAM_ACCEPT, STREAM_RECOVERED, STREAM_TARGET
from .._philox import block_noise, quad_words

_ACCEPT, _RECOVERED, _TARGET = tl.constexpr(STREAM_ACCEPT), tl.constexpr(STREAM_RECOVERED), tl.constexpr(STREAM_TARGET)


@triton.jit
def _scores(logits_ptr, tokens, num_tokens, temperature):
    scores = tl.load(logits_ptr + tokens, mask=tokens < num_tokens, other=float("-inf")).to(tl.float32)
    return tl.div_rn(scores, tl.where(temperature == 0, 1.0, temperature))


@triton.jit(do_not_specialize=["num_rows", "num_reqs"])
def _owner_kernel(cu_rows_ptr, row_to_slot_ptr, row_slot_ptr, tokens_ptr, num_rows, num_reqs, BLOCK: tl.constexpr):
    pass


@triton.jit
def _scan_kernel(
    logits_ptr, row_slot_ptr, temperature_ptr, best_ptr, token_ptr, mass_ptr, num_tokens, logits_stride, BLOCK: tl.constexpr
):
    pass
