/* y[M, N] = x[M, K] W[N, K]^T + bias for a CPU with integer weights of 8 or 4 bits, at any M.

   All products are integer products, whose sums are exact. Activations are int8 with a scale per row (gemm_int8), or floats, which
   become 16-bit integers first: x = scale * integer, with a power of two as the scale of a run of at most RUN inputs, so that of
   bfloat16 all that is not below 2^-7 of the run's largest is exact; float32 becomes two such planes, the second of what the first
   rounds away.

   W is packed once: panels of PANEL outputs, each a sequence of blocks, one for each group of inputs that share scales. A block has
   a header, PANEL scales and PANEL zeros (unless all are one number), and then the weights as [steps][PANEL] words: the inputs of
   one step stand together, in the order in which the instructions want them (see `unpack`). A tile of ROWS x PANEL integer sums
   stays in registers; at the end of a run it is scaled and added to float sums. Each thread has panels of its own, which it reads
   in order while the lines AHEAD bytes further are on their way: at few rows a stream from memory. Sums run over K in order,
   whatever M is. */
#include "native.h"

#if defined(__AVX512VNNI__)
#include <immintrin.h>
enum { LANES = 16, VECTORS = 4 };
#elif defined(__AVX2__)
#include <immintrin.h>
enum { LANES = 8, VECTORS = 2 };
#else
enum { LANES = 4, VECTORS = 4 };
#endif
enum { PANEL = LANES * VECTORS, ROWS = 6, BLOCK_M = 48, RUN = 256, AHEAD = 8192, PLANES = BF16 ? 1 : 2, TOP_BIT = BF16 ? 14 : 13 };
const int64_t quantized_panel = PANEL, quantized_run = RUN, quantized_planes = PLANES;

enum kind { INT8, WEIGHT8, WEIGHT4 };           /* int8 times int8; 16-bit integers times weights of 8 and of 4 bits */
static const int INPUTS[] = {4, 4, 8};          /* of a step, in one word of weights */
enum scale_kind { FLOAT32, FLOAT16, BFLOAT16 }; /* of the scales in a header */

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int16_t signed_halves __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t word __attribute__((aligned(1), may_alias));
union bits { float value; uint32_t bits; };

/* In each lane sum + x[0] w[0] + x[1] w[1], of signed 16-bit halves. */
static inline words dot2(words sum, words x, words w) {
#if defined(__AVX512VNNI__)
    return (words)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
#elif defined(__AVX2__)
    return sum + (words)_mm256_madd_epi16((__m256i)x, (__m256i)w);
#else
    const integers low = ((integers)(x << 16) >> 16) * ((integers)(w << 16) >> 16);
    const integers high = ((integers)x >> 16) * ((integers)w >> 16);
    return sum + (words)low + (words)high;
#endif
}

/* In each lane sum + the four products of unsigned bytes of x and signed bytes of w. */
static inline words dot4(words sum, words x, words w) {
#if defined(__AVX512VNNI__)
    return (words)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
#else
    const signed_halves even = (signed_halves)((halves)w << 8) >> 8, odd = (signed_halves)w >> 8;
    return dot2(dot2(sum, x & 0x00ff00ff, (words)even), x >> 8 & 0x00ff00ff, (words)odd);
#endif
}

/* Of a word of weights the two that are multiplied at once, as 16-bit halves: number `part` of the low half and of the high half.
   Four bytes that are multiplied at once stay as they are. */
static inline words unpack(enum kind kind, words w, int part) {
    const int bits = kind == WEIGHT8 ? 8 : 4;
    if (kind == INT8) return w;
    const halves low = (halves)w >> bits * part;
    return part == 16 / bits - 1 ? (words)low : (words)(low & (uint16_t)((1 << bits) - 1));
}

/* Keeps a vector in a register, where the compiler would compute it again at each use. */
#if defined(__AVX512F__)
#define IN_REGISTER(x) __asm__("" : "+v"(x))
#else
#define IN_REGISTER(x) (void)(x)
#endif
#define UNROLL _Pragma("GCC unroll 8") /* early enough that arrays become registers */

/* A product of inputs that share scales: x_scale[r] scales[n] (x w - x_sum[r] zeros[n]) of rows r and the outputs n of a panel. */
struct run {
    const char *x, *weight;
    int64_t x_row, steps; /* x_row: bytes between rows of x */
    const float *x_scale;
    const int32_t *x_sum;
    float scales[PANEL];
    int32_t zeros[PANEL];
};

