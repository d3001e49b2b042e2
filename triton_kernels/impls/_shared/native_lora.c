/* lora_shrink and lora_expand for a CPU: each row with the adapter that its index names, and with bits that do not depend on other
   rows. Both read an adapter where its slot lies, since slots are written while the engine runs: nothing is packed. Ranks that an
   adapter has not, and slots hold zeros for, are passed over: those with a scale of 0, and those that shrinking left at 0. */
#include "native_lanes.h"

enum { RANKS = 4, COLUMNS = 64, TOKENS = 256 }; /* of a thread's piece of work */
#if defined(__AVX512F__)
enum { ROWS = 4 }; /* that keep their sums in registers */
#else
enum { ROWS = 1 };
#endif

/* STEP elements, zeros behind the first `count`. */
#define INLINE static inline __attribute__((always_inline))
#if BF16 && defined(__AVX512BF16__) && defined(__AVX512BW__)
enum { STEP = 2 * LANES }; /* an instruction multiplies pairs */
typedef __m512i part;
INLINE uint32_t first(int64_t count) { return count < STEP ? (1u << count) - 1 : ~0u; }
INLINE part load(const element *x, int64_t count) { return _mm512_maskz_loadu_epi16(first(count), x); }
INLINE part load_floats(const float *x, int64_t count) {
    const __m512 low = _mm512_maskz_loadu_ps((__mmask16)first(count), x);
    const __m512 high = _mm512_maskz_loadu_ps((__mmask16)(first(count) >> LANES), x + LANES);
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}
INLINE lanes multiply_add(lanes sum, part x, part y) { return (lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y); }
#else
enum { STEP = LANES };
typedef lanes part;
INLINE part load(const element *x, int64_t count) {
    element found[LANES] = {0};
    if (count < LANES) memcpy(found, x, (size_t)count * sizeof(element));
    return widen_lanes(count < LANES ? found : x);
}
INLINE part load_floats(const float *x, int64_t count) {
    float found[LANES] = {0};
    if (count < LANES) memcpy(found, x, (size_t)count * sizeof(float));
    return *(const lanes *)(count < LANES ? found : x);
}
INLINE lanes multiply_add(lanes sum, part x, part y) { return sum + x * y; }
#endif

static inline int is_zero(const float *x, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (x[i] != 0) return 0;
    return 1;
}

struct lora_shrink {
    const element *x, *a;
    const float *scale;
    const int32_t *index;
    float *out;
    int64_t num_rows, features, ranks, x_row;
};

