/*
 * continuation.c - how well text is continued (ICAE §4.2.1, Table 1): perplexity of what follows given the
 * full context, its slots, or nothing; by length of context and rate.
 *
 * The base's own perplexities do not depend on the rate: they are records of rate 0.
 */
#include "eval/eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void ic_key_continuation(char key[256], const ic_system *s, int context, float rate, size_t i)
{
    (void)ic_eval_key(key, "lm|%s|%d|%g|%zu", s->name, context, (double)rate, i);
}

/* A context length of a system at a rate. */
typedef struct cell {
    ic_system *s;
    int context, tokens;
    float rate;
    uint64_t wanted;
    size_t pieces, count;
    const char *why;
    double slots;                      /* rows that stand for the context */
    ic_stats full, with, none, excess; /* losses; excess: with - full of each sample */
} cell;

static void cell_free(cell *c)
{
    ic_stats_free(&c->full);
    ic_stats_free(&c->with);
    ic_stats_free(&c->none);
    ic_stats_free(&c->excess);
}

/* ---- records ---------------------------------------------------------------------------------- */

static int base_record(ic_eval *e, const cell *c, const char *key, const int32_t *context)
{
    static const char *const names[] = {"full", "none"};
    int rc = ICAE_OK, n = c->tokens - ic_first_scored(c->s);
    double v[2];
    ic_score *scores = ic_alloc((size_t)c->tokens, sizeof *scores);
    if (!scores)
        return ICAE_ENOMEM;
    IC_TRY(ic_score_text(scores, c->s, context, c->context, context + c->context, c->tokens));
    v[0] = ic_mean_loss(scores, n);
    IC_TRY(ic_score_text(scores, c->s, context, 0, context + c->context, c->tokens));
    v[1] = ic_mean_loss(scores, n);
    IC_TRY(ic_record_keep(e, key, names, v, 2));
done:
    ic_free(scores);
    return ic_record_skip(e, key, rc);
}

static int slots_record(ic_eval *e, const cell *c, const char *key, const int32_t *context)
{
    static const char *const names[] = {"slots", "rows"};
    int rc = ICAE_OK, n = c->tokens - ic_first_scored(c->s);
    double v[2];
    ic_score *scores = ic_alloc((size_t)c->tokens, sizeof *scores);
    if (!scores)
        return ICAE_ENOMEM;
    IC_TRY(ic_score_slots(scores, &v[1], c->s, c->rate, context, c->context, context + c->context,
                          c->tokens));
    v[0] = ic_mean_loss(scores, n);
    IC_TRY(ic_record_keep(e, key, names, v, 2));
done:
    ic_free(scores);
    return ic_record_skip(e, key, rc);
}

static int gather(ic_eval *e, cell *c)
{
    int rc = ICAE_OK;
    char key[256];
    for (size_t i = 0; i < c->pieces; i++) {
        ic_key_continuation(key, c->s, c->context, 0, i);
        const ic_json *base = ic_journal_get(e->journal, key);
        ic_key_continuation(key, c->s, c->context, c->rate, i);
        const ic_json *slots = ic_journal_get(e->journal, key);
        const char *a = ic_record_text(base, "skipped"), *b = ic_record_text(slots, "skipped");
        if (*a || *b) {
            c->why = *a ? a : b;
            continue;
        }
        double full = ic_record_number(base, "full"), with = ic_record_number(slots, "slots");
        IC_TRY(ic_stats_add(&c->full, full));
        IC_TRY(ic_stats_add(&c->none, ic_record_number(base, "none")));
        IC_TRY(ic_stats_add(&c->with, with));
        IC_TRY(ic_stats_add(&c->excess, with - full));
        c->slots = ic_record_number(slots, "rows");
        c->count++;
    }
done:
    return rc;
}