/* sums[rows from `first` on][PANEL] += the run's product. */
static inline __attribute__((always_inline)) void tile(enum kind kind, int rows, const struct run *run, int64_t first,
                                                       float (*sums)[PANEL]) {
    const int parts = kind == INT8 ? 1 : INPUTS[kind] / 2;
    const int64_t x_row = run->x_row;
    const char *x = run->x + first * x_row;
    const words *w = (const words *)run->weight, *end = w + run->steps * VECTORS;
    words s[ROWS][VECTORS], flip = (words){} + (kind == INT8 ? 0x80808080 : 0); /* x + 128 of signed bytes is unsigned */
    IN_REGISTER(flip);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < VECTORS; v++) s[r][v] = (words)(*(integers *)(run->zeros + v * LANES) * -run->x_sum[first + r]);
    do {
        UNROLL for (int v = 0; v < VECTORS; v++) __builtin_prefetch((const char *)(w + v) + AHEAD, 0, 2);
        UNROLL for (int part = 0; part < parts; part++) {
            words vector[VECTORS];
            UNROLL for (int v = 0; v < VECTORS; v++) {
                vector[v] = unpack(kind, w[v], part);
                IN_REGISTER(vector[v]);
            }
            UNROLL for (int r = 0; r < rows; r++) {
                const words inputs = (words){} + ((const word *)(x + r * x_row))[part];
                UNROLL for (int v = 0; v < VECTORS; v++)
                    s[r][v] = kind == INT8 ? dot4(s[r][v], inputs ^ flip, vector[v]) : dot2(s[r][v], inputs, vector[v]);
            }
        }
        x += 4 * parts;
    } while ((w += VECTORS) < end);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < VECTORS; v++) {
            const lanes exact = __builtin_convertvector((integers)s[r][v], lanes) * run->x_scale[first + r];
            *(lanes *)(sums[first + r] + v * LANES) += exact * *(lanes *)(run->scales + v * LANES);
        }
}

/* One function per kind and number of rows, not inlined: each has all registers to itself. */
typedef void tile_function(const struct run *run, int64_t first, float (*sums)[PANEL]);
#define TILE(kind, rows) \
    static __attribute__((noinline)) void kind##_##rows(const struct run *run, int64_t first, float (*sums)[PANEL]) { \
        tile(kind, rows, run, first, sums); \
    }
#define TILES(kind) TILE(kind, 1) TILE(kind, 2) TILE(kind, 3) TILE(kind, 4) TILE(kind, 5) TILE(kind, 6)
#define NAMES(kind) {kind##_1, kind##_2, kind##_3, kind##_4, kind##_5, kind##_6}
TILES(INT8) TILES(WEIGHT8) TILES(WEIGHT4)
static tile_function *const FUNCTIONS[][ROWS] = {NAMES(INT8), NAMES(WEIGHT8), NAMES(WEIGHT4)};

static void multiply(enum kind kind, const struct run *run, int64_t rows, float (*sums)[PANEL]) {
    const int64_t tiles = (rows + ROWS - 1) / ROWS, height = (rows + tiles - 1) / tiles;
    for (int64_t r = 0; r < rows; r += height) FUNCTIONS[kind][(rows - r < height ? rows - r : height) - 1](run, r, sums);
}

static void read_scales(const char *header, enum scale_kind kind, float *scales) {
    const uint16_t *half = (const uint16_t *)header;
    if (kind == FLOAT32) memcpy(scales, header, PANEL * sizeof(float));
    else
        for (int i = 0; i < PANEL; i++) {
            union bits scale = {.bits = kind == BFLOAT16 ? (uint32_t)half[i] << 16 : (uint32_t)(half[i] & 0x7fff) << 13};
            if (kind == FLOAT16) scale.value *= half[i] & 0x8000 ? -0x1p112f : 0x1p112f; /* what the exponents' biases differ by */
            scales[i] = scale.value;
        }
}

static void prefetch(const char *header, int64_t size) {
    for (int64_t i = 0; i < size; i += 64) __builtin_prefetch(header + AHEAD + i, 0, 2);
}

static void begin_sums(const float *bias, int64_t width, int64_t rows, float (*sums)[PANEL]) {
    float line[PANEL] = {0};
    if (bias) memcpy(line, bias, (size_t)width * sizeof(float));
    for (int64_t r = 0; r < rows; r++) memcpy(sums[r], line, sizeof line);
}

