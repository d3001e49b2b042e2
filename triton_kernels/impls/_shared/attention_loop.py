"""The loop over keys of the attention kernels: reading the paged cache, and the online softmax.

Scores are kept in base 2 (times log2 e), everything but the two GEMMs is float32. A tile of keys that every row sees takes a
path without masks; the others load only keys that some row sees, because what lies in unused slots may be NaN and 0 * NaN is
NaN. A tile's page numbers are loaded one turn ahead and carried around the loop: loads of keys that waited for a page number
in their own turn would take the pipeline's stages for the wait, and leave none for the keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_rows import FEW_ROWS

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
INT8_TO_HALF = tl.constexpr("""{
.reg .b32 bytes, bias;
xor.b32 bytes, $2, 0x80808080;
mov.b32 bias, 0x64806480;
prmt.b32 $0, bytes, 0x64646464, 0x4140;
prmt.b32 $1, bytes, 0x64646464, 0x4342;
sub.f16x2 $0, $0, bias;
sub.f16x2 $1, $1, bias;
}""")
"""Four bytes to float16, two by one instruction: with 128 added a byte is the end of a float16 of 1024 to 1279, from which 1152
is taken."""


@triton.jit
def _pages(table, start, end, C: tl.constexpr):
    """Page numbers of the tile from position ``start``: one scalar where a page holds the whole tile, else one per key. Nothing
    is read at or past ``end``."""
    if C.PAGE_SIZE % C.BLOCK_N == 0:
        pages = tl.load(table + start // C.PAGE_SIZE, mask=start < end, other=0)
    else:
        keys = start + tl.arange(0, C.BLOCK_N)
        pages = tl.load(table + keys // C.PAGE_SIZE, mask=keys < end, other=0)
    return pages


@triton.jit
def _rows(cache, pages, start, kv_head, OF: tl.constexpr, C: tl.constexpr):
    """Pointers [BLOCK_N] to the tile's keys in a tensor of the cache: the OF-th in the order of STRIDES."""
    if C.PAGE_SIZE % C.BLOCK_N == 0:
        slots = start % C.PAGE_SIZE + tl.arange(0, C.BLOCK_N)
    else:
        slots = (start + tl.arange(0, C.BLOCK_N)) % C.PAGE_SIZE
    cache += kv_head * C.STRIDES[3 * OF + 2]
    return cache + pages.to(tl.int64) * C.STRIDES[3 * OF] + slots * C.STRIDES[3 * OF + 1]


@triton.jit
def _load_tile(
    cache,
    pages,
    start,
    kv_head,
    inside,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OF: tl.constexpr,
    MASKED: tl.constexpr,
    C: tl.constexpr,
):
    """Keys (or values) [BLOCK_N, BLOCK_D] from position ``start``; zero beyond DIM, and where not ``inside`` [BLOCK_N] if
    MASKED."""
    if C.TMA:
        tile = cache.load([pages, start % C.PAGE_SIZE, kv_head, 0]).reshape(C.BLOCK_N, BLOCK_D)
        if MASKED:
            tile = tl.where(inside[:, None], tile, tl.zeros_like(tile))
    else:
        dims = tl.arange(0, BLOCK_D)
        pointers = _rows(cache, pages, start, kv_head, OF, C)[:, None] + dims[None, :]
        if MASKED:
            mask = inside[:, None] if DIM == BLOCK_D else inside[:, None] & (dims < DIM)[None, :]
            tile = tl.load(pointers, mask=mask, other=0.0)
        elif DIM == BLOCK_D:
            tile = tl.load(pointers)
        else:
            tile = tl.load(pointers, mask=(dims < DIM)[None, :], other=0.0)
    return tile


@triton.jit
def _to(tile, dtype: tl.constexpr, PIN: tl.constexpr, C: tl.constexpr):
    """The tile in the dtype of the products.

    PIN: no conversion is moved across code that the compiler does not know. It would move quantized values through shared memory
    and read them byte by byte, 64 times a tile. By way of float32 the conversion to bfloat16 takes fewer instructions.
    """
    if C.PTX and tile.dtype == tl.int8 and dtype == tl.float16:
        numbers = tl.inline_asm_elementwise(INT8_TO_HALF, "=r,=r,r", [tile], dtype=tl.float16, is_pure=not PIN, pack=4)
    else:
        numbers = tile
        if dtype == tl.bfloat16 and tile.dtype != dtype:
            numbers = tile.to(tl.float32)
        numbers = numbers.to(dtype)
        if C.PTX and PIN:
            numbers = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [numbers], dtype=numbers.dtype, is_pure=False, pack=2)
    return numbers


@triton.jit
def _load_scales(scales, pages, start, kv_head, inside, OF: tl.constexpr, MASKED: tl.constexpr, C: tl.constexpr):
    """Scales [BLOCK_N] of a tile; 1 where not ``inside`` if MASKED."""
    rows = _rows(scales, pages, start, kv_head, OF, C)
    return tl.load(rows, mask=inside if MASKED else None, other=1.0 if MASKED else None)


