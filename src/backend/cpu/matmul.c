/*
 * matmul.c - matrix products by oneDNN; the only file that knows it.
 *
 * A primitive is made for one shape (0.3 to 2 ms, some 100 KB) and kept: plans lie in sets of four by the
 * hash of their key, the least recently used one of a set gives way. Batches are computed as pieces of few
 * numbers of rows, so that all share plans: large ones first, since AMX lays weights out anew for each, and
 * a last one, whose rows are of few sizes (ic_room_for). Weights are used where they lie, never repacked by
 * us. Scratch memory is ours and grows only while a plan is made.
 */
#include "backend/cpu/cpu.h"

#ifdef ICAE_HAVE_ONEDNN

#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdlib.h>
#include <string.h>

enum {
    SETS = 128,
    WAYS = 4,
    PIECE = 128, /* rows a thread: nearly full speed from here on */
    LARGE = 16,  /* so many times that: the largest piece */
    FEWEST = 16, /* rows that are summed over at a time */
};

typedef struct plan_key {
    int64_t lda, ldb, ldc;
    int32_t m, n, k;
    float alpha;
    uint8_t ta, tb, in, out, accumulate, bias, unused[2];
} plan_key;

typedef struct plan {
    plan_key key;
    uint64_t used;              /* 0: empty */
    dnnl_primitive_t primitive; /* NULL: oneDNN refused this shape */
    dnnl_memory_t a, b, c, bias, scratch;
} plan;

struct ic_matmul {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    int threads;
    bool bf16;
    uint64_t clock;
    void *scratch;
    size_t scratch_size;
    plan plans[SETS][WAYS];
};

static void clear_plan(plan *p)
{
    dnnl_memory_t memory[] = {p->a, p->b, p->c, p->bias, p->scratch};
    if (p->primitive)
        dnnl_primitive_destroy(p->primitive);
    for (size_t i = 0; i < IC_COUNT(memory); i++)
        if (memory[i])
            dnnl_memory_destroy(memory[i]);
    *p = (plan){.used = 0};
}

/* 0 or a status of oneDNN, jumping to done. */
#define DNNL(call)                             \
    do {                                       \
        if ((status = (call)) != dnnl_success) \
            goto done;                         \
    } while (0)

static dnnl_status_t view(dnnl_memory_desc_t *out, int64_t rows, int64_t cols, ic_dtype type,
                          int64_t row_stride, int64_t col_stride)
{
    dnnl_dims_t dims = {rows, cols}, strides = {row_stride, col_stride};
    return dnnl_memory_desc_init_by_strides(out, 2, dims, type == IC_BF16 ? dnnl_bf16 : dnnl_f32,
                                            strides);
}

static dnnl_status_t make_attributes(dnnl_primitive_attr_t *out, const plan_key *key)
{
    dnnl_post_ops_t sum = NULL;
    dnnl_status_t status;
    DNNL(dnnl_primitive_attr_create(out));
    DNNL(dnnl_primitive_attr_set_scratchpad_mode(*out, dnnl_scratchpad_mode_user));
    if (key->alpha != 1.0f)
        DNNL(dnnl_primitive_attr_set_output_scales(*out, 1, 0, &key->alpha));
    if (key->accumulate) {
        DNNL(dnnl_post_ops_create(&sum));
        DNNL(dnnl_post_ops_append_sum(sum, 1.0f));
        DNNL(dnnl_primitive_attr_set_post_ops(*out, sum));
    }
done:
    if (sum)
        dnnl_post_ops_destroy(sum);
    return status;
}

static bool grow_scratch(ic_matmul *mm, size_t size)
{
    if (size <= mm->scratch_size)
        return true;
    void *scratch = ic_alloc(size, 1);
    if (!scratch)
        return false;
    ic_free(mm->scratch);
    mm->scratch = scratch;
    mm->scratch_size = size;
    return true;
}

