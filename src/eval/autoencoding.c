/*
 * autoencoding.c - how well texts come back from their slots (ICAE §4.2.1): BLEU, exact match, loss, by
 * length, rate and kind of text; which facts survive; the best, the median and the worst restoration.
 *
 * Exact match is the paper's: tokens from the start up to the first error, as a share of all.
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

/* The samples of one length, rate and kind. */
typedef struct batch {
    ic_eval *e;
    ic_system *s;
    const char *set; /* of documents; "=patterned" and "=random" are made here */
    int length;
    float rate;
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
    int32_t vocabulary = b->s->model->config.vocabulary;
    int32_t id = b->piece[i].ids[t];
    const ic_tokenizer *tokenizer = b->s->model->tokenizer;
    if (b->set && !strcmp(b->set, "=patterned")) {
        id = (id + 1) % vocabulary;
    } else if (b->set && !strcmp(b->set, "=random")) {
        uint64_t draw = (uint64_t)i * 1000003u + (uint64_t)t;
        id = (int32_t)(ic_random_unit(b->e->seed + 1, IC_STREAM_DATA, draw) * vocabulary);
    }
    for (int32_t n = 0; n < vocabulary && ic_tokenizer_is_special(tokenizer, id); n++)
        id = (id + 1) % vocabulary;
    return id;
}

static int batch_new(batch *b, uint64_t wanted)
{
    int rc = ICAE_OK;
    bool made = b->set && b->set[0] == '=';
    bool bos = b->s->adapter->bos && b->s->model->config.bos >= 0;
    int text = b->length - bos;
    IC_TRY(ic_eval_pieces(&b->piece, &b->count, b->e, b->s, made ? NULL : b->set, text, wanted));
    if (!(b->ids = ic_alloc(IC_MAX(b->count, (size_t)1), sizeof *b->ids))) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (size_t i = 0; i < b->count; i++) {
        if (!(b->ids[i] = ic_alloc((size_t)b->length, sizeof **b->ids))) {
            rc = ICAE_ENOMEM;
            goto done;
        }
        if (bos)
            b->ids[i][0] = b->s->model->config.bos;
        for (int t = 0; t < text; t++)
            b->ids[i][bos + t] = kind_of_id(b, i, t);
    }
done:
    return rc;
}

