/* Attention over a paged KV cache for a CPU: small matrix products of few query rows, for which a BLAS is mostly overhead.

   Compiled for one head size: -DDIM=... -DVALUE_DIM=... A work item is a block of QUERIES queries of one request and KV head: all query
   heads of the group. Keys are taken CHUNK at a time, always from the first; of a chunk, ROWS rows at a time keep what they sum in
   registers. Scores, weights and sums are float32, of every row in the same order whatever rows are beside it: a row's bits depend
   on its own query and keys only. */
#include "native_lanes.h"

#if BF16 && defined(__AVX512BF16__)
#define PAIRS 1 /* an instruction multiplies pairs of bfloat16; the scale comes after */
typedef element query_element;
#else
#define PAIRS 0
typedef float query_element; /* scaled */
#endif
enum { CHUNK = 128, ROWS = 4, AHEAD = 16, STEP = PAIRS ? 2 * LANES : LANES };
enum { VECTORS = (DIM + STEP - 1) / STEP, VALUE_VECTORS = (VALUE_DIM + LANES - 1) / LANES };

/* Elements LANES * v and on of a vector of `dim`, 0 behind its end. */
static inline __attribute__((always_inline)) lanes load(const element *x, int v, int dim) {
    typedef element narrow_lanes __attribute__((vector_size(LANES * sizeof(element)), aligned(sizeof(element))));
    const int count = dim - v * LANES;
    narrow_lanes part = {0};
    if (count >= LANES) part = *(const narrow_lanes *)(x + v * LANES);
    else memcpy(&part, x + v * LANES, sizeof(element) * (size_t)count);
#if BF16
    typedef uint32_t words __attribute__((vector_size(64)));
    return (lanes)(__builtin_convertvector(part, words) << 16);
#else
    return part;
#endif
}

/* Strides are in elements; sinks, alibi and lse may be null; no window: a huge one; no soft cap: 0; ALiBi that is not rounded: an
   alibi_scale of 0. position_bias: [num_heads, num_distances], or null. */
struct attention {
    const element *q, *k, *v;
    element *out;
    const int32_t *cu_q, *seq_lens, *block_table;
    const float *sinks, *alibi, *position_bias;
    float *lse;
    int64_t q_row, q_head, k_page, k_slot, k_head, v_page, v_slot, v_head, table_row;
    int64_t num_tokens, num_reqs, num_heads, num_kv_heads, page_size, num_blocks, causal, window, num_distances;
    float scale, softcap, alibi_scale;
};

struct rows { /* of one work item; position: of the first query */
    const struct attention *call;
    int64_t kv_head, group, length, position;
    query_element (*query)[VECTORS * STEP];
    float (*sum)[VALUE_VECTORS * LANES], *top, *total;
};

/* Sums of the lanes of part[0 .. rows * block), to score[row][j .. j + block). part[place_of(i)]: of row i / block. */
#if defined(__AVX512F__)
#define BLOCK(rows) ((rows) == 1 ? LANES : (rows) == 2 ? LANES / 2 : LANES / 4)
static inline __attribute__((always_inline)) void store_sums(int rows, const lanes *part, float scale, float (*score)[CHUNK],
                                                             int64_t j) {
    const lanes sums = sums_of(part) * scale;
    for (int r = 0; r < rows; r++) memcpy(score[r] + j, (const float *)&sums + r * BLOCK(rows), BLOCK(rows) * sizeof(float));
}
#else
#define BLOCK(rows) 1 /* more sums than there are registers for */
static inline __attribute__((always_inline)) void store_sums(int rows, const lanes *part, float scale, float (*score)[CHUNK],
                                                             int64_t j) {
    for (int r = 0; r < rows; r++) score[r][j] = sum_of(part[r]) * scale;
}
#endif

#if PAIRS
/* Elements STEP * v and on of a vector, 0 behind its end. */
static inline __attribute__((always_inline)) __m512i load_key(const element *x, int v) {
    const int count = DIM - v * STEP;
    __m512i part = _mm512_setzero_si512();
    memcpy(&part, x + v * STEP, sizeof(element) * (size_t)(count < STEP ? count : STEP));
    return part;
}
static inline __attribute__((always_inline)) lanes multiply_add(lanes sum, const query_element *query, __m512i key) {
    return (lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(query), (__m512bh)key);
}
typedef __m512i key_lanes;
#else
static inline __attribute__((always_inline)) lanes load_key(const element *x, int v) { return load(x, v, DIM); }
static inline __attribute__((always_inline)) lanes multiply_add(lanes sum, const query_element *query, lanes key) {
    return sum + *(const lanes *)query * key;
}
typedef lanes key_lanes;
#endif

/* score[rows][j] = query . key, for `count` keys and those that make whole blocks of them. A block is so many keys that the sums of
   all rows are added up at once. */
