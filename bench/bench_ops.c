/*
 * bench_ops.c - speed of the backend's operations, each as a share of what the machine can do.
 *
 * Limits are measured in the same run: the best rate of a large bf16 (or f32) product, and the
 * bandwidth of a loop that only reads. Best of many repetitions; with one thread in processor time,
 * which also means something on a busy machine. Usage: bench_ops [threads [filter]].
 */
#include "backend/cpu/cpu.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static ic_backend *be;
static double peak_gflops[2], peak_gbs; /* [bf16] */
static const char *filter;

/* ---- timing ----------------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec t;
    if (be->threads > 1)
        return ic_seconds();
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Best time of a call, over at least 7 and at most 200 repetitions or about 0.4 s. */
#define BEST(seconds, ...)                                                     \
    do {                                                                       \
        double start_ = now();                                                 \
        seconds = 1e30;                                                        \
        for (int r_ = 0; r_ < 200 && (r_ < 7 || now() - start_ < 0.4); r_++) { \
            double t_ = now();                                                 \
            __VA_ARGS__;                                                       \
            t_ = now() - t_;                                                   \
            seconds = t_ < seconds ? t_ : seconds;                             \
        }                                                                      \
    } while (0)

static bool wanted(const char *what)
{
    return !filter || strstr(what, filter);
}

static void report_flops(const char *what, double flops, double seconds, bool bf16)
{
    printf("%-58s %10.1f us %8.1f GFLOP/s %6.1f%%\n", what, seconds * 1e6, flops / seconds * 1e-9,
           flops / seconds * 1e-7 / peak_gflops[bf16]);
}

static void report_bytes(const char *what, double bytes, double seconds)
{
    printf("%-58s %10.1f us %8.1f GB/s    %6.1f%%\n", what, seconds * 1e6, bytes / seconds * 1e-9,
           bytes / seconds * 1e-7 / peak_gbs);
}

/* ---- material --------------------------------------------------------------------------------- */

static ic_mat new_mat(ic_dtype t, int rows, int cols)
{
    ic_mat m = ic_mat_of(NULL, t, rows, cols);
    size_t bytes = (size_t)rows * ic_row_bytes(t, (size_t)cols);
    m.data = ic_alloc(bytes + 64, 1);
    if (!m.data)
        exit(1);
    if (ic_dtypes[t].quantised) { /* scales of about 1e-3 wherever they lie */
        for (size_t i = 0; i < bytes; i++)
            ((unsigned char *)m.data)[i] = (unsigned char)(i % 2 ? 0x14 : i * 37);
    } else {
        for (size_t i = 0; i < (size_t)rows * (size_t)cols; i++) {
            float v = (float)((i * 2654435761u >> 7) % 2000) * 1e-3f - 1.0f;
            ic_from_f32((char *)m.data + i * (size_t)ic_dtypes[t].bytes, &v, t, 1);
        }
    }
    return m;
}

static void free_mat(ic_mat m)
{
    ic_free(m.data);
}

/* ---- limits ----------------------------------------------------------------------------------- */

static uint64_t read_all(const uint64_t *data, size_t n)
{
    uint64_t sum = 0;
#pragma omp parallel for num_threads(be->threads) reduction(+ : sum) schedule(static)
    for (size_t i = 0; i < n; i += 64) {
        uint64_t part = 0;
#pragma omp simd reduction(+ : part)
        for (size_t j = 0; j < 64; j++)
            part += data[i + j];
        sum += part;
    }
    return sum;
}

static double read_bandwidth(void)
{
    size_t n = (size_t)256 << 20;
    uint64_t *data = ic_alloc(n, 1), sink = 0;
    double seconds;
    if (!data)
        return 1;
    memset(data, 1, n);
    BEST(seconds, sink += read_all(data, n / 8));
    ic_free(data);
    return sink == 1 ? 0 : (double)n / seconds * 1e-9;
}

