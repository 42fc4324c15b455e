/*
 * ops.h - the operations of transformer.c. Each runs at once on the backend; where a tape replays,
 * it is noted instead, runs when its result is asked for, and has an adjoint (tape.h). Private to
 * src/model (and training).
 */
#ifndef IC_OPS_H
#define IC_OPS_H

#include "model/model.h"

/* A list of row numbers. */
typedef struct ic_rows {
    const int32_t *index; /* ascending */
    int count;
} ic_rows;

/* Cosines and sines of the rotary angles, [rows, half]. */
typedef struct ic_rope_table {
    const float *cosine, *sine;
    int half;
} ic_rope_table;

/* A LoRA pair at work. */
typedef struct ic_lora_use {
    const ic_lora *lora; /* NULL: none */
    const ic_lora_set *set;
    int layer, target;
} ic_lora_use;

static inline ic_lora_use ic_lora_of(const ic_lora_set *set, int layer, enum ic_target target)
{
    if (!set)
        return (ic_lora_use){0};
    const ic_lora *l = &set->lora[layer * IC_TARGETS + (int)target];
    return (ic_lora_use){l->a.data ? l : NULL, set, layer, (int)target};
}

/* Which results of a layer a training run keeps for the backward pass. Its `recompute` level drops
 * them from the top of this list down; what is dropped is computed again when it is needed. */
typedef enum {
    IC_DROP,      /* never kept: one elementwise operation away from what is */
    IC_KEEP_FFN,  /* gate, up: kept at level 0 */
    IC_KEEP_QKV,  /* queries, keys, values: at 0 and 1 */
    IC_KEEP_HALF, /* attention's result, the residual after it, LoRA's x A^T: at 0 to 2 */
    IC_KEEP,      /* the layer's result: always */
} ic_keep;

/* Made once a run, before the layers. */
ic_rows ic_tail_rows_new(ic_run *r, const ic_batch *b);
ic_rope_table ic_rope_table_new(ic_run *r, const icae_model *model, const float *pos,
                                const ic_rows *rows, int count);

/* y [T, N] of `out` type. */
ic_var ic_linear(ic_run *r, ic_var x, const ic_linear_weight *w, ic_lora_use lora, ic_dtype out,
                 ic_keep keep);
/* h + x W^T …; updates h in place unless there is a tape. */
ic_var ic_add_linear(ic_run *r, ic_var h, ic_var x, const ic_linear_weight *w, ic_lora_use lora,
                     ic_keep keep);
ic_var ic_rmsnorm(ic_run *r, ic_var x, const float *w, float eps, ic_dtype out);
/* rmsnorm of every head of x [T, heads*K]; in place unless there is a tape. */
ic_var ic_headnorm(ic_run *r, ic_var x, int heads, const float *w, float eps);
/* In place. */
ic_var ic_rope(ic_run *r, ic_var x, int heads, const ic_rope_table *t, bool interleaved);
ic_var ic_gather(ic_run *r, ic_var x, const ic_rows *rows);
/* Causal attention within each sequence of the batch (and its cache). `tail`: q holds the tail rows
 * only. With a tape the batch must live until the backward pass. */
ic_var ic_attention_op(ic_run *r, const ic_config *c, const ic_batch *b, bool tail, int layer,
                       int window, ic_var q, ic_var k, ic_var v, ic_keep keep);
/* In place of gate unless there is a tape. */
ic_var ic_glu(ic_run *r, ic_var gate, ic_var up, ic_activation act);
/* What follows needs nothing of what came before but h: its scratch memory can be released as soon
 * as its adjoints are done. Does nothing otherwise. */
void ic_boundary(ic_run *r, ic_var h);

#endif
