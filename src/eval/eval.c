/*
 * eval.c - what experiments ask of a run: pieces of text, settings, records, progress.
 */
#include "eval/eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- settings and records --------------------------------------------------------------------- */

int ic_eval_key(char key[256], const char *format, ...)
{
    va_list list;
    va_start(list, format);
    int n = vsnprintf(key, 256, format, list);
    va_end(list);
    return n < 256 ? ICAE_OK : ic_fail(ICAE_ELIMIT, "a name is too long: %s", key);
}

double ic_record_number(const ic_json *record, const char *key)
{
    return ic_json_number(ic_json_get(record, key), (double)NAN);
}

const char *ic_record_text(const ic_json *record, const char *key)
{
    const char *s = ic_json_string(ic_json_get(record, key));
    return s ? s : "";
}

int ic_suite_int(const ic_eval *e, const char *experiment, const char *key, int otherwise)
{
    double v = ic_json_number(ic_json_get(ic_json_get(e->suite, experiment), key), otherwise);
    return v >= 0 && v <= 1 << 30 ? (int)v : otherwise;
}

size_t ic_suite_ints(int *out, size_t capacity, const ic_eval *e, const char *experiment,
                     const char *key)
{
    size_t n = 0;
    const ic_json *list = ic_json_get(ic_json_get(e->suite, experiment), key);
    for (const ic_json *i = ic_json_first(list); i && n < capacity; i = ic_json_next(i)) {
        double v = ic_json_number(i, 0);
        if (v >= 1 && v <= 1 << 30)
            out[n++] = (int)v;
    }
    return n;
}

uint64_t ic_suite_samples(const ic_eval *e, const char *experiment)
{
    if (e->options->samples)
        return e->options->samples;
    return (uint64_t)ic_suite_int(e, experiment, "samples", (int)e->samples);
}

/* ---- systems and figures ---------------------------------------------------------------------- */

size_t ic_eval_rates(float out[IC_RATES], const ic_eval *e, const ic_system *s)
{
    const icae_adapter *a = s->adapter;
    const ic_json *list = ic_json_get(e->suite, "rates");
    size_t n = 0, kept = 0;
    out[n++] = a->rate;
    for (int i = 0; i < a->rates_count && n < IC_RATES; i++)
        if (fabsf(a->rates[i] - a->rate) > 1e-6f)
            out[n++] = a->rates[i];
    for (size_t i = 1; i < n; i++) /* in order */
        for (size_t k = i; k && out[k - 1] > out[k]; k--) {
            float swap = out[k];
            out[k] = out[k - 1];
            out[k - 1] = swap;
        }
    if (!ic_json_first(list))
        return n;
    for (size_t k = 0; k < n; k++)
        for (const ic_json *i = ic_json_first(list); i; i = ic_json_next(i))
            if (fabs(ic_json_number(i, 0) - (double)out[k]) < 1e-6) {
                out[kept++] = out[k];
                break;
            }
    return kept;
}

uint64_t ic_eval_slots(const icae_adapter *a, float rate, uint64_t tokens)
{
    uint64_t n = 0;
    int segments = ic_segment_count(a, rate, tokens);
    for (int i = 0; i < segments; i++)
        n += (uint64_t)ic_segment_slots(a, rate, ic_segment_tokens(a, rate, tokens, i));
    return n;
}

void ic_eval_label(char out[128], const ic_eval *e, const ic_system *s, float rate)
{
    float rates[IC_RATES];
    if (ic_eval_rates(rates, e, s) > 1)
        snprintf(out, 128, "%.100s, %g\u00d7", s->name, (double)rate);
    else
        snprintf(out, 128, "%.120s", s->name);
}

ic_prefix ic_eval_prefix(const ic_eval *e, const ic_system *s)
{
    ic_prefix p = {""};
    if (e->systems > 1)
        snprintf(p.text, sizeof p.text, "%.120s, ", s->name);
    return p;
}

