/*
 * ablations.c - several adapters on the same questions, in pairs (ICAE Table 5): win, lose, tie by the
 * judge; without one, by the higher ROUGE-L, which is said.
 */
#include "eval/eval.h"

#include <math.h>
#include <stdio.h>

/* The records of the answers of two systems from slots; false: one was not asked. */
static bool answers_of(const ic_json *out[2], const ic_eval *e, const ic_system *a,
                       const ic_system *b, size_t question)
{
    char key[256];
    ic_key_answer(key, a, "slots", a->adapter->rate, question);
    out[0] = ic_journal_get(e->journal, key);
    ic_key_answer(key, b, "slots", b->adapter->rate, question);
    out[1] = ic_journal_get(e->journal, key);
    return out[0] && out[1];
}

static bool skipped(const ic_json *const answer[2])
{
    return *ic_record_text(answer[0], "skipped") || *ic_record_text(answer[1], "skipped");
}

static ic_judge_pair pair_of(const ic_eval *e, const ic_json *const answer[2], size_t question)
{
    return (ic_judge_pair){&e->data.question[question], ic_record_text(answer[0], "answer"),
                           ic_record_text(answer[1], "answer")};
}

/* Has the judge read the answers of every two systems. */
static int judge_all(ic_eval *e)
{
    int rc = ICAE_OK;
    size_t n = 0, questions = e->data.questions;
    const ic_json *answer[2];
    ic_judge_pair *pairs =
        ic_alloc(e->systems * (e->systems - 1) / 2 * questions + 1, sizeof *pairs);
    if (!pairs)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < e->systems; i++)
        for (size_t k = i + 1; k < e->systems; k++)
            for (size_t q = 0; q < questions; q++)
                if (answers_of(answer, e, &e->system[i], &e->system[k], q) && !skipped(answer))
                    pairs[n++] = pair_of(e, answer, q);
    rc = ic_judge_pairs(e, pairs, n);
    ic_free(pairs);
    return rc;
}

/* Questions that both systems answered from slots. */
static int compare(ic_eval *e, ic_verdicts *v, const ic_system *a, const ic_system *b)
{
    int rc = ICAE_OK;
    const ic_json *answer[2];
    for (size_t i = 0; i < e->data.questions; i++) {
        if (!answers_of(answer, e, a, b, i))
            continue;
        if (skipped(answer)) {
            v->failed++;
        } else if (e->options->judge) {
            ic_judge_pair pair = pair_of(e, answer, i);
            IC_TRY(ic_judge_count(v, e, &pair));
        } else {
            double d =
                ic_record_number(answer[0], "rougeL") - ic_record_number(answer[1], "rougeL");
            v->win += d > 0;
            v->lose += d < 0;
            v->tie += d == 0;
        }
    }
done:
    return rc;
}

int ic_experiment_ablations(ic_eval *e)
{
    int rc = ICAE_OK;
    if (e->systems < 2)
        return ICAE_OK;
    ic_report *r = &e->report;
    size_t n = 0;
    uint64_t failed = 0, all = 0;
    ic_verdicts *v = ic_alloc(e->systems * e->systems, sizeof *v);
    if (!v)
        return ICAE_ENOMEM;
    ic_report_section(r, "ablations", "Adapters against each other",
                      "Answers from slots to the same questions, two systems at a time, in the "
                      "layout of the paper's table 5.");
    if (e->options->judge)
        IC_TRY(judge_all(e));
    for (size_t i = 0; i < e->systems; i++)
        for (size_t k = i + 1; k < e->systems; k++, n++) {
            IC_TRY(compare(e, &v[n], &e->system[i], &e->system[k]));
            failed += v[n].failed;
            all += v[n].failed + v[n].win + v[n].lose + v[n].tie;
        }
    ic_report_table(r, "Pairs", ic_verdict_columns);
    n = 0;
    for (size_t i = 0; i < e->systems; i++)
        for (size_t k = i + 1; k < e->systems; k++) {
            const char *judge = e->options->judge_model ? e->options->judge_model : "judge";
            ic_verdicts_row(r, e->system[i].name, e->system[k].name, &v[n++],
                            e->options->judge ? judge : "ROUGE-L");
        }
    ic_report_table_end(r);
    ic_report_chart(r, "stack", "Pairs of systems", "", "win|tie|lose");
    n = 0;
    for (size_t i = 0; i < e->systems; i++)
        for (size_t k = i + 1; k < e->systems; k++) {
            char name[200];
            snprintf(name, sizeof name, "%.90s against %.90s", e->system[i].name,
                     e->system[k].name);
            ic_verdicts_stack(r, name, &v[n++]);
        }
    ic_report_chart_end(r);
    if (!e->options->judge)
        ic_report_note(r, "No judge was named: a win is a higher ROUGE-L against the reference "
                          "answer, which is a "
                          "weaker measure than the paper's.");
    ic_eval_shortfall(e, "Pairs", all - failed, all, "there was no answer, or no usable verdict");
    ic_report_section_end(r);
done:
    ic_free(v);
    return rc;
}