@triton.jit
def _split_scales(scales):
    """(log2 of a power of two, its inverse, the rest in [1, 2)) of positive scales, exactly; a scale below 2^-80 counts as
    2^-80."""
    bits = tl.maximum(scales.to(tl.int32, bitcast=True), 0x17800000)
    power = bits & 0x7F800000
    rest = (bits & 0x007FFFFF) | 0x3F800000
    log2 = ((power >> 23) - 127).to(tl.float32)
    return log2, (0x7F000000 - power).to(tl.float32, bitcast=True), rest.to(tl.float32, bitcast=True)


@triton.jit
def _to_bfloat16(x):
    """Rounded to nearest, as float32 (Triton's interpreter cuts bits off); x is not negative."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _weights(
    scores,
    row,
    peak,
    total,
    start,
    low,
    high,
    softcap,
    window,
    v_scale,
    FLOAT16: tl.constexpr,
    BIASED: tl.constexpr,
    MASKED: tl.constexpr,
    C: tl.constexpr,
):
    """The online softmax of one tile of scores: (weights, factor of what was summed before, new maximum, new sum).

    v_scale   [BLOCK_N] or None: scales of quantized values, by which weights are multiplied. For float16, powers of two join the
              exponent, so that the products stay below 2; the sum takes them out again.
    """
    _, factor, position, slope = row
    keys = start + tl.arange(0, C.BLOCK_N)
    factor *= LOG2E  # left for last, where it joins the subtraction of the maximum in one instruction
    if C.HAS_SOFTCAP:
        bent = 1.0 - 2.0 / (1.0 + tl.exp2(scores * (factor * (2.0 / softcap))[:, None]))  # tanh
        scores = bent * (softcap * LOG2E)
        factor = tl.full(factor.shape, 1.0, tl.float32)
    if BIASED:
        if C.DISTANCES > 0:
            distance = tl.minimum(tl.maximum(position[:, None] - keys[None, :], 0), C.DISTANCES - 1)
            scores = scores * factor[:, None] + tl.load(slope[:, None] + distance) * LOG2E
        elif C.ALIBI_SCALE > 0:
            of_keys = _to_bfloat16(slope[:, None] * _to_bfloat16(keys.to(tl.float32))[None, :])
            of_row = _to_bfloat16(slope * _to_bfloat16(position.to(tl.float32)))
            scores = scores * factor[:, None] + (of_keys - of_row[:, None]) * (C.ALIBI_SCALE * LOG2E)
        else:
            scores = scores * factor[:, None] + (slope * LOG2E)[:, None] * (keys[None, :] - position[:, None]).to(tl.float32)
        factor = tl.full(factor.shape, 1.0, tl.float32)
    if v_scale is not None and FLOAT16:
        log2, inverse, rest = _split_scales(v_scale)
        scores = scores * factor[:, None] + log2[None, :]
        factor = tl.full(factor.shape, 1.0, tl.float32)
    if MASKED:
        visible = ((keys >= low) & (keys < high))[None, :]
        if C.CAUSAL:
            visible = visible & (keys[None, :] <= position[:, None])
        if C.HAS_WINDOW:
            visible = visible & (position[:, None] - keys[None, :] < window)
            if not C.CAUSAL:
                visible = visible & (keys[None, :] - position[:, None] < window)
        scores = tl.where(visible, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1) * factor)
    base = new_peak
    if MASKED:  # a row that has seen nothing yet must not compute -inf - -inf
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(scores * factor[:, None] - base[:, None])
    shrink = tl.exp2(peak - base)
    if v_scale is not None and FLOAT16:
        added = tl.sum(weights * inverse[None, :], 1)
        weights *= rest[None, :]
    else:
        added = tl.sum(weights, 1)
        if v_scale is not None:
            weights *= v_scale[None, :]
    return weights, shrink, new_peak, total * shrink + added


@triton.jit
def _step(
    state, rows, kv, pages, kv_head, start, low, high, softcap, window, BIASED: tl.constexpr, MASKED: tl.constexpr, C: tl.constexpr
):
    """One tile of keys, read once, into the (accumulator, maximum, sum) of every block of rows."""
    k_cache, v_cache, k_scales, v_scales = kv
    dtype: tl.constexpr = rows[0][0][0].dtype
    # Of a box the scores of unused keys are masked, which is enough unless it is their values' too.
    MASK_K: tl.constexpr = MASKED and (not C.TMA or C.SHARED)
    keys = start + tl.arange(0, C.BLOCK_N)
    inside = (keys >= low) & (keys < high)
    k = _load_tile(k_cache, pages, start, kv_head, inside, C.DK, C.BLOCK_DK, 0, MASK_K, C)
    if C.REST > 0:
        k_rest = _load_tile(k_cache + C.DK, pages, start, kv_head, inside, C.REST, C.BLOCK_REST, 0, MASK_K, C)
    if k_scales is not None:
        k_scale = _load_scales(k_scales, pages, start, kv_head, inside, 2, MASKED, C)
    v_scale = None
    if v_scales is not None:
        v_scale = _load_scales(v_scales, pages, start, kv_head, inside, 3, MASKED, C)
    BLOCKS: tl.constexpr = C.ROW_BLOCKS
    weighted: tl.tuple = ()
    for b in tl.static_range(BLOCKS):
        scores = tl.dot(rows[b][0][0], tl.trans(_to(k, dtype, False, C)), input_precision="ieee")
        if C.REST > 0:
            scores = tl.dot(rows[b][0][1], tl.trans(_to(k_rest, dtype, False, C)), scores, input_precision="ieee")
        if k_scales is not None:
            scores *= k_scale[None, :]
        weighted += (
            _weights(
                scores,
                rows[b],
                state[b][1],
                state[b][2],
                start,
                low,
                high,
                softcap,
                window,
                v_scale,
                dtype == tl.float16,
                BIASED,
                MASKED,
                C,
            ),
        )
    if C.SHARED:
        v = _to(k, dtype, False, C)
    else:
        v = _to(_load_tile(v_cache, pages, start, kv_head, inside, C.DV, C.BLOCK_DV, 1, MASKED, C), dtype, C.BLOCK_M < FEW_ROWS, C)
    new: tl.tuple = ()
    for b in tl.static_range(BLOCKS):
        weights, shrink, peak, total = weighted[b]
        new += ((tl.dot(weights.to(dtype), v, state[b][0] * shrink[:, None], input_precision="ieee"), peak, total),)
    return new


@triton.jit
def attend(
    rows,
    sinks,
    kv,
    table,
    kv_head,
    begin,
    end,
    full_begin,
    full_end,
    low,
    high,
    softcap,
    window,
    BIASED: tl.constexpr,
    C: tl.constexpr,
):
    """Attention of ROW_BLOCKS blocks of rows (``load_rows``) over the keys [begin, end): per block (accumulator / sum, base-2
    log of the sum).

    begin, full_begin and full_end are multiples of BLOCK_N; [full_begin, full_end) needs no masks. ``sinks``: per block one more
    logit per row (-inf for none). Rows that see nothing give 0 and -inf.
    """
    BLOCKS: tl.constexpr = C.ROW_BLOCKS  # Triton 3.6 takes fields of C for numbers, which it does not allow here
    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_DV: tl.constexpr = C.BLOCK_DV
    state: tl.tuple = ()
    for b in tl.static_range(BLOCKS):
        total = tl.where(sinks[b] == float("-inf"), 0.0, 1.0)
        state += ((tl.zeros((BLOCK_M, BLOCK_DV), tl.float32), sinks[b] * LOG2E, total),)
    full_begin = tl.minimum(tl.maximum(full_begin, begin), tl.cdiv(end, C.BLOCK_N) * C.BLOCK_N)
    full_end = tl.maximum(tl.minimum(full_end, end // C.BLOCK_N * C.BLOCK_N), full_begin)
    # Column numbers and descriptors are computed anew for every tile: hoisted, they would take registers that the accumulator
    # of wide heads needs, and more programs fit without.
    pages = _pages(table, full_begin, full_end, C)
    for start in tl.range(full_begin, full_end, C.BLOCK_N, disable_licm=True):
        next_pages = _pages(table, start + C.BLOCK_N, full_end, C)
        state = _step(state, rows, kv, pages, kv_head, start, low, high, softcap, window, BIASED, False, C)
        pages = next_pages
    num_before = (full_begin - begin) // C.BLOCK_N
    num_tiles = num_before + tl.cdiv(end - full_end, C.BLOCK_N)
    skipped = full_end - full_begin
    pages = _pages(table, begin + tl.where(num_before > 0, 0, skipped), end, C)
    for i in tl.range(0, num_tiles, disable_licm=True):
        start = begin + i * C.BLOCK_N + tl.where(i < num_before, 0, skipped)
        next_start = begin + (i + 1) * C.BLOCK_N + tl.where(i + 1 < num_before, 0, skipped)
        next_pages = _pages(table, next_start, end, C)
        state = _step(state, rows, kv, pages, kv_head, start, low, high, softcap, window, BIASED, True, C)
        pages = next_pages
    results: tl.tuple = ()
    for b in tl.static_range(BLOCKS):
        acc, peak, total = state[b]
        empty = total == 0.0
        log_sum = tl.where(empty, float("-inf"), peak + tl.log2(tl.where(empty, 1.0, total)))
        results += ((acc / tl.where(empty, 1.0, total)[:, None], log_sum),)
    return results
