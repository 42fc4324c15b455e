/*
 * worker.c - the thread that owns the session; see worker.h.
 *
 * Owns two engines (the second computes in f32, for exact restoration), the list of tasks that wait for
 * a place, the list of those at work, and the prefixes. Only the inbox and what is told of the load is
 * shared with other threads.
 */
#include "serve/worker.h"

#include "serve/prefix.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

struct ic_worker {
    icae_session *session;
    ic_worker_options options;
    pthread_t thread;
    bool threaded;
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    ic_task *inbox; /* under the lock, the latest first */
    atomic_bool halted;
    bool stop;
    ic_worker_load load;
    /* the thread's own */
    ic_engine *engine[2]; /* [1]: f32 */
    ic_prefixes *prefixes;
    ic_task *waiting, *running, *steps; /* in the order they came */
    ic_worker_load now;
    double owed; /* seconds that the batch may work before the next step of other work */
};

/* ---- lists of tasks --------------------------------------------------------------------------- */

static void append(ic_task **list, ic_task *task)
{
    while (*list)
        list = &(*list)->next;
    task->next = NULL;
    *list = task;
}

static void take_out(ic_task **list, const ic_task *task)
{
    while (*list && *list != task)
        list = &(*list)->next;
    if (*list)
        *list = task->next;
}

/* The task is over: whoever waits for it may go on, and free it. */
static void end_task(ic_worker *w, ic_task *task)
{
    if (task->fills)
        ic_prefixes_break(w->prefixes, task->key);
    for (int i = 0; i < task->count; i++) {
        ic_kv_free(task->sequence[i].kv);
        task->sequence[i].kv = NULL;
    }
    pthread_mutex_lock(&w->lock);
    task->done = true;
    pthread_cond_broadcast(&w->done);
    pthread_mutex_unlock(&w->lock);
}

static void note_error(ic_task *task, int rc)
{
    if (task->rc < 0 || rc >= 0)
        return;
    task->rc = rc;
    snprintf(task->message, sizeof task->message, "%s", icae_error_message());
}

/* ---- sequences -------------------------------------------------------------------------------- */

static ic_engine *engine_of(const ic_worker *w, const ic_task *task)
{
    return w->engine[task->f32 && w->session->act != IC_F32];
}

static bool is_unwanted(const ic_worker *w, const ic_task *task)
{
    return atomic_load(&w->halted) || (task->gone && atomic_load(task->gone));
}

static void release(ic_worker *w, ic_task *task)
{
    if (--task->left)
        return;
    take_out(&w->running, task);
    end_task(w, task);
}

static void sequence_finished(ic_job *job)
{
    ic_sequence *q = job->user;
    ic_task *task = q->task;
    ic_worker *w = task->worker;
    w->now.tokens += q->generation.result.tokens;
    if (job->rc != ICAE_ECANCELLED || is_unwanted(w, task)) /* else take said stop */
        note_error(task, job->rc);
    release(w, task);
}

/* A prompt of the same rows; slots stay the original's. */
static int copy_prompt(ic_prompt *to, const ic_prompt *from)
{
    size_t n = (size_t)from->rows;
    *to = *from;
    to->owned = NULL;
    to->owned_count = 0;
    to->capacity = from->rows;
    to->id = ic_alloc(n, sizeof *to->id);
    to->slot = ic_alloc(n, sizeof *to->slot);
    to->pos = ic_alloc(n, sizeof *to->pos);
    if (!to->id || !to->slot || !to->pos)
        return ICAE_ENOMEM;
    memcpy(to->id, from->id, n * sizeof *to->id);
    memcpy(to->slot, from->slot, n * sizeof *to->slot);
    memcpy(to->pos, from->pos, n * sizeof *to->pos);
    return ICAE_OK;
}

/* The prompt has been read once: its beginning is kept for later tasks, and all of it but the last row,
 * whose logits each must have, for the task's other replies. */
static void prompt_read(ic_job *job, const ic_kv *cache)
{
    ic_sequence *first = job->user;
    ic_task *task = first->task;
    ic_worker *w = task->worker;
    if (task->fills) {
        ic_prefixes_keep(w->prefixes, task->key, first->kv, task->shared);
        task->fills = false;
    }
    if (task->count > 1)
        ic_kv_share(first->kv, task->prompt->rows - 1); /* without memory for it all is copied */
    for (int i = 1; i < task->count; i++) {
        ic_sequence *q = &task->sequence[i];
        if (ic_kv_fork(&q->kv, cache, task->prompt->rows - 1) == ICAE_OK) /* else it reads itself */
            q->job.first = q->kv->rows;
        task->left++;
        ic_engine_add(engine_of(w, task), &q->job);
    }
}

