/*
 * engine.c - continuous batched decoding; see engine.h.
 *
 * Owns the places where sequences run, their logits and lent caches. A sequence has unread rows (its
 * prompt, later its last token); when a step has read them all, the next token is sampled.
 */
#include "core/engine.h"

#include <string.h>

/* A running sequence. */
typedef struct place {
    ic_job *job;      /* NULL: free */
    ic_kv *kv, *lent; /* lent: kept between jobs */
    int read;         /* rows of the prompt that are in the cache */
    size_t correction;
    uint64_t made; /* tokens generated */
    double start;
    float *logits; /* [V] */
} place;

struct ic_engine {
    icae_session *session;
    int places, rows, running, waiting;
    place *place;
    ic_read *reads;
    int *reader;          /* place of each read */
    ic_job *first, *last; /* queue */
    float *logits;        /* [places][V] and 2 V of scratch */
};

int ic_engine_new(ic_engine **out, icae_session *s, const ic_engine_options *options)
{
    int rc = ICAE_OK;
    size_t vocabulary = (size_t)s->model->config.vocabulary;
    ic_engine *e = ic_alloc(1, sizeof *e);
    if (!e)
        return ICAE_ENOMEM;
    e->session = s;
    e->places = options && options->sequences > 0 ? options->sequences : 32;
    e->rows = options && options->rows > 0 ? options->rows : IC_READ_CHUNK;
    size_t n = (size_t)e->places;
    e->place = ic_alloc(n, sizeof *e->place);
    e->reads = ic_alloc(n, sizeof *e->reads);
    e->reader = ic_alloc(n, sizeof *e->reader);
    e->logits = ic_alloc((n + 2) * vocabulary, sizeof *e->logits);
    if (!e->place || !e->reads || !e->reader || !e->logits) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (size_t i = 0; i < n; i++)
        e->place[i].logits = e->logits + (i + 2) * vocabulary;
    *out = e;
    e = NULL;
done:
    ic_engine_free(e);
    return rc;
}

void ic_engine_free(ic_engine *e)
{
    if (!e)
        return;
    for (int i = 0; i < e->places && e->place; i++)
        ic_kv_free(e->place[i].lent);
    ic_free(e->place);
    ic_free(e->reads);
    ic_free(e->reader);
    ic_free(e->logits);
    ic_free(e);
}

int ic_engine_load(const ic_engine *e)
{
    return e->running + e->waiting;
}

void ic_engine_add(ic_engine *e, ic_job *job)
{
    job->next = NULL;
    job->rc = ICAE_OK;
    if (e->last)
        e->last->next = job;
    else
        e->first = job;
    e->last = job;
    e->waiting++;
}

/* ---- joining and leaving ---------------------------------------------------------------------- */

static void finish(ic_engine *e, place *p, int rc)
{
    ic_job *job = p->job;
    ic_generation *g = job->generation;
    g->result.seconds = ic_seconds() - p->start;
    p->job = NULL;
    e->running--;
    job->rc = rc;
    if (job->finished)
        job->finished(job);
}

/* Room for the prompt and a first stretch of the reply, so that the cache grows rarely. */
static int make_room(const ic_engine *e, place *p)
{
    const ic_job *job = p->job;
    const ic_generation *g = job->generation;
    ic_kv **kv = job->kv ? job->kv : &p->lent;
    uint64_t more = g->expected ? g->expected : g->sampling.max_tokens;
    if (!more || more > 256)
        more = 256;
    int rows = job->prompt->rows - job->first + (int)more;
    if (*kv && !job->kv)
        (*kv)->rows = 0;
    int rc = *kv ? ic_kv_grow(*kv, (*kv)->rows + rows)
                 : ic_kv_new(kv, &e->session->model->config, e->session->act, rows);
    p->kv = *kv;
    return rc;
}

static void join(ic_engine *e, place *p, ic_job *job)
{
    ic_generation *g = job->generation;
    *p = (place){.job = job,
                 .lent = p->lent,
                 .logits = p->logits,
                 .read = job->first,
                 .start = ic_seconds()};
    g->result = (icae_result){.prompt_rows = (uint64_t)(job->prompt->rows - job->first),
                              .prompt_slots = (uint64_t)job->prompt->slots};
    e->running++;
    int rc = make_room(e, p);
    if (rc == ICAE_OK && job->prompt->rows <= job->first)
        rc = ic_fail(ICAE_EINVAL, "there is nothing to read");
    if (rc < 0)
        finish(e, p, rc);
}

static void admit(ic_engine *e)
{
    for (int i = 0; i < e->places && e->first; i++) {
        while (!e->place[i].job && e->first) {
            ic_job *job = e->first;
            e->first = job->next;
            if (!e->first)
                e->last = NULL;
            e->waiting--;
            join(e, &e->place[i], job);
        }
    }
}

