/*
 * latency.c - what compression costs and saves (ICAE §4.3, Table 7): compressing, reading the prompt up
 * to the first token, decoding; against the same base that reads the full text; and when it pays.
 *
 * Both sides run through the same engine with the same batch and write the same number of tokens.
 */
#include "eval/eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct times {
    double compress, first, decode; /* seconds of the whole batch; first: until every first token */
} times;

static int take_nothing(void *user, int32_t id)
{
    (void)user, (void)id;
    return 0;
}

/* Reads `count` prompts and writes `tokens` tokens behind each. */
static int decode(double *seconds, ic_system *s, ic_prompt *prompt, int count, int tokens)
{
    int rc = ICAE_OK;
    ic_engine *engine = NULL;
    ic_job *jobs = ic_alloc((size_t)count, sizeof *jobs);
    ic_generation *g = ic_alloc((size_t)count, sizeof *g);
    int *rows = ic_alloc((size_t)count, sizeof *rows);
    if (!jobs || !g || !rows) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    IC_TRY(ic_engine_new(&engine, s->session, &(ic_engine_options){.sequences = count}));
    double start = ic_seconds();
    for (int i = 0; i < count; i++) {
        rows[i] = prompt[i].rows;
        g[i] = (ic_generation){.sampling.max_tokens = (uint64_t)tokens,
                               .through_eos = true,
                               .end_of_turn = -1,
                               .take = take_nothing};
        jobs[i] = (ic_job){.prompt = &prompt[i], .generation = &g[i]};
        ic_engine_add(engine, &jobs[i]);
    }
    IC_TRY(ic_engine_drain(engine));
    *seconds = ic_seconds() - start;
    for (int i = 0; i < count; i++) {
        if (jobs[i].rc < 0)
            rc = jobs[i].rc;
        prompt[i].next -= prompt[i].rows - rows[i]; /* as it was, for the next time */
        prompt[i].rows = rows[i];
    }
done:
    ic_engine_free(engine);
    ic_free(jobs);
    ic_free(g);
    ic_free(rows);
    return rc;
}

static int time_prompts(times *t, ic_system *s, ic_prompt *prompt, int count, int tokens)
{
    double first, all;
    int rc = decode(&first, s, prompt, count, 1);
    if (rc == ICAE_OK)
        rc = decode(&all, s, prompt, count, tokens);
    if (rc == ICAE_OK) {
        t->first = first;
        t->decode = IC_MAX(all - first, 0);
    }
    return rc;
}

/* One shape once: texts[i] of `length` ids. */
static int measure_once(times *full, times *slots, ic_system *s, const int32_t *const *texts,
                        int count, int length, int tokens)
{
    int rc = ICAE_OK;
    const int32_t mark = IC_LM;
    icae_slots **made = ic_alloc((size_t)count, sizeof *made);
    ic_prompt *a = ic_alloc((size_t)count, sizeof *a), *b = ic_alloc((size_t)count, sizeof *b);
    if (!made || !a || !b) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (int i = 0; i < count; i++) {
        ic_prompt_begin(&a[i], s->session);
        IC_TRY(ic_prompt_ids(&a[i], texts[i], (size_t)length));
        IC_TRY(ic_prompt_fits(&a[i], (uint64_t)tokens, "the text"));
    }
    double start = ic_seconds();
    for (int i = 0; i < count; i++) {
        ic_ids ids = {(int32_t *)(uintptr_t)texts[i], (size_t)length, (size_t)length};
        IC_TRY(ic_compress_ids(&made[i], s->session, &ids, &(icae_compress_options){0}));
    }
    slots->compress = ic_seconds() - start;
    for (int i = 0; i < count; i++) {
        ic_prompt_begin(&b[i], s->session);
        IC_TRY(ic_prompt_slots(&b[i], made[i], 0, made[i]->segments, NULL));
        if (s->adapter->lm_token)
            IC_TRY(ic_prompt_ids(&b[i], &mark, 1));
        IC_TRY(ic_prompt_fits(&b[i], (uint64_t)tokens, "the slots"));
    }
    IC_TRY(time_prompts(full, s, a, count, tokens));
    IC_TRY(time_prompts(slots, s, b, count, tokens));
done:
    for (int i = 0; i < count; i++) {
        if (made)
            icae_slots_free(made[i]);
        if (a)
            ic_prompt_free(&a[i]);
        if (b)
            ic_prompt_free(&b[i]);
    }
    ic_free(made);
    ic_free(a);
    ic_free(b);
    return rc;
}

