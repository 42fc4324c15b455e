/*
 * run.h - training runs: configuration, text, samples, checkpoints, processes.
 *
 * What one optimiser step computes is train.h's; this decides on which examples, when to measure, and
 * what is kept on disk so that a run killed at any instant goes on as if nothing had happened.
 */
#ifndef IC_RUN_H
#define IC_RUN_H

#include "train/train.h"

/* ---- configuration (config.c, config_keys.c, config_file.c, config_text.c) -------------------- */

typedef struct ic_list {
    char **item;
    size_t count;
} ic_list;

typedef struct ic_reals {
    double v[8];
    int count;
} ic_reals;

/* The value of every key; names as in the table of config_keys.c, where their meanings stand. */
typedef struct ic_settings {
    char *preset, *base, *adapter, *compute, *template_name;
    int64_t k, rank, span;
    double rate, alpha, dropout;
    ic_reals rates;
    ic_list targets;
    char *positions, *slots, *lora, *init;
    bool lm_token, bos;
    ic_list data, eval_data;
    char *cache, *lengths, *longer;
    bool strict;
    int64_t min_tokens, max_tokens, continuation, lm_skip, grow;
    double multi_share, plain_share, distill, ae_weight, lm_weight, ft_weight;
    int64_t steps, tokens, batch, accumulate, batch_tokens, warmup;
    double hours, lr, min_lr, clip, decay, beta1, beta2, eps;
    char *schedule, *recompute;
    char *out;
    int64_t checkpoint_every, eval_every, eval_samples, seed, threads;
    double checkpoint_minutes, timeout;
    uint64_t memory;
    bool resume, force, estimate;
} ic_settings;

struct icae_train_config {
    icae_train_stage stage;
    ic_settings s;
    unsigned char *origin; /* by key: who set it last, enum in config.c */
};

enum { IC_VALUE_FLAG, IC_VALUE_STRING, IC_VALUE_NUMBER, IC_VALUE_BOOL, IC_VALUE_ARRAY };

/* A value as a file or flag gives it: `count` texts (1 but for arrays). */
typedef struct ic_value {
    int kind;
    char **item;
    size_t count, capacity;
} ic_value;

int ic_value_add(ic_value *v, const char *text, size_t size);
void ic_value_free(ic_value *v);
/* Sets a key from a file (`flag` false) or from the command line. */
int ic_settings_put(icae_train_config *c, const char *key, const ic_value *value, bool flag);
/* The TOML array in `text`, all of it. */
int ic_settings_parse_array(ic_value *out, const char *text);
bool ic_settings_is_set(const icae_train_config *c,
                        const char *key); /* by anybody but the defaults */
/* Appends {"key": "value", …} of what decides results and what is worth knowing. */
int ic_settings_to_json(const icae_train_config *c, ic_buffer *out);
/* Appends "key old -> new, …" of the keys that decide results and differ from `stored`. */
int ic_settings_changes(const icae_train_config *c, const ic_json *stored, ic_buffer *out);

/* ---- processes (dist.c, the only file that includes MPI) -------------------------------------- */

/* One process of a run. Sums are in the order of ranks: the same bits every time. */
typedef struct ic_dist {
    int rank, ranks, local; /* local: processes on this machine */
    double timeout;         /* seconds to wait for the others; 0: for ever */
    /* Called about every 10 ms while waiting; `lost`: the others are gone or hang, and this process is
     * about to end. */
    void (*waiting)(void *user, bool lost);
    void *user;
    float *scratch;
    bool started, failed; /* started: MPI by us */
} ic_dist;

int ic_dist_open(ic_dist *d); /* alone unless started by mpirun, srun or their like */
void ic_dist_close(ic_dist *d);
int ic_dist_sum_f32(ic_dist *d, float *x, size_t n);
int ic_dist_sum_f64(ic_dist *d, double *x, size_t n);
int ic_dist_share(ic_dist *d, void *data, size_t size); /* rank 0's to all */
/* The worst of all processes' codes, and its message everywhere. */
int ic_dist_agree(ic_dist *d, int rc);
void ic_dist_abort(ic_dist *d); /* ends all processes if there are several; returns if not */

