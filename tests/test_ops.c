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
static const char *isa_list[] = {"generic", "avx2", "avx512", "avx512-bf16", "amx"};

/* ---- material --------------------------------------------------------------------------------- */

static uint64_t draws;

static float normal(void)
{
    return (float)ic_random_normal(42, IC_STREAM_INIT, draws++);
}

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

/* A random matrix; `gap` more elements from row to row, and with an odd one room for more rows. Free with
 * free_mat. */
static ic_mat new_mat(ic_dtype t, int rows, int cols, int gap, float scale)
{
    bool quantised = ic_dtypes[t].quantised;
    size_t stride = (size_t)cols + (quantised ? 0 : (size_t)gap);
    ic_mat m = {NULL, t, rows, cols, stride, gap % 2 ? ic_room_for(rows) : rows};
    m.data = ic_alloc((size_t)m.room * ic_row_bytes(t, stride) + 64, 1);
    assert_non_null(m.data);
    if (quantised)
        fill_blocks(m.data, t, (size_t)rows * (size_t)cols / (size_t)ic_dtypes[t].block);
    else
        fill_float(m.data, t, (size_t)rows * stride, scale);
    return m;
}

static ic_mat copy_mat(ic_mat m)
{
    size_t bytes = (size_t)m.room * ic_row_bytes(m.dtype, m.stride) + 64;
    void *data = ic_alloc(bytes, 1);
    assert_non_null(data);
    memcpy(data, m.data, bytes);
    m.data = data;
    return m;
}

static void free_mat(ic_mat m)
{
    ic_free(m.data);
}

static double at(ic_mat m, int row, int col)
{
    float v;
    ic_to_f32(&v, (char *)ic_mat_row(m, (size_t)row) + ic_row_bytes(m.dtype, (size_t)col), m.dtype,
              1);
    return v;
}

/* Normalised mean square error of `got` (values of size 1e-3 and less count as 1e-3); the gaps between
 * rows must be untouched. */
static double nmse(ic_mat got, ic_mat want)
{
    double error = 0, size = 1e-6 * want.rows * want.cols;
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
    return error / size;
}

/* f32 results differ by rounding of sums only; bf16 ones by a rounding of the result (2^-9 relative,
 * rarely two) or, where the arithmetic is bf16, of intermediate values. */
static double limit_of(ic_dtype out, ic_dtype arithmetic)
{
    return out == IC_BF16 || arithmetic == IC_BF16 ? 2e-5 : 1e-11;
}

#define EXPECT_CLOSE(got, want, limit, ...)                                                \
    do {                                                                                   \
        double e_ = nmse(got, want);                                                       \
        if (!(e_ <= (limit))) {                                                            \
            char text_[256];                                                               \
            snprintf(text_, sizeof text_, __VA_ARGS__);                                    \
            fail_msg("%s: %s: error %g, limit %g", fast->isa, text_, e_, (double)(limit)); \
        }                                                                                  \
    } while (0)

static const char *name_of(ic_dtype t)
{
    return ic_dtypes[t].name;
}

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
                 "linear %s x %s -> %s, T %d N %d C %d gap %d bias %d alpha %g acc %d",
                 name_of(k.x), name_of(k.w), name_of(k.y), k.t, k.n, k.c, gap, bias, (double)alpha,
                 accumulate);
    free_mat(x), free_mat(w), free_mat(y), free_mat(want), free_mat(b);
}

static void check_linear_t(linear_case k, int gap, float alpha, bool accumulate)
{
    ic_mat x = new_mat(k.x, k.t, k.n, gap, 1), w = new_mat(k.w, k.n, k.c, gap, 0.1f);
    ic_mat y = new_mat(k.y, k.t, k.c, gap, 1), want = copy_mat(y);
    fast->linear_t(fast, y, x, w, alpha, accumulate);
    ref->linear_t(ref, want, x, w, alpha, accumulate);
    EXPECT_CLOSE(y, want, limit_of(k.y, k.x),
                 "linear_t %s x %s -> %s, T %d N %d C %d gap %d acc %d", name_of(k.x), name_of(k.w),
                 name_of(k.y), k.t, k.n, k.c, gap, accumulate);
    free_mat(x), free_mat(w), free_mat(y), free_mat(want);
}

