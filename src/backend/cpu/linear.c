/*
 * linear.c - how a linear layer, its input gradient and its weight gradient are computed.
 *
 * Few rows: the weights are streamed once (gemv.inc). Many rows: oneDNN, on the weights as they lie
 * if they have the type of the arithmetic, else block by block through a scratch that stays in cache:
 * all threads decode a block, then all multiply it. Decoding is shared by all rows, so from some
 * thirty rows on every weight format runs at the speed of the plain one.
 */
#include "backend/cpu/cpu.h"

#include <omp.h>

enum {
    QUANTUM = 256,   /* columns of quantised weights are cut at multiples of this */
    ROW_GAP = 64,    /* between copied rows */
    PIECE = 1 << 17, /* bytes of weights that a thread takes at a time */
};

static void product(ic_cpu *cpu, ic_product p)
{
    ic_matmul_run(cpu->matmul, &p);
    if (p.m > 0 && p.k > 0)
        ic_product_own(cpu, &p);
}

/* The type in which products run for activations of type t. */
static ic_dtype arithmetic(const ic_cpu *cpu, ic_dtype t)
{
    return t == IC_BF16 && !cpu->k->bf16_dot ? IC_F32 : t;
}

/* Rows of m, columns c … c+n-1, as `type` into dst without gaps; rows shared out to threads. */
static void decode_block(const ic_cpu *cpu, void *dst, ic_dtype type, ic_mat m, int row, int rows,
                         int c, int n)
{
    size_t out = ic_row_bytes(type, (size_t)n), skip = ic_row_bytes(m.dtype, (size_t)c);
    int threads = ic_cpu_threads(cpu, (int64_t)rows * n);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int i = 0; i < rows; i++)
        cpu->k->decode((char *)dst + (size_t)i * out, type == IC_BF16,
                       (const char *)ic_mat_row(m, (size_t)(row + i)) + skip, m.dtype, (size_t)n);
}

/* ---- few rows --------------------------------------------------------------------------------- */

static bool gemv_fits(const ic_cpu *cpu, ic_mat x, ic_mat w)
{
    bool pairs = x.dtype == IC_BF16 && w.dtype == IC_BF16 && cpu->k->bf16_dot;
    if (!pairs && x.rows > IC_GEMV_ROWS / 2 && x.rows * (int64_t)x.cols > 8192)
        return false; /* x would not stay in the first cache */
    return x.rows <= (pairs ? IC_GEMV_PAIRS : IC_GEMV_ROWS) && ic_dtypes[w.dtype].bytes &&
           (w.dtype <= IC_BF16 || ic_dtypes[w.dtype].quantised) &&
           (size_t)x.rows * ((size_t)x.cols + 31 + ROW_GAP) * sizeof(float) <= cpu->rows_size / 2;
}

/* x in the type and layout that the kernels want. Rows a power of two apart would fall on the same
 * few lines of the first cache, so several rows are always copied to odd distances. */
static ic_mat gemv_input(const ic_cpu *cpu, ic_mat x, ic_dtype type)
{
    if (x.dtype == type && x.rows == 1)
        return x;
    ic_mat copy = ic_mat_of(cpu->rows, type, x.rows, x.cols);
    copy.stride = ((size_t)x.cols + 31) / 32 * 32 + ROW_GAP;
    for (size_t t = 0; t < (size_t)x.rows; t++)
        cpu->k->decode(ic_mat_row(copy, t), type == IC_BF16, ic_mat_row(x, t), x.dtype,
                       (size_t)x.cols);
    return copy;
}

static uint64_t pair(int first, int end)
{
    return (uint64_t)first << 32 | (uint32_t)end;
}

/* Each thread's share of the rows, in multiples of `step`. */
static void deal_rows(ic_cpu *cpu, int rows, int step, int threads)
{
    for (int i = 0; i < threads; i++) {
        int first, end;
        ic_share(rows, step, i, threads, &first, &end);
        atomic_init(&cpu->shares[i].rows, pair(first, end));
    }
}