static void write_sums(float (*sums)[PANEL], int64_t width, int64_t rows, element *out, int64_t out_row) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i++) out[r * out_row + i] = narrow(sums[r][i]);
}

struct gemm_int8 {
    const int8_t *x;
    const char *weight; /* packed */
    const float *x_scale;
    const int32_t *x_zero; /* or null; of row r, as x_scale: at r * per_row */
    const float *bias;     /* or null */
    element *out;          /* [M, N], contiguous */
    int64_t num_rows, num_outputs, num_blocks, block, x_row, per_row; /* block: inputs of one, a multiple of 4 */
};

/* (x - x_zero) w = (x + 128) w - (128 + x_zero) w: the "zeros" of a block are the sums of its weights. */
static void int8_panel(const struct gemm_int8 *c, int64_t panel, int64_t m, int64_t rows) {
    const int64_t first = panel * PANEL, width = c->num_outputs - first < PANEL ? c->num_outputs - first : PANEL;
    const int64_t header = 8 * PANEL, stride = header + c->block * PANEL;
    const char *block = c->weight + panel * c->num_blocks * stride;
    float sums[BLOCK_M][PANEL], x_scale[BLOCK_M];
    int32_t x_sum[BLOCK_M];
    struct run run = {.x_row = c->x_row, .steps = c->block / 4, .x_scale = x_scale, .x_sum = x_sum};
    run.x = (const char *)c->x + m * c->x_row;
    for (int64_t r = 0; r < rows; r++) {
        x_scale[r] = c->x_scale[(m + r) * c->per_row];
        x_sum[r] = 128 + (c->x_zero ? c->x_zero[(m + r) * c->per_row] : 0);
    }
    begin_sums(c->bias ? c->bias + first : NULL, width, rows, sums);
    for (int64_t b = 0; b < c->num_blocks; b++, block += stride, run.x += c->block) {
        prefetch(block, header);
        memcpy(run.scales, block, sizeof run.scales);
        memcpy(run.zeros, block + sizeof run.scales, sizeof run.zeros);
        run.weight = block + header;
        multiply(INT8, &run, rows, sums);
    }
    write_sums(sums, width, rows, c->out + m * c->num_outputs + first, c->num_outputs);
}

void gemm_int8(const struct gemm_int8 *c) {
    const int64_t panels = (c->num_outputs + PANEL - 1) / PANEL;
    for (int64_t m = 0; m < c->num_rows; m += BLOCK_M) {
        const int64_t rows = c->num_rows - m < BLOCK_M ? c->num_rows - m : BLOCK_M;
#pragma omp for schedule(static) nowait
        for (int64_t p = 0; p < panels; p++) int8_panel(c, p, m, rows);
    }
#pragma omp barrier
}

struct gemm_weights {
    const element *x;
    const int32_t *perm; /* or null: input k is column perm[k] of x */
    const char *weight;  /* packed */
    const float *bias;   /* or null */
    element *out;        /* [M, N], contiguous */
    int16_t *integers;   /* x as integers: [PLANES, groups, runs, M, inputs of the run]; their scales and sums: without the last */
    float *x_scale;
    int32_t *x_sum;
    /* group: inputs that share scales; padded: the same in whole steps; zero: that of all weights, or -1: headers have bytes */
    int64_t num_rows, num_outputs, num_groups, group, padded, x_row, scale_kind, zero;
};

/* |x| as bits, which are ordered as the numbers are. */
#if BF16
typedef uint16_t magnitude;
enum { FRACTION_BITS = 7 };
static inline magnitude absolute(element x) { return x & 0x7fff; }
#else
typedef uint32_t magnitude;
enum { FRACTION_BITS = 23 };
static inline magnitude absolute(element x) { return (union bits){x}.bits & 0x7fffffff; }
#endif

