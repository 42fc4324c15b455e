/*
 * answers.c - the figures of answers (ICAE §4.2.2): scores by what the decoder read, slots against the other
 * readings question by question, and the judge's verdicts. Reads records only.
 */
#include "eval/instruct.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void title_of(char out[64], const ic_eval *e, const ic_system *s, ic_reading r)
{
    static const char *const titles[] = {"Slots", "Full context", "No context",
                                         "Summary of equal size"};
    float rates[IC_RATES];
    if (r.source == IC_FROM_SLOTS && ic_eval_rates(rates, e, s) > 1)
        snprintf(out, 64, "Slots at %g\u00d7", (double)r.rate);
    else
        snprintf(out, 64, "%s", titles[r.source]);
}

static bool answered(const ic_json *record)
{
    return record && !*ic_record_text(record, "skipped");
}

/* ---- scores ----------------------------------------------------------------------------------- */

enum { ROUGE_1, ROUGE_2, ROUGE_L, EXACT, F1, LOSS, ROWS, FIGURES };

typedef struct scores {
    ic_stats v[FIGURES];
    uint64_t count;
    const char *why; /* the others were not asked */
} scores;

static void scores_free(scores *s)
{
    for (int k = 0; k < FIGURES; k++)
        ic_stats_free(&s->v[k]);
}

static int scores_of(scores *out, const ic_eval *e, const ic_system *s, ic_reading r,
                     const size_t *chosen, size_t count)
{
    static const char *const names[] = {"rouge1", "rouge2", "rougeL", "exact",
                                        "f1",     "loss",   "rows"};
    int rc = ICAE_OK;
    *out = (scores){.why = ""};
    for (size_t i = 0; i < count; i++) {
        const ic_json *record = ic_answer(e, s, r, chosen[i]);
        if (!answered(record)) {
            out->why = ic_record_text(record, "skipped");
            continue;
        }
        out->count++;
        for (size_t k = 0; k < FIGURES; k++)
            IC_TRY(ic_stats_add(&out->v[k], ic_record_number(record, names[k])));
    }
done:
    return rc;
}

static int score_table(ic_eval *e, const size_t *chosen, size_t count, uint64_t asked)
{
    int rc = ICAE_OK;
    ic_report *r = &e->report;
    scores s = {.count = 0};
    ic_report_table(r, "By what the decoder reads",
                    "System|Reads|Questions:0|Asked:0|Rows:0|ROUGE-1:4|ROUGE-2:4|ROUGE-L:4|Exact "
                    "match:4|F1:4|F1 from:4|F1 to:4|Loss:4");
    for (size_t i = 0; i < e->systems; i++) {
        ic_reading reads[IC_READINGS];
        size_t n = ic_readings_of(reads, e, &e->system[i]);
        for (size_t k = 0; k < n; k++) {
            char title[64];
            title_of(title, e, &e->system[i], reads[k]);
            IC_TRY(scores_of(&s, e, &e->system[i], reads[k], chosen, count));
            double f1 = ic_stats_mean(&s.v[F1]), half = ic_stats_half(&s.v[F1]);
            ic_report_row(r, "ssiinnnnnnnnn", e->system[i].name, title, s.count, asked,
                          ic_stats_mean(&s.v[ROWS]), ic_stats_mean(&s.v[ROUGE_1]),
                          ic_stats_mean(&s.v[ROUGE_2]), ic_stats_mean(&s.v[ROUGE_L]),
                          ic_stats_mean(&s.v[EXACT]), f1, fmax(f1 - half, 0), fmin(f1 + half, 1),
                          ic_stats_mean(&s.v[LOSS]));
            scores_free(&s);
        }
    }
    ic_report_table_end(r);
done:
    scores_free(&s);
    return rc;
}

/* The chart of F1, and what could not be asked. */
static int score_chart(ic_eval *e, const size_t *chosen, size_t count, uint64_t asked)
{
    int rc = ICAE_OK;
    ic_report *r = &e->report;
    scores s = {.count = 0};
    for (int pass = 0; pass < 2; pass++) {
        if (pass)
            ic_report_chart(r, "bar", "F1 of answers", "", "mean and 95% interval");
        for (size_t i = 0; i < e->systems; i++) {
            ic_reading reads[IC_READINGS];
            size_t n = ic_readings_of(reads, e, &e->system[i]);
            for (size_t k = 0; k < n; k++) {
                char title[64], name[192];
                title_of(title, e, &e->system[i], reads[k]);
                snprintf(name, sizeof name, "%s%s", ic_eval_prefix(e, &e->system[i]).text, title);
                IC_TRY(scores_of(&s, e, &e->system[i], reads[k], chosen, count));
                double f1 = ic_stats_mean(&s.v[F1]), half = ic_stats_half(&s.v[F1]);
                if (pass)
                    ic_report_bar(r, name, f1, fmax(f1 - half, 0), fmin(f1 + half, 1));
                else
                    ic_eval_shortfall(e, name, s.count, asked,
                                      *s.why ? s.why : "the files have no more questions");
                scores_free(&s);
            }
        }
    }
    ic_report_chart_end(r);
done:
    scores_free(&s);
    return rc;
}

