/*
 * report.c - what a run tells: metrics.jsonl, a line a step and a line an evaluation.
 *
 * A line's numbers but the last few (seconds, tokens a second) are the same in a resumed run. A full
 * disk does not stop training: lines wait in memory until they can be written.
 */
#include "train/run.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char *const objective_names[IC_OBJECTIVES] = {"ae", "lm", "ft"};

int ic_metrics_open(ic_training *t, uint64_t keep)
{
    char *path = ic_path_join(t->s->out, "metrics.jsonl");
    if (!path)
        return ICAE_ENOMEM;
    int rc = ICAE_OK;
    t->metrics = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    off_t size = t->metrics < 0 ? -1 : lseek(t->metrics, 0, SEEK_END);
    if (size >= 0 && (uint64_t)size > keep && ftruncate(t->metrics, (off_t)keep) == 0)
        size = lseek(t->metrics, 0, SEEK_END);
    if (size < 0)
        rc = ic_fail(ICAE_EIO, "cannot write %.400s: %s", path, strerror(errno));
    else
        t->state.metrics_size = (uint64_t)size;
    ic_free(path);
    return rc;
}

void ic_metrics_flush(ic_training *t)
{
    size_t at = 0;
    while (t->metrics >= 0 && at < t->pending.size) {
        ssize_t n = write(t->metrics, t->pending.data + at, t->pending.size - at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            if (!t->metrics_failed)
                ic_training_notice(t, true,
                                   "cannot write metrics.jsonl: %s; its lines wait in memory",
                                   strerror(errno));
            t->metrics_failed = true;
            break;
        }
        at += (size_t)n;
    }
    t->state.metrics_size += at;
    if (at == t->pending.size)
        t->metrics_failed = false;
    if (at) {
        memmove(t->pending.data, t->pending.data + at, t->pending.size - at);
        t->pending.size -= at;
    }
}

void ic_metrics_add(ic_training *t, const ic_buffer *line)
{
    if (t->metrics < 0)
        return;
    if (ic_buffer_add(&t->pending, line->data, line->size) == ICAE_OK)
        (void)ic_buffer_add(&t->pending, "\n", 1);
    ic_metrics_flush(t);
}

static void add(ic_buffer *b, const char *name, double v)
{
    if (isfinite(v))
        (void)ic_buffer_addf(b, ", \"%s\": %.9g", name, v);
}

static void add_evaluation(ic_training *t, const icae_train_report *r, const ic_evaluation *e)
{
    ic_buffer b = {0};
    (void)ic_buffer_addf(&b, "{\"step\": %llu, \"eval\": true", (unsigned long long)r->step);
    for (int i = 0; i < IC_OBJECTIVES; i++)
        add(&b, objective_names[i], e->loss[i]);
    add(&b, "accuracy", e->accuracy);
    add(&b, "exact_prefix", e->prefix);
    add(&b, "ppl_slots", e->ppl_slots);
    add(&b, "ppl_full", e->ppl_full);
    add(&b, "ppl_none", e->ppl_none);
    for (int i = 0; i < t->s->rates.count && isfinite(e->loss[IC_OBJECTIVE_AE]); i++) {
        char name[64];
        double rate = t->s->rates.v[i];
        (void)snprintf(name, sizeof name, "ae/%g", rate);
        add(&b, name, e->rate_loss[i]);
        (void)snprintf(name, sizeof name, "accuracy/%g", rate);
        add(&b, name, e->rate_accuracy[i]);
        (void)snprintf(name, sizeof name, "exact_prefix/%g", rate);
        add(&b, name, e->rate_prefix[i]);
    }
    (void)ic_buffer_addf(&b, ", \"best\": %s}", r->best ? "true" : "false");
    ic_metrics_add(t, &b);
    ic_buffer_free(&b);
}

void ic_metrics_step(ic_training *t, const icae_train_report *r, const ic_evaluation *e)
{
    ic_buffer b = {0};
    if (e) {
        add_evaluation(t, r, e);
        return;
    }
    (void)ic_buffer_addf(&b, "{\"step\": %llu, \"tokens\": %llu, \"samples\": %llu",
                         (unsigned long long)r->step, (unsigned long long)r->tokens,
                         (unsigned long long)r->samples);
    for (int i = 0; i < IC_OBJECTIVES; i++)
        add(&b, objective_names[i], r->loss[i]);
    if (r->skipped)
        (void)ic_buffer_addf(&b, ", \"skipped\": true");
    add(&b, "norm", r->norm);
    add(&b, "lr", r->lr);
    add(&b, "seconds", r->seconds);
    add(&b, "tokens_per_second", r->tokens_per_second);
    add(&b, "share_of_peak", r->share_of_peak);
    (void)ic_buffer_addf(&b, "}");
    ic_metrics_add(t, &b);
    ic_buffer_free(&b);
}
