/*
 * autoencoding.c - how well texts come back from their slots (ICAE §4.2.1): BLEU, exact match and loss by
 * length and rate; which facts survive; the best, the median and the worst restoration.
 */
#include "eval/eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- autoencoding ----------------------------------------------------------------------------- */

static const char columns[] =
    "System|Tokens:0|Slots:0|Rate:1|Samples:0|Asked:0|BLEU corpus:4|BLEU mean:4|BLEU median:4|BLEU "
    "quartile 1:4|BLEU quartile 3:4|Exact match mean:4|Exact match median:4|Exact match quartile "
    "1:4|Exact match quartile 3:4|Loss mean:4|Loss median:4|Tokens right:4";

static void row(ic_report *r, ic_cell *c)
{
    ic_report_row(r, "sinniinnnnnnnnnnnn", c->s->name, (uint64_t)c->length, c->slots,
                  c->length / c->slots, (uint64_t)c->count, c->wanted, ic_cell_corpus_bleu(c),
                  ic_stats_mean(&c->bleu), ic_stats_quantile(&c->bleu, 0.5),
                  ic_stats_quantile(&c->bleu, 0.25), ic_stats_quantile(&c->bleu, 0.75),
                  ic_stats_mean(&c->prefix), ic_stats_quantile(&c->prefix, 0.5),
                  ic_stats_quantile(&c->prefix, 0.25), ic_stats_quantile(&c->prefix, 0.75),
                  ic_stats_mean(&c->loss), ic_stats_quantile(&c->loss, 0.5),
                  ic_stats_mean(&c->accuracy));
}

typedef enum { BLEU, PREFIX, LOSS } figure;

static ic_stats *figure_of(ic_cell *c, figure what)
{
    return what == BLEU ? &c->bleu : what == PREFIX ? &c->prefix : &c->loss;
}

/* By length, one line a system and rate, with the middle half of the samples as a band. */
static void line_chart(ic_eval *e, ic_cell *cells, size_t n, const char *title, const char *y,
                       figure what, bool median)
{
    ic_report *r = &e->report;
    ic_report_chart(r, "line", title, "tokens", y);
    for (size_t i = 0; i < n; i++) {
        if (!i || strcmp(cells[i].name, cells[i - 1].name))
            ic_report_series(r, cells[i].name);
        ic_stats *s = figure_of(&cells[i], what);
        if (median)
            ic_report_band(r, cells[i].length, ic_stats_quantile(s, 0.5),
                           ic_stats_quantile(s, 0.25), ic_stats_quantile(s, 0.75));
        else
            ic_report_point(r, cells[i].length, ic_stats_mean(s));
        if (i + 1 == n || strcmp(cells[i].name, cells[i + 1].name))
            ic_report_series_end(r);
    }
    ic_report_chart_end(r);
}

static void box_chart(ic_eval *e, ic_cell *cells, size_t n, const char *title, figure what)
{
    ic_report *r = &e->report;
    ic_report_chart(r, "box", title, "", "by tokens");
    for (size_t i = 0; i < n; i++) {
        char label[192];
        bool several = strcmp(cells[0].name, cells[n - 1].name) != 0;
        snprintf(label, sizeof label, "%s%s%d", several ? cells[i].name : "", several ? ", " : "",
                 cells[i].length);
        ic_report_box(r, label, figure_of(&cells[i], what));
    }
    ic_report_chart_end(r);
}

static bool is_last(const ic_cell *cells, size_t n, size_t i)
{
    return i + 1 == n || strcmp(cells[i].name, cells[i + 1].name) != 0;
}

/* Median BLEU of the longest texts by tokens a slot, one line a system; none if all have one rate. */
static void rate_chart(ic_eval *e, ic_cell *cells, size_t n)
{
    ic_report *r = &e->report;
    const ic_system *open = NULL;
    bool several = false;
    for (size_t i = 0; i < n; i++)
        several |= cells[i].rate != cells[0].rate;
    if (!several)
        return;
    ic_report_chart(r, "line", "Median BLEU by rate", "tokens a slot", "BLEU");
    for (size_t i = 0; i < n; i++) {
        if (!is_last(cells, n, i))
            continue;
        if (open != cells[i].s) {
            if (open)
                ic_report_series_end(r);
            ic_report_series(r, cells[i].s->name);
            open = cells[i].s;
        }
        ic_report_band(r, cells[i].length / cells[i].slots, ic_stats_quantile(&cells[i].bleu, 0.5),
                       ic_stats_quantile(&cells[i].bleu, 0.25),
                       ic_stats_quantile(&cells[i].bleu, 0.75));
    }
    ic_report_series_end(r);
    ic_report_chart_end(r);
}