static void measure_limits(void)
{
    for (int b = 0; b < 2; b++) {
        ic_dtype t = b ? IC_BF16 : IC_F32;
        ic_mat x = new_mat(t, 1024, 2048), w = new_mat(t, 2048, 2048),
               y = new_mat(IC_F32, 1024, 2048);
        double seconds;
        BEST(seconds, be->linear(be, y, x, w, NULL, 1, false));
        peak_gflops[b] = 2.0 * 1024 * 2048 * 2048 / seconds * 1e-9;
        free_mat(x), free_mat(w), free_mat(y);
    }
    peak_gbs = read_bandwidth();
    printf("limits: bf16 %.0f GFLOP/s, f32 %.0f GFLOP/s, reading %.1f GB/s; %s, %d threads\n",
           peak_gflops[1], peak_gflops[0], peak_gbs, be->isa, be->threads);
}

static volatile int sink;

static void regions(int n)
{
    for (int i = 0; i < n; i++) {
#pragma omp parallel num_threads(be->threads)
        {
            if (omp_get_thread_num() == 0)
                sink = i;
        }
    }
}

static void bench_region(void)
{
    double seconds;
    BEST(seconds, regions(100));
    printf("parallel region: %.2f us\n", seconds * 1e4);
}

/* ---- operations ------------------------------------------------------------------------------- */

static void bench_linear(ic_dtype x, ic_dtype w, int t, int n, int c)
{
    char what[96];
    double seconds;
    snprintf(what, sizeof what, "linear %s x %s T %d N %d C %d", ic_dtypes[x].name,
             ic_dtypes[w].name, t, n, c);
    if (!wanted(what))
        return;
    /* Few rows: enough different weights that they come from memory, as in decoding a model. */
    size_t bytes = (size_t)n * ic_row_bytes(w, (size_t)c);
    int copies = t <= 64 ? (int)((size_t)(96 << 20) / bytes + 1) : 1;
    ic_mat mx = new_mat(x, t, c), mw = new_mat(w, n * copies, c), my = new_mat(IC_F32, t, n);
    BEST(seconds, for (int i = 0; i < copies; i++)
                      be->linear(be, my, mx, ic_mat_rows(mw, i * n, n), NULL, 1, false));
    if (t <= 8)
        report_bytes(what, (double)bytes, seconds / copies);
    else
        report_flops(what, 2.0 * t * n * c, seconds / copies, x == IC_BF16);
    free_mat(mx), free_mat(mw), free_mat(my);
}

static void bench_linear_t(ic_dtype x, ic_dtype w, int t, int n, int c)
{
    char what[96];
    double seconds;
    snprintf(what, sizeof what, "linear_t %s x %s T %d N %d C %d", ic_dtypes[x].name,
             ic_dtypes[w].name, t, n, c);
    if (!wanted(what))
        return;
    ic_mat mx = new_mat(x, t, n), mw = new_mat(w, n, c), my = new_mat(IC_F32, t, c);
    BEST(seconds, be->linear_t(be, my, mx, mw, 1, false));
    report_flops(what, 2.0 * t * n * c, seconds, x == IC_BF16);
    free_mat(mx), free_mat(mw), free_mat(my);
}

static void bench_outer(ic_dtype ta, int t, int m, int n)
{
    char what[96];
    double seconds;
    snprintf(what, sizeof what, "outer %s T %d M %d N %d", ic_dtypes[ta].name, t, m, n);
    if (!wanted(what))
        return;
    ic_mat a = new_mat(ta, t, m), b = new_mat(ta, t, n), y = new_mat(IC_F32, m, n);
    BEST(seconds, be->outer(be, y, a, b, 1));
    report_flops(what, 2.0 * t * m * n, seconds, ta == IC_BF16);
    free_mat(a), free_mat(b), free_mat(y);
}

