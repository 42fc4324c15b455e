/*
 * tape.c - forward and backward passes of a training run; see tape.h. Knows nothing of what the
 * operations compute.
 */
#include "model/tape.h"

#include <string.h>

int ic_tape_new(ic_tape **out, int recompute, int stages)
{
    ic_tape *t = ic_alloc(1, sizeof *t);
    if (!t)
        return ICAE_ENOMEM;
    t->recompute = recompute;
    t->max_stages = stages;
    t->stage = ic_alloc((size_t)stages, sizeof *t->stage);
    t->kept = ic_alloc((size_t)stages, IC_TAPE_KEPT * sizeof *t->kept);
    if (!t->stage || !t->kept) {
        ic_tape_free(t);
        return ICAE_ENOMEM;
    }
    *out = t;
    return ICAE_OK;
}

void ic_tape_free(ic_tape *t)
{
    if (!t)
        return;
    ic_free(t->stage);
    ic_free(t->kept);
    ic_free(t);
}

void ic_tape_begin(ic_run *r, ic_tape *t)
{
    r->tape = t;
    t->replay = false;
    t->stages = t->kept_count = t->kept_next = t->ops = 0;
    t->nodes = 1;
}

const void *ic_tape_context(ic_tape *t, const void *data, size_t size)
{
    assert(size <= sizeof t->context);
    return memcpy(t->context, data, size);
}

ic_var ic_stage(ic_run *r, ic_stage_fn fn, const void *context, int index, ic_var x)
{
    ic_tape *t = r->tape;
    if (t) {
        assert(t->stages < t->max_stages);
        t->stage[t->stages++] = (ic_tape_stage){fn, context, index, x.m, t->kept_count};
    }
    return fn(r, context, index, x);
}

/* ---- results ---------------------------------------------------------------------------------- */

static bool is_kept(const ic_tape *t, ic_keep keep)
{
    return (int)keep > t->recompute;
}

void *ic_keep_beside(ic_run *r, ic_keep keep, size_t bytes)
{
    ic_tape *t = r->tape;
    if (!t || !is_kept(t, keep))
        return NULL;
    if (t->replay)
        return t->kept[t->kept_next++];
    assert(t->kept_count < t->max_stages * IC_TAPE_KEPT);
    return t->kept[t->kept_count++] = ic_arena_take(r->keep, bytes);
}

static int node_new(ic_tape *t, ic_mat m, bool have, int op)
{
    assert(t->nodes < IC_TAPE_NODES);
    int id = t->nodes++;
    t->node[id] = (ic_tape_node){.m = m, .have = have, .op = op, .root = id};
    return id;
}

/* Notes a call; its result has the shape of m, and its values if `have`. */
static ic_op *note(ic_tape *t, const ic_op *op, ic_mat m, bool have)
{
    assert(t->ops < IC_TAPE_OPS);
    ic_op *o = &t->op[t->ops];
    *o = *op;
    o->y = (ic_var){m, node_new(t, m, have, t->ops)};
    t->ops++;
    return o;
}

ic_var ic_call_at(ic_run *r, ic_op *op, ic_mat y)
{
    op->y = (ic_var){y, 0};
    op->run(r, op);
    return op->y;
}

ic_var ic_call(ic_run *r, ic_op *op, ic_keep keep, int rows, int cols, ic_dtype dtype)
{
    void *kept = ic_keep_beside(r, keep, (size_t)rows * ic_row_bytes(dtype, (size_t)cols));
    ic_mat m = ic_mat_of(kept, dtype, rows, cols);
    if (ic_replays(r))
        return note(r->tape, op, m, kept != NULL)->y;
    return ic_call_at(r, op, kept ? m : ic_new(r, rows, cols, dtype).m);
}

ic_var ic_call_in_place(ic_run *r, ic_op *op)
{
    if (!ic_replays(r))
        return ic_call_at(r, op, op->x[0].m);
    /* a result that was kept has been overwritten already */
    const ic_tape_node *x = &r->tape->node[op->x[0].id];
    op->in_place = true;
    ic_op *o = note(r->tape, op, x->m, x->have);
    ic_grad_share(r, o->y, o->x[0]);
    return o->y;
}

