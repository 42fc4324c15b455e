/*
 * ref_attention.c - causal attention of packed sequences and its adjoint, straight from the
 * formulas.
 *
 * Scores are recomputed where they are needed instead of being kept, so any length runs without
 * scratch memory. Sums are taken in double.
 */
#include "backend/ref.h"

#include <math.h>

enum { CHUNK = 256 /* elements of a head that are summed at a time */ };

static double element(const void *base, ic_dtype t, size_t i)
{
    float v;
    ic_to_f32(&v, (const char *)base + i * (size_t)ic_dtypes[t].bytes, t, 1);
    return v;
}

static void add_element(void *base, ic_dtype t, size_t i, double v)
{
    float sum = (float)(element(base, t, i) + v);
    ic_from_f32((char *)base + i * (size_t)ic_dtypes[t].bytes, &sum, t, 1);
}

/* One query row and head of one sequence: where its vectors start and which keys it sees. */
typedef struct place {
    size_t row;       /* of q, o */
    size_t column;    /* first element of the head in q, o */
    size_t kv_column; /* first element of the kv head in k, v */
    int first, end;   /* keys */
} place;

static place place_of(const ic_attention *a, const ic_attention_seq *s, int query, int head)
{
    int end = s->keys - s->queries + query + 1;
    return (place){
        .row = (size_t)(s->first_query + query),
        .column = (size_t)head * (size_t)a->head_width,
        .kv_column = (size_t)(head / (a->heads / a->kv_heads)) * (size_t)a->head_width,
        .first = a->window ? IC_MAX(0, end - a->window) : 0,
        .end = end,
    };
}

/* x (row of a matrix like q) times a key or value. */
static double dot(const ic_attention *a, ic_mat x, const void *kv, ic_dtype kv_type, place p)
{
    double sum = 0;
    const char *xs = (const char *)x.data + ic_row_bytes(x.dtype, p.row * x.stride + p.column);
    const char *ys = (const char *)kv + ic_row_bytes(kv_type, p.kv_column);
    for (size_t d0 = 0; d0 < (size_t)a->head_width; d0 += CHUNK) {
        float xv[CHUNK], yv[CHUNK];
        size_t count = IC_MIN((size_t)CHUNK, (size_t)a->head_width - d0);
        ic_to_f32(xv, xs + ic_row_bytes(x.dtype, d0), x.dtype, count);
        ic_to_f32(yv, ys + ic_row_bytes(kv_type, d0), kv_type, count);
        for (size_t d = 0; d < count; d++)
            sum += (double)xv[d] * yv[d];
    }
    return sum;
}

static double score(const ic_attention *a, const ic_attention_seq *s, ic_mat q, place p, int j)
{
    return a->scale * dot(a, q, ic_attention_at(a, s, false, q.dtype, j), q.dtype, p);
}

static void attend(const ic_attention *a, const ic_attention_seq *s, ic_mat o, ic_mat q, place p,
                   float *lse)
{
    double max = -INFINITY, sum = 0;
    for (int j = p.first; j < p.end; j++)
        max = fmax(max, score(a, s, q, p, j));
    for (int j = p.first; j < p.end; j++)
        sum += exp(score(a, s, q, p, j) - max);
    if (lse)
        *lse = (float)(max + log(sum));

    for (int d0 = 0; d0 < a->head_width; d0 += CHUNK) {
        int count = IC_MIN(CHUNK, a->head_width - d0);
        double out[CHUNK] = {0};
        for (int j = p.first; j < p.end; j++) {
            double weight = exp(score(a, s, q, p, j) - max) / sum;
            const void *v = ic_attention_at(a, s, true, q.dtype, j);
            for (int d = 0; d < count; d++)
                out[d] += weight * element(v, q.dtype, p.kv_column + (size_t)(d0 + d));
        }
        for (int d = 0; d < count; d++) {
            float v = (float)out[d];
            size_t at = p.row * o.stride + p.column + (size_t)(d0 + d);
            ic_from_f32((char *)o.data + at * (size_t)ic_dtypes[o.dtype].bytes, &v, o.dtype, 1);
        }
    }
}

void ic_ref_attention(ic_backend *be, ic_mat o, ic_mat q, const ic_attention *a, float *lse)
{
    (void)be;
    for (int i = 0; i < a->count; i++) {
        const ic_attention_seq *s = &a->seqs[i];
        for (int query = 0; query < s->queries; query++) {
            for (int h = 0; h < a->heads; h++) {
                place p = place_of(a, s, query, h);
                attend(a, s, o, q, p, lse ? &lse[p.row * (size_t)a->heads + (size_t)h] : NULL);
            }
        }
    }
}