static int measure(ic_eval *e, cell *c)
{
    int rc = ICAE_OK;
    ic_piece *piece = NULL;
    char key[256], progress[96];
    snprintf(progress, sizeof progress, "continuations of %d tokens", c->context);
    c->why = "there is no more text of that length";
    c->slots = (double)NAN;
    IC_TRY(ic_eval_pieces(&piece, &c->pieces, e, c->s, NULL, c->context + c->tokens, c->wanted));
    for (size_t i = 0; i < c->pieces; i++) {
        ic_key_continuation(key, c->s, c->context, 0, i);
        if (!ic_journal_get(e->journal, key))
            IC_TRY(base_record(e, c, key, piece[i].ids));
        ic_key_continuation(key, c->s, c->context, c->rate, i);
        if (!ic_journal_get(e->journal, key))
            IC_TRY(slots_record(e, c, key, piece[i].ids));
        else
            continue;
        IC_TRY(ic_eval_progress(e, progress, i + 1, c->pieces));
    }
    IC_TRY(gather(e, c));
done:
    ic_free(piece);
    return rc;
}

/* ---- figures ---------------------------------------------------------------------------------- */

static double perplexity(const ic_stats *loss)
{
    return exp(ic_stats_mean(loss));
}

/* How many percent the perplexity behind slots lies above that behind the full context, and its 95%
 * interval, from the differences of each sample. */
static void excess_of(double v[3], const cell *c)
{
    double mean = ic_stats_mean(&c->excess), half = ic_stats_half(&c->excess);
    v[0] = 100 * (exp(mean) - 1);
    v[1] = 100 * (exp(mean - half) - 1);
    v[2] = 100 * (exp(mean + half) - 1);
}

static void row(ic_report *r, const cell *c)
{
    double more[3], full = perplexity(&c->full), with = perplexity(&c->with);
    excess_of(more, c);
    ic_report_row(r, "sinniinnnnnnn", c->s->name, (uint64_t)c->context, c->slots,
                  c->context / c->slots, (uint64_t)c->count, c->wanted, full, with,
                  perplexity(&c->none), with - full, more[0], more[1], more[2]);
}

static void series(ic_eval *e, const ic_system *system, const char *what, const cell *c, size_t n,
                   size_t offset)
{
    ic_report *r = &e->report;
    char name[192];
    snprintf(name, sizeof name, "%s%s", ic_eval_prefix(e, system).text, what);
    ic_report_series(r, name);
    for (size_t i = 0; i < n; i++)
        ic_report_point(r, c[i].context,
                        perplexity((const ic_stats *)(const void *)((const char *)&c[i] + offset)));
    ic_report_series_end(r);
}

/* Cells of one system and rate stand together; the base's own lines come once a system. */
static void chart(ic_eval *e, const cell *c, size_t n, size_t contexts)
{
    ic_report_chart(&e->report, "line", "Perplexity of the continuation", "tokens of context",
                    "perplexity");
    for (size_t i = 0; i < n && contexts; i += contexts) {
        bool first = !i || c[i].s != c[i - contexts].s;
        const ic_system *system = c[i].s;
        char what[48], label[128];
        if (first)
            series(e, system, "full context", &c[i], contexts, offsetof(cell, full));
        ic_eval_label(label, e, c[i].s, c[i].rate);
        if (strcmp(label, c[i].s->name))
            snprintf(what, sizeof what, "slots at %g\u00d7", (double)c[i].rate);
        else
            snprintf(what, sizeof what, "slots");
        series(e, system, what, &c[i], contexts, offsetof(cell, with));
        if (first)
            series(e, system, "no context", &c[i], contexts, offsetof(cell, none));
    }
    ic_report_chart_end(&e->report);
}

/* What slots lose behind the longest context, by tokens a slot, one line a system; none if all have one rate. */
static void rate_chart(ic_eval *e, const cell *c, size_t n, size_t contexts)
{
    ic_report *r = &e->report;
    bool several = false;
    for (size_t i = 0; i < n; i++)
        several |= c[i].rate != c[0].rate;
    if (!several)
        return;
    ic_report_chart(r, "line", "Perplexity above full context, by rate", "tokens a slot",
                    "percent");
    for (size_t i = contexts - 1; i < n; i += contexts) {
        double more[3];
        excess_of(more, &c[i]);
        if (i < contexts || c[i].s != c[i - contexts].s)
            ic_report_series(r, c[i].s->name);
        ic_report_point(r, c[i].context / c[i].slots, more[0]);
        if (i + contexts >= n || c[i].s != c[i + contexts].s)
            ic_report_series_end(r);
    }
    ic_report_chart_end(r);
}

