/*
 * ops.c - operations at work, each with its adjoint: memory from the run's arena, arithmetic from its
 * backend.
 *
 * Host-side tables (row numbers, angles, sequence descriptions) are made here too; on a measuring run
 * they are taken but not written. Knows nothing of layers or their order.
 */
#include "model/tape.h"

#include <math.h>
#include <string.h>

ic_var ic_new(ic_run *r, int rows, int cols, ic_dtype dtype)
{
    int room = ic_room_for(rows);
    void *data = ic_arena_take(r->arena, (size_t)room * ic_row_bytes(dtype, (size_t)cols));
    ic_mat m = ic_mat_of(data, dtype, rows, cols);
    m.room = room;
    return (ic_var){m, 0};
}

/* ---- tables ----------------------------------------------------------------------------------- */

ic_rows ic_tail_rows_new(ic_run *r, const ic_batch *b)
{
    int count = ic_batch_tail_rows(b);
    int32_t *index = ic_arena_take(r->arena, (size_t)count * sizeof *index);
    for (int s = 0, n = 0; s < b->seqs && !r->arena->measuring; s++)
        for (int i = b->start[s + 1] - b->tail[s]; i < b->start[s + 1]; i++)
            index[n++] = i;
    return (ic_rows){index, count};
}

/* Angle of pair i at position p: p * frequency(i), as single-precision products. */
static void frequencies(float *f, const icae_model *m)
{
    const ic_config *c = &m->config;
    for (int i = 0; i < c->rope_width / 2; i++) {
        float inv = 1.0f / (float)pow(c->rope_theta, (double)(2 * i) / (double)c->rope_width);
        if (m->rope_factors)
            inv /= m->rope_factors[i];
        if (c->rope_kind == IC_ROPE_LINEAR)
            inv /= (float)c->rope_factor;
        if (c->rope_kind == IC_ROPE_LLAMA3) {
            /* long waves are slowed by the factor, short ones kept, those between blended */
            double wave = 2 * 3.14159265358979323846 / (double)inv;
            double low = c->rope_original / c->rope_low, high = c->rope_original / c->rope_high;
            if (wave > low) {
                inv /= (float)c->rope_factor;
            } else if (wave >= high) {
                float smooth =
                    (float)((c->rope_original / wave - c->rope_low) / (c->rope_high - c->rope_low));
                inv = (1 - smooth) * inv / (float)c->rope_factor + smooth * inv;
            }
        }
        f[i] = inv;
    }
}

ic_rope_table ic_rope_table_new(ic_run *r, const icae_model *model, const float *pos,
                                const ic_rows *rows, int count)
{
    int half = model->config.rope_width / 2;
    size_t bytes = (size_t)count * (size_t)half * sizeof(float);
    float *cosine = ic_arena_take(r->arena, bytes), *sine = ic_arena_take(r->arena, bytes);
    float *frequency = ic_arena_take(r->arena, (size_t)half * sizeof(float));
    if (!r->arena->measuring) {
        frequencies(frequency, model);
        for (int t = 0; t < count; t++) {
            float p = pos[rows ? rows->index[t] : t];
            for (int i = 0; i < half; i++) {
                float angle = p * frequency[i];
                cosine[t * half + i] = cosf(angle);
                sine[t * half + i] = sinf(angle);
            }
        }
    }
    return (ic_rope_table){cosine, sine, half};
}

/* ---- helpers ---------------------------------------------------------------------------------- */

static void copy(ic_run *r, ic_mat to, ic_mat from)
{
    r->be->rows(r->be, to, NULL, from, NULL, from.rows, 1, false);
}

static void zero(ic_run *r, ic_mat m)
{
    if (!r->be->counting)
        memset(m.data, 0, (size_t)m.rows * ic_row_bytes(m.dtype, m.stride));
}

/* m in the type of products: gradients of the residual stream are F32 in a bf16 run too. */
static ic_mat as_act(ic_run *r, ic_mat m)
{
    if (m.dtype == r->act)
        return m;
    ic_mat y = ic_new(r, m.rows, m.cols, r->act).m;
    copy(r, y, m);
    return y;
}