static const ic_dtype weight_types[] = {IC_F32,  IC_F16,  IC_BF16, IC_Q8_0,
                                        IC_Q4_0, IC_Q4_K, IC_Q5_K, IC_Q6_K};

static void test_linear(void **state)
{
    (void)state;
    static const int rows[] = {1, 2, 3, 4, 5, 8, 9, 15, 30, 37};
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
            check_linear((linear_case){b ? IC_BF16 : IC_F32, w, IC_F32, 1, 700, 1024}, 0, true, 1,
                         0);
            check_linear((linear_case){b ? IC_BF16 : IC_F32, w, IC_F32, 300, 1, 256}, 0, true, 1,
                         0);
        }
    }
    check_linear((linear_case){IC_F32, IC_F32, IC_F32, 1, 1, 1}, 0, true, 1, false);
    check_linear((linear_case){IC_BF16, IC_BF16, IC_BF16, 1, 1, 1}, 0, false, 1, false);
    /* more decoded weights than the scratch holds */
    check_linear((linear_case){IC_F32, IC_Q8_0, IC_F32, 10, 900, 2048}, 0, false, 1, false);
    /* more rows than one product takes */
    check_linear((linear_case){IC_BF16, IC_BF16, IC_BF16, 1301, 40, 70}, 3, true, 1, false);
    check_linear((linear_case){IC_F32, IC_F32, IC_F32, 1301, 40, 70}, 3, false, 0.5f, true);
}

/* Shapes that fit the tiles of a processor that has them: blocks and what is left of them, rows by turns. */
static void test_tiles(void **state)
{
    (void)state;
    static const int rows[] = {2, 15, 16, 17, 32, 40, 49, 64}, n[] = {16, 48, 64, 176};
    for (size_t i = 0; i < IC_COUNT(rows); i++) {
        for (size_t j = 0; j < IC_COUNT(n); j++) {
            check_linear((linear_case){IC_BF16, IC_BF16, IC_BF16, rows[i], n[j], 96}, 0, true, 1,
                         true);
            check_linear((linear_case){IC_BF16, IC_BF16, IC_F32, rows[i], n[j], 32}, 3, false, 2,
                         false);
        }
    }
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
    check_linear_t((linear_case){IC_BF16, IC_BF16, IC_F32, 1301, 40, 70}, 3, 1, true);
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

/* ---- row by row ------------------------------------------------------------------------------- */

/* Shapes: one row, many rows, odd widths, and one large enough for threads. */
static const int shapes[][2] = {{1, 1}, {1, 83}, {37, 65}, {3, 1030}, {330, 200}};

static const ic_dtype act_types[] = {IC_F32, IC_BF16};

/* Calls `body` for every shape (t, n) and pair of types (a, b). */
#define EACH_SHAPE(body)                                                    \
    for (size_t shape_ = 0; shape_ < IC_COUNT(shapes); shape_++) {          \
        for (int types_ = 0; types_ < 4; types_++) {                        \
            int t = shapes[shape_][0], n = shapes[shape_][1];               \
            ic_dtype a = act_types[types_ & 1], b = act_types[types_ >> 1]; \
            body;                                                           \
        }                                                                   \
    }

static void check_rmsnorm(int t, int n, ic_dtype a, ic_dtype b)
{
    ic_mat x = new_mat(a, t, n, 3, 2), y = new_mat(b, t, n, 1, 1), want = copy_mat(y);
    ic_mat dx = new_mat(a, t, n, 2, 1), want_dx = copy_mat(dx), w = new_mat(IC_F32, 1, n, 0, 1);
    fast->rmsnorm(fast, y, x, w.data, 1e-5f);
    ref->rmsnorm(ref, want, x, w.data, 1e-5f);
    EXPECT_CLOSE(y, want, limit_of(b, b), "rmsnorm %s -> %s T %d D %d", name_of(a), name_of(b), t,
                 n);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        fast->rmsnorm_back(fast, dx, want, x, w.data, 1e-5f, accumulate);
        ref->rmsnorm_back(ref, want_dx, want, x, w.data, 1e-5f, accumulate);
        /* with one column the two terms cancel almost wholly */
        EXPECT_CLOSE(dx, want_dx, n == 1 ? 1e-2 : limit_of(a, a),
                     "rmsnorm_back %s %s T %d D %d acc %d", name_of(a), name_of(b), t, n,
                     accumulate);
    }
    free_mat(x), free_mat(y), free_mat(want), free_mat(dx), free_mat(want_dx), free_mat(w);
}

