/*
 * expand.c - segments that are restored from their slots and read as text again.
 *
 * From slots a decoder answers what it has learnt to look up in them; text it can simply read. So what
 * matters most is restored first ("compress, sense, and expand", REFRAG, arXiv 2509.01092): for a
 * continuation the last segments, for a question those that make it likely (ranking by query
 * likelihood, Ponte and Croft 1998, with the decoder reading one segment's slots as the model of it).
 * Nothing is needed but the slots.
 */
#include "core/engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void ic_expansion_free(ic_expansion *x)
{
    for (size_t i = 0; i < x->count; i++)
        ic_ids_free(&x->item[i].ids);
    ic_free(x->item);
    *x = (ic_expansion){0};
}

const ic_ids *ic_expansion_at(const ic_expansion *x, size_t part, uint32_t segment)
{
    for (size_t i = 0; x && i < x->count; i++)
        if (x->item[i].part == part && x->item[i].segment == segment)
            return &x->item[i].ids;
    return NULL;
}

/* All segments of the parts, in order. */
static int all_segments(ic_expansion *out, const icae_session *s, const icae_part *parts,
                        size_t count)
{
    int rc = ICAE_OK;
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        if (!parts[i].slots)
            continue;
        IC_TRY(icae_slots_check(parts[i].slots, s));
        n += parts[i].slots->segments;
    }
    if (!(out->item = ic_alloc(IC_MAX(n, 1), sizeof *out->item)))
        return ICAE_ENOMEM;
    for (size_t i = 0; i < count; i++)
        for (uint32_t j = 0; parts[i].slots && j < parts[i].slots->segments; j++)
            out->item[out->count++] = (ic_expanded){.part = i, .segment = j};
done:
    return rc;
}

/* ---- restoring -------------------------------------------------------------------------------- */

typedef struct restoring {
    const icae_session *session;
    ic_ids *ids;
    uint64_t *done, total; /* tokens of all */
    ic_prompt prompt;
    ic_generation generation;
    ic_job job;
} restoring;

static int take(void *user, int32_t id)
{
    restoring *r = user;
    const icae_session *s = r->session;
    if (ic_ids_add(r->ids, id) < 0)
        return 1;
    ++*r->done;
    return s->progress && s->progress(s->user, "tokens", *r->done, r->total);
}

static int start(restoring *r, const icae_slots *slots, uint32_t segment)
{
    int rc = ICAE_OK;
    const ic_span span = {
        .first_segment = segment, .segments = 1, .tokens = slots->segment[segment].tokens};
    IC_TRY(ic_span_prompt(&r->prompt, r->session, slots, &span));
    IC_TRY(ic_prompt_fits(&r->prompt, span.tokens, "restoring a segment"));
    r->generation = (ic_generation){
        .expected = span.tokens, .through_eos = true, .end_of_turn = -1, .take = take, .user = r};
    r->job = (ic_job){.prompt = &r->prompt, .generation = &r->generation};
done:
    return rc;
}

/* Each segment by itself, all at once: greedily, as many tokens as it had. */
static int restore(ic_expansion *x, icae_session *s, const icae_part *parts)
{
    int rc = ICAE_OK;
    ic_engine *e = NULL;
    uint64_t done = 0, total = 0;
    restoring *r = ic_alloc(IC_MAX(x->count, 1), sizeof *r);
    if (!r)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < x->count; i++)
        total += parts[x->item[i].part].slots->segment[x->item[i].segment].tokens;
    IC_TRY(ic_engine_new(&e, s, &(ic_engine_options){.sequences = (int)IC_MIN(x->count, 32)}));
    for (size_t i = 0; i < x->count; i++) {
        ic_expanded *o = &x->item[i];
        r[i] = (restoring){.session = s, .ids = &o->ids, .done = &done, .total = total};
        IC_TRY(start(&r[i], parts[o->part].slots, o->segment));
        ic_engine_add(e, &r[i].job);
    }
    IC_TRY(ic_engine_drain(e));
    for (size_t i = 0; i < x->count; i++)
        IC_TRY(r[i].job.rc);
done:
    ic_engine_free(e);
    for (size_t i = 0; i < x->count; i++)
        ic_prompt_free(&r[i].prompt);
    ic_free(r);
    return rc;
}

/* ---- the last segments ------------------------------------------------------------------------ */

int ic_expand_last(ic_expansion *out, icae_session *s, const icae_part *parts, size_t count,
                   int most)
{
    int rc = ICAE_OK;
    *out = (ic_expansion){0};
    if (!most || !count || !parts[count - 1].slots)
        return ICAE_OK;
    IC_TRY(all_segments(out, s, parts, count));
    size_t last = 0, end = out->count;
    while (last < (size_t)most && last < end && out->item[end - 1 - last].part == count - 1)
        last++;
    memmove(out->item, out->item + end - last, last * sizeof *out->item);
    out->count = last;
    IC_TRY(restore(out, s, parts));
done:
    if (rc < 0)
        ic_expansion_free(out);
    return rc;
}

