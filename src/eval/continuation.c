/*
 * continuation.c - how well text is continued (ICAE §4.2.1, Table 1, and Fig. 6): perplexity of what
 * follows given the full context, its slots, or nothing; and against length at equal decoder rows.
 */
#include "eval/eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

void ic_key_continuation(char key[256], const ic_system *s, int context, size_t i)
{
    (void)ic_eval_key(key, "lm|%s|%d|%zu", s->name, context, i);
}

/* Mean nats of ids[first …] behind what the prompt holds. */
static int score(double *loss, ic_system *s, ic_prompt *p, const int32_t *ids, int n, int first)
{
    int rc = ICAE_OK, scored = n - first;
    ic_score *scores = ic_alloc((size_t)n, sizeof *scores);
    if (!scores)
        return ICAE_ENOMEM;
    IC_TRY(ic_prompt_ids(p, ids, (size_t)n - 1)); /* the last predicts nothing that is scored */
    IC_TRY(ic_prompt_fits(p, 1, "the text with its continuation"));
    IC_TRY(ic_prompt_read(s->session, p, 0, p->rows, NULL, ids + first, scored, scores, NULL));
    *loss = 0;
    for (int i = 0; i < scored; i++)
        *loss += (double)scores[i].nll / scored;
done:
    ic_free(scores);
    return rc;
}

/* Without a bos token nothing predicts the first token of a text that has no context: then it is left
 * out everywhere. */
static int first_scored(const ic_system *s)
{
    return s->model->config.bos >= 0 ? 0 : 1;
}

static int score_raw(double *loss, ic_system *s, const int32_t *context, int tokens,
                     const int32_t *ids, int n)
{
    int rc = ICAE_OK;
    ic_prompt p;
    ic_prompt_begin(&p, s->session);
    if (s->model->config.bos >= 0)
        IC_TRY(ic_prompt_ids(&p, &s->model->config.bos, 1));
    IC_TRY(ic_prompt_ids(&p, context, (size_t)tokens));
    IC_TRY(score(loss, s, &p, ids, n, first_scored(s)));
done:
    ic_prompt_free(&p);
    return rc;
}

static int score_slots(double *loss, double *count, ic_system *s, const int32_t *context,
                       int tokens, const int32_t *ids, int n)
{
    int rc = ICAE_OK;
    ic_prompt p;
    ic_ids all = {0};
    icae_slots *slots = NULL;
    const int32_t lm = IC_LM;
    ic_prompt_begin(&p, s->session);
    if (s->adapter->bos && s->model->config.bos >= 0)
        IC_TRY(ic_ids_add(&all, s->model->config.bos));
    IC_TRY(ic_ids_append(&all, context, (size_t)tokens));
    IC_TRY(ic_compress_ids(&slots, s->session, &all, &(icae_compress_options){0}));
    *count = (double)slots->count;
    IC_TRY(ic_prompt_slots(&p, slots, 0, slots->segments, NULL));
    if (s->adapter->lm_token)
        IC_TRY(ic_prompt_ids(&p, &lm, 1));
    IC_TRY(score(loss, s, &p, ids, n, first_scored(s)));
done:
    ic_prompt_free(&p);
    ic_ids_free(&all);
    icae_slots_free(slots);
    return rc;
}

static int keep(ic_eval *e, const char *key, const char *const *names, const double *values,
                size_t n)
{
    ic_report w = {0};
    ic_report_open(&w, NULL, '{');
    for (size_t i = 0; i < n; i++)
        ic_report_number(&w, names[i], values[i]);
    ic_report_close(&w, '}');
    int rc = w.rc < 0 ? w.rc : ic_journal_put(e->journal, key, &w.json);
    ic_buffer_free(&w.json);
    return rc;
}

/* exp of the mean loss in the records. */
static double perplexity(const ic_stats *loss)
{
    return exp(ic_stats_mean(loss));
}

/* ---- continuation by length of context -------------------------------------------------------- */

enum { MOST = 32, FULL = 0, SLOTS, NONE, ROWS, VALUES };
static const char *const value_names[] = {"full", "slots", "none", "rows"};

static int measure(size_t *count, ic_eval *e, ic_system *s, int context, int tokens,
                   uint64_t wanted)
{
    int rc = ICAE_OK;
    ic_piece *piece = NULL;
    char key[256], progress[96];
    snprintf(progress, sizeof progress, "continuations of %d tokens", context);
    IC_TRY(ic_eval_pieces(&piece, count, e, s, NULL, context + tokens, wanted));
    for (size_t i = 0; i < *count; i++) {
        double v[VALUES];
        const int32_t *ids = piece[i].ids + context;
        ic_key_continuation(key, s, context, i);
        if (ic_journal_get(e->journal, key))
            continue;
        IC_TRY(score_raw(&v[FULL], s, piece[i].ids, context, ids, tokens));
        IC_TRY(score_slots(&v[SLOTS], &v[ROWS], s, piece[i].ids, context, ids, tokens));
        IC_TRY(score_raw(&v[NONE], s, piece[i].ids, 0, ids, tokens));
        IC_TRY(keep(e, key, value_names, v, VALUES));
        IC_TRY(ic_eval_progress(e, progress, i + 1, *count));
    }
done:
    ic_free(piece);
    return rc;
}

