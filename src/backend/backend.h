/*
 * backend.h - the operations that a model is made of, one documented entry each.
 *
 * ref.c computes every one in plain C: slow, obviously right, the oracle for all others. The cpu
 * backend starts as a copy of ref and replaces what it does faster. Operations cannot fail: sizes
 * were checked when model and batch were made, and memory was reserved before.
 *
 * Letters: T rows (tokens), D width, H heads, G key/value heads, K head width, F ffn width,
 * V vocabulary, R rank, N outputs of a linear layer. The adjoint of x is dx.
 */
#ifndef IC_BACKEND_H
#define IC_BACKEND_H

#include "format/format.h"

/* A row-major matrix view. Activations are F32 or BF16. Weights may be any float or quantised type;
 * a quantised row is a whole number of blocks and rows follow each other without gaps. */
typedef struct ic_mat {
    void *data;
    ic_dtype dtype;
    int rows, cols;
    size_t stride; /* elements from row to row; cols for quantised types */
    int room;      /* rows that there is memory for; operations may overwrite those beyond `rows` */
} ic_mat;

static inline ic_mat ic_mat_of(void *data, ic_dtype dtype, int rows, int cols)
{
    return (ic_mat){data, dtype, rows, cols, (size_t)cols, rows};
}

/* Pointer to row i. */
static inline void *ic_mat_row(ic_mat m, size_t i)
{
    return (char *)m.data + i * ic_row_bytes(m.dtype, m.stride);
}

/* Rows first … first+count-1 as a view. */
static inline ic_mat ic_mat_rows(ic_mat m, int first, int count)
{
    m.data = ic_mat_row(m, (size_t)first);
    m.rows = m.room = count;
    return m;
}

/* So many rows a matrix should have room for, so that products of all batches are of few sizes. */
static inline int ic_room_for(int rows)
{
    int step = rows <= 8 ? 1 : rows <= 64 ? 16 : rows <= 256 ? 32 : 64;
    return (rows + step - 1) / step * step;
}

typedef enum { IC_SILU, IC_GELU_TANH } ic_activation;

/* One sequence for attention: its queries are `queries` consecutive rows of q and o, the last ones
 * of a sequence of `keys` keys: query i sees keys 0 … keys - queries + i, and with a window W only
 * the last W of those. Keys and values are rows of G*K elements with the row stride given in
 * ic_attention (dtype of q): the first `shared` ones, a multiple of IC_SHARED_ROWS, lie at shared_k and
 * shared_v, the others from k and v on. The adjoint knows no shared ones; dk, dv (layout of k, v, dtype
 * of dq) are only for it. */
typedef struct ic_attention_seq {
    int first_query, queries, keys, shared;
    const void *shared_k, *shared_v, *k, *v;
    void *dk, *dv;
} ic_attention_seq;

enum { IC_SHARED_ROWS = 16 /* as many as the widest kernel packs at a time */ };

typedef struct ic_attention {
    const ic_attention_seq *seqs;
    int count;
    int heads, kv_heads, head_width; /* H, G, K; query head h reads kv head h / (H / G) */
    int window;                      /* 0: none */
    float scale;
    size_t kv_stride; /* elements from key to key */
} ic_attention;

/* Where key j of a sequence lies, or its value … */
static inline const void *ic_attention_at(const ic_attention *a, const ic_attention_seq *s,
                                          bool value, ic_dtype type, int j)
{
    bool shared = j < s->shared;
    const char *base = value ? (shared ? s->shared_v : s->v) : (shared ? s->shared_k : s->k);
    return base + (size_t)(shared ? j : j - s->shared) * ic_row_bytes(type, a->kv_stride);
}

/* … and how many from there on lie one after the other, of the next n. */
static inline int ic_attention_run(const ic_attention_seq *s, int j, int n)
{
    return j < s->shared ? IC_MIN(n, s->shared - j) : n;
}

/* What the fidelity check and the losses want to know of a row of logits. */
typedef struct ic_score {
    float nll;    /* -log softmax(logits)[target] */
    int32_t best; /* argmax, lowest id wins ties */
    float best_logit, second_logit, target_logit;
} ic_score;

typedef struct ic_backend ic_backend;
struct ic_backend {
    const char *name;
    int threads;
    bool counting; /* operations do nothing: used to measure memory */
    bool bf16;     /* bf16 products run at least as fast as f32 ones */
    char isa[32];  /* "avx512-bf16", … for messages */
    void *state;   /* private */

    void (*free)(ic_backend *be);