/* The next rows for thread `me`: from the front of its own share, which goes on where it just read; then
 * from the back of another's. So threads end together though memory does not serve them equally.
 * False: none is left. */
static bool take_rows(ic_cpu_share *shares, int threads, int me, int piece, int *first, int *end)
{
    for (int i = 0; i < threads; i++) {
        ic_cpu_share *s = &shares[(me + i) % threads];
        uint64_t old = atomic_load_explicit(&s->rows, memory_order_relaxed), left;
        int from, to;
        do {
            from = (int)(old >> 32);
            to = (int)(uint32_t)old;
            *first = i ? IC_MAX(from, to - piece) : from;
            *end = i ? to : IC_MIN(to, from + piece);
            left = i ? pair(from, *first) : pair(*end, to);
        } while (from < to &&
                 !atomic_compare_exchange_weak_explicit(&s->rows, &old, left, memory_order_relaxed,
                                                        memory_order_relaxed));
        if (from < to)
            return true;
    }
    return false;
}

static void gemv(ic_cpu *cpu, ic_gemv g)
{
    bool quantised = ic_dtypes[g.w.dtype].quantised;
    bool pairs = g.x.dtype == IC_BF16 && (g.w.dtype == IC_BF16 || quantised) && cpu->k->bf16_dot;
    g.x = gemv_input(cpu, g.x, pairs ? IC_BF16 : IC_F32);
    if (pairs && quantised) {
        float *sums =
            (float *)cpu->rows + cpu->rows_size / sizeof(float) / 2; /* behind the copy of x */
        for (size_t t = 0; t < (size_t)g.x.rows; t++)
            cpu->k->group_sums(sums + t * (size_t)(g.x.cols / 32), ic_mat_row(g.x, t), g.x.cols);
        g.sums = sums;
    }
    bool streams = pairs && !quantised && g.x.rows == 1 && g.w.cols % 64 == 0;
    int apart = streams ? g.w.rows / IC_GEMV_STREAMS : 0, rows = apart ? apart : g.w.rows;
    size_t bytes = ic_row_bytes(g.w.dtype, (size_t)g.w.cols) * (apart ? IC_GEMV_STREAMS : 1);
    int piece = (int)IC_MAX(1, PIECE / bytes);
    int threads = ic_cpu_threads(cpu, (int64_t)g.w.rows * g.w.cols * g.x.rows / IC_GEMV_PACE);
    deal_rows(cpu, rows, 1, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int first, end, me = omp_get_thread_num();
        while (take_rows(cpu->shares, threads, me, piece, &first, &end)) {
            cpu->k->gemv(&g, first, end, apart);
            if (apart && end == rows)
                cpu->k->gemv(&g, IC_GEMV_STREAMS * rows, g.w.rows, 0);
        }
    }
}

/* ---- tiles ------------------------------------------------------------------------------------ */

static bool tiles_fit(const ic_cpu *cpu, ic_mat x, ic_mat w)
{
    return cpu->k->tiles && x.rows > 1 && x.rows <= IC_TILE_MOST && x.dtype == IC_BF16 &&
           w.dtype == IC_BF16 && w.cols % 32 == 0 && w.rows % IC_TILE_ROWS == 0 &&
           IC_TILE_MOST * ic_row_bytes(IC_BF16, (size_t)w.cols) <= cpu->rows_size;
}

static void tiles(ic_cpu *cpu, ic_gemv g)
{
    enum { BLOCK = 4 * IC_TILE_ROWS };
    int groups = (g.x.rows + IC_TILE_ROWS - 1) / IC_TILE_ROWS;
    int threads = ic_cpu_threads(cpu, (int64_t)g.w.rows * g.w.cols * g.x.rows / IC_GEMV_PACE);
    for (int i = 0; i < groups; i++)
        cpu->k->pack_tiles(cpu->rows, g.x, i);
    deal_rows(cpu, g.w.rows, BLOCK, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int first, end, me = omp_get_thread_num();
        while (take_rows(cpu->shares, threads, me, BLOCK, &first, &end))
            cpu->k->tiles(&g, cpu->rows, first, end);
    }
}

