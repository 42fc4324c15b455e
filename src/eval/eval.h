/*
 * eval.h - measuring an ICAE: what the experiments share.
 *
 * An experiment makes one record a sample (JSON, kept in a journal so that a run can be resumed) and
 * then writes a section of the report from the records alone. The report is JSON; html.c and csv.c
 * render it and know no experiment. Layering: over core.
 */
#ifndef IC_EVAL_H
#define IC_EVAL_H

#include "core/engine.h"
#include "eval/metrics.h"

/* ---- statistics (stats.c) --------------------------------------------------------------------- */

typedef struct ic_stats {
    double *value;
    size_t count, capacity;
    bool sorted;
} ic_stats;

int ic_stats_add(ic_stats *s, double value);     /* values that are not finite are left out */
double ic_stats_mean(const ic_stats *s);         /* NaN if there are none */
double ic_stats_quantile(ic_stats *s, double q); /* linear interpolation; sorts */
double
ic_stats_half(const ic_stats *s); /* half the 95% interval of the mean (normal); NaN below 2 */
void ic_stats_free(ic_stats *s);
/* 95% interval of a share k / n (Wilson). */
void ic_wilson(double *low, double *high, uint64_t k, uint64_t n);

/* ---- report (report.c) ------------------------------------------------------------------------ */

/* Writes JSON; the first error sticks and is returned by ic_report_end. */
typedef struct ic_report {
    ic_buffer json;
    int rc;
    int depth;
    bool some[16];                              /* something stands at this depth */
    void (*note)(void *user, const char *text); /* also told every note */
    void *user;
} ic_report;

void ic_report_open(ic_report *r, const char *key, char bracket); /* key NULL: in an array */
void ic_report_close(ic_report *r, char bracket);
void ic_report_text(ic_report *r, const char *key, const char *text); /* NULL: null */
void ic_report_bytes(ic_report *r, const char *key, const char *text, size_t size);
void ic_report_number(ic_report *r, const char *key, double value); /* not finite: null */

void ic_report_section(ic_report *r, const char *id, const char *title, const char *lead);
void ic_report_section_end(ic_report *r);
void ic_report_note(ic_report *r, const char *format, ...) IC_PRINTF(2, 3);
/* Columns "Length:0|BLEU:3|Stop": digits behind the point, or text. */
void ic_report_table(ic_report *r, const char *title, const char *columns);
/* A row: one letter a cell, s const char *, n double, i uint64_t. */
void ic_report_row(ic_report *r, const char *types, ...);
void ic_report_table_end(ic_report *r);
/* kind: "line" (points, perhaps with a band), "box" (five numbers and a mean), "bar", "stack" (parts one
 * behind the other, named "a|b|c" in y). */
void ic_report_chart(ic_report *r, const char *kind, const char *title, const char *x,
                     const char *y);
void ic_report_series(ic_report *r, const char *name);
void ic_report_point(ic_report *r, double x, double y);
void ic_report_band(ic_report *r, double x, double y, double low, double high); /* a point */
void ic_report_series_end(ic_report *r);
void ic_report_box(ic_report *r, const char *label, ic_stats *s);
void ic_report_bar(ic_report *r, const char *label, double value, double low, double high);
void ic_report_stack(ic_report *r, const char *label, const double *parts, size_t count);
void ic_report_chart_end(ic_report *r);
/* Ten bars over 0 … 1, each the share of values in it. */
void ic_report_histogram(ic_report *r, const char *title, const char *x, const ic_stats *s);
/* A figure that the summary shows first. */
typedef struct ic_highlight {
    const char *section, *title;
    char *value, *detail; /* "0.991", "512 tokens in 128 slots, 200 samples" */
} ic_highlight;

void ic_report_highlights(ic_report *r, const ic_highlight *list, size_t count);
void ic_report_diff(ic_report *r, const char *title, const char *reference, const char *restored);

/* ---- journal (journal.c) ---------------------------------------------------------------------- */

typedef struct ic_journal ic_journal;