static void bench_attention(ic_dtype type, int seqs, int queries, int keys, int heads, int kv_heads,
                            int width, bool back)
{
    char what[96];
    double seconds;
    snprintf(what, sizeof what, "attention%s %s %d x (%d of %d) H %d G %d K %d",
             back ? "_back" : "", ic_dtypes[type].name, seqs, queries, keys, heads, kv_heads,
             width);
    if (!wanted(what))
        return;
    ic_mat q = new_mat(type, seqs * queries, heads * width), o = new_mat(type, q.rows, q.cols);
    ic_mat k = new_mat(type, seqs * keys, kv_heads * width), v = new_mat(type, k.rows, k.cols);
    ic_mat dq = new_mat(IC_F32, q.rows, q.cols), dout = new_mat(type, q.rows, q.cols);
    ic_mat dk = new_mat(IC_F32, k.rows, k.cols), dv = new_mat(IC_F32, k.rows, k.cols);
    ic_mat lse = new_mat(IC_F32, q.rows, heads);
    ic_attention_seq *s = ic_alloc((size_t)seqs, sizeof *s);
    for (int i = 0; s && i < seqs; i++)
        s[i] = (ic_attention_seq){.first_query = i * queries,
                                  .queries = queries,
                                  .keys = keys,
                                  .k = ic_mat_row(k, (size_t)(i * keys)),
                                  .v = ic_mat_row(v, (size_t)(i * keys)),
                                  .dk = ic_mat_row(dk, (size_t)(i * keys)),
                                  .dv = ic_mat_row(dv, (size_t)(i * keys))};
    ic_attention a = {.seqs = s,
                      .count = seqs,
                      .heads = heads,
                      .kv_heads = kv_heads,
                      .head_width = width,
                      .scale = 1.0f / sqrtf((float)width),
                      .kv_stride = k.stride};
    be->attention(be, o, q, &a, lse.data);
    if (back)
        BEST(seconds, be->attention_back(be, dq, dout, o, q, &a, lse.data));
    else
        BEST(seconds, be->attention(be, o, q, &a, NULL));
    double visible = (double)queries * (keys - queries) + 0.5 * queries * (queries + 1.0);
    double flops = (back ? 10.0 : 4.0) * visible * seqs * heads * width;
    if (queries == 1)
        report_bytes(what, 2.0 * seqs * keys * kv_heads * width * ic_dtypes[type].bytes, seconds);
    else
        report_flops(what, flops, seconds, type == IC_BF16);
    free_mat(q), free_mat(o), free_mat(k), free_mat(v), free_mat(dq), free_mat(dout);
    free_mat(dk), free_mat(dv), free_mat(lse);
    ic_free(s);
}

static void bench_elementwise(int t, int d, int f, int v)
{
    ic_mat x = new_mat(IC_F32, t, d), y = new_mat(IC_BF16, t, d), dy = new_mat(IC_F32, t, d);
    ic_mat g = new_mat(IC_BF16, t, f), u = new_mat(IC_BF16, t, f), a = new_mat(IC_BF16, t, f);
    ic_mat logits = new_mat(IC_F32, 256, v), w = new_mat(IC_F32, 1, d);
    ic_mat angle = new_mat(IC_F32, t, 32);
    int32_t *ids = ic_alloc((size_t)IC_MAX(t, 256), sizeof *ids);
    ic_score *scores = ic_alloc(256, sizeof *scores);
    double seconds, nd = (double)t * d, nf = (double)t * f, nv = 256.0 * v;
    size_t flat = (size_t)8 << 20;
    float *p = ic_alloc(4 * flat, sizeof *p);
    if (!ids || !scores || !p)
        exit(1);
    printf("elementwise: T %d D %d F %d V %d\n", t, d, f, v);
    BEST(seconds, be->rmsnorm(be, y, x, w.data, 1e-5f));
    report_bytes("rmsnorm f32 -> bf16", nd * 6, seconds);
    BEST(seconds, be->rmsnorm_back(be, dy, y, x, w.data, 1e-5f, true));
    report_bytes("rmsnorm_back", nd * 14, seconds);
    BEST(seconds, be->rope(be, y, d / 64, 32, angle.data, angle.data, false, 1));
    report_bytes("rope bf16", nd * 4, seconds);
    BEST(seconds, be->glu(be, a, g, u, IC_SILU));
    report_bytes("glu bf16 silu", nf * 6, seconds);
    BEST(seconds, be->glu_back(be, g, u, a, g, u, IC_SILU));
    report_bytes("glu_back bf16 silu", nf * 10, seconds);
    BEST(seconds, be->rows(be, x, NULL, y, NULL, t, 1, true));
    report_bytes("rows f32 += bf16", nd * 10, seconds);
    BEST(seconds, be->dropout(be, y, y, 0.05f, 1, 2));
    report_bytes("dropout bf16", nd * 4, seconds);
    BEST(seconds, be->score(be, scores, logits, ids));
    report_bytes("score 256 rows", nv * 4, seconds);
    BEST(seconds, be->score_back(be, logits, ids, x.data));
    report_bytes("score_back 256 rows", nv * 12, seconds);
    BEST(seconds, be->adamw(be, p, p + flat, p + 2 * flat, p + 3 * flat, flat, 1e-4f, 0.9f, 0.95f,
                            1e-8f, 0, 1, 1, 1));
    report_bytes("adamw 8M", (double)flat * 28, seconds);
    BEST(seconds, be->sum_squares(be, p, flat));
    report_bytes("sum_squares 8M", (double)flat * 4, seconds);
    free_mat(x), free_mat(y), free_mat(dy), free_mat(g), free_mat(u), free_mat(a);
    free_mat(logits), free_mat(w), free_mat(angle);
    ic_free(ids), ic_free(scores), ic_free(p);
}