/* ---- text (cache.c, lines.c, data.c) ---------------------------------------------------------- */

typedef void (*ic_notice_fn)(void *user, bool warning, const char *line);

/* One tokenised file, mapped. A document has three runs of tokens: text or context, prompt, answer. */
typedef struct ic_corpus {
    char *path;
    char key[65]; /* of content and tokenizer */
    ic_safetensors file;
    const uint16_t *narrow; /* tokens, or */
    const int32_t *wide;
    const int64_t *ends; /* [documents][3] */
    uint64_t tokens, documents, triples, lines, skipped, longest;
} ic_corpus;

static inline uint64_t ic_corpus_start(const ic_corpus *c, uint64_t document, int part)
{
    uint64_t i = document * 3 + (uint64_t)part;
    return i ? (uint64_t)c->ends[i - 1] : 0;
}
static inline uint64_t ic_corpus_count(const ic_corpus *c, uint64_t document, int part)
{
    uint64_t i = document * 3 + (uint64_t)part;
    return (uint64_t)c->ends[i] - (i ? (uint64_t)c->ends[i - 1] : 0);
}
/* Tokens first … first + count - 1. ICAE_EFORMAT if one is outside the vocabulary. */
int ic_corpus_read(int32_t *ids, const ic_corpus *c, uint64_t first, int count, int vocabulary);

/* What building a corpus needs to know and to tell. */
typedef struct ic_reading {
    const ic_tokenizer *tokenizer;
    int vocabulary;
    const char *folder; /* of the cache */
    bool strict;
    ic_notice_fn notice;
    icae_progress_fn progress;
    bool (*stop)(void *user);
    void *user;
} ic_reading;

/* Opens the token cache of a file, made first if it is not there. */
int ic_corpus_open(ic_corpus *out, const char *path, const ic_reading *r);
void ic_corpus_close(ic_corpus *c);
/* $XDG_CACHE_HOME/icae, ~/.cache/icae, or out/cache; made if needed. */
int ic_cache_folder(char **out, const char *wanted, const char *run_folder);
int ic_make_folders(const char *path); /* with all above it */

/* Documents from a file, one after the other (lines.c). */
typedef struct ic_lines ic_lines;
typedef struct ic_document {
    char *data; /* a line of JSON, or a piece of plain text */
    size_t size;
    uint64_t line;
    bool json, goes_on; /* goes_on: plain text whose next piece belongs to the same document */
    const char *bad;    /* what is wrong with the line already; NULL */
} ic_document;

int ic_lines_open(ic_lines **out, const char *path);
int ic_lines_next(ic_lines *l, ic_document *out, bool *more); /* out->data is the caller's */
void ic_lines_close(ic_lines *l);
/* The three parts of a JSON line as ids; `why` (of a size of 200) tells why a line is bad. */
int ic_document_tokenize(ic_ids part[3], bool *bad, char why[200], const ic_document *d,
                         const ic_tokenizer *t);

/* One entry of `data`: path or pattern, and how often its text is read. */
typedef struct ic_source {
    char *pattern;
    double weight;
    ic_corpus *file;
    size_t files; /* with documents */
    uint64_t tokens, documents, triples, skipped;
    bool found; /* some file, even if it is empty */
} ic_source;

typedef struct ic_data {
    ic_source *source;
    size_t sources;
    uint64_t tokens, documents, triples, skipped, files;
    char identity[65]; /* of contents and weights */
} ic_data;

int ic_data_open(ic_data **out, const ic_list *entries, const ic_reading *r);
void ic_data_close(ic_data *d);

/* ---- samples (sampler.c, pack.c) -------------------------------------------------------------- */