/* Opens or makes the file. With `resume` what it holds is kept if it was made with the same settings,
 * else ICAE_EMISMATCH; a line cut short by a crash is dropped. */
int ic_journal_open(ic_journal **out, const char *path, const char *settings, bool resume);
const ic_json *ic_journal_get(const ic_journal *j, const char *key); /* NULL: not yet */
int ic_journal_put(ic_journal *j, const char *key, const ic_buffer *json);
int ic_journal_close(ic_journal *j);

/* ---- data (data.c) ---------------------------------------------------------------------------- */

typedef struct ic_document {
    char *set; /* file or folder it came from, without ending: "prose" */
    char *text;
    size_t size;
} ic_document;

typedef struct ic_question {
    char *context, *prompt, *answer, *summary; /* summary may be NULL */
} ic_question;

typedef struct ic_data {
    ic_document *document;
    size_t documents, document_capacity;
    ic_question *question;
    size_t questions, question_capacity;
    char **set; /* names, in order of appearance */
    size_t sets;
} ic_data;

/* Adds a file or folder: .txt, .md and the like (one document each), .jsonl (a line each; `text`, or
 * context|input, prompt, answer|response[, summary]), either also .gz or .zst. A folder's README* and
 * LICENSE* tell about the texts and are none. */
int ic_data_add(ic_data *d, const char *path);
void ic_data_free(ic_data *d);
int ic_data_hash(char hex[65], const ic_data *d);

/* ---- the run (eval.c, run.c) ------------------------------------------------------------------ */

typedef struct ic_system {
    char *name, *model_path, *adapter_path; /* paths NULL: bundled, beside the model */
    icae_model *model;
    icae_adapter *adapter;
    icae_session *session;
    int refine;  /* steps of slots that are refined; 0: as the encoder makes them */
    int expand;  /* segments that are read as text again to continue and to answer */
    ic_ids *ids; /* [documents], made when first asked for */
} ic_system;

enum {
    IC_LIST = 32,      /* lengths, contexts or shapes of an experiment at most */
    IC_RATES = 9,      /* that an adapter serves at most */
    IC_HIGHLIGHTS = 24 /* in a summary at most */
};

typedef struct ic_eval {
    const icae_eval_options *options;
    ic_json *suite;
    ic_data data;
    ic_system *system;
    size_t systems;
    ic_journal *journal;
    ic_report report;
    uint64_t samples, seed;
    bool judging; /* there is a judge and it answers */
    ic_highlight highlight[IC_HIGHLIGHTS];
    size_t highlights;
} ic_eval;

/* Pieces of `length` tokens of the documents of a set (NULL: of all), chosen by the seed; *out is the
 * caller's (ids borrowed). Fewer than wanted if there is no more text. */
typedef struct ic_piece {
    const int32_t *ids;
    size_t document, offset;
} ic_piece;
int ic_eval_pieces(ic_piece **out, size_t *count, ic_eval *e, ic_system *s, const char *set,
                   int length, uint64_t wanted);
/* A note beside a figure if it stands on fewer samples than asked for. */
void ic_eval_shortfall(ic_eval *e, const char *what, uint64_t got, uint64_t wanted,
                       const char *why);

int ic_eval_progress(ic_eval *e, const char *what, uint64_t done, uint64_t total);
int ic_eval_key(char key[256], const char *format, ...) IC_PRINTF(2, 3);
/* Number or string of a record or a report: NaN or "" where there is none. */
double ic_record_number(const ic_json *record, const char *key);
const char *ic_record_text(const ic_json *record, const char *key);
/* Settings of an experiment in the suite: a number, or numbers of an array. */
int ic_suite_int(const ic_eval *e, const char *experiment, const char *key, int otherwise);
size_t ic_suite_ints(int *out, size_t capacity, const ic_eval *e, const char *experiment,
                     const char *key);
/* Rates to measure a system at: all that its adapter serves, in order; or those of them that the
 * suite names under "rates". */
