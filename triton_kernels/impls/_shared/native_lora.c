/* lora_shrink and lora_expand for a CPU: each row with the adapter that its index names, and with bits that do not depend on other
   rows. Both read an adapter where its slot lies, since slots are written while the engine runs: nothing is packed. Ranks that an
   adapter has not, and slots hold zeros for, are passed over: those with a scale of 0, and those that shrinking left at 0.

   lora_shrink ends without a barrier, so that threads go on to the linear layer beside it, at whose end they wait for one another:
   in a recording another kernel lies between it and what reads its output. */
#include "native_lanes.h"

enum { RANKS = 4, VECTORS = 4, COLUMNS = VECTORS * LANES, TOKENS = 256 }; /* of a thread's piece of work */
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
INLINE lanes multiply_add(lanes sum, part x, part y) { return (lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y); }
#else
enum { STEP = LANES };
typedef lanes part;
INLINE part load(const element *x, int64_t count) {
    element found[LANES] = {0};
    if (count < LANES) memcpy(found, x, (size_t)count * sizeof(element));
    return widen_lanes(count < LANES ? found : x);
}
INLINE lanes multiply_add(lanes sum, part x, part y) { return sum + x * y; }
#endif

static inline int is_zero(const float *x, int64_t count) {
    uint32_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        found |= bits << 1; /* without the sign */
    }
    return !found;
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
#pragma omp for collapse(2) schedule(static) nowait
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
    element *y;
    const float *shrunk;
    const element *b;
    const int32_t *index;
    const int64_t *ends; /* of the slices' columns */
    int64_t num_rows, num_columns, rank, y_row, shrunk_row;
};

/* Adds x @ b to columns n to n + count * LANES of a row. */
INLINE void add(const struct lora_expand *c, int64_t row, int64_t n, const float *x, int64_t rank, const element *b, int count) {
    element *y = c->y + row * c->y_row + n;
    lanes sums[VECTORS] = {0};
    for (int64_t r = 0; r < rank; r++) {
        if (x[r] == 0) continue;
        const element *values = b + r * c->num_columns + n;
#pragma GCC unroll 4
        for (int i = 0; i < count; i++) sums[i] += x[r] * widen_lanes(values + i * LANES);
    }
#pragma GCC unroll 4
    for (int i = 0; i < count; i++) narrow_lanes(widen_lanes(y + i * LANES) + sums[i], y + i * LANES);
}

/* The same of one column. */
static void add_one(const struct lora_expand *c, int64_t row, int64_t n, const float *x, int64_t rank, const element *b) {
    element *y = c->y + row * c->y_row + n;
    float sum = 0;
    for (int64_t r = 0; r < rank; r++) sum += x[r] * widen(b[r * c->num_columns + n]);
    *y = narrow(widen(*y) + sum);
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
                int64_t rank = n < stop ? c->rank : 0;
                while (rank > LANES && is_zero(x + rank - LANES, LANES)) rank -= LANES;
                for (; n + COLUMNS <= stop; n += COLUMNS) add(c, t, n, x, rank, b, VECTORS);
                for (; n + LANES <= stop; n += LANES) add(c, t, n, x, rank, b, 1);
                for (; n < stop; n++) add_one(c, t, n, x, rank, b);
            }
        }
    }
}
