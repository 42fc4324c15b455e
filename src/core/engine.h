/*
 * engine.h - continuous batched decoding: many generations over one session, a step at a time.
 *
 * Every step reads one row of each running sequence and chunks of newly joined prompts as one packed
 * batch; what is finished leaves and what waits enters between steps. Evaluation runs a thousand
 * restorations through it, a server its requests, and ic_generate one sequence. Knows nothing of text.
 */
#ifndef IC_ENGINE_H
#define IC_ENGINE_H

#include "core/core.h"

/* One generation; all pointers are borrowed until `finished` was called. The fields are as those of
 * ic_generate. */
typedef struct ic_job ic_job;
struct ic_job {
    ic_prompt *prompt;
    int first;  /* prompt rows before this are in the cache already */
    ic_kv **kv; /* made or grown as needed; NULL: the engine lends one */
    ic_generation *generation;
    int rc; /* out: how it ended */
    /* Called once, when the whole prompt is in the cache and before the first token. It may add jobs.
     * May be NULL. */
    void (*read)(ic_job *job, const ic_kv *cache);
    /* Called once, from ic_engine_step or ic_engine_cancel; icae_error_message() belongs to rc. It may
     * add jobs. May be NULL. */
    void (*finished)(ic_job *job);
    void *user;
    ic_job *next; /* the engine's: queue */
};

typedef struct ic_engine_options {
    int sequences; /* at work at a time; 0: 32 */
    int rows;      /* of prompts that a step reads at most; 0: 512 */
} ic_engine_options;

typedef struct ic_engine ic_engine;

/* The session must not be used by others during a step; it may be between steps. */
int ic_engine_new(ic_engine **out, icae_session *s, const ic_engine_options *options);
/* Jobs that have not finished are forgotten. */
void ic_engine_free(ic_engine *e);

void ic_engine_add(ic_engine *e, ic_job *job); /* to the end of the queue */
/* Takes a job out wherever it is; it finishes as ICAE_ECANCELLED. */
void ic_engine_cancel(ic_engine *e, ic_job *job);
/* One step. An error of a job ends that job; an error of the step (no memory) ends all that run. */
int ic_engine_step(ic_engine *e);
int ic_engine_load(const ic_engine *e); /* jobs running and waiting */
/* Steps until no job is left, or the first error of a step. */
int ic_engine_drain(ic_engine *e);

#endif
