/* y[M, N] = x[M, K] W[N, K]^T + bias for a CPU, at any M.

   W is packed once: panels of PANEL outputs, each [K / STEP][PANEL][STEP], where STEP inputs stand together because one instruction
   multiplies them (pairs in bfloat16). A tile of ROWS x PANEL sums stays in registers; every load of weights serves ROWS rows. Each
   thread has panels of its own, which it reads in order, and while one is multiplied the lines of the next are on their way: at few
   rows a stream from memory, at many a few bytes per tile. Sums run over K in order, whatever M is. */
#include "native.h"

#if defined(__AVX512F__)
enum { VECTORS = 4 };
#else
enum { VECTORS = 1 }; /* of 16 floats: two registers of AVX2, four of NEON */
#endif
enum { LANES = 16, PANEL = LANES * VECTORS, ROWS = 6, BLOCK_K = 2048, BLOCK_M = 48, STEP = BF16 ? 2 : 1 };
const int64_t linear_panel = PANEL;

struct linear {
    const element *x, *weight; /* weight: packed */
    const float *bias;         /* or null */
    element *out;              /* [M, N], contiguous */
    int64_t num_rows, num_outputs, num_inputs, x_row; /* num_inputs: a multiple of STEP */
};

typedef float lanes __attribute__((vector_size(64), aligned(4)));
typedef uint32_t words __attribute__((vector_size(64), aligned(4)));

#if BF16
typedef uint32_t step;
#else
typedef float step;
#endif

#if BF16 && defined(__AVX512BF16__)
#include <immintrin.h>
static inline lanes multiply_add(lanes sum, step x, words w) {
    return (lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)x), (__m512bh)w);
}
#elif BF16
static inline lanes multiply_add(lanes sum, step x, words pair) {
    union { uint32_t bits; float value; } low = {x << 16}, high = {x & 0xffff0000u};
    sum += low.value * (lanes)(pair << 16);
    return sum + high.value * (lanes)(pair & 0xffff0000u);
}
#else
static inline lanes multiply_add(lanes sum, step x, words w) { return sum + x * (lanes)w; }
#endif

/* Keeps a vector in a register, where the compiler would load it again at each use. */
#if defined(__AVX512F__)
#define IN_REGISTER(x) __asm__("" : "+v"(x))
#else
#define IN_REGISTER(x) (void)(x)
#endif

#if BF16
static inline void narrow_lanes(lanes x, element *out) { /* as `narrow` */
    typedef uint16_t halves __attribute__((vector_size(32), aligned(2)));
    const words bits = (words)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, number = (words)(x == x);
    *(halves *)out = __builtin_convertvector((rounded & number) | (0x7fc0 & ~number), halves);
}
#else
static inline void narrow_lanes(lanes x, element *out) { *(lanes *)out = x; }
#endif

/* sums[rows][PANEL] += x[rows, count steps] w, while the lines from `next` on are prefetched, `lines` per step. */
static inline __attribute__((always_inline)) void tile(int rows, const step *x, int64_t x_row, const step *w, int64_t count,
                                                       float (*sums)[PANEL], const char *next, int lines) {
    lanes s[ROWS][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) s[r][v] = *(lanes *)(sums[r] + v * LANES);
    for (int64_t k = 0; k < count; k++, w += PANEL) {
        words vector[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            vector[v] = *(const words *)(w + v * LANES);
            IN_REGISTER(vector[v]);
        }
        for (int e = 0; e < lines; e++) __builtin_prefetch(next + (k * lines + e) * 64, 0, 2);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < VECTORS; v++) s[r][v] = multiply_add(s[r][v], x[r * x_row + k], vector[v]);
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) *(lanes *)(sums[r] + v * LANES) = s[r][v];
}

/* One function per number of rows and of lines to prefetch, not inlined: each has all registers to itself. */
typedef void tile_function(const step *x, int64_t x_row, const step *w, int64_t count, float (*sums)[PANEL], const char *next);
#define TILE(rows, lines) \
    static __attribute__((noinline)) void tile_##rows##_##lines(const step *x, int64_t x_row, const step *w, int64_t count, \
                                                                float (*sums)[PANEL], const char *next) { \
        tile(rows, x, x_row, w, count, sums, next, lines); \
    }
#define TILES(rows) TILE(rows, 1) TILE(rows, 2) TILE(rows, 4)
#define NAMES(rows) {tile_##rows##_4, tile_##rows##_2, tile_##rows##_2, tile_##rows##_1}
TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6)
/* By rows, then by how many tiles the lines of the next panel are shared out to: 1, 2, 3, or more. */
static tile_function *const FUNCTIONS[ROWS][4] = {NAMES(1), NAMES(2), NAMES(3), NAMES(4), NAMES(5), NAMES(6)};
static const int LINES[4] = {4, 2, 2, 1};

/* Rows m to m + rows of the outputs of one panel. */
static void multiply(const struct linear *c, int64_t index, int64_t m, int64_t rows) {
    const int64_t steps = c->num_inputs / STEP, block = BLOCK_K / STEP, x_row = c->x_row / STEP;
    const int64_t first = index * PANEL, width = c->num_outputs - first < PANEL ? c->num_outputs - first : PANEL;
    const int64_t tiles = (rows + ROWS - 1) / ROWS, height = (rows + tiles - 1) / tiles;
    const int64_t share = VECTORS == 1 || tiles > 4 ? 3 : tiles - 1;
    const step *w = (const step *)c->weight + index * steps * PANEL;
    float sums[BLOCK_M][PANEL] __attribute__((aligned(64)));
    float bias[PANEL] = {0};
    if (c->bias) memcpy(bias, c->bias + first, (size_t)width * sizeof(float));
    for (int64_t r = 0; r < rows; r++) memcpy(sums[r], bias, sizeof bias);
    for (int64_t k = 0; k < steps; k += block) {
        const int64_t count = steps - k < block ? steps - k : block;
        const char *next = (const char *)(w + (k + count) * PANEL);
        for (int64_t r = 0; r < rows; r += height, next += LINES[share] * count * 64) {
            const int64_t left = rows - r < height ? rows - r : height;
            FUNCTIONS[left - 1][share]((const step *)c->x + (m + r) * x_row + k, x_row, w + k * PANEL, count, sums + r, next);
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        element line[PANEL];
        for (int v = 0; v < VECTORS; v++) narrow_lanes(*(lanes *)(sums[r] + v * LANES), line + v * LANES);
        memcpy(c->out + (m + r) * c->num_outputs + first, line, (size_t)width * sizeof(element));
    }
}

void linear(const struct linear *c) {
    const int64_t panels = (c->num_outputs + PANEL - 1) / PANEL;
    for (int64_t m = 0; m < c->num_rows; m += BLOCK_M) {
        const int64_t rows = c->num_rows - m < BLOCK_M ? c->num_rows - m : BLOCK_M;
#pragma omp for schedule(static) nowait
        for (int64_t p = 0; p < panels; p++) multiply(c, p, m, rows);
    }
#pragma omp barrier
}