static bool next(void *user, ic_restoration *r)
{
    batch *b = user;
    char key[256];
    for (; b->at < b->count; b->at++) {
        ic_key_autoencoding(key, b->s, b->set, b->length, b->rate, b->at);
        if (!ic_journal_get(b->e->journal, key))
            break;
        b->done++;
    }
    if (b->at >= b->count)
        return false;
    r->ids = b->ids[b->at];
    r->count = b->length;
    r->rate = b->rate;
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

static int done(void *user, const ic_restoration *r)
{
    int rc = ICAE_OK;
    batch *b = user;
    char key[256], progress[96];
    ic_buffer reference = {0}, restored = {0};
    ic_report w = {0};
    ic_bleu bleu = {0};
    IC_TRY(ic_eval_decode(&reference, b->s, r->ids, (size_t)r->count));
    IC_TRY(ic_eval_decode(&restored, b->s, r->restored.ids, r->restored.count));
    IC_TRY(ic_bleu_add(&bleu, restored.data, restored.size, reference.data, reference.size));
    ic_report_open(&w, NULL, '{');
    ic_report_number(&w, "bleu", ic_bleu_score(&bleu, true));
    ic_report_number(&w, "prefix", prefix(r) / (double)r->count);
    ic_report_number(&w, "loss", r->fidelity.loss);
    ic_report_number(&w, "accuracy", r->fidelity.accuracy);
    ic_report_number(&w, "slots", (double)r->slots);
    ic_report_number(&w, "made", (double)r->restored.count);
    ic_report_bytes(&w, "reference", reference.data, reference.size);
    ic_report_bytes(&w, "restored", restored.data, restored.size);
    ic_report_close(&w, '}');
    IC_TRY(w.rc);
    ic_key_autoencoding(key, b->s, b->set, b->length, b->rate, (size_t)r->tag);
    IC_TRY(ic_journal_put(b->e->journal, key, &w.json));
    snprintf(progress, sizeof progress, "samples of %d tokens", b->length);
    IC_TRY(ic_eval_progress(b->e, progress, ++b->done, b->count));
done:
    ic_buffer_free(&reference);
    ic_buffer_free(&restored);
    ic_buffer_free(&w.json);
    return rc;
}

/* Makes the records that are missing; *count: samples there are. */
static int measure(size_t *count, ic_eval *e, ic_system *s, const char *set, int length, float rate,
                   uint64_t wanted)
{
    int rc = ICAE_OK;
    batch b = {.e = e, .s = s, .set = set, .length = length, .rate = rate};
    IC_TRY(batch_new(&b, wanted));
    IC_TRY(ic_restore_all(s, &(ic_restore_plan){.next = next, .done = done, .user = &b}));
    *count = b.count;
done:
    batch_free(&b);
    return rc;
}

/* ---- figures ---------------------------------------------------------------------------------- */

typedef struct figures {
    ic_stats bleu, prefix, loss, accuracy;
    ic_bleu corpus;
    double slots;
    size_t count;
} figures;

static void figures_free(figures *f)
{
    ic_stats_free(&f->bleu);
    ic_stats_free(&f->prefix);
    ic_stats_free(&f->loss);
    ic_stats_free(&f->accuracy);
}

static int gather(figures *f, ic_eval *e, const ic_system *s, const char *set, int length,
                  float rate, size_t count)
{
    int rc = ICAE_OK;
    char key[256];
    for (size_t i = 0; i < count; i++) {
        ic_key_autoencoding(key, s, set, length, rate, i);
        const ic_json *r = ic_journal_get(e->journal, key);
        const char *restored = ic_record_text(r, "restored"),
                   *reference = ic_record_text(r, "reference");
        IC_TRY(ic_stats_add(&f->bleu, ic_record_number(r, "bleu")));
        IC_TRY(ic_stats_add(&f->prefix, ic_record_number(r, "prefix")));
        IC_TRY(ic_stats_add(&f->loss, ic_record_number(r, "loss")));
        IC_TRY(ic_stats_add(&f->accuracy, ic_record_number(r, "accuracy")));
        IC_TRY(ic_bleu_add(&f->corpus, restored, strlen(restored), reference, strlen(reference)));
        f->slots = ic_record_number(r, "slots");
        f->count++;
    }
done:
    return rc;
}

static const char columns[] = "System|Tokens:0|Slots:0|Rate:1|Samples:0|BLEU corpus:4|BLEU "
                              "mean:4|BLEU median:4|BLEU lower quartile:4|"
                              "Exact match mean:4|Exact match median:4|Loss mean:4|Tokens right:4";

static void row(ic_report *r, const char *system, int length, figures *f)
{
    ic_report_row(r, "sinninnnnnnnn", system, (uint64_t)length, f->slots, length / f->slots,
                  (uint64_t)f->count, ic_bleu_score(&f->corpus, false), ic_stats_mean(&f->bleu),
                  ic_stats_quantile(&f->bleu, 0.5), ic_stats_quantile(&f->bleu, 0.25),
                  ic_stats_mean(&f->prefix), ic_stats_quantile(&f->prefix, 0.5),
                  ic_stats_mean(&f->loss), ic_stats_mean(&f->accuracy));
}

enum { MOST = 32 };

/* Everything that is measured: one entry a system, rate and length. */
typedef struct cell {
    ic_system *s;
    float rate;
    int length;
    size_t count;
    figures f;
    char name[128]; /* system, and rate if it has several */
} cell;

static void line_chart(ic_eval *e, cell *cells, size_t n, const char *title, const char *y,
                       int what)
{
    ic_report *r = &e->report;
    ic_report_chart(r, "line", title, "tokens", y);
    for (size_t i = 0; i < n; i++) {
        if (!i || strcmp(cells[i].name, cells[i - 1].name))
            ic_report_series(r, cells[i].name);
        figures *f = &cells[i].f;
        double v = what == 0   ? ic_stats_quantile(&f->bleu, 0.5)
                   : what == 1 ? ic_stats_mean(&f->prefix)
                               : ic_stats_mean(&f->loss);
        ic_report_point(r, cells[i].length, v);
        if (i + 1 == n || strcmp(cells[i].name, cells[i + 1].name))
            ic_report_series_end(r);
    }
    ic_report_chart_end(r);
}

static void box_chart(ic_eval *e, cell *cells, size_t n, const char *title, int what)
{
    ic_report *r = &e->report;
    ic_report_chart(r, "box", title, "tokens", "");
    for (size_t i = 0; i < n; i++) {
        char label[192];
        snprintf(label, sizeof label, "%s%s%d", e->systems > 1 ? cells[i].name : "",
                 e->systems > 1 ? " " : "", cells[i].length);
        ic_report_box(r, label, what ? &cells[i].f.prefix : &cells[i].f.bleu);
    }
    ic_report_chart_end(r);
}

/* ---- facts and diffs -------------------------------------------------------------------------- */

static int facts(ic_eval *e, const cell *c, size_t n)
{
    int rc = ICAE_OK;
    char key[256];
    ic_report_section(&e->report, "facts", "Exact things",
                      "Numbers, dates, names, addresses and identifiers found in the texts by "
                      "their form, and the share "
                      "that stands in the restored text just as often. What slots lose first.");
    ic_report_table(&e->report, "Facts kept",
                    "System|Tokens:0|Numbers:0|kept %:1|Dates:0|kept %:1|Names:0|kept "
                    "%:1|Addresses:0|kept %:1|Identifiers:0|kept %:1");
    ic_facts total = {0};
    for (size_t k = 0; k < n; k++) {
        ic_facts f = {0};
        for (size_t i = 0; i < c[k].count; i++) {
            ic_key_autoencoding(key, c[k].s, NULL, c[k].length, c[k].rate, i);
            const ic_json *r = ic_journal_get(e->journal, key);
            const char *a = ic_record_text(r, "reference"), *b = ic_record_text(r, "restored");
            IC_TRY(ic_facts_compare(&f, a, strlen(a), b, strlen(b)));
        }
        double kept[IC_FACT_KINDS];
        for (int i = 0; i < IC_FACT_KINDS; i++) {
            total.found[i] += f.found[i];
            total.kept[i] += f.kept[i];
            kept[i] = f.found[i] ? 100 * (double)f.kept[i] / (double)f.found[i] : (double)NAN;
        }
        ic_report_row(&e->report, "siininininin", c[k].name, (uint64_t)c[k].length, f.found[0],
                      kept[0], f.found[1], kept[1], f.found[2], kept[2], f.found[3], kept[3],
                      f.found[4], kept[4]);
    }
    ic_report_table_end(&e->report);
    ic_report_chart(&e->report, "bar", "Facts kept, all systems and lengths", "kind", "share");
    for (int i = 0; i < IC_FACT_KINDS; i++) {
        double low, high,
            share = (double)total.kept[i] / (double)IC_MAX(total.found[i], (uint64_t)1);
        ic_wilson(&low, &high, total.kept[i], total.found[i]);
        ic_report_bar(&e->report, ic_fact_names[i], total.found[i] ? share : (double)NAN, low,
                      high);
    }
    ic_report_chart_end(&e->report);
    ic_report_section_end(&e->report);
done:
    return rc;
}

typedef struct ranked {
    double bleu, prefix;
    size_t i;
} ranked;

static int by_quality(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->bleu != y->bleu)
        return x->bleu > y->bleu ? -1 : 1;
    if (x->prefix != y->prefix)
        return x->prefix > y->prefix ? -1 : 1;
    return x->i < y->i ? -1 : 1;
}

