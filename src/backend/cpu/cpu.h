/*
 * cpu.h - what the files of the cpu backend share: its state, the kernels of an instruction set, and
 * matrix products.
 *
 * cpu.c owns the state and the simple operations, linear.c chooses how a linear layer is computed,
 * matmul.c is the only file that knows oneDNN, product.c stands in where oneDNN cannot, attention.c
 * shares attention out to threads. kernels_*.c compile the .inc files once per instruction set.
 */
#ifndef IC_CPU_H
#define IC_CPU_H

#include "backend/backend.h"

#include <stdatomic.h>

enum {
    IC_MAX_THREADS = 512,
    IC_GEMV_ROWS = 8,       /* up to so many rows weights are streamed straight from memory */
    IC_GEMV_PAIRS = 32,     /* the same for bf16 by bf16 */
    IC_TILE_ROWS = 16,      /* of a tile of AMX; of x that are packed together */
    IC_TILE_MOST = 64,      /* rows of x: from there on oneDNN is faster */
    IC_GEMV_STREAMS = 6,    /* rows of weights that one thread reads at a time */
    IC_SERIAL_WORK = 65536, /* see ic_cpu_threads */
    IC_PRODUCT_ROWS = 192,  /* block of a product that one thread computes */
    IC_PRODUCT_COLS = 64,
    IC_ATTENTION_ROWS = 128,  /* queries times heads of a group that share packed keys */
    IC_ATTENTION_WIDTH = 512, /* widest head of the fast kernels */
};

/* y[T, first … end-1] of a linear layer with few rows. x is F32, or BF16 where the kernels have bf16
 * dot products and w is BF16 or quantised. */
typedef struct ic_gemv {
    ic_mat y, x, w;
    const float *sums; /* of a BF16 x over groups of 32, [T, C / 32]; for quantised w */
    const float *bias;
    float alpha;
    bool accumulate;
} ic_gemv;

/* c[m,n] (+)= alpha * op(a) op(b) + bias[n]; a and b of one type, F32 or BF16. */
typedef struct ic_product {
    const void *a, *b;
    void *c;
    const float *bias;
    int m, n, k;
    size_t lda, ldb, ldc;
    bool ta; /* a is stored [k, m] */
    bool tb; /* b is stored [n, k] */
    ic_dtype in, out;
    float alpha;
    bool accumulate;
} ic_product;

/* Some queries of one sequence with all query heads of one kv head. */
typedef struct ic_attention_block {
    const ic_attention *a;
    const ic_attention_seq *s;
    ic_mat o, q;
    float *lse;
    int kv_head, group;
    int first, count; /* queries; count * group is at most IC_ATTENTION_ROWS */
} ic_attention_block;

/* The adjoint, for one sequence and one kv head: all queries. f.lse is not used. */
typedef struct ic_attention_back_task {
    ic_attention_block f;
    ic_mat dq, dout;
    const float *lse;
} ic_attention_back_task;

/* A row of F32 or, `b`, BF16 elements. */
typedef struct ic_row {
    void *data;
    bool b;
} ic_row;

typedef struct ic_adamw {
    float lr, beta1, beta2, eps, decay, c1, c2, grad_scale;
} ic_adamw;

/* Kernels run on one thread; the operations of backend.h of the same name say what they compute. */
typedef struct ic_kernels {
    const char *isa;
    bool bf16_dot;
    /* n values of any type to F32 or BF16; a whole number of blocks */
    void (*decode)(void *dst, bool dst_b, const void *src, ic_dtype t, size_t n);
    /* rows first … end-1 of w; with apart > 0, for one BF16 row of x by BF16 weights of a multiple of 64
     * columns, also the rows `apart`, 2 apart … (IC_GEMV_STREAMS - 1) apart behind each */
    void (*gemv)(const ic_gemv *g, int first, int end, int apart);
    void (*group_sums)(float *sums, const uint16_t *x, int n);
    /* AMX, else NULL: a group of IC_TILE_ROWS rows of x packed, each in as many bytes as a row takes; rows
     * first … end-1 of w (multiples of 16) by all of x, both BF16 of a multiple of 32 columns */
    void (*pack_tiles)(void *packed, ic_mat x, int group);
    void (*tiles)(const ic_gemv *g, const void *packed, int first, int end);
    void (*product)(const ic_product *p, int m0, int n0, float *scratch);
    size_t (*product_words)(void); /* scratch that the above needs */
    void (*attend)(const ic_attention_block *t, float *scratch);
    void (*attend_back)(const ic_attention_back_task *t, float *scratch, size_t words);
    size_t (*attend_words)(int head_width); /* scratch that the two need */
    size_t (*attend_back_words)(int head_width);
    void (*rmsnorm)(ic_row y, ic_row x, const float *w, int n, float eps);
    void (*rmsnorm_back)(ic_row dx, ic_row dy, ic_row x, const float *w, int n, float eps,
                         bool accumulate);
    void (*rope)(ic_row x, int heads, int width, int half, const float *cosine, const float *sine,
                 bool interleaved, float sign);
    void (*glu)(ic_row y, ic_row gate, ic_row up, int n, ic_activation act);
    void (*glu_back)(ic_row dgate, ic_row dup, ic_row dy, ic_row gate, ic_row up, int n,
                     ic_activation act);
    void (*add)(ic_row dst, ic_row src, int n, float scale, bool accumulate);
    void (*dropout)(ic_row y, ic_row x, int n, float p, uint64_t seed, uint64_t stream,
                    uint64_t index);
    void (*score)(ic_score *out, const float *row, int n, int32_t target);
    void (*score_back)(float *row, int n, int32_t target, float weight);
    void (*adamw)(float *p, float *m, float *v, const float *g, size_t n, const ic_adamw *a);
    double (*sum_squares)(const float *x, size_t n);
} ic_kernels;

