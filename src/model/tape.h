/*
 * tape.h - how one model definition serves training: stages, replay, gradients.
 *
 * A training run calls the same functions as inference. The forward pass computes at once and keeps,
 * besides each stage's (layer's) input, the results that its recompute level allows. The backward
 * pass takes the stages from the last to the first and calls each one's function again: now its
 * operations are only noted, results that were kept are there, and any other is computed when an
 * adjoint asks for it. So no operation is written twice and nothing is recomputed in vain. Then the
 * adjoints run, last operation first, and the stage's scratch memory is released.
 *
 * Owns notes and names of gradients, in memory reserved before the run so that nothing fails in it.
 * Activations lie in two arenas: what is kept in `keep`, everything else in the run's.
 */
#ifndef IC_TAPE_H
#define IC_TAPE_H

#include "model/ops.h"

/* ---- for whoever trains ----------------------------------------------------------------------- */

/* `recompute` 0 … 3, see ic_keep; `stages` at most, one a layer and one more. */
int ic_tape_new(ic_tape **out, int recompute, int stages);
void ic_tape_free(ic_tape *t);
/* Forgets everything; the run records on the tape from now on, and keeps results in its `keep`. */
void ic_tape_begin(ic_run *r, ic_tape *t);
/* From the gradient of the last stage's result to that of the first one's input, which lies in the
 * run's arena, F32 where the input is. dy may be overwritten. Gradients of LoRA matrices are added
 * to theirs. */
ic_mat ic_tape_back(ic_run *r, ic_mat dy);

/* ---- for the model definition ----------------------------------------------------------------- */

typedef ic_var (*ic_stage_fn)(ic_run *r, const void *context, int index, ic_var x);

/* Calls fn; with a tape also notes how to call it again. x must stay as it is until then. */
ic_var ic_stage(ic_run *r, ic_stage_fn fn, const void *context, int index, ic_var x);
/* A copy of what stages share that lives as long as the tape's notes. */
const void *ic_tape_context(ic_tape *t, const void *data, size_t size);

/* ---- for operations --------------------------------------------------------------------------- */

typedef struct ic_op ic_op;
typedef void (*ic_op_fn)(ic_run *r, ic_op *op);

/* One call of an operation. */
struct ic_op {
    ic_op_fn run;  /* y from x */
    ic_op_fn back; /* adds to the gradients of x, and of LoRA matrices, from that of y */
    ic_var y, x[3];
    bool in_place; /* y is x[0] */
    union {
        struct {
            const ic_linear_weight *w;
            ic_lora_use lora;
            bool onto; /* x[2] + … */
        } linear;
        struct {
            const float *w;
            float eps;
            int heads;
        } norm;
        struct {
            const ic_rope_table *table;
            int heads;
            bool interleaved;
        } rope;
        struct {
            const ic_config *config;
            const ic_batch *batch;
            float *lse;
            int layer, window;
            bool tail;
        } attention;
        const ic_rows *rows;
        ic_activation act;
        size_t mark;
    };
};

/* Performs or notes a call whose result is new … */
ic_var ic_call(ic_run *r, ic_op *op, ic_keep keep, int rows, int cols, ic_dtype dtype);
/* … or overwrites its first input, on a tape too; gradients then share their memory likewise. */
ic_var ic_call_in_place(ic_run *r, ic_op *op);
/* Performs it in the memory given: inference only. */
ic_var ic_call_at(ic_run *r, ic_op *op, ic_mat y);
/* Memory of `bytes` beside a result of the same `keep`; NULL where a replay has yet to make it. */
void *ic_keep_beside(ic_run *r, ic_keep keep, size_t bytes);

/* In run and back: the values of an input (computed now if need be; so call it before anything is
 * taken from the arena for a short time) and the memory for the result. */
ic_mat ic_value(ic_run *r, ic_var v);
ic_mat ic_result(ic_run *r, ic_op *op);

/* In back. The finished gradient. */
ic_mat ic_grad(ic_run *r, ic_var v);
/* Where to leave a contribution: added if *add, else the memory holds nothing yet. */
ic_mat ic_grad_into(ic_run *r, ic_var v, bool *add);
/* Declares `m` the gradient of v, which has none yet. */
void ic_grad_give(ic_run *r, ic_var v, ic_mat m);
/* Says that y = h + … : both have one gradient. */
void ic_grad_share(ic_run *r, ic_var y, ic_var h);

/* ---- inside ----------------------------------------------------------------------------------- */

typedef struct ic_tape_node { /* a value of the stage that is being replayed */
    ic_mat m;                 /* data NULL: no memory yet */
    bool have;                /* the values are there */
    bool filled;              /* so is the gradient, or a part of it */
    int op;                   /* that makes it; -1: an input */
    int root;                 /* whose gradient is its own too; itself mostly */
    ic_mat grad;
} ic_tape_node;

typedef struct ic_tape_stage {
    ic_stage_fn fn;
    const void *context;
    int index;
    ic_mat x;
    int kept; /* first of its kept results */
} ic_tape_stage;

enum { IC_TAPE_OPS = 64, IC_TAPE_NODES = 80, IC_TAPE_KEPT = 32 /* at most, a stage */ };

struct ic_tape {
    int recompute;
    bool replay;
    ic_tape_stage *stage;
    int stages, max_stages;
    void **kept;
    int kept_count, kept_next;
    ic_op op[IC_TAPE_OPS];
    int ops;
    ic_tape_node node[IC_TAPE_NODES]; /* 0 is not used */
    int nodes;
    _Alignas(16) char context[256];
};

static inline bool ic_replays(const ic_run *r)
{
    return r->tape && r->tape->replay;
}

#endif