/* ---- question by question --------------------------------------------------------------------- */

/* Slots against another reading by F1, which is 1 where exact match is. */
typedef struct duel {
    uint64_t better, equal, zero, worse; /* zero: of the equal, both without a right word */
} duel;

static duel duel_of(const ic_eval *e, const ic_system *s, ic_reading a, ic_reading b,
                    const size_t *chosen, size_t count)
{
    duel d = {0};
    for (size_t i = 0; i < count; i++) {
        const ic_json *x = ic_answer(e, s, a, chosen[i]), *y = ic_answer(e, s, b, chosen[i]);
        if (!answered(x) || !answered(y))
            continue;
        double f = ic_record_number(x, "f1"), g = ic_record_number(y, "f1");
        d.better += f > g;
        d.worse += f < g;
        d.equal += f == g;
        d.zero += f == g && f == 0;
    }
    return d;
}

static uint64_t total_of(const duel *d)
{
    return d->better + d->equal + d->worse;
}

static void duel_row(ic_report *r, const char *system, const char *first, const char *second,
                     const duel *d, uint64_t asked)
{
    uint64_t n = total_of(d);
    double low, high, m = n ? (double)n / 100 : (double)NAN;
    ic_wilson(&low, &high, d->better + d->equal, n);
    ic_report_row(r, "sssiinnnnnnn", system, first, second, n, asked, (double)d->better / m,
                  (double)d->equal / m, (double)d->zero / m, (double)d->worse / m,
                  (double)(d->better + d->equal) / m, n ? 100 * low : (double)NAN,
                  n ? 100 * high : (double)NAN);
}

/* Slots at every rate against the full context, nothing, and the summary. */
static void duels(ic_eval *e, const size_t *chosen, size_t count, uint64_t asked)
{
    ic_report *r = &e->report;
    ic_report_table(r, "Slots against the other readings, question by question, by F1",
                    "System|Reads|Against|Questions:0|Asked:0|Better %:1|Equal %:1|of it both "
                    "zero %:1|Worse %:1|On par %:1|on par from:1|on par to:1");
    for (size_t i = 0; i < e->systems; i++) {
        const ic_system *s = &e->system[i];
        ic_reading reads[IC_READINGS];
        size_t n = ic_readings_of(reads, e, s);
        for (size_t k = 0; k < (n - 3) * 3; k++) {
            char first[64], second[64];
            ic_reading a = reads[k / 3], b = reads[n - 3 + k % 3];
            duel d = duel_of(e, s, a, b, chosen, count);
            title_of(first, e, s, a);
            title_of(second, e, s, b);
            duel_row(r, s->name, first, second, &d, asked);
        }
    }
    ic_report_table_end(r);
    ic_report_chart(r, "stack", "Slots against the full context, by F1", "", "better|equal|worse");
    for (size_t i = 0; i < e->systems; i++) {
        ic_reading reads[IC_READINGS];
        size_t n = ic_readings_of(reads, e, &e->system[i]);
        for (size_t k = 0; k < n - 3; k++) {
            char name[128];
            duel d = duel_of(e, &e->system[i], reads[k], reads[n - 3], chosen, count);
            double all = (double)total_of(&d);
            ic_eval_label(name, e, &e->system[i], reads[k].rate);
            if (all > 0)
                ic_report_stack(r, name,
                                (double[]){(double)d.better / all, (double)d.equal / all,
                                           (double)d.worse / all},
                                3);
        }
    }
    ic_report_chart_end(r);
}

static int highlight(ic_eval *e, const size_t *chosen, size_t count)
{
    int rc = ICAE_OK;
    scores v[3];
    memset(v, 0, sizeof v);
    for (size_t i = 0; i < e->systems; i++) {
        const ic_system *s = &e->system[i];
        const ic_reading slots = {IC_FROM_SLOTS, s->adapter->rate}, full = {IC_FROM_FULL, 0},
                         none = {IC_FROM_NONE, 0};
        double low, high;
        duel d = duel_of(e, s, slots, full, chosen, count);
        uint64_t n = total_of(&d);
        if (!n)
            continue;
        ic_wilson(&low, &high, d.better + d.equal, n);
        IC_TRY(scores_of(&v[0], e, s, slots, chosen, count));
        IC_TRY(scores_of(&v[1], e, s, full, chosen, count));
        IC_TRY(scores_of(&v[2], e, s, none, chosen, count));
        ic_eval_highlight(e, "instruct", "Answers from slots on par with the full text",
                          ic_format("%.0f%%", 100 * (double)(d.better + d.equal) / (double)n),
                          ic_format("%s95%% interval %.0f\u2013%.0f; both without a right word "
                                    "%.0f%%; F1 slots %.3f, "
                                    "full %.3f, nothing %.3f; %llu questions",
                                    ic_eval_prefix(e, s).text, 100 * low, 100 * high,
                                    100 * (double)d.zero / (double)n, ic_stats_mean(&v[0].v[F1]),
                                    ic_stats_mean(&v[1].v[F1]), ic_stats_mean(&v[2].v[F1]),
                                    (unsigned long long)n));
        for (int k = 0; k < 3; k++)
            scores_free(&v[k]);
    }
done:
    for (int k = 0; k < 3; k++)
        scores_free(&v[k]);
    return rc;
}