/* ---- the segments that a question is about ---------------------------------------------------- */

/* The question behind the slots of one segment, as an answer would read it. */
static int question_prompt(ic_prompt *p, icae_session *s, const ic_ids *left,
                           const icae_slots *slots, uint32_t segment, const ic_ids *question)
{
    int rc = ICAE_OK;
    const int32_t ft = IC_FT;
    ic_prompt_begin(p, s);
    IC_TRY(ic_prompt_ids(p, left->ids, left->count));
    IC_TRY(ic_prompt_slots(p, slots, segment, 1, NULL));
    IC_TRY(ic_prompt_ids(p, &ft, 1));
    IC_TRY(ic_prompt_ids(p, question->ids, question->count - 1));
    IC_TRY(ic_prompt_fits(p, 1, "the question with a segment"));
done:
    return rc;
}

/* Scores of the question's tokens behind each segment: [segments, tokens]. */
static int score_question(ic_score *scores, const ic_expansion *x, icae_session *s,
                          const icae_part *parts, const ic_ids *left, const ic_ids *question)
{
    int rc = ICAE_OK;
    size_t made = 0, read = 0;
    ic_prompt *p = ic_alloc(IC_MAX(x->count, 1), sizeof *p);
    ic_read *reads = ic_alloc(IC_MAX(x->count, 1), sizeof *reads);
    if (!p || !reads) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    while (read < x->count) {
        int rows = 0, n = 0;
        for (; made < x->count && (!n || rows + p[made - 1].rows <= IC_READ_CHUNK); made++, n++) {
            const ic_expanded *o = &x->item[made];
            IC_TRY(question_prompt(&p[made], s, left, parts[o->part].slots, o->segment, question));
            reads[n] = (ic_read){.prompt = &p[made],
                                 .count = p[made].rows,
                                 .targets = question->ids,
                                 .scored = (int)question->count,
                                 .scores = scores + made * question->count};
            rows += p[made].rows;
        }
        IC_TRY(ic_read_rows(s, reads, n));
        for (; read < made; read++)
            ic_prompt_free(&p[read]);
        if (s->progress && s->progress(s->user, "segments", read, x->count)) {
            rc = ic_fail(ICAE_ECANCELLED, "choosing segments was stopped");
            goto done;
        }
    }
done:
    for (size_t i = 0; p && i < x->count; i++)
        ic_prompt_free(&p[i]);
    ic_free(p);
    ic_free(reads);
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
static void weigh(ranked *r, const ic_score *scores, size_t segments, size_t tokens)
{
    for (size_t t = 0; t < tokens; t++) {
        double mean = 0;
        for (size_t i = 0; i < segments; i++)
            mean += exp(-(double)scores[i * tokens + t].nll) / (double)segments;
        mean = -log(fmax(mean, 1e-300));
        for (size_t i = 0; i < segments; i++)
            r[i].evidence += fmax(0, mean - (double)scores[i * tokens + t].nll);
    }
}

/* Leaves the `most` best segments, in the order of the text. */
static int choose(ic_expansion *x, const ic_score *scores, size_t tokens, size_t most)
{
    ranked *r = ic_alloc(x->count, sizeof *r);
    if (!r)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < x->count; i++)
        r[i].index = i;
    weigh(r, scores, x->count, tokens);
    qsort(r, x->count, sizeof *r, by_evidence);
    qsort(r, most, sizeof *r, by_index);
    for (size_t i = 0; i < most; i++) /* ascending: no item is overwritten before it has moved */
        x->item[i] = x->item[r[i].index];
    x->count = most;
    ic_free(r);
    return ICAE_OK;
}

int ic_expand_for(ic_expansion *out, icae_session *s, const icae_part *parts, size_t count,
                  const ic_ids *left, const ic_ids *question, int most)
{
    int rc = ICAE_OK;
    ic_score *scores = NULL;
    *out = (ic_expansion){0};
    if (!most || !question->count)
        return ICAE_OK;
    IC_TRY(all_segments(out, s, parts, count));
    if (out->count > (size_t)most) {
        if (!(scores = ic_alloc(out->count * question->count, sizeof *scores))) {
            rc = ICAE_ENOMEM;
            goto done;
        }
        IC_TRY(score_question(scores, out, s, parts, left, question));
        IC_TRY(choose(out, scores, question->count, (size_t)most));
    }
    IC_TRY(restore(out, s, parts));
done:
    ic_free(scores);
    if (rc < 0)
        ic_expansion_free(out);
    return rc;
}
