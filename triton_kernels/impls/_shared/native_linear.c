/* y[M, N] = x[M, K] W[N, K]^T + bias for a CPU, at any M.

   W is packed once: panels of PANEL outputs, each [K / STEP][PANEL][STEP], where STEP inputs stand together because one instruction
   multiplies them (pairs in bfloat16). A tile of ROWS x PANEL sums stays in registers; every load of weights serves ROWS rows. Each
   thread has panels of its own, which it reads in order, and while one is multiplied the lines of the next are on their way: at few
   rows a stream from memory, at many a few bytes per tile. Sums run over K in order, whatever M is.

   bfloat16 on a CPU with AMX goes through its tiles of 16 x 32 inputs instead, at every M: they add in another order. */
#include "native_lanes.h"

#if defined(__AVX512F__)
enum { VECTORS = 4 };
#else
enum { VECTORS = 1 }; /* of 16 floats: two registers of AVX2, four of NEON */
#endif
#if BF16 && defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define AMX 1
#else
#define AMX 0
#endif
enum { PANEL = LANES * VECTORS, STEP = BF16 ? 2 : 1, DEPTH = AMX ? 32 : STEP };
const int64_t linear_panel = PANEL, linear_depth = DEPTH;
int64_t linear_ready = 1; /* 0: this process may not use the instructions */

struct linear {
    const element *x, *weight; /* weight: packed */
    const float *bias;         /* or null */
    element *out;              /* [M, N], contiguous */
    int64_t num_rows, num_outputs, num_inputs, x_row; /* num_inputs: a multiple of DEPTH */
};

#if BF16
typedef uint32_t step;
#else
typedef float step;
#endif

/* The biases of a panel whose first output is `first`, zeros where there are none. */
static inline void load_bias(const struct linear *c, int64_t first, float *bias) {
    const int64_t width = c->num_outputs - first < PANEL ? c->num_outputs - first : PANEL;
    memset(bias, 0, PANEL * sizeof(float));
    if (c->bias) memcpy(bias, c->bias + first, (size_t)width * sizeof(float));
}

/* out[m to m + rows][first to first + PANEL] = sums */
static inline void store(const struct linear *c, int64_t m, int64_t rows, int64_t first, float (*sums)[PANEL]) {
    const int64_t width = c->num_outputs - first < PANEL ? c->num_outputs - first : PANEL;
    for (int64_t r = 0; r < rows; r++) {
        element line[PANEL], *out = c->out + (m + r) * c->num_outputs + first;
        for (int v = 0; v < VECTORS; v++) narrow_lanes(*(lanes *)(sums[r] + v * LANES), (width == PANEL ? out : line) + v * LANES);
        if (width < PANEL) memcpy(out, line, (size_t)width * sizeof(element));
    }
}

#if AMX
#include <sys/syscall.h>
#include <unistd.h>

enum { TALL = 16, HIGH = 2 * TALL, X_BYTES = DEPTH * sizeof(element), W_BYTES = PANEL * STEP * sizeof(element),
       SUM_BYTES = PANEL * sizeof(float), BLOCK = TALL * W_BYTES, AHEAD = 2 * BLOCK };
enum { CACHED = 1 << 19, MAX_ROWS = 512 }; /* bytes of x that stay in a core's second cache, and rows at most */

/* Linux wants to be asked whether this process may use the tiles. 18: their state's number. */
static __attribute__((constructor)) void ask(void) { linear_ready = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0; }

/* Tiles 0 to 3 are sums of so many rows, 4 and 5 rows of x, 6 and 7 weights. */
static void configure(int64_t rows) {
    struct { uint8_t palette, start, zero[14]; uint16_t bytes[16]; uint8_t rows[16]; } tiles = {.palette = 1};
    for (int t = 0; t < 8; t++) tiles.bytes[t] = 64, tiles.rows[t] = t < 6 ? (uint8_t)rows : TALL;
    __asm__ volatile("" ::: "memory");
    _tile_loadconfig(&tiles);
}

/* sums[rows <= 16][PANEL] = bias + x w, while the lines from w + AHEAD on are fetched. */
static void low(const char *x, int64_t x_row, const char *w, int64_t blocks, const float *bias, float *sums) {
    _tile_loadd(0, bias, 0);
    _tile_loadd(1, bias + LANES, 0);
    _tile_loadd(2, bias + 2 * LANES, 0);
    _tile_loadd(3, bias + 3 * LANES, 0);
    for (int64_t k = 0; k < blocks; k++, x += X_BYTES, w += BLOCK) {
        for (int i = 0; i < BLOCK; i += 64) __builtin_prefetch(w + AHEAD + i, 0, 2);
        _tile_loadd(4, x, x_row);
        _tile_loadd(6, w, W_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w + 64, W_BYTES);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(6, w + 128, W_BYTES);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(7, w + 192, W_BYTES);
        _tile_dpbf16ps(3, 4, 7);
    }
    _tile_stored(0, sums, SUM_BYTES);
    _tile_stored(1, sums + LANES, SUM_BYTES);
    _tile_stored(2, sums + 2 * LANES, SUM_BYTES);
    _tile_stored(3, sums + 3 * LANES, SUM_BYTES);
}

