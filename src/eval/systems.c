/*
 * systems.c - bases and adapters side by side (ICAE Table 6), from the records of other experiments:
 * restoration at the greatest length, perplexity at the longest context.
 */
#include "eval/eval.h"

#include <math.h>

enum { MOST = 32 };

static int longest(const int *v, size_t n)
{
    int most = 0;
    for (size_t i = 0; i < n; i++)
        most = IC_MAX(most, v[i]);
    return most;
}

static int restoration(ic_eval *e, const ic_system *s, int length, double *bleu, double *loss,
                       uint64_t *count)
{
    int rc = ICAE_OK;
    char key[256];
    ic_stats b = {0}, l = {0};
    for (size_t i = 0;; i++) {
        ic_key_autoencoding(key, s, NULL, length, s->adapter->rate, i);
        const ic_json *r = ic_journal_get(e->journal, key);
        if (!r)
            break;
        IC_TRY(ic_stats_add(&b, ic_record_number(r, "bleu")));
        IC_TRY(ic_stats_add(&l, ic_record_number(r, "loss")));
    }
    *bleu = ic_stats_mean(&b) * 100;
    *loss = ic_stats_mean(&l);
    *count = b.count;
done:
    ic_stats_free(&b);
    ic_stats_free(&l);
    return rc;
}

static int continuation(ic_eval *e, const ic_system *s, int context, double *full, double *slots)
{
    int rc = ICAE_OK;
    char key[256];
    ic_stats f = {0}, c = {0};
    for (size_t i = 0;; i++) {
        ic_key_continuation(key, s, context, i);
        const ic_json *r = ic_journal_get(e->journal, key);
        if (!r)
            break;
        IC_TRY(ic_stats_add(&f, ic_record_number(r, "full")));
        IC_TRY(ic_stats_add(&c, ic_record_number(r, "slots")));
    }
    *full = exp(ic_stats_mean(&f));
    *slots = exp(ic_stats_mean(&c));
done:
    ic_stats_free(&f);
    ic_stats_free(&c);
    return rc;
}

int ic_experiment_systems(ic_eval *e)
{
    int rc = ICAE_OK, v[MOST];
    int length = longest(v, ic_suite_ints(v, MOST, e, "autoencoding", "lengths"));
    int context = longest(v, ic_suite_ints(v, MOST, e, "continuation", "contexts"));
    ic_report *r = &e->report;
    ic_report_section(r, "systems", "Summary",
                      "Restoration of the longest texts and perplexity behind the longest "
                      "contexts, one line a base and adapter. "
                      "Perplexities of different tokenizers cannot be compared with each other.");
    ic_report_table(
        r, "Systems",
        "System|Samples:0|Tokens:0|BLEU %:1|Loss:4|Context:0|PPL full:2|PPL slots:2|Difference:2");
    for (size_t i = 0; i < e->systems; i++) {
        double bleu, loss, full, slots;
        uint64_t count;
        IC_TRY(restoration(e, &e->system[i], length, &bleu, &loss, &count));
        IC_TRY(continuation(e, &e->system[i], context, &full, &slots));
        ic_report_row(r, "siinninnn", e->system[i].name, count, (uint64_t)length, bleu, loss,
                      (uint64_t)context, full, slots, slots - full);
    }
    ic_report_table_end(r);
    ic_report_section_end(r);
done:
    return rc;
}