static double median(ic_stats *s)
{
    return ic_stats_quantile(s, 0.5);
}

/* The median of some repetitions, each figure by itself. */
static int measure(times out[2], ic_system *s, const int32_t *const *texts, int count, int length,
                   int tokens, int repeats)
{
    int rc = ICAE_OK;
    ic_stats v[2][3] = {{{0}}};
    for (int i = 0; i < repeats; i++) {
        times t[2] = {{0}};
        IC_TRY(measure_once(&t[0], &t[1], s, texts, count, length, tokens));
        for (int k = 0; k < 2; k++) {
            IC_TRY(ic_stats_add(&v[k][0], t[k].compress));
            IC_TRY(ic_stats_add(&v[k][1], t[k].first));
            IC_TRY(ic_stats_add(&v[k][2], t[k].decode));
        }
    }
    for (int k = 0; k < 2; k++)
        out[k] = (times){median(&v[k][0]), median(&v[k][1]), median(&v[k][2])};
done:
    for (int k = 0; k < 6; k++)
        ic_stats_free(&v[k / 3][k % 3]);
    return rc;
}

/* When compression pays, in words. */
static void break_even(char text[256], const times t[2], int tokens)
{
    double full = t[0].first + t[0].decode, slots = t[1].first + t[1].decode;
    double per_full = t[0].decode / IC_MAX(tokens - 1, 1),
           per_slots = t[1].decode / IC_MAX(tokens - 1, 1);
    char questions[96], output[96];
    if (full > slots)
        snprintf(questions, sizeof questions, "after %.0f question%s on the same text",
                 ceil(t[1].compress / (full - slots)),
                 ceil(t[1].compress / (full - slots)) > 1 ? "s" : "");
    else
        snprintf(questions, sizeof questions, "never by reuse: slots are not read faster here");
    double lead = t[1].compress + t[1].first - t[0].first;
    if (lead <= 0)
        snprintf(output, sizeof output, "for a single use at once");
    else if (per_full > per_slots)
        snprintf(output, sizeof output, "for a single use from %.0f output tokens on",
                 ceil(lead / (per_full - per_slots)));
    else
        snprintf(output, sizeof output, "for a single use never");
    snprintf(text, 256, "%s; %s", questions, output);
}

/* Texts of a shape, used again if there are too few. */
static int shape_texts(const int32_t ***out, ic_eval *e, ic_system *s, int count, int length)
{
    int rc = ICAE_OK;
    size_t got;
    ic_piece *piece = NULL;
    const int32_t **texts = NULL;
    *out = NULL;
    IC_TRY(ic_eval_pieces(&piece, &got, e, s, NULL, length, (uint64_t)count));
    if (!got)
        goto done;
    if (!(texts = ic_alloc((size_t)count, sizeof *texts))) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (size_t i = 0; i < (size_t)count; i++)
        texts[i] = piece[i % got].ids;
    *out = texts;
done:
    ic_free(piece);
    return rc;
}