/* Prepares the replies of a task; on failure there is nothing to finish. */
static int prepare(ic_task *task, const ic_kv *prefix)
{
    int rc = ICAE_OK;
    for (int i = 0; i < task->count; i++) {
        ic_sequence *q = &task->sequence[i];
        q->task = task;
        IC_TRY(copy_prompt(&q->prompt, task->prompt));
        q->job = (ic_job){.prompt = &q->prompt,
                          .kv = &q->kv,
                          .generation = &q->generation,
                          .finished = sequence_finished,
                          .user = q};
    }
    if (prefix) {
        IC_TRY(ic_kv_fork(&task->sequence[0].kv, prefix, task->shared));
        task->sequence[0].job.first = task->cached = task->shared;
    }
    task->sequence[0].job.read = prompt_read;
done:
    return rc;
}

static void start(ic_worker *w, ic_task *task)
{
    const ic_kv *prefix = NULL;
    task->waited = ic_seconds() - task->since;
    task->worker = w;
    if (task->shared && !task->f32) {
        if (ic_prefixes_find(&prefix, w->prefixes, task->key) == IC_PREFIX_ABSENT) {
            ic_prefixes_promise(w->prefixes, task->key);
            task->fills = true;
        }
        w->now.prefix_hits += prefix != NULL;
        w->now.prefix_misses += prefix == NULL;
    }
    int rc = prepare(task, prefix);
    if (rc < 0) {
        note_error(task, rc);
        end_task(w, task);
        return;
    }
    w->now.rows += (uint64_t)(task->prompt->rows - task->cached);
    task->left = 1;
    append(&w->running, task);
    ic_engine_add(engine_of(w, task), &task->sequence[0].job);
}

/* ---- who is next ------------------------------------------------------------------------------ */

static int at_work(const ic_worker *w, const char *client)
{
    int n = 0;
    for (const ic_task *t = w->running; t; t = t->next)
        n += strcmp(t->client, client) == 0 ? t->left : 0;
    return n;
}

/* Of the clients that wait, the one with the fewest replies at work; of its tasks, the first. A task
 * whose prefix is being read by another waits for it. */
static ic_task *next_task(ic_worker *w)
{
    ic_task *best = NULL;
    int fewest = 0;
    const ic_kv *kv;
    for (ic_task *t = w->waiting; t; t = t->next) {
        if (t->shared && !t->f32 && ic_prefixes_find(&kv, w->prefixes, t->key) == IC_PREFIX_COMING)
            continue;
        int n = at_work(w, t->client);
        if (!best || n < fewest) {
            best = t;
            fewest = n;
        }
    }
    return best;
}

/* ---- the loop --------------------------------------------------------------------------------- */

static void drop_unwanted(ic_worker *w, ic_task **list)
{
    for (ic_task *t = *list, *next; t; t = next) {
        next = t->next;
        if (!is_unwanted(w, t))
            continue;
        take_out(list, t);
        note_error(t, ic_fail(ICAE_ECANCELLED, atomic_load(&w->halted) ? "the server is going down"
                                                                       : "the client has gone"));
        end_task(w, t);
    }
}

/* Replies whose client has gone free their places at once. */
static void cancel_unwanted(ic_worker *w)
{
    for (ic_task *t = w->running, *next; t; t = next) {
        next = t->next;
        if (!is_unwanted(w, t))
            continue;
        t->left++; /* the task stays until the last of them is out */
        for (int i = 0; i < t->count; i++)
            ic_engine_cancel(engine_of(w, t), &t->sequence[i].job);
        release(w, t);
    }
}

/* Waits until there is something to do, and takes what has come in. False: the end. */
static bool collect(ic_worker *w)
{
    bool busy = w->waiting || w->running || w->steps;
    pthread_mutex_lock(&w->lock);
    w->load = w->now;
    while (!busy && !w->inbox && !w->stop)
        pthread_cond_wait(&w->work, &w->lock);
    ic_task *in = w->inbox, *ordered = NULL;
    w->inbox = NULL;
    bool go_on = busy || in || !w->stop;
    pthread_mutex_unlock(&w->lock);
    for (ic_task *next; in; in = next) {
        next = in->next;
        in->next = ordered;
        ordered = in;
    }
    for (ic_task *next; ordered; ordered = next) {
        next = ordered->next;
        append(ordered->step ? &w->steps : &w->waiting, ordered);
    }
    return go_on;
}

/* One step of the first of the other tasks, which then goes to the end. While replies are being made
 * they get as much time as this takes. */