static void highlight(ic_eval *e, const cell *c)
{
    double more[3];
    excess_of(more, c);
    if (c->count)
        ic_eval_highlight(
            e, "continuation", "Perplexity behind slots, above full context",
            ic_format("%+.1f%%", more[0]),
            ic_format("%sslots %.2f, full %.2f, none %.2f; %d tokens of context, %zu samples",
                      ic_eval_prefix(e, c->s).text, perplexity(&c->with), perplexity(&c->full),
                      perplexity(&c->none), c->context, c->count));
}

static int lay_out(cell **out, size_t *count, ic_eval *e, const int *context, size_t contexts)
{
    cell *cells = ic_alloc(e->systems * IC_RATES * IC_MAX(contexts, (size_t)1), sizeof *cells);
    size_t n = 0;
    if (!cells)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < e->systems; i++) {
        float rate[IC_RATES];
        size_t rates = ic_eval_rates(rate, e, &e->system[i]);
        for (size_t k = 0; k < rates * contexts; k++)
            cells[n++] = (cell){.s = &e->system[i],
                                .context = context[k % contexts],
                                .tokens = IC_MAX(ic_suite_int(e, "continuation", "tokens", 128), 2),
                                .rate = rate[k / contexts],
                                .wanted = ic_suite_samples(e, "continuation")};
    }
    *out = cells;
    *count = n;
    return ICAE_OK;
}

static void notes(ic_eval *e, const cell *cells, size_t n)
{
    for (size_t i = 0; i < e->systems; i++)
        if (!e->system[i].adapter->lm_token)
            ic_report_note(&e->report,
                           "%s was not trained to continue from slots (it has no [LM]).",
                           e->system[i].name);
    for (size_t i = 0; i < n; i++) {
        char what[192];
        snprintf(what, sizeof what, "%s, %d tokens at %g\u00d7", cells[i].s->name, cells[i].context,
                 (double)cells[i].rate);
        ic_eval_shortfall(e, what, cells[i].count, cells[i].wanted, cells[i].why);
    }
}

int ic_experiment_continuation(ic_eval *e)
{
    int rc = ICAE_OK, context[IC_LIST];
    size_t contexts = ic_suite_ints(context, IC_LIST, e, "continuation", "contexts"), n = 0;
    ic_report *r = &e->report;
    cell *cells = NULL;
    IC_TRY(lay_out(&cells, &n, e, context, contexts));
    for (size_t i = 0; i < n; i++)
        IC_TRY(measure(e, &cells[i]));
    ic_report_section(
        r, "continuation", "Text continuation",
        "Perplexity of the tokens that follow a context, when the decoder reads the full context, "
        "its slots, or nothing. The same tokens are scored in all three. The last columns: percent "
        "that slots lie above the full context, with its 95% interval over samples.");
    ic_report_table(r, "By length of context",
                    "System|Context:0|Slots:0|Rate:1|Samples:0|Asked:0|Full context:3|Slots "
                    "PPL:3|No context:3|Slots - full:3|Above full %:1|from:1|to:1");
    for (size_t i = 0; i < n; i++)
        row(r, &cells[i]);
    ic_report_table_end(r);
    notes(e, cells, n);
    chart(e, cells, n, contexts);
    rate_chart(e, cells, n, contexts);
    ic_report_section_end(r);
    for (size_t i = 0; i < n; i++)
        if ((i + 1) % contexts == 0 && cells[i].rate == cells[i].s->adapter->rate)
            highlight(e, &cells[i]);
done:
    for (size_t i = 0; i < n; i++)
        cell_free(&cells[i]);
    ic_free(cells);
    return rc;
}
