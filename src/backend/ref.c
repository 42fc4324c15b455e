/*
 * ref.c - every operation in plain C: slow, obviously right, the oracle for all other backends.
 *
 * Rows of any type are decoded to f32 in short pieces, sums are taken in double. No threads, no
 * allocation, no state. Attention is in ref_attention.c.
 */
#include "backend/ref.h"

#include <math.h>

enum { CHUNK = 256 /* values decoded at a time; a multiple of every block */ };

/* Values col … col+n-1 of row `row`; col is a multiple of CHUNK or the type is plain. */
static void load(float *dst, ic_mat m, size_t row, int col, int n)
{
    const char *at = (const char *)ic_mat_row(m, row) + ic_row_bytes(m.dtype, (size_t)col);
    ic_to_f32(dst, at, m.dtype, (size_t)n);
}

static void store(ic_mat m, size_t row, int col, const float *src, int n)
{
    char *at = (char *)ic_mat_row(m, row) + ic_row_bytes(m.dtype, (size_t)col);
    ic_from_f32(at, src, m.dtype, (size_t)n);
}

static void store_sum(ic_mat y, size_t row, int col, const double *sum, int n, float alpha,
                      bool accumulate)
{
    float out[CHUNK], old[CHUNK];
    if (accumulate)
        load(old, y, row, col, n);
    for (int i = 0; i < n; i++)
        out[i] = (float)(alpha * sum[i] + (accumulate ? old[i] : 0.0));
    store(y, row, col, out, n);
}

static void ref_linear(ic_backend *be, ic_mat y, ic_mat x, ic_mat w, const float *bias, float alpha,
                       bool accumulate)
{
    (void)be;
    enum { ROWS = 64 };
    for (int t0 = 0; t0 < x.rows; t0 += ROWS) {
        int rows = IC_MIN(ROWS, x.rows - t0);
        for (int n = 0; n < w.rows; n++) {
            double sum[ROWS] = {0};
            for (int c = 0; c < w.cols; c += CHUNK) {
                float wrow[CHUNK], xrow[CHUNK];
                int count = IC_MIN(CHUNK, w.cols - c);
                load(wrow, w, (size_t)n, c, count);
                for (int t = 0; t < rows; t++) {
                    load(xrow, x, (size_t)(t0 + t), c, count);
                    for (int i = 0; i < count; i++)
                        sum[t] += (double)wrow[i] * xrow[i];
                }
            }
            for (int t = 0; t < rows; t++) {
                if (bias) /* the bias is not scaled by alpha */
                    sum[t] = alpha * sum[t] + bias[n];
                store_sum(y, (size_t)(t0 + t), n, &sum[t], 1, bias ? 1.0f : alpha, accumulate);
            }
        }
    }
}

static void ref_linear_t(ic_backend *be, ic_mat y, ic_mat x, ic_mat w, float alpha, bool accumulate)
{
    (void)be;
    enum { ROWS = 16 };
    for (int t0 = 0; t0 < x.rows; t0 += ROWS) {
        int rows = IC_MIN(ROWS, x.rows - t0);
        for (int c = 0; c < w.cols; c += CHUNK) {
            double sum[ROWS][CHUNK] = {{0}};
            int count = IC_MIN(CHUNK, w.cols - c);
            for (int n = 0; n < w.rows; n++) {
                float wrow[CHUNK], xn;
                load(wrow, w, (size_t)n, c, count);
                for (int t = 0; t < rows; t++) {
                    load(&xn, x, (size_t)(t0 + t), n, 1);
                    for (int i = 0; i < count; i++)
                        sum[t][i] += (double)xn * wrow[i];
                }
            }
            for (int t = 0; t < rows; t++)
                store_sum(y, (size_t)(t0 + t), c, sum[t], count, alpha, accumulate);
        }
    }
}

static void ref_outer(ic_backend *be, ic_mat y, ic_mat a, ic_mat b, float alpha)
{
    (void)be;
    for (int m = 0; m < y.rows; m++) {
        for (int c = 0; c < y.cols; c += CHUNK) {
            double sum[CHUNK] = {0};
            int count = IC_MIN(CHUNK, y.cols - c);
            for (int t = 0; t < a.rows; t++) {
                float brow[CHUNK], am;
                load(&am, a, (size_t)t, m, 1);
                load(brow, b, (size_t)t, c, count);
                for (int i = 0; i < count; i++)
                    sum[i] += (double)am * brow[i];
            }
            store_sum(y, (size_t)m, c, sum, count, alpha, true);
        }
    }
}

static void ref_rows(ic_backend *be, ic_mat dst, const int32_t *to, ic_mat src, const int32_t *from,
                     int n, float scale, bool accumulate)
{
    (void)be;
    for (int i = 0; i < n; i++) {
        size_t out = (size_t)(to ? to[i] : i), in = (size_t)(from ? from[i] : i);
        for (int c = 0; c < src.cols; c += CHUNK) {
            float row[CHUNK], old[CHUNK];
            int count = IC_MIN(CHUNK, src.cols - c);
            load(row, src, in, c, count);
            if (accumulate)
                load(old, dst, out, c, count);
            for (int j = 0; j < count; j++)
                row[j] = scale * row[j] + (accumulate ? old[j] : 0.0f);
            store(dst, out, c, row, count);
        }
    }
}