/* ---- linear layers ---------------------------------------------------------------------------- */

/* The random stream of a LoRA's dropout. Targets that share A (parts of a fused matrix) share it too:
 * there is one input. */
static uint64_t dropout_stream(ic_lora_use u)
{
    int first = 0;
    const ic_lora *of_layer = &u.set->lora[u.layer * IC_TARGETS];
    while (of_layer[first].a.data != u.lora->a.data)
        first++;
    return IC_STREAM_DROPOUT + ((uint64_t)(u.layer * IC_TARGETS + first + 1) << 8);
}

static ic_mat dropped(ic_run *r, ic_mat y, ic_mat x, ic_lora_use u)
{
    r->be->dropout(r->be, y, x, u.set->dropout, u.set->seed, dropout_stream(u));
    return y;
}

static bool drops(const ic_run *r, ic_lora_use u)
{
    return r->tape && u.set->dropout > 0;
}

/* low = dropout(x) A^T */
static void low_run(ic_run *r, ic_op *op)
{
    ic_lora_use u = op->linear.lora;
    ic_mat x = ic_value(r, op->x[0]), y = ic_result(r, op);
    size_t mark = ic_arena_mark(r->arena);
    if (drops(r, u))
        x = dropped(r, ic_new(r, x.rows, x.cols, x.dtype).m, x, u);
    r->be->linear(r->be, y, x, u.lora->a, NULL, 1, false);
    ic_arena_release(r->arena, mark);
}

/* dA += dlow^T dropout(x); dx += dropout(dlow A) */
static void low_back(ic_run *r, ic_op *op)
{
    ic_lora_use u = op->linear.lora;
    ic_mat a = u.lora->a, dy = ic_grad(r, op->y), x = ic_value(r, op->x[0]);
    bool more;
    ic_mat dx = ic_grad_into(r, op->x[0], &more);
    size_t mark = ic_arena_mark(r->arena);
    ic_mat scratch = x;
    if (drops(r, u))
        scratch = dropped(r, ic_new(r, x.rows, x.cols, x.dtype).m, x, u);
    if (u.lora->da)
        r->be->outer(r->be, ic_mat_of(u.lora->da, IC_F32, a.rows, a.cols), dy, scratch, 1);
    if (drops(r, u)) {
        r->be->linear_t(r->be, scratch, dy, a, 1, false);
        dropped(r, scratch, scratch, u);
        r->be->rows(r->be, dx, NULL, scratch, NULL, dx.rows, 1, more);
    } else {
        r->be->linear_t(r->be, dx, dy, a, 1, more);
    }
    ic_arena_release(r->arena, mark);
}

static ic_var low_rank(ic_run *r, ic_var x, ic_lora_use u)
{
    ic_op op = {.run = low_run, .back = low_back, .x = {x}, .linear.lora = u};
    return ic_call(r, &op, IC_KEEP_HALF, x.m.rows, u.lora->a.rows, r->act);
}

/* y = [h +] x W^T + bias [+ s low B^T]; inputs are x, low, h */
static void linear_run(ic_run *r, ic_op *op)
{
    const ic_linear_weight *w = op->linear.w;
    const ic_lora *lora = op->linear.lora.lora;
    ic_mat x = ic_value(r, op->x[0]), low = {0}, h = {0};
    if (lora)
        low = ic_value(r, op->x[1]);
    if (op->linear.onto)
        h = ic_value(r, op->x[2]);
    ic_mat y = ic_result(r, op);
    if (op->linear.onto && h.data != y.data)
        copy(r, y, h);
    r->be->linear(r->be, y, x, w->w, w->bias, 1, op->linear.onto);
    if (lora)
        r->be->linear(r->be, y, low, lora->b, NULL, op->linear.lora.set->scale, true);
}