int main(int argc, char **argv)
{
    static const ic_dtype types[] = {IC_F32,  IC_F16,  IC_BF16, IC_Q8_0,
                                     IC_Q4_0, IC_Q4_K, IC_Q5_K, IC_Q6_K};
    static const int rows[] = {1, 2, 3, 4, 6, 8, 16, 32, 64, 640};
    if (ic_backend_cpu_new(&be, argc > 1 ? atoi(argv[1]) : 0) < 0) {
        fprintf(stderr, "%s\n", icae_error_message());
        return 1;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    filter = argc > 2 ? argv[2] : NULL;
    measure_limits();
    bench_region();
    for (int big = 0; big < 2; big++) {
        int d = big ? 2048 : 768, f = big ? 5632 : 2048;
        for (int b = 1; b >= 0; b--) {
            ic_dtype x = b ? IC_BF16 : IC_F32;
            bench_linear(x, x, 640, d, d);
            bench_linear(x, x, 640, f, d);
            bench_linear(x, x, 640, d, f);
            bench_linear_t(x, x, 640, f, d);
            bench_linear_t(x, x, 640, d, f);
            bench_outer(x, 640, 128, d);
            bench_outer(x, 640, d, 128);
        }
        for (size_t i = 0; i < IC_COUNT(rows); i++)
            bench_linear(IC_BF16, IC_BF16, rows[i], f, d);
        for (size_t i = 0; i < IC_COUNT(types); i++) {
            bench_linear(IC_F32, types[i], 1, f, d);
            bench_linear(IC_BF16, types[i], 1, f, d);
            bench_linear(IC_BF16, types[i], 4, f, d);
            bench_linear(IC_BF16, types[i], 640, f, d);
            bench_linear_t(IC_BF16, types[i], 640, f, d);
        }
    }
    for (int b = 1; b >= 0; b--) {
        ic_dtype x = b ? IC_BF16 : IC_F32;
        for (int back = 0; back < 2; back++) {
            bench_attention(x, 1, 640, 640, 12, 12, 64, back);
            bench_attention(x, 1, 640, 640, 12, 4, 64, back);
            bench_attention(x, 4, 640, 640, 32, 8, 128, back);
        }
        bench_attention(x, 1, 1, 4096, 12, 4, 64, false);
        bench_attention(x, 1, 1, 4096, 32, 8, 128, false);
        bench_attention(x, 16, 1, 1024, 12, 12, 64, false);
    }
    if (wanted("elementwise"))
        bench_elementwise(640, 768, 2048, 32000);
    ic_backend_free(be);
    return 0;
}