/* Fills p->primitive and its memory objects; on any failure the plan stays without a primitive. */
static void make_plan(ic_matmul *mm, plan *p)
{
    const plan_key *key = &p->key;
    dnnl_memory_desc_t a, b, c, bias = {0};
    dnnl_matmul_desc_t desc;
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_primitive_desc_t pd = NULL;
    const dnnl_memory_desc_t *scratch;
    dnnl_status_t status;

    DNNL(view(&a, key->m, key->k, (ic_dtype)key->in, key->ta ? 1 : key->lda,
              key->ta ? key->lda : 1));
    DNNL(view(&b, key->k, key->n, (ic_dtype)key->in, key->tb ? 1 : key->ldb,
              key->tb ? key->ldb : 1));
    DNNL(view(&c, key->m, key->n, (ic_dtype)key->out, key->ldc, 1));
    if (key->bias)
        DNNL(view(&bias, 1, key->n, IC_F32, key->n, 1));
    DNNL(dnnl_matmul_desc_init(&desc, &a, &b, key->bias ? &bias : NULL, &c));
    DNNL(make_attributes(&attributes, key));
    DNNL(dnnl_primitive_desc_create(&pd, &desc, attributes, mm->engine, NULL));
    scratch = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    if (!grow_scratch(mm, dnnl_memory_desc_get_size(scratch)))
        goto done;
    DNNL(dnnl_memory_create(&p->a, &a, mm->engine, DNNL_MEMORY_NONE));
    DNNL(dnnl_memory_create(&p->b, &b, mm->engine, DNNL_MEMORY_NONE));
    DNNL(dnnl_memory_create(&p->c, &c, mm->engine, DNNL_MEMORY_NONE));
    if (key->bias)
        DNNL(dnnl_memory_create(&p->bias, &bias, mm->engine, DNNL_MEMORY_NONE));
    DNNL(dnnl_memory_create(&p->scratch, scratch, mm->engine, DNNL_MEMORY_NONE));
    DNNL(dnnl_primitive_create(&p->primitive, pd));
done:
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    if (attributes)
        dnnl_primitive_attr_destroy(attributes);
}

static uint64_t hash_key(const plan_key *key)
{
    uint64_t words[sizeof *key / 8], h = 0;
    memcpy(words, key, sizeof words);
    for (size_t i = 0; i < IC_COUNT(words); i++) {
        h = (h ^ words[i]) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    return h;
}

static plan *find_plan(ic_matmul *mm, const plan_key *key)
{
    plan *set = mm->plans[hash_key(key) % SETS], *oldest = set;
    for (plan *p = set; p < set + WAYS; p++) {
        if (p->used && memcmp(&p->key, key, sizeof *key) == 0)
            return p;
        if (p->used < oldest->used)
            oldest = p;
    }
    clear_plan(oldest);
    oldest->key = *key;
    make_plan(mm, oldest);
    return oldest;
}

static plan_key key_of(const ic_product *p)
{
    plan_key key;
    memset(&key, 0, sizeof key);
    key.lda = (int64_t)p->lda, key.ldb = (int64_t)p->ldb, key.ldc = (int64_t)p->ldc;
    key.m = p->m, key.n = p->n, key.k = p->k;
    key.alpha = p->alpha;
    key.ta = p->ta, key.tb = p->tb;
    key.in = (uint8_t)p->in, key.out = (uint8_t)p->out;
    key.accumulate = p->accumulate;
    key.bias = p->bias != NULL;
    return key;
}

static dnnl_status_t run_plan(ic_matmul *mm, plan *p, const ic_product *r)
{
    dnnl_status_t status;
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, p->a},
                              {DNNL_ARG_WEIGHTS, p->b},
                              {DNNL_ARG_DST, p->c},
                              {DNNL_ARG_SCRATCHPAD, p->scratch},
                              {DNNL_ARG_BIAS, p->bias}};
    DNNL(dnnl_memory_set_data_handle(p->a, (void *)(uintptr_t)r->a));
    DNNL(dnnl_memory_set_data_handle(p->b, (void *)(uintptr_t)r->b));
    DNNL(dnnl_memory_set_data_handle(p->c, r->c));
    if (r->bias)
        DNNL(dnnl_memory_set_data_handle(p->bias, (void *)(uintptr_t)r->bias));
    DNNL(dnnl_memory_set_data_handle(p->scratch, mm->scratch));
    DNNL(dnnl_primitive_execute(p->primitive, mm->stream, r->bias ? 5 : 4, args));
    DNNL(dnnl_stream_wait(mm->stream));
done:
    return status;
}

static bool run_one(ic_matmul *mm, const ic_product *p)
{
    plan_key key = key_of(p);
    plan *found = find_plan(mm, &key);
    found->used = ++mm->clock;
    return found->primitive && run_plan(mm, found, p) == dnnl_success;
}

