/*
 * test_ops.c - every operation of every backend and instruction set against the reference.
 *
 * Two halves: the fast backend must agree with ref (by normalised error, per type, over awkward
 * shapes), and the adjoints of ref must agree with finite differences. ICAE_ISA restricts the first
 * half to one instruction set; unset, every set that this processor has is run.
 */
#include "backend/backend.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static ic_backend *ref, *fast;
static const char *isa_list[] = {"generic", "avx2", "avx512", "avx512-bf16"};

/* ---- material --------------------------------------------------------------------------------- */

static uint64_t draws;

static float normal(void) { return (float)ic_random_normal(42, IC_STREAM_INIT, draws++); }

static void fill_float(void *p, ic_dtype t, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++) {
        float v = normal() * scale;
        ic_from_f32((char *)p + i * (size_t)ic_dtypes[t].bytes, &v, t, 1);
    }
}

/* Random bytes, with the f16 scales of each block made small and finite. */
static void fill_blocks(unsigned char *p, ic_dtype t, size_t blocks)
{
    size_t size = (size_t)ic_dtypes[t].bytes;
    for (size_t i = 0; i < blocks; i++, p += size) {
        for (size_t j = 0; j < size; j++)
            p[j] = (unsigned char)(ic_random_unit(7, IC_STREAM_INIT, draws++) * 256);
        uint16_t scale = ic_f32_to_f16(0.001f + 0.001f * fabsf(normal()));
        memcpy(t == IC_Q6_K ? p + 208 : p, &scale, sizeof scale);
        if (t == IC_Q4_K || t == IC_Q5_K)
            memcpy(p + 2, &scale, sizeof scale);
    }
}

/* A random matrix; `gap` more elements from row to row. Free with free_mat. */
static ic_mat new_mat(ic_dtype t, int rows, int cols, int gap, float scale)
{
    bool quantised = ic_dtypes[t].quantised;
    size_t stride = (size_t)cols + (quantised ? 0 : (size_t)gap);
    ic_mat m = {NULL, t, rows, cols, stride};
    m.data = ic_alloc((size_t)rows * ic_row_bytes(t, stride) + 64, 1);
    assert_non_null(m.data);
    if (quantised)
        fill_blocks(m.data, t, (size_t)rows * (size_t)cols / (size_t)ic_dtypes[t].block);
    else
        fill_float(m.data, t, (size_t)rows * stride, scale);
    return m;
}

static ic_mat copy_mat(ic_mat m)
{
    size_t bytes = (size_t)m.rows * ic_row_bytes(m.dtype, m.stride) + 64;
    void *data = ic_alloc(bytes, 1);
    assert_non_null(data);
    memcpy(data, m.data, bytes);
    m.data = data;
    return m;
}

static void free_mat(ic_mat m) { ic_free(m.data); }

static double at(ic_mat m, int row, int col)
{
    float v;
    ic_to_f32(&v, (char *)ic_mat_row(m, (size_t)row) + ic_row_bytes(m.dtype, (size_t)col), m.dtype, 1);
    return v;
}

/* Normalised mean square error of `got`; the gaps between rows must be untouched. */
static double nmse(ic_mat got, ic_mat want)
{
    double error = 0, size = 0;
    for (int i = 0; i < want.rows; i++) {
        for (int j = 0; j < want.cols; j++) {
            double d = at(got, i, j) - at(want, i, j);
            error += d * d;
            size += at(want, i, j) * at(want, i, j);
        }
        size_t used = ic_row_bytes(want.dtype, (size_t)want.cols);
        size_t all = ic_row_bytes(want.dtype, want.stride);
        assert_memory_equal((char *)ic_mat_row(got, (size_t)i) + used,
                            (char *)ic_mat_row(want, (size_t)i) + used, all - used);
    }
    return error == 0 ? 0 : error / (size > 0 ? size : 1e-30);
}

/* f32 results differ by rounding of sums only; bf16 ones by a rounding of the result (2^-9 relative,
 * rarely two) or, where the arithmetic is bf16, of intermediate values. */