/* sums[32][PANEL / 2] = bias + x w, where w, bias and sums stand on that half of the panel. */
static void high(const char *x, int64_t x_row, const char *w, int64_t blocks, const float *bias, float *sums) {
    float *below = sums + TALL * PANEL;
    _tile_loadd(0, bias, 0);
    _tile_loadd(1, bias + LANES, 0);
    _tile_loadd(2, bias, 0);
    _tile_loadd(3, bias + LANES, 0);
    for (int64_t k = 0; k < blocks; k++, x += X_BYTES, w += BLOCK) {
        for (int i = 0; i < BLOCK; i += W_BYTES) {
            __builtin_prefetch(w + AHEAD + i, 0, 3);
            __builtin_prefetch(w + AHEAD + i + 64, 0, 3);
        }
        _tile_loadd(4, x, x_row);
        _tile_loadd(6, w, W_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w + 64, W_BYTES);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, x + TALL * x_row, x_row);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, SUM_BYTES);
    _tile_stored(1, sums + LANES, SUM_BYTES);
    _tile_stored(2, below, SUM_BYTES);
    _tile_stored(3, below + LANES, SUM_BYTES);
}

/* Rows m to m + rows of the outputs of one panel; rows <= MAX_ROWS. */
static void multiply(const struct linear *c, int64_t index, int64_t m, int64_t rows) {
    const int64_t first = index * PANEL, blocks = c->num_inputs / DEPTH, x_row = c->x_row * (int64_t)sizeof(element);
    const int64_t whole = rows < 2 * HIGH ? 0 : rows / HIGH * HIGH; /* few rows wait for weights: those come in order */
    const char *x = (const char *)(c->x + m * c->x_row), *w = (const char *)c->weight + index * blocks * BLOCK;
    float sums[MAX_ROWS][PANEL] __attribute__((aligned(64)));
    float bias[PANEL] __attribute__((aligned(64)));
    load_bias(c, first, bias);
    if (whole) configure(TALL);
    for (int half = 0; half < 2; half++)
        for (int64_t r = 0, h = half * (PANEL / 2); r < whole; r += HIGH)
            high(x + r * x_row, x_row, w + h * (int64_t)sizeof(step), blocks, bias + h, sums[r] + h);
    for (int64_t r = whole; r < rows; r += TALL) {
        const int64_t count = rows - r < TALL ? rows - r : TALL;
        if (count < TALL || r == whole) configure(count);
        low(x + r * x_row, x_row, w, blocks, bias, sums[r]);
    }
    store(c, m, rows, first, sums);
}

/* Rows whose inputs stay in a core's second cache while its panels pass by. */
static inline int64_t block_rows(const struct linear *c) {
    const int64_t rows = CACHED / (c->num_inputs * (int64_t)sizeof(element)) / HIGH * HIGH;
    return rows < HIGH ? HIGH : rows < MAX_ROWS ? rows : MAX_ROWS;
}
static inline void finish(void) { _tile_release(); }

#else
enum { ROWS = 6, BLOCK_K = 2048, BLOCK_M = 48 };

#if BF16 && defined(__AVX512BF16__)
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
    const int64_t first = index * PANEL;
    const int64_t tiles = (rows + ROWS - 1) / ROWS, height = (rows + tiles - 1) / tiles;
    const int64_t share = VECTORS == 1 || tiles > 4 ? 3 : tiles - 1;
    const step *w = (const step *)c->weight + index * steps * PANEL;
    float sums[BLOCK_M][PANEL] __attribute__((aligned(64)));
    float bias[PANEL];
    load_bias(c, first, bias);
    for (int64_t r = 0; r < rows; r++) memcpy(sums[r], bias, sizeof bias);
    for (int64_t k = 0; k < steps; k += block) {
        const int64_t count = steps - k < block ? steps - k : block;
        const char *next = (const char *)(w + (k + count) * PANEL);
        for (int64_t r = 0; r < rows; r += height, next += LINES[share] * count * 64) {
            const int64_t left = rows - r < height ? rows - r : height;
            FUNCTIONS[left - 1][share]((const step *)c->x + (m + r) * x_row + k, x_row, w + k * PANEL, count, sums + r, next);
        }
    }
    store(c, m, rows, first, sums);
}

static inline int64_t block_rows(const struct linear *c) { (void)c; return BLOCK_M; }
static inline void finish(void) {}
#endif

void linear(const struct linear *c) {
    const int64_t panels = (c->num_outputs + PANEL - 1) / PANEL, block = block_rows(c);
    for (int64_t m = 0; m < c->num_rows; m += block) {
        const int64_t rows = c->num_rows - m < block ? c->num_rows - m : block;
#pragma omp for schedule(static) nowait
        for (int64_t p = 0; p < panels; p++) multiply(c, p, m, rows);
    }
    finish();
#pragma omp barrier
}