static void test_rmsnorm(void **state)
{
    (void)state;
    EACH_SHAPE(check_rmsnorm(t, n, a, b));
}

static void check_rope(ic_dtype type, int t, int heads, int width, int half, bool interleaved)
{
    ic_mat x = new_mat(type, t, heads * width, 7, 1), want = copy_mat(x);
    ic_mat c = new_mat(IC_F32, t, half, 0, 1), s = new_mat(IC_F32, t, half, 0, 1);
    for (float sign = -1; sign <= 1; sign += 2) {
        fast->rope(fast, x, heads, half, c.data, s.data, interleaved, sign);
        ref->rope(ref, want, heads, half, c.data, s.data, interleaved, sign);
        EXPECT_CLOSE(x, want, limit_of(type, type), "rope %s H %d K %d half %d", name_of(type),
                     heads, width, half);
    }
    free_mat(x), free_mat(want), free_mat(c), free_mat(s);
}

static void test_rope(void **state)
{
    (void)state;
    for (int b = 0; b < 2; b++) {
        for (int i = 0; i < 2; i++) {
            check_rope(act_types[b], 1, 1, 2, 1, i);
            check_rope(act_types[b], 5, 3, 24, 12, i);
            check_rope(act_types[b], 33, 4, 64, 20, i);
            check_rope(act_types[b], 130, 2, 128, 64, i);
        }
    }
}

static void check_glu(int t, int n, ic_dtype a, ic_dtype b, ic_activation act)
{
    ic_mat gate = new_mat(a, t, n, 3, 4), up = new_mat(a, t, n, 0, 1), y = new_mat(b, t, n, 5, 1);
    ic_mat want = copy_mat(y), dy = new_mat(b, t, n, 1, 1), dg = copy_mat(gate), du = copy_mat(up);
    ic_mat want_dg = copy_mat(gate), want_du = copy_mat(up);
    if (n > 4) { /* far ends of the exponential */
        float far[] = {-120, 120, -20, 0};
        ic_from_f32(gate.data, far, gate.dtype, 4);
    }
    fast->glu(fast, y, gate, up, act);
    ref->glu(ref, want, gate, up, act);
    EXPECT_CLOSE(y, want, limit_of(b, b), "glu %d %s %s T %d F %d", act, name_of(a), name_of(b), t,
                 n);
    fast->glu_back(fast, dg, du, dy, gate, up, act);
    ref->glu_back(ref, want_dg, want_du, dy, gate, up, act);
    EXPECT_CLOSE(dg, want_dg, limit_of(a, a), "glu_back gate %d %s T %d F %d", act, name_of(a), t,
                 n);
    EXPECT_CLOSE(du, want_du, limit_of(a, a), "glu_back up %d %s T %d F %d", act, name_of(a), t, n);
    ic_mat alias = copy_mat(dy); /* dgate may be dy */
    fast->glu_back(fast, alias, du, alias, gate, up, act);
    EXPECT_CLOSE(du, want_du, limit_of(a, a), "glu_back alias %d", act);
    free_mat(gate), free_mat(up), free_mat(y), free_mat(want), free_mat(dy), free_mat(dg);
    free_mat(du), free_mat(want_dg), free_mat(want_du), free_mat(alias);
}

static void test_glu(void **state)
{
    (void)state;
    EACH_SHAPE(check_glu(t, n, a, b, IC_SILU); check_glu(t, n, a, b, IC_GELU_TANH));
}

