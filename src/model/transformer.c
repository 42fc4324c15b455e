/*
 * transformer.c - THE model definition: one function for a layer, one for the stack.
 *
 * Every supported architecture, encoder and decoder, prefill, decoding, fidelity and training run
 * through here; differences are data (config, weights, LoRA set). Operations live in ops.c.
 */
#include "model/tape.h"

/* What all layers of one run share: rotary angles and the shape of attention. */
typedef struct stack {
    const icae_model *model;
    const ic_lora_set *lora;
    const ic_batch *batch;
    ic_rope_table all, tail; /* of every row; of the rows that leave the last layer */
    ic_rows tail_rows;       /* in use if batch->tail */
} stack;

int ic_batch_tail_rows(const ic_batch *b)
{
    if (!b->tail)
        return ic_batch_rows(b);
    int rows = 0;
    for (int s = 0; s < b->seqs; s++)
        rows += b->tail[s];
    return rows;
}

/* y = x W^T + bias, plus the low-rank term where this target has one. */
static ic_var linear(ic_run *r, const stack *st, int l, enum ic_target t, ic_var x)
{
    return ic_linear(r, x, &st->model->layer[l].linear[t], ic_lora_of(st->lora, l, t), r->act,
                     t <= IC_V ? IC_KEEP_QKV : IC_KEEP_FFN);
}

static ic_var add_linear(ic_run *r, const stack *st, int l, enum ic_target t, ic_var h, ic_var x)
{
    return ic_add_linear(r, h, x, &st->model->layer[l].linear[t], ic_lora_of(st->lora, l, t),
                         t == IC_O ? IC_KEEP_HALF : IC_KEEP);
}

/* Residual stream h [T, D] -> the same after layer l. In the last layer only tail rows go past keys
 * and values. */
static ic_var layer(ic_run *r, const void *context, int l, ic_var h)
{
    const stack *st = context;
    const ic_config *c = &st->model->config;
    const ic_layer *w = &st->model->layer[l];
    const ic_rope_table *rope = &st->all;
    bool tail = l == c->layers - 1 && st->batch->tail;

    ic_var x = ic_rmsnorm(r, h, w->attn_norm, c->norm_eps, r->act);
    ic_var k = linear(r, st, l, IC_K, x);
    ic_var v = linear(r, st, l, IC_V, x);
    if (tail) {
        x = ic_gather(r, x, &st->tail_rows);
        h = ic_gather(r, h, &st->tail_rows);
        rope = &st->tail;
    }
    ic_var q = linear(r, st, l, IC_Q, x);
    if (c->qk_norm) {
        q = ic_headnorm(r, q, c->heads, w->q_norm, c->norm_eps);
        k = ic_headnorm(r, k, c->kv_heads, w->k_norm, c->norm_eps);
    }
    q = ic_rope(r, q, c->heads, rope, c->rope_interleaved);
    k = ic_rope(r, k, c->kv_heads, &st->all, c->rope_interleaved);
    ic_var o =
        ic_attention_op(r, c, st->batch, tail, l, ic_config_window(c, l), q, k, v, IC_KEEP_HALF);
    h = add_linear(r, st, l, IC_O, h, o);
    ic_boundary(r, h);

    x = ic_rmsnorm(r, h, w->mlp_norm, c->norm_eps, r->act);
    ic_var gate = linear(r, st, l, IC_GATE, x);
    ic_var up = linear(r, st, l, IC_UP, x);
    ic_var act = ic_glu(r, gate, up, c->activation);
    return add_linear(r, st, l, IC_DOWN, h, act);
}

static ic_var final_norm(ic_run *r, const void *context, int index, ic_var h)
{
    const stack *st = context;
    (void)index;
    return ic_rmsnorm(r, h, st->model->norm, st->model->config.norm_eps, r->act);
}

ic_var ic_transformer(ic_run *r, const icae_model *model, const ic_lora_set *lora,
                      const ic_batch *b, ic_var x)
{
    stack made = {.model = model, .lora = lora, .batch = b};
    made.all = ic_rope_table_new(r, model, b->pos, NULL, ic_batch_rows(b));
    if (b->tail) {
        made.tail_rows = ic_tail_rows_new(r, b);
        made.tail = ic_rope_table_new(r, model, b->pos, &made.tail_rows, made.tail_rows.count);
    }
    const stack *st = r->tape ? ic_tape_context(r->tape, &made, sizeof made) : &made;
    int last = model->config.layers - 1;
    for (int l = 0; l <= last; l++) {
        size_t mark = ic_arena_mark(r->arena);
        x = ic_stage(r, layer, st, l, x);
        /* the residual stream was updated in place, or a tape keeps it elsewhere */
        if (r->tape || !(l == last && b->tail))
            ic_arena_release(r->arena, mark);
    }
    return ic_stage(r, final_norm, st, 0, x);
}

void ic_embed(ic_run *r, const icae_model *model, ic_var x, const int32_t *to, const int32_t *ids,
              int n)
{
    r->be->rows(r->be, x.m, to, model->embed, ids, n, model->config.embed_scale, false);
}

ic_var ic_logits(ic_run *r, const icae_model *model, ic_var hidden)
{
    ic_linear_weight head = {.w = model->head};
    return ic_linear(r, hidden, &head, (ic_lora_use){0}, IC_F32, IC_DROP);
}

/* A chunk of logits: enough rows for products at full speed. */
enum { LOGIT_VALUES = 8 << 20, LOGIT_ROWS = 96 };

void ic_score_hidden(ic_run *r, const icae_model *m, ic_mat hidden, const int32_t *targets,
                     ic_score *scores, const float *weights, const ic_teacher *teacher,
                     ic_mat dhidden)
{
    ic_run plain = *r;
    plain.tape = NULL;
    int step = IC_MIN(IC_MAX(LOGIT_VALUES / m->config.vocabulary, LOGIT_ROWS), hidden.rows);
    for (int i = 0; i < hidden.rows; i += step) {
        size_t mark = ic_arena_mark(r->arena);
        int n = IC_MIN(step, hidden.rows - i);
        ic_var some = {ic_mat_rows(hidden, i, n), 0};
        ic_mat logits = ic_logits(&plain, m, some).m;
        r->be->score(r->be, scores + i, logits, targets + i);
        if (dhidden.data) {
            r->be->score_back(r->be, logits, targets + i, weights + i);
            if (teacher) { /* w (p - target) - v (q - target) = w (p - target (1 - v/w) - q v/w) */
                ic_mat taught =
                    ic_logits(&plain, m, (ic_var){ic_mat_rows(teacher->hidden, i, n), 0}).m;
                r->be->score_back(r->be, taught, targets + i, teacher->weights + i);
                r->be->rows(r->be, logits, NULL, taught, NULL, n, -1, true);
            }
            ic_mat d = logits;
            if (r->act != IC_F32) {
                d = ic_new(r, n, logits.cols, r->act).m;
                r->be->rows(r->be, d, NULL, logits, NULL, n, 1, false);
            }
            r->be->linear_t(r->be, ic_mat_rows(dhidden, i, n), d, m->head, 1, false);
        }
        ic_arena_release(r->arena, mark);
    }
}