static double limit_of(ic_dtype out, ic_dtype arithmetic)
{
    return out == IC_BF16 || arithmetic == IC_BF16 ? 2e-5 : 1e-11;
}

#define EXPECT_CLOSE(got, want, limit, ...)                                                        \
    do {                                                                                           \
        double e_ = nmse(got, want);                                                               \
        if (!(e_ <= (limit))) {                                                                    \
            char text_[256];                                                                       \
            snprintf(text_, sizeof text_, __VA_ARGS__);                                            \
            fail_msg("%s: %s: error %g, limit %g", fast->isa, text_, e_, (double)(limit));         \
        }                                                                                          \
    } while (0)

static const char *name_of(ic_dtype t) { return ic_dtypes[t].name; }

/* ---- linear ----------------------------------------------------------------------------------- */

typedef struct linear_case {
    ic_dtype x, w, y;
    int t, n, c;
} linear_case;

static void check_linear(linear_case k, int gap, bool bias, float alpha, bool accumulate)
{
    ic_mat x = new_mat(k.x, k.t, k.c, gap, 1), w = new_mat(k.w, k.n, k.c, gap, 0.1f);
    ic_mat y = new_mat(k.y, k.t, k.n, gap, 1), want = copy_mat(y);
    ic_mat b = new_mat(IC_F32, 1, k.n, 0, 1);
    fast->linear(fast, y, x, w, bias ? b.data : NULL, alpha, accumulate);
    ref->linear(ref, want, x, w, bias ? b.data : NULL, alpha, accumulate);
    EXPECT_CLOSE(y, want, limit_of(k.y, k.x),
                 "linear %s x %s -> %s, T %d N %d C %d gap %d bias %d alpha %g acc %d", name_of(k.x),
                 name_of(k.w), name_of(k.y), k.t, k.n, k.c, gap, bias, (double)alpha, accumulate);
    free_mat(x), free_mat(w), free_mat(y), free_mat(want), free_mat(b);
}

static void check_linear_t(linear_case k, int gap, float alpha, bool accumulate)
{
    ic_mat x = new_mat(k.x, k.t, k.n, gap, 1), w = new_mat(k.w, k.n, k.c, gap, 0.1f);
    ic_mat y = new_mat(k.y, k.t, k.c, gap, 1), want = copy_mat(y);
    fast->linear_t(fast, y, x, w, alpha, accumulate);
    ref->linear_t(ref, want, x, w, alpha, accumulate);
    EXPECT_CLOSE(y, want, limit_of(k.y, k.x), "linear_t %s x %s -> %s, T %d N %d C %d gap %d acc %d",
                 name_of(k.x), name_of(k.w), name_of(k.y), k.t, k.n, k.c, gap, accumulate);
    free_mat(x), free_mat(w), free_mat(y), free_mat(want);
}

static const ic_dtype weight_types[] = {IC_F32,  IC_F16,  IC_BF16, IC_Q8_0,
                                        IC_Q4_0, IC_Q4_K, IC_Q5_K, IC_Q6_K};

static void test_linear(void **state)
{
    (void)state;
    static const int rows[] = {1, 2, 3, 4, 5, 8, 9, 37};
    for (size_t i = 0; i < IC_COUNT(weight_types); i++) {
        ic_dtype w = weight_types[i];
        int c = ic_dtypes[w].quantised ? 512 : 83;
        for (int b = 0; b < 2; b++) {
            for (size_t j = 0; j < IC_COUNT(rows); j++) {
                ic_dtype x = b ? IC_BF16 : IC_F32;
                check_linear((linear_case){x, w, x, rows[j], 13, c}, 0, false, 1, false);
                check_linear((linear_case){x, w, IC_F32, rows[j], 67, c}, 5, true, 1, true);
                check_linear((linear_case){x, w, x, rows[j], 33, c}, 3, true, 0.25f, false);
                check_linear((linear_case){x, w, x, rows[j], 34, c}, 3, false, -2.5f, true);
            }
            check_linear((linear_case){b ? IC_BF16 : IC_F32, w, IC_F32, 1, 300, 1024}, 0, true, 1, 0);
            check_linear((linear_case){b ? IC_BF16 : IC_F32, w, IC_F32, 300, 1, 256}, 0, true, 1, 0);
        }
    }
    check_linear((linear_case){IC_F32, IC_F32, IC_F32, 1, 1, 1}, 0, true, 1, false);
    check_linear((linear_case){IC_BF16, IC_BF16, IC_BF16, 1, 1, 1}, 0, false, 1, false);
    /* more decoded weights than the scratch holds */
    check_linear((linear_case){IC_F32, IC_Q8_0, IC_F32, 10, 900, 2048}, 0, false, 1, false);
}