static void check_rows(ic_dtype from_type, ic_dtype to_type, int cols, int n)
{
    int32_t to[64], from[64], many[64];
    ic_mat src = new_mat(from_type, 70, cols, 3, 1), dst = new_mat(to_type, 80, cols, 1, 1);
    ic_mat want = copy_mat(dst);
    for (int i = 0; i < n; i++) {
        to[i] = 79 - i;
        from[i] = (i * 7) % 70;
        many[i] = i % 5;
    }
    for (int i = 0; i < 8; i++) {
        const int32_t *t = i & 1 ? to : NULL, *f = i & 2 ? from : NULL;
        float scale = i & 4 ? 0.75f : 1;
        fast->rows(fast, dst, t, src, f, n, scale, i & 1);
        ref->rows(ref, want, t, src, f, n, scale, i & 1);
        EXPECT_CLOSE(dst, want, limit_of(to_type, to_type), "rows %s -> %s cols %d n %d case %d",
                     name_of(from_type), name_of(to_type), cols, n, i);
    }
    fast->rows(fast, dst, many, src, from, n, 1, true);
    ref->rows(ref, want, many, src, from, n, 1, true);
    EXPECT_CLOSE(dst, want, limit_of(to_type, to_type), "rows into few, %s -> %s cols %d n %d",
                 name_of(from_type), name_of(to_type), cols, n);
    free_mat(src), free_mat(dst), free_mat(want);
}

static void test_rows(void **state)
{
    (void)state;
    for (size_t i = 0; i < IC_COUNT(weight_types); i++) {
        for (int b = 0; b < 2; b++) {
            bool quantised = ic_dtypes[weight_types[i]].quantised;
            check_rows(weight_types[i], act_types[b], quantised ? 256 : 37, 3);
            check_rows(weight_types[i], act_types[b], quantised ? 1536 : 1111, 64);
        }
    }
}

static void check_score(int t, int v, float scale)
{
    ic_mat logits = new_mat(IC_F32, t, v, 3, scale), want = copy_mat(logits);
    ic_mat weight = new_mat(IC_F32, 1, t, 0, 1);
    int32_t *targets = ic_alloc((size_t)t, sizeof *targets);
    ic_score *a = ic_alloc((size_t)t, sizeof *a), *b = ic_alloc((size_t)t, sizeof *b);
    assert_true(targets && a && b);
    for (int i = 0; i < t; i++) {
        targets[i] = (i * 31 + 5) % v;
        if (v > 20) { /* a tie for the best */
            float *row = ic_mat_row(logits, (size_t)i);
            row[v - 1] = row[7 + i % 9] = 6 * scale;
            memcpy(ic_mat_row(want, (size_t)i), row, sizeof *row * (size_t)v);
        }
    }
    fast->score(fast, a, logits, targets);
    ref->score(ref, b, logits, targets);
    for (int i = 0; i < t; i++) {
        assert_int_equal(a[i].best, b[i].best);
        assert_true(a[i].best_logit == b[i].best_logit && a[i].second_logit == b[i].second_logit);
        assert_true(a[i].target_logit == b[i].target_logit);
        assert_true(fabsf(a[i].nll - b[i].nll) <= 1e-5f * (1 + fabsf(b[i].nll)));
    }
    fast->score_back(fast, logits, targets, weight.data);
    ref->score_back(ref, want, targets, weight.data);
    EXPECT_CLOSE(logits, want, 1e-11, "score_back T %d V %d", t, v);
    free_mat(logits), free_mat(want), free_mat(weight);
    ic_free(targets), ic_free(a), ic_free(b);
}

static void test_score(void **state)
{
    (void)state;
    check_score(1, 1, 1);
    check_score(2, 2, 1);
    check_score(3, 17, 30);
    check_score(1, 32003, 3);
    check_score(70, 1001, 1);
    check_score(5, 5000, 100);
}

static void check_dropout(int t, int n, ic_dtype a, ic_dtype b, float p)
{
    ic_mat x = new_mat(a, t, n, 3, 1), y = new_mat(b, t, n, 1, 1), want = copy_mat(y);
    fast->dropout(fast, y, x, p, 0x123456789abcdefu, 77);
    ref->dropout(ref, want, x, p, 0x123456789abcdefu, 77);
    EXPECT_CLOSE(y, want, 1e-12, "dropout %s -> %s T %d D %d p %g", name_of(a), name_of(b), t, n,
                 (double)p);
    free_mat(x), free_mat(y), free_mat(want);
}

