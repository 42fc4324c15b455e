/*
 * instruct.c - answers to questions about a context (ICAE §4.2.2): from its slots, the full text,
 * nothing, or a text summary as long as the slots; scored against a reference and by a judge.
 */
#include "eval/instruct.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void ic_key_answer(char key[256], const ic_system *s, const char *from, float rate, size_t question)
{
    if (strcmp(from, "slots"))
        (void)ic_eval_key(key, "qa|%s|%s|%zu", s->name, from, question);
    else
        (void)ic_eval_key(key, "qa|%s|%s@%g|%zu", s->name, from, (double)rate, question);
}

static const char *const source_keys[] = {"slots", "full", "none", "summary", "summary text"};

const ic_json *ic_answer(const ic_eval *e, const ic_system *s, ic_reading r, size_t question)
{
    char key[256];
    ic_key_answer(key, s, source_keys[r.source], r.rate, question);
    return ic_journal_get(e->journal, key);
}

size_t ic_readings_of(ic_reading out[IC_READINGS], const ic_eval *e, const ic_system *s)
{
    float rate[IC_RATES];
    size_t n = ic_eval_rates(rate, e, s);
    for (size_t i = 0; i < n; i++)
        out[i] = (ic_reading){IC_FROM_SLOTS, rate[i]};
    for (ic_source k = IC_FROM_FULL; k <= IC_FROM_SUMMARY; k++)
        out[n++] = (ic_reading){k, 0};
    return n;
}

/* One question on its way through the decoder. */
typedef struct ask {
    ic_job job;
    ic_prompt prompt;
    ic_generation g;
    ic_ids out;
    size_t question;
    ic_reading reads;
    double loss;
    bool ready, done;
    struct ask *next;
} ask;

typedef struct run {
    ic_eval *e;
    ic_system *s;
    const size_t *chosen; /* questions */
    size_t count, total, made;
    const ic_reading *reads;
    size_t readings;
    int max_tokens;
} run;

static int take(void *user, int32_t id)
{
    return ic_ids_add(&((ask *)user)->out, id);
}

static void finished(ic_job *job)
{
    ((ask *)job->user)->done = true;
}

static void ask_free(ask *a)
{
    if (!a)
        return;
    ic_prompt_free(&a->prompt);
    ic_ids_free(&a->out);
    ic_free(a);
}

/* ---- prompts ---------------------------------------------------------------------------------- */

/* A summary that was given, cut to `limit` tokens; or the one that the base wrote. */
static int summary_text(ic_buffer *out, run *r, const ic_question *q, size_t question)
{
    int rc = ICAE_OK;
    ic_ids ids = {0}, context = {0};
    if (!q->summary) {
        const ic_json *made = ic_answer(r->e, r->s, (ic_reading){IC_SUMMARY_TEXT, 0}, question);
        const char *s = ic_record_text(made, "answer"), *skipped = ic_record_text(made, "skipped");
        if (*skipped)
            return ic_fail(ICAE_ELIMIT, "no summary: %s", skipped);
        return ic_buffer_add(out, s, strlen(s));
    }
    IC_TRY(ic_session_tokenize(&context, r->s->session, q->context, strlen(q->context)));
    IC_TRY(ic_tokenizer_encode_untrusted(&ids, r->s->model->tokenizer, q->summary,
                                         strlen(q->summary), false));
    size_t limit = (size_t)ic_eval_slots(r->s->adapter, r->s->adapter->rate, context.count);
    IC_TRY(ic_eval_decode(out, r->s, ids.ids, IC_MIN(ids.count, limit)));
done:
    ic_ids_free(&ids);
    ic_ids_free(&context);
    return rc;
}