void ic_eval_highlight(ic_eval *e, const char *section, const char *title, char *value,
                       char *detail)
{
    if (!value || !detail)
        e->report.rc = ICAE_ENOMEM;
    if (value && detail && e->highlights < IC_HIGHLIGHTS) {
        e->highlight[e->highlights++] = (ic_highlight){section, title, value, detail};
        return;
    }
    ic_free(value);
    ic_free(detail);
}

int ic_eval_progress(ic_eval *e, const char *what, uint64_t done, uint64_t total)
{
    const icae_session_options *o = &e->options->session;
    if (o->progress && o->progress(o->user, what, done, total))
        return ic_fail(ICAE_ECANCELLED, "the evaluation was stopped; --resume takes it up again");
    return ICAE_OK;
}

void ic_eval_shortfall(ic_eval *e, const char *what, uint64_t got, uint64_t wanted, const char *why)
{
    if (got < wanted)
        ic_report_note(&e->report, "%s: measured on %llu samples of the %llu asked for: %s.", what,
                       (unsigned long long)got, (unsigned long long)wanted, why);
}

/* ---- pieces of text --------------------------------------------------------------------------- */

static int tokens_of(const ic_ids **out, ic_eval *e, ic_system *s, size_t document)
{
    const ic_document *d = &e->data.document[document];
    ic_ids *ids = &s->ids[document];
    if (!ids->count) {
        int rc = ic_tokenizer_encode_untrusted(ids, s->model->tokenizer, d->text, d->size, false);
        if (rc < 0)
            return rc;
    }
    *out = ids;
    return ICAE_OK;
}

typedef struct place {
    uint32_t document, offset;
} place;

static int add_places(place **list, size_t *count, size_t *capacity, size_t document, size_t tokens,
                      size_t length)
{
    for (size_t at = 0; at + length <= tokens; at += length) {
        if (*count == *capacity) {
            size_t n = IC_MAX((size_t)1024, *capacity * 2);
            place *more = ic_resize(*list, n, sizeof *more);
            if (!more)
                return ICAE_ENOMEM;
            *list = more;
            *capacity = n;
        }
        (*list)[(*count)++] = (place){(uint32_t)document, (uint32_t)at};
    }
    return ICAE_OK;
}

int ic_eval_pieces(ic_piece **out, size_t *count, ic_eval *e, ic_system *s, const char *set,
                   int length, uint64_t wanted)
{
    int rc = ICAE_OK;
    place *list = NULL;
    size_t n = 0, capacity = 0;
    ic_piece *pieces = NULL;
    const ic_ids *ids;
    for (size_t d = 0; d < e->data.documents; d++) {
        if (set && strcmp(set, e->data.document[d].set))
            continue;
        IC_TRY(tokens_of(&ids, e, s, d));
        IC_TRY(add_places(&list, &n, &capacity, d, ids->count, (size_t)length));
    }
    size_t got = wanted < n ? (size_t)wanted : n;
    if (!(pieces = ic_alloc(IC_MAX(got, (size_t)1), sizeof *pieces))) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (size_t i = 0; i < got; i++) { /* a shuffle, as far as it is needed */
        size_t j = i + (size_t)(ic_random_unit(e->seed, IC_STREAM_DATA, i) * (double)(n - i));
        place chosen = list[j];
        list[j] = list[i];
        pieces[i] =
            (ic_piece){s->ids[chosen.document].ids + chosen.offset, chosen.document, chosen.offset};
    }
    *out = pieces;
    *count = got;
    pieces = NULL;
done:
    ic_free(list);
    ic_free(pieces);
    return rc;
}

/* Random ids may spell a 0 byte, which JSON strings here cannot hold: a space takes its place. */
int ic_eval_decode(ic_buffer *out, const ic_system *s, const int32_t *ids, size_t count)
{
    int rc = ic_tokenizer_decode(out, s->model->tokenizer, ids, count, true);
    for (size_t i = 0; rc == ICAE_OK && i < out->size; i++)
        if (!out->data[i])
            out->data[i] = ' ';
    return rc < 0 ? rc : ic_buffer_add(out, "", 0);
}