static void test_dropout(void **state)
{
    (void)state;
    EACH_SHAPE(check_dropout(t, n, a, b, 0.05f); check_dropout(t, n, a, b, 0.5f);
               check_dropout(t, n, a, b, 0));
    ic_mat x = new_mat(IC_F32, 100, 1000, 0, 0), y = copy_mat(x);
    float *v = x.data, zeros = 0;
    for (int i = 0; i < 100000; i++)
        v[i] = 1;
    fast->dropout(fast, y, x, 0.05f, 3, 4);
    for (int i = 0; i < 100000; i++)
        zeros += ((float *)y.data)[i] == 0;
    assert_true(fabsf(zeros - 5000) < 300);
    free_mat(x), free_mat(y);
}

static void test_adamw(void **state)
{
    (void)state;
    static const int sizes[] = {1, 15, 1000, 70001};
    for (size_t i = 0; i < IC_COUNT(sizes); i++) {
        int n = sizes[i];
        ic_mat p = new_mat(IC_F32, 1, n, 0, 1), m = new_mat(IC_F32, 1, n, 0, 0);
        ic_mat v = new_mat(IC_F32, 1, n, 0, 0), wp = copy_mat(p), wm = copy_mat(m),
               wv = copy_mat(v);
        for (int step = 1; step <= 3; step++) {
            ic_mat g = new_mat(IC_F32, 1, n, 0, 1);
            float c1 = 1 - powf(0.9f, (float)step), c2 = 1 - powf(0.95f, (float)step);
            fast->adamw(fast, p.data, m.data, v.data, g.data, (size_t)n, 1e-2f, 0.9f, 0.95f, 1e-8f,
                        0.1f, c1, c2, 0.5f);
            ref->adamw(ref, wp.data, wm.data, wv.data, g.data, (size_t)n, 1e-2f, 0.9f, 0.95f, 1e-8f,
                       0.1f, c1, c2, 0.5f);
            double a = fast->sum_squares(fast, g.data, (size_t)n);
            double b = ref->sum_squares(ref, g.data, (size_t)n);
            assert_true(fabs(a - b) <= 1e-6 * b);
            free_mat(g);
        }
        EXPECT_CLOSE(p, wp, 1e-12, "adamw n %d", n);
        EXPECT_CLOSE(m, wm, 1e-12, "adamw m n %d", n);
        EXPECT_CLOSE(v, wv, 1e-12, "adamw v n %d", n);
        free_mat(p), free_mat(m), free_mat(v), free_mat(wp), free_mat(wm), free_mat(wv);
    }
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
        EXPECT_CLOSE(o, want, limit_of(c.type, c.type), "attention case %zu %s", i / 2,
                     name_of(c.type));
        EXPECT_CLOSE(lse, want_lse, 1e-11, "lse, case %zu %s", i / 2, name_of(c.type));
        fast->attention(fast, o, d.q, &d.a, NULL);
        EXPECT_CLOSE(o, want, limit_of(c.type, c.type), "attention case %zu %s", i / 2,
                     name_of(c.type));
        free_mat(o), free_mat(want), free_mat(lse), free_mat(want_lse);
        free_attention(d);
    }
}

/* Shared rows lie elsewhere, which changes no bit. */
static void test_attention_shared(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4 * IC_COUNT(attention_cases); i++) {
        attention_case c = attention_cases[i / 4];
        c.type = i % 2 ? IC_BF16 : IC_F32;
        ic_backend *be = i % 4 < 2 ? ref : fast;
        attention_data d = new_attention(&c);
        d.a.seqs = d.seqs;
        ic_mat o = new_mat(c.type, d.q.rows, d.q.cols, 1, 1), want = copy_mat(o);
        ic_mat k = copy_mat(d.k), v = copy_mat(d.v);
        be->attention(be, want, d.q, &d.a, NULL);
        for (int s = 0, key = 0; s < d.a.count; key += d.seqs[s++].keys) {
            int shared = (d.seqs[s].keys - 1) * (s + 1) / 4 / IC_SHARED_ROWS * IC_SHARED_ROWS;
            size_t bytes = (size_t)shared * ic_row_bytes(c.type, d.k.stride), row = (size_t)key;
            d.seqs[s].shared = shared;
            d.seqs[s].shared_k = ic_mat_row(k, row);
            d.seqs[s].shared_v = ic_mat_row(v, row);
            d.seqs[s].k = ic_mat_row(d.k, row + (size_t)shared);
            d.seqs[s].v = ic_mat_row(d.v, row + (size_t)shared);
            memset(ic_mat_row(d.k, row), 0xff, bytes); /* not read any more */
            memset(ic_mat_row(d.v, row), 0xff, bytes);
        }
        be->attention(be, o, d.q, &d.a, NULL);
        for (size_t t = 0; t < (size_t)o.rows; t++)
            assert_memory_equal(ic_mat_row(o, t), ic_mat_row(want, t),
                                ic_row_bytes(c.type, (size_t)o.cols));
        free_mat(o), free_mat(want), free_mat(k), free_mat(v);
        free_attention(d);
    }
}