static void test_linear_t(void **state)
{
    (void)state;
    static const int rows[] = {1, 4, 37};
    for (size_t i = 0; i < IC_COUNT(weight_types); i++) {
        ic_dtype w = weight_types[i];
        int c = ic_dtypes[w].quantised ? 512 : 83;
        for (int b = 0; b < 2; b++) {
            for (size_t j = 0; j < IC_COUNT(rows); j++) {
                ic_dtype x = b ? IC_BF16 : IC_F32;
                check_linear_t((linear_case){x, w, x, rows[j], 13, c}, 0, 1, false);
                check_linear_t((linear_case){x, w, IC_F32, rows[j], 67, c}, 5, 0.5f, true);
            }
        }
    }
    check_linear_t((linear_case){IC_F32, IC_Q8_0, IC_F32, 10, 900, 2048}, 0, 1, false);
    check_linear_t((linear_case){IC_F32, IC_Q4_K, IC_F32, 2, 9000, 256}, 0, 1, true);
}

static void check_outer(ic_dtype ta, ic_dtype tb, int t, int m, int n, float alpha)
{
    ic_mat a = new_mat(ta, t, m, 3, 1), b = new_mat(tb, t, n, 1, 1);
    ic_mat y = new_mat(IC_F32, m, n, 2, 1), want = copy_mat(y);
    fast->outer(fast, y, a, b, alpha);
    ref->outer(ref, want, a, b, alpha);
    EXPECT_CLOSE(y, want, 1e-10, "outer %s %s T %d M %d N %d", name_of(ta), name_of(tb), t, m, n);
    free_mat(a), free_mat(b), free_mat(y), free_mat(want);
}

static void test_outer(void **state)
{
    (void)state;
    static const int shapes[][3] = {{1, 1, 1}, {7, 16, 33}, {130, 37, 65}, {2100, 128, 130}};
    for (size_t i = 0; i < IC_COUNT(shapes); i++)
        for (int j = 0; j < 4; j++)
            check_outer(j & 1 ? IC_BF16 : IC_F32, j & 2 ? IC_BF16 : IC_F32, shapes[i][0],
                        shapes[i][1], shapes[i][2], j & 1 ? 0.5f : 1);
}

/* ---- attention -------------------------------------------------------------------------------- */

typedef struct attention_case {
    ic_dtype type;
    int heads, kv_heads, width, window;
    int lengths[4][2]; /* queries, keys of each sequence; ends with {0, 0} */
} attention_case;

/* Keys and values of all sequences lie in one matrix each, with gaps between rows. */
typedef struct attention_data {
    ic_attention a;
    ic_attention_seq seqs[4];
    ic_mat q, k, v;
} attention_data;

