/*
 * backend.c - what all backends share: freeing, and the counting backend, whose operations do
 * nothing.
 *
 * The counting backend lets a model run over addresses that must not be touched, so that memory is
 * known before it is taken.
 */
#include "backend/backend.h"

static void nothing_linear(ic_backend *be, ic_mat y, ic_mat x, ic_mat w, const float *bias,
                           float alpha, bool accumulate)
{
    (void)be, (void)y, (void)x, (void)w, (void)bias, (void)alpha, (void)accumulate;
}

static void nothing_linear_t(ic_backend *be, ic_mat y, ic_mat x, ic_mat w, float alpha,
                             bool accumulate)
{
    (void)be, (void)y, (void)x, (void)w, (void)alpha, (void)accumulate;
}

static void nothing_outer(ic_backend *be, ic_mat y, ic_mat a, ic_mat b, float alpha)
{
    (void)be, (void)y, (void)a, (void)b, (void)alpha;
}

static void nothing_rows(ic_backend *be, ic_mat dst, const int32_t *to, ic_mat src,
                         const int32_t *from, int n, float scale, bool accumulate)
{
    (void)be, (void)dst, (void)to, (void)src, (void)from, (void)n, (void)scale, (void)accumulate;
}

static void nothing_rmsnorm(ic_backend *be, ic_mat y, ic_mat x, const float *w, float eps)
{
    (void)be, (void)y, (void)x, (void)w, (void)eps;
}

static void nothing_rmsnorm_back(ic_backend *be, ic_mat dx, ic_mat dy, ic_mat x, const float *w,
                                 float eps, bool accumulate)
{
    (void)be, (void)dx, (void)dy, (void)x, (void)w, (void)eps, (void)accumulate;
}

static void nothing_rope(ic_backend *be, ic_mat x, int heads, int half, const float *cosine,
                         const float *sine, bool interleaved, float sign)
{
    (void)be, (void)x, (void)heads, (void)half, (void)cosine, (void)sine, (void)interleaved;
    (void)sign;
}

static void nothing_attention(ic_backend *be, ic_mat o, ic_mat q, const ic_attention *a, float *lse)
{
    (void)be, (void)o, (void)q, (void)a, (void)lse;
}

static void nothing_attention_back(ic_backend *be, ic_mat dq, ic_mat dout, ic_mat o, ic_mat q,
                                   const ic_attention *a, const float *lse)
{
    (void)be, (void)dq, (void)dout, (void)o, (void)q, (void)a, (void)lse;
}

static void nothing_glu(ic_backend *be, ic_mat y, ic_mat gate, ic_mat up, ic_activation act)
{
    (void)be, (void)y, (void)gate, (void)up, (void)act;
}

static void nothing_glu_back(ic_backend *be, ic_mat dgate, ic_mat dup, ic_mat dy, ic_mat gate,
                             ic_mat up, ic_activation act)
{
    (void)be, (void)dgate, (void)dup, (void)dy, (void)gate, (void)up, (void)act;
}

static void nothing_score(ic_backend *be, ic_score *out, ic_mat logits, const int32_t *targets)
{
    (void)be, (void)out, (void)logits, (void)targets;
}

static void nothing_score_back(ic_backend *be, ic_mat logits, const int32_t *targets,
                               const float *weight)
{
    (void)be, (void)logits, (void)targets, (void)weight;
}

static void nothing_dropout(ic_backend *be, ic_mat y, ic_mat x, float p, uint64_t seed,
                            uint64_t stream)
{
    (void)be, (void)y, (void)x, (void)p, (void)seed, (void)stream;
}

static void nothing_adamw(ic_backend *be, float *p, float *m, float *v, const float *g, size_t n,
                          float lr, float beta1, float beta2, float eps, float decay, float c1,
                          float c2, float grad_scale)
{
    (void)be, (void)p, (void)m, (void)v, (void)g, (void)n, (void)lr, (void)beta1, (void)beta2;
    (void)eps, (void)decay, (void)c1, (void)c2, (void)grad_scale;
}

static double nothing_sum_squares(ic_backend *be, const float *x, size_t n)
{
    (void)be, (void)x, (void)n;
    return 0;
}

static void counting_free(ic_backend *be)
{
    ic_free(be);
}

int ic_backend_counting_new(ic_backend **out)
{
    ic_backend *be = *out = ic_alloc(1, sizeof *be);
    if (!be)
        return ICAE_ENOMEM;
    *be = (ic_backend){
        .name = "counting",
        .threads = 1,
        .counting = true,
        .isa = "none",
        .free = counting_free,
        .linear = nothing_linear,
        .linear_t = nothing_linear_t,
        .outer = nothing_outer,
        .rows = nothing_rows,
        .rmsnorm = nothing_rmsnorm,
        .rmsnorm_back = nothing_rmsnorm_back,
        .rope = nothing_rope,
        .attention = nothing_attention,
        .attention_back = nothing_attention_back,
        .glu = nothing_glu,
        .glu_back = nothing_glu_back,
        .score = nothing_score,
        .score_back = nothing_score_back,
        .dropout = nothing_dropout,
        .adamw = nothing_adamw,
        .sum_squares = nothing_sum_squares,
    };
    return 0;
}

void ic_backend_free(ic_backend *be)
{
    if (be)
        be->free(be);
}
