/*
 * expand.c - segments that are restored from their slots and read as text again.
 *
 * From slots a decoder answers what it has learnt to look up in them; text it can simply read. So what
 * matters most is restored first ("compress, sense, and expand", REFRAG, arXiv 2509.01092): for a
 * continuation the last segments, for a question those that make it likely (ranking by query
 * likelihood, Ponte and Croft 1998, with the decoder reading one segment's slots as the model of it).
 * Nothing is needed but the slots. Owns the order of things: find, score, choose, restore; in steps,
 * between which the session may do other work.
 */
#include "core/engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Tokens of a question that choose, its last ones: many segments each read them. */
enum { ASKED = 256 };

/* A segment that is being restored. */
typedef struct restoring {
    ic_expanding *of;
    ic_ids *ids;
    int rc; /* of keeping them */
    ic_prompt prompt;
    ic_generation generation;
    ic_job job;
} restoring;

struct ic_expanding {
    icae_session *session;
    ic_expansion x; /* candidates, then those that were chosen */
    ic_ids left, question;
    size_t most, scored; /* scored: segments */
    float *nll;          /* [segments, tokens of the question]; NULL: there is nothing to choose */
    ic_engine *engine;   /* it restores; NULL: not yet */
    restoring *work;
    uint64_t done, total; /* tokens restored */
};

void ic_expansion_free(ic_expansion *x)
{
    for (size_t i = 0; i < x->count; i++)
        ic_ids_free(&x->item[i].ids);
    ic_free(x->item);
    *x = (ic_expansion){0};
}

const ic_ids *ic_expansion_at(const ic_expansion *x, const icae_slots *slots, uint32_t segment)
{
    for (size_t i = 0; x && i < x->count; i++)
        if (x->item[i].slots == slots && x->item[i].segment == segment)
            return &x->item[i].ids;
    return NULL;
}

void ic_expanding_free(ic_expanding *e)
{
    if (!e)
        return;
    for (size_t i = 0; e->work && i < e->x.count; i++)
        ic_prompt_free(&e->work[i].prompt);
    ic_engine_free(e->engine);
    ic_free(e->work);
    ic_free(e->nll);
    ic_ids_free(&e->left);
    ic_ids_free(&e->question);
    ic_expansion_free(&e->x);
    ic_free(e);
}

/* ---- candidates ------------------------------------------------------------------------------- */

static bool seen(const icae_part *parts, size_t i)
{
    for (size_t j = 0; j < i; j++)
        if (parts[j].slots == parts[i].slots)
            return true;
    return false;
}

/* All segments of the parts, in order; slots that stand there twice once. */
static int find_segments(ic_expansion *out, const icae_session *s, const icae_part *parts,
                         size_t count)
{
    int rc = ICAE_OK;
    size_t n = 0;
    uint64_t need = 0;
    for (size_t i = 0; i < count; i++) {
        const icae_slots *slots = parts[i].slots;
        if (!slots)
            continue;
        IC_TRY(icae_slots_check(slots, s));
        n += slots->segments;
        need += s->adapter->spread ? slots->tokens : slots->count;
    }
    if (need > (uint64_t)s->model->config.max_positions) /* before anything is computed in vain */
        return ic_fail(ICAE_ELIMIT, "the context needs %llu positions, %s has %d",
                       (unsigned long long)need, s->model->path, s->model->config.max_positions);
    if (!(out->item = ic_alloc(IC_MAX(n, 1), sizeof *out->item)))
        return ICAE_ENOMEM;
    for (size_t i = 0; i < count; i++)
        for (uint32_t j = 0; parts[i].slots && !seen(parts, i) && j < parts[i].slots->segments; j++)
            out->item[out->count++] = (ic_expanded){.slots = parts[i].slots, .segment = j};
done:
    return rc;
}

static ic_expanding *expanding_new(icae_session *s, int most)
{
    ic_expanding *e = ic_alloc(1, sizeof *e);
    if (e) {
        e->session = s;
        e->most = (size_t)most;
    }
    return e;
}

static int expanding_last(ic_expanding **out, icae_session *s, const icae_part *parts, size_t count,
                          int most)
{
    int rc = ICAE_OK;
    ic_expanding *e = expanding_new(s, most);
    if (!e)
        return ICAE_ENOMEM;
    if (count && parts[count - 1].slots) {
        IC_TRY(find_segments(&e->x, s, &parts[count - 1], 1));
        size_t kept = IC_MIN(e->x.count, e->most);
        memmove(e->x.item, e->x.item + e->x.count - kept, kept * sizeof *e->x.item);
        e->x.count = kept;
    }
    *out = e;
    e = NULL;
done:
    ic_expanding_free(e);
    return rc;
}