static inline __attribute__((always_inline)) void multiply_keys(int rows, query_element (*query)[VECTORS * STEP], float scale,
                                                                const element *const *keys, int64_t count,
                                                                float (*score)[CHUNK]) {
    enum { MOST = BLOCK(1) > ROWS ? BLOCK(1) : ROWS };
    const int block = BLOCK(rows);
    for (int64_t j = 0; j < count; j += block) {
        lanes parts[MOST] = {0};
#pragma GCC unroll 16
        for (int b = 0; b < block; b++) {
            for (int d = 0; d < DIM; d += 64 / (int)sizeof(element)) __builtin_prefetch(keys[j + b + AHEAD] + d);
            for (int v = 0; v < VECTORS; v++) {
                const key_lanes key = load_key(keys[j + b], v);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) {
                    const int place = place_of(r * block + b);
                    parts[place] = multiply_add(parts[place], query[r] + v * STEP, key);
                }
            }
        }
        store_sums(rows, parts, PAIRS ? scale : 1.0f, score, j);
    }
}

/* sum[rows] += weight . values */
static inline __attribute__((always_inline)) void add_values(int rows, float (*weight)[CHUNK], const element *const *values,
                                                             int64_t count, float (*sum)[VALUE_VECTORS * LANES]) {
    enum { TOGETHER = 4 }; /* vectors: ROWS times as many sums stay in registers */
    for (int first = 0; first < VALUE_VECTORS; first += TOGETHER) {
        lanes sums[ROWS][TOGETHER];
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < TOGETHER && first + v < VALUE_VECTORS; v++) sums[r][v] = *(lanes *)(sum[r] + (first + v) * LANES);
        for (int64_t j = 0; j < count; j++)
            for (int v = 0; v < TOGETHER && first + v < VALUE_VECTORS; v++) {
                const lanes value = load(values[j], first + v, VALUE_DIM);
                for (int r = 0; r < rows; r++) sums[r][v] += weight[r][j] * value;
            }
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < TOGETHER && first + v < VALUE_VECTORS; v++) *(lanes *)(sum[r] + (first + v) * LANES) = sums[r][v];
    }
}

/* To bfloat16, of a number that is not negative. */
static inline float to_bfloat16(float x) {
    union { float value; uint32_t bits; } u = {x};
    u.bits = (u.bits + 0x7fff + ((u.bits >> 16) & 1)) & 0xffff0000u;
    return u.value;
}

/* Scores of `count` keys from `start` on -> weights, and their sum and the largest score into the running ones of row r. Returns
   whether the row sees any. */
static int weigh(const struct rows *w, int64_t r, float *score, int64_t start, int64_t count) {
    const struct attention *c = w->call;
    const int64_t here = w->position + r / w->group, padded = (count + LANES - 1) / LANES * LANES;
    int64_t first = here - c->window + 1 - start, last = (c->causal ? here + 1 : here + c->window) - start;
    if (first < 0) first = 0;
    if (last > count) last = count;
    if (c->softcap > 0)
        for (int64_t j = 0; j < count; j++) {
            const float x = score[j] / c->softcap, e = exponential(-2 * fabsf(x));
            score[j] = copysignf(c->softcap * (1 - e) / (1 + e), x);
        }
    if (c->alibi) {
        const float slope = c->alibi[w->kv_head * w->group + r % w->group];
        const float of_row = to_bfloat16(slope * to_bfloat16((float)here));
        for (int64_t j = 0; j < count; j++)
            score[j] += c->alibi_scale > 0
                            ? c->alibi_scale * (to_bfloat16(slope * to_bfloat16((float)(start + j))) - of_row)
                            : slope * (float)(start + j - here);
    }
    if (c->position_bias) {
        const int64_t most = c->num_distances - 1;
        const float *bias = c->position_bias + (w->kv_head * w->group + r % w->group) * c->num_distances;
        for (int64_t j = 0; j < count; j++) {
            const int64_t distance = here - (start + j);
            score[j] += bias[distance < 0 ? 0 : distance < most ? distance : most];
        }
    }
    for (int64_t j = 0; j < padded; j++) score[j] = j >= first && j < last ? score[j] : -INFINITY;

    float best = w->top[r];
    for (int64_t j = 0; j < padded; j++) best = score[j] > best ? score[j] : best;
    if (best == -INFINITY) return 0; /* nothing visible so far */
    for (int64_t j = 0; j < padded; j++) score[j] = exponential(score[j] - best);
    lanes part = {0};
    for (int64_t j = 0; j < padded; j += LANES) part += *(lanes *)(score + j);
    const float shrink = exponential(w->top[r] - best);
    w->total[r] = w->total[r] * shrink + sum_of(part);
    w->top[r] = best;
    for (int d = 0; d < VALUE_DIM; d++) w->sum[r][d] *= shrink;
    return 1;
}

