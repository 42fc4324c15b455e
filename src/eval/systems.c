/*
 * systems.c - the summary: the figures that the experiments found most telling, and bases, adapters and
 * rates side by side (ICAE Table 6), from the records of restoration and continuation.
 */
#include "eval/eval.h"

#include <math.h>

static int longest(const int *v, size_t n)
{
    int most = 0;
    for (size_t i = 0; i < n; i++)
        most = IC_MAX(most, v[i]);
    return most;
}

/* What the records of one system at one rate say. */
typedef struct figures {
    ic_stats bleu, prefix, loss, full, slots;
} figures;

static void figures_free(figures *f)
{
    ic_stats_free(&f->bleu);
    ic_stats_free(&f->prefix);
    ic_stats_free(&f->loss);
    ic_stats_free(&f->full);
    ic_stats_free(&f->slots);
}

static int gather(figures *f, const ic_eval *e, const ic_system *s, float rate, int length,
                  int context)
{
    int rc = ICAE_OK;
    char key[256];
    const ic_json *r;
    for (size_t i = 0;; i++) {
        ic_key_autoencoding(key, s, NULL, length, rate, i);
        if (!(r = ic_journal_get(e->journal, key)))
            break;
        IC_TRY(ic_stats_add(&f->bleu, ic_record_number(r, "bleu")));
        IC_TRY(ic_stats_add(&f->prefix, ic_record_number(r, "prefix")));
        IC_TRY(ic_stats_add(&f->loss, ic_record_number(r, "loss")));
    }
    for (size_t i = 0;; i++) {
        ic_key_continuation(key, s, context, rate, i);
        if (!(r = ic_journal_get(e->journal, key)))
            break;
        IC_TRY(ic_stats_add(&f->slots, ic_record_number(r, "slots")));
        ic_key_continuation(key, s, context, 0, i);
        IC_TRY(ic_stats_add(&f->full, ic_record_number(ic_journal_get(e->journal, key), "full")));
    }
done:
    return rc;
}

static int row(ic_eval *e, const ic_system *s, float rate, int length, int context)
{
    figures f = {0};
    int rc = gather(&f, e, s, rate, length, context);
    double full = exp(ic_stats_mean(&f.full)), slots = exp(ic_stats_mean(&f.slots));
    ic_report_row(&e->report, "sininnnniinnn", s->name, (uint64_t)s->adapter->k, (double)rate,
                  (uint64_t)length, (double)f.bleu.count, 100 * ic_stats_mean(&f.bleu),
                  100 * ic_stats_mean(&f.prefix), ic_stats_mean(&f.loss), (uint64_t)context,
                  (uint64_t)f.slots.count, full, slots, slots - full);
    figures_free(&f);
    return rc;
}

/* Rates that the suite asks for and the adapter was not trained for. */
static void say_unserved(ic_eval *e, const ic_system *s)
{
    float rate[IC_RATES];
    size_t n = ic_eval_rates(rate, e, s);
    const ic_json *list = ic_json_get(e->suite, "rates");
    for (const ic_json *i = ic_json_first(list); i; i = ic_json_next(i)) {
        double wanted = ic_json_number(i, 0);
        bool served = false;
        for (size_t k = 0; k < n; k++)
            served |= fabs((double)rate[k] - wanted) < 1e-6;
        if (!served)
            ic_report_note(&e->report, "%s does not serve %g\u00d7: not measured.", s->name,
                           wanted);
    }
}

int ic_experiment_systems(ic_eval *e)
{
    int rc = ICAE_OK, v[IC_LIST];
    int length = longest(v, ic_suite_ints(v, IC_LIST, e, "autoencoding", "lengths"));
    int context = longest(v, ic_suite_ints(v, IC_LIST, e, "continuation", "contexts"));
    ic_report *r = &e->report;
    ic_report_section(r, "systems", "Summary",
                      "The key figures, then one line a base, adapter and rate: restoration of the "
                      "longest texts, perplexity behind the longest contexts. Perplexities of "
                      "different tokenizers cannot be compared with each other.");
    ic_report_highlights(r, e->highlight, e->highlights);
    ic_report_table(r, "Systems",
                    "System|k:0|Rate:1|Tokens:0|Samples:0|BLEU %:1|Exact match "
                    "%:1|Loss:4|Context:0|Continuations:0|PPL full:2|PPL slots:2|Difference:2");
    for (size_t i = 0; i < e->systems && (length || context); i++) {
        float rate[IC_RATES];
        size_t rates = ic_eval_rates(rate, e, &e->system[i]);
        for (size_t k = 0; k < rates; k++)
            IC_TRY(row(e, &e->system[i], rate[k], length, context));
    }
    ic_report_table_end(r);
    for (size_t i = 0; i < e->systems; i++)
        say_unserved(e, &e->system[i]);
    ic_report_section_end(r);
done:
    return rc;
}
