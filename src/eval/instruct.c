/*
 * instruct.c - answers to questions about a context (ICAE §4.2.2): from its slots, the full text,
 * nothing, or a text summary as long as the slots; scored against a reference and by a judge.
 */
#include "eval/eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS, FULL, NONE, SUMMARY, SOURCES };
static const char *const sources[] = {"slots", "full", "none", "summary"};
static const char *const source_titles[] = {"Slots", "Full context", "No context",
                                            "Summary of equal size"};

void ic_key_answer(char key[256], const ic_system *s, const char *from, size_t question)
{
    (void)ic_eval_key(key, "qa|%s|%s|%zu", s->name, from, question);
}

/* One question on its way through the decoder. */
typedef struct ask {
    ic_job job;
    ic_prompt prompt;
    ic_generation g;
    ic_ids out;
    size_t question;
    int source; /* SOURCES: the summary itself is written */
    double loss;
    bool ready, done;
    struct ask *next;
} ask;

typedef struct run {
    ic_eval *e;
    ic_system *s;
    const size_t *chosen; /* questions */
    size_t count, total, made;
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

static uint64_t slots_of_text(uint64_t tokens, const icae_adapter *a)
{
    uint64_t n = 0;
    int segments = ic_segment_count(a, a->rate, tokens);
    for (int i = 0; i < segments; i++)
        n += (uint64_t)ic_segment_slots(a, a->rate, ic_segment_tokens(a, a->rate, tokens, i));
    return n;
}

/* A summary that was given, cut to `limit` tokens; or the one that the base wrote. */
static int summary_text(ic_buffer *out, run *r, const ic_question *q, size_t question)
{
    int rc = ICAE_OK;
    char key[256];
    ic_ids ids = {0}, context = {0};
    if (!q->summary) {
        ic_key_answer(key, r->s, "summary text", question);
        const char *s = ic_record_text(ic_journal_get(r->e->journal, key), "answer");
        return ic_buffer_add(out, s, strlen(s));
    }
    IC_TRY(ic_session_tokenize(&context, r->s->session, q->context, strlen(q->context)));
    IC_TRY(ic_tokenizer_encode_untrusted(&ids, r->s->model->tokenizer, q->summary,
                                         strlen(q->summary), false));
    size_t limit = (size_t)slots_of_text(context.count, r->s->adapter);
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
    if (a->source == SLOTS) {
        IC_TRY(icae_compress(&slots, r->s->session, q->context, strlen(q->context), NULL));
        part.slots = slots;
    } else if (a->source == NONE) {
        parts = 0;
    } else if (a->source == SUMMARY) {
        IC_TRY(summary_text(&text, r, q, a->question));
        part = (icae_part){.text = text.data ? text.data : "", .size = text.size};
        parts = text.size > 0;
    } else if (a->source == SOURCES) {
        IC_TRY(ic_session_tokenize(&ids, r->s->session, q->context, strlen(q->context)));
        max_tokens = slots_of_text(ids.count, r->s->adapter);
        prompt = "Summarize the text above, keeping its facts.";
    }
    IC_TRY(ic_ask_prompt(&a->prompt, r->s->session, &part, parts, prompt));
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

static const char *source_key(const ask *a)
{
    return a->source == SOURCES ? "summary text" : sources[a->source];
}

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
    ic_key_answer(key, r->s, source_key(a), a->question);
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
    if (rc == ICAE_OK && a->source != SOURCES)
        rc = score_reference(r, a);
    if (rc == ICAE_ELIMIT)
        return keep(r, a, icae_error_message());
    a->ready = rc == ICAE_OK;
    return rc;
}

static bool wanted(run *r, size_t at, int first, ask *a)
{
    char key[256];
    int per = first == SOURCES ? 1 : SOURCES;
    a->question = r->chosen[at / (size_t)per];
    a->source = first == SOURCES ? SOURCES : (int)(at % (size_t)per);
    if (a->source == SOURCES && r->e->data.question[a->question].summary)
        return false;
    ic_key_answer(key, r->s, source_key(a), a->question);
    return !ic_journal_get(r->e->journal, key);
}

/* Asks everything that has no record yet. `first` SOURCES: writes the summaries. */
static int ask_all(run *r, int first)
{
    enum { AHEAD = 36 };
    int rc = ICAE_OK;
    ic_engine *engine = NULL;
    ask *list = NULL;
    size_t total = r->count * (first == SOURCES ? 1 : SOURCES), at = 0;
    r->total = total;
    r->made = 0;
    IC_TRY(ic_engine_new(&engine, r->s->session, NULL));
    while (at < total || ic_engine_load(engine)) {
        for (; at < total && ic_engine_load(engine) < AHEAD; at++) {
            ask *a = ic_alloc(1, sizeof *a);
            if (!a) {
                rc = ICAE_ENOMEM;
                goto done;
            }
            a->next = list;
            list = a;
            if (!wanted(r, at, first, a)) {
                r->made++;
                continue;
            }
            IC_TRY(start(r, a));
            if (a->ready)
                ic_engine_add(engine, &a->job);
        }
        IC_TRY(ic_engine_step(engine));
        for (ask **p = &list; *p;) {
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

/* ---- figures ---------------------------------------------------------------------------------- */

static int answer_row(ic_eval *e, const ic_system *s, const size_t *chosen, size_t count,
                      int source)
{
    static const char *const names[] = {"rougeL", "rouge1", "rouge2", "exact",
                                        "f1",     "loss",   "rows"};
    int rc = ICAE_OK;
    char key[256];
    ic_stats v[IC_COUNT(names)] = {{0}};
    uint64_t n = 0;
    for (size_t i = 0; i < count; i++) {
        ic_key_answer(key, s, sources[source], chosen[i]);
        const ic_json *r = ic_journal_get(e->journal, key);
        if (*ic_record_text(r, "skipped"))
            continue;
        n++;
        for (size_t k = 0; k < IC_COUNT(names); k++)
            IC_TRY(ic_stats_add(&v[k], ic_record_number(r, names[k])));
    }
    ic_report_row(&e->report, "ssinnnnnnn", s->name, source_titles[source], n, ic_stats_mean(&v[6]),
                  ic_stats_mean(&v[1]), ic_stats_mean(&v[2]), ic_stats_mean(&v[0]),
                  ic_stats_mean(&v[3]), ic_stats_mean(&v[4]), ic_stats_mean(&v[5]));
done:
    for (size_t k = 0; k < IC_COUNT(names); k++)
        ic_stats_free(&v[k]);
    return rc;
}

/* What could not be asked, said beside the table. */
static void say_skipped(ic_eval *e, const ic_system *s, const size_t *chosen, size_t count,
                        int source)
{
    char key[256], what[192];
    uint64_t n = 0;
    const char *why = "";
    for (size_t i = 0; i < count; i++) {
        ic_key_answer(key, s, sources[source], chosen[i]);
        const char *skipped = ic_record_text(ic_journal_get(e->journal, key), "skipped");
        n += !*skipped;
        why = *skipped ? skipped : why;
    }
    snprintf(what, sizeof what, "%s, %s", s->name, source_titles[source]);
    ic_eval_shortfall(e, what, n, count, why);
}

/* Verdicts on the answers from slots against others', or against the reference (other SOURCES). */
static int judge_against(ic_verdicts *v, ic_eval *e, ic_system *s, const size_t *chosen,
                         size_t count, int other)
{
    int rc = ICAE_OK;
    char key[256];
    for (size_t i = 0; i < count && e->judging; i++) {
        const ic_question *q = &e->data.question[chosen[i]];
        ic_key_answer(key, s, sources[SLOTS], chosen[i]);
        const ic_json *a = ic_journal_get(e->journal, key), *b = NULL;
        if (other != SOURCES) {
            ic_key_answer(key, s, sources[other], chosen[i]);
            b = ic_journal_get(e->journal, key);
        }
        if (*ic_record_text(a, "skipped") || *ic_record_text(b, "skipped"))
            continue;
        IC_TRY(ic_judge_pair(e, v, q, ic_record_text(a, "answer"),
                             b ? ic_record_text(b, "answer") : q->answer));
        IC_TRY(ic_eval_progress(e, "judgements", i + 1, count));
    }
    v->failed = count - v->win - v->lose - v->tie;
done:
    return rc;
}

static int judge_all(ic_eval *e, const size_t *chosen, size_t count)
{
    enum { OTHERS = 3 };
    static const int others[OTHERS] = {FULL, SUMMARY, SOURCES};
    int rc = ICAE_OK;
    uint64_t missing = 0;
    ic_report *r = &e->report;
    ic_verdicts *v = ic_alloc(e->systems * OTHERS, sizeof *v);
    if (!v)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < e->systems * OTHERS; i++) {
        IC_TRY(judge_against(&v[i], e, &e->system[i / OTHERS], chosen, count, others[i % OTHERS]));
        missing += v[i].failed;
    }
    ic_report_table(r, "Judged pairs", ic_verdict_columns);
    for (size_t i = 0; i < e->systems * OTHERS; i++) {
        char first[160];
        int other = others[i % OTHERS];
        snprintf(first, sizeof first, "%s, slots", e->system[i / OTHERS].name);
        ic_verdicts_row(r, first, other == SOURCES ? "Reference answer" : source_titles[other],
                        &v[i], e->options->judge_model ? e->options->judge_model : "judge");
    }
    ic_report_table_end(r);
    ic_report_note(r, "Each pair is judged in both orders; who is preferred once and rated equal "
                      "or preferred the "
                      "other time wins, contradictions are ties. On par is win or tie, with its "
                      "95%% interval (Wilson).");
    ic_eval_shortfall(e, "Judged pairs", e->systems * OTHERS * count - missing,
                      e->systems * OTHERS * count,
                      "the judge gave no usable verdict on the others, or there was no answer");
done:
    ic_free(v);
    return rc;
}

int ic_experiment_instruct(ic_eval *e)
{
    int rc = ICAE_OK;
    uint64_t asked = ic_suite_samples(e, "instruct");
    size_t count = IC_MIN((size_t)asked, e->data.questions);
    size_t *chosen = ic_alloc(e->data.questions + 1, sizeof *chosen);
    ic_report *r = &e->report;
    if (!chosen)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < e->data.questions; i++)
        chosen[i] = i;
    for (size_t i = 0; i < count; i++) {
        size_t j = i + (size_t)(ic_random_unit(e->seed, IC_STREAM_MIX, i) *
                                (double)(e->data.questions - i));
        size_t t = chosen[i];
        chosen[i] = chosen[j];
        chosen[j] = t;
    }
    for (size_t i = 0; i < e->systems; i++) {
        run all = {.e = e,
                   .s = &e->system[i],
                   .chosen = chosen,
                   .count = count,
                   .max_tokens = ic_suite_int(e, "instruct", "max_tokens", 64)};
        IC_TRY(ask_all(&all, SOURCES));
        IC_TRY(ask_all(&all, 0));
    }
    ic_report_section(r, "instruct", "Questions",
                      "Answers from the slots of a context, from the full text, from nothing, and "
                      "from a text summary of as many "
                      "tokens as there are slots. ROUGE is rouge-score's F without stemmer, exact "
                      "match and F1 are SQuAD's, loss is "
                      "that of the reference answer and its end. Decoding is greedy.");
    ic_eval_shortfall(e, "Questions", count, asked, "the files have no more questions");
    ic_report_table(
        r, "By what the decoder reads",
        "System|Reads|Questions:0|Rows:0|ROUGE-1:4|ROUGE-2:4|ROUGE-L:4|Exact match:4|F1:4|Loss:4");
    for (size_t i = 0; i < e->systems; i++)
        for (int k = 0; k < SOURCES; k++)
            IC_TRY(answer_row(e, &e->system[i], chosen, count, k));
    ic_report_table_end(r);
    for (size_t i = 0; i < e->systems; i++)
        for (int k = 0; k < SOURCES; k++)
            say_skipped(e, &e->system[i], chosen, count, k);
    if (e->options->judge && count)
        IC_TRY(judge_all(e, chosen, count));
    ic_report_section_end(r);
done:
    ic_free(chosen);
    return rc;
}