static int gather(ic_stats loss[3], double *rows, ic_eval *e, const ic_system *s, int context,
                  size_t count)
{
    int rc = ICAE_OK;
    char key[256];
    *rows = (double)NAN;
    for (size_t i = 0; i < count; i++) {
        ic_key_continuation(key, s, context, i);
        const ic_json *r = ic_journal_get(e->journal, key);
        for (int k = 0; k < 3; k++)
            IC_TRY(ic_stats_add(&loss[k], ic_record_number(r, value_names[k])));
        *rows = ic_record_number(r, "rows");
    }
done:
    return rc;
}

/* Charts need the figures of all systems and lengths: kept while the table is written. */
typedef struct figure {
    double ppl[3];
} figure;

static void chart(ic_eval *e, const figure *f, const int *context, size_t contexts)
{
    static const char *const from[] = {"full context", "slots", "no context"};
    char name[160];
    ic_report_chart(&e->report, "line", "Perplexity of the continuation", "tokens of context",
                    "perplexity");
    for (size_t i = 0; i < e->systems; i++)
        for (size_t k = 0; k < 3; k++) {
            snprintf(name, sizeof name, "%s%s%s", e->systems > 1 ? e->system[i].name : "",
                     e->systems > 1 ? ", " : "", from[k]);
            ic_report_series(&e->report, name);
            for (size_t c = 0; c < contexts; c++)
                ic_report_point(&e->report, context[c], f[i * contexts + c].ppl[k]);
            ic_report_series_end(&e->report);
        }
    ic_report_chart_end(&e->report);
}

int ic_experiment_continuation(ic_eval *e)
{
    int rc = ICAE_OK, context[MOST], tokens = ic_suite_int(e, "continuation", "tokens", 128);
    size_t contexts = ic_suite_ints(context, MOST, e, "continuation", "contexts");
    uint64_t wanted = ic_suite_samples(e, "continuation");
    ic_report *r = &e->report;
    figure *all = ic_alloc(e->systems * contexts + 1, sizeof *all);
    if (!all)
        return ICAE_ENOMEM;
    ic_report_section(r, "continuation", "Text continuation",
                      "Perplexity of the tokens that follow a context, when the decoder reads the "
                      "full context, its slots, or "
                      "nothing. The same tokens are scored in all three.");
    ic_report_table(r, "By length of context",
                    "System|Context:0|Slots:0|Rate:1|Samples:0|Full context:3|Slots:3|No "
                    "context:3|Slots - full:3");
    for (size_t i = 0; i < e->systems; i++)
        for (size_t c = 0; c < contexts; c++) {
            ic_system *s = &e->system[i];
            ic_stats loss[3] = {{0}};
            size_t count = 0;
            double rows = (double)NAN, *ppl = all[i * contexts + c].ppl;
            rc = measure(&count, e, s, context[c], tokens, wanted);
            if (rc == ICAE_OK)
                rc = gather(loss, &rows, e, s, context[c], count);
            for (int k = 0; k < 3; k++) {
                ppl[k] = perplexity(&loss[k]);
                ic_stats_free(&loss[k]);
            }
            IC_TRY(rc);
            ic_report_row(r, "sinninnnn", s->name, (uint64_t)context[c], rows, context[c] / rows,
                          (uint64_t)count, ppl[FULL], ppl[SLOTS], ppl[NONE],
                          ppl[SLOTS] - ppl[FULL]);
        }
    ic_report_table_end(r);
    for (size_t i = 0; i < e->systems; i++) {
        if (!e->system[i].adapter->lm_token)
            ic_report_note(r, "%s was not trained to continue from slots (it has no [LM]).",
                           e->system[i].name);
        for (size_t c = 0; c < contexts; c++) {
            size_t n;
            ic_piece *piece;
            IC_TRY(ic_eval_pieces(&piece, &n, e, &e->system[i], NULL, context[c] + tokens, wanted));
            ic_free(piece);
            ic_eval_shortfall(e, e->system[i].name, n, wanted,
                              "there is no more text of that length");
        }
    }
    chart(e, all, context, contexts);
    ic_report_section_end(r);
done:
    ic_free(all);
    return rc;
}

/* ---- several spans: equal decoder rows -------------------------------------------------------- */

enum { S_SLOTS, S_RAW, S_WHOLE, S_ROWS, S_VALUES };
static const char *const span_names[] = {"slots", "raw", "whole", "rows"};