extern const ic_kernels ic_kernels_generic;
#if defined(__x86_64__)
extern const ic_kernels ic_kernels_avx2, ic_kernels_avx512, ic_kernels_avx512_bf16, ic_kernels_amx;
#endif

typedef struct ic_matmul ic_matmul; /* plans of the matrix library */

/* Rows of a product that are left of a thread's share: first, and above it end. */
typedef struct ic_cpu_share {
    _Alignas(64) _Atomic uint64_t rows; /* a cache line each */
} ic_cpu_share;

typedef struct ic_cpu {
    ic_backend ref; /* for what is not done faster */
    const ic_kernels *k;
    int threads;
    ic_matmul *matmul; /* NULL: without oneDNN */
    char *weights;     /* scratch: decoded weights */
    size_t weights_size;
    char *rows; /* scratch: converted activations */
    size_t rows_size;
    float *private; /* scratch: private_words for every thread */
    size_t private_words;
    ic_cpu_share *shares; /* one a thread */
} ic_cpu;

static inline ic_cpu *ic_cpu_of(ic_backend *be)
{
    return be->state;
}

/* The part-th of `parts` nearly equal shares of n, cut at multiples of `step`. */
static inline void ic_share(int n, int step, int part, int parts, int *first, int *end)
{
    int64_t units = ((int64_t)n + step - 1) / step;
    *first = (int)IC_MIN((int64_t)n, units * part / parts * step);
    *end = (int)IC_MIN((int64_t)n, units * (part + 1) / parts * step);
}

/* What a multiplication with accumulation is in elements of an elementwise operation: in products, in
 * attention, in products that wait for their weights. */
enum { IC_PRODUCT_PACE = 64, IC_ATTENTION_PACE = 32, IC_GEMV_PACE = 8 };

/* Threads for so much work, in such elements (IC_SERIAL_WORK of them take about 20 us). Small operations
 * run on the calling thread: beside other programs, each time that threads wait for one another may
 * cost a turn of the scheduler. */
static inline int ic_cpu_threads(const ic_cpu *cpu, int64_t work)
{
    return work < IC_SERIAL_WORK ? 1 : cpu->threads;
}

static inline bool ic_is_act(ic_dtype t)
{
    return t == IC_F32 || t == IC_BF16;
}

/* matmul.c */
int ic_matmul_new(ic_matmul **out, int threads, const ic_kernels *k);
void ic_matmul_free(ic_matmul *mm);
/* Leaves in *p the rows (m; k with ta) that it did not compute: which oneDNN refuses, or too few to plan for. */
void ic_matmul_run(ic_matmul *mm, ic_product *p);

static inline float *ic_cpu_private(const ic_cpu *cpu, int thread)
{
    return cpu->private + (size_t)thread * cpu->private_words;
}

/* product.c: the same without oneDNN; any product. */
void ic_product_own(ic_cpu *cpu, const ic_product *p);

/* linear.c */
void ic_cpu_linear(ic_backend *be, ic_mat y, ic_mat x, ic_mat w, const float *bias, float alpha,
                   bool accumulate);
void ic_cpu_linear_t(ic_backend *be, ic_mat y, ic_mat x, ic_mat w, float alpha, bool accumulate);
void ic_cpu_outer(ic_backend *be, ic_mat y, ic_mat a, ic_mat b, float alpha);

/* elementwise.c */
void ic_cpu_fill_elementwise(ic_backend *be);

/* attention.c */
void ic_cpu_attention(ic_backend *be, ic_mat o, ic_mat q, const ic_attention *a, float *lse);
void ic_cpu_attention_back(ic_backend *be, ic_mat dq, ic_mat dout, ic_mat o, ic_mat q,
                           const ic_attention *a, const float *lse);

#endif