    /* Matrix products. Arithmetic is that of x (F32, or BF16 with f32 accumulation); w of any type is
     * decoded as needed. `accumulate` adds to what y holds. y is F32 or x's type. No aliasing.
     *   linear:   y[T,N] = alpha * x[T,C] w[N,C]^T + bias[N]      (bias NULL: none)
     *   linear_t: y[T,C] = alpha * x[T,N] w[N,C]                  (input gradient of linear)
     *   outer:    y[M,N] += alpha * a[T,M]^T b[T,N], y F32        (weight gradient) */
    void (*linear)(ic_backend *be, ic_mat y, ic_mat x, ic_mat w, const float *bias, float alpha,
                   bool accumulate);
    void (*linear_t)(ic_backend *be, ic_mat y, ic_mat x, ic_mat w, float alpha, bool accumulate);
    void (*outer)(ic_backend *be, ic_mat y, ic_mat a, ic_mat b, float alpha);

    /* dst[to[i]] (+)= scale * src[from[i]], i < n; NULL index: i itself. Types convert; src may be a
     * quantised table. Rows in `to` must differ from each other unless `accumulate`, which adds in
     * the order of i. */
    void (*rows)(ic_backend *be, ic_mat dst, const int32_t *to, ic_mat src, const int32_t *from,
                 int n, float scale, bool accumulate);

    /* y = x / sqrt(mean(x^2) + eps) * w, by rows. y may be x. */
    void (*rmsnorm)(ic_backend *be, ic_mat y, ic_mat x, const float *w, float eps);
    /* dx (+)= adjoint of the above at x. */
    void (*rmsnorm_back)(ic_backend *be, ic_mat dx, ic_mat dy, ic_mat x, const float *w, float eps,
                         bool accumulate);

    /* Rotary embedding in place: x[T, heads*K]; the first 2*half elements of every head turn by the
     * angles whose cosine and sine are given, [T, half]. Pairs are (i, i + half), or (2i, 2i + 1) if
     * `interleaved`. sign -1 turns back (the adjoint). */
    void (*rope)(ic_backend *be, ic_mat x, int heads, int half, const float *cosine,
                 const float *sine, bool interleaved, float sign);

    /* o[T,H*K] = softmax(scale q k^T) v. `lse` [T,H] (row of q, head) gets log-sum-exp of the scaled
     * scores if not NULL. q, k, v, o of one type. */
    void (*attention)(ic_backend *be, ic_mat o, ic_mat q, const ic_attention *a, float *lse);
    /* dq, and dk, dv of every sequence, are overwritten (dk, dv: added to). */
    void (*attention_back)(ic_backend *be, ic_mat dq, ic_mat dout, ic_mat o, ic_mat q,
                           const ic_attention *a, const float *lse);

    /* y = act(gate) * up. y may be gate. */
    void (*glu)(ic_backend *be, ic_mat y, ic_mat gate, ic_mat up, ic_activation act);
    /* dgate and dup from dy; either may alias dy. */
    void (*glu_back)(ic_backend *be, ic_mat dgate, ic_mat dup, ic_mat dy, ic_mat gate, ic_mat up,
                     ic_activation act);

    /* Scores of logits [T,V] F32 against targets [T]. */
    void (*score)(ic_backend *be, ic_score *out, ic_mat logits, const int32_t *targets);
    /* logits become weight[t] * (softmax - onehot(target)), in place. */
    void (*score_back)(ic_backend *be, ic_mat logits, const int32_t *targets, const float *weight);

    /* y = x * mask / (1 - p), the mask drawn from (seed, stream) by element. y may be x. */
    void (*dropout)(ic_backend *be, ic_mat y, ic_mat x, float p, uint64_t seed, uint64_t stream);

    /* One AdamW step over n flat parameters with bias corrections c1 = 1 - beta1^t, c2 likewise;
     * decay is decoupled (p -= lr * decay * p first). g is multiplied by grad_scale. */
    void (*adamw)(ic_backend *be, float *p, float *m, float *v, const float *g, size_t n, float lr,
                  float beta1, float beta2, float eps, float decay, float c1, float c2,
                  float grad_scale);
    double (*sum_squares)(ic_backend *be, const float *x, size_t n);
};

/* Plain C; the oracle. */
int ic_backend_ref_new(ic_backend **out);
/* oneDNN and SIMD kernels, chosen by what this CPU has; 0 threads: one a physical core. The
 * environment variable ICAE_ISA (amx, avx512-bf16, avx512, avx2, generic) restricts it, for tests. */
int ic_backend_cpu_new(ic_backend **out, int threads);
/* Does nothing: runs a model to measure memory. */
int ic_backend_counting_new(ic_backend **out);
void ic_backend_free(ic_backend *be);

/* Fills the table with the reference operations; other backends start from it. */
void ic_backend_ref_fill(ic_backend *be);

#endif
