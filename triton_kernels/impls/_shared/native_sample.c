/* What happens to logits: penalties, and the most likely token of every greedy row. */
#include "native.h"

struct penalties {
    float *logits;                /* [R, V], contiguous rows */
    const int32_t *row_to_seat;   /* [R]; -1: leave the row */
    const uint32_t *bitmask;      /* [R, ceil(V/32)] or NULL: token t is allowed where bit t%32 of word t/32 is set */
    const uint32_t *prompt_mask;  /* [S, ceil(V/32)] */
    const int32_t *output_counts; /* [S, V] */
    const float *repetition, *frequency, *presence; /* [S] */
    const int32_t *bias_ids;      /* [S, B]; -1: no entry */
    const float *bias_values;     /* [S, B] */
    const int32_t *drafts;        /* [R, D] or NULL; -1: no entry */
    int64_t num_rows, vocab_size, row, num_bias, num_drafts;
};

static void forbid(float *x, const uint32_t *mask, int64_t count) {
    int64_t w = 0;
    for (; w < count / 32; w++, x += 32) {
        const uint32_t word = mask[w];
        if (word == UINT32_MAX) continue;
        for (int t = 0; t < 32; t++) x[t] = word >> t & 1 ? x[t] : -INFINITY;
    }
    for (int64_t t = 0; t < count % 32; t++) x[t] = mask[w] >> t & 1 ? x[t] : -INFINITY;
}

/* A token's bits are the same whether it is one of all or of a few: what the compiler could round in two ways is written as a fused
   operation. */
static void penalize(float *x, const uint32_t *prompt, const int32_t *counts, float factor, float frequency, float presence,
                     int64_t count) {
    if (factor != 1)
        for (int64_t t = 0; t < count; t++) {
            const float changed = x[t] > 0 ? x[t] / factor : x[t] * factor;
            x[t] = (prompt[t / 32] >> t % 32 & 1) | (counts[t] > 0) ? changed : x[t];
        }
    if (frequency != 0 || presence != 0)
        for (int64_t t = 0; t < count; t++)
            x[t] = __builtin_fmaf(-frequency, (float)counts[t], x[t]) - (counts[t] > 0 ? presence : 0);
}

void penalties(const struct penalties *c) {
    const int64_t vocab = c->vocab_size, words = (vocab + 31) / 32, num_drafts = c->num_drafts;
#pragma omp for
    for (int64_t r = 0; r < c->num_rows; r++) {
        const int64_t seat = c->row_to_seat[r];
        if (seat < 0) continue;
        float *x = c->logits + r * c->row;
        const int32_t *counts = c->output_counts + seat * vocab, *drafts = c->drafts + r * num_drafts;
        const uint32_t *prompt = c->prompt_mask + seat * words;
        const float factor = c->repetition[seat], frequency = c->frequency[seat], presence = c->presence[seat];
        if (c->bitmask) forbid(x, c->bitmask + r * words, vocab);
        for (int64_t b = seat * c->num_bias; b < (seat + 1) * c->num_bias; b++)
            if (c->bias_ids[b] >= 0) x[c->bias_ids[b]] += c->bias_values[b];
        if (factor == 1 && frequency == 0 && presence == 0) continue;
        float values[num_drafts + 1]; /* the drafts before the row, apart */
        int32_t tokens[num_drafts + 1], draft_counts[num_drafts + 1];
        uint32_t draft_prompt[num_drafts / 32 + 1];
        int64_t num = 0;
        memset(draft_prompt, 0, sizeof draft_prompt);
        for (int64_t d = 0; d < num_drafts; d++) {
            const int32_t token = drafts[d];
            if (token < 0) continue;
            int32_t count = counts[token];
            for (int64_t other = 0; other < num_drafts; other++) count += drafts[other] == token;
            draft_prompt[num / 32] |= (prompt[token / 32] >> token % 32 & 1) << num % 32;
            values[num] = x[token];
            draft_counts[num] = count;
            tokens[num++] = token;
        }
        penalize(x, prompt, counts, factor, frequency, presence, vocab);
        penalize(values, draft_prompt, draft_counts, factor, frequency, presence, num);
        for (int64_t d = 0; d < num; d++) x[tokens[d]] = values[d];
    }
}

/* A row that wants a random token is only marked. */
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
