/*
 * restore_all.c - restores many texts, shared out to threads: each has a session of its own and restores
 * every n-th text (restore.c), so that none waits for another within a step.
 */
#include "eval/eval.h"

enum { MOST_WORKERS = 8 };

typedef struct share share;

/* What one thread does. */
typedef struct worker {
    share *of;
    ic_gang *gang;
    icae_session *session;
    size_t at;
    double seconds;
} worker;

struct share {
    const ic_restore_plan *plan;
    ic_restoration *text;
    size_t count, capacity;
    worker worker[MOST_WORKERS];
    int workers;
};

static bool next(void *user, ic_restoration *r)
{
    worker *w = user;
    if (w->at >= w->of->count)
        return false;
    *r = w->of->text[w->at];
    w->at += (size_t)w->of->workers;
    return true;
}

static int done(void *user, const ic_restoration *r)
{
    return ic_gang_give(((worker *)user)->gang, r);
}

static int work(ic_gang *gang, int number, void *user)
{
    worker *w = &((share *)user)->worker[number];
    w->gang = gang;
    ic_restore_plan plan = {.next = next, .done = done, .user = w, .refine = w->of->plan->refine};
    int rc = ic_restore_on(w->session, &plan, IC_SEQUENCES / w->of->workers);
    w->seconds = plan.seconds;
    return rc;
}

static int take(void *user, const void *result)
{
    const share *s = user;
    return s->plan->done(s->plan->user, result);
}

/* All texts of the plan, so that each worker's are the same in every run. */
static int list_texts(share *s)
{
    ic_restoration r = {0};
    while (s->plan->next(s->plan->user, &r)) {
        if (s->count == s->capacity) {
            s->capacity = IC_MAX((size_t)64, 2 * s->capacity);
            ic_restoration *more = ic_resize(s->text, s->capacity, sizeof *more);
            if (!more)
                return ICAE_ENOMEM;
            s->text = more;
        }
        s->text[s->count++] = r;
        r = (ic_restoration){0};
    }
    return ICAE_OK;
}

static int make_workers(share *s, const icae_session *like)
{
    int rc = ICAE_OK, threads = like->be->threads;
    s->workers = (int)IC_MIN((size_t)IC_MIN(threads, (int)MOST_WORKERS), s->count);
    for (int i = 0; i < s->workers; i++) {
        icae_session_options o = {.threads = (threads + i) / s->workers, .memory = like->memory};
        s->worker[i] = (worker){.of = s, .at = (size_t)i};
        IC_TRY(icae_session_new(&s->worker[i].session, like->model, like->adapter, &o));
    }
done:
    return rc;
}

int ic_restore_all(ic_system *system, ic_restore_plan *plan)
{
    int rc = ICAE_OK;
    share s = {.plan = plan};
    plan->seconds = 0;
    IC_TRY(list_texts(&s));
    IC_TRY(make_workers(&s, system->session));
    if (s.workers)
        IC_TRY(ic_gang_run(&(ic_gang_plan){s.workers, work, take, &s}));
    for (int i = 0; i < s.workers; i++)
        plan->seconds += s.worker[i].seconds / s.workers;
done:
    for (int i = 0; i < s.workers; i++)
        icae_session_free(s.worker[i].session);
    ic_free(s.text);
    return rc;
}