/* 1 / sqrt(mean(x^2) + eps) of a row. */
static double inverse_rms(ic_mat x, size_t row, float eps)
{
    double sum = 0;
    float v[CHUNK];
    for (int c = 0; c < x.cols; c += CHUNK) {
        int count = IC_MIN(CHUNK, x.cols - c);
        load(v, x, row, c, count);
        for (int i = 0; i < count; i++)
            sum += (double)v[i] * v[i];
    }
    return 1.0 / sqrt(sum / x.cols + eps);
}

static void ref_rmsnorm(ic_backend *be, ic_mat y, ic_mat x, const float *w, float eps)
{
    (void)be;
    for (size_t t = 0; t < (size_t)x.rows; t++) {
        double r = inverse_rms(x, t, eps);
        float v[CHUNK];
        for (int c = 0; c < x.cols; c += CHUNK) {
            int count = IC_MIN(CHUNK, x.cols - c);
            load(v, x, t, c, count);
            for (int i = 0; i < count; i++)
                v[i] = (float)(v[i] * r * w[c + i]);
            store(y, t, c, v, count);
        }
    }
}

/* With r = inverse_rms(x): dx = r w dy - x r^3 mean(x w dy). */
static void ref_rmsnorm_back(ic_backend *be, ic_mat dx, ic_mat dy, ic_mat x, const float *w,
                             float eps, bool accumulate)
{
    (void)be;
    for (size_t t = 0; t < (size_t)x.rows; t++) {
        double r = inverse_rms(x, t, eps), dot = 0;
        float v[CHUNK], g[CHUNK];
        double d[CHUNK];
        for (int c = 0; c < x.cols; c += CHUNK) {
            int count = IC_MIN(CHUNK, x.cols - c);
            load(v, x, t, c, count);
            load(g, dy, t, c, count);
            for (int i = 0; i < count; i++)
                dot += (double)v[i] * w[c + i] * g[i];
        }
        for (int c = 0; c < x.cols; c += CHUNK) {
            int count = IC_MIN(CHUNK, x.cols - c);
            load(v, x, t, c, count);
            load(g, dy, t, c, count);
            for (int i = 0; i < count; i++)
                d[i] = r * w[c + i] * g[i] - v[i] * r * r * r * dot / x.cols;
            store_sum(dx, t, c, d, count, 1.0f, accumulate);
        }
    }
}

static void ref_rope(ic_backend *be, ic_mat x, int heads, int half, const float *cosine,
                     const float *sine, bool interleaved, float sign)
{
    (void)be;
    int width = x.cols / heads;
    for (size_t t = 0; t < (size_t)x.rows; t++) {
        for (int h = 0; h < heads; h++) {
            for (int i = 0; i < half; i++) {
                int ca = h * width + (interleaved ? 2 * i : i);
                int cb = h * width + (interleaved ? 2 * i + 1 : i + half);
                float c = cosine[t * (size_t)half + (size_t)i];
                float s = sign * sine[t * (size_t)half + (size_t)i], a, b;
                load(&a, x, t, ca, 1);
                load(&b, x, t, cb, 1);
                float ra = a * c - b * s, rb = b * c + a * s;
                store(x, t, ca, &ra, 1);
                store(x, t, cb, &rb, 1);
            }
        }
    }
}

/* act(g) and its derivative. Both are g sigmoid(z): z = g for SILU; for GELU's tanh form
 * g/2 (1 + tanh(k (g + 0.044715 g^3))), k = sqrt(2 / pi), z is twice the argument of tanh. */
static double activation(double g, ic_activation act, double *derivative)
{
    const double k = 0.79788456080286535588;
    double z = act == IC_SILU ? g : 2 * k * (g + 0.044715 * g * g * g);
    double dz = act == IC_SILU ? 1 : 2 * k * (1 + 3 * 0.044715 * g * g);
    double s = 1 / (1 + exp(-z));
    *derivative = s + g * s * (1 - s) * dz;
    return g * s;
}

static void ref_glu(ic_backend *be, ic_mat y, ic_mat gate, ic_mat up, ic_activation act)
{
    (void)be;
    for (size_t t = 0; t < (size_t)y.rows; t++) {
        for (int c = 0; c < y.cols; c += CHUNK) {
            float g[CHUNK], u[CHUNK];
            double derivative;
            int count = IC_MIN(CHUNK, y.cols - c);
            load(g, gate, t, c, count);
            load(u, up, t, c, count);
            for (int i = 0; i < count; i++)
                g[i] = (float)(activation(g[i], act, &derivative) * u[i]);
            store(y, t, c, g, count);
        }
    }
}