static inline __attribute__((always_inline)) void some_rows(int rows, const struct rows *w, int64_t r, const element *const *keys,
                                                            const element *const *values, int64_t start, int64_t count) {
    float score[ROWS][CHUNK];
    multiply_keys(rows, w->query + r, w->call->scale, keys, count, score);
    for (int i = 0; i < rows; i++)
        if (!weigh(w, r + i, score[i], start, count)) memset(score[i], 0, sizeof score[i]);
    add_values(rows, score, values, count, w->sum + r);
}

static void attend(const struct attention *c, int64_t req, int64_t kv_head, int64_t block) {
    const int64_t begin = c->cu_q[req] + block * QUERIES, end = c->cu_q[req + 1];
    const int64_t num_queries = end - begin < QUERIES ? end - begin : QUERIES;
    if (num_queries <= 0) return;
    const int64_t group = c->num_heads / c->num_kv_heads, rows = group * num_queries, length = c->seq_lens[req];
    const int64_t position = length - (end - begin); /* of the block's first query */
    const int64_t sees = position + num_queries - 1 + (c->causal ? 1 : c->window); /* of the last query, up to there */
    const int64_t stop = sees < length ? sees : length;
    const int64_t unseen = length && position >= c->window ? position - c->window + 1 : 0;
    const int32_t *pages = c->block_table + req * c->table_row;
    query_element query[rows][VECTORS * STEP];
    float sum[rows][VALUE_VECTORS * LANES], top[rows], total[rows];
    const struct rows w = {c, kv_head, group, length, position, query, sum, top, total};
    memset(query, 0, sizeof query);
    memset(sum, 0, sizeof sum);
    for (int64_t r = 0; r < rows; r++) {
        const element *q = c->q + (begin + r / group) * c->q_row + (kv_head * group + r % group) * c->q_head;
        for (int d = 0; d < DIM; d++) query[r][d] = PAIRS ? q[d] : widen(q[d]) * c->scale;
        top[r] = -INFINITY;
        total[r] = 0;
    }
    for (int64_t start = unseen / CHUNK * CHUNK; start < stop; start += CHUNK) {
        const int64_t count = stop - start < CHUNK ? stop - start : CHUNK;
        const element *keys[CHUNK + LANES + AHEAD], *values[CHUNK];
        int64_t page = start / c->page_size, slot = start % c->page_size;
        for (int64_t j = 0; j < count; j++, slot++) {
            if (slot == c->page_size) page++, slot = 0;
            keys[j] = c->k + pages[page] * c->k_page + slot * c->k_slot + kv_head * c->k_head;
            values[j] = c->v + pages[page] * c->v_page + slot * c->v_slot + kv_head * c->v_head;
            for (int d = 0; d < VALUE_DIM; d += 64 / (int)sizeof(element)) __builtin_prefetch(values[j] + d);
        }
        for (int64_t j = count; j < count + LANES + AHEAD; j++) keys[j] = keys[count - 1];
        for (int64_t j = unseen - start - 1; j >= 0; j--) { /* gone from the window: their pages are another's */
            keys[j] = keys[j + 1];
            values[j] = values[j + 1];
        }
        int64_t r = 0;
        for (; r + ROWS <= rows; r += ROWS) some_rows(ROWS, &w, r, keys, values, start, count);
        switch (rows - r) {
        case 1: some_rows(1, &w, r, keys, values, start, count); break;
        case 2: some_rows(2, &w, r, keys, values, start, count); break;
        case 3: some_rows(3, &w, r, keys, values, start, count); break;
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        const int64_t head = kv_head * group + r % group, place = (begin + r / group) * c->num_heads + head;
        if (length && c->sinks) {
            const float best = top[r] > c->sinks[head] ? top[r] : c->sinks[head], shrink = exponential(top[r] - best);
            total[r] = total[r] * shrink + exponential(c->sinks[head] - best);
            top[r] = best;
            for (int d = 0; d < VALUE_DIM; d++) sum[r][d] *= shrink;
        }
        for (int d = 0; d < VALUE_DIM; d++) c->out[place * VALUE_DIM + d] = narrow(length ? sum[r][d] / total[r] : 0);
        if (c->lse) c->lse[place] = length ? top[r] + logf(total[r]) : -INFINITY;
    }
}

void attention(const struct attention *c) {
#pragma omp for collapse(3) schedule(dynamic, 2) /* neighbours: heads that lie beside each other in memory */
    for (int64_t req = 0; req < c->num_reqs; req++)
        for (int64_t block = 0; block < c->num_blocks; block++)
            for (int64_t kv_head = 0; kv_head < c->num_kv_heads; kv_head++) attend(c, req, kv_head, block);
#pragma omp for
    for (int64_t t = c->cu_q[c->num_reqs]; t < c->num_tokens; t++) { /* nobody's: 0 by contract */
        memset(c->out + t * c->num_heads * VALUE_DIM, 0, sizeof(element) * (size_t)c->num_heads * VALUE_DIM);
        for (int64_t h = 0; c->lse && h < c->num_heads; h++) c->lse[t * c->num_heads + h] = -INFINITY;
    }
}
