/*
 * gang.c - threads at work for one evaluation; the thread that called takes their results one at a time.
 *
 * So records, report and the caller's functions stay with one thread, and no more threads than members
 * are busy: one whose result is being taken waits. Knows nothing of what is done.
 */
#include "eval/eval.h"

#include <pthread.h>
#include <stdio.h>

struct ic_gang {
    const ic_gang_plan *plan;
    pthread_mutex_t lock;
    pthread_cond_t turn;
    const void *result; /* waits to be taken, or is */
    int running;        /* members */
    bool stop;
    int rc; /* the first error, with its message */
    char message[1024];
};

typedef struct member {
    ic_gang *gang;
    int number;
    pthread_t thread;
} member;

/* Locked. */
static void fail(ic_gang *g, int rc)
{
    if (!g->stop) {
        g->rc = rc;
        snprintf(g->message, sizeof g->message, "%s", icae_error_message());
    }
    g->stop = true;
}

static void *work(void *argument)
{
    const member *m = argument;
    ic_gang *g = m->gang;
    int rc = g->plan->work(g, m->number, g->plan->user);
    pthread_mutex_lock(&g->lock);
    if (rc < 0)
        fail(g, rc);
    g->running--;
    pthread_cond_broadcast(&g->turn);
    pthread_mutex_unlock(&g->lock);
    return NULL;
}

int ic_gang_give(ic_gang *g, const void *result)
{
    pthread_mutex_lock(&g->lock);
    while (g->result)
        pthread_cond_wait(&g->turn, &g->lock);
    g->result = result;
    pthread_cond_broadcast(&g->turn);
    while (g->result == result)
        pthread_cond_wait(&g->turn, &g->lock);
    bool stop = g->stop;
    pthread_mutex_unlock(&g->lock);
    return stop ? ic_fail(ICAE_ECANCELLED, "the evaluation was stopped") : ICAE_OK;
}

/* Takes results until no member is at work; after an error they are dropped. Locked. */
static void take_all(ic_gang *g)
{
    while (g->running) {
        if (!g->result) {
            pthread_cond_wait(&g->turn, &g->lock);
            continue;
        }
        if (!g->stop) {
            pthread_mutex_unlock(&g->lock);
            int rc = g->plan->take(g->plan->user, g->result);
            pthread_mutex_lock(&g->lock);
            if (rc < 0)
                fail(g, rc);
        }
        g->result = NULL;
        pthread_cond_broadcast(&g->turn);
    }
}

int ic_gang_run(const ic_gang_plan *plan)
{
    ic_gang g = {.plan = plan};
    int made = 0;
    member *list = ic_alloc((size_t)plan->members, sizeof *list);
    if (!list)
        return ICAE_ENOMEM;
    pthread_mutex_init(&g.lock, NULL);
    pthread_cond_init(&g.turn, NULL);
    pthread_mutex_lock(&g.lock);
    for (; made < plan->members; made++) {
        list[made] = (member){.gang = &g, .number = made};
        if (pthread_create(&list[made].thread, NULL, work, &list[made])) {
            fail(&g, ic_fail(ICAE_ENOMEM, "no thread could be made"));
            break;
        }
        g.running++;
    }
    take_all(&g);
    pthread_mutex_unlock(&g.lock);
    for (int i = 0; i < made; i++)
        pthread_join(list[i].thread, NULL);
    pthread_mutex_destroy(&g.lock);
    pthread_cond_destroy(&g.turn);
    ic_free(list);
    return g.rc < 0 ? ic_fail(g.rc, "%s", g.message) : ICAE_OK;
}