/* ---- the judge -------------------------------------------------------------------------------- */

/* IC_SUMMARY_TEXT stands for the reference answer. */
static const ic_source others[] = {IC_FROM_FULL, IC_FROM_SUMMARY, IC_SUMMARY_TEXT};

enum { OTHERS = IC_COUNT(others) };

/* The answer from slots against another's; false: there is one answer at most. */
static bool pair_of(ic_judge_pair *out, const ic_eval *e, const ic_system *s, size_t question,
                    ic_source other)
{
    bool reference = other == IC_SUMMARY_TEXT;
    const ic_question *q = &e->data.question[question];
    const ic_json *a = ic_answer(e, s, (ic_reading){IC_FROM_SLOTS, s->adapter->rate}, question);
    const ic_json *b = reference ? NULL : ic_answer(e, s, (ic_reading){other, 0}, question);
    *out = (ic_judge_pair){q, ic_record_text(a, "answer"),
                           reference ? q->answer : ic_record_text(b, "answer")};
    return answered(a) && (reference || answered(b));
}

/* Every pair goes to the judge, then is counted: v [systems][OTHERS]. */
static int judge_pairs(ic_verdicts *v, ic_eval *e, const size_t *chosen, size_t count)
{
    int rc = ICAE_OK;
    size_t cells = e->systems * OTHERS, n = 0;
    ic_judge_pair *pairs = ic_alloc(cells * count + 1, sizeof *pairs);
    if (!pairs)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < cells * count; i++) {
        size_t cell = i / count;
        n += pair_of(&pairs[n], e, &e->system[cell / OTHERS], chosen[i % count],
                     others[cell % OTHERS]);
    }
    IC_TRY(ic_judge_pairs(e, pairs, n));
    for (size_t i = 0; i < cells * count; i++) {
        ic_judge_pair pair;
        size_t cell = i / count;
        if (pair_of(&pair, e, &e->system[cell / OTHERS], chosen[i % count], others[cell % OTHERS]))
            IC_TRY(ic_judge_count(&v[cell], e, &pair));
        else
            v[cell].failed++;
    }
done:
    ic_free(pairs);
    return rc;
}

static int judge_all(ic_eval *e, const size_t *chosen, size_t count)
{
    static const char *const titles[] = {"Full context", "Summary of equal size",
                                         "Reference answer"};
    int rc = ICAE_OK;
    uint64_t missing = 0;
    size_t n = e->systems * OTHERS;
    ic_report *r = &e->report;
    const char *judge = e->options->judge_model ? e->options->judge_model : "judge";
    ic_verdicts *v = ic_alloc(n, sizeof *v);
    if (!v)
        return ICAE_ENOMEM;
    IC_TRY(judge_pairs(v, e, chosen, count));
    for (size_t i = 0; i < n; i++)
        missing += v[i].failed;
    ic_report_table(r, "Judged pairs", ic_verdict_columns);
    for (size_t i = 0; i < n; i++) {
        char first[160];
        snprintf(first, sizeof first, "%.140s, slots", e->system[i / OTHERS].name);
        ic_verdicts_row(r, first, titles[i % OTHERS], &v[i], judge);
    }
    ic_report_table_end(r);
    ic_report_chart(r, "stack", "Answers from slots, judged", "", "win|tie|lose");
    for (size_t i = 0; i < n; i++) {
        char name[192];
        snprintf(name, sizeof name, "%sagainst %s", ic_eval_prefix(e, &e->system[i / OTHERS]).text,
                 titles[i % OTHERS]);
        ic_verdicts_stack(r, name, &v[i]);
    }
    ic_report_chart_end(r);
    ic_report_note(r, "Each pair is judged in both orders; who is preferred once and rated equal "
                      "or preferred the other time wins, contradictions are ties. On par is win or "
                      "tie; intervals are 95%% (Wilson).");
    ic_eval_shortfall(e, "Judged pairs", n * count - missing, n * count,
                      "the judge gave no usable verdict on the others, or there was no answer");
done:
    ic_free(v);
    return rc;
}

int ic_report_answers(ic_eval *e, const size_t *chosen, size_t count, uint64_t asked)
{
    int rc = ICAE_OK;
    ic_report *r = &e->report;
    ic_report_section(r, "instruct", "Questions",
                      "Answers from the slots of a context, from the full text, from nothing, and "
                      "from a text summary of as many tokens as there are slots. ROUGE is "
                      "rouge-score's F without stemmer, exact match and F1 are SQuAD's, loss is "
                      "that of the reference answer and its end. Decoding is greedy.");
    IC_TRY(score_table(e, chosen, count, asked));
    duels(e, chosen, count, asked);
    if (e->options->judge && count)
        IC_TRY(judge_all(e, chosen, count));
    IC_TRY(score_chart(e, chosen, count, asked));
    ic_report_section_end(r);
    IC_TRY(highlight(e, chosen, count));
done:
    return rc;
}
