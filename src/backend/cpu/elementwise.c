/*
 * elementwise.c - shares the row-wise operations out to threads.
 *
 * Small ones run on the calling thread alone. Rows of other types than F32 and BF16 go to the reference.
 */
#include "backend/cpu/cpu.h"

#include <omp.h>
#include <string.h>

static ic_row row_of(ic_mat m, int i)
{
    return (ic_row){ic_mat_row(m, (size_t)i), m.dtype == IC_BF16};
}

static int threads_for(const ic_cpu *cpu, int rows, int cols)
{
    return IC_MIN(ic_cpu_threads(cpu, (int64_t)rows * cols), rows);
}

/* Runs the statement for every row t of `rows`, in parallel if there is enough to do. */
#define EACH_ROW(rows, cols, statement)                                                            \
    do {                                                                                           \
        int threads_ = threads_for(cpu, rows, cols);                                               \
        _Pragma("omp parallel for num_threads(threads_) if (threads_ > 1) schedule(static)") for ( \
            int t = 0; t < (rows); t++) statement;                                                 \
    } while (0)

static void cpu_rmsnorm(ic_backend *be, ic_mat y, ic_mat x, const float *w, float eps)
{
    ic_cpu *cpu = ic_cpu_of(be);
    if (!ic_is_act(y.dtype) || !ic_is_act(x.dtype))
        cpu->ref.rmsnorm(be, y, x, w, eps);
    else
        EACH_ROW(x.rows, x.cols, cpu->k->rmsnorm(row_of(y, t), row_of(x, t), w, x.cols, eps));
}

static void cpu_rmsnorm_back(ic_backend *be, ic_mat dx, ic_mat dy, ic_mat x, const float *w,
                             float eps, bool accumulate)
{
    ic_cpu *cpu = ic_cpu_of(be);
    if (!ic_is_act(dx.dtype) || !ic_is_act(dy.dtype) || !ic_is_act(x.dtype))
        cpu->ref.rmsnorm_back(be, dx, dy, x, w, eps, accumulate);
    else
        EACH_ROW(x.rows, x.cols,
                 cpu->k->rmsnorm_back(row_of(dx, t), row_of(dy, t), row_of(x, t), w, x.cols, eps,
                                      accumulate));
}

static void cpu_rope(ic_backend *be, ic_mat x, int heads, int half, const float *cosine,
                     const float *sine, bool interleaved, float sign)
{
    ic_cpu *cpu = ic_cpu_of(be);
    if (!ic_is_act(x.dtype))
        cpu->ref.rope(be, x, heads, half, cosine, sine, interleaved, sign);
    else
        EACH_ROW(x.rows, x.cols,
                 cpu->k->rope(row_of(x, t), heads, x.cols / heads, half,
                              cosine + (size_t)t * (size_t)half, sine + (size_t)t * (size_t)half,
                              interleaved, sign));
}

static void cpu_glu(ic_backend *be, ic_mat y, ic_mat gate, ic_mat up, ic_activation act)
{
    ic_cpu *cpu = ic_cpu_of(be);
    if (!ic_is_act(y.dtype) || !ic_is_act(gate.dtype) || !ic_is_act(up.dtype))
        cpu->ref.glu(be, y, gate, up, act);
    else
        EACH_ROW(y.rows, y.cols,
                 cpu->k->glu(row_of(y, t), row_of(gate, t), row_of(up, t), y.cols, act));
}

static void cpu_glu_back(ic_backend *be, ic_mat dgate, ic_mat dup, ic_mat dy, ic_mat gate,
                         ic_mat up, ic_activation act)
{
    ic_cpu *cpu = ic_cpu_of(be);
    if (!ic_is_act(dgate.dtype) || !ic_is_act(dup.dtype) || !ic_is_act(dy.dtype) ||
        !ic_is_act(gate.dtype) || !ic_is_act(up.dtype))
        cpu->ref.glu_back(be, dgate, dup, dy, gate, up, act);
    else
        EACH_ROW(dy.rows, dy.cols,
                 cpu->k->glu_back(row_of(dgate, t), row_of(dup, t), row_of(dy, t), row_of(gate, t),
                                  row_of(up, t), dy.cols, act));
}

/* Columns col … col+n-1 of one row; a multiple of a block unless the type is plain. */
static void copy_row(const ic_cpu *cpu, ic_mat dst, int to, ic_mat src, int from, int col, int n,
                     float scale, bool accumulate)
{
    enum { CHUNK = 1024 };
    char *out = (char *)ic_mat_row(dst, (size_t)to) + ic_row_bytes(dst.dtype, (size_t)col);
    const char *in =
        (const char *)ic_mat_row(src, (size_t)from) + ic_row_bytes(src.dtype, (size_t)col);
    bool b = dst.dtype == IC_BF16;
    if (src.dtype == dst.dtype && scale == 1 && !accumulate) {
        memmove(out, in, ic_row_bytes(src.dtype, (size_t)n));
        return;
    }
    if (ic_is_act(src.dtype)) {
        ic_row from_row = {(void *)(uintptr_t)in, src.dtype == IC_BF16};
        cpu->k->add((ic_row){out, b}, from_row, n, scale, accumulate);
        return;
    }
    for (int c = 0; c < n; c += CHUNK) {
        float values[CHUNK];
        int count = IC_MIN(CHUNK, n - c);
        cpu->k->decode(values, false, in + ic_row_bytes(src.dtype, (size_t)c), src.dtype,
                       (size_t)count);
        cpu->k->add((ic_row){out + ic_row_bytes(dst.dtype, (size_t)c), b}, (ic_row){values, false},
                    count, scale, accumulate);
    }
}

