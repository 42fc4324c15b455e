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

/* One shape once; texts [count, length]. */
static int measure_once(times *full, times *slots, ic_system *s, const int32_t *texts, int count,
                        int length, int tokens)
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
        IC_TRY(ic_prompt_ids(&a[i], texts + (size_t)i * (size_t)length, (size_t)length));
        IC_TRY(ic_prompt_fits(&a[i], (uint64_t)tokens, "the text"));
    }
    double start = ic_seconds();
    for (int i = 0; i < count; i++) {
        int32_t *text = (int32_t *)(uintptr_t)texts + (size_t)i * (size_t)length;
        ic_ids ids = {text, (size_t)length, (size_t)length};
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
static int measure(times out[2], ic_system *s, const int32_t *texts, int count, int length,
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

/* Uses of the same slots after which compressing has paid; NaN: never. */
static double questions_to_pay(const times t[2])
{
    double full = t[0].first + t[0].decode, slots = t[1].first + t[1].decode;
    return full > slots ? ceil(t[1].compress / (full - slots)) : (double)NAN;
}

/* Output tokens from which on a single use pays; NaN: never. */
static double tokens_to_pay(const times t[2], int tokens)
{
    double more = IC_MAX(tokens - 1, 1), per_token = (t[0].decode - t[1].decode) / more;
    double lead = t[1].compress + t[1].first - t[0].first;
    if (lead <= 0)
        return 1;
    return per_token > 0 ? ceil(lead / per_token) + 1 : (double)NAN;
}

static void say_when(char text[256], double questions, double output)
{
    char first[96], second[96];
    if (isfinite(questions))
        snprintf(first, sizeof first, "after %.0f question%s on the same text", questions,
                 questions > 1 ? "s" : "");
    else
        snprintf(first, sizeof first, "never by reuse: slots are not read faster here");
    if (!isfinite(output))
        snprintf(second, sizeof second, "for a single use never");
    else if (output <= 1)
        snprintf(second, sizeof second, "for a single use at once");
    else
        snprintf(second, sizeof second, "for a single use from %.0f output tokens on", output);
    snprintf(text, 256, "%s; %s", first, second);
}

/* `count` texts of `length` ids, cut from all documents one behind the other, from the start again if they
 * are used up: what they say does not matter here. *out: the caller's, one block. */
static int shape_texts(int32_t **out, ic_eval *e, ic_system *s, int count, int length)
{
    int rc = ICAE_OK;
    size_t got, total = (size_t)count * (size_t)length, n = 0;
    ic_piece *piece = NULL;
    int32_t *ids = NULL;
    enum { PIECE = 32 };
    IC_TRY(ic_eval_pieces(&piece, &got, e, s, NULL, PIECE, total / PIECE + 1));
    if (!got) {
        rc = ic_fail(ICAE_ELIMIT, "there is no text of %d tokens", PIECE);
        goto done;
    }
    if (!(ids = ic_alloc(total, sizeof *ids))) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (; n < total; n++)
        ids[n] = piece[n / PIECE % got].ids[n % PIECE];
    *out = ids;
    ids = NULL;
done:
    ic_free(piece);
    ic_free(ids);
    return rc;
}

static int keep(ic_eval *e, const char *key, const times t[2], int repeats)
{
    static const char *const names[] = {"full_first",  "full_decode",  "compress",
                                        "slots_first", "slots_decode", "repeats"};
    const double v[] = {t[0].first, t[0].decode, t[1].compress, t[1].first, t[1].decode, repeats};
    return ic_record_keep(e, key, names, v, IC_COUNT(names));
}

static int shape(ic_eval *e, ic_system *s, int count, int length, int tokens)
{
    int rc = ICAE_OK, repeats = IC_MAX(ic_suite_int(e, "latency", "repeats", 3), 1);
    times t[2];
    char key[256], progress[96];
    int32_t *texts = NULL;
    IC_TRY(ic_eval_key(key, "latency|%s|%d|%d|%d", s->name, count, length, tokens));
    if (ic_journal_get(e->journal, key))
        return ICAE_OK;
    snprintf(progress, sizeof progress, "latency of %d x %d", count, length);
    IC_TRY(ic_eval_progress(e, progress, 0, 1));
    rc = shape_texts(&texts, e, s, count, length);
    if (rc == ICAE_OK)
        rc = measure(t, s, texts, count, length, tokens, repeats);
    if (rc == ICAE_ELIMIT || rc == ICAE_ENOMEM) {
        ic_report_note(&e->report, "%s, %d x %d: left out: %s.", s->name, count, length,
                       icae_error_message());
        rc = ICAE_OK;
        goto done;
    }
    IC_TRY(rc);
    IC_TRY(keep(e, key, t, repeats));
    IC_TRY(ic_eval_progress(e, progress, 1, 1));
done:
    ic_free(texts);
    return rc;
}

static size_t shapes_of(int out[IC_LIST][2], const ic_eval *e)
{
    size_t n = 0;
    const ic_json *list = ic_json_get(ic_json_get(e->suite, "latency"), "shapes");
    for (const ic_json *i = ic_json_first(list); i && n < IC_LIST; i = ic_json_next(i)) {
        const ic_json *a = ic_json_first(i), *b = a ? ic_json_next(a) : NULL;
        double count = ic_json_number(a, 0), length = ic_json_number(b, 0);
        if (count >= 1 && count <= 4096 && length >= 1 && length <= 1 << 24) {
            out[n][0] = (int)count;
            out[n++][1] = (int)length;
        }
    }
    return n;
}

/* The record of a shape; false: it was left out. */
static bool times_of(times t[2], double *repeats, const ic_eval *e, const ic_system *s,
                     const int shape[2], int tokens)
{
    char key[256];
    (void)ic_eval_key(key, "latency|%s|%d|%d|%d", s->name, shape[0], shape[1], tokens);
    const ic_json *r = ic_journal_get(e->journal, key);
    t[0] = (times){0, ic_record_number(r, "full_first"), ic_record_number(r, "full_decode")};
    t[1] = (times){ic_record_number(r, "compress"), ic_record_number(r, "slots_first"),
                   ic_record_number(r, "slots_decode")};
    *repeats = ic_record_number(r, "repeats");
    return r != NULL;
}

static void row(ic_eval *e, const ic_system *s, const int shape[2], int tokens)
{
    char name[64], when[256];
    times t[2];
    double repeats;
    if (!times_of(t, &repeats, e, s, shape, tokens))
        return;
    double full = t[0].first + t[0].decode, cached = t[1].first + t[1].decode;
    double whole = t[1].compress + cached, questions = questions_to_pay(t),
           output = tokens_to_pay(t, tokens);
    say_when(when, questions, output);
    snprintf(name, sizeof name, "%d x %d", shape[0], shape[1]);
    ic_report_row(&e->report, "sssnnnnnnnnnnnn", s->name, name, when, repeats, t[0].first, full,
                  t[1].compress, shape[0] * (double)shape[1] / t[1].compress, t[1].first, cached,
                  whole, full / whole, full / cached, questions, output);
}

static void chart(ic_eval *e, const int (*list)[2], size_t n, int tokens)
{
    ic_report *r = &e->report;
    char title[96];
    snprintf(title, sizeof title, "Seconds for %d output tokens", tokens);
    ic_report_chart(r, "stack", title, "", "compress|first token|decode");
    for (size_t i = 0; i < e->systems * n; i++) {
        const ic_system *s = &e->system[i / n];
        const int *shape = list[i % n];
        char name[192];
        times t[2];
        double repeats;
        if (!times_of(t, &repeats, e, s, shape, tokens))
            continue;
        for (int k = 0; k < 2; k++) {
            snprintf(name, sizeof name, "%s%d x %d, %s", ic_eval_prefix(e, s).text, shape[0],
                     shape[1], k ? "slots" : "full text");
            ic_report_stack(r, name, (double[]){t[k].compress, t[k].first, t[k].decode}, 3);
        }
    }
    ic_report_chart_end(r);
}

static void highlight(ic_eval *e, const int shape[2], int tokens)
{
    for (size_t i = 0; i < e->systems; i++) {
        times t[2];
        double repeats;
        if (!times_of(t, &repeats, e, &e->system[i], shape, tokens))
            continue;
        double full = t[0].first + t[0].decode, cached = t[1].first + t[1].decode;
        ic_eval_highlight(e, "latency", "Speed against reading the full text",
                          ic_format("%.2f\u00d7", full / (t[1].compress + cached)),
                          ic_format("%s%.2f\u00d7 with cached slots; %d \u00d7 %d tokens, %d "
                                    "output tokens, %.0f runs",
                                    ic_eval_prefix(e, &e->system[i]).text, full / cached, shape[0],
                                    shape[1], tokens, repeats));
    }
}

int ic_experiment_latency(ic_eval *e)
{
    int rc = ICAE_OK, list[IC_LIST][2], tokens = ic_suite_int(e, "latency", "tokens", 128);
    size_t n = shapes_of(list, e);
    ic_report *r = &e->report;
    char title[96];
    ic_report_section(r, "latency", "Latency",
                      "Seconds for a whole batch (texts x tokens each): the base reads the full "
                      "text and writes, against: the text is compressed, then the base reads the "
                      "slots and writes as much. Cached: the slots are there already. Medians of "
                      "repetitions on the machine named above.");
    for (size_t i = 0; i < e->systems; i++)
        for (size_t k = 0; k < n; k++)
            IC_TRY(shape(e, &e->system[i], list[k][0], list[k][1], tokens));
    snprintf(title, sizeof title, "Seconds, %d tokens written", tokens);
    ic_report_table(
        r, title,
        "System|Batch|Compression pays|Repeats:0|Full: first token:3|Full: "
        "total:3|Compress:3|Tokens/s "
        "compressed:0|Slots: first token:3|Slots: total, cached:3|Slots: total:3|Speed-up:2|Speed-"
        "up, cached:2|Pays from questions:0|Pays from output tokens:0");
    for (size_t i = 0; i < e->systems; i++)
        for (size_t k = 0; k < n; k++)
            row(e, &e->system[i], list[k], tokens);
    ic_report_table_end(r);
    chart(e, (const int(*)[2])list, n, tokens);
    ic_report_section_end(r);
    size_t most = 0;
    for (size_t i = 1; i < n; i++)
        if ((int64_t)list[i][0] * list[i][1] > (int64_t)list[most][0] * list[most][1])
            most = i;
    if (n)
        highlight(e, list[most], tokens);
done:
    return rc;
}
