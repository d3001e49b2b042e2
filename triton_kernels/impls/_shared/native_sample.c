/* The most likely token of every greedy row; a row that wants a random token is only marked. */
#include "native.h"

struct greedy {
    const float *logits;        /* [R, V], contiguous rows */
    const int32_t *row_to_seat; /* [R] */
    const float *temperature;   /* per seat */
    int32_t *tokens;            /* [R]: the token, -1 = none can be taken, -2 = random */
    int64_t num_rows, vocab_size, row;
};

/* Floats compared as integers, which vectorizes although NaN and infinities mean something. */
static int32_t first_of_largest(const float *x, int64_t count) {
    typedef int32_t __attribute__((may_alias)) bits;
    const bits *word = (const bits *)x;
    const int32_t infinity = 0x7f800000;
    int32_t best = INT32_MIN, nan = 0;
    for (int64_t i = 0; i < count; i++) {
        const int32_t size = word[i] & 0x7fffffff, ordered = word[i] ^ ((word[i] >> 31) & 0x7fffffff);
        best = ordered > best ? ordered : best;
        nan |= size > infinity;
    }
    union { int32_t word; float value; } largest = {best ^ ((best >> 31) & 0x7fffffff)};
    if (nan || (largest.word & 0x7fffffff) == infinity) return -1;
    int64_t i = 0;
    while (x[i] != largest.value) i++;
    return (int32_t)i;
}

void greedy(const struct greedy *c) {
#pragma omp for
    for (int64_t r = 0; r < c->num_rows; r++) {
        const int32_t seat = c->row_to_seat[r];
        c->tokens[r] = seat < 0 ? -1 : c->temperature[seat] != 0 ? -2 : first_of_largest(c->logits + r * c->row, c->vocab_size);
    }
}