ic_mat ic_value(ic_run *r, ic_var v)
{
    if (!v.id)
        return v.m;
    ic_tape_node *n = &r->tape->node[v.id];
    if (!n->have) {
        ic_op *op = &r->tape->op[n->op];
        op->run(r, op);
        n->have = true;
    }
    return n->m;
}

ic_mat ic_result(ic_run *r, ic_op *op)
{
    if (!op->y.id)
        return op->y.m;
    ic_tape_node *n = &r->tape->node[op->y.id];
    if (op->in_place)
        n->m = ic_value(r, op->x[0]);
    else if (!n->m.data)
        n->m.data =
            ic_arena_take(r->arena, (size_t)n->m.rows * ic_row_bytes(n->m.dtype, n->m.stride));
    return n->m;
}

/* ---- gradients -------------------------------------------------------------------------------- */

static ic_tape_node *root_of(const ic_run *r, ic_var v)
{
    return &r->tape->node[r->tape->node[v.id].root];
}

ic_mat ic_grad(ic_run *r, ic_var v)
{
    const ic_tape_node *n = root_of(r, v);
    assert(n->filled);
    return n->grad;
}

ic_mat ic_grad_into(ic_run *r, ic_var v, bool *add)
{
    ic_tape_node *n = root_of(r, v);
    if (!n->grad.data)
        n->grad = ic_new(r, n->m.rows, n->m.cols, n->m.dtype).m;
    *add = n->filled;
    n->filled = true;
    return n->grad;
}

void ic_grad_give(ic_run *r, ic_var v, ic_mat m)
{
    ic_tape_node *n = root_of(r, v);
    assert(!n->filled);
    n->grad = m;
    n->filled = true;
}

void ic_grad_share(ic_run *r, ic_var y, ic_var h)
{
    r->tape->node[y.id].root = r->tape->node[h.id].root;
}

/* ---- the backward pass ------------------------------------------------------------------------ */

static void boundary_back(ic_run *r, ic_op *op)
{
    ic_arena_release(r->arena, op->mark);
}

void ic_boundary(ic_run *r, ic_var h)
{
    if (!ic_replays(r))
        return;
    ic_op op = {.back = boundary_back, .x = {h}};
    ic_op *o = note(r->tape, &op, h.m, false);
    o->y = (ic_var){0};
}

/* What the part before a boundary leaves must be there before the part behind it takes memory. */
static void settle_boundaries(ic_run *r)
{
    ic_tape *t = r->tape;
    for (int i = 0; i < t->ops; i++) {
        if (t->op[i].back == boundary_back) {
            ic_value(r, t->op[i].x[0]);
            t->op[i].mark = ic_arena_mark(r->arena);
        }
    }
}

ic_mat ic_tape_back(ic_run *r, ic_mat dy)
{
    ic_tape *t = r->tape;
    for (int i = t->stages - 1; i >= 0; i--) {
        const ic_tape_stage *s = &t->stage[i];
        t->replay = true;
        t->ops = 0;
        t->nodes = 1;
        t->kept_next = s->kept;
        ic_var x = {s->x, node_new(t, s->x, true, -1)};
        ic_var y = s->fn(r, s->context, s->index, x);
        ic_tape_node *nx = root_of(r, x), *ny = root_of(r, y);
        if (nx != ny)
            nx->grad = ic_new(r, x.m.rows, x.m.cols, x.m.dtype).m;
        ny->grad = dy;
        ny->filled = true;
        size_t mark = ic_arena_mark(r->arena);
        settle_boundaries(r);
        for (int j = t->ops - 1; j >= 0; j--)
            t->op[j].back(r, &t->op[j]);
        ic_arena_release(r->arena, mark);
        dy = nx->grad;
    }
    t->replay = false;
    return dy;
}