/* dx += dy W; dB += s dy^T low; dlow = s dy B; and dh is dy */
static void linear_back(ic_run *r, ic_op *op)
{
    const ic_lora *lora = op->linear.lora.lora;
    ic_mat dy = ic_grad(r, op->y), low = {0}, dlow = {0};
    bool more, none;
    if (lora) {
        low = ic_value(r, op->x[1]);
        dlow = ic_grad_into(r, op->x[1], &none);
    }
    ic_mat dx = ic_grad_into(r, op->x[0], &more);
    size_t mark = ic_arena_mark(r->arena);
    dy = as_act(r, dy);
    if (lora) {
        float scale = op->linear.lora.set->scale;
        if (lora->db)
            r->be->outer(r->be, ic_mat_of(lora->db, IC_F32, lora->b.rows, lora->b.cols), dy, low,
                         scale);
        r->be->linear_t(r->be, dlow, dy, lora->b, scale, false);
    }
    r->be->linear_t(r->be, dx, dy, op->linear.w->w, 1, more);
    ic_arena_release(r->arena, mark);
}

static ic_op linear_op(ic_run *r, ic_var x, const ic_linear_weight *w, ic_lora_use lora)
{
    ic_op op = {.run = linear_run, .back = linear_back, .x = {x}, .linear = {.w = w, .lora = lora}};
    if (lora.lora)
        op.x[1] = low_rank(r, x, lora);
    return op;
}

ic_var ic_linear(ic_run *r, ic_var x, const ic_linear_weight *w, ic_lora_use lora, ic_dtype out,
                 ic_keep keep)
{
    ic_op op = linear_op(r, x, w, lora);
    return ic_call(r, &op, keep, x.m.rows, w->w.rows, out);
}

ic_var ic_add_linear(ic_run *r, ic_var h, ic_var x, const ic_linear_weight *w, ic_lora_use lora,
                     ic_keep keep)
{
    ic_op op = linear_op(r, x, w, lora);
    op.linear.onto = true;
    op.x[2] = h;
    if (!r->tape)
        return ic_call_at(r, &op, h.m);
    ic_var y = ic_call(r, &op, keep, h.m.rows, h.m.cols, h.m.dtype);
    if (ic_replays(r))
        ic_grad_share(r, y, h);
    return y;
}

/* ---- norms ------------------------------------------------------------------------------------ */

/* One row a head. */
static ic_mat per_head(ic_mat m, int heads)
{
    return heads == 1 ? m : ic_mat_of(m.data, m.dtype, m.rows * heads, m.cols / heads);
}

static void norm_run(ic_run *r, ic_op *op)
{
    int heads = op->norm.heads;
    ic_mat x = ic_value(r, op->x[0]), y = ic_result(r, op);
    r->be->rmsnorm(r->be, per_head(y, heads), per_head(x, heads), op->norm.w, op->norm.eps);
}

static void norm_back(ic_run *r, ic_op *op)
{
    int heads = op->norm.heads;
    bool more;
    ic_mat dy = ic_grad(r, op->y), x = ic_value(r, op->x[0]);
    ic_mat dx = ic_grad_into(r, op->x[0], &more);
    r->be->rmsnorm_back(r->be, per_head(dx, heads), per_head(dy, heads), per_head(x, heads),
                        op->norm.w, op->norm.eps, more);
}

static ic_op norm_op(ic_var x, const float *w, float eps, int heads)
{
    return (ic_op){.run = norm_run, .back = norm_back, .x = {x}, .norm = {w, eps, heads}};
}

ic_var ic_rmsnorm(ic_run *r, ic_var x, const float *w, float eps, ic_dtype out)
{
    ic_op op = norm_op(x, w, eps, 1);
    return ic_call(r, &op, IC_DROP, x.m.rows, x.m.cols, out);
}

ic_var ic_headnorm(ic_run *r, ic_var x, int heads, const float *w, float eps)
{
    ic_op op = norm_op(x, w, eps, heads);
    return r->tape ? ic_call(r, &op, IC_DROP, x.m.rows, x.m.cols, x.m.dtype)
                   : ic_call_at(r, &op, x.m);
}