/* Computes n rows of the batch, and goes on behind them: in a and c, or in a and b where they are summed over. */
static bool run_rows(ic_matmul *mm, ic_product *p, int n)
{
    size_t in = (size_t)ic_dtypes[p->in].bytes, out = (size_t)ic_dtypes[p->out].bytes;
    ic_product part = *p;
    *(p->ta ? &part.k : &part.m) = n;
    if (!run_one(mm, &part))
        return false;
    p->a = (const char *)p->a + (size_t)n * p->lda * in;
    if (p->ta) {
        p->k -= n;
        p->b = (const char *)p->b + (size_t)n * p->ldb * in;
        p->accumulate = true;
    } else {
        p->m -= n;
        p->c = (char *)p->c + (size_t)n * p->ldc * out;
    }
    return true;
}

static void run_pieces(ic_matmul *mm, ic_product *p)
{
    int piece = PIECE * mm->threads;
    bool summed = p->ta && p->out == IC_F32 && !p->tb && !p->bias;
    for (int n = piece * LARGE; summed && n >= FEWEST; n /= 2)
        while (p->k >= n)
            if (!run_rows(mm, p, n))
                return;
    for (int n = piece * LARGE; !p->ta && n >= piece; n /= 2)
        while (p->m >= (n > piece ? n : 2 * piece))
            if (!run_rows(mm, p, n))
                return;
    if (!summed && p->m > 0)
        run_rows(mm, p, p->ta ? p->k : p->m);
}

void ic_matmul_run(ic_matmul *mm, ic_product *p)
{
    if (!mm || (p->in == IC_BF16 && !mm->bf16) || (p->bias && p->alpha != 1.0f))
        return;
    /* oneDNN takes its thread count from the calling thread's setting, when planning and running. */
    int threads = omp_get_max_threads();
    omp_set_num_threads(mm->threads);
    run_pieces(mm, p);
    omp_set_num_threads(threads);
}

int ic_matmul_new(ic_matmul **out, int threads, const ic_kernels *k)
{
    ic_matmul *mm = *out = ic_alloc(1, sizeof *mm);
    if (!mm)
        return ICAE_ENOMEM;
    mm->threads = threads;
    mm->bf16 = k->bf16_dot;
    /* Plans are kept here: oneDNN's own cache would keep a thousand more behind them, some 50 KB each. */
    dnnl_set_primitive_cache_capacity(0);
    if (getenv("ICAE_ISA")) /* for the whole process, and only before the first primitive */
        dnnl_set_max_cpu_isa(k->tiles                      ? dnnl_cpu_isa_all
                             : k->bf16_dot                 ? dnnl_cpu_isa_avx512_core_bf16
                             : strstr(k->isa, "avx512")    ? dnnl_cpu_isa_avx512_core
                             : strcmp(k->isa, "avx2") == 0 ? dnnl_cpu_isa_avx2
                                                           : dnnl_cpu_isa_sse41);
    if (dnnl_engine_create(&mm->engine, dnnl_cpu, 0) != dnnl_success ||
        dnnl_stream_create(&mm->stream, mm->engine, dnnl_stream_default_flags) != dnnl_success) {
        ic_matmul_free(mm);
        *out = NULL;
        return ic_fail(ICAE_EDEVICE, "oneDNN cannot be started on this processor");
    }
    return 0;
}

void ic_matmul_free(ic_matmul *mm)
{
    if (!mm)
        return;
    for (int i = 0; i < SETS; i++)
        for (int j = 0; j < WAYS; j++)
            clear_plan(&mm->plans[i][j]);
    if (mm->stream)
        dnnl_stream_destroy(mm->stream);
    if (mm->engine)
        dnnl_engine_destroy(mm->engine);
    ic_free(mm->scratch);
    ic_free(mm);
}

#else

int ic_matmul_new(ic_matmul **out, int threads, const ic_kernels *k)
{
    (void)threads, (void)k;
    *out = NULL;
    return 0;
}

void ic_matmul_free(ic_matmul *mm)
{
    (void)mm;
}

void ic_matmul_run(ic_matmul *mm, ic_product *p)
{
    (void)mm, (void)p;
}

#endif
