/*
 * restore.c - compresses many texts and restores them greedily, together.
 *
 * A text longer than the span is restored span by span, as icae_restore does; each span is a sequence
 * of its own. What is finished leaves and the next text enters between steps.
 *
 * The text is known, so most of what the decoder will say is known as well. One pass over the right
 * tokens gives the loss and what the decoder would say behind each of them: up to the first error that
 * is the restoration. From there on every step reads the last token and a guess of what follows, and
 * keeps of the guess what the decoder would have said itself. The result is that of greedy decoding,
 * token by token; only the number of steps is another (Leviathan et al. 2023, arXiv 2211.17192, with
 * the text as the draft).
 */
#include "eval/eval.h"

#include "core/fidelity.h"

#include <stdlib.h>
#include <string.h>

enum {
    ROWS = IC_READ_CHUNK, /* that a step reads, if there are so many */
    MOST_GUESSED = 32,
    FIRST_GUESSED = 8,
    WINDOW = 24, /* tokens that a guess may be off */
};

typedef struct text text;

/* One span of one text. */
typedef struct part {
    text *of;
    /* slots, [AE]; behind them in the first pass the right tokens, then what is restored and, while it
     * is read, the guess */
    ic_prompt prompt;
    ic_kv *kv; /* of the prompt's first rows */
    const int32_t *known;
    ic_score *scores; /* of known, behind the right tokens */
    int count;        /* of known */
    int start;        /* row of [AE], which predicts known[0] */
    bool first_pass;
    ic_ids out;
    int at;      /* known[at] is the guess of the next token */
    int guessed; /* tokens guessed at a time */
    bool done;
    struct part *next;
} part;

struct text {
    ic_restoration r;
    icae_slots *slots;
    ic_score *scores; /* [r.count] */
    part *part;
    size_t parts, left;
    text *after; /* among all that are at work */
};

typedef struct work {
    const ic_restore_plan *plan;
    icae_session *session;
    text *all;
    part *first, **last; /* queue of parts that are not at work yet */
    int waiting;
    part *active[IC_SEQUENCES];
    int count, most;
    int unread;     /* rows that first passes have still to read */
    double seconds; /* spent on losses and restoring */
} work;

static void text_free(text *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->parts; i++) {
        ic_prompt_free(&t->part[i].prompt);
        ic_kv_free(t->part[i].kv);
        ic_ids_free(&t->part[i].out);
    }
    ic_free(t->part);
    ic_free(t->scores);
    icae_slots_free(t->slots);
    ic_ids_free(&t->r.restored);
    ic_free(t);
}

/* ---- one token -------------------------------------------------------------------------------- */

/* What the decoder says next; the token becomes a row of the prompt. */
static int say(part *p, const icae_session *s, int32_t id)
{
    int rc = ICAE_OK;
    const ic_config *c = &s->model->config;
    for (int i = 0; i < c->eos_count; i++)
        if (id == c->eos[i]) {
            p->done = true;
            return ICAE_OK;
        }
    IC_TRY(ic_prompt_ids(&p->prompt, &id, 1));
    IC_TRY(ic_ids_add(&p->out, id));
    p->done = (int)p->out.count >= p->count || p->prompt.next >= c->max_positions;
done:
    return rc;
}

/* Rows behind the first `rows` were a guess and go. */
static void cut(part *p, int rows)
{
    p->prompt.next -= p->prompt.rows - rows;
    p->prompt.rows = rows;
    p->kv->rows = rows;
}

/* Where the text goes on: behind the place, not far from here, that ends most like what was restored. */
static void find_place(part *p)
{
    enum { ALIKE = 4 };
    int best = p->at + 1, most = 0, made = (int)p->out.count;
    for (int d = 0; d < 2 * WINDOW; d++) { /* the nearest first */
        int at = p->at + 1 + (d % 2 ? -(d + 1) / 2 : d / 2), n = 0;
        while (n < ALIKE && n < made && at - 1 - n >= 0 && at <= p->count &&
               p->known[at - 1 - n] == p->out.ids[made - 1 - n])
            n++;
        if (n > most) {
            most = n;
            best = at;
        }
    }
    p->at = IC_MIN(best, p->count);
}

/* ---- a text comes and goes -------------------------------------------------------------------- */

static int make_part(part *p, text *t, const icae_session *s, const ic_span *span)
{
    int rc = ICAE_OK;
    *p = (part){.of = t,
                .known = t->r.ids + span->first_token,
                .scores = t->scores + span->first_token,
                .count = (int)span->tokens,
                .first_pass = true};
    IC_TRY(ic_span_prompt(&p->prompt, s, t->slots, span));
    IC_TRY(ic_prompt_fits(&p->prompt, span->tokens, "restoring"));
    p->start = p->prompt.rows - 1;
    IC_TRY(ic_prompt_ids(&p->prompt, p->known, (size_t)p->count - 1));
done:
    return rc;
}