/* ---- rows ------------------------------------------------------------------------------------- */

static void turn(ic_run *r, const ic_op *op, ic_mat x, float sign)
{
    const ic_rope_table *t = op->rope.table;
    r->be->rope(r->be, x, op->rope.heads, t->half, t->cosine, t->sine, op->rope.interleaved, sign);
}

static void rope_run(ic_run *r, ic_op *op)
{
    turn(r, op, ic_result(r, op), 1);
}

static void rope_back(ic_run *r, ic_op *op)
{
    turn(r, op, ic_grad(r, op->y), -1);
}

ic_var ic_rope(ic_run *r, ic_var x, int heads, const ic_rope_table *t, bool interleaved)
{
    ic_op op = {.run = rope_run, .back = rope_back, .x = {x}, .rope = {t, heads, interleaved}};
    return ic_call_in_place(r, &op);
}

static void gather_run(ic_run *r, ic_op *op)
{
    ic_mat x = ic_value(r, op->x[0]), y = ic_result(r, op);
    r->be->rows(r->be, y, NULL, x, op->rows->index, op->rows->count, 1, false);
}

static void gather_back(ic_run *r, ic_op *op)
{
    bool more;
    ic_mat dy = ic_grad(r, op->y), dx = ic_grad_into(r, op->x[0], &more);
    if (!more)
        zero(r, dx);
    r->be->rows(r->be, dx, op->rows->index, dy, NULL, op->rows->count, 1, true);
}

ic_var ic_gather(ic_run *r, ic_var x, const ic_rows *rows)
{
    ic_op op = {.run = gather_run, .back = gather_back, .x = {x}, .rows = rows};
    return ic_call(r, &op, IC_DROP, rows->count, x.m.cols, x.m.dtype);
}

/* ---- attention -------------------------------------------------------------------------------- */

/* Appends this run's keys and values behind what each cache holds. */
static void cache_rows(ic_run *r, const ic_batch *b, int layer, ic_mat k, ic_mat v)
{
    for (int s = 0; s < b->seqs; s++) {
        const ic_kv *kv = b->kv[s];
        int n = b->start[s + 1] - b->start[s];
        for (int which = 0; which < 2; which++) {
            ic_mat to = ic_mat_of(ic_kv_at(kv, layer, which, kv->rows), kv->dtype, n, kv->width);
            r->be->rows(r->be, to, NULL, ic_mat_rows(which ? v : k, b->start[s], n), NULL, n, 1,
                        false);
        }
    }
}

/* The call as the backend wants it; takes memory from the arena. dk, dv: gradients or zero. */
static ic_attention describe(ic_run *r, const ic_op *op, ic_mat k, ic_mat v, ic_mat dk, ic_mat dv)
{
    const ic_batch *b = op->attention.batch;
    const ic_config *c = op->attention.config;
    int layer = op->attention.layer;
    ic_attention_seq *seqs = ic_arena_take(r->arena, (size_t)b->seqs * sizeof *seqs);
    for (int s = 0, row = 0; s < b->seqs && !r->arena->measuring; s++) {
        size_t first = (size_t)b->start[s];
        int n = b->start[s + 1] - b->start[s], queries = op->attention.tail ? b->tail[s] : n;
        const ic_kv *kv = b->kv ? b->kv[s] : NULL;
        seqs[s] = (ic_attention_seq){
            .first_query = row,
            .queries = queries,
            .keys = n + (kv ? kv->rows : 0),
            .k = kv ? ic_kv_at(kv, layer, 0, kv->shared) : ic_mat_row(k, first),
            .v = kv ? ic_kv_at(kv, layer, 1, kv->shared) : ic_mat_row(v, first),
            .dk = dk.data ? ic_mat_row(dk, first) : NULL,
            .dv = dv.data ? ic_mat_row(dv, first) : NULL,
        };
        if (kv && kv->shared) {
            seqs[s].shared = kv->shared;
            seqs[s].shared_k = ic_kv_at(kv->prefix, layer, 0, 0);
            seqs[s].shared_v = ic_kv_at(kv->prefix, layer, 1, 0);
        }
        row += queries;
    }
    return (ic_attention){
        .seqs = seqs,
        .count = b->seqs,
        .heads = c->heads,
        .kv_heads = c->kv_heads,
        .head_width = c->head_width,
        .window = op->attention.window,
        .scale = 1.0f / sqrtf((float)c->head_width),
        .kv_stride = (size_t)(c->kv_heads * c->head_width),
    };
}