size_t ic_eval_rates(float out[IC_RATES], const ic_eval *e, const ic_system *s);
/* Slots that a text of so many tokens becomes. */
uint64_t ic_eval_slots(const icae_adapter *a, float rate, uint64_t tokens);
/* "bundled, " before what is said of one of several systems; "" if there is only one. */
typedef struct ic_prefix {
    char text[128];
} ic_prefix;
ic_prefix ic_eval_prefix(const ic_eval *e, const ic_system *s);
/* "bundled", or "bundled, 8×" if it is measured at several rates. */
void ic_eval_label(char out[128], const ic_eval *e, const ic_system *s, float rate);
/* Takes `value` and `detail` over. What is too much for a summary is left out. */
void ic_eval_highlight(ic_eval *e, const char *section, const char *title, char *value,
                       char *detail);
/* Samples of an experiment: its own, or the run's. */
uint64_t ic_suite_samples(const ic_eval *e, const char *experiment);
int ic_eval_decode(ic_buffer *out, const ic_system *s, const int32_t *ids, size_t count);

/* ---- scoring continuations (score.c) ---------------------------------------------------------- */

/* Scores of ids[0 … n-1], from ic_first_scored on, behind `tokens` tokens of context as text (none: behind
 * bos alone) or as slots at a rate (0: the adapter's); *rows: slots. ICAE_ELIMIT if the model cannot hold
 * it. */
int ic_score_text(ic_score *scores, ic_system *s, const int32_t *context, int tokens,
                  const int32_t *ids, int n);
int ic_score_slots(ic_score *scores, double *rows, ic_system *s, float rate, const int32_t *context,
                   int tokens, const int32_t *ids, int n);
/* 1 without a bos token: then nothing predicts the first token of a text that has no context, and it is
 * left out everywhere. */
int ic_first_scored(const ic_system *s);
double ic_mean_loss(const ic_score *scores, int count); /* nats a token */

/* A record of numbers; or, for ICAE_ELIMIT, of why there are none (other codes are returned). */
int ic_record_keep(ic_eval *e, const char *key, const char *const *names, const double *values,
                   size_t n);
int ic_record_skip(ic_eval *e, const char *key, int rc);

/* ---- threads (gang.c) ------------------------------------------------------------------------- */

typedef struct ic_gang ic_gang;

typedef struct ic_gang_plan {
    int members;
    int (*work)(ic_gang *g, int number,
                void *user); /* in a thread of its own: number 0 … members-1 */
    int (*take)(void *user, const void *result); /* in the thread that runs the gang */
    void *user;
} ic_gang_plan;

/* Until all members are done, or the first error of `work` or `take`. */
int ic_gang_run(const ic_gang_plan *plan);
/* From `work`: waits until the result was taken. ICAE_ECANCELLED: an error elsewhere ends everything. */
int ic_gang_give(ic_gang *g, const void *result);

/* ---- restoring many texts (restore.c, restore_all.c) --------------------------------------------------------- */

/* One text to be compressed and restored; the results are valid in `done` only. */
typedef struct ic_restoration {
    const int32_t *ids; /* in: borrowed */
    int count;
    float rate;   /* 0: the adapter's */
    uint64_t tag; /* the caller's */
    ic_ids restored;
    icae_fidelity fidelity; /* with the right tokens before each */
    uint64_t slots;
    const char *skipped; /* why the model cannot hold it: nothing else is set then; NULL: it can */
} ic_restoration;

typedef struct ic_restore_plan {
    bool (*next)(void *user, ic_restoration *r); /* fills ids, count, rate, tag; false: no more */
    int (*done)(void *user, const ic_restoration *r);
    void *user;
    int refine; /* steps */
    double
        seconds; /* out: spent on losses and restoration, without compressing and next and done */
} ic_restore_plan;

/* Restores greedily; the tokens are those of icae_restore (up to ties in the rounding of a batch). The
 * plan's functions are called in this thread. */
int ic_restore_all(ic_system *s, ic_restore_plan *plan);
enum { IC_SEQUENCES = 32 }; /* at work at a time */
/* The same in one session, so many sequences at a time. */
int ic_restore_on(icae_session *s, ic_restore_plan *plan, int sequences);