/* Inputs [first, first + size) of a group of a row as integers, zeros where the group has ended. */
static void to_integers(const struct gemm_weights *c, int64_t row, int64_t group, int64_t first, int64_t size) {
    const int64_t count = c->group - first < size ? c->group - first : size, start = group * c->group + first;
    const int64_t runs = (c->padded + RUN - 1) / RUN;
    const element *x = c->x + row * c->x_row + (c->perm ? 0 : start);
    element gathered[RUN];
    if (c->perm) {
        for (int64_t k = 0; k < count; k++) gathered[k] = x[c->perm[start + k]];
        x = gathered;
    }
    magnitude largest = 0;
    for (int64_t k = 0; k < count; k++) largest = absolute(x[k]) > largest ? absolute(x[k]) : largest;
    const uint32_t exponent = largest >> FRACTION_BITS, bounded = exponent < 32 ? 32 : exponent; /* for scales that are normal */
    union bits scale = {.bits = (bounded - TOP_BIT) << 23}, inverse = {.bits = (254 - bounded + TOP_BIT) << 23};
    if (exponent == 255) scale.bits = 0x7fc00000; /* infinities and NaN: the row's results are NaN */
    for (int p = 0; p < PLANES; p++, scale.value *= 0x1p-15f) {
        const int64_t at = ((p * c->num_groups + group) * runs + first / RUN) * c->num_rows + row;
        int16_t *out = c->integers + ((p * c->num_groups + group) * c->padded + first) * c->num_rows + row * size;
        int32_t sum = 0;
        for (int64_t k = 0; k < count; k++) {
            float exact = widen(x[k]) * inverse.value;
            if (p) exact = (exact - __builtin_rintf(exact)) * 0x1p15f;
            const int32_t rounded = (int32_t)__builtin_rintf(exact);
            out[k] = (int16_t)rounded;
            sum += rounded;
        }
        for (int64_t k = count; k < size; k++) out[k] = 0;
        c->x_scale[at] = scale.value;
        c->x_sum[at] = sum;
    }
}

static void weights_panel(const struct gemm_weights *c, enum kind kind, int64_t panel, int64_t m, int64_t rows) {
    const int64_t first = panel * PANEL, width = c->num_outputs - first < PANEL ? c->num_outputs - first : PANEL;
    const int64_t scales = PANEL * (c->scale_kind == FLOAT32 ? 4 : 2), header = scales + (c->zero < 0 ? PANEL : 0);
    const int64_t stride = header + c->padded / INPUTS[kind] * 4 * PANEL, runs = (c->padded + RUN - 1) / RUN;
    const char *block = c->weight + panel * c->num_groups * stride;
    float sums[BLOCK_M][PANEL];
    struct run run;
    begin_sums(c->bias ? c->bias + first : NULL, width, rows, sums);
    for (int64_t g = 0; g < c->num_groups; g++, block += stride) {
        prefetch(block, header);
        read_scales(block, c->scale_kind, run.scales);
        for (int i = 0; i < PANEL; i++) run.zeros[i] = c->zero < 0 ? ((const uint8_t *)block)[scales + i] : (int32_t)c->zero;
        run.weight = block + header;
        for (int64_t i = 0; i < runs; i++, run.weight += run.steps * 4 * PANEL) {
            const int64_t size = c->padded - i * RUN < RUN ? c->padded - i * RUN : RUN;
            run.steps = size / INPUTS[kind];
            run.x_row = size * 2;
            for (int64_t p = 0; p < PLANES; p++) {
                const int64_t plane = p * c->num_groups + g, at = (plane * runs + i) * c->num_rows + m;
                run.x = (const char *)(c->integers + (plane * c->padded + i * RUN) * c->num_rows + m * size);
                run.x_scale = c->x_scale + at;
                run.x_sum = c->x_sum + at;
                multiply(kind, &run, rows, sums);
            }
        }
    }
    write_sums(sums, width, rows, c->out + m * c->num_outputs + first, c->num_outputs);
}

static void gemm_weights(const struct gemm_weights *c, enum kind kind) {
    const int64_t panels = (c->num_outputs + PANEL - 1) / PANEL;
#pragma omp for collapse(2) schedule(static)
    for (int64_t row = 0; row < c->num_rows; row++)
        for (int64_t group = 0; group < c->num_groups; group++)
            for (int64_t k = 0; k < c->padded; k += RUN)
                to_integers(c, row, group, k, c->padded - k < RUN ? c->padded - k : RUN);
    for (int64_t m = 0; m < c->num_rows; m += BLOCK_M) {
        const int64_t rows = c->num_rows - m < BLOCK_M ? c->num_rows - m : BLOCK_M;
#pragma omp for schedule(static) nowait
        for (int64_t p = 0; p < panels; p++) weights_panel(c, kind, p, m, rows);
    }
#pragma omp barrier
}

void gemm_w8a16(const struct gemm_weights *c) { gemm_weights(c, WEIGHT8); }
void gemm_w4a16(const struct gemm_weights *c) { gemm_weights(c, WEIGHT4); }
