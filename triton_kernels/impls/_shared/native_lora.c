/* lora_shrink and lora_expand for a CPU: each row by itself with the adapter that its index names, so that its bits do not depend on
   other rows. Both read an adapter where its slot lies, since slots are written while the engine runs: nothing is packed. Rows of
   one adapter find it in the caches. */
#include "native.h"

enum { RANKS = 4, TOKENS = 16, COLUMNS = 64 }; /* of a thread's piece of work */

struct lora_shrink {
    const element *x, *a;
    const float *scale;
    const int32_t *index;
    float *out;
    int64_t num_rows, features, ranks, x_row;
};

/* sums[i] = x . a[i], of RANKS rows of A: x is loaded once for all of them. */
static inline void products(const element *restrict x, const element *restrict a, int64_t features, float *sums) {
    const element *restrict b = a + features, *restrict c = b + features, *restrict d = c + features;
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (int64_t k = 0; k < features; k++) {
        const float value = widen(x[k]);
        s0 += value * widen(a[k]);
        s1 += value * widen(b[k]);
        s2 += value * widen(c[k]);
        s3 += value * widen(d[k]);
    }
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}

static inline float product(const element *restrict x, const element *restrict a, int64_t features) {
    float sum = 0;
    for (int64_t k = 0; k < features; k++) sum += widen(x[k]) * widen(a[k]);
    return sum;
}

void lora_shrink(const struct lora_shrink *c) {
    const int64_t pieces = (c->ranks + RANKS - 1) / RANKS, chunks = (c->num_rows + TOKENS - 1) / TOKENS;
#pragma omp for collapse(2) schedule(static)
    for (int64_t m = 0; m < chunks; m++)
        for (int64_t p = 0; p < pieces; p++) {
            const int64_t first = p * RANKS, left = c->ranks - first < RANKS ? c->ranks - first : RANKS;
            for (int64_t t = m * TOKENS; t < c->num_rows && t < (m + 1) * TOKENS; t++) {
                float *out = c->out + t * c->ranks + first, sums[RANKS];
                const int64_t slot = c->index[t], row = slot * c->ranks + first;
                if (slot < 0) {
                    memset(out, 0, (size_t)left * sizeof(float));
                    continue;
                }
                const element *x = c->x + t * c->x_row, *a = c->a + row * c->features;
                if (left == RANKS) products(x, a, c->features, sums);
                else for (int64_t i = 0; i < left; i++) sums[i] = product(x, a + i * c->features, c->features);
                for (int64_t i = 0; i < left; i++) out[i] = sums[i] * c->scale[row + i];
            }
        }
}

struct lora_expand {
    void *y; /* float where `wide`, else element */
    const float *shrunk;
    const element *b;
    const int32_t *index;
    const int64_t *ends; /* of the slices' columns */
    int64_t num_rows, num_columns, rank, y_row, shrunk_row, wide;
};

void lora_expand(const struct lora_expand *c) {
    const int64_t chunks = (c->num_columns + COLUMNS - 1) / COLUMNS, rank = c->rank;
#pragma omp for schedule(static)
    for (int64_t p = 0; p < chunks; p++) {
        const int64_t end = (p + 1) * COLUMNS < c->num_columns ? (p + 1) * COLUMNS : c->num_columns;
        for (int64_t t = 0; t < c->num_rows; t++) {
            if (c->index[t] < 0) continue;
            const element *b = c->b + (c->index[t] * c->num_columns + p * COLUMNS) * rank;
            int64_t slice = 0;
            for (int64_t n = p * COLUMNS; n < end; n++, b += rank) {
                while (n >= c->ends[slice]) slice++;
                const float *restrict x = c->shrunk + t * c->shrunk_row + slice * rank;
                float sum = 0;
                for (int64_t r = 0; r < rank; r++) sum += x[r] * widen(b[r]);
                if (c->wide) ((float *)c->y)[t * c->y_row + n] += sum;
                else {
                    element *y = (element *)c->y + t * c->y_row + n;
                    *y = narrow(widen(*y) + sum);
                }
            }
        }
    }
}