static size_t lse_bytes(const ic_op *op)
{
    return (size_t)op->x[0].m.rows * (size_t)op->attention.config->heads * sizeof(float);
}

static void attention_run(ic_run *r, ic_op *op)
{
    ic_mat q = ic_value(r, op->x[0]), k = ic_value(r, op->x[1]), v = ic_value(r, op->x[2]);
    if (ic_replays(r))
        op->attention.lse = ic_arena_take(r->arena, lse_bytes(op));
    ic_mat o = ic_result(r, op);
    if (op->attention.batch->kv)
        cache_rows(r, op->attention.batch, op->attention.layer, k, v);
    size_t mark = ic_arena_mark(r->arena);
    ic_attention a = describe(r, op, k, v, (ic_mat){0}, (ic_mat){0});
    r->be->attention(r->be, o, q, &a, op->attention.lse);
    ic_arena_release(r->arena, mark);
}

static void attention_back(ic_run *r, ic_op *op)
{
    bool none;
    ic_mat dout = ic_grad(r, op->y), o = ic_value(r, op->y);
    ic_mat q = ic_value(r, op->x[0]), k = ic_value(r, op->x[1]), v = ic_value(r, op->x[2]);
    ic_mat dq = ic_grad_into(r, op->x[0], &none);
    ic_mat dk = ic_grad_into(r, op->x[1], &none), dv = ic_grad_into(r, op->x[2], &none);
    zero(r, dk);
    zero(r, dv);
    size_t mark = ic_arena_mark(r->arena);
    ic_attention a = describe(r, op, k, v, dk, dv);
    r->be->attention_back(r->be, dq, dout, o, q, &a, op->attention.lse);
    ic_arena_release(r->arena, mark);
}

ic_var ic_attention_op(ic_run *r, const ic_config *c, const ic_batch *b, bool tail, int layer,
                       int window, ic_var q, ic_var k, ic_var v, ic_keep keep)
{
    ic_op op = {.run = attention_run, .back = attention_back, .x = {q, k, v}};
    op.attention.config = c;
    op.attention.batch = b;
    op.attention.layer = layer;
    op.attention.window = window;
    op.attention.tail = tail;
    op.attention.lse = ic_keep_beside(r, keep, lse_bytes(&op));
    return ic_call(r, &op, keep, q.m.rows, q.m.cols, r->act);
}

/* ---- gated activation ------------------------------------------------------------------------- */

static void glu_run(ic_run *r, ic_op *op)
{
    ic_mat gate = ic_value(r, op->x[0]), up = ic_value(r, op->x[1]);
    r->be->glu(r->be, ic_result(r, op), gate, up, op->act);
}

/* dgate takes the place of dy, which nobody reads again. */
static void glu_back(ic_run *r, ic_op *op)
{
    bool none;
    ic_mat dy = ic_grad(r, op->y), gate = ic_value(r, op->x[0]), up = ic_value(r, op->x[1]);
    ic_grad_give(r, op->x[0], dy);
    ic_mat dup = ic_grad_into(r, op->x[1], &none);
    r->be->glu_back(r->be, dy, dup, dy, gate, up, op->act);
}

ic_var ic_glu(ic_run *r, ic_var gate, ic_var up, ic_activation act)
{
    ic_op op = {.run = glu_run, .back = glu_back, .x = {gate, up}, .act = act};
    if (!r->tape)
        return ic_call_at(r, &op, gate.m);
    return ic_call(r, &op, IC_DROP, gate.m.rows, gate.m.cols, gate.m.dtype);
}
