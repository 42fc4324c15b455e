/*
 * test_tape.c - adjoints against finite differences: every operation alone, and whole models of every
 * kind of layer; recompute levels; what is kept.
 *
 * Everything runs on the reference backend, whose sums are doubles, on models made up here.
 */
#include "model/tape.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

static ic_backend *be, *counting;
static uint64_t draws;

static float normal(void)
{
    return (float)ic_random_normal(7, IC_STREAM_INIT, draws++);
}

static float *normals(size_t n, float scale)
{
    float *v = ic_alloc(n, sizeof *v);
    assert_non_null(v);
    for (size_t i = 0; i < n; i++)
        v[i] = scale * normal();
    return v;
}

static ic_mat random_mat(int rows, int cols, float scale)
{
    return ic_mat_of(normals((size_t)rows * (size_t)cols, scale), IC_F32, rows, cols);
}

static double dot(const float *a, const float *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

/* ---- a run with a tape ------------------------------------------------------------------------ */

/* Something that is run: a stack of stages, or a transformer. */
typedef struct subject {
    ic_stage_fn fn; /* one stage; NULL: the transformer */
    const icae_model *model;
    const ic_lora_set *lora;
    const ic_batch *batch;
    ic_mat x;       /* input, F32 */
    int rows, cols; /* of the result */
    const float *c; /* [rows, cols]: the loss is the sum of c times result */
    int recompute;
    size_t kept; /* bytes, out */
} subject;

static ic_mat go(ic_run *r, const subject *s, ic_mat x)
{
    ic_var in = {x, 0};
    return s->fn ? ic_stage(r, s->fn, s, 0, in).m
                 : ic_transformer(r, s->model, s->lora, s->batch, in).m;
}

static void pass(ic_run *r, const subject *s, ic_tape *tape, double *loss, float *dx)
{
    size_t n = (size_t)s->rows * (size_t)s->cols;
    ic_tape_begin(r, tape);
    ic_mat x = ic_new(r, s->x.rows, s->x.cols, IC_F32).m;
    r->be->rows(r->be, x, NULL, s->x, NULL, x.rows, 1, false);
    ic_mat y = go(r, s, x);
    assert_int_equal(y.rows, s->rows);
    assert_int_equal(y.cols, s->cols);
    if (!r->be->counting)
        *loss = dot(y.data, s->c, n);
    if (!dx)
        return;
    ic_mat dy = ic_new(r, s->rows, s->cols, IC_F32).m;
    r->be->rows(r->be, dy, NULL, ic_mat_of((void *)(uintptr_t)s->c, IC_F32, s->rows, s->cols), NULL,
                s->rows, 1, false);
    ic_mat out = ic_tape_back(r, dy);
    r->be->rows(r->be, ic_mat_of(dx, IC_F32, x.rows, x.cols), NULL, out, NULL, x.rows, 1, false);
}

/* The loss, and if dx is not NULL the gradient of the input; LoRA's gradients go where they point. */
static double evaluate(subject *s, float *dx)
{
    double loss = 0;
    ic_tape *tape;
    ic_arena measure = {0}, measured_keep = {0}, arena = {0}, keep = {0};
    assert_int_equal(ic_tape_new(&tape, s->recompute, 8), 0);
    ic_arena_measure(&measure);
    ic_arena_measure(&measured_keep);
    ic_run r = {.be = counting, .arena = &measure, .keep = &measured_keep, .act = IC_F32};
    pass(&r, s, tape, &loss, dx);
    s->kept = measured_keep.peak;
    assert_int_equal(ic_arena_reserve(&arena, measure.peak), 0);
    assert_int_equal(ic_arena_reserve(&keep, measured_keep.peak + 64), 0);
    r.be = be;
    r.arena = &arena;
    r.keep = &keep;
    pass(&r, s, tape, &loss, dx);
    assert_int_equal(arena.peak, measure.peak);
    assert_int_equal(keep.peak, measured_keep.peak);
    ic_arena_free(&arena);
    ic_arena_free(&keep);
    ic_tape_free(tape);
    return loss;
}

/* Slope of the loss along a random direction at `values` against the gradient. */
static void check_slope(subject *s, const char *what, float *values, size_t n,
                        const float *gradient)
{
    float *direction = normals(n, 1), *kept = ic_alloc(n, sizeof *kept);
    double size = sqrt(dot(values, values, n) / (double)n), step = 2e-3 * (size > 0 ? size : 1),
           loss[2];
    assert_non_null(kept);
    memcpy(kept, values, n * sizeof *kept);
    for (int side = 0; side < 2; side++) {
        for (size_t i = 0; i < n; i++)
            values[i] = kept[i] + (float)(side ? step : -step) * direction[i];
        loss[side] = evaluate(s, NULL);
    }
    for (size_t i = 0; i < n; i++) /* the step that was really taken, after rounding */
        values[i] = kept[i] + (float)step * direction[i];
    double slope = (loss[1] - loss[0]) / (2 * step), expected = dot(gradient, direction, n);
    double scale = sqrt(dot(gradient, gradient, n));
    memcpy(values, kept, n * sizeof *kept);
    if (!(fabs(slope - expected) <= 3e-3 * scale + 1e-4))
        fail_msg("%s: slope %g, gradient says %g (its size is %g)", what, slope, expected, scale);
    ic_free(direction);
    ic_free(kept);
}

/* ---- single operations ------------------------------------------------------------------------ */

enum { T = 11, D = 12, HEADS = 4, GROUPS = 2, WIDTH = 6, F = 10, RANK = 3 };

/* What single operations use; made once. */
static struct {
    ic_linear_weight w, gate, up, q, k, v;
    ic_lora lora[IC_TARGETS];
    ic_lora_set set;
    float *norm, *cosine, *sine;
    ic_rope_table rope;
    ic_rows rows;
    ic_config config;
    int window;
    bool interleaved;
} m;

static const int32_t some_rows[] = {0, 2, 3, 9};
static const int starts[] = {0, 4, T}, tails[] = {2, 3};
static const float no_positions[T];
static const ic_batch two = {.seqs = 2, .start = starts, .pos = no_positions, .tail = tails};
static const int32_t tail_rows[] = {2, 3, 8, 9, 10};

static ic_lora random_lora(int rows, int cols)
{
    ic_lora l = {.a = random_mat(RANK, cols, 0.5f), .b = random_mat(rows, RANK, 0.5f)};
    l.da = ic_alloc((size_t)RANK * (size_t)cols, sizeof(float));
    l.db = ic_alloc((size_t)RANK * (size_t)rows, sizeof(float));
    assert_true(l.da && l.db);
    return l;
}

static void lora_free(ic_lora *l)
{
    ic_free(l->a.data);
    ic_free(l->b.data);
    ic_free(l->da);
    ic_free(l->db);
}

static ic_linear_weight random_linear(int rows, int cols, bool bias)
{
    return (ic_linear_weight){random_mat(rows, cols, 1 / sqrtf((float)cols)),
                              bias ? normals((size_t)rows, 0.3f) : NULL};
}

static void linear_free(ic_linear_weight *w)
{
    ic_free(w->w.data);
    ic_free((void *)(uintptr_t)w->bias);
}

static ic_lora_use none(void)
{
    return (ic_lora_use){0};
}

static ic_var op_linear(ic_run *r, const void *context, int index, ic_var x)
{
    (void)context, (void)index;
    return ic_linear(r, x, &m.w, none(), r->act, IC_KEEP_QKV);
}

static ic_var op_lora(ic_run *r, const void *context, int index, ic_var x)
{
    (void)context, (void)index;
    return ic_linear(r, x, &m.w, ic_lora_of(&m.set, 0, IC_Q), r->act, IC_KEEP_QKV);
}

/* the residual stream, read by a norm and written by a linear layer with LoRA */
static ic_var op_residual(ic_run *r, const void *context, int index, ic_var x)
{
    (void)context, (void)index;
    ic_var y = ic_rmsnorm(r, x, m.norm, 1e-5f, r->act);
    x = ic_add_linear(r, x, y, &m.w, ic_lora_of(&m.set, 0, IC_Q), IC_KEEP_HALF);
    ic_boundary(r, x);
    y = ic_rmsnorm(r, x, m.norm, 1e-5f, r->act);
    return ic_add_linear(r, x, y, &m.w, none(), IC_KEEP);
}

static ic_var op_rmsnorm(ic_run *r, const void *context, int index, ic_var x)
{
    (void)context, (void)index;
    return ic_rmsnorm(r, x, m.norm, 1e-5f, r->act);
}

static ic_var op_headnorm(ic_run *r, const void *context, int index, ic_var x)
{
    (void)context, (void)index;
    ic_var y = ic_linear(r, x, &m.q, none(), r->act, IC_KEEP_QKV);
    return ic_headnorm(r, y, HEADS, m.norm, 1e-5f);
}

static ic_var op_rope(ic_run *r, const void *context, int index, ic_var x)
{
    (void)context, (void)index;
    ic_var y = ic_linear(r, x, &m.q, none(), r->act, IC_KEEP_QKV);
    return ic_rope(r, y, HEADS, &m.rope, m.interleaved);
}

static ic_var op_gather(ic_run *r, const void *context, int index, ic_var x)
{
    (void)context, (void)index;
    return ic_gather(r, x, &m.rows);
}

static ic_var attention(ic_run *r, ic_var x, bool tail)
{
    static const ic_rows last = {tail_rows, 5};
    ic_var k = ic_linear(r, x, &m.k, none(), r->act, IC_KEEP_QKV);
    ic_var v = ic_linear(r, x, &m.v, none(), r->act, IC_KEEP_QKV);
    if (tail)
        x = ic_gather(r, x, &last);
    ic_var q = ic_linear(r, x, &m.q, none(), r->act, IC_KEEP_QKV);
    return ic_attention_op(r, &m.config, &two, tail, 0, m.window, q, k, v, IC_KEEP_HALF);
}

static ic_var op_attention(ic_run *r, const void *context, int index, ic_var x)
{
    (void)context, (void)index;
    return attention(r, x, false);
}

static ic_var op_attention_tail(ic_run *r, const void *context, int index, ic_var x)
{
    (void)context, (void)index;
    return attention(r, x, true);
}

static ic_var op_glu(ic_run *r, const void *context, int index, ic_var x)
{
    (void)context, (void)index;
    ic_var gate = ic_linear(r, x, &m.gate, none(), r->act, IC_KEEP_FFN);
    ic_var up = ic_linear(r, x, &m.up, none(), r->act, IC_KEEP_FFN);
    return ic_glu(r, gate, up, m.config.activation);
}

static void check_op(const char *name, ic_stage_fn fn, int rows, int cols)
{
    float *c = normals((size_t)rows * (size_t)cols, 1), dx[T * D], first[T * D];
    subject s = {.fn = fn, .x = random_mat(T, D, 1), .rows = rows, .cols = cols, .c = c};
    for (s.recompute = 0; s.recompute <= 3; s.recompute++) {
        evaluate(&s, dx);
        if (s.recompute == 0)
            memcpy(first, dx, sizeof first);
        assert_memory_equal(dx, first, sizeof first);
    }
    for (int i = 0; i < 3; i++)
        check_slope(&s, name, s.x.data, T * D, dx);
    if (fn == op_lora || fn == op_residual) {
        ic_lora *l = &m.lora[IC_Q];
        memset(l->da, 0, sizeof(float) * RANK * D);
        memset(l->db, 0, sizeof(float) * RANK * D);
        evaluate(&s, dx);
        check_slope(&s, "LoRA's A", l->a.data, RANK * D, l->da);
        check_slope(&s, "LoRA's B", l->b.data, RANK * D, l->db);
    }
    ic_free(s.x.data);
    ic_free(c);
}

static int setup(void **state)
{
    (void)state;
    assert_int_equal(ic_backend_ref_new(&be), 0);
    assert_int_equal(ic_backend_counting_new(&counting), 0);
    m.w = random_linear(D, D, true);
    m.gate = random_linear(F, D, false);
    m.up = random_linear(F, D, true);
    m.q = random_linear(HEADS * WIDTH, D, true);
    m.k = random_linear(GROUPS * WIDTH, D, true);
    m.v = random_linear(GROUPS * WIDTH, D, false);
    m.lora[IC_Q] = random_lora(D, D);
    m.set = (ic_lora_set){.scale = 0.7f, .lora = m.lora};
    m.norm = normals(D, 1);
    m.cosine = normals(T * WIDTH, 1);
    m.sine = normals(T * WIDTH, 1);
    for (int i = 0; i < T * WIDTH; i++) {
        m.cosine[i] = cosf((float)i);
        m.sine[i] = sinf((float)i);
    }
    m.rope = (ic_rope_table){m.cosine, m.sine, 2};
    m.rows = (ic_rows){some_rows, 4};
    m.config = (ic_config){.heads = HEADS, .kv_heads = GROUPS, .head_width = WIDTH};
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    ic_linear_weight *w[] = {&m.w, &m.gate, &m.up, &m.q, &m.k, &m.v};
    for (size_t i = 0; i < IC_COUNT(w); i++)
        linear_free(w[i]);
    lora_free(&m.lora[IC_Q]);
    ic_free(m.norm);
    ic_free(m.cosine);
    ic_free(m.sine);
    ic_backend_free(be);
    ic_backend_free(counting);
    return ic_memory_live() != 0;
}

static void test_operations(void **state)
{
    (void)state;
    check_op("linear", op_linear, T, D);
    check_op("linear with LoRA", op_lora, T, D);
    check_op("residual", op_residual, T, D);
    m.set.dropout = 0.3f;
    check_op("linear with LoRA and dropout", op_lora, T, D);
    check_op("residual with dropout", op_residual, T, D);
    m.set.dropout = 0;
    check_op("rmsnorm", op_rmsnorm, T, D);
    check_op("headnorm", op_headnorm, T, HEADS * WIDTH);
    check_op("rope", op_rope, T, HEADS * WIDTH);
    m.interleaved = true;
    check_op("interleaved rope", op_rope, T, HEADS * WIDTH);
    m.interleaved = false;
    check_op("gather", op_gather, 4, D);
    for (m.window = 0; m.window <= 4; m.window += 2) {
        check_op("attention", op_attention, T, HEADS * WIDTH);
        check_op("attention of tail rows", op_attention_tail, 5, HEADS * WIDTH);
    }
    m.config.activation = IC_SILU;
    check_op("silu", op_glu, T, F);
    m.config.activation = IC_GELU_TANH;
    check_op("gelu", op_glu, T, F);
}

/* ---- whole models ----------------------------------------------------------------------------- */

enum { LAYERS = 3 };

typedef struct kind {
    const char *name;
    int kv_heads, rope_width, window;
    bool qk_norm, bias, interleaved, tail, all_targets;
    ic_activation activation;
    float dropout;
} kind;

static const kind kinds[] = {
    {.name = "plain", .kv_heads = 4, .rope_width = 6},
    {.name = "grouped, tail", .kv_heads = 2, .rope_width = 6, .tail = true},
    {.name = "q/k norms, biases", .kv_heads = 2, .rope_width = 6, .qk_norm = true, .bias = true},
    {.name = "q/k norms, tail, dropout",
     .kv_heads = 1,
     .rope_width = 4,
     .qk_norm = true,
     .tail = true,
     .dropout = 0.2f},
    {.name = "window, gelu, interleaved",
     .kv_heads = 2,
     .rope_width = 6,
     .window = 3,
     .interleaved = true,
     .activation = IC_GELU_TANH},
    {.name = "LoRA everywhere, tail",
     .kv_heads = 2,
     .rope_width = 6,
     .tail = true,
     .all_targets = true,
     .bias = true,
     .dropout = 0.1f},
};

typedef struct made {
    icae_model model;
    ic_layer layer[LAYERS];
    ic_lora lora[LAYERS * IC_TARGETS];
    ic_lora_set set;
} made;

static void make(made *y, const kind *k)
{
    int q = HEADS * WIDTH, kv = k->kv_heads * WIDTH;
    const int rows[IC_TARGETS] = {q, kv, kv, D, F, F, D}, cols[IC_TARGETS] = {D, D, D, q, D, D, F};
    memset(y, 0, sizeof *y);
    y->model.config = (ic_config){.width = D,
                                  .layers = LAYERS,
                                  .heads = HEADS,
                                  .kv_heads = k->kv_heads,
                                  .head_width = WIDTH,
                                  .ffn_width = F,
                                  .norm_eps = 1e-5f,
                                  .qk_norm = k->qk_norm,
                                  .activation = k->activation,
                                  .window = k->window,
                                  .full_layers = {2}, /* the second layer sees everything */
                                  .rope_width = k->rope_width,
                                  .rope_interleaved = k->interleaved,
                                  .rope_theta = 100};
    y->model.layer = y->layer;
    y->model.norm = normals(D, 1);
    for (int l = 0; l < LAYERS; l++) {
        ic_layer *w = &y->layer[l];
        w->attn_norm = normals(D, 1);
        w->mlp_norm = normals(D, 1);
        w->q_norm = normals(WIDTH, 1);
        w->k_norm = normals(WIDTH, 1);
        for (int t = 0; t < IC_TARGETS; t++) {
            w->linear[t] = random_linear(rows[t], cols[t], k->bias);
            if (k->all_targets || t == IC_Q || t == IC_V)
                y->lora[l * IC_TARGETS + t] = random_lora(rows[t], cols[t]);
        }
    }
    y->set = (ic_lora_set){.scale = 0.5f, .dropout = k->dropout, .seed = 5, .lora = y->lora};
}

static void unmake(made *y)
{
    ic_free((void *)(uintptr_t)y->model.norm);
    for (int l = 0; l < LAYERS; l++) {
        const float *const v[] = {y->layer[l].attn_norm, y->layer[l].mlp_norm, y->layer[l].q_norm,
                                  y->layer[l].k_norm};
        for (size_t i = 0; i < IC_COUNT(v); i++)
            ic_free((void *)(uintptr_t)v[i]);
        for (int t = 0; t < IC_TARGETS; t++) {
            linear_free(&y->layer[l].linear[t]);
            lora_free(&y->lora[l * IC_TARGETS + t]);
        }
    }
}

static void clear_gradients(made *y)
{
    for (int i = 0; i < LAYERS * IC_TARGETS; i++) {
        ic_lora *l = &y->lora[i];
        if (l->da) {
            memset(l->da, 0, sizeof(float) * (size_t)l->a.rows * (size_t)l->a.cols);
            memset(l->db, 0, sizeof(float) * (size_t)l->b.rows * (size_t)l->b.cols);
        }
    }
}

/* One number that changes if any gradient does. */
static double fingerprint(const made *y)
{
    double sum = 0;
    for (int i = 0; i < LAYERS * IC_TARGETS; i++) {
        const ic_lora *l = &y->lora[i];
        for (size_t j = 0; l->da && j < (size_t)l->a.rows * (size_t)l->a.cols; j++)
            sum += (double)l->da[j] * sin((double)(j + 1));
        for (size_t j = 0; l->db && j < (size_t)l->b.rows * (size_t)l->b.cols; j++)
            sum += (double)l->db[j] * cos((double)(j + 1));
    }
    return sum;
}

static void check_kind(const kind *k)
{
    made y;
    float pos[T], dx[T * D], first[T * D];
    double print = 0;
    for (int i = 0; i < T; i++)
        pos[i] = 0.4f * (float)i;
    ic_batch b = {.seqs = 2, .start = starts, .pos = pos, .tail = k->tail ? tails : NULL};
    make(&y, k);
    int rows = k->tail ? 5 : T;
    float *c = normals((size_t)rows * D, 1);
    subject s = {.model = &y.model, .lora = &y.set, .batch = &b, .x = random_mat(T, D, 1), .c = c};
    s.rows = rows;
    s.cols = D;
    size_t kept[4];
    for (s.recompute = 0; s.recompute <= 3; s.recompute++) {
        clear_gradients(&y);
        evaluate(&s, dx);
        kept[s.recompute] = s.kept;
        if (s.recompute == 0) {
            memcpy(first, dx, sizeof first);
            print = fingerprint(&y);
        }
        assert_memory_equal(dx, first, sizeof first);
        assert_true(fingerprint(&y) == print);
    }
    assert_true(kept[0] > kept[1] && kept[1] > kept[2] && kept[2] > kept[3]);
    s.recompute = 2;
    check_slope(&s, k->name, s.x.data, T * D, dx);
    check_slope(&s, k->name, s.x.data, T * D, dx);
    for (int i = 0; i < LAYERS * IC_TARGETS; i++) {
        ic_lora *l = &y.lora[i];
        if (!l->a.data)
            continue;
        check_slope(&s, k->name, l->a.data, (size_t)l->a.rows * (size_t)l->a.cols, l->da);
        check_slope(&s, k->name, l->b.data, (size_t)l->b.rows * (size_t)l->b.cols, l->db);
    }
    ic_free(s.x.data);
    ic_free(c);
    unmake(&y);
}

static void test_models(void **state)
{
    (void)state;
    for (size_t i = 0; i < IC_COUNT(kinds); i++)
        check_kind(&kinds[i]);
}

static size_t piece(size_t floats)
{
    return (floats * sizeof(float) + 63) / 64 * 64;
}

/* Without LoRA nothing is kept but what the table of recompute levels says: no input of a linear
 * layer, no norm's result. */
static void test_kept(void **state)
{
    (void)state;
    made y;
    float pos[T] = {0}, dx[T * D];
    ic_batch b = {.seqs = 2, .start = starts, .pos = pos};
    make(&y, &kinds[1]);
    float *c = normals(T * D, 1);
    subject s = {
        .model = &y.model, .batch = &b, .x = random_mat(T, D, 1), .rows = T, .cols = D, .c = c};
    size_t out = piece(T * D), half = piece(T * D) + piece(T * HEADS) + piece(T * HEADS * WIDTH);
    size_t qkv = piece(T * HEADS * WIDTH) + 2 * piece(T * GROUPS * WIDTH), ffn = 2 * piece(T * F);
    const size_t layer[4] = {out + half + qkv + ffn, out + half + qkv, out + half, out};
    for (s.recompute = 0; s.recompute <= 3; s.recompute++) {
        evaluate(&s, dx);
        assert_in_range(s.kept, LAYERS * layer[s.recompute] - 64, LAYERS * layer[s.recompute]);
    }
    ic_free(s.x.data);
    ic_free(c);
    unmake(&y);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_operations),
        cmocka_unit_test(test_models),
        cmocka_unit_test(test_kept),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