/* What one training example is made of; drawn before any token is read. */
typedef struct ic_item {
    ic_objective objective;
    float rate;
    const ic_corpus *corpus;
    uint64_t document, first; /* first token of the context in the corpus */
    int tokens;               /* of the context, bos included */
    int continuation, prompt, answer;
    bool plain;        /* the context is read as it is, without slots */
    bool taught;       /* it is read so too, by a teacher */
    int targets, cost; /* tokens with loss; tokens read by encoder and decoder */
} ic_item;

/* A set of things to draw from: every thing once an epoch, in an order of its own. */
typedef struct ic_pool {
    const ic_data *data;
    uint64_t *end;   /* [sources] cumulative things, weights included */
    uint64_t *count; /* [sources] things without weights; 0: none to draw */
    uint64_t total;
    int unit; /* tokens a thing; 0: things are documents */
} ic_pool;

typedef struct ic_sampler {
    const ic_settings *s;
    const icae_model *model;
    const icae_adapter *adapter;
    uint64_t seed;
    ic_pool pool[2];         /* text, triples */
    ic_ids left, gap, right; /* of the chat template; gap: between a text itself and its prompt */
    int32_t eos;
    int max_tokens, min_tokens, continuation;
    int max_cost;                /* of any sample */
    double share[IC_OBJECTIVES]; /* cumulative */
    uint64_t cut, unusable,
        longer; /* triples cut, triples left out, texts longer than max_tokens */
} ic_sampler;

int ic_sampler_new(ic_sampler **out, const ic_settings *s, const icae_model *model,
                   const icae_adapter *adapter, const ic_data *data, uint64_t seed,
                   ic_notice_fn notice, void *user);
void ic_sampler_free(ic_sampler *s);
/* Sample number `index` of the run; `reach` in (0, 1]: share of the longest length in use so far.
 * `objective` IC_OBJECTIVES: drawn; `rate` 0: drawn. */
void ic_sampler_draw(const ic_sampler *s, ic_item *out, uint64_t index, ic_objective objective,
                     float rate, double reach);
/* Ids that ic_sampler_fill writes. */
size_t ic_item_ids(const ic_sampler *s, const ic_item *sample);
int ic_sampler_fill(const ic_sampler *s, const ic_item *sample, int32_t *ids, ic_example *out);
/* A permutation of 0 … n - 1 that depends on (seed, round). */
uint64_t ic_permute(uint64_t index, uint64_t n, uint64_t seed, uint64_t round);

/* A micro-batch: samples first … first + count - 1 of a step, on one process. */
typedef struct ic_micro {
    int first, count, rank;
    int64_t cost;
} ic_micro;

/* Cuts samples into micro-batches within the budget, and deals them to the ranks by cost. out[count]. */
int ic_pack(ic_micro *out, const ic_item *samples, int count, int64_t budget, int ranks);

/* ---- state and checkpoints (checkpoint.c) ----------------------------------------------------- */

typedef struct ic_state {
    uint64_t step, samples, tokens, skipped, bad_in_a_row;
    uint64_t eval_due; /* this step is to be measured and has not been yet */
    double seconds;
    double average[IC_OBJECTIVES], average_weight[IC_OBJECTIVES];
    double best; /* NAN: none */
    uint64_t best_step;
    uint64_t metrics_size; /* bytes of metrics.jsonl that belong to this state */
    char data[65], base[65];
    int64_t samples_a_step;
} ic_state;

/* A checkpoint that was found sound: its tensors are mapped. */
typedef struct ic_checkpoint {
    ic_safetensors file;
    ic_state state;
    ic_json *config; /* as ic_settings_to_json wrote it */
    char *path;
} ic_checkpoint;

/* Writes folder/checkpoint.safetensors, and keeps the one before as checkpoint.previous.safetensors. */
int ic_checkpoint_save(const char *folder, const ic_params *p, const ic_state *state,
                       const icae_train_config *config);
/* The newest sound checkpoint; damaged ones are put aside. ICAE_ENOTFOUND if there is none at all,
 * ICAE_EFORMAT if none is sound. */