void ic_engine_cancel(ic_engine *e, ic_job *job)
{
    int rc = ic_fail(ICAE_ECANCELLED, "the generation was cancelled");
    for (int i = 0; i < e->places; i++)
        if (e->place[i].job == job) {
            finish(e, &e->place[i], rc);
            return;
        }
    for (ic_job **at = &e->first, *before = NULL; *at; before = *at, at = &(*at)->next)
        if (*at == job) {
            *at = job->next;
            if (e->last == job)
                e->last = before;
            e->waiting--;
            job->rc = rc;
            if (job->finished)
                job->finished(job);
            return;
        }
}

/* ---- a step ----------------------------------------------------------------------------------- */

static bool is_end(const icae_session *s, const ic_generation *g, int32_t id)
{
    const ic_config *c = &s->model->config;
    if (g->through_eos)
        return false;
    for (int i = 0; i < c->eos_count; i++)
        if (id == c->eos[i])
            return true;
    return id == g->end_of_turn;
}

/* Chooses what a sequence whose rows are all read says next. 1: it goes on. */
static int advance(ic_engine *e, place *p)
{
    int rc = ICAE_OK, vocabulary = e->session->model->config.vocabulary;
    ic_job *job = p->job;
    ic_generation *g = job->generation;
    if (!p->made) {
        g->result.prompt_seconds = ic_seconds() - p->start;
        if (job->read)
            job->read(job, p->kv);
    }
    bool forced =
        p->correction < g->correction_count && g->corrections[p->correction].at == p->made;
    int32_t id = forced ? g->corrections[p->correction++].id
                        : ic_sample(p->logits, vocabulary, &g->sampling, p->made, e->logits);
    if (!forced && is_end(e->session, g, id)) {
        g->result.stop = "eos";
        return 0;
    }
    IC_TRY(ic_prompt_ids(job->prompt, &id, 1));
    g->result.tokens = ++p->made;
    if (g->look)
        g->look(g->user, p->logits, id);
    if (g->take(g->user, id))
        return ic_fail(ICAE_ECANCELLED, "writing was stopped");
    g->result.stop = g->expected && p->made >= g->expected                          ? "end"
                     : g->sampling.max_tokens && p->made >= g->sampling.max_tokens  ? "length"
                     : job->prompt->next >= e->session->model->config.max_positions ? "limit"
                                                                                    : NULL;
    return g->result.stop ? 0 : 1;
done:
    return rc;
}

/* What this step reads: a row of all that decode, and of prompts as much as there is room for. */
static int choose_reads(ic_engine *e)
{
    int n = 0, left = e->rows;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < e->places; i++) {
            place *p = &e->place[i];
            if (!p->job || (p->made > 0) != (pass == 0))
                continue;
            int unread = p->job->prompt->rows - p->read;
            int count = pass ? IC_MIN(unread, left) : unread;
            if (count <= 0)
                continue;
            left -= pass ? count : 0;
            e->reader[n] = i;
            e->reads[n++] = (ic_read){.prompt = p->job->prompt,
                                      .first = p->read,
                                      .count = count,
                                      .kv = p->kv,
                                      .logits = count == unread ? p->logits : NULL};
        }
    return n;
}

/* Long prompts of a session with progress show it, and may be stopped. */
static int report(const ic_engine *e, const place *p)
{
    const icae_session *s = e->session;
    const ic_job *job = p->job;
    uint64_t total = job->generation->result.prompt_rows;
    if (!s->progress || p->made || total <= IC_READ_CHUNK)
        return ICAE_OK;
    if (s->progress(s->user, "rows", (uint64_t)(p->read - job->first), total))
        return ic_fail(ICAE_ECANCELLED, "reading the prompt was stopped");
    return ICAE_OK;
}

int ic_engine_step(ic_engine *e)
{
    admit(e);
    int n = choose_reads(e);
    if (!n)
        return ICAE_OK;
    int rc = ic_read_rows(e->session, e->reads, n);
    for (int i = 0; i < n; i++) {
        place *p = &e->place[e->reader[i]];
        if (!p->job) /* cancelled by another's callback */
            continue;
        int end = rc;
        if (rc == ICAE_OK) {
            p->read += e->reads[i].count;
            end = report(e, p);
        }
        if (end == ICAE_OK) /* 1: there is more to read or to say */
            end = e->reads[i].logits ? advance(e, p) : 1;
        if (end != 1)
            finish(e, p, end);
    }
    return rc;
}

int ic_engine_drain(ic_engine *e)
{
    int rc = ICAE_OK;
    while (rc == ICAE_OK && ic_engine_load(e))
        rc = ic_engine_step(e);
    return rc;
}