static int shape(ic_eval *e, ic_system *s, int count, int length, int tokens)
{
    int rc = ICAE_OK;
    times t[2];
    char key[256], when[256], progress[96];
    const int32_t **texts = NULL;
    ic_report w = {0};
    IC_TRY(ic_eval_key(key, "latency|%s|%d|%d|%d", s->name, count, length, tokens));
    if (!ic_journal_get(e->journal, key)) {
        IC_TRY(shape_texts(&texts, e, s, count, length));
        if (!texts) {
            ic_report_note(&e->report, "%s, %d x %d: left out, no text is that long.", s->name,
                           count, length);
            goto done;
        }
        snprintf(progress, sizeof progress, "latency of %d x %d", count, length);
        IC_TRY(ic_eval_progress(e, progress, 0, 1));
        rc = measure(t, s, texts, count, length, tokens, ic_suite_int(e, "latency", "repeats", 3));
        if (rc == ICAE_ELIMIT || rc == ICAE_ENOMEM) {
            ic_report_note(&e->report, "%s, %d x %d: left out: %s.", s->name, count, length,
                           icae_error_message());
            rc = ICAE_OK;
            goto done;
        }
        IC_TRY(rc);
        break_even(when, t, tokens);
        ic_report_open(&w, NULL, '{');
        ic_report_number(&w, "full_first", t[0].first);
        ic_report_number(&w, "full_decode", t[0].decode);
        ic_report_number(&w, "compress", t[1].compress);
        ic_report_number(&w, "slots_first", t[1].first);
        ic_report_number(&w, "slots_decode", t[1].decode);
        ic_report_text(&w, "pays", when);
        ic_report_close(&w, '}');
        IC_TRY(w.rc);
        IC_TRY(ic_journal_put(e->journal, key, &w.json));
        IC_TRY(ic_eval_progress(e, progress, 1, 1));
    }
done:
    ic_free(texts);
    ic_buffer_free(&w.json);
    return rc;
}

enum { MOST = 16 };

static size_t shapes_of(int out[MOST][2], const ic_eval *e)
{
    size_t n = 0;
    const ic_json *list = ic_json_get(ic_json_get(e->suite, "latency"), "shapes");
    for (const ic_json *i = ic_json_first(list); i && n < MOST; i = ic_json_next(i)) {
        const ic_json *a = ic_json_first(i), *b = a ? ic_json_next(a) : NULL;
        double count = ic_json_number(a, 0), length = ic_json_number(b, 0);
        if (count >= 1 && count <= 4096 && length >= 1 && length <= 1 << 24) {
            out[n][0] = (int)count;
            out[n++][1] = (int)length;
        }
    }
    return n;
}

static void row(ic_eval *e, const ic_system *s, int count, int length, int tokens)
{
    char key[256], name[64];
    (void)ic_eval_key(key, "latency|%s|%d|%d|%d", s->name, count, length, tokens);
    const ic_json *r = ic_journal_get(e->journal, key);
    if (!r)
        return;
    double full = ic_record_number(r, "full_first") + ic_record_number(r, "full_decode");
    double compress = ic_record_number(r, "compress"), first = ic_record_number(r, "slots_first");
    double decoding = first + ic_record_number(r, "slots_decode");
    snprintf(name, sizeof name, "%d x %d", count, length);
    ic_report_row(&e->report, "ssnnnnnnnnns", s->name, name, ic_record_number(r, "full_first"),
                  full, compress, count * (double)length / compress, first, decoding,
                  compress + decoding, full / (compress + decoding), full / decoding,
                  ic_record_text(r, "pays"));
}

int ic_experiment_latency(ic_eval *e)
{
    int rc = ICAE_OK, list[MOST][2], tokens = ic_suite_int(e, "latency", "tokens", 128);
    size_t n = shapes_of(list, e);
    ic_report *r = &e->report;
    char title[96];
    ic_report_section(r, "latency", "Latency",
                      "Seconds for a whole batch (texts x tokens each): the base reads the full "
                      "text and writes, against: the text "
                      "is compressed, then the base reads the slots and writes as much. Cached: "
                      "the slots are there already. Medians "
                      "of repetitions on the machine named above.");
    for (size_t i = 0; i < e->systems; i++)
        for (size_t k = 0; k < n; k++)
            IC_TRY(shape(e, &e->system[i], list[k][0], list[k][1], tokens));
    snprintf(title, sizeof title, "Seconds, %d tokens written", tokens);
    ic_report_table(
        r, title,
        "System|Batch|Full: first token:3|Full: total:3|Compress:3|Tokens/s compressed:0|Slots: "
        "first token:3|"
        "Slots: total, cached:3|Slots: total:3|Speed-up:2|Speed-up, cached:2|Compression pays");
    for (size_t i = 0; i < e->systems; i++)
        for (size_t k = 0; k < n; k++)
            row(e, &e->system[i], list[k][0], list[k][1], tokens);
    ic_report_table_end(r);
    ic_report_section_end(r);
done:
    return rc;
}
