/* The small operations of a step for a CPU, one pass each: at a few rows they are mostly the overhead of being called, at many
   rows they are bound by memory.

   Compiled for one element type: -DBF16=0|1. Arithmetic is float32. Strides are in elements; rows of a tensor [outer, inner, H] are
   counted through: row r starts at (r / inner) * outer_stride + (r % inner) * inner_stride. */
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { PARALLEL_ELEMENTS = 32768 }; /* waking the other threads costs more than less work than this */

#if BF16
typedef uint16_t element;
static inline float widen(element x) {
    union { uint32_t bits; float value; } u = {(uint32_t)x << 16};
    return u.value;
}
static inline element narrow(float x) { /* to nearest even; a NaN stays one */
    union { float value; uint32_t bits; } u = {x};
    const uint32_t rounded = (u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16;
    return (element)(x == x ? rounded : 0x7fc0);
}
#else
typedef float element;
static inline float widen(element x) { return x; }
static inline element narrow(float x) { return x; }
#endif

/* exp(x) in operations that vectorize. Polynomial: Cephes, expf. */
static inline float exponential(float x) {
    x = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
    const float n = __builtin_rintf(x * 1.44269504f), f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    union { int32_t bits; float value; } power = {((int32_t)n + 127) << 23};
    return (p * f * f + f + 1.0f) * power.value;
}

/* residual may be null; out has contiguous rows. factor: offset + weight. strides: outer and inner of x and residual. */
void rms_norm(const element *x, element *residual, const float *factor, element *out, int64_t num_rows, int64_t inner,
              int64_t width, const int64_t *strides, float eps) {
#pragma omp parallel for if (num_rows * width > PARALLEL_ELEMENTS)
    for (int64_t r = 0; r < num_rows; r++) {
        const element *source = x + r / inner * strides[0] + r % inner * strides[1];
        element *target = out + r * width;
        float squares = 0;
        if (residual) {
            element *sum = residual + r / inner * strides[2] + r % inner * strides[3];
            for (int64_t i = 0; i < width; i++) sum[i] = narrow(widen(source[i]) + widen(sum[i]));
            source = sum;
        }
        for (int64_t i = 0; i < width; i++) squares += widen(source[i]) * widen(source[i]);
        const float scale = 1.0f / sqrtf(squares / (float)width + eps);
        for (int64_t i = 0; i < width; i++) target[i] = narrow(widen(source[i]) * scale * factor[i]);
    }
}

static void rotate(element *head, const float *cos, const float *sin, int64_t half, int64_t gptj) {
    if (gptj)
        for (int64_t i = 0; i < half; i++) {
            const float a = widen(head[2 * i]), b = widen(head[2 * i + 1]);
            head[2 * i] = narrow(a * cos[i] - b * sin[i]);
            head[2 * i + 1] = narrow(b * cos[i] + a * sin[i]);
        }
    else
        for (int64_t i = 0; i < half; i++) {
            const float a = widen(head[i]), b = widen(head[half + i]);
            head[i] = narrow(a * cos[i] - b * sin[i]);
            head[half + i] = narrow(b * cos[i] + a * sin[i]);
        }
}

void rotary(element *q, element *k, const int64_t *positions, const float *cos_sin, int64_t num_tokens, int64_t num_heads,
            int64_t num_kv_heads, int64_t q_token, int64_t q_head, int64_t k_token, int64_t k_head, int64_t half, int64_t gptj) {
#pragma omp parallel for if (num_tokens * (num_heads + num_kv_heads) * half * 2 > PARALLEL_ELEMENTS)
    for (int64_t t = 0; t < num_tokens; t++) {
        const float *cos = cos_sin + positions[t] * 2 * half, *sin = cos + half;
        for (int64_t h = 0; h < num_heads; h++) rotate(q + t * q_token + h * q_head, cos, sin, half, gptj);
        for (int64_t h = 0; h < num_kv_heads; h++) rotate(k + t * k_token + h * k_head, cos, sin, half, gptj);
    }
}

void silu_and_mul(const element *x, element *out, int64_t num_rows, int64_t row_stride, int64_t width) {
#pragma omp parallel for if (num_rows * width > PARALLEL_ELEMENTS / 4)
    for (int64_t r = 0; r < num_rows; r++) {
        const element *gate = x + r * row_stride, *up = gate + width;
        element *target = out + r * width;
        for (int64_t i = 0; i < width; i++) {
            const float g = widen(gate[i]);
            target[i] = narrow(g / (1.0f + exponential(-g)) * widen(up[i]));
        }
    }
}

void kv_cache_write(const element *k, const element *v, element *k_cache, element *v_cache, const int64_t *slots, int64_t num_tokens,
                    int64_t num_heads, int64_t page_size, int64_t k_dim, int64_t v_dim, const int64_t *strides) {
    /* strides: token and head of k and v; page, slot and head of both caches */
    for (int64_t t = 0; t < num_tokens; t++) {
        if (slots[t] < 0) continue;
        const int64_t page = slots[t] / page_size, slot = slots[t] % page_size;
        for (int64_t h = 0; h < num_heads; h++) {
            memcpy(k_cache + page * strides[4] + slot * strides[5] + h * strides[6], k + t * strides[0] + h * strides[1],
                   (size_t)k_dim * sizeof(element));
            memcpy(v_cache + page * strides[7] + slot * strides[8] + h * strides[9], v + t * strides[2] + h * strides[3],
                   (size_t)v_dim * sizeof(element));
        }
    }
}

void slot_mapping(const int64_t *positions, const int32_t *cu_q, const int32_t *seq_lens, const int32_t *block_table, int64_t *slots,
                  int64_t num_tokens, int64_t num_reqs, int64_t table_stride, int64_t page_size) {
    int64_t t = 0;
    for (int64_t r = 0; r < num_reqs; r++) {
        const int32_t *pages = block_table + r * table_stride;
        for (; t < cu_q[r + 1]; t++)
            slots[t] = seq_lens[r] > 0 ? pages[positions[t] / page_size] * page_size + positions[t] % page_size : -1;
    }
    for (; t < num_tokens; t++) slots[t] = -1;
}