static int make_parts(text *t, icae_session *s, int refine)
{
    int rc = ICAE_OK;
    ic_restoration *r = &t->r;
    ic_ids ids = {(int32_t *)(uintptr_t)r->ids, (size_t)r->count, (size_t)r->count};
    ic_span span;
    size_t parts = 0;
    IC_TRY(ic_compress_ids(&t->slots, s, &ids,
                           &(icae_compress_options){.rate = r->rate, .refine = refine}));
    r->slots = t->slots->count;
    for (uint32_t at = 0; ic_span_at(&span, t->slots, at); at += span.segments)
        parts++;
    t->part = ic_alloc(parts, sizeof *t->part);
    t->scores = ic_alloc((size_t)IC_MAX(r->count, 1), sizeof *t->scores);
    if (!t->part || !t->scores) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (uint32_t at = 0; ic_span_at(&span, t->slots, at); at += span.segments)
        IC_TRY(make_part(&t->part[t->parts++], t, s, &span));
done:
    return rc;
}

/* Compresses a text and queues its parts. */
static int start(work *w, text *t)
{
    int rc = make_parts(t, w->session, w->plan->refine);
    if (rc == ICAE_ELIMIT) { /* the model cannot hold it: told, not measured */
        t->r.skipped = icae_error_message();
        return ICAE_OK;
    }
    for (size_t i = 0; i < t->parts && rc == ICAE_OK; i++) {
        part *p = &t->part[i];
        *w->last = p;
        w->last = &p->next;
        w->waiting++;
        w->unread += p->prompt.rows;
        t->left++;
    }
    return rc;
}

/* Hands out a text that is done. */
static int deliver(work *w, text *t)
{
    int rc = ICAE_OK;
    ic_restoration *r = &t->r;
    for (size_t i = 0; i < t->parts && !r->skipped; i++)
        IC_TRY(ic_ids_append(&r->restored, t->part[i].out.ids, t->part[i].out.count));
    if (!r->skipped)
        ic_fidelity_add(&r->fidelity, t->scores, r->ids, (uint64_t)r->count);
    IC_TRY(w->plan->done(w->plan->user, r));
done:
    for (text **at = &w->all; *at; at = &(*at)->after)
        if (*at == t) {
            *at = t->after;
            break;
        }
    text_free(t);
    return rc;
}

/* ---- the first pass --------------------------------------------------------------------------- */

/* The next rows of the right tokens, at most so many. */
static int read_right(ic_read *out, part *p, const icae_session *s, int most)
{
    int rc = ICAE_OK;
    if (!p->kv)
        IC_TRY(ic_kv_new(&p->kv, &s->model->config, s->act, p->prompt.rows + 1));
    int first = p->kv->rows, count = IC_MIN(most, p->prompt.rows - first);
    int from = IC_MAX(first, p->start);
    *out = (ic_read){.prompt = &p->prompt, .first = first, .count = count, .kv = p->kv};
    if (first + count > from) {
        out->scored = first + count - from;
        out->targets = p->known + (from - p->start);
        out->scores = p->scores + (from - p->start);
    }
done:
    return rc;
}

/* Takes over what the decoder would have said up to its first error. */
static int keep_prefix(part *p, const icae_session *s)
{
    int rc = ICAE_OK, right = 0;
    while (right < p->count && p->scores[right].best == p->known[right])
        right++;
    int32_t next = right < p->count ? p->scores[right].best : 0;
    cut(p, p->start + 1);
    p->kv->rows = p->start + 1 + IC_MIN(right, p->count - 1); /* these stay read */
    for (int i = 0; i < right && !p->done; i++)
        IC_TRY(say(p, s, p->known[i]));
    p->first_pass = false;
    p->at = right;
    p->guessed = FIRST_GUESSED;
    if (!p->done) {
        IC_TRY(say(p, s, next));
        find_place(p);
    }
done:
    return rc;
}

/* ---- behind the first error ------------------------------------------------------------------- */

