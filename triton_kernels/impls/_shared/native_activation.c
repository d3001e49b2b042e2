/* Activations to int8 or float8 with scales, as the op `quantize_activation` defines them, bit for bit. */
#include "native.h"

struct quantize {
    const element *x;
    const float *static_scale; /* or null */
    const int32_t *static_zero; /* added to int8 values, or null */
    uint8_t *out;              /* [num_rows, width], contiguous */
    float *scales;             /* [num_rows, ceil(width / group)], or one, a copy of the static scale */
    /* group: neighbours that share a scale; fraction_bits: of the float8 format, 0 for int8 */
    int64_t num_rows, width, group, x_row, fraction_bits;
    float limit; /* the largest quantized value */
};

/* A number within the limits of a float8 format as that format, rounded to nearest even. Where the format is normal, adding to the
   bits rounds, and a carry moves on to the exponent; below, neighbours are equally far apart, and adding the float32 whose
   neighbours are as far apart rounds. */
static inline uint8_t to_float8(float x, int fraction_bits) {
    const uint32_t bias = fraction_bits == 3 ? 7 : 15, shift = 23 - (uint32_t)fraction_bits;
    union { float value; uint32_t bits; } number = {x}, size = {.bits = number.bits & 0x7fffffff};
    union { uint32_t bits; float value; } coarse = {(128 - bias + shift) << 23};
    const uint32_t to_even = (1u << (shift - 1)) - 1 + (size.bits >> shift & 1);
    const uint32_t normal = (size.bits + to_even - ((127 - bias) << 23)) >> shift, smallest_normal = (128 - bias) << 23;
    union { float value; uint32_t bits; } sum = {size.value + coarse.value};
    return (uint8_t)((size.bits < smallest_normal ? sum.bits - coarse.bits : normal) | number.bits >> 31 << 7);
}

static inline float between(float x, float low, float high) {
    const float below = x > high ? high : x;
    return below < low ? low : below;
}

static inline __attribute__((always_inline)) void convert(const element *x, uint8_t *out, int64_t count, float scale, float zero,
                                                          float limit, int fraction_bits) {
    for (int64_t i = 0; i < count; i++) {
        const float q = widen(x[i]) / scale;
        out[i] = fraction_bits ? to_float8(between(q, -limit, limit), fraction_bits)
                               : (uint8_t)(int32_t)between(__builtin_rintf(q) + zero, -128, 127);
    }
}

void quantize(const struct quantize *c) {
    const int64_t groups = (c->width + c->group - 1) / c->group;
    const float zero = c->static_zero ? (float)*c->static_zero : 0;
#pragma omp single nowait
    if (c->static_scale) *c->scales = *c->static_scale;
#pragma omp for
    for (int64_t i = 0; i < c->num_rows * groups; i++) {
        const int64_t row = i / groups, first = i % groups * c->group;
        const int64_t count = c->width - first < c->group ? c->width - first : c->group;
        const element *x = c->x + row * c->x_row + first;
        uint8_t *out = c->out + row * c->width + first;
        union { uint32_t bits; float value; } largest = {0};
        for (int64_t k = 0; k < count; k++) {
            union { float value; uint32_t bits; } number = {widen(x[k])};
            const uint32_t size = number.bits & 0x7fffffff; /* ordered as the numbers are */
            largest.bits = size > largest.bits ? size : largest.bits;
        }
        const float found = largest.value / c->limit, scale = c->static_scale ? *c->static_scale : found < 1e-10f ? 1e-10f : found;
        if (!c->static_scale) c->scales[i] = scale;
        if (c->fraction_bits == 0) convert(x, out, count, scale, zero, c->limit, 0);
        if (c->fraction_bits == 2) convert(x, out, count, scale, zero, c->limit, 2);
        if (c->fraction_bits == 3) convert(x, out, count, scale, zero, c->limit, 3);
    }
}
