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

enum {
    IC_GEMV_ROWS = 8,         /* up to so many rows weights are streamed straight from memory */
    IC_SERIAL_WORK = 16384,   /* elements below which a parallel region costs more than it gives */
    IC_ATTENTION_ROWS = 128,  /* queries times heads of a group that share packed keys */
    IC_ATTENTION_WIDTH = 512, /* widest head of the fast kernels */
};

/* y[T, first … end-1] of a linear layer with few rows. x is F32, or BF16 where w is BF16 and the
 * kernels have bf16 dot products. */
typedef struct ic_gemv {
    ic_mat y, x, w;
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

/* Kernels work on one row or a range of rows, serially. "b" flags: the row is BF16, else F32. */
typedef struct ic_kernels {
    const char *isa;
    bool bf16_dot;
    /* n values of any type to F32 or BF16; a whole number of blocks */
    void (*decode)(void *dst, bool dst_b, const void *src, ic_dtype t, size_t n);
    void (*gemv)(const ic_gemv *g, int first, int end);
    void (*attend)(const ic_attention_block *t, float *scratch);
    size_t (*attend_words)(int head_width); /* scratch that the above takes */
} ic_kernels;

extern const ic_kernels ic_kernels_generic;
#if defined(__x86_64__)
extern const ic_kernels ic_kernels_avx2, ic_kernels_avx512, ic_kernels_avx512_bf16;
#endif

typedef struct ic_matmul ic_matmul; /* plans of the matrix library */

typedef struct ic_cpu {
    ic_backend ref;       /* for what is not done faster */
    const ic_kernels *k;
    int threads;
    ic_matmul *matmul;    /* NULL: without oneDNN */
    char *weights;        /* scratch: decoded weights */
    size_t weights_size;
    char *rows;           /* scratch: converted activations */
    size_t rows_size;
    float *attention;     /* scratch: attention_words for every thread */
    size_t attention_words;
} ic_cpu;

static inline ic_cpu *ic_cpu_of(ic_backend *be) { return be->state; }

/* The part-th of `parts` nearly equal shares of n, cut at multiples of `step`. */
static inline void ic_share(int n, int step, int part, int parts, int *first, int *end)
{
    int64_t units = ((int64_t)n + step - 1) / step;
    *first = (int)IC_MIN((int64_t)n, units * part / parts * step);
    *end = (int)IC_MIN((int64_t)n, units * (part + 1) / parts * step);
}

static inline bool ic_is_act(ic_dtype t) { return t == IC_F32 || t == IC_BF16; }

/* matmul.c. False: this product cannot be planned; nothing was done. */
int ic_matmul_new(ic_matmul **out, int threads, const ic_kernels *k);
void ic_matmul_free(ic_matmul *mm);
bool ic_matmul_run(ic_matmul *mm, const ic_product *p);

/* product.c: the same without oneDNN. */
void ic_product_own(ic_cpu *cpu, const ic_product *p);

/* linear.c */
void ic_cpu_linear(ic_backend *be, ic_mat y, ic_mat x, ic_mat w, const float *bias, float alpha,
                   bool accumulate);
void ic_cpu_linear_t(ic_backend *be, ic_mat y, ic_mat x, ic_mat w, float alpha, bool accumulate);
void ic_cpu_outer(ic_backend *be, ic_mat y, ic_mat a, ic_mat b, float alpha);

/* attention.c */
void ic_cpu_attention(ic_backend *be, ic_mat o, ic_mat q, const ic_attention *a, float *lse);

#endif
