/*
 * restore.c - compresses and restores many texts, decoding them together (core/engine.h).
 *
 * A text longer than the span is restored span by span, as icae_restore does; each span is a sequence
 * of its own. Texts are prepared only a little ahead of the decoder, so memory stays bounded.
 */
#include "eval/eval.h"

#include "core/fidelity.h"

#include <string.h>

typedef struct text text;
struct work;

/* One span of one text. */
typedef struct part {
    ic_job job;
    ic_prompt prompt;
    ic_generation generation;
    ic_ids out;
    text *of;
} part;

struct text {
    ic_restoration r;
    icae_slots *slots;
    part *part;
    size_t parts, left;
    struct work *work;
    text *next;  /* among the finished */
    text *after; /* among all */
};

typedef struct work {
    const ic_restore_plan *plan;
    ic_engine *engine;
    text *finished, *all;
    int rc;
} work;

static void text_free(text *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->parts; i++) {
        ic_prompt_free(&t->part[i].prompt);
        ic_ids_free(&t->part[i].out);
    }
    ic_free(t->part);
    icae_slots_free(t->slots);
    ic_ids_free(&t->r.restored);
    ic_free(t);
}

static int take(void *user, int32_t id)
{
    part *p = user;
    return ic_ids_add(&p->out, id);
}

static void finished(ic_job *job)
{
    part *p = job->user;
    text *t = p->of;
    work *w = t->work;
    if (job->rc < 0 && w->rc == ICAE_OK)
        w->rc = job->rc;
    if (--t->left == 0) {
        t->next = w->finished;
        w->finished = t;
    }
}

/* Compresses, scores, and queues the spans. */
static int start(work *w, icae_session *s, text *t)
{
    int rc = ICAE_OK;
    ic_restoration *r = &t->r;
    ic_score *scores = NULL;
    ic_span span;
    IC_TRY(ic_compress_ids(
        &t->slots, s, &(ic_ids){(int32_t *)(uintptr_t)r->ids, (size_t)r->count, (size_t)r->count},
        &(icae_compress_options){.rate = r->rate}));
    r->slots = t->slots->count;
    if (!w->plan->unscored) {
        if (!(scores = ic_alloc((size_t)r->count, sizeof *scores))) {
            rc = ICAE_ENOMEM;
            goto done;
        }
        IC_TRY(ic_slots_score(scores, s, t->slots, r->ids));
        ic_fidelity_add(&r->fidelity, scores, r->ids, (uint64_t)r->count);
    }
    size_t parts = 0;
    for (uint32_t at = 0; ic_span_at(&span, t->slots, at); at += span.segments)
        parts++;
    if (!(t->part = ic_alloc(parts, sizeof *t->part))) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (uint32_t at = 0; ic_span_at(&span, t->slots, at); at += span.segments) {
        part *p = &t->part[t->parts++];
        p->of = t;
        IC_TRY(ic_span_prompt(&p->prompt, s, t->slots, &span));
        IC_TRY(ic_prompt_fits(&p->prompt, span.tokens, "restoring"));
        p->generation =
            (ic_generation){.expected = span.tokens, .end_of_turn = -1, .take = take, .user = p};
        p->job = (ic_job){
            .prompt = &p->prompt, .generation = &p->generation, .finished = finished, .user = p};
    }
    t->left = t->parts;
    for (size_t i = 0; i < t->parts; i++)
        ic_engine_add(w->engine, &t->part[i].job);
done:
    ic_free(scores);
    return rc;
}

/* Hands out the texts that are done. */
static int deliver(work *w)
{
    int rc = w->rc;
    while (w->finished) {
        text *t = w->finished;
        w->finished = t->next;
        for (size_t i = 0; i < t->parts && rc == ICAE_OK; i++)
            rc = ic_ids_append(&t->r.restored, t->part[i].out.ids, t->part[i].out.count);
        if (rc == ICAE_OK)
            rc = w->plan->done(w->plan->user, &t->r);
        for (text **at = &w->all; *at; at = &(*at)->after)
            if (*at == t) {
                *at = t->after;
                break;
            }
        text_free(t);
    }
    return rc;
}

int ic_restore_all(ic_system *s, const ic_restore_plan *plan)
{
    int rc = ICAE_OK;
    bool more = true;
    int ahead = plan->sequences ? plan->sequences : 32;
    work w = {.plan = plan};
    if (!s->session->adapter)
        return ic_fail(ICAE_EINVAL, "restoring needs an adapter");
    IC_TRY(ic_engine_new(&w.engine, s->session, &(ic_engine_options){.sequences = ahead}));
    while (more || ic_engine_load(w.engine)) {
        while (more && ic_engine_load(w.engine) < ahead + (ahead > 1 ? 4 : 0)) {
            text *t = ic_alloc(1, sizeof *t);
            if (!t) {
                rc = ICAE_ENOMEM;
                goto done;
            }
            t->work = &w;
            t->after = w.all;
            w.all = t;
            if ((more = plan->next(plan->user, &t->r))) {
                IC_TRY(start(&w, s->session, t));
            } else {
                w.all = t->after;
                text_free(t);
            }
        }
        IC_TRY(ic_engine_step(w.engine));
        IC_TRY(deliver(&w));
    }
done:
    while (w.all) {
        text *t = w.all;
        w.all = t->after;
        text_free(t);
    }
    ic_engine_free(w.engine);
    return rc;
}