/* ---- one entry of a table of restorations (cells.c) ------------------------------------------- */

typedef struct ic_cell {
    ic_system *s;
    const char *set; /* of documents; "=patterned" and "=random" are made; NULL: all */
    float rate;
    int length;
    uint64_t wanted;
    char name[128]; /* in charts: system, and rate if it has several */
    /* out */
    size_t pieces, count; /* samples there are; measured */
    const char *why;      /* some were not */
    double slots;
    ic_stats bleu, prefix, loss, accuracy;
    ic_bleu corpus;
} ic_cell;

int ic_cell_measure(ic_eval *e, ic_cell *c);
void ic_cell_shortfall(ic_eval *e, const ic_cell *c); /* a note, if count < wanted */
const ic_json *ic_cell_record(const ic_eval *e, const ic_cell *c, size_t i); /* NULL: skipped */
double ic_cell_corpus_bleu(const ic_cell *c);
void ic_cell_free(ic_cell *c);

/* ---- experiments ------------------------------------------------------------------------------ */

int ic_experiment_autoencoding(ic_eval *e); /* autoencoding.c: also facts and diffs */
int ic_experiment_content(ic_eval *e);      /* content.c */
int ic_experiment_continuation(ic_eval *e); /* continuation.c */
int ic_experiment_span(ic_eval *e);         /* span.c */
int ic_experiment_instruct(ic_eval *e);     /* instruct.c */
int ic_experiment_ablations(ic_eval *e);    /* ablations.c */
int ic_experiment_systems(ic_eval *e);      /* systems.c: from records of the others */
int ic_experiment_latency(ic_eval *e);      /* latency.c */

/* Keys of records that more than one experiment reads. */
void ic_key_autoencoding(char key[256], const ic_system *s, const char *set, int length, float rate,
                         size_t i);
void ic_key_continuation(char key[256], const ic_system *s, int context, float rate, size_t i);
/* from: "full", "none", "summary", or "slots" at a rate. */
void ic_key_answer(char key[256], const ic_system *s, const char *from, float rate,
                   size_t question);

/* ---- judging (judge.c, http.c) ---------------------------------------------------------------- */

typedef struct ic_verdicts {
    uint64_t win, lose, tie, failed;
} ic_verdicts;

typedef struct ic_judge_pair {
    const ic_question *question;
    const char *first, *second; /* answers */
} ic_judge_pair;

/* Has the judge compare answers, both orders, those that it was not asked about before. */
int ic_judge_pairs(ic_eval *e, const ic_judge_pair *pairs, size_t count);
/* Adds what the judge said of a pair. */
int ic_judge_count(ic_verdicts *v, const ic_eval *e, const ic_judge_pair *pair);
void ic_verdicts_row(ic_report *r, const char *first, const char *second, const ic_verdicts *v,
                     const char *by);
void ic_verdicts_stack(ic_report *r, const char *name, const ic_verdicts *v); /* win|tie|lose */
extern const char *const ic_verdict_columns;

/* One POST of JSON. *status: of HTTP; *wait: seconds that Retry-After names, or -1. ICAE_EIO if the
 * server cannot be reached or is silent for `seconds`. */
int ic_http_post(ic_buffer *answer, int *status, double *wait, const char *url, const char *key,
                 const char *body, double seconds);

/* ---- rendering (html.c, svg.c, csv.c) --------------------------------------------------------- */

/* Reports side by side in one page; names[i] tells them apart if there are several. */
int ic_html_write(ic_buffer *out, const ic_json *const *reports, const char *const *names,
                  size_t count);
/* One chart of every report that has it (charts[i] may be NULL). */
int ic_svg_chart(ic_buffer *out, const ic_json *const *charts, const char *const *names,
                 size_t count);
int ic_csv_write(ic_buffer *out, const ic_json *report);
extern const char ic_report_style[]; /* style.c */
/* Text with &, <, > and quotes escaped. */
int ic_html_escape(ic_buffer *out, const char *text, size_t size);

#endif
