/* Vectors of 16 floats: from elements and back, and sums over their lanes, with the same bits by either function. */
#include "native.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

enum { LANES = 16 };
typedef float lanes __attribute__((vector_size(64), aligned(4)));
typedef uint32_t words __attribute__((vector_size(64), aligned(4)));

static inline lanes widen_lanes(const element *x) {
#if BF16
    typedef element halves __attribute__((vector_size(32), aligned(2)));
    return (lanes)(__builtin_convertvector(*(const halves *)x, words) << 16);
#else
    return *(const lanes *)x;
#endif
}

#if BF16 && defined(__AVX512BF16__)
static inline void narrow_lanes(lanes x, element *out) { _mm256_storeu_si256((__m256i *)out, (__m256i)_mm512_cvtneps_pbh((__m512)x)); }
#elif BF16
static inline void narrow_lanes(lanes x, element *out) { /* as `narrow` */
    typedef uint16_t halves __attribute__((vector_size(32), aligned(2)));
    const words bits = (words)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, number = (words)(x == x);
    *(halves *)out = __builtin_convertvector((rounded & number) | (0x7fc0 & ~number), halves);
}
#else
static inline void narrow_lanes(lanes x, element *out) { *(lanes *)out = x; }
#endif

static inline float sum_of(lanes x) {
    typedef float half __attribute__((vector_size(32)));
    typedef float quarter __attribute__((vector_size(16)));
    union { lanes all; half parts[2]; } a = {x};
    union { half all; quarter parts[2]; } b = {a.parts[0] + a.parts[1]};
    const quarter c = b.parts[0] + b.parts[1];
    return (c[0] + c[2]) + (c[1] + c[3]);
}

/* Lane i is the sum of part[place_of(i)]. */
#if defined(__AVX512F__)
#define ADD(shuffle, a, b, low, high) \
    ((lanes)shuffle((__m512)(a), (__m512)(b), low) + (lanes)shuffle((__m512)(a), (__m512)(b), high))
static inline __attribute__((always_inline)) int place_of(int i) { return 4 * (i % 4) + i / 4; }
static inline __attribute__((always_inline)) lanes sums_of(const lanes *part) {
    lanes eight[8], four[4], two[2];
#pragma GCC unroll 16
    for (int i = 0; i < 8; i++) eight[i] = ADD(_mm512_shuffle_f32x4, part[2 * i], part[2 * i + 1], 0x44, 0xee);
#pragma GCC unroll 16
    for (int i = 0; i < 4; i++) four[i] = ADD(_mm512_shuffle_f32x4, eight[2 * i], eight[2 * i + 1], 0x88, 0xdd);
#pragma GCC unroll 16
    for (int i = 0; i < 2; i++) two[i] = ADD(_mm512_shuffle_ps, four[2 * i], four[2 * i + 1], 0x44, 0xee);
    return ADD(_mm512_shuffle_ps, two[0], two[1], 0x88, 0xdd);
}
#else
static inline __attribute__((always_inline)) int place_of(int i) { return i; }
static inline __attribute__((always_inline)) lanes sums_of(const lanes *part) {
    lanes sums;
    for (int i = 0; i < LANES; i++) sums[i] = sum_of(part[i]);
    return sums;
}
#endif
