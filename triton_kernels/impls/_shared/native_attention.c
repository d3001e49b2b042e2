/* Attention over a paged KV cache for a CPU: small matrix products of few query rows, for which a BLAS is mostly overhead.

   Compiled for one element type and head size: -DBF16=0|1 -DDIM=... -DVALUE_DIM=... A work item is a block of queries of one
   request and KV head: every key and value that is loaded serves all query heads of the group. Keys are taken CHUNK at a
   time, always from the first and always all CHUNK of them, the missing ones with weight 0: a row's bits depend on its own
   query and keys only. Scores, weights and sums are float32, on the stack. */
#include <math.h>
#include <stdint.h>

enum { CHUNK = 128, QUERIES = 8, AHEAD = 8 };

#if BF16
typedef uint16_t element;
static inline float widen(element x) {
    union { uint32_t bits; float value; } u = {(uint32_t)x << 16};
    return u.value;
}
static inline element narrow(float x) { /* to nearest even */
    union { float value; uint32_t bits; } u = {x};
    return (element)((u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16);
}
#else
typedef float element;
static inline float widen(element x) { return x; }
static inline element narrow(float x) { return x; }
#endif

/* exp(x) for x <= 0, in operations that vectorize. Polynomial: Cephes, expf. */
static inline float exponential(float x) {
    const float n = __builtin_rintf(x * 1.44269504f), f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    union { int32_t bits; float value; } power = {((int32_t)(x < -87.0f ? 0.0f : n) + 127) << 23};
    return x < -87.0f ? 0.0f : (p * f * f + f + 1.0f) * power.value;
}

/* Strides are in elements; sinks, alibi and lse may be null; no window: a huge one; no soft cap: 0. */
struct call {
    const element *q, *k, *v;
    element *out;
    const int32_t *cu_q, *seq_lens, *block_table;
    const float *sinks, *alibi;
    float *lse;
    int64_t q_row, q_head, k_page, k_slot, k_head, v_page, v_slot, v_head, table_row;
    int64_t num_reqs, num_heads, num_kv_heads, page_size, num_blocks, causal, window;
    float scale, softcap;
};

static void attend(const struct call *c, int64_t req, int64_t kv_head, int64_t block) {
    const int64_t begin = c->cu_q[req] + block * QUERIES, end = c->cu_q[req + 1];
    const int64_t num_queries = end - begin < QUERIES ? end - begin : QUERIES;
    if (num_queries <= 0) return;
    const int64_t group = c->num_heads / c->num_kv_heads, rows = group * num_queries, length = c->seq_lens[req];
    const int64_t position = length - (end - begin); /* of the block's first query */
    const int64_t stop = c->causal && position + num_queries < length ? position + num_queries : length;
    const int64_t unseen = length && position >= c->window ? position - c->window + 1 : 0;
    const int32_t *pages = c->block_table + req * c->table_row;
    float query[rows][DIM], sum[rows][VALUE_DIM], score[rows][CHUNK], top[rows], total[rows];
    for (int64_t r = 0; r < rows; r++) {
        const element *q = c->q + (begin + r / group) * c->q_row + (kv_head * group + r % group) * c->q_head;
        for (int d = 0; d < DIM; d++) query[r][d] = widen(q[d]) * c->scale;
        for (int d = 0; d < VALUE_DIM; d++) sum[r][d] = 0;
        top[r] = -INFINITY;
        total[r] = 0;
    }
    for (int64_t start = unseen / CHUNK * CHUNK; start < stop; start += CHUNK) {
        const int64_t count = stop - start < CHUNK ? stop - start : CHUNK;
        for (int64_t j = 0; j < count; j++) {
            const int64_t page = pages[(start + j) / c->page_size], slot = (start + j) % c->page_size;
            const element *k = c->k + page * c->k_page + slot * c->k_slot + kv_head * c->k_head;
            const element *v = c->v + page * c->v_page + slot * c->v_slot + kv_head * c->v_head;
            for (int d = 0; d < DIM; d += 64 / sizeof(element)) __builtin_prefetch(k + AHEAD * c->k_slot + d);
            for (int d = 0; d < VALUE_DIM; d += 64 / sizeof(element)) __builtin_prefetch(v + d);
            float wide[DIM];
            for (int d = 0; d < DIM; d++) wide[d] = widen(k[d]);
            for (int64_t r = 0; r < rows; r++) {
                float dot = 0;
                for (int d = 0; d < DIM; d++) dot += query[r][d] * wide[d];
                score[r][j] = dot;
            }
        }
        for (int64_t r = 0; r < rows; r++) {
            const int64_t here = position + r / group;
            int64_t first = here - c->window + 1 - start, last = (c->causal ? here + 1 : length) - start;
            if (first < 0) first = 0;
            if (last > count) last = count;
            if (c->softcap > 0)
                for (int64_t j = 0; j < count; j++) {
                    const float x = score[r][j] / c->softcap, e = exponential(-2 * fabsf(x));
                    score[r][j] = copysignf(c->softcap * (1 - e) / (1 + e), x);
                }
            if (c->alibi)
                for (int64_t j = 0; j < count; j++)
                    score[r][j] += c->alibi[kv_head * group + r % group] * (float)(start + j - here);
            for (int64_t j = 0; j < CHUNK; j++) score[r][j] = j >= first && j < last ? score[r][j] : -INFINITY;

            float best = top[r], part = 0;
            for (int64_t j = 0; j < CHUNK; j++) best = score[r][j] > best ? score[r][j] : best;
            if (best == -INFINITY) { /* nothing visible so far */
                for (int64_t j = 0; j < CHUNK; j++) score[r][j] = 0;
                continue;
            }
            for (int64_t j = 0; j < CHUNK; j++) {
                score[r][j] = exponential(score[r][j] - best);
                part += score[r][j];
            }
            const float shrink = exponential(top[r] - best);
            total[r] = total[r] * shrink + part;
            top[r] = best;
            for (int d = 0; d < VALUE_DIM; d++) sum[r][d] *= shrink;
        }
        for (int64_t j = 0; j < count; j++) {
            const int64_t page = pages[(start + j) / c->page_size], slot = (start + j) % c->page_size;
            const element *v = c->v + page * c->v_page + slot * c->v_slot + kv_head * c->v_head;
            float wide[VALUE_DIM];
            for (int d = 0; d < VALUE_DIM; d++) wide[d] = widen(v[d]);
            for (int64_t r = 0; r < rows; r++)
                for (int d = 0; d < VALUE_DIM; d++) sum[r][d] += score[r][j] * wide[d];
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

void attention(const struct call *c) {
#pragma omp parallel for collapse(3) schedule(dynamic, 1)
    for (int64_t req = 0; req < c->num_reqs; req++)
        for (int64_t block = 0; block < c->num_blocks; block++)
            for (int64_t kv_head = 0; kv_head < c->num_kv_heads; kv_head++) attend(c, req, kv_head, block);
}