static attention_data with_gradients(attention_data d, ic_dtype type, ic_mat *dk, ic_mat *dv)
{
    *dk = new_mat(type, d.k.rows, d.k.cols, 5, 0.1f);
    *dv = new_mat(type, d.v.rows, d.v.cols, 5, 0.1f);
    size_t key = 0;
    for (int i = 0; i < d.a.count; i++) {
        d.seqs[i].dk = ic_mat_row(*dk, key);
        d.seqs[i].dv = ic_mat_row(*dv, key);
        key += (size_t)d.seqs[i].keys;
    }
    return d;
}

static void check_attention_back(const attention_case *c, ic_dtype grad)
{
    attention_data d = new_attention(c);
    ic_mat o = new_mat(c->type, d.q.rows, d.q.cols, 1, 1),
           dout = new_mat(grad, d.q.rows, d.q.cols, 2, 1);
    ic_mat dq = new_mat(grad, d.q.rows, d.q.cols, 4, 1), want_dq = copy_mat(dq), dk, dv;
    ic_mat lse = new_mat(IC_F32, d.q.rows, c->heads, 0, 1);
    d = with_gradients(d, grad, &dk, &dv);
    d.a.seqs = d.seqs;
    ic_mat old_dk = copy_mat(dk), old_dv = copy_mat(dv);
    ref->attention(ref, o, d.q, &d.a, lse.data);
    fast->attention_back(fast, dq, dout, o, d.q, &d.a, lse.data);
    ic_mat got_dk = copy_mat(dk), got_dv = copy_mat(dv);
    memcpy(dk.data, old_dk.data, (size_t)dk.rows * ic_row_bytes(grad, dk.stride));
    memcpy(dv.data, old_dv.data, (size_t)dv.rows * ic_row_bytes(grad, dv.stride));
    ref->attention_back(ref, want_dq, dout, o, d.q, &d.a, lse.data);
    double limit = limit_of(grad, c->type);
    EXPECT_CLOSE(dq, want_dq, limit, "attention_back dq %s H %d K %d", name_of(grad), c->heads,
                 c->width);
    EXPECT_CLOSE(got_dk, dk, limit, "attention_back dk %s H %d K %d", name_of(grad), c->heads,
                 c->width);
    EXPECT_CLOSE(got_dv, dv, limit, "attention_back dv %s H %d K %d", name_of(grad), c->heads,
                 c->width);
    free_mat(o), free_mat(dout), free_mat(dq), free_mat(want_dq), free_mat(dk), free_mat(dv);
    free_mat(lse), free_mat(old_dk), free_mat(old_dv), free_mat(got_dk), free_mat(got_dv);
    free_attention(d);
}

static void test_attention_back(void **state)
{
    (void)state;
    for (size_t i = 0; i < IC_COUNT(attention_cases); i++) {
        for (int types = 0; types < 4; types++) {
            attention_case c = attention_cases[i];
            if (c.lengths[0][1] > 300) /* the reference is slow */
                c.lengths[0][1] = 300;
            c.type = act_types[types & 1];
            check_attention_back(&c, act_types[types >> 1]);
        }
    }
}

/* ---- adjoints of the reference against finite differences -------------------------------------- */

/* An operation as a function of some f32 matrix; its loss is the sum of results times fixed weights. */
typedef struct probe {
    void (*run)(struct probe *p);
    ic_mat out, weight;
    ic_mat x, w;
    const float *vector;
    const ic_attention *attention;
    float *lse;
    ic_activation act;
    int32_t *targets;
} probe;

static double loss_of(probe *p)
{
    double sum = 0;
    p->run(p);
    for (int i = 0; i < p->out.rows; i++)
        for (int j = 0; j < p->out.cols; j++)
            sum += at(p->out, i, j) * at(p->weight, i, j);
    return sum;
}

