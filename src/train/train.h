/*
 * train.h - training an ICAE: parameters, gradients of packed examples, updates; data and runs.
 *
 * Only the adapter is trained: LoRA matrices and the memory-token table, in one flat f32 buffer with
 * twins for gradient and the two moments. The base is frozen, one copy for encoder and decoder. LoRA is
 * the encoder's, as in the paper; or both passes have it, which trains the base itself (to be merged).
 * Layering: over core; the command line uses run.h's entry through icae.h.
 */
#ifndef IC_TRAIN_H
#define IC_TRAIN_H

#include "core/core.h"

/* ---- parameters (params.c) -------------------------------------------------------------------- */

/* What an adapter is, before it has values. */
typedef struct ic_adapter_shape {
    int k, rank;
    float rate, alpha;
    float rates[8];
    int rates_count;
    bool target[IC_TARGETS];
    bool spread, proportional, both, lm_token, bos;
    int span;
} ic_adapter_shape;

/* All trained values of an adapter, flat; `adapter` is a live view of them (its mats point into `p`, or
 * into `shadow` where products are bf16). */
typedef struct ic_params {
    const icae_model *model;
    ic_adapter_shape shape;
    size_t count;
    float *p, *g, *m, *v; /* values, gradient, first and second moment */
    uint16_t *shadow;     /* bf16 copy of p used in products, or NULL in f32 */
    icae_adapter *adapter;
} ic_params;

typedef enum { IC_INIT_NORMAL, IC_INIT_TOKEN_SCALE, IC_INIT_TOKEN_MEANS } ic_memory_init;

/* A fresh adapter: A Kaiming-uniform (a = sqrt 5), B zero, memory table as told. Counter-based draws. */
int ic_params_new(ic_params **out, const icae_model *model, const ic_adapter_shape *shape,
                  ic_memory_init init, uint64_t seed, bool bf16);
/* Values and shape of an existing adapter. */
int ic_params_from_adapter(ic_params **out, const icae_adapter *adapter, bool bf16);
void ic_params_refresh(ic_params *params); /* shadow from p */
int ic_params_save(const ic_params *params,
                   const char *path); /* v2 layout + metadata, F32 or BF16 */
void ic_params_free(ic_params *params);

/* ---- gradients (gradient.c) ------------------------------------------------------------------- */

typedef enum { IC_OBJECTIVE_AE, IC_OBJECTIVE_LM, IC_OBJECTIVE_FT, IC_OBJECTIVES } ic_objective;

/* One decoder sequence: before, the slots of context (none if tokens is 0), after. The first `unscored`
 * ids of `after` are given, every later one is a target. Special tokens are IC_AE, IC_LM, IC_FT.
 * Positions follow from the adapter (an `after` that starts with IC_AE restores). Borrowed arrays. */
typedef struct ic_example {
    const int32_t *context, *before, *after;
    int tokens, before_count, after_count, unscored;
    /* The text itself in place of its slots, and the targets but for the last: what a teacher reads.
     * NULL: this example has none. */
    const int32_t *full;
    int full_count;
    float rate;             /* 0: the adapter's */
    float weight;           /* of each target's loss in the sum that is differentiated */
    ic_objective objective; /* for reports */
} ic_example;

typedef struct ic_gradient_options {
    int recompute; /* 0: keep all activations … 3: keep layer inputs only */
    float dropout; /* on the input of LoRA's A; 0: off */
    float distill; /* share of a target that is the base's own, read after `full`; 0: off */
    uint64_t seed,
        step; /* of dropout: another `step` for every batch and process gives other masks */
    bool forward_only; /* evaluation: losses, no gradient */
} ic_gradient_options;

/* Adds to params->g the gradient of sum over examples and targets of weight * nll; all examples run as
 * one packed batch: all their segments through base + LoRA, then all decoder sequences through the
 * base (+ LoRA, if the adapter is of both). With `distill` (self-distillation: xRAG, arXiv 2405.13792) the
 * loss of examples with `full` is to that share the cross-entropy with the base's own distribution.
 * nll_sum[i]: plain sum of example i's losses against its targets; right[i] (may
 * be NULL): targets that are argmax; prefix[i] (may be NULL): right targets from the first on. */
int ic_gradients(icae_session *s, ic_params *params, const ic_example *examples, int count,
                 const ic_gradient_options *options, double *nll_sum, int *right, int *prefix);
/* Scratch bytes that it would take. */
size_t ic_gradients_measure(icae_session *s, ic_params *params, const ic_example *examples,
                            int count, const ic_gradient_options *options);

/* Clips (scale = clip / (norm + 1e-6) if below 1; 0: off), one AdamW step, zeroes the gradient,
 * refreshes the shadow. `step` counts from 1. *norm: before clipping. With a non-finite norm only the
 * gradient is zeroed, and 1 is returned. */
typedef struct ic_adamw {
    float lr, beta1, beta2, eps, decay, clip;
} ic_adamw;
int ic_params_update(icae_session *s, ic_params *params, const ic_adamw *o, uint64_t step,
                     double *norm);

#endif