/* Sums may meet in one row of dst, so then threads share out columns instead of rows. */
static void cpu_rows(ic_backend *be, ic_mat dst, const int32_t *to, ic_mat src, const int32_t *from,
                     int n, float scale, bool accumulate)
{
    ic_cpu *cpu = ic_cpu_of(be);
    if (!ic_is_act(dst.dtype)) {
        cpu->ref.rows(be, dst, to, src, from, n, scale, accumulate);
        return;
    }
    if (!accumulate || !to) {
        EACH_ROW(n, src.cols,
                 copy_row(cpu, dst, to ? to[t] : t, src, from ? from[t] : t, 0, src.cols, scale,
                          accumulate));
        return;
    }
    int threads = ic_cpu_threads(cpu, (int64_t)n * src.cols);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int first, end;
        ic_share(src.cols, 256, omp_get_thread_num(), omp_get_num_threads(), &first, &end);
        for (int i = 0; i < n && first < end; i++)
            copy_row(cpu, dst, to[i], src, from ? from[i] : i, first, end - first, scale, true);
    }
}

static void cpu_score(ic_backend *be, ic_score *out, ic_mat logits, const int32_t *targets)
{
    ic_cpu *cpu = ic_cpu_of(be);
    EACH_ROW(logits.rows, logits.cols,
             cpu->k->score(&out[t], ic_mat_row(logits, (size_t)t), logits.cols, targets[t]));
}

static void cpu_score_back(ic_backend *be, ic_mat logits, const int32_t *targets,
                           const float *weight)
{
    ic_cpu *cpu = ic_cpu_of(be);
    EACH_ROW(logits.rows, logits.cols,
             cpu->k->score_back(ic_mat_row(logits, (size_t)t), logits.cols, targets[t], weight[t]));
}

static void cpu_dropout(ic_backend *be, ic_mat y, ic_mat x, float p, uint64_t seed, uint64_t stream)
{
    ic_cpu *cpu = ic_cpu_of(be);
    if (!ic_is_act(y.dtype) || !ic_is_act(x.dtype))
        cpu->ref.dropout(be, y, x, p, seed, stream);
    else
        EACH_ROW(x.rows, x.cols,
                 cpu->k->dropout(row_of(y, t), row_of(x, t), x.cols, p, seed, stream,
                                 (uint64_t)t * (uint64_t)x.cols));
}

/* ---- flat parameters -------------------------------------------------------------------------- */

static void share_flat(size_t n, int part, int parts, size_t *first, size_t *end)
{
    size_t step = (n / (size_t)parts + 1023) / 1024 * 1024;
    *first = IC_MIN(n, step * (size_t)part);
    *end = part == parts - 1 ? n : IC_MIN(n, *first + step);
}

static void cpu_adamw(ic_backend *be, float *p, float *m, float *v, const float *g, size_t n,
                      float lr, float beta1, float beta2, float eps, float decay, float c1,
                      float c2, float grad_scale)
{
    ic_cpu *cpu = ic_cpu_of(be);
    ic_adamw a = {lr, beta1, beta2, eps, decay, c1, c2, grad_scale};
    int threads = ic_cpu_threads(cpu, (int64_t)n);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        size_t first, end;
        share_flat(n, omp_get_thread_num(), omp_get_num_threads(), &first, &end);
        cpu->k->adamw(p + first, m + first, v + first, g + first, end - first, &a);
    }
}

static double cpu_sum_squares(ic_backend *be, const float *x, size_t n)
{
    ic_cpu *cpu = ic_cpu_of(be);
    double part[IC_MAX_THREADS] = {0}, sum = 0;
    int threads = ic_cpu_threads(cpu, (int64_t)n);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        size_t first, end;
        share_flat(n, omp_get_thread_num(), omp_get_num_threads(), &first, &end);
        part[omp_get_thread_num()] = cpu->k->sum_squares(x + first, end - first);
    }
    for (int i = 0; i < threads; i++)
        sum += part[i];
    return sum;
}

void ic_cpu_fill_elementwise(ic_backend *be)
{
    be->rmsnorm = cpu_rmsnorm;
    be->rmsnorm_back = cpu_rmsnorm_back;
    be->rope = cpu_rope;
    be->glu = cpu_glu;
    be->glu_back = cpu_glu_back;
    be->rows = cpu_rows;
    be->score = cpu_score;
    be->score_back = cpu_score_back;
    be->dropout = cpu_dropout;
    be->adamw = cpu_adamw;
    be->sum_squares = cpu_sum_squares;
}