int ic_checkpoint_open(ic_checkpoint *out, const char *folder, ic_notice_fn notice, void *user);
int ic_checkpoint_restore(const ic_checkpoint *c, ic_params *p);
void ic_checkpoint_close(ic_checkpoint *c);
bool ic_checkpoint_exists(const char *folder);
void ic_checkpoint_remove(const char *folder); /* all of them, before another run begins */
size_t ic_checkpoint_bytes(const ic_params *p);

/* ---- the run (run.c, setup.c, memory.c, evaluate.c, report.c) --------------------------------- */

typedef struct ic_training {
    const icae_train_config *config;
    const ic_settings *s;
    icae_train_callbacks callbacks;
    ic_dist dist;
    icae_model *model;
    icae_adapter *start; /* the adapter it starts from, or NULL */
    ic_params *params;
    icae_session *session;
    ic_data *data, *eval_data;
    ic_sampler *sampler, *eval_sampler;
    ic_state state;
    bool running; /* params and state are those of the end of a step, and worth keeping */
    int recompute;
    int64_t budget; /* tokens a micro-batch */
    size_t scratch; /* bytes of the largest one */
    ic_item *items; /* of the step: */
    ic_micro *micro;
    double *nll;
    int batch;                               /* samples a step, all processes */
    int lock, metrics;                       /* file descriptors; -1: not this process */
    ic_buffer pending;                       /* metrics that could not be written yet */
    double peak;                             /* products a second of this machine; 0: unknown */
    double started, before, last_checkpoint; /* clock; seconds of earlier sessions; clock */
    double first_progress;                   /* when this session began */
    double pace, pace_tokens;                /* moving sums of seconds and tokens */
    double ppl_full, ppl_none;               /* of the frozen base: measured once; 0: not yet */
    double stop_seen; /* clock at which a stop was first seen while waiting */
    bool rescued, disk_full, metrics_failed;
} ic_training;

/* What held-out text tells; NAN where nothing was measured. */
typedef struct ic_evaluation {
    double loss[IC_OBJECTIVES], accuracy, prefix;
    double ppl_slots, ppl_full, ppl_none;
    double rate_loss[8], rate_accuracy[8], rate_prefix[8]; /* restoring, by rate */
} ic_evaluation;

/* Everything up to the first step. `measure`: nothing is written into the run's folder. */
int ic_training_open(ic_training *t, const icae_train_config *config,
                     const icae_train_callbacks *callbacks, bool measure);
void ic_training_close(ic_training *t);
void ic_training_notice(ic_training *t, bool warning, const char *format, ...) IC_PRINTF(3, 4);
bool ic_training_stopped(const ic_training *t);

/* Recompute tier and packing budget that fit into memory; ICAE_ENOMEM if none do. */
int ic_training_plan_memory(ic_training *t);
uint64_t ic_memory_available(void);
double ic_measure_peak(ic_training *t);
/* Products that a step over these samples must do, forward and backward, recomputation not counted. */
double ic_training_work(const ic_training *t, const ic_item *items, int count);

/* Runs the micro-batches of this process and fills nll (and right, prefix if not NULL) of their samples;
 * those of the others stay. `weight` of every target's loss; `train`: with gradient. */
int ic_training_run(ic_training *t, const ic_sampler *sampler, const ic_item *items,
                    const ic_micro *micro, int micros, double weight, bool train, double *nll,
                    int *right, int *prefix);
int ic_evaluate(ic_training *t, ic_evaluation *out);

double ic_training_progress(const ic_settings *s, const ic_state *state); /* 0 … 1, the end */
double ic_training_lr(const ic_settings *s, const ic_state *state);

/* metrics.jsonl: keeps its first `keep` bytes. A line that cannot be written waits in memory. */
int ic_metrics_open(ic_training *t, uint64_t keep);
void ic_metrics_add(ic_training *t, const ic_buffer *line);
void ic_metrics_flush(ic_training *t);
void ic_metrics_step(ic_training *t, const icae_train_report *r, const ic_evaluation *e);

#endif