/* Moves every element of `input` a little and compares with the gradient. */
static void expect_gradient(probe *p, ic_mat input, ic_mat gradient, const char *what)
{
    const float step = 1.0f / 64;
    ic_mat numeric = new_mat(IC_F32, input.rows, input.cols, 0, 0);
    for (int i = 0; i < input.rows; i++) {
        float *row = ic_mat_row(input, (size_t)i), *result = ic_mat_row(numeric, (size_t)i);
        for (int j = 0; j < input.cols; j++) {
            float old = row[j];
            double loss[5];
            for (int k = 0; k < 5; k++) {
                row[j] = old + (float)(k - 2) * step;
                loss[k] = k == 2 ? 0 : loss_of(p);
            }
            row[j] = old;
            result[j] = (float)((8 * (loss[3] - loss[1]) - (loss[4] - loss[0])) / (12 * step));
        }
    }
    gradient.stride = (size_t)gradient.cols;
    double error = nmse(gradient, numeric);
    if (!(error < 1e-8))
        fail_msg("%s: gradient differs from finite differences by %g", what, error);
    free_mat(numeric);
}

static void run_linear(probe *p)
{
    ref->linear(ref, p->out, p->x, p->w, p->vector, 1, false);
}
static void run_rmsnorm(probe *p)
{
    ref->rmsnorm(ref, p->out, p->x, p->vector, 1e-5f);
}
static void run_glu(probe *p)
{
    ref->glu(ref, p->out, p->x, p->w, p->act);
}
static void run_attention(probe *p)
{
    ref->attention(ref, p->out, p->x, p->attention, p->lse);
}

static void run_score(probe *p)
{
    ic_score scores[8];
    ref->score(ref, scores, p->x, p->targets);
    for (int i = 0; i < p->out.rows; i++)
        *(float *)ic_mat_row(p->out, (size_t)i) = scores[i].nll;
}

static void run_rope(probe *p)
{
    memcpy(p->out.data, p->x.data, sizeof(float) * (size_t)p->x.rows * (size_t)p->x.cols);
    ref->rope(ref, p->out, 2, 3, p->vector, p->vector + 15, p->act == IC_SILU, 1);
}

static void test_adjoint_linear(void **state)
{
    (void)state;
    ic_mat x = new_mat(IC_F32, 5, 7, 0, 1), w = new_mat(IC_F32, 6, 7, 0, 1);
    ic_mat dx = new_mat(IC_F32, 5, 7, 0, 0), dw = new_mat(IC_F32, 6, 7, 0, 0);
    probe p = {.run = run_linear,
               .x = x,
               .w = w,
               .out = new_mat(IC_F32, 5, 6, 0, 1),
               .weight = new_mat(IC_F32, 5, 6, 0, 1)};
    ref->linear_t(ref, dx, p.weight, w, 1, false);
    ref->outer(ref, dw, p.weight, x, 1);
    expect_gradient(&p, x, dx, "linear, x");
    expect_gradient(&p, w, dw, "linear, w");
    free_mat(x), free_mat(w), free_mat(dx), free_mat(dw), free_mat(p.out), free_mat(p.weight);
}

static void test_adjoint_rows(void **state)
{
    (void)state;
    ic_mat x = new_mat(IC_F32, 5, 14, 0, 1), u = new_mat(IC_F32, 5, 14, 0, 1);
    ic_mat dx = new_mat(IC_F32, 5, 14, 0, 0), du = copy_mat(dx), w = new_mat(IC_F32, 1, 30, 0, 1);
    probe p = {.x = x,
               .w = u,
               .vector = w.data,
               .out = new_mat(IC_F32, 5, 14, 0, 1),
               .weight = new_mat(IC_F32, 5, 14, 0, 1)};
    p.run = run_rmsnorm;
    ref->rmsnorm_back(ref, dx, p.weight, x, w.data, 1e-5f, false);
    expect_gradient(&p, x, dx, "rmsnorm");
    for (p.act = IC_SILU; p.act <= IC_GELU_TANH; p.act++) {
        p.run = run_glu;
        ref->glu_back(ref, dx, du, p.weight, x, u, p.act);
        expect_gradient(&p, x, dx, "glu, gate");
        expect_gradient(&p, u, du, "glu, up");
        p.run = run_rope;
        memcpy(dx.data, p.weight.data, 5 * 14 * sizeof(float));
        ref->rope(ref, dx, 2, 3, p.vector, p.vector + 15, p.act == IC_SILU, -1);
        expect_gradient(&p, x, dx, "rope");
    }
    free_mat(x), free_mat(u), free_mat(dx), free_mat(du), free_mat(w), free_mat(p.out);
    free_mat(p.weight);
}