static void ref_glu_back(ic_backend *be, ic_mat dgate, ic_mat dup, ic_mat dy, ic_mat gate,
                         ic_mat up, ic_activation act)
{
    (void)be;
    for (size_t t = 0; t < (size_t)dy.rows; t++) {
        for (int c = 0; c < dy.cols; c += CHUNK) {
            float g[CHUNK], u[CHUNK], d[CHUNK];
            int count = IC_MIN(CHUNK, dy.cols - c);
            load(g, gate, t, c, count);
            load(u, up, t, c, count);
            load(d, dy, t, c, count);
            for (int i = 0; i < count; i++) {
                double derivative, a = activation(g[i], act, &derivative);
                g[i] = (float)(d[i] * u[i] * derivative);
                u[i] = (float)(d[i] * a);
            }
            store(dgate, t, c, g, count);
            store(dup, t, c, u, count);
        }
    }
}

static double log_sum_exp(const float *row, int n)
{
    double max = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++)
        max = fmax(max, row[i]);
    for (int i = 0; i < n; i++)
        sum += exp(row[i] - max);
    return max + log(sum);
}

static void ref_score(ic_backend *be, ic_score *out, ic_mat logits, const int32_t *targets)
{
    (void)be;
    for (int t = 0; t < logits.rows; t++) {
        const float *row = ic_mat_row(logits, (size_t)t);
        ic_score s = {.best = 0, .best_logit = row[0], .second_logit = -INFINITY};
        for (int i = 1; i < logits.cols; i++) {
            if (row[i] > s.best_logit) {
                s.second_logit = s.best_logit;
                s.best_logit = row[i];
                s.best = i;
            } else if (row[i] > s.second_logit) {
                s.second_logit = row[i];
            }
        }
        s.target_logit = row[targets[t]];
        s.nll = (float)(log_sum_exp(row, logits.cols) - s.target_logit);
        out[t] = s;
    }
}

static void ref_score_back(ic_backend *be, ic_mat logits, const int32_t *targets,
                           const float *weight)
{
    (void)be;
    for (int t = 0; t < logits.rows; t++) {
        float *row = ic_mat_row(logits, (size_t)t);
        double lse = log_sum_exp(row, logits.cols);
        for (int i = 0; i < logits.cols; i++)
            row[i] = (float)(weight[t] * (exp(row[i] - lse) - (i == targets[t])));
    }
}

/* Element i (row-major, without strides) is dropped if word i % 4 of random block i / 4 lies below
 * p 2^32. */
static void ref_dropout(ic_backend *be, ic_mat y, ic_mat x, float p, uint64_t seed, uint64_t stream)
{
    (void)be;
    uint64_t threshold = (uint64_t)((double)p * 4294967296.0), index = 0;
    uint32_t random[4];
    float keep = 1.0f / (1.0f - p);
    for (size_t t = 0; t < (size_t)x.rows; t++) {
        for (int c = 0; c < x.cols; c++, index++) {
            float v;
            if (index % 4 == 0)
                ic_random_block(random, seed, stream, index / 4);
            load(&v, x, t, c, 1);
            v = random[index % 4] < threshold ? 0.0f : v * keep;
            store(y, t, c, &v, 1);
        }
    }
}

static void ref_adamw(ic_backend *be, float *p, float *m, float *v, const float *g, size_t n,
                      float lr, float beta1, float beta2, float eps, float decay, float c1,
                      float c2, float grad_scale)
{
    (void)be;
    for (size_t i = 0; i < n; i++) {
        float gi = g[i] * grad_scale;
        m[i] = beta1 * m[i] + (1 - beta1) * gi;
        v[i] = beta2 * v[i] + (1 - beta2) * gi * gi;
        p[i] -= lr * decay * p[i];
        p[i] -= lr * (m[i] / c1) / (sqrtf(v[i] / c2) + eps);
    }
}

static double ref_sum_squares(ic_backend *be, const float *x, size_t n)
{
    (void)be;
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    return sum;
}

static void ref_free(ic_backend *be)
{
    ic_free(be);
}

void ic_backend_ref_fill(ic_backend *be)
{
    *be = (ic_backend){
        .name = "ref",
        .threads = 1,
        .isa = "plain C",
        .free = ref_free,
        .linear = ref_linear,
        .linear_t = ref_linear_t,
        .outer = ref_outer,
        .rows = ref_rows,
        .rmsnorm = ref_rmsnorm,
        .rmsnorm_back = ref_rmsnorm_back,
        .rope = ref_rope,
        .attention = ic_ref_attention,
        .attention_back = ic_ref_attention_back,
        .glu = ref_glu,
        .glu_back = ref_glu_back,
        .score = ref_score,
        .score_back = ref_score_back,
        .dropout = ref_dropout,
        .adamw = ref_adamw,
        .sum_squares = ref_sum_squares,
    };
}

int ic_backend_ref_new(ic_backend **out)
{
    *out = ic_alloc(1, sizeof **out);
    if (!*out)
        return ICAE_ENOMEM;
    ic_backend_ref_fill(*out);
    return 0;
}