/* ---- linear ----------------------------------------------------------------------------------- */

/* Rows to compute: a few too many where there is room for them. */
static int rows_together(ic_mat y, ic_mat x)
{
    int rows = ic_room_for(x.rows);
    return rows <= IC_MIN(y.room, x.room) ? rows : x.rows;
}

/* y = x w^T where both already have the type of the arithmetic, or through decoded blocks of w. */
static void linear_in(ic_cpu *cpu, ic_mat y, ic_mat x, ic_mat w, const float *bias, float alpha,
                      bool accumulate)
{
    size_t row = ic_row_bytes(x.dtype, (size_t)w.cols), y_size = (size_t)ic_dtypes[y.dtype].bytes;
    bool direct = w.dtype == x.dtype;
    int step = direct ? w.rows : (int)IC_MIN((size_t)w.rows, cpu->weights_size / row);
    for (int n = 0; n < w.rows; n += step) {
        int count = IC_MIN(step, w.rows - n);
        if (!direct)
            decode_block(cpu, cpu->weights, x.dtype, w, n, count, 0, w.cols);
        product(cpu, (ic_product){
                         .a = x.data,
                         .lda = x.stride,
                         .b = direct ? w.data : cpu->weights,
                         .ldb = direct ? w.stride : (size_t)w.cols,
                         .tb = true,
                         .c = (char *)y.data + (size_t)n * y_size,
                         .ldc = y.stride,
                         .m = rows_together(y, x),
                         .n = count,
                         .k = w.cols,
                         .in = x.dtype,
                         .out = y.dtype,
                         .bias = bias ? bias + n : NULL,
                         .alpha = alpha,
                         .accumulate = accumulate,
                     });
    }
}

void ic_cpu_linear(ic_backend *be, ic_mat y, ic_mat x, ic_mat w, const float *bias, float alpha,
                   bool accumulate)
{
    ic_cpu *cpu = ic_cpu_of(be);
    size_t row = (size_t)w.cols * sizeof(float);
    if (x.rows <= 0 || w.rows <= 0)
        return;
    if (tiles_fit(cpu, x, w)) {
        tiles(cpu, (ic_gemv){y, x, w, NULL, bias, alpha, accumulate});
        return;
    }
    if (gemv_fits(cpu, x, w)) {
        gemv(cpu, (ic_gemv){y, x, w, NULL, bias, alpha, accumulate});
        return;
    }
    if (!ic_is_act(x.dtype) || row > cpu->weights_size || row > cpu->rows_size) {
        cpu->ref.linear(be, y, x, w, bias, alpha, accumulate);
        return;
    }
    if (arithmetic(cpu, x.dtype) == x.dtype) {
        linear_in(cpu, y, x, w, bias, alpha, accumulate);
        return;
    }
    int step = (int)IC_MIN((size_t)x.rows, cpu->rows_size / row);
    for (int t = 0; t < x.rows; t += step) {
        int count = IC_MIN(step, x.rows - t);
        decode_block(cpu, cpu->rows, IC_F32, x, t, count, 0, x.cols);
        linear_in(cpu, ic_mat_rows(y, t, count), ic_mat_of(cpu->rows, IC_F32, count, x.cols), w,
                  bias, alpha, accumulate);
    }
}

/* ---- input gradient --------------------------------------------------------------------------- */