static int make_prompt(run *r, ask *a)
{
    int rc = ICAE_OK;
    const ic_question *q = &r->e->data.question[a->question];
    icae_slots *slots = NULL;
    ic_ids ids = {0};
    ic_buffer text = {0};
    icae_part part = {.text = q->context, .size = strlen(q->context)};
    const char *prompt = q->prompt;
    size_t parts = 1;
    uint64_t max_tokens = (uint64_t)r->max_tokens;
    if (a->reads.source == IC_FROM_SLOTS) {
        IC_TRY(
            icae_compress(&slots, r->s->session, q->context, strlen(q->context),
                          &(icae_compress_options){.rate = a->reads.rate, .refine = r->s->refine}));
        part.slots = slots;
    } else if (a->reads.source == IC_FROM_NONE) {
        parts = 0;
    } else if (a->reads.source == IC_FROM_SUMMARY) {
        IC_TRY(summary_text(&text, r, q, a->question));
        part = (icae_part){.text = text.data ? text.data : "", .size = text.size};
        parts = text.size > 0;
    } else if (a->reads.source == IC_SUMMARY_TEXT) {
        IC_TRY(ic_session_tokenize(&ids, r->s->session, q->context, strlen(q->context)));
        max_tokens = ic_eval_slots(r->s->adapter, r->s->adapter->rate, ids.count);
        prompt = "Summarize the text above, keeping its facts.";
    }
    IC_TRY(ic_ask_prompt(&a->prompt, r->s->session, &part, parts, prompt, r->s->expand));
    IC_TRY(ic_prompt_fits(&a->prompt, max_tokens, "the question with its context and answer"));
    a->g = (ic_generation){.sampling.max_tokens = max_tokens,
                           .end_of_turn = ic_end_of_turn(r->s->session),
                           .take = take,
                           .user = a};
    a->job = (ic_job){.prompt = &a->prompt, .generation = &a->g, .finished = finished, .user = a};
done:
    icae_slots_free(slots);
    ic_ids_free(&ids);
    ic_buffer_free(&text);
    return rc;
}

/* Mean nats of the reference answer and eos behind the prompt, which is left as it was. */
static int score_reference(run *r, ask *a)
{
    int rc = ICAE_OK;
    const ic_question *q = &r->e->data.question[a->question];
    const ic_config *c = &r->s->model->config;
    ic_ids ids = {0};
    ic_score *scores = NULL;
    int rows = a->prompt.rows;
    double next = a->prompt.next;
    a->loss = (double)NAN;
    IC_TRY(ic_tokenizer_encode_untrusted(&ids, r->s->model->tokenizer, q->answer, strlen(q->answer),
                                         false));
    if (c->eos_count)
        IC_TRY(ic_ids_add(&ids, c->eos[0]));
    if (!ids.count)
        goto done;
    IC_TRY(ic_prompt_fits(&a->prompt, ids.count, "the question with its context and answer"));
    if (!(scores = ic_alloc(ids.count, sizeof *scores))) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    IC_TRY(ic_prompt_ids(&a->prompt, ids.ids, ids.count - 1));
    IC_TRY(ic_prompt_read(r->s->session, &a->prompt, 0, a->prompt.rows, NULL, ids.ids,
                          (int)ids.count, scores, NULL));
    a->loss = 0;
    for (size_t i = 0; i < ids.count; i++)
        a->loss += (double)scores[i].nll / (double)ids.count;
done:
    a->prompt.rows = rows;
    a->prompt.next = next;
    ic_free(scores);
    ic_ids_free(&ids);
    return rc;
}

/* ---- records ---------------------------------------------------------------------------------- */

/* `skipped`: why there is no answer. */
static int keep(run *r, const ask *a, const char *skipped)
{
    int rc = ICAE_OK;
    char key[256];
    ic_report w = {0};
    ic_buffer text = {0};
    ic_rouge rouge = {0};
    ic_squad squad = {0};
    const char *answer = r->e->data.question[a->question].answer;
    IC_TRY(ic_eval_decode(&text, r->s, a->out.ids, a->out.count));
    IC_TRY(ic_rouge_score(&rouge, text.data, text.size, answer, strlen(answer)));
    IC_TRY(ic_squad_score(&squad, text.data, text.size, answer, strlen(answer)));
    ic_report_open(&w, NULL, '{');
    if (skipped) {
        ic_report_text(&w, "skipped", skipped);
    } else {
        ic_report_bytes(&w, "answer", text.data, text.size);
        ic_report_number(&w, "rouge1", rouge.one.f);
        ic_report_number(&w, "rouge2", rouge.two.f);
        ic_report_number(&w, "rougeL", rouge.l.f);
        ic_report_number(&w, "exact", squad.exact);
        ic_report_number(&w, "f1", squad.f1);
        ic_report_number(&w, "loss", a->loss);
        ic_report_number(&w, "rows", (double)a->g.result.prompt_rows);
    }
    ic_report_close(&w, '}');
    IC_TRY(w.rc);
    ic_key_answer(key, r->s, source_keys[a->reads.source], a->reads.rate, a->question);
    IC_TRY(ic_journal_put(r->e->journal, key, &w.json));
    IC_TRY(ic_eval_progress(r->e, "answers", ++r->made, r->total));
done:
    ic_buffer_free(&w.json);
    ic_buffer_free(&text);
    return rc;
}