/* out[rows][ranks] = scale * (x . a) */
INLINE void products(const struct lora_shrink *c, int rows, int ranks, const element *x, const element *a, const float *scale,
                     float *out) {
    lanes sums[ROWS][RANKS] = {0};
    for (int64_t k = 0; k < c->features; k += STEP) {
        const int64_t left = c->features - k;
        part weights[RANKS];
#pragma GCC unroll 4
        for (int i = 0; i < ranks; i++) weights[i] = load(a + i * c->features + k, left);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const part values = load(x + r * c->x_row + k, left);
#pragma GCC unroll 4
            for (int i = 0; i < ranks; i++) sums[r][i] = multiply_add(sums[r][i], values, weights[i]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int i = 0; i < ranks; i++) out[r * c->ranks + i] = sum_of(sums[r][i]) * scale[i];
}

/* Rows first to end, which have the same adapter, of up to RANKS rows of its A. */
static void shrink(const struct lora_shrink *c, int64_t first, int64_t end, int64_t rank, int64_t count) {
    const int64_t row = c->index[first] * c->ranks + rank;
    const element *a = c->a + row * c->features;
    const float *scale = c->scale + row;
    for (int64_t t = first; t < end;) {
        const int64_t rows = end - t >= ROWS ? ROWS : 1;
        const element *x = c->x + t * c->x_row;
        float *out = c->out + t * c->ranks + rank;
        if (count == RANKS && rows == ROWS) products(c, ROWS, RANKS, x, a, scale, out);
        else if (count == RANKS) products(c, 1, RANKS, x, a, scale, out);
        else for (int64_t i = 0; i < rows * count; i++) {
            const int64_t r = i / count, n = i % count;
            products(c, 1, 1, x + r * c->x_row, a + n * c->features, scale + n, out + r * c->ranks + n);
        }
        t += rows;
    }
}

void lora_shrink(const struct lora_shrink *c) {
    const int64_t pieces = (c->ranks + RANKS - 1) / RANKS, chunks = (c->num_rows + TOKENS - 1) / TOKENS;
#pragma omp for collapse(2) schedule(static)
    for (int64_t m = 0; m < chunks; m++)
        for (int64_t p = 0; p < pieces; p++) {
            const int64_t rank = p * RANKS, left = c->ranks - rank < RANKS ? c->ranks - rank : RANKS;
            const int64_t last = (m + 1) * TOKENS < c->num_rows ? (m + 1) * TOKENS : c->num_rows;
            for (int64_t t = m * TOKENS, end; t < last; t = end) {
                const int32_t slot = c->index[t];
                for (end = t + 1; end < last && c->index[end] == slot; end++) {}
                if (slot >= 0 && !is_zero(c->scale + slot * c->ranks + rank, left)) shrink(c, t, end, rank, left);
                else for (int64_t i = t; i < end; i++) memset(c->out + i * c->ranks + rank, 0, (size_t)left * sizeof(float));
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

/* Lane n: b[n] . x, of `count` rows of B, LANES at most. */
INLINE lanes deltas(const struct lora_expand *c, const float *x, int64_t rank, const element *b, int count) {
    lanes sums[LANES] = {0};
    for (int64_t r = 0; r < rank; r += STEP) {
        const int64_t left = c->rank - r;
        const part values = load_floats(x + r, left);
#pragma GCC unroll 16
        for (int n = 0; n < count; n++) sums[place_of(n)] = multiply_add(sums[place_of(n)], values, load(b + n * c->rank + r, left));
    }
    return sums_of(sums);
}

/* Adds to columns n to n + count of a row. */
INLINE void add(const struct lora_expand *c, int64_t row, int64_t n, lanes delta, int count) {
    const int64_t at = row * c->y_row + n;
    if (c->wide && count == LANES) *(lanes *)((float *)c->y + at) += delta;
    else if (count == LANES) narrow_lanes(widen_lanes((element *)c->y + at) + delta, (element *)c->y + at);
    else for (int i = 0; i < count; i++) {
        if (c->wide) ((float *)c->y)[at + i] += delta[i];
        else ((element *)c->y)[at + i] = narrow(widen(((element *)c->y)[at + i]) + delta[i]);
    }
}

void lora_expand(const struct lora_expand *c) {
    const int64_t chunks = (c->num_columns + COLUMNS - 1) / COLUMNS;
#pragma omp for schedule(static)
    for (int64_t p = 0; p < chunks; p++) {
        const int64_t end = (p + 1) * COLUMNS < c->num_columns ? (p + 1) * COLUMNS : c->num_columns;
        for (int64_t t = 0; t < c->num_rows; t++) {
            if (c->index[t] < 0) continue;
            const element *b = c->b + c->index[t] * c->num_columns * c->rank;
            int64_t slice = 0;
            for (int64_t n = p * COLUMNS; n < end; slice++) {
                const int64_t stop = c->ends[slice] < end ? c->ends[slice] : end;
                const float *x = c->shrunk + t * c->shrunk_row + slice * c->rank;
                int64_t rank = c->rank;
                while (n < stop && rank && x[rank - 1] == 0) rank--;
                for (; n + LANES <= stop; n += LANES) add(c, t, n, deltas(c, x, rank, b + n * c->rank, LANES), LANES);
                for (; n < stop; n++) add(c, t, n, deltas(c, x, rank, b + n * c->rank, 1), 1);
            }
        }
    }
}