/* What the adjoint needs: p = exp(s - lse), delta = do.o, ds = p (do.v - delta) scale; then
 * dq = ds k, dk += ds^T q, dv += p^T do. */
typedef struct back {
    const ic_attention *a;
    const ic_attention_seq *s;
    ic_mat dq, dout, o, q;
    const float *lse;
} back;

static double delta_of(const back *b, place p)
{
    double delta = 0;
    for (size_t d = 0; d < (size_t)b->a->head_width; d++)
        delta += element(b->dout.data, b->dout.dtype, p.row * b->dout.stride + p.column + d) *
                 element(b->o.data, b->o.dtype, p.row * b->o.stride + p.column + d);
    return delta;
}

/* Returns p of key j, and ds. */
static double slope(const back *b, place p, int head, int j, double delta, double *ds)
{
    double lse = b->lse[p.row * (size_t)b->a->heads + (size_t)head];
    double weight = exp(score(b->a, b->s, b->q, p, j) - lse);
    const void *v = ic_attention_at(b->a, b->s, true, b->q.dtype, j);
    *ds = weight * (dot(b->a, b->dout, v, b->q.dtype, p) - delta) * b->a->scale;
    return weight;
}

static void back_query(const back *b, int query, int head)
{
    place p = place_of(b->a, b->s, query, head);
    double delta = delta_of(b, p), ds;
    for (size_t d0 = 0; d0 < (size_t)b->a->head_width; d0 += CHUNK) {
        size_t count = IC_MIN((size_t)CHUNK, (size_t)b->a->head_width - d0);
        double sum[CHUNK] = {0};
        for (int j = p.first; j < p.end; j++) {
            slope(b, p, head, j, delta, &ds);
            for (size_t d = 0; d < count; d++)
                sum[d] += ds * element(b->s->k, b->q.dtype,
                                       (size_t)j * b->a->kv_stride + p.kv_column + d0 + d);
        }
        for (size_t d = 0; d < count; d++) {
            float v = (float)sum[d];
            size_t at = p.row * b->dq.stride + p.column + d0 + d;
            ic_from_f32((char *)b->dq.data + at * (size_t)ic_dtypes[b->dq.dtype].bytes, &v,
                        b->dq.dtype, 1);
        }
    }
}

static void back_key(const back *b, int j, int kv_head)
{
    int group = b->a->heads / b->a->kv_heads;
    size_t at = (size_t)j * b->a->kv_stride + (size_t)kv_head * (size_t)b->a->head_width;
    for (size_t d0 = 0; d0 < (size_t)b->a->head_width; d0 += CHUNK) {
        size_t count = IC_MIN((size_t)CHUNK, (size_t)b->a->head_width - d0);
        double dk[CHUNK] = {0}, dv[CHUNK] = {0}, ds;
        for (int i = 0; i < b->s->queries * group; i++) {
            int head = kv_head * group + i % group;
            place p = place_of(b->a, b->s, i / group, head);
            if (j < p.first || j >= p.end)
                continue;
            double weight = slope(b, p, head, j, delta_of(b, p), &ds);
            for (size_t d = 0; d < count; d++) {
                dk[d] +=
                    ds * element(b->q.data, b->q.dtype, p.row * b->q.stride + p.column + d0 + d);
                dv[d] += weight * element(b->dout.data, b->dout.dtype,
                                          p.row * b->dout.stride + p.column + d0 + d);
            }
        }
        for (size_t d = 0; d < count; d++) {
            add_element(b->s->dk, b->dq.dtype, at + d0 + d, dk[d]);
            add_element(b->s->dv, b->dq.dtype, at + d0 + d, dv[d]);
        }
    }
}

void ic_ref_attention_back(ic_backend *be, ic_mat dq, ic_mat dout, ic_mat o, ic_mat q,
                           const ic_attention *a, const float *lse)
{
    (void)be;
    for (int i = 0; i < a->count; i++) {
        back b = {a, &a->seqs[i], dq, dout, o, q, lse};
        for (int query = 0; query < b.s->queries; query++)
            for (int h = 0; h < a->heads; h++)
                back_query(&b, query, h);
        for (int j = 0; j < b.s->keys; j++)
            for (int h = 0; h < a->kv_heads; h++)
                back_key(&b, j, h);
    }
}