/* Of the longest texts of every system and rate. */
static void histograms(ic_eval *e, ic_cell *cells, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (figure what = BLEU; what <= PREFIX && is_last(cells, n, i); what++) {
            char title[192];
            snprintf(title, sizeof title, "%s, %s, %d tokens",
                     what == BLEU ? "BLEU" : "Exact match", cells[i].name, cells[i].length);
            ic_report_histogram(&e->report, title, what == BLEU ? "BLEU from" : "exact match from",
                                figure_of(&cells[i], what));
        }
}

/* ---- facts and diffs -------------------------------------------------------------------------- */

static int facts_of(ic_facts *f, const ic_eval *e, const ic_cell *c)
{
    int rc = ICAE_OK;
    for (size_t i = 0; i < c->pieces; i++) {
        const ic_json *r = ic_cell_record(e, c, i);
        const char *a = ic_record_text(r, "reference"), *b = ic_record_text(r, "restored");
        if (r)
            IC_TRY(ic_facts_compare(f, a, strlen(a), b, strlen(b)));
    }
done:
    return rc;
}

static double percent(uint64_t part, uint64_t whole)
{
    return whole ? 100 * (double)part / (double)whole : (double)NAN;
}

static int facts(ic_eval *e, const ic_cell *c, size_t n)
{
    int rc = ICAE_OK;
    ic_report *r = &e->report;
    ic_facts total = {0};
    ic_report_section(r, "facts", "Exact things",
                      "Numbers, dates, names, addresses and identifiers found in the texts by "
                      "their form, and the share that stands in the restored text just as often. "
                      "What slots lose first.");
    ic_report_table(r, "Facts kept",
                    "System|Tokens:0|Rate:1|Samples:0|Numbers:0|numbers kept %:1|Dates:0|dates "
                    "kept %:1|Names:0|names kept %:1|Addresses:0|addresses kept "
                    "%:1|Identifiers:0|identifiers kept %:1");
    for (size_t k = 0; k < n; k++) {
        ic_facts f = {0};
        IC_TRY(facts_of(&f, e, &c[k]));
        for (int i = 0; i < IC_FACT_KINDS; i++) {
            total.found[i] += f.found[i];
            total.kept[i] += f.kept[i];
        }
        ic_report_row(r, "siniininininin", c[k].s->name, (uint64_t)c[k].length, (double)c[k].rate,
                      (uint64_t)c[k].count, f.found[0], percent(f.kept[0], f.found[0]), f.found[1],
                      percent(f.kept[1], f.found[1]), f.found[2], percent(f.kept[2], f.found[2]),
                      f.found[3], percent(f.kept[3], f.found[3]), f.found[4],
                      percent(f.kept[4], f.found[4]));
    }
    ic_report_table_end(r);
    ic_report_chart(r, "bar", "Facts kept, all systems, rates and lengths", "", "share");
    for (int i = 0; i < IC_FACT_KINDS; i++) {
        double low, high, share = percent(total.kept[i], total.found[i]) / 100;
        ic_wilson(&low, &high, total.kept[i], total.found[i]);
        ic_report_bar(r, ic_fact_names[i], share, low, high);
    }
    ic_report_chart_end(r);
    ic_report_section_end(r);
    uint64_t found = total.found[IC_FACT_NUMBER] + total.found[IC_FACT_DATE],
             kept = total.kept[IC_FACT_NUMBER] + total.kept[IC_FACT_DATE];
    if (total.found[IC_FACT_NAME])
        ic_eval_highlight(
            e, "facts", "Names that survive exactly",
            ic_format("%.1f%%", percent(total.kept[IC_FACT_NAME], total.found[IC_FACT_NAME])),
            ic_format("of %llu in all restored texts; numbers and dates: %.1f%% of %llu",
                      (unsigned long long)total.found[IC_FACT_NAME],
                      found ? percent(kept, found) : 0, (unsigned long long)found));
done:
    return rc;
}

typedef struct ranked {
    double bleu, prefix;
    const ic_json *record;
    size_t i;
} ranked;

static int by_quality(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->bleu != y->bleu)
        return x->bleu > y->bleu ? -1 : 1;
    if (x->prefix != y->prefix)
        return x->prefix > y->prefix ? -1 : 1;
    return x->i < y->i ? -1 : 1;
}