/* The last token and the guess behind it. targets, scores: [1 + MOST_GUESSED]. */
static int read_guess(ic_read *out, part *p, int32_t *targets, ic_score *scores)
{
    int n = IC_MIN(p->guessed, p->count - (int)p->out.count - 1), first = p->kv->rows;
    n = IC_MAX(IC_MIN(n, p->count - p->at), 0);
    memset(targets, 0, (1 + MOST_GUESSED) * sizeof *targets);
    memcpy(targets, p->known + p->at, (size_t)n * sizeof *targets);
    int rc = ic_prompt_ids(&p->prompt, targets, (size_t)n);
    *out = (ic_read){.prompt = &p->prompt,
                     .first = first,
                     .count = p->prompt.rows - first,
                     .kv = p->kv,
                     .targets = targets,
                     .scored = n + 1,
                     .scores = scores};
    return rc;
}

/* Keeps the guess as far as the decoder says the same, and what it says then. */
static int keep_right(part *p, const icae_session *s, const ic_read *read)
{
    int rc = ICAE_OK, guessed = read->scored - 1, right = 0;
    cut(p, read->first + read->count - guessed);
    while (right < guessed && read->scores[right].best == read->targets[right] && !p->done)
        IC_TRY(say(p, s, read->targets[right++]));
    p->kv->rows = p->prompt.rows; /* all that stays was read */
    p->at += right;
    p->guessed =
        right == guessed ? IC_MIN(IC_MAX(2 * guessed, 1), (int)MOST_GUESSED) : IC_MAX(right, 1);
    if (p->done)
        return ICAE_OK;
    int32_t next = read->scores[right].best;
    bool expected = p->at < p->count && p->known[p->at] == next;
    IC_TRY(say(p, s, next));
    if (expected)
        p->at++;
    else
        find_place(p);
done:
    return rc;
}

/* ---- all together ----------------------------------------------------------------------------- */

static void admit(work *w)
{
    while (w->first && w->count < w->most) {
        w->active[w->count++] = w->first;
        if (!(w->first = w->first->next))
            w->last = &w->first;
        w->waiting--;
    }
}

/* What is done leaves. */
static int sweep(work *w)
{
    int rc = ICAE_OK, n = 0;
    for (int i = 0; i < w->count; i++) {
        part *p = w->active[i];
        if (!p->done)
            w->active[n++] = p;
        else if (--p->of->left == 0)
            IC_TRY(deliver(w, p->of));
    }
    w->count = n;
done:
    return rc;
}

/* Reads the guesses of all that decode, and right tokens of others as long as there is room. */
static int step(work *w)
{
    int rc = ICAE_OK, n = 0, left = ROWS;
    ic_read reads[IC_SEQUENCES];
    part *reader[IC_SEQUENCES];
    int32_t targets[IC_SEQUENCES][1 + MOST_GUESSED];
    ic_score scores[IC_SEQUENCES][1 + MOST_GUESSED];
    double begin = ic_seconds();
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < w->count; i++) {
            part *p = w->active[i];
            if (p->first_pass != (pass == 1) || (pass && left <= 0))
                continue;
            IC_TRY(pass ? read_right(&reads[n], p, w->session, left)
                        : read_guess(&reads[n], p, targets[n], scores[n]));
            left -= reads[n].count;
            w->unread -= pass ? reads[n].count : 0;
            reader[n++] = p;
        }
    IC_TRY(ic_read_rows(w->session, reads, n));
    for (int i = 0; i < n; i++) {
        part *p = reader[i];
        if (!p->first_pass)
            IC_TRY(keep_right(p, w->session, &reads[i]));
        else if (p->kv->rows == p->prompt.rows)
            IC_TRY(keep_prefix(p, w->session));
    }
    w->seconds += ic_seconds() - begin;
    IC_TRY(sweep(w));
done:
    return rc;
}

int ic_restore_on(icae_session *s, ic_restore_plan *plan, int sequences)
{
    int rc = ICAE_OK;
    bool more = true;
    work w = {.plan = plan, .session = s, .most = IC_MIN(IC_MAX(sequences, 1), (int)IC_SEQUENCES)};
    w.last = &w.first;
    if (!s->adapter)
        return ic_fail(ICAE_EINVAL, "restoring needs an adapter");
    while (more || w.count + w.waiting) {
        while (more && w.count + w.waiting < w.most && w.unread < ROWS) {
            text *t = ic_alloc(1, sizeof *t);
            if (!t) {
                rc = ICAE_ENOMEM;
                goto done;
            }
            t->after = w.all;
            w.all = t;
            if (!(more = plan->next(plan->user, &t->r))) {
                w.all = t->after;
                text_free(t);
                break;
            }
            IC_TRY(start(&w, t));
            if (!t->left)
                IC_TRY(deliver(&w, t));
        }
        admit(&w);
        if (w.count)
            IC_TRY(step(&w));
    }
    plan->seconds = w.seconds;
done:
    while (w.all) {
        text *t = w.all;
        w.all = t->after;
        text_free(t);
    }
    return rc;
}