static void step_other(ic_worker *w, int replies)
{
    ic_task *t = w->steps;
    if (!t || (replies && w->owed > 0))
        return;
    double start = ic_seconds();
    w->steps = t->next;
    int rc = t->step(t->user, w->options.rows);
    if (rc > 0) {
        append(&w->steps, t);
    } else {
        note_error(t, rc);
        end_task(w, t);
    }
    w->owed = ic_seconds() - start;
}

static void step_replies(ic_worker *w)
{
    double start = ic_seconds();
    icae_session *s = w->session;
    for (int i = 0; i < 2; i++) {
        ic_dtype act = s->act;
        if (!w->engine[i] || !ic_engine_load(w->engine[i]))
            continue;
        w->now.batches++;
        s->act = i ? IC_F32 : act;
        ic_engine_step(w->engine[i]); /* an error has ended all replies, and each knows it */
        s->act = act;
    }
    w->owed -= ic_seconds() - start;
}

static int count_tasks(const ic_task *list)
{
    int n = 0;
    for (; list; list = list->next)
        n++;
    return n;
}

static int replies_at_work(const ic_worker *w)
{
    return ic_engine_load(w->engine[0]) + (w->engine[1] ? ic_engine_load(w->engine[1]) : 0);
}

static void *work(void *argument)
{
    ic_worker *w = argument;
    while (collect(w)) {
        ic_task *t;
        drop_unwanted(w, &w->waiting);
        drop_unwanted(w, &w->steps);
        cancel_unwanted(w);
        while (replies_at_work(w) < w->options.sequences && (t = next_task(w))) {
            take_out(&w->waiting, t);
            start(w, t);
        }
        step_other(w, replies_at_work(w));
        step_replies(w);
        w->now.running = replies_at_work(w);
        w->now.waiting = count_tasks(w->waiting);
        w->now.steps = count_tasks(w->steps);
        w->now.prefix_bytes = ic_prefixes_bytes(w->prefixes);
    }
    return NULL;
}

/* ---- the other side --------------------------------------------------------------------------- */

int ic_worker_do(ic_worker *w, ic_task *tasks, int count)
{
    int rc = ICAE_OK;
    double now = ic_seconds();
    pthread_mutex_lock(&w->lock);
    for (int i = 0; i < count; i++) {
        tasks[i].since = now;
        tasks[i].next = w->inbox;
        w->inbox = &tasks[i];
    }
    pthread_cond_signal(&w->work);
    for (int i = 0; i < count; i++)
        while (!tasks[i].done)
            pthread_cond_wait(&w->done, &w->lock);
    pthread_mutex_unlock(&w->lock);
    for (int i = 0; i < count; i++) {
        for (int j = 0; j < tasks[i].count; j++)
            ic_prompt_free(&tasks[i].sequence[j].prompt);
        if (tasks[i].rc < 0 && rc == ICAE_OK)
            rc = ic_fail(tasks[i].rc, "%s", tasks[i].message);
    }
    return rc;
}

ic_worker_load ic_worker_describe(ic_worker *w)
{
    pthread_mutex_lock(&w->lock);
    ic_worker_load load = w->load;
    pthread_mutex_unlock(&w->lock);
    return load;
}

void ic_worker_halt(ic_worker *w)
{
    atomic_store(&w->halted, true);
}

int ic_worker_start(ic_worker **out, icae_session *s, const ic_worker_options *options)
{
    int rc = ICAE_OK;
    ic_worker *w = ic_alloc(1, sizeof *w);
    if (!w)
        return ICAE_ENOMEM;
    ic_engine_options e = {.sequences = options->sequences, .rows = options->rows};
    w->session = s;
    w->options = *options;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->work, NULL);
    pthread_cond_init(&w->done, NULL);
    IC_TRY(ic_engine_new(&w->engine[0], s, &e));
    if (s->act != IC_F32)
        IC_TRY(ic_engine_new(&w->engine[1], s, &e));
    IC_TRY(ic_prefixes_new(&w->prefixes, options->prefixes));
    if (pthread_create(&w->thread, NULL, work, w) != 0) {
        rc = ic_fail(ICAE_ENOMEM, "cannot start a thread");
        goto done;
    }
    w->threaded = true;
    *out = w;
    w = NULL;
done:
    ic_worker_stop(w);
    return rc;
}

void ic_worker_stop(ic_worker *w)
{
    if (!w)
        return;
    ic_worker_halt(w);
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_signal(&w->work);
    pthread_mutex_unlock(&w->lock);
    if (w->threaded)
        pthread_join(w->thread, NULL);
    ic_engine_free(w->engine[0]);
    ic_engine_free(w->engine[1]);
    ic_prefixes_free(w->prefixes);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->work);
    pthread_cond_destroy(&w->done);
    ic_free(w);
}