/* Blocks of w are whole columns as far as they fit, so that the sum over N is one product. */
static void linear_t_in(ic_cpu *cpu, ic_mat y, ic_mat x, ic_mat w, float alpha, bool accumulate)
{
    size_t size = (size_t)ic_dtypes[x.dtype].bytes, y_size = (size_t)ic_dtypes[y.dtype].bytes;
    bool direct = w.dtype == x.dtype;
    int cols = w.cols, rows = w.rows;
    if (!direct) {
        size_t fit = cpu->weights_size / size / (size_t)w.rows / QUANTUM * QUANTUM;
        cols = (int)IC_MIN((size_t)w.cols, IC_MAX(fit, (size_t)QUANTUM));
        rows = (int)IC_MIN((size_t)w.rows, cpu->weights_size / size / (size_t)cols);
    }
    for (int c = 0; c < w.cols; c += cols) {
        int width = IC_MIN(cols, w.cols - c);
        for (int n = 0; n < w.rows; n += rows) {
            int count = IC_MIN(rows, w.rows - n);
            if (!direct)
                decode_block(cpu, cpu->weights, x.dtype, w, n, count, c, width);
            product(cpu, (ic_product){
                             .a = (char *)x.data + (size_t)n * size,
                             .lda = x.stride,
                             .b = direct ? w.data : cpu->weights,
                             .ldb = direct ? w.stride : (size_t)width,
                             .c = (char *)y.data + (size_t)c * y_size,
                             .ldc = y.stride,
                             .m = rows_together(y, x),
                             .n = width,
                             .k = count,
                             .in = x.dtype,
                             .out = y.dtype,
                             .alpha = alpha,
                             .accumulate = accumulate || n > 0,
                         });
        }
    }
}

void ic_cpu_linear_t(ic_backend *be, ic_mat y, ic_mat x, ic_mat w, float alpha, bool accumulate)
{
    ic_cpu *cpu = ic_cpu_of(be);
    size_t row = (size_t)x.cols * sizeof(float);
    if (x.rows <= 0 || w.cols <= 0)
        return;
    if (!ic_is_act(x.dtype) || row > cpu->rows_size) {
        cpu->ref.linear_t(be, y, x, w, alpha, accumulate);
        return;
    }
    if (arithmetic(cpu, x.dtype) == x.dtype) {
        linear_t_in(cpu, y, x, w, alpha, accumulate);
        return;
    }
    int step = (int)IC_MIN((size_t)x.rows, cpu->rows_size / row);
    for (int t = 0; t < x.rows; t += step) {
        int count = IC_MIN(step, x.rows - t);
        decode_block(cpu, cpu->rows, IC_F32, x, t, count, 0, x.cols);
        linear_t_in(cpu, ic_mat_rows(y, t, count), ic_mat_of(cpu->rows, IC_F32, count, x.cols), w,
                    alpha, accumulate);
    }
}

/* ---- weight gradient -------------------------------------------------------------------------- */

static void outer_in(ic_cpu *cpu, ic_mat y, ic_mat a, ic_mat b, float alpha)
{
    product(cpu, (ic_product){
                     .a = a.data,
                     .lda = a.stride,
                     .ta = true,
                     .b = b.data,
                     .ldb = b.stride,
                     .c = y.data,
                     .ldc = y.stride,
                     .m = y.rows,
                     .n = y.cols,
                     .k = a.rows,
                     .in = a.dtype,
                     .out = IC_F32,
                     .alpha = alpha,
                     .accumulate = true,
                 });
}

void ic_cpu_outer(ic_backend *be, ic_mat y, ic_mat a, ic_mat b, float alpha)
{
    ic_cpu *cpu = ic_cpu_of(be);
    size_t row = ((size_t)a.cols + (size_t)b.cols) * sizeof(float);
    if (a.rows <= 0)
        return;
    if (!ic_is_act(a.dtype) || !ic_is_act(b.dtype) || row > cpu->rows_size) {
        cpu->ref.outer(be, y, a, b, alpha);
        return;
    }
    if (a.dtype == b.dtype && arithmetic(cpu, a.dtype) == a.dtype) {
        outer_in(cpu, y, a, b, alpha);
        return;
    }
    int step = (int)IC_MIN((size_t)a.rows, cpu->rows_size / row);
    for (int t = 0; t < a.rows; t += step) {
        int count = IC_MIN(step, a.rows - t);
        float *second = (float *)cpu->rows + (size_t)count * (size_t)a.cols;
        decode_block(cpu, cpu->rows, IC_F32, a, t, count, 0, a.cols);
        decode_block(cpu, second, IC_F32, b, t, count, 0, b.cols);
        outer_in(cpu, y, ic_mat_of(cpu->rows, IC_F32, count, a.cols),
                 ic_mat_of(second, IC_F32, count, b.cols), alpha);
    }
}