/* Makes the next question ready, or records why it cannot be asked. */
static int start(run *r, ask *a)
{
    int rc = make_prompt(r, a);
    if (rc == ICAE_OK && a->reads.source != IC_SUMMARY_TEXT)
        rc = score_reference(r, a);
    if (rc == ICAE_ELIMIT)
        return keep(r, a, icae_error_message());
    a->ready = rc == ICAE_OK;
    return rc;
}

/* Sets question and reading number `at`; false: there is a record, or the summary was given. */
static bool wanted(run *r, size_t at, ask *a)
{
    a->question = r->chosen[at / r->readings];
    a->reads = r->reads[at % r->readings];
    if (a->reads.source == IC_SUMMARY_TEXT && r->e->data.question[a->question].summary)
        return false;
    return !ic_answer(r->e, r->s, a->reads, a->question);
}

/* Keeps the answers that are finished and drops them from the list. */
static int sweep(run *r, ask **list)
{
    int rc = ICAE_OK;
    for (ask **p = list; *p;) {
        ask *a = *p;
        if (a->ready && !a->done) {
            p = &a->next;
            continue;
        }
        if (a->done)
            IC_TRY(a->job.rc < 0 ? a->job.rc : keep(r, a, NULL));
        *p = a->next;
        ask_free(a);
    }
done:
    return rc;
}

/* Asks everything that has no record yet. */
static int ask_all(run *r)
{
    enum { AHEAD = 36 };
    int rc = ICAE_OK;
    ic_engine *engine = NULL;
    ask *list = NULL;
    size_t at = 0;
    r->total = r->count * r->readings;
    r->made = 0;
    IC_TRY(ic_engine_new(&engine, r->s->session, NULL));
    while (at < r->total || ic_engine_load(engine)) {
        for (; at < r->total && ic_engine_load(engine) < AHEAD; at++) {
            ask *a = ic_alloc(1, sizeof *a);
            if (!a) {
                rc = ICAE_ENOMEM;
                goto done;
            }
            a->next = list;
            list = a;
            if (!wanted(r, at, a)) {
                r->made++;
                continue;
            }
            IC_TRY(start(r, a));
            if (a->ready)
                ic_engine_add(engine, &a->job);
        }
        IC_TRY(ic_engine_step(engine));
        IC_TRY(sweep(r, &list));
    }
done:
    while (list) {
        ask *a = list;
        list = a->next;
        ask_free(a);
    }
    ic_engine_free(engine);
    return rc;
}

/* ---- the experiment --------------------------------------------------------------------------- */

/* `count` questions, drawn by the seed. */
static void choose(size_t *chosen, const ic_eval *e, size_t count)
{
    size_t all = e->data.questions;
    for (size_t i = 0; i < all; i++)
        chosen[i] = i;
    for (size_t i = 0; i < count; i++) {
        size_t j = i + (size_t)(ic_random_unit(e->seed, IC_STREAM_MIX, i) * (double)(all - i));
        size_t t = chosen[i];
        chosen[i] = chosen[j];
        chosen[j] = t;
    }
}

int ic_experiment_instruct(ic_eval *e)
{
    int rc = ICAE_OK;
    uint64_t asked = ic_suite_samples(e, "instruct");
    size_t count = IC_MIN((size_t)asked, e->data.questions);
    size_t *chosen = ic_alloc(e->data.questions + 1, sizeof *chosen);
    static const ic_reading summary = {IC_SUMMARY_TEXT, 0};
    if (!chosen)
        return ICAE_ENOMEM;
    choose(chosen, e, count);
    for (size_t i = 0; i < e->systems; i++) {
        ic_reading reads[IC_READINGS];
        run all = {.e = e,
                   .s = &e->system[i],
                   .chosen = chosen,
                   .count = count,
                   .reads = &summary,
                   .readings = 1,
                   .max_tokens = ic_suite_int(e, "instruct", "max_tokens", 64)};
        IC_TRY(ask_all(&all));
        all.reads = reads;
        all.readings = ic_readings_of(reads, e, all.s);
        IC_TRY(ask_all(&all));
    }
    IC_TRY(ic_report_answers(e, chosen, count, asked));
done:
    ic_free(chosen);
    return rc;
}
