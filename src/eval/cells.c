/*
 * cells.c - one entry of a table of restorations: a system, a rate, a length and a kind of text. Makes the
 * records that are missing and gathers their figures.
 *
 * Exact match is the paper's (ICAE §4.2.1): tokens before the first error, as a share of all.
 */
#include "eval/eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void ic_key_autoencoding(char key[256], const ic_system *s, const char *set, int length, float rate,
                         size_t i)
{
    (void)ic_eval_key(key, "ae|%s|%s|%d|%g|%zu", s->name, set ? set : "", length, (double)rate, i);
}

/* ---- records ---------------------------------------------------------------------------------- */

/* The samples of a cell on their way. */
typedef struct batch {
    ic_eval *e;
    ic_cell *c;
    ic_piece *piece;
    size_t count, at, done;
    int32_t **ids; /* [count] what is restored */
} batch;

static void batch_free(batch *b)
{
    for (size_t i = 0; i < b->count && b->ids; i++)
        ic_free(b->ids[i]);
    ic_free(b->ids);
    ic_free(b->piece);
}

/* Text as it is, each id plus one (the paper's patterned random text), or ids drawn at random. */
static int32_t kind_of_id(const batch *b, size_t i, int t)
{
    const icae_model *m = b->c->s->model;
    const char *set = b->c->set;
    int32_t vocabulary = m->config.vocabulary, id = b->piece[i].ids[t];
    if (set && !strcmp(set, "=patterned")) {
        id = (id + 1) % vocabulary;
    } else if (set && !strcmp(set, "=random")) {
        uint64_t draw = (uint64_t)i * 1000003u + (uint64_t)t;
        id = (int32_t)(ic_random_unit(b->e->seed + 1, IC_STREAM_DATA, draw) * vocabulary);
    }
    for (int32_t n = 0; n < vocabulary && ic_tokenizer_is_special(m->tokenizer, id); n++)
        id = (id + 1) % vocabulary;
    return id;
}

static int batch_new(batch *b)
{
    int rc = ICAE_OK;
    const ic_cell *c = b->c;
    bool made = c->set && c->set[0] == '=';
    bool bos = c->s->adapter->bos && c->s->model->config.bos >= 0;
    int text = c->length - bos;
    IC_TRY(ic_eval_pieces(&b->piece, &b->count, b->e, c->s, made ? NULL : c->set, text, c->wanted));
    if (!(b->ids = ic_alloc(IC_MAX(b->count, (size_t)1), sizeof *b->ids))) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (size_t i = 0; i < b->count; i++) {
        if (!(b->ids[i] = ic_alloc((size_t)c->length, sizeof **b->ids))) {
            rc = ICAE_ENOMEM;
            goto done;
        }
        if (bos)
            b->ids[i][0] = c->s->model->config.bos;
        for (int t = 0; t < text; t++)
            b->ids[i][bos + t] = kind_of_id(b, i, t);
    }
done:
    return rc;
}

static bool next(void *user, ic_restoration *r)
{
    batch *b = user;
    const ic_cell *c = b->c;
    char key[256];
    for (; b->at < b->count; b->at++) {
        ic_key_autoencoding(key, c->s, c->set, c->length, c->rate, b->at);
        if (!ic_journal_get(b->e->journal, key))
            break;
        b->done++;
    }
    if (b->at >= b->count)
        return false;
    r->ids = b->ids[b->at];
    r->count = c->length;
    r->rate = c->rate;
    r->tag = b->at++;
    return true;
}

/* Tokens right from the start on. */
static int prefix(const ic_restoration *r)
{
    int n = 0;
    while (n < r->count && (size_t)n < r->restored.count && r->restored.ids[n] == r->ids[n])
        n++;
    return n;
}

static int add_figures(ic_report *w, const ic_system *s, const ic_restoration *r)
{
    int rc = ICAE_OK;
    ic_buffer reference = {0}, restored = {0};
    ic_bleu bleu = {0};
    IC_TRY(ic_eval_decode(&reference, s, r->ids, (size_t)r->count));
    IC_TRY(ic_eval_decode(&restored, s, r->restored.ids, r->restored.count));
    IC_TRY(ic_bleu_add(&bleu, restored.data, restored.size, reference.data, reference.size));
    ic_report_number(w, "bleu", ic_bleu_score(&bleu, true));
    ic_report_number(w, "prefix", prefix(r) / (double)r->count);
    ic_report_number(w, "loss", r->fidelity.loss);
    ic_report_number(w, "accuracy", r->fidelity.accuracy);
    ic_report_number(w, "slots", (double)r->slots);
    ic_report_number(w, "made", (double)r->restored.count);
    ic_report_bytes(w, "reference", reference.data, reference.size);
    ic_report_bytes(w, "restored", restored.data, restored.size);
done:
    ic_buffer_free(&reference);
    ic_buffer_free(&restored);
    return rc;
}