/* Best, median and worst of one cell. */
static int diffs(ic_eval *e, const cell *c)
{
    static const char *const names[] = {"Best", "Median", "Worst"};
    char key[256], title[256];
    if (!c->count)
        return ICAE_OK;
    ranked *list = ic_alloc(c->count, sizeof *list);
    if (!list)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < c->count; i++) {
        ic_key_autoencoding(key, c->s, NULL, c->length, c->rate, i);
        const ic_json *r = ic_journal_get(e->journal, key);
        list[i] = (ranked){ic_record_number(r, "bleu"), ic_record_number(r, "prefix"), i};
    }
    qsort(list, c->count, sizeof *list, by_quality);
    for (size_t k = 0; k < 3; k++) {
        const ranked *at = &list[k * (c->count - 1) / 2];
        ic_key_autoencoding(key, c->s, NULL, c->length, c->rate, at->i);
        const ic_json *r = ic_journal_get(e->journal, key);
        snprintf(title, sizeof title, "%s of %zu, %s, %d tokens: BLEU %.4f, exact match %.4f",
                 names[k], c->count, c->name, c->length, at->bleu, at->prefix);
        ic_report_diff(&e->report, title, ic_record_text(r, "reference"),
                       ic_record_text(r, "restored"));
    }
    ic_free(list);
    return ICAE_OK;
}