static attention_data new_attention(const attention_case *c)
{
    attention_data d = {.a = {.heads = c->heads,
                              .kv_heads = c->kv_heads,
                              .head_width = c->width,
                              .window = c->window,
                              .scale = 1.0f / sqrtf((float)c->width)}};
    int queries = 0, keys = 0;
    for (; d.a.count < 4 && c->lengths[d.a.count][1]; d.a.count++) {
        queries += c->lengths[d.a.count][0];
        keys += c->lengths[d.a.count][1];
    }
    d.q = new_mat(c->type, queries, c->heads * c->width, 3, 2);
    d.k = new_mat(c->type, keys, c->kv_heads * c->width, 5, 1);
    d.v = new_mat(c->type, keys, c->kv_heads * c->width, 5, 1);
    d.a.kv_stride = d.k.stride;
    queries = keys = 0;
    for (int i = 0; i < d.a.count; i++) {
        d.seqs[i] = (ic_attention_seq){.first_query = queries,
                                       .queries = c->lengths[i][0],
                                       .keys = c->lengths[i][1],
                                       .k = ic_mat_row(d.k, (size_t)keys),
                                       .v = ic_mat_row(d.v, (size_t)keys)};
        queries += c->lengths[i][0];
        keys += c->lengths[i][1];
    }
    return d;
}

static void free_attention(attention_data d)
{
    free_mat(d.q), free_mat(d.k), free_mat(d.v);
}

static const attention_case attention_cases[] = {
    {IC_F32, 1, 1, 1, 0, {{1, 1}}},
    {IC_F32, 2, 1, 16, 0, {{7, 7}, {1, 20}, {3, 9}}},
    {IC_F32, 4, 2, 24, 0, {{140, 140}, {5, 300}}},
    {IC_F32, 3, 3, 64, 20, {{150, 170}, {1, 15}, {1, 150}}},
    {IC_F32, 7, 1, 33, 200, {{30, 700}}},
    {IC_F32, 2, 2, 128, 0, {{200, 200}}},
};

static void test_attention(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2 * IC_COUNT(attention_cases); i++) {
        attention_case c = attention_cases[i / 2];
        c.type = i % 2 ? IC_BF16 : IC_F32;
        attention_data d = new_attention(&c);
        d.a.seqs = d.seqs;
        ic_mat o = new_mat(c.type, d.q.rows, d.q.cols, 1, 1), want = copy_mat(o);
        ic_mat lse = new_mat(IC_F32, d.q.rows, c.heads, 0, 1), want_lse = copy_mat(lse);
        ref->attention(ref, want, d.q, &d.a, want_lse.data);
        fast->attention(fast, o, d.q, &d.a, lse.data);
        EXPECT_CLOSE(o, want, limit_of(c.type, c.type), "attention case %zu %s", i / 2, name_of(c.type));
        EXPECT_CLOSE(lse, want_lse, 1e-11, "lse, case %zu %s", i / 2, name_of(c.type));
        fast->attention(fast, o, d.q, &d.a, NULL);
        EXPECT_CLOSE(o, want, limit_of(c.type, c.type), "attention case %zu %s", i / 2, name_of(c.type));
        free_mat(o), free_mat(want), free_mat(lse), free_mat(want_lse);
        free_attention(d);
    }
}

/* ---- main ------------------------------------------------------------------------------------- */

static int run_fast(const char *isa)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_linear_t),
        cmocka_unit_test(test_outer),
        cmocka_unit_test(test_attention),
    };
    if (ic_backend_cpu_new(&fast, 0) < 0) {
        printf("%s: not on this machine\n", isa ? isa : "best");
        return 0;
    }
    printf("%s, %d threads\n", fast->isa, fast->threads);
    int failed = cmocka_run_group_tests_name(fast->isa, tests, NULL, NULL);
    ic_backend_free(fast);
    return failed;
}

int main(void)
{
    int failed = 0;
    if (ic_backend_ref_new(&ref) < 0)
        return 1;
    if (getenv("ICAE_ISA")) {
        failed = run_fast(getenv("ICAE_ISA"));
    } else {
        for (size_t i = 0; i < IC_COUNT(isa_list); i++) {
            setenv("ICAE_ISA", isa_list[IC_COUNT(isa_list) - 1 - i], 1);
            failed += run_fast(isa_list[IC_COUNT(isa_list) - 1 - i]);
        }
    }
    ic_backend_free(ref);
    if (ic_memory_live() != 0) {
        printf("%ld allocations left\n", ic_memory_live());
        failed++;
    }
    return failed != 0;
}
