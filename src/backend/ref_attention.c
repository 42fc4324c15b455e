/*
 * ref_attention.c - causal attention of packed sequences and its adjoint, straight from the
 * formulas.
 *
 * Scores are recomputed where they are needed instead of being kept, so any length runs without
 * scratch memory. Sums are taken in double.
 */
#include "backend/ref.h"

#include <math.h>

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

/* x (row of a matrix like q) times key or value j. */
static double dot(const ic_attention *a, ic_mat x, const void *kv, ic_dtype kv_type, place p, int j)
{
    double sum = 0;
    size_t at = (size_t)j * a->kv_stride + p.kv_column;
    for (size_t d = 0; d < (size_t)a->head_width; d++)
        sum += element(x.data, x.dtype, p.row * x.stride + p.column + d) *
               element(kv, kv_type, at + d);
    return sum;
}

static void attend(const ic_attention *a, const ic_attention_seq *s, ic_mat o, ic_mat q, place p,
                   float *lse)
{
    double max = -INFINITY, sum = 0;
    for (int j = p.first; j < p.end; j++)
        max = fmax(max, a->scale * dot(a, q, s->k, q.dtype, p, j));
    for (int j = p.first; j < p.end; j++)
        sum += exp(a->scale * dot(a, q, s->k, q.dtype, p, j) - max);
    if (lse)
        *lse = (float)(max + log(sum));

    enum { CHUNK = 256 };
    for (int d0 = 0; d0 < a->head_width; d0 += CHUNK) {
        int count = IC_MIN(CHUNK, a->head_width - d0);
        double out[CHUNK] = {0};
        for (int j = p.first; j < p.end; j++) {
            double weight = exp(a->scale * dot(a, q, s->k, q.dtype, p, j) - max) / sum;
            size_t at = (size_t)j * a->kv_stride + p.kv_column + (size_t)d0;
            for (int d = 0; d < count; d++)
                out[d] += weight * element(s->v, q.dtype, at + (size_t)d);
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

/* p = exp(s - lse); delta = do.o; ds = p (do.v - delta) scale; dq += ds k; dk += ds q; dv += p do.
 */
static void attend_back(const ic_attention *a, const ic_attention_seq *s, ic_mat dq, ic_mat dout,
                        ic_mat o, ic_mat q, place p, double lse)
{
    double delta = 0;
    for (size_t d = 0; d < (size_t)a->head_width; d++)
        delta += element(dout.data, dout.dtype, p.row * dout.stride + p.column + d) *
                 element(o.data, o.dtype, p.row * o.stride + p.column + d);
    enum { CHUNK = 256 };
    for (size_t d0 = 0; d0 < (size_t)a->head_width; d0 += CHUNK) {
        size_t count = IC_MIN((size_t)CHUNK, (size_t)a->head_width - d0);
        double sum[CHUNK] = {0};
        for (int j = p.first; j < p.end; j++) {
            double weight = exp(a->scale * dot(a, q, s->k, q.dtype, p, j) - lse);
            double ds = weight * (dot(a, dout, s->v, q.dtype, p, j) - delta) * a->scale;
            size_t at = (size_t)j * a->kv_stride + p.kv_column + d0;
            size_t qat = p.row * q.stride + p.column + d0;
            size_t doat = p.row * dout.stride + p.column + d0;
            for (size_t d = 0; d < count; d++) {
                sum[d] += ds * element(s->k, q.dtype, at + d);
                add_element(s->dk, dq.dtype, at + d, ds * element(q.data, q.dtype, qat + d));
                add_element(s->dv, dq.dtype, at + d,
                            weight * element(dout.data, dout.dtype, doat + d));
            }
        }
        for (size_t d = 0; d < count; d++) {
            float v = (float)sum[d];
            size_t at = p.row * dq.stride + p.column + d0 + d;
            ic_from_f32((char *)dq.data + at * (size_t)ic_dtypes[dq.dtype].bytes, &v, dq.dtype, 1);
        }
    }
}

void ic_ref_attention_back(ic_backend *be, ic_mat dq, ic_mat dout, ic_mat o, ic_mat q,
                           const ic_attention *a, const float *lse)
{
    (void)be;
    for (int i = 0; i < a->count; i++) {
        const ic_attention_seq *s = &a->seqs[i];
        for (int query = 0; query < s->queries; query++) {
            for (int h = 0; h < a->heads; h++) {
                place p = place_of(a, s, query, h);
                attend_back(a, s, dq, dout, o, q, p, lse[p.row * (size_t)a->heads + (size_t)h]);
            }
        }
    }
}
