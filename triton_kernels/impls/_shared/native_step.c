/* The small operations of a step for a CPU, one pass each: at a few rows they are mostly the overhead of being called, at many
   rows they are bound by memory. Strides are in elements; rows of a tensor [outer, inner, H] are counted through: row r starts at
   (r / inner) * outer_stride + (r % inner) * inner_stride. */
#include "native.h"

struct embedding {
    const int64_t *ids;
    const element *table; /* panels of rows; a row is steps of elements */
    element *out;         /* contiguous rows */
    int64_t num_tokens, first, num_rows, panel, steps, step, panel_stride, row_stride, step_stride;
};

void embedding(const struct embedding *c) {
#pragma omp for
    for (int64_t t = 0; t < c->num_tokens; t++) {
        const int64_t row = c->ids[t] - c->first;
        element *out = c->out + t * c->steps * c->step;
        if (row < 0 || row >= c->num_rows) {
            memset(out, 0, (size_t)(c->steps * c->step) * sizeof(element));
            continue;
        }
        const element *in = c->table + row / c->panel * c->panel_stride + row % c->panel * c->row_stride;
        for (int64_t s = 0; s < c->steps; s++)
            for (int64_t i = 0; i < c->step; i++) *out++ = in[s * c->step_stride + i];
    }
}

struct rms_norm {
    const element *x;
    element *residual;   /* or null */
    const float *factor; /* offset + weight */
    element *out;        /* contiguous rows */
    int64_t num_rows, inner, width, x_outer, x_inner, residual_outer, residual_inner;
    float eps;
};

void rms_norm(const struct rms_norm *c) {
#pragma omp for
    for (int64_t r = 0; r < c->num_rows; r++) {
        const element *source = c->x + r / c->inner * c->x_outer + r % c->inner * c->x_inner;
        element *target = c->out + r * c->width;
        float squares = 0;
        if (c->residual) {
            element *sum = c->residual + r / c->inner * c->residual_outer + r % c->inner * c->residual_inner;
            for (int64_t i = 0; i < c->width; i++) sum[i] = narrow(widen(source[i]) + widen(sum[i]));
            source = sum;
        }
        for (int64_t i = 0; i < c->width; i++) squares += widen(source[i]) * widen(source[i]);
        const float scale = 1.0f / sqrtf(squares / (float)c->width + c->eps);
        for (int64_t i = 0; i < c->width; i++) target[i] = narrow(widen(source[i]) * scale * c->factor[i]);
    }
}

struct rotary {
    element *q, *k;
    const int64_t *positions;
    const float *cos_sin;
    int64_t num_tokens, num_heads, num_kv_heads, q_token, q_head, k_token, k_head, half, gptj;
};

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

void rotary(const struct rotary *c) {
#pragma omp for
    for (int64_t t = 0; t < c->num_tokens; t++) {
        const float *cos = c->cos_sin + c->positions[t] * 2 * c->half, *sin = cos + c->half;
        for (int64_t h = 0; h < c->num_heads; h++) rotate(c->q + t * c->q_token + h * c->q_head, cos, sin, c->half, c->gptj);
        for (int64_t h = 0; h < c->num_kv_heads; h++) rotate(c->k + t * c->k_token + h * c->k_head, cos, sin, c->half, c->gptj);
    }
}

struct silu_and_mul {
    const element *x;
    element *out;
    int64_t num_rows, x_row, width;
};

void silu_and_mul(const struct silu_and_mul *c) {
#pragma omp for
    for (int64_t r = 0; r < c->num_rows; r++) {
        const element *gate = c->x + r * c->x_row, *up = gate + c->width;
        element *target = c->out + r * c->width;
        for (int64_t i = 0; i < c->width; i++) {
            const float g = widen(gate[i]);
            target[i] = narrow(g / (1.0f + exponential(-g)) * widen(up[i]));
        }
    }
}

struct kv_cache_write {
    const element *k, *v;
    element *k_cache, *v_cache;
    const int64_t *slots;
    int64_t num_tokens, num_heads, page_size, k_dim, v_dim, k_token, k_head, v_token, v_head;
    int64_t k_cache_page, k_cache_slot, k_cache_head, v_cache_page, v_cache_slot, v_cache_head;
};

void kv_cache_write(const struct kv_cache_write *c) {
#pragma omp for
    for (int64_t t = 0; t < c->num_tokens; t++) {
        if (c->slots[t] < 0) continue;
        const int64_t page = c->slots[t] / c->page_size, slot = c->slots[t] % c->page_size;
        for (int64_t h = 0; h < c->num_heads; h++) {
            memcpy(c->k_cache + page * c->k_cache_page + slot * c->k_cache_slot + h * c->k_cache_head,
                   c->k + t * c->k_token + h * c->k_head, (size_t)c->k_dim * sizeof(element));
            memcpy(c->v_cache + page * c->v_cache_page + slot * c->v_cache_slot + h * c->v_cache_head,
                   c->v + t * c->v_token + h * c->v_head, (size_t)c->v_dim * sizeof(element));
        }
    }
}

struct slot_mapping {
    const int64_t *positions;
    const int32_t *cu_q, *seq_lens, *block_table;
    int64_t *slots;
    int64_t num_tokens, num_reqs, table_row, page_size;
};

void slot_mapping(const struct slot_mapping *c) {
#pragma omp single
    {
        int64_t t = 0;
        for (int64_t r = 0; r < c->num_reqs; r++) {
            const int32_t *pages = c->block_table + r * c->table_row;
            for (; t < c->cu_q[r + 1]; t++) {
                const int64_t position = c->positions[t];
                c->slots[t] = c->seq_lens[r] > 0 ? pages[position / c->page_size] * c->page_size + position % c->page_size : -1;
            }
        }
        for (; t < c->num_tokens; t++) c->slots[t] = -1;
    }
}
