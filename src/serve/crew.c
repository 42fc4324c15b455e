/*
 * crew.c - threads that do jobs as they come.
 *
 * A thread is made when a job comes, none is idle and there may be more; it stays. Stacks are small, so
 * that a hundred waiting requests cost little.
 */
#include "serve/crew.h"

#include <pthread.h>

enum { STACK = 1 << 20 };

struct ic_crew {
    pthread_mutex_t lock;
    pthread_cond_t work;
    ic_crew_job *first, **end;
    int most, made, idle, waiting; /* waiting: jobs */
    bool stop;
    pthread_t *thread;
};

int ic_crew_new(ic_crew **out, int threads)
{
    ic_crew *c = ic_alloc(1, sizeof *c);
    pthread_t *thread = ic_alloc((size_t)threads, sizeof *thread);
    if (!c || !thread) {
        ic_free(c);
        ic_free(thread);
        return ICAE_ENOMEM;
    }
    c->thread = thread;
    c->most = threads;
    c->end = &c->first;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->work, NULL);
    *out = c;
    return ICAE_OK;
}

static void *work(void *argument)
{
    ic_crew *c = argument;
    pthread_mutex_lock(&c->lock);
    for (;;) {
        c->idle++;
        while (!c->first && !c->stop)
            pthread_cond_wait(&c->work, &c->lock);
        c->idle--;
        ic_crew_job *job = c->first;
        if (!job)
            break;
        c->first = job->next;
        if (!c->first)
            c->end = &c->first;
        c->waiting--;
        pthread_mutex_unlock(&c->lock);
        job->run(job);
        pthread_mutex_lock(&c->lock);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

void ic_crew_add(ic_crew *c, ic_crew_job *job)
{
    pthread_attr_t small;
    job->next = NULL;
    pthread_mutex_lock(&c->lock);
    *c->end = job;
    c->end = &job->next;
    c->waiting++;
    if (c->idle < c->waiting && c->made < c->most && pthread_attr_init(&small) == 0) {
        pthread_attr_setstacksize(&small, STACK);
        /* if there can be no further thread, the job waits for one that there is */
        c->made += pthread_create(&c->thread[c->made], &small, work, c) == 0;
        pthread_attr_destroy(&small);
    }
    pthread_cond_signal(&c->work);
    pthread_mutex_unlock(&c->lock);
}

void ic_crew_free(ic_crew *c)
{
    if (!c)
        return;
    pthread_mutex_lock(&c->lock);
    c->stop = true;
    pthread_cond_broadcast(&c->work);
    pthread_mutex_unlock(&c->lock);
    for (int i = 0; i < c->made; i++)
        pthread_join(c->thread[i], NULL);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->work);
    ic_free(c->thread);
    ic_free(c);
}