int ic_expanding_for(ic_expanding **out, icae_session *s, const icae_part *parts, size_t count,
                     const ic_ids *left, const ic_ids *question, int most)
{
    int rc = ICAE_OK;
    ic_expanding *e = expanding_new(s, question->count ? most : 0);
    if (!e)
        return ICAE_ENOMEM;
    IC_TRY(ic_ids_append(&e->left, left->ids, left->count));
    size_t asked = IC_MIN(question->count, (size_t)ASKED);
    IC_TRY(ic_ids_append(&e->question, question->ids + question->count - asked, asked));
    IC_TRY(find_segments(&e->x, s, parts, count));
    if (!e->most)
        e->x.count = 0;
    if (e->x.count > e->most && !(e->nll = ic_alloc(e->x.count * asked, sizeof *e->nll))) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    *out = e;
    e = NULL;
done:
    ic_expanding_free(e);
    return rc;
}

/* ---- the segments that a question is about ---------------------------------------------------- */

/* The question behind the slots of one segment, as an answer would read it. */
static int question_prompt(ic_prompt *p, const ic_expanding *e, const ic_expanded *segment)
{
    int rc = ICAE_OK;
    const int32_t ft = IC_FT;
    ic_prompt_begin(p, e->session);
    IC_TRY(ic_prompt_ids(p, e->left.ids, e->left.count));
    IC_TRY(ic_prompt_slots(p, segment->slots, segment->segment, 1, NULL));
    IC_TRY(ic_prompt_ids(p, &ft, 1));
    IC_TRY(ic_prompt_ids(p, e->question.ids, e->question.count - 1));
    IC_TRY(ic_prompt_fits(p, 1, "the question with a segment"));
done:
    return rc;
}

/* Scores of the question's tokens behind the next segments: of some `rows`, but at least one. */
static int score_some(ic_expanding *e, int rows)
{
    int rc = ICAE_OK, n = 0, read = 0;
    size_t tokens = e->question.count, most = IC_MIN(e->x.count - e->scored, (size_t)rows);
    ic_prompt *p = ic_alloc(IC_MAX(most, 1), sizeof *p);
    ic_read *reads = ic_alloc(IC_MAX(most, 1), sizeof *reads);
    ic_score *scores = ic_alloc(IC_MAX(most, 1) * tokens, sizeof *scores);
    if (!p || !reads || !scores) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    while ((size_t)n < most && (!n || read + p[n - 1].rows <= rows)) {
        IC_TRY(question_prompt(&p[n], e, &e->x.item[e->scored + (size_t)n]));
        reads[n] = (ic_read){.prompt = &p[n],
                             .count = p[n].rows,
                             .targets = e->question.ids,
                             .scored = (int)tokens,
                             .scores = scores + (size_t)n * tokens};
        read += p[n++].rows;
    }
    IC_TRY(ic_read_rows(e->session, reads, n));
    for (size_t i = 0; i < (size_t)n * tokens; i++)
        e->nll[e->scored * tokens + i] = scores[i].nll;
    e->scored += (size_t)n;
    const icae_session *s = e->session;
    if (s->progress && s->progress(s->user, "segments", e->scored, e->x.count))
        rc = ic_fail(ICAE_ECANCELLED, "choosing segments was stopped");
done:
    for (size_t i = 0; p && i < most; i++)
        ic_prompt_free(&p[i]);
    ic_free(p);
    ic_free(reads);
    ic_free(scores);
    return rc;
}

typedef struct ranked {
    double evidence;
    size_t index;
} ranked;

static int by_evidence(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->evidence != y->evidence)
        return x->evidence > y->evidence ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

static int by_index(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    return x->index < y->index ? -1 : 1;
}

/* By how much a segment makes the question's tokens likelier than segments do on average (the mean of
 * their probabilities), in nats, summed over the tokens for which it does. */
static void weigh(ranked *r, const float *nll, size_t segments, size_t tokens)
{
    for (size_t t = 0; t < tokens; t++) {
        double mean = 0;
        for (size_t i = 0; i < segments; i++)
            mean += exp(-(double)nll[i * tokens + t]) / (double)segments;
        mean = -log(fmax(mean, 1e-300));
        for (size_t i = 0; i < segments; i++)
            r[i].evidence += fmax(0, mean - (double)nll[i * tokens + t]);
    }
}

/* Leaves the best segments, in the order of the text. */
static int choose(ic_expanding *e)
{
    ic_expansion *x = &e->x;
    ranked *r = ic_alloc(x->count, sizeof *r);
    if (!r)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < x->count; i++)
        r[i].index = i;
    weigh(r, e->nll, x->count, e->question.count);
    qsort(r, x->count, sizeof *r, by_evidence);
    qsort(r, e->most, sizeof *r, by_index);
    for (size_t i = 0; i < e->most; i++) /* ascending: none is overwritten before it has moved */
        x->item[i] = x->item[r[i].index];
    x->count = e->most;
    ic_free(r);
    ic_free(e->nll);
    e->nll = NULL;
    return ICAE_OK;
}

