/*
 * content.c - restoration by kind of text (ICAE §4.2.1, Table 3): every set that was given, ids that make a
 * pattern of it, and ids drawn at random.
 */
#include "eval/eval.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Without the '=' that marks the kinds that are made. */
static const char *kind_of(const ic_cell *c)
{
    return c->set + (*c->set == '=');
}

static void row(ic_report *r, ic_cell *c)
{
    ic_report_row(r, "ssiiinnnnnn", c->s->name, kind_of(c), (uint64_t)c->length, (uint64_t)c->count,
                  c->wanted, ic_stats_mean(&c->loss), ic_cell_corpus_bleu(c),
                  ic_stats_mean(&c->bleu), ic_stats_quantile(&c->bleu, 0.5),
                  ic_stats_mean(&c->prefix), ic_stats_mean(&c->accuracy));
}

static void chart(ic_eval *e, ic_cell *cells, size_t n)
{
    ic_report *r = &e->report;
    ic_report_chart(r, "box", "BLEU by kind of text", "", "");
    for (size_t i = 0; i < n; i++) {
        char label[192];
        snprintf(label, sizeof label, "%s%s", ic_eval_prefix(e, cells[i].s).text,
                 kind_of(&cells[i]));
        ic_report_box(r, label, &cells[i].bleu);
    }
    ic_report_chart_end(r);
    ic_report_chart(r, "bar", "Loss by kind of text", "", "nats a token");
    for (size_t i = 0; i < n; i++) {
        char label[192];
        double mean = ic_stats_mean(&cells[i].loss), half = ic_stats_half(&cells[i].loss);
        snprintf(label, sizeof label, "%s%s", ic_eval_prefix(e, cells[i].s).text,
                 kind_of(&cells[i]));
        ic_report_bar(r, label, mean, mean - half, mean + half);
    }
    ic_report_chart_end(r);
}

int ic_experiment_content(ic_eval *e)
{
    int rc = ICAE_OK, length = ic_suite_int(e, "content", "length", 512);
    size_t kinds = e->data.sets + 2, n = e->systems * kinds;
    ic_report *r = &e->report;
    ic_cell *cells = ic_alloc(n, sizeof *cells);
    if (!cells)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < n; i++) {
        ic_cell *c = &cells[i];
        size_t k = i % kinds;
        *c = (ic_cell){
            .s = &e->system[i / kinds], .length = length, .wanted = ic_suite_samples(e, "content")};
        c->set = k < e->data.sets ? e->data.set[k] : k == e->data.sets ? "=patterned" : "=random";
        c->rate = c->s->adapter->rate;
        snprintf(c->name, sizeof c->name, "%s", c->s->name);
        IC_TRY(ic_cell_measure(e, c));
    }
    ic_report_section(r, "content", "Kinds of text",
                      "The same for each set of texts that was given, and for two kinds that are "
                      "made from them: patterned (every token id plus one) and random (ids drawn "
                      "evenly from the vocabulary). Text that language models know is remembered; "
                      "what makes no sense to them is not.");
    ic_report_table(r, "By kind of text",
                    "System|Kind|Tokens:0|Samples:0|Asked:0|Loss:4|BLEU corpus:4|BLEU mean:4|BLEU "
                    "median:4|Exact match mean:4|Tokens right:4");
    for (size_t i = 0; i < n; i++)
        row(r, &cells[i]);
    ic_report_table_end(r);
    for (size_t i = 0; i < n; i++)
        ic_cell_shortfall(e, &cells[i]);
    chart(e, cells, n);
    ic_report_section_end(r);
done:
    for (size_t i = 0; i < n; i++)
        ic_cell_free(&cells[i]);
    ic_free(cells);
    return rc;
}