static void test_adjoint_score(void **state)
{
    (void)state;
    int32_t targets[] = {3, 0, 11};
    ic_mat x = new_mat(IC_F32, 3, 12, 0, 2);
    probe p = {.run = run_score,
               .x = x,
               .targets = targets,
               .out = new_mat(IC_F32, 3, 1, 0, 1),
               .weight = new_mat(IC_F32, 3, 1, 0, 1)};
    ic_mat dx = copy_mat(x);
    ref->score_back(ref, dx, targets, p.weight.data);
    expect_gradient(&p, x, dx, "score");
    free_mat(x), free_mat(dx), free_mat(p.out), free_mat(p.weight);
}

static void test_adjoint_attention(void **state)
{
    (void)state;
    attention_case c = {IC_F32, 4, 2, 6, 0, {{4, 4}, {2, 7}, {1, 3}}};
    for (c.window = 0; c.window <= 3; c.window += 3) {
        ic_mat dk, dv;
        attention_data d = with_gradients(new_attention(&c), IC_F32, &dk, &dv);
        d.a.seqs = d.seqs;
        memset(dk.data, 0, (size_t)dk.rows * dk.stride * sizeof(float));
        memset(dv.data, 0, (size_t)dv.rows * dv.stride * sizeof(float));
        ic_mat dq = new_mat(IC_F32, d.q.rows, d.q.cols, 0, 0),
               lse = new_mat(IC_F32, d.q.rows, 4, 0, 1);
        probe p = {.run = run_attention,
                   .x = d.q,
                   .attention = &d.a,
                   .lse = lse.data,
                   .out = new_mat(IC_F32, d.q.rows, d.q.cols, 0, 1),
                   .weight = new_mat(IC_F32, d.q.rows, d.q.cols, 0, 1)};
        run_attention(&p);
        ref->attention_back(ref, dq, p.weight, p.out, d.q, &d.a, lse.data);
        expect_gradient(&p, d.q, dq, "attention, q");
        ic_mat plain_dk = new_mat(IC_F32, dk.rows, dk.cols, 0, 0), plain_dv = copy_mat(plain_dk);
        ref->rows(ref, plain_dk, NULL, dk, NULL, dk.rows, 1, false);
        ref->rows(ref, plain_dv, NULL, dv, NULL, dv.rows, 1, false);
        expect_gradient(&p, d.k, plain_dk, "attention, k");
        expect_gradient(&p, d.v, plain_dv, "attention, v");
        free_mat(dk), free_mat(dv), free_mat(dq), free_mat(lse), free_mat(p.out),
            free_mat(p.weight);
        free_mat(plain_dk), free_mat(plain_dv);
        free_attention(d);
    }
}

/* ---- main ------------------------------------------------------------------------------------- */

static int run_fast(const char *isa)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),         cmocka_unit_test(test_linear_t),
        cmocka_unit_test(test_outer),          cmocka_unit_test(test_rmsnorm),
        cmocka_unit_test(test_rope),           cmocka_unit_test(test_glu),
        cmocka_unit_test(test_rows),           cmocka_unit_test(test_score),
        cmocka_unit_test(test_dropout),        cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_attention),      cmocka_unit_test(test_attention_shared),
        cmocka_unit_test(test_attention_back), cmocka_unit_test(test_tiles),
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
    const struct CMUnitTest adjoints[] = {
        cmocka_unit_test(test_adjoint_linear),
        cmocka_unit_test(test_adjoint_rows),
        cmocka_unit_test(test_adjoint_score),
        cmocka_unit_test(test_adjoint_attention),
    };
    if (ic_backend_ref_new(&ref) < 0)
        return 1;
    int failed = cmocka_run_group_tests_name("reference", adjoints, NULL, NULL);
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