static int measure_span(size_t *count, ic_eval *e, ic_system *s, int length, int tokens,
                        uint64_t wanted)
{
    int rc = ICAE_OK;
    ic_piece *piece = NULL;
    char key[256], progress[96];
    snprintf(progress, sizeof progress, "spans of %d tokens", length);
    IC_TRY(ic_eval_pieces(&piece, count, e, s, NULL, length + tokens, wanted));
    for (size_t i = 0; i < *count; i++) {
        double v[S_VALUES];
        const int32_t *ids = piece[i].ids + length;
        IC_TRY(ic_eval_key(key, "span|%s|%d|%zu", s->name, length, i));
        if (ic_journal_get(e->journal, key))
            continue;
        IC_TRY(score_slots(&v[S_SLOTS], &v[S_ROWS], s, piece[i].ids, length, ids, tokens));
        int rows = IC_MIN((int)v[S_ROWS], length);
        IC_TRY(score_raw(&v[S_RAW], s, ids - rows, rows, ids, tokens));
        v[S_WHOLE] = (double)NAN;
        if (length + tokens + 1 <= s->model->config.max_positions)
            IC_TRY(score_raw(&v[S_WHOLE], s, piece[i].ids, length, ids, tokens));
        IC_TRY(keep(e, key, span_names, v, S_VALUES));
        IC_TRY(ic_eval_progress(e, progress, i + 1, *count));
    }
done:
    ic_free(piece);
    return rc;
}

/* The part of the lengths that the model can hold as slots; the rest is said. */
static bool holds(ic_eval *e, const ic_system *s, int length, int tokens)
{
    double rows = ceil(length / (double)s->adapter->rate);
    double need = (s->adapter->spread ? length : rows) + tokens + 2;
    if (need <= s->model->config.max_positions)
        return true;
    ic_report_note(&e->report, "%s cannot hold %d tokens of text and %d more: left out.", s->name,
                   length, tokens);
    return false;
}

static int span_row(ic_eval *e, ic_system *s, int length, size_t count, double points[4])
{
    int rc = ICAE_OK;
    char key[256];
    ic_stats loss[3] = {{0}};
    double rows = (double)NAN;
    for (size_t i = 0; i < count; i++) {
        IC_TRY(ic_eval_key(key, "span|%s|%d|%zu", s->name, length, i));
        const ic_json *record = ic_journal_get(e->journal, key);
        for (int k = 0; k < 3; k++)
            IC_TRY(ic_stats_add(&loss[k], ic_record_number(record, span_names[k])));
        rows = ic_record_number(record, "rows");
    }
    const ic_config *c = &s->model->config;
    double row_bytes =
        2.0 * c->layers * c->kv_heads * c->head_width * ic_dtypes[s->session->act].bytes / 1048576;
    points[0] = rows;
    for (int k = 0; k < 3; k++)
        points[1 + k] = perplexity(&loss[k]);
    ic_report_row(&e->report, "snininnnnn", s->name, rows, (uint64_t)length, length / rows,
                  (uint64_t)count, points[1], points[2], points[3], rows * row_bytes,
                  length * row_bytes);
done:
    for (int k = 0; k < 3; k++)
        ic_stats_free(&loss[k]);
    return rc;
}

int ic_experiment_span(ic_eval *e)
{
    int rc = ICAE_OK, length[MOST], tokens = ic_suite_int(e, "span", "tokens", 128);
    size_t lengths = ic_suite_ints(length, MOST, e, "span", "lengths");
    uint64_t wanted = ic_suite_samples(e, "span");
    ic_report *r = &e->report;
    double(*points)[4] = ic_alloc(e->systems * lengths + 1, sizeof *points);
    size_t *counts = ic_alloc(e->systems * lengths + 1, sizeof *counts);
    if (!points || !counts) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    ic_report_section(
        r, "span", "Long texts",
        "What the decoder can use at equal cost: so many rows of slots, which stand for a longer "
        "text, or as many "
        "rows of raw text right before the continuation. Memory is the decoder's key/value cache.");
    for (size_t i = 0; i < e->systems * lengths; i++) {
        ic_system *s = &e->system[i / lengths];
        if (!holds(e, s, length[i % lengths], tokens))
            continue;
        IC_TRY(measure_span(&counts[i], e, s, length[i % lengths], tokens, wanted));
        ic_eval_shortfall(e, s->name, counts[i], wanted, "there is no more text of that length");
    }
    ic_report_table(r, "Perplexity at equal decoder rows",
                    "System|Decoder rows:0|Text behind slots:0|Rate:1|Samples:0|Slots:3|Raw text, "
                    "same rows:3|Raw text, "
                    "all of it:3|MiB slots:2|MiB all text:2");
    for (size_t i = 0; i < e->systems * lengths; i++)
        if (counts[i])
            IC_TRY(span_row(e, &e->system[i / lengths], length[i % lengths], counts[i], points[i]));
    ic_report_table_end(r);
    ic_report_chart(r, "line", "Perplexity by decoder rows", "decoder rows", "perplexity");
    for (size_t i = 0; i < e->systems; i++)
        for (int k = 1; k <= 2; k++) {
            char name[160];
            snprintf(name, sizeof name, "%s%s%s", e->systems > 1 ? e->system[i].name : "",
                     e->systems > 1 ? ", " : "", k == 1 ? "slots" : "raw text");
            ic_report_series(r, name);
            for (size_t l = 0; l < lengths; l++)
                if (counts[i * lengths + l])
                    ic_report_point(r, points[i * lengths + l][0], points[i * lengths + l][k]);
            ic_report_series_end(r);
        }
    ic_report_chart_end(r);
    ic_report_section_end(r);
done:
    ic_free(points);
    ic_free(counts);
    return rc;
}
