/* What the C sources of CPU impls share. Compiled for one element type: -DBF16=0|1; arithmetic is float32.

   A kernel is a function `void name(const struct name *call)`, and runs in all threads of a team at once: `replay` (native_replay.c)
   opens the team, for one call or for a recorded list of them. A kernel shares its work out with `#pragma omp for`, whose barrier
   at the end is also what the next kernel of a list waits for, unless a kernel says otherwise. */
#include <math.h>
#include <stdint.h>
#include <string.h>

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

/* exp(x) in operations that vectorize; 0 below -87, where the result is no normal number. Polynomial: Cephes, expf. */
static inline float exponential(float x) {
    const float bounded = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
    const float n = __builtin_rintf(bounded * 1.44269504f), f = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    union { int32_t bits; float value; } power = {((int32_t)n + 127) << 23};
    return x < -87.0f ? 0.0f : (p * f * f + f + 1.0f) * power.value;
}