/* Best, median and worst of one cell. */
static int diffs(ic_eval *e, const ic_cell *c)
{
    static const char *const names[] = {"Best", "Median", "Worst"};
    char title[256];
    size_t n = 0;
    ranked *list = ic_alloc(c->pieces + 1, sizeof *list);
    if (!list)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < c->pieces; i++) {
        const ic_json *r = ic_cell_record(e, c, i);
        if (r)
            list[n++] = (ranked){ic_record_number(r, "bleu"), ic_record_number(r, "prefix"), r, i};
    }
    qsort(list, n, sizeof *list, by_quality);
    for (size_t k = 0; k < 3 && n; k++) {
        const ranked *at = &list[k * (n - 1) / 2];
        snprintf(title, sizeof title, "%s of %zu, %s, %d tokens: BLEU %.4f, exact match %.4f",
                 names[k], n, c->name, c->length, at->bleu, at->prefix);
        ic_report_diff(&e->report, title, ic_record_text(at->record, "reference"),
                       ic_record_text(at->record, "restored"));
    }
    ic_free(list);
    return ICAE_OK;
}

/* ---- the experiment --------------------------------------------------------------------------- */

static int lay_out(ic_cell **out, size_t *count, ic_eval *e, const int *length, size_t lengths)
{
    ic_cell *cells = ic_alloc(e->systems * IC_RATES * IC_MAX(lengths, (size_t)1), sizeof *cells);
    size_t n = 0;
    if (!cells)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < e->systems; i++) {
        float rate[IC_RATES];
        ic_system *s = &e->system[i];
        size_t rates = ic_eval_rates(rate, e, s);
        for (size_t k = 0; k < rates; k++)
            for (size_t l = 0; l < lengths; l++) {
                ic_cell *c = &cells[n++];
                *c = (ic_cell){.s = s,
                               .rate = rate[k],
                               .length = length[l],
                               .wanted = ic_suite_samples(e, "autoencoding")};
                ic_eval_label(c->name, e, s, rate[k]);
            }
    }
    *out = cells;
    *count = n;
    return ICAE_OK;
}

static void highlight(ic_eval *e, ic_cell *c)
{
    if (!c->count || c->rate != c->s->adapter->rate)
        return;
    char *where = ic_format("%s%d tokens in %.0f slots, %zu samples", ic_eval_prefix(e, c->s).text,
                            c->length, c->slots, c->count);
    ic_eval_highlight(e, "autoencoding", "Median BLEU of restored texts",
                      ic_format("%.3f", ic_stats_quantile(&c->bleu, 0.5)), where);
    ic_eval_highlight(e, "autoencoding", "Right from the start on (exact match, mean)",
                      ic_format("%.1f%%", 100 * ic_stats_mean(&c->prefix)),
                      ic_format("%.2f%% of tokens right behind a right beginning",
                                100 * ic_stats_mean(&c->accuracy)));
}

int ic_experiment_autoencoding(ic_eval *e)
{
    int rc = ICAE_OK, length[IC_LIST];
    size_t lengths = ic_suite_ints(length, IC_LIST, e, "autoencoding", "lengths"), n = 0;
    ic_report *r = &e->report;
    ic_cell *cells = NULL;
    IC_TRY(lay_out(&cells, &n, e, length, lengths));
    for (size_t i = 0; i < n; i++)
        IC_TRY(ic_cell_measure(e, &cells[i]));
    ic_report_section(
        r, "autoencoding", "Autoencoding",
        "Texts are compressed to slots and restored greedily from them alone. BLEU is sacrebleu's "
        "(13a, smoothing exp; means and quartiles are of sentence BLEU with effective order). "
        "Exact "
        "match: the tokens before the first error, as a share of all. Loss: nats a token, each "
        "predicted from the slots and the right tokens before it. Bands and boxes: the middle half "
        "of the samples; dot: mean.");
    ic_report_table(r, "By length and rate", columns);
    for (size_t i = 0; i < n; i++)
        row(r, &cells[i]);
    ic_report_table_end(r);
    for (size_t i = 0; i < n; i++)
        ic_cell_shortfall(e, &cells[i]);
    line_chart(e, cells, n, "Median BLEU", "BLEU", BLEU, true);
    line_chart(e, cells, n, "Mean exact match", "share of tokens", PREFIX, false);
    line_chart(e, cells, n, "Mean loss", "nats a token", LOSS, false);
    rate_chart(e, cells, n);
    box_chart(e, cells, n, "BLEU of samples", BLEU);
    box_chart(e, cells, n, "Exact match of samples", PREFIX);
    histograms(e, cells, n);
    for (size_t i = 0; i < n; i++)
        if (is_last(cells, n, i))
            IC_TRY(diffs(e, &cells[i]));
    ic_report_section_end(r);
    for (size_t i = 0; i < n; i++)
        if (is_last(cells, n, i))
            highlight(e, &cells[i]);
    IC_TRY(facts(e, cells, n));
done:
    for (size_t i = 0; i < n; i++)
        ic_cell_free(&cells[i]);
    ic_free(cells);
    return rc;
}
