/*
 * span.c - long texts (ICAE §4.2.1, Fig. 6): perplexity behind the slots of a long text, and behind as many
 * rows of raw text; memory of both.
 */
#include "eval/eval.h"

#include <math.h>
#include <stdio.h>

enum { SLOTS, RAW, WHOLE, ROWS, VALUES };
static const char *const names[] = {"slots", "raw", "whole", "rows"};

/* One sample: ids of `length` tokens and `tokens` more. */
static int record(ic_eval *e, ic_system *s, const char *key, const int32_t *ids, int length,
                  int tokens)
{
    int rc = ICAE_OK, n = tokens - ic_first_scored(s);
    double v[VALUES];
    const int32_t *next = ids + length;
    ic_score *scores = ic_alloc((size_t)tokens, sizeof *scores);
    if (!scores)
        return ICAE_ENOMEM;
    IC_TRY(ic_score_slots(scores, &v[ROWS], s, 0, ids, length, next, tokens));
    v[SLOTS] = ic_mean_loss(scores, n);
    int rows = IC_MIN((int)v[ROWS], length);
    IC_TRY(ic_score_text(scores, s, next - rows, rows, next, tokens));
    v[RAW] = ic_mean_loss(scores, n);
    v[WHOLE] = (double)NAN;
    if (length + tokens + 1 <= s->model->config.max_positions) {
        IC_TRY(ic_score_text(scores, s, ids, length, next, tokens));
        v[WHOLE] = ic_mean_loss(scores, n);
    }
    IC_TRY(ic_record_keep(e, key, names, v, VALUES));
done:
    ic_free(scores);
    return ic_record_skip(e, key, rc);
}

static int measure(size_t *count, ic_eval *e, ic_system *s, int length, int tokens, uint64_t wanted)
{
    int rc = ICAE_OK;
    ic_piece *piece = NULL;
    char key[256], progress[96];
    snprintf(progress, sizeof progress, "spans of %d tokens", length);
    IC_TRY(ic_eval_pieces(&piece, count, e, s, NULL, length + tokens, wanted));
    for (size_t i = 0; i < *count; i++) {
        IC_TRY(ic_eval_key(key, "span|%s|%d|%zu", s->name, length, i));
        if (ic_journal_get(e->journal, key))
            continue;
        IC_TRY(record(e, s, key, piece[i].ids, length, tokens));
        IC_TRY(ic_eval_progress(e, progress, i + 1, *count));
    }
done:
    ic_free(piece);
    return rc;
}

/* The part of the lengths that the model can hold as slots; the rest is said. */
static bool holds(ic_eval *e, const ic_system *s, int length, int tokens)
{
    const icae_adapter *a = s->adapter;
    uint64_t rows =
        a->spread ? (uint64_t)length : ic_eval_slots(a, a->rate, (uint64_t)length + a->bos);
    if (rows + (uint64_t)tokens + 2 <= (uint64_t)s->model->config.max_positions)
        return true;
    ic_report_note(&e->report, "%s cannot hold %d tokens of text and %d more: left out.", s->name,
                   length, tokens);
    return false;
}

static int row(ic_eval *e, ic_system *s, int length, size_t count, uint64_t wanted,
               double points[4])
{
    int rc = ICAE_OK;
    char key[256];
    ic_stats loss[3] = {{0}};
    double rows = (double)NAN;
    for (size_t i = 0; i < count; i++) {
        IC_TRY(ic_eval_key(key, "span|%s|%d|%zu", s->name, length, i));
        const ic_json *record = ic_journal_get(e->journal, key);
        for (int k = 0; k < 3; k++)
            IC_TRY(ic_stats_add(&loss[k], ic_record_number(record, names[k])));
        rows = ic_record_number(record, "rows");
    }
    const ic_config *c = &s->model->config;
    double row_bytes =
        2.0 * c->layers * c->kv_heads * c->head_width * ic_dtypes[s->session->act].bytes / 1048576;
    points[0] = rows;
    for (int k = 0; k < 3; k++)
        points[1 + k] = exp(ic_stats_mean(&loss[k]));
    ic_report_row(&e->report, "sniniinnnnn", s->name, rows, (uint64_t)length, length / rows,
                  (uint64_t)count, wanted, points[1], points[2], points[3], rows * row_bytes,
                  length * row_bytes);
done:
    for (int k = 0; k < 3; k++)
        ic_stats_free(&loss[k]);
    return rc;
}

int ic_experiment_span(ic_eval *e)
{
    int rc = ICAE_OK, length[IC_LIST], tokens = ic_suite_int(e, "span", "tokens", 128);
    size_t lengths = ic_suite_ints(length, IC_LIST, e, "span", "lengths");
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
        IC_TRY(measure(&counts[i], e, s, length[i % lengths], tokens, wanted));
        ic_eval_shortfall(e, s->name, counts[i], wanted, "there is no more text of that length");
    }
    ic_report_table(
        r, "Perplexity at equal decoder rows",
        "System|Decoder rows:0|Text behind slots:0|Rate:1|Samples:0|Asked:0|Slots:3|Raw text, "
        "same rows:3|Raw text, "
        "all of it:3|MiB slots:2|MiB all text:2");
    for (size_t i = 0; i < e->systems * lengths; i++)
        if (counts[i])
            IC_TRY(
                row(e, &e->system[i / lengths], length[i % lengths], counts[i], wanted, points[i]));
    ic_report_table_end(r);
    ic_report_chart(r, "line", "Perplexity by decoder rows", "decoder rows", "perplexity");
    for (size_t i = 0; i < e->systems; i++)
        for (int k = 1; k <= 2; k++) {
            char name[160];
            snprintf(name, sizeof name, "%s%s", ic_eval_prefix(e, &e->system[i]).text,
                     k == 1 ? "slots" : "raw text");
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
