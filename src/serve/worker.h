/*
 * worker.h - the thread that owns the session: all that computes goes through it, as tasks.
 *
 * A task is some sequences that one prompt begins (n replies), or steps of other work. The replies of
 * all tasks run in one batch, which they join and leave at every step; steps of other work are done
 * between, one a step of the batch. Knows nothing of HTTP or of texts.
 */
#ifndef IC_SERVE_WORKER_H
#define IC_SERVE_WORKER_H

#include "core/engine.h"

#include <stdatomic.h>

typedef struct ic_worker ic_worker;
typedef struct ic_task ic_task;

/* One reply of a task. */
typedef struct ic_sequence {
    ic_generation generation; /* the caller's; take and look are called in the worker's thread */
    /* the worker's */
    ic_job job;
    ic_prompt prompt;
    ic_kv *kv;
    ic_task *task;
} ic_sequence;

struct ic_task {
    /* the caller's, who may not touch them until the task is done */
    const char *client;      /* clients take turns; "" is one, too */
    const atomic_bool *gone; /* when true the task ends as soon as it can; may be NULL */
    ic_prompt *prompt;       /* sequences: what all of them read */
    ic_sequence *sequence;
    int count;
    bool f32;     /* exact restoration: arithmetic in f32 whatever the weights */
    char key[65]; /* of the prompt's first `shared` rows, which others begin with, too */
    int shared;   /* 0: none */
    int (*step)(void *user, int rows); /* steps: 1 if there are more; sequences: NULL */
    void *user;
    /* out */
    int cached; /* rows of the prompt that were there already */
    double waited;
    /* the worker's */
    ic_worker *worker;
    int rc, left; /* left: sequences in the engine */
    char message[400];
    bool done, fills;
    double since;
    ic_task *next;
};

typedef struct ic_worker_options {
    int sequences;     /* that run at a time */
    int rows;          /* of prompts in a step, and of a step of other work */
    uint64_t prefixes; /* bytes */
} ic_worker_options;

typedef struct ic_worker_load {
    int running, waiting; /* sequences; tasks */
    int steps;            /* tasks of other work */
    uint64_t tokens, rows, prefix_bytes, prefix_hits, prefix_misses, batches;
} ic_worker_load;

int ic_worker_start(ic_worker **out, icae_session *s, const ic_worker_options *options);
/* Does tasks, at the same time if there is room, and waits for all: the code of the first that failed,
 * with the message set. ICAE_ECANCELLED: the client has gone, a take function said stop, or the worker
 * was halted. A sequence's own end is in its job.rc. */
int ic_worker_do(ic_worker *w, ic_task *tasks, int count);
ic_worker_load ic_worker_describe(ic_worker *w);
/* Ends all tasks, now and from now on, as ICAE_ECANCELLED. */
void ic_worker_halt(ic_worker *w);
void ic_worker_stop(ic_worker *w); /* halts, and ends the thread; NULL is fine */

#endif