static int done(void *user, const ic_restoration *r)
{
    int rc = ICAE_OK;
    batch *b = user;
    const ic_cell *c = b->c;
    char key[256], progress[96];
    ic_report w = {0};
    ic_report_open(&w, NULL, '{');
    if (r->skipped)
        ic_report_text(&w, "skipped", r->skipped);
    else
        IC_TRY(add_figures(&w, c->s, r));
    ic_report_close(&w, '}');
    IC_TRY(w.rc);
    ic_key_autoencoding(key, c->s, c->set, c->length, c->rate, (size_t)r->tag);
    IC_TRY(ic_journal_put(b->e->journal, key, &w.json));
    snprintf(progress, sizeof progress, "samples of %d tokens", c->length);
    IC_TRY(ic_eval_progress(b->e, progress, ++b->done, b->count));
done:
    ic_buffer_free(&w.json);
    return rc;
}

/* ---- figures ---------------------------------------------------------------------------------- */

static int gather(ic_eval *e, ic_cell *c)
{
    int rc = ICAE_OK;
    char key[256];
    for (size_t i = 0; i < c->pieces; i++) {
        ic_key_autoencoding(key, c->s, c->set, c->length, c->rate, i);
        const ic_json *r = ic_journal_get(e->journal, key);
        const char *restored = ic_record_text(r, "restored"),
                   *reference = ic_record_text(r, "reference");
        if (*ic_record_text(r, "skipped")) {
            c->why = ic_record_text(r, "skipped");
            continue;
        }
        IC_TRY(ic_stats_add(&c->bleu, ic_record_number(r, "bleu")));
        IC_TRY(ic_stats_add(&c->prefix, ic_record_number(r, "prefix")));
        IC_TRY(ic_stats_add(&c->loss, ic_record_number(r, "loss")));
        IC_TRY(ic_stats_add(&c->accuracy, ic_record_number(r, "accuracy")));
        IC_TRY(ic_bleu_add(&c->corpus, restored, strlen(restored), reference, strlen(reference)));
        c->slots = ic_record_number(r, "slots");
        c->count++;
    }
done:
    return rc;
}

int ic_cell_measure(ic_eval *e, ic_cell *c)
{
    int rc = ICAE_OK;
    batch b = {.e = e, .c = c};
    c->why = "there is no more text of that length";
    c->slots = (double)NAN;
    IC_TRY(batch_new(&b));
    IC_TRY(ic_restore_all(
        c->s, &(ic_restore_plan){.next = next, .done = done, .user = &b, .refine = c->s->refine}));
    c->pieces = b.count;
    IC_TRY(gather(e, c));
done:
    batch_free(&b);
    return rc;
}

const ic_json *ic_cell_record(const ic_eval *e, const ic_cell *c, size_t i)
{
    char key[256];
    ic_key_autoencoding(key, c->s, c->set, c->length, c->rate, i);
    const ic_json *r = ic_journal_get(e->journal, key);
    return *ic_record_text(r, "skipped") ? NULL : r;
}

double ic_cell_corpus_bleu(const ic_cell *c)
{
    return c->count ? ic_bleu_score(&c->corpus, false) : (double)NAN;
}

void ic_cell_shortfall(ic_eval *e, const ic_cell *c)
{
    char what[192];
    snprintf(what, sizeof what, "%s%s%s, %d tokens", c->name, c->set ? ", " : "",
             c->set ? c->set + (c->set[0] == '=') : "", c->length);
    ic_eval_shortfall(e, what, c->count, c->wanted, c->why);
}

void ic_cell_free(ic_cell *c)
{
    ic_stats_free(&c->bleu);
    ic_stats_free(&c->prefix);
    ic_stats_free(&c->loss);
    ic_stats_free(&c->accuracy);
}