/* ---- the experiments -------------------------------------------------------------------------- */

/* Rates of an adapter: what it was trained for, or its own alone. */
static size_t rates_of(float *out, const icae_adapter *a)
{
    size_t n = 0;
    out[n++] = a->rate;
    for (int i = 0; i < a->rates_count; i++)
        if (fabsf(a->rates[i] - a->rate) > 1e-6f)
            out[n++] = a->rates[i];
    return n;
}

static int lay_out(cell **out, size_t *count, ic_eval *e, const int *length, size_t lengths)
{
    cell *cells = ic_alloc(e->systems * 9 * lengths, sizeof *cells);
    size_t n = 0;
    if (!cells)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < e->systems; i++) {
        float rate[9];
        ic_system *s = &e->system[i];
        if (!s->adapter)
            continue;
        size_t rates = rates_of(rate, s->adapter);
        for (size_t k = 0; k < rates; k++)
            for (size_t l = 0; l < lengths; l++) {
                cell *c = &cells[n++];
                *c = (cell){.s = s, .rate = rate[k], .length = length[l]};
                snprintf(c->name, sizeof c->name, rates > 1 ? "%s, %g\u00d7" : "%s", s->name,
                         (double)rate[k]);
            }
    }
    *out = cells;
    *count = n;
    return ICAE_OK;
}