/* ---- restoring -------------------------------------------------------------------------------- */

static int take(void *user, int32_t id)
{
    restoring *r = user;
    ic_expanding *e = r->of;
    const icae_session *s = e->session;
    if ((r->rc = ic_ids_add(r->ids, id)) < 0)
        return 1;
    return s->progress && s->progress(s->user, "tokens", ++e->done, e->total);
}

/* One segment by itself: greedily, as many tokens as it had. */
static int start(restoring *r, const ic_expanded *segment)
{
    int rc = ICAE_OK;
    const ic_span span = {.first_segment = segment->segment,
                          .segments = 1,
                          .tokens = segment->slots->segment[segment->segment].tokens};
    IC_TRY(ic_span_prompt(&r->prompt, r->of->session, segment->slots, &span));
    IC_TRY(ic_prompt_fits(&r->prompt, span.tokens, "restoring a segment"));
    r->generation = (ic_generation){
        .expected = span.tokens, .through_eos = true, .end_of_turn = -1, .take = take, .user = r};
    r->job = (ic_job){.prompt = &r->prompt, .generation = &r->generation};
done:
    return rc;
}

/* All chosen segments at once. */
static int begin_restoring(ic_expanding *e, int rows)
{
    int rc = ICAE_OK;
    size_t n = e->x.count;
    if (!(e->work = ic_alloc(n, sizeof *e->work)))
        return ICAE_ENOMEM;
    for (size_t i = 0; i < n; i++) {
        ic_expanded *segment = &e->x.item[i];
        e->work[i] = (restoring){.of = e, .ids = &segment->ids};
        IC_TRY(start(&e->work[i], segment));
        e->total += segment->slots->segment[segment->segment].tokens;
    }
    IC_TRY(ic_engine_new(&e->engine, e->session,
                         &(ic_engine_options){.sequences = (int)IC_MIN(n, 32), .rows = rows}));
    for (size_t i = 0; i < n; i++)
        ic_engine_add(e->engine, &e->work[i].job);
done:
    return rc;
}

int ic_expanding_step(ic_expanding *e, int rows)
{
    int rc = ICAE_OK;
    if (e->nll) {
        IC_TRY(score_some(e, rows));
        if (e->scored == e->x.count)
            IC_TRY(choose(e));
        return 1;
    }
    if (!e->x.count)
        return 0;
    if (!e->engine)
        IC_TRY(begin_restoring(e, rows));
    IC_TRY(ic_engine_step(e->engine));
    if (ic_engine_load(e->engine))
        return 1;
    for (size_t i = 0; i < e->x.count; i++)
        IC_TRY(e->work[i].rc < 0 ? e->work[i].rc : e->work[i].job.rc);
done:
    return rc;
}

void ic_expanding_take(ic_expansion *out, ic_expanding *e)
{
    for (size_t i = 0; e->work && i < e->x.count; i++)
        ic_prompt_free(&e->work[i].prompt);
    ic_free(e->work);
    e->work = NULL;
    *out = e->x;
    e->x = (ic_expansion){0};
}

/* ---- at once ---------------------------------------------------------------------------------- */

/* Frees `e`. */
static int all_steps(ic_expansion *out, ic_expanding *e)
{
    int rc;
    do
        rc = ic_expanding_step(e, IC_READ_CHUNK);
    while (rc > 0);
    if (rc == ICAE_OK)
        ic_expanding_take(out, e);
    ic_expanding_free(e);
    return rc;
}

int ic_expand_last(ic_expansion *out, icae_session *s, const icae_part *parts, size_t count,
                   int most)
{
    ic_expanding *e = NULL;
    *out = (ic_expansion){0};
    int rc = expanding_last(&e, s, parts, count, most);
    return rc < 0 ? rc : all_steps(out, e);
}

int ic_expand_for(ic_expansion *out, icae_session *s, const icae_part *parts, size_t count,
                  const ic_ids *left, const ic_ids *question, int most)
{
    ic_expanding *e = NULL;
    *out = (ic_expansion){0};
    int rc = ic_expanding_for(&e, s, parts, count, left, question, most);
    return rc < 0 ? rc : all_steps(out, e);
}

/* ---- reading ---------------------------------------------------------------------------------- */

int ic_prompt_run(ic_prompt *p, const icae_slots *slots, uint32_t first, const ic_expansion *x,
                  uint32_t *end)
{
    const ic_ids *text = ic_expansion_at(x, slots, first);
    *end = first + 1;
    if (text)
        return ic_prompt_ids(p, text->ids, text->count);
    while (*end < slots->segments && !ic_expansion_at(x, slots, *end))
        ++*end;
    return ic_prompt_slots(p, slots, first, *end - first, NULL);
}