int ic_experiment_autoencoding(ic_eval *e)
{
    int rc = ICAE_OK, length[MOST];
    size_t lengths = ic_suite_ints(length, MOST, e, "autoencoding", "lengths"), n = 0;
    uint64_t wanted = ic_suite_samples(e, "autoencoding");
    ic_report *r = &e->report;
    cell *cells = NULL;
    IC_TRY(lay_out(&cells, &n, e, length, lengths));
    for (size_t i = 0; i < n; i++) {
        IC_TRY(
            measure(&cells[i].count, e, cells[i].s, NULL, cells[i].length, cells[i].rate, wanted));
        IC_TRY(gather(&cells[i].f, e, cells[i].s, NULL, cells[i].length, cells[i].rate,
                      cells[i].count));
    }
    ic_report_section(r, "autoencoding", "Autoencoding",
                      "Texts are compressed to slots and restored greedily from them alone. BLEU "
                      "is sacrebleu's (13a, smoothing "
                      "exp; means and quartiles are of sentence BLEU with effective order). Exact "
                      "match: the tokens before the "
                      "first error, as a share of all. Loss: nats a token, each predicted from the "
                      "slots and the right tokens "
                      "before it.");
    for (size_t i = 0; i < n; i++)
        ic_eval_shortfall(e, cells[i].name, cells[i].count, wanted,
                          "there is no more text of that length");
    ic_report_table(r, "By length and rate", columns);
    for (size_t i = 0; i < n; i++)
        row(r, cells[i].name, cells[i].length, &cells[i].f);
    ic_report_table_end(r);
    line_chart(e, cells, n, "Median BLEU", "BLEU", 0);
    line_chart(e, cells, n, "Mean exact match", "share of tokens", 1);
    line_chart(e, cells, n, "Mean loss", "nats a token", 2);
    box_chart(e, cells, n, "BLEU of samples", 0);
    box_chart(e, cells, n, "Exact match of samples", 1);
    for (size_t i = 0; i < n; i++)
        if (i + 1 == n || strcmp(cells[i].name, cells[i + 1].name)) {
            char title[192];
            snprintf(title, sizeof title, "Exact match, %s, %d tokens", cells[i].name,
                     cells[i].length);
            ic_report_histogram(r, title, "exact match from", &cells[i].f.prefix);
        }
    for (size_t i = 0; i < n; i++)
        if (i + 1 == n || strcmp(cells[i].name, cells[i + 1].name))
            IC_TRY(diffs(e, &cells[i]));
    ic_report_section_end(r);
    IC_TRY(facts(e, cells, n));
done:
    for (size_t i = 0; i < n; i++)
        figures_free(&cells[i].f);
    ic_free(cells);
    return rc;
}

int ic_experiment_content(ic_eval *e)
{
    int rc = ICAE_OK, length = ic_suite_int(e, "content", "length", 512);
    uint64_t wanted = ic_suite_samples(e, "content");
    ic_report *r = &e->report;
    ic_report_section(r, "content", "Kinds of text",
                      "The same for each set of texts that was given, and for two kinds that are "
                      "made from them: patterned (every "
                      "token id plus one) and random (ids drawn evenly from the vocabulary). Text "
                      "that language models know "
                      "is remembered; what makes no sense to them is not.");
    ic_report_table(r, "By kind of text",
                    "System|Kind|Tokens:0|Samples:0|Loss:4|BLEU corpus:4|BLEU mean:4|Exact match "
                    "mean:4|Tokens right:4");
    for (size_t i = 0; i < e->systems; i++) {
        ic_system *s = &e->system[i];
        for (size_t k = 0; s->adapter && k < e->data.sets + 2; k++) {
            figures f = {0};
            size_t count = 0;
            const char *set = k < e->data.sets    ? e->data.set[k]
                              : k == e->data.sets ? "=patterned"
                                                  : "=random";
            rc = measure(&count, e, s, set, length, s->adapter->rate, wanted);
            if (rc == ICAE_OK)
                rc = gather(&f, e, s, set, length, s->adapter->rate, count);
            ic_report_row(
                r, "ssiinnnnn", s->name, set + (*set == '='), (uint64_t)length, (uint64_t)count,
                ic_stats_mean(&f.loss), count ? ic_bleu_score(&f.corpus, false) : (double)NAN,
                ic_stats_mean(&f.bleu), ic_stats_mean(&f.prefix), ic_stats_mean(&f.accuracy));
            figures_free(&f);
            IC_TRY(rc);
        }
    }
    ic_report_table_end(r);
    for (size_t k = 0; k < e->data.sets && e->systems;
         k++) { /* as many as there were, for the first system */
        ic_piece *piece = NULL;
        size_t count;
        IC_TRY(ic_eval_pieces(&piece, &count, e, &e->system[0], e->data.set[k], length, wanted));
        ic_free(piece);
        ic_eval_shortfall(e, e->data.set[k], count, wanted, "there is no more text of that length");
    }
    ic_report_section_end(r);
done:
    return rc;
}
