/*
 * icae.h - the whole public interface of libicae, an In-context Autoencoder (ICAE).
 *
 * ICAE (arXiv 2307.06945) turns a long text into a few *memory slots*: vectors that a language model
 * reads in place of the text. From the slots the same model restores the text, continues it, or
 * answers questions about it.
 *
 *   model     a base language model: immutable, may be shared by threads
 *   adapter   what makes that model an ICAE (LoRA of the encoder, memory tokens): immutable
 *   session   a model and an adapter at work: scratch memory and settings; one thread at a time
 *   slots     a compressed text: a plain value that outlives all of them
 *
 * Simplest use (examples/ask.c is this program):
 *
 *     icae_model *model; icae_adapter *adapter; icae_session *session; icae_slots *slots;
 *     if (icae_model_open(&model, "mistral-7b", NULL) < 0 ||
 *         icae_adapter_open(&adapter, "icae.safetensors", model, NULL) < 0 ||
 *         icae_session_new(&session, model, adapter, NULL) < 0 ||
 *         icae_compress(&slots, session, text, text_size, NULL) < 0 ||
 *         icae_ask(session, &(icae_part){.slots = slots}, 1, "Who wrote it?", NULL, print, NULL) < 0)
 *         puts(icae_error_message());
 *
 * Conventions. Functions that can fail return ICAE_OK (0) or a negative ICAE_E… code; then
 * icae_error_message() names the file, tensor, line or value and what was expected. Outputs come
 * first. A pointer returned by value is borrowed until its owner is freed; a pointer to pointer is
 * the caller's to free. Every free function accepts NULL. Texts are bytes with a size; they need not
 * be valid UTF-8 unless stated. Option structs may be NULL or zero-filled for the defaults: a zero
 * field always means "default". The library never prints, exits or aborts.
 */
#ifndef ICAE_H
#define ICAE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ICAE_VERSION "0.1.0"

#if defined(__GNUC__)
#define ICAE_API __attribute__((visibility("default")))
#else
#define ICAE_API
#endif

/* ---- errors ----------------------------------------------------------------------------------- */

enum {
    ICAE_OK = 0,
    ICAE_EINVAL = -1,        /* an argument makes no sense */
    ICAE_ENOMEM = -2,        /* no memory, or a memory limit reached */
    ICAE_EIO = -3,           /* the operating system refused a read or write */
    ICAE_EFORMAT = -4,       /* a file is damaged or not what it should be */
    ICAE_ENOTFOUND = -5,     /* a file or tensor is missing */
    ICAE_EUNSUPPORTED = -6,  /* well formed, but not something this version can do */
    ICAE_EDEVICE = -7,       /* an accelerator failed */
    ICAE_ECANCELLED = -8,    /* a callback asked to stop */
    ICAE_EMISMATCH = -9,     /* base, adapter and slots do not belong together */
    ICAE_ELIMIT = -10,       /* longer than the model's positions, or another stated limit */
    ICAE_EINEXACT = -11,     /* an exact restoration was asked for and is not possible */
    ICAE_EUNAVAILABLE = -12, /* a database cannot be reached, or is busy: later it may be */
    ICAE_EFULL = -13,        /* no room: the store's quota or the disk */
};

/* One line about the last error of this thread; "" if there was none. Valid until the next error. */
ICAE_API const char *icae_error_message(void);

/* ---- callbacks -------------------------------------------------------------------------------- */

/* Receives a piece of output text as it is made: whole UTF-8 characters unless the text itself is
 * not UTF-8. Return 0 to go on, anything else to stop (the call then returns ICAE_ECANCELLED). */
typedef int (*icae_text_fn)(void *user, const char *text, size_t size);

/* Progress of long work: `done` of `total` in `unit` ("tokens"). Return 0 to go on. */
typedef int (*icae_progress_fn)(void *user, const char *unit, uint64_t done, uint64_t total);

/* ---- model ------------------------------------------------------------------------------------ */

typedef struct icae_model icae_model;
typedef struct icae_adapter icae_adapter;
typedef struct icae_session icae_session;
typedef struct icae_slots icae_slots;

typedef enum { ICAE_COMPUTE_AUTO = 0, ICAE_COMPUTE_F32, ICAE_COMPUTE_BF16 } icae_compute;

typedef struct icae_model_options {
    icae_compute
        compute; /* auto: f32 for F32 weights, else bf16 products with f32 accumulation where
                             the CPU has instructions for them, else f32 */
    const char *template_name; /* chat template: "mistral", "llama2", "llama3", "chatml", "gemma",
                                  "phi3", "icae", "none"; NULL: recognised from the model's files */
} icae_model_options;

/* Opens a base model: a Hugging Face folder (config.json, tokenizer.json, *.safetensors) or a GGUF
 * file. Weights are memory-mapped and stay on disk until used. NULL opens the bundled demo model. */
ICAE_API int icae_model_open(icae_model **out, const char *path, const icae_model_options *options);
ICAE_API void icae_model_free(icae_model *model);

typedef struct icae_model_info {
    const char *path, *architecture, *dtype, *compute, *chat_template;
    const char
        *identity; /* 64 hex digits: SHA-256 over configuration, tensor names, shapes, samples */
    int width, layers, heads, kv_heads, head_width, ffn_width, vocabulary, max_positions;
    int sliding_window;         /* rows; 0: none */
    uint64_t parameters, bytes; /* of the weights */
} icae_model_info;

ICAE_API icae_model_info icae_model_describe(const icae_model *model);

/* Token ids of a text. `special`: add what the tokenizer adds by itself (bos). *ids is the caller's
 * (free with icae_free). Invalid UTF-8 is read as U+FFFD. */
ICAE_API int icae_tokenize(int32_t **ids, size_t *count, const icae_model *model, const char *text,
                           size_t size, bool special);
ICAE_API int icae_detokenize(char **text, size_t *size, const icae_model *model, const int32_t *ids,
                             size_t count, bool skip_special);
ICAE_API void icae_free(void *memory); /* what icae_tokenize and its like returned */

/* ---- adapter ---------------------------------------------------------------------------------- */

/* What an adapter file of the published layouts does not say. Zero: from the file, or the published
 * value (k 128, rate 4, alpha 32). Values that contradict the file are errors. */
typedef struct icae_adapter_options {
    int k;                 /* memory slots a segment */
    float rate;            /* text tokens a slot */
    float alpha;           /* LoRA scale is alpha / rank */
    const char *positions; /* "sequential" or "spread" */
    const char *slots;     /* "fixed" or "proportional" */
    bool lm_token;         /* [LM] was trained */
} icae_adapter_options;

/* Opens an adapter for `model`: a v2 safetensors file or a published v1 .pt file. NULL opens the
 * adapter that belongs to the bundled model. The adapter keeps a reference to `model`, which must
 * outlive it. ICAE_EMISMATCH if the adapter was made for another base. */
ICAE_API int icae_adapter_open(icae_adapter **out, const char *path, const icae_model *model,
                               const icae_adapter_options *options);
ICAE_API void icae_adapter_free(icae_adapter *adapter);

/* Writes the v2 safetensors layout with metadata, atomically. */
ICAE_API int icae_adapter_save(const icae_adapter *adapter, const char *path);

typedef struct icae_adapter_info {
    const char *path, *identity, *targets, *positions, *slots, *layout; /* layout: "v1", "v2" */
    int k, rank;
    float rate, alpha;
    bool lm_token;
    /* What its maker recommends, and the command and the server do unless told otherwise: refine of
     * icae_compress_options, expand of icae_generate_options. Calls of the library do as their options say. */
    int refine, expand;
    uint64_t parameters;
} icae_adapter_info;

ICAE_API icae_adapter_info icae_adapter_describe(const icae_adapter *adapter);

/* ---- session ---------------------------------------------------------------------------------- */

typedef struct icae_session_options {
    int threads;     /* 0: one a physical core, as far as this process may use them */
    uint64_t memory; /* bound on scratch memory in bytes; 0: 256 MiB, or
                           what a single segment needs if that is more */
    icae_progress_fn progress;
    void *user;
} icae_session_options;

/* `adapter` may be NULL: then only plain continuation (icae_continue of raw text) works. */
ICAE_API int icae_session_new(icae_session **out, const icae_model *model,
                              const icae_adapter *adapter, const icae_session_options *options);
ICAE_API void icae_session_free(icae_session *session);

/* ---- compress --------------------------------------------------------------------------------- */

typedef struct icae_compress_options {
    float rate; /* tokens a slot, for adapters that serve several; 0: the adapter's */
    bool check; /* measure fidelity: one decoder pass over the text given its slots */
    bool exact; /* store corrections so that icae_restore returns the very bytes (implies check) */
    bool int8;  /* keep slots as int8 with a scale a row (check then measures these) */
    int refine; /* steps of gradient descent that improve each span's slots against the decoder, at most:
                   each takes about three times a check; fewer once nothing is doubtful. 0: none */
    uint32_t
        span; /* tokens restored at a time: a longer text is checked and restored in spans of whole
                      segments, each from its own slots; 0: the adapter's, or what the model can hold; one segment
                      if they are refined */
} icae_compress_options;

/* Compresses a text. ICAE_EINVAL if it is empty, ICAE_ELIMIT if the model cannot hold its slots. */
ICAE_API int icae_compress(icae_slots **out, icae_session *session, const char *text, size_t size,
                           const icae_compress_options *options);
ICAE_API void icae_slots_free(icae_slots *slots);

/* Slot files (.icae), docs/formats.md. Saving is atomic; opening verifies the checksum. */
ICAE_API int icae_slots_save(const icae_slots *slots, const char *path);
ICAE_API int icae_slots_open(icae_slots **out, const char *path);

/* The same bytes in memory: *data is the caller's (icae_free); `name` is for messages. */
ICAE_API int icae_slots_write(char **data, size_t *size, const icae_slots *slots);
ICAE_API int icae_slots_read(icae_slots **out, const void *data, size_t size, const char *name);

/* SHA-256 as 64 hex digits: what icae_slots_info.text_sha256 holds of the original text. */
ICAE_API int icae_sha256(char hex[65], const void *data, size_t size);

/* ICAE_EMISMATCH, naming both identities, unless the slots were made by this model and adapter. */
ICAE_API int icae_slots_check(const icae_slots *slots, const icae_session *session);

typedef struct icae_fidelity {
    bool measured;
    double loss;           /* mean negative log-likelihood a token, nats, given the slots */
    double accuracy;       /* share of tokens that greedy decoding would get right */
    uint64_t exact_prefix; /* tokens from the start that are all right */
    uint64_t tokens;
} icae_fidelity;

typedef struct icae_slots_info {
    uint64_t slots, tokens, segments, bytes; /* bytes: of the slot vectors */
    uint64_t text_size;                      /* of the original, in bytes */
    uint64_t span;                           /* tokens restored at a time */
    int width;
    const char *dtype;          /* "bf16" or "int8" */
    const char *base, *adapter; /* identities */
    const char *text_sha256;
    icae_fidelity fidelity; /* of the whole text */
    bool exact;             /* has corrections */
    uint64_t corrections, correction_bytes;
    int refined; /* steps that refining might take; 0: not refined */
    /* What int8 costs and refining gave; of slots that icae_compress has just made, files do not keep it. */
    double int8_error;             /* root mean square error over that of the slots */
    icae_fidelity before_int8;     /* with the slots in bf16, if fidelity was measured */
    icae_fidelity before_refining; /* with the slots as the encoder made them */
} icae_slots_info;

ICAE_API icae_slots_info icae_slots_describe(const icae_slots *slots);

typedef struct icae_segment_info {
    uint64_t first_token, tokens, first_slot, slots;
    icae_fidelity fidelity;
} icae_segment_info;

ICAE_API icae_segment_info icae_slots_segment(const icae_slots *slots, size_t segment);

/* Token offsets (ascending) that greedy decoding would get wrong or nearly wrong; NULL, 0 if fidelity
 * was not measured. Borrowed from `slots`. */
ICAE_API const uint32_t *icae_slots_doubtful(const icae_slots *slots, size_t *count);

/* Slot vectors as f32 [slots, width]; *values is the caller's (icae_free). */
ICAE_API int icae_slots_values(float **values, const icae_slots *slots);

/* ---- read the slots --------------------------------------------------------------------------- */

typedef struct icae_sampling {
    float temperature; /* 0: greedy */
    int top_k;         /* 0: off */
    float top_p;       /* 0 or 1: off */
    float min_p;       /* 0: off */
    uint64_t seed;
    uint64_t max_tokens; /* 0: until eos or the model's limit */
    bool ignore_eos;
} icae_sampling;

/* What a call has done; filled through a pointer that may be NULL. */
typedef struct icae_result {
    uint64_t prompt_rows;  /* rows read before the first generated token: tokens and slots */
    uint64_t prompt_slots; /* of them, slots */
    uint64_t tokens;       /* generated */
    double prompt_seconds, seconds; /* reading the prompt; all together */
    const char
        *stop;  /* "eos", "length" (max_tokens), "limit" (the model's), "end" (restored all) */
    bool exact; /* restore: the bytes were verified by SHA-256 */
} icae_result;

typedef struct icae_generate_options {
    icae_sampling sampling;
    icae_result *result;
    uint64_t
        *token; /* icae_restore without corrections: set, before each piece of text, to the number
                        (from 0) of the text's token that the piece ends with; NULL: not wanted */
    int expand; /* up to so many segments are restored from their slots and read as text: by icae_continue the last
                   ones of the last part, if it is slots; by icae_ask and icae_chat_say those of all parts behind
                   whose slots the question is likeliest (after REFRAG, arXiv 2509.01092). 0: none */
} icae_generate_options;

/* Restores the text of the slots, streaming it to `write`. With corrections (icae_compress_options
 * .exact) the output is the original byte for byte, and ICAE_EINEXACT if that cannot be. */
ICAE_API int icae_restore(icae_session *session, const icae_slots *slots,
                          const icae_generate_options *options, icae_text_fn write, void *user);

/* A part of a context: slots, or raw text if `slots` is NULL. */
typedef struct icae_part {
    const icae_slots *slots;
    const char *text;
    size_t size;
} icae_part;

/* Continues the text that the parts make up, in their order. */
ICAE_API int icae_continue(icae_session *session, const icae_part *parts, size_t count,
                           const icae_generate_options *options, icae_text_fn write, void *user);

/* Answers `question` (a C string) about the parts, in their order. */
ICAE_API int icae_ask(icae_session *session, const icae_part *parts, size_t count,
                      const char *question, const icae_generate_options *options,
                      icae_text_fn write, void *user);

/* A conversation about the parts, which must outlive it: keeps what was read and said between calls. What a
 * reply expands, the next one may read as slots again. The session must not be used for anything else while a
 * reply is being made; it may be between replies. */
typedef struct icae_chat icae_chat;
ICAE_API int icae_chat_new(icae_chat **out, icae_session *session, const icae_part *parts,
                           size_t count);
ICAE_API int icae_chat_say(icae_chat *chat, const char *message,
                           const icae_generate_options *options, icae_text_fn write, void *user);
ICAE_API void icae_chat_free(icae_chat *chat);

/* Measures how well the slots predict `text` (the text they were made from, or a candidate):
 * fidelity of the whole. ICAE_EMISMATCH if the token counts differ. */
ICAE_API int icae_verify(icae_fidelity *out, icae_session *session, const icae_slots *slots,
                         const char *text, size_t size);

/* ---- training --------------------------------------------------------------------------------- */

/* A training run makes or improves an adapter; the base stays as it is. Pretraining restores and
 * continues plain text, fine-tuning answers prompts about contexts (arXiv 2307.06945 §2.2, §2.3).
 *
 * A configuration is a list of keys with text values: the same keys in a TOML or JSON file, as flags
 * of the command line, and in a checkpoint. Sources override each other however they are ordered:
 * icae_train_config_set over a file over a preset over the defaults. */
typedef struct icae_train_config icae_train_config;
typedef enum { ICAE_PRETRAIN, ICAE_FINETUNE } icae_train_stage;

ICAE_API int icae_train_config_new(icae_train_config **out, icae_train_stage stage);
ICAE_API void icae_train_config_free(icae_train_config *config);
/* A file of `key = value` lines (strings, numbers, booleans, arrays, comments: the TOML subset
 * without sections), or one JSON object. */
ICAE_API int icae_train_config_read(icae_train_config *config, const char *path);
/* One key, as a flag gives it. A list takes one text with commas or a TOML array, and grows when it
 * is set again. ICAE_EINVAL if there is no such key (the message names the nearest) or the value is
 * not possible. Dashes in the key count as underscores. */
ICAE_API int icae_train_config_set(icae_train_config *config, const char *key, const char *value);
/* What several keys together make impossible: no text, bounds the wrong way round, … */
ICAE_API int icae_train_config_check(const icae_train_config *config);
/* All keys with their values and meanings, as a file that icae_train_config_read reads back. */
ICAE_API int icae_train_config_print(const icae_train_config *config, icae_text_fn write,
                                     void *user);

typedef struct icae_train_key {
    const char *name, *type, *fallback, *range,
        *help; /* type: "text", "number", "yes/no", "list", … */
} icae_train_key;

/* Key `index` of the table; false behind the last. Strings are valid until the next call. */
ICAE_API bool icae_train_config_key(icae_train_key *out, const icae_train_config *config,
                                    size_t index);

/* What a run has reached. Losses are nats a target token, NAN where nothing was measured; indices: 0
 * restoring (AE), 1 continuing (LM), 2 answering (FT). */
typedef struct icae_train_report {
    uint64_t step, steps;     /* steps 0: the end is set by tokens or hours */
    uint64_t tokens, samples; /* of text, since the start of the run */
    double loss[3];           /* of this step */
    double average[3];        /* moving, about 50 steps */
    double lr, norm;          /* norm: of the gradient before clipping */
    double seconds, tokens_per_second, seconds_left; /* left: NAN if unknown */
    double
        share_of_peak; /* products that must be done, against this machine's measured rate; NAN */
    bool skipped;      /* loss or gradient was not finite: nothing was changed */
    bool evaluated;    /* the fields below are new */
    double eval_loss[3];
    double accuracy,
        exact_prefix; /* restoring: shares of tokens right, and right from the start on */
    double perplexity, perplexity_full,
        perplexity_none; /* continuation: slots, full text, no context */
    bool best;
} icae_train_report;

/* Every function may be NULL. */
typedef struct icae_train_callbacks {
    void (*report)(void *user, const icae_train_report *report); /* after each step */
    void (*notice)(void *user, bool warning, const char *line);  /* one line, no newline */
    bool (*stop)(void *user);  /* true: write a checkpoint and return ICAE_ECANCELLED */
    icae_progress_fn progress; /* reading and tokenising */
    void *user;
} icae_train_callbacks;

/* What a run would take. */
typedef struct icae_train_estimate {
    uint64_t weights, trained, scratch, total,
        available;             /* bytes; trained: parameters and their state */
    uint64_t parameters, disk; /* trained numbers; bytes in the run's folder */
    int recompute, batch_tokens;
    double step_seconds, seconds; /* of one step; of the run, NAN if its length is unknown */
    double tokens_per_second;
    uint64_t documents, tokens; /* of the training text */
} icae_train_estimate;

/* Trains as configured, in the folder `out`: last.safetensors, best.safetensors, metrics.jsonl and
 * checkpoints. Under MPI (mpirun, srun) the processes share each step's samples. ICAE_ECANCELLED after
 * a stop, with everything kept for `resume`. */
ICAE_API int icae_train_run(const icae_train_config *config, const icae_train_callbacks *callbacks);
ICAE_API int icae_train_measure(icae_train_estimate *out, const icae_train_config *config,
                                const icae_train_callbacks *callbacks);

/* Curves of a run's metrics.jsonl as one self-contained SVG. */
ICAE_API int icae_train_plot(const char *run, const char *svg);

/* ---- evaluation ------------------------------------------------------------------------------- */

/* A base and an adapter to measure. Paths as for icae_model_open and icae_adapter_open (NULL: the bundled
 * ones); name NULL: made from the paths. */
typedef struct icae_eval_system {
    const char *name, *model, *adapter;
} icae_eval_system;

typedef struct icae_eval_options {
    const char *suite; /* "quick" (NULL), "paper", or a JSON file (docs/eval.md) */
    const char *out;   /* folder for report.html, report.json, report.csv and records.jsonl */
    const icae_eval_system *systems; /* none: the suite's, else the bundled one */
    size_t system_count;
    const char *const
        *texts; /* files and folders (docs/eval.md); none: the suite's, else a bundled sample */
    size_t text_count;
    uint64_t samples; /* of each measurement; 0: the suite's */
    uint64_t seed;    /* chooses the samples */
    int refine; /* steps of refining slots (icae_compress_options); 0: the suite's, else none */
    int expand; /* segments read as text again (icae_generate_options); 0: the suite's, else none */
    bool resume; /* keep what an interrupted run with the same settings has measured */
    const char
        *judge; /* base URL of an OpenAI-compatible server, such as http://localhost:8000/v1; NULL:
                           nobody judges. The key is read from $ICAE_JUDGE_KEY */
    const char *judge_model;
    double judge_timeout; /* seconds a request; 0: 60 */
    int judge_parallel;   /* requests at a time, at most 64; 0: 4 */
    icae_model_options model;
    icae_adapter_options adapter;
    icae_session_options session; /* its progress function hears of every experiment */
    void (*note)(void *user,
                 const char *line); /* what the report says beside its figures: samples left
                                                   out, a judge that cannot be reached; may be NULL */
    void *user;
} icae_eval_options;

/* Measures as the suite says and writes the report. ICAE_ECANCELLED if progress asked to stop: what was
 * measured is kept for `resume`. */
ICAE_API int icae_eval(const icae_eval_options *options);

/* One page that puts the report.json files of several runs side by side; written to `out`. */
ICAE_API int icae_eval_compare(const char *out, const char *const *reports, size_t count);

/* ---- store ------------------------------------------------------------------------------------ */

/* A store keeps compressed texts as *contexts*: slots under an id, in an SQLite file or a PostgreSQL
 * database that several programs may share (docs/store.md). A handle may be used by many threads at
 * once. What put, replace and remove have returned ICAE_OK for is on disk.
 *
 * Slots of the same text by the same base, adapter and settings are stored once, however many contexts
 * have them. An *owner* (a name of the caller's choice, such as that of an access token) sees and
 * removes only contexts of its own: where `owner` is NULL in a call, those of all.
 *
 * Besides the codes below, every call may return ICAE_EUNAVAILABLE: the database is gone or busy. The
 * handle stays good, and works again when the database does. */
typedef struct icae_store icae_store;

typedef struct icae_store_options {
    uint64_t quota; /* bytes of slot files that all contexts together may take; 0: no bound */
    bool evict; /* a put beyond the quota does not fail but removes what was not used for longest */
    int connections; /* to the database at most; 0: 4. More callers wait for each other */
    double timeout;  /* seconds to wait for a busy database or a connection to it; 0: 5 */
} icae_store_options;

/* `url`: a path of an SQLite file, which is made if it is missing, or postgresql://user@host/database as
 * libpq takes it. Brings an older schema up to date. ICAE_EUNSUPPORTED: the schema is of a later version,
 * or this build lacks that database's library. */
ICAE_API int icae_store_open(icae_store **out, const char *url, const icae_store_options *options);
ICAE_API void icae_store_close(icae_store *store); /* when no other thread uses it any more */

/* One context. Times are seconds since 1970. */
typedef struct icae_context {
    char id[40];    /* "ctx_" and 32 hex digits, which begin with the time: later ids are larger */
    char owner[65]; /* "": nobody */
    char name[257]; /* "": none; need not be unique */
    char base[65], adapter[65], text_sha256[65];
    char dtype[8];                  /* of the slots: "bf16" or "int8" */
    uint64_t version;               /* 1, and one more after each replace */
    int64_t created, used, expires; /* used: about the last get, to a minute; expires 0: never */
    uint64_t bytes, slot_bytes;     /* of its slot file; of the slot vectors in it */
    uint64_t slots, tokens, segments, text_size;
    int width;
    float rate; /* tokens a slot that was asked for */
    bool exact; /* has corrections */
    icae_fidelity fidelity;
    uint64_t sharing; /* contexts that have these slots, this one included */
    uint64_t holds;   /* of icae_store_hold, not yet released */
} icae_context;

typedef struct icae_put_options {
    const char *owner; /* up to 64 bytes of UTF-8 without control characters; NULL: "" */
    const char *name;  /* up to 256 */
    uint64_t ttl;      /* seconds until it expires; 0: never */
} icae_put_options;

/* Stores slots as a context of the owner. If the owner has these slots under this name already, that
 * context is returned, *existed (may be NULL) is true, and its expiry is the later of both. ICAE_EFULL
 * beyond the quota or if the disk is full, ICAE_ELIMIT above 512 MiB; nothing is stored then. */
ICAE_API int icae_store_put(icae_context *out, bool *existed, icae_store *store,
                            const icae_slots *slots, const icae_put_options *options);

/* Gives a context other slots (longer ones, after appending text) as its next version, all or nothing.
 * `version`: that they were made from. ICAE_EMISMATCH if the context has moved on to another version
 * (then nothing is changed: read it and start again), or if base or adapter are not the old ones. */
ICAE_API int icae_store_replace(icae_context *out, icae_store *store, const char *owner,
                                const char *id, uint64_t version, const icae_slots *slots);

/* Reads the slots of a context. Checks their checksum (ICAE_EFORMAT names the id of a damaged one) and,
 * if `session` is not NULL, that its base and adapter made them (ICAE_EMISMATCH names both identities).
 * ICAE_ENOTFOUND: no such id, expired, or another owner's. `context` may be NULL. */
ICAE_API int icae_store_get(icae_slots **out, icae_context *context, icae_store *store,
                            const char *owner, const char *id, const icae_session *session);
/* The bytes of its slot file, checked in the same way; *data is the caller's (icae_free). */
ICAE_API int icae_store_read(char **data, size_t *size, icae_store *store, const char *owner,
                             const char *id);
/* Only what is known of it. */
ICAE_API int icae_store_find(icae_context *out, icae_store *store, const char *owner,
                             const char *id);
ICAE_API int icae_store_remove(icae_store *store, const char *owner, const char *id);

/* NULL and 0 match everything. */
typedef struct icae_store_query {
    const char *owner, *name, *base, *adapter, *text_sha256;
    const char *after; /* only contexts older than this id: the last of the page before, which need
                          not exist any more */
    int limit;         /* contexts a page, up to 1000; 0: 100 */
} icae_store_query;

/* A page of contexts, newest first; *page is the caller's (icae_free). A page shorter than the limit is
 * the last. Going from page to page shows each context that is there all the time exactly once. */
ICAE_API int icae_store_list(icae_context **page, size_t *count, icae_store *store,
                             const icae_store_query *query);
/* How many contexts match; `after` and `limit` do not count. */
ICAE_API int icae_store_count(uint64_t *count, icae_store *store, const icae_store_query *query);

/* A context in use by `holder` (a name such as host:process) is neither expired nor evicted until as
 * many releases as holds, or `seconds` after the last hold, so that a holder that died holds nothing. */
ICAE_API int icae_store_hold(icae_store *store, const char *owner, const char *id,
                             const char *holder, uint64_t seconds);
ICAE_API int icae_store_release(icae_store *store, const char *id, const char *holder);

typedef struct icae_holder {
    char name[65];
    uint64_t holds;
    int64_t expires;
} icae_holder;

/* Who uses it; *holders is the caller's (icae_free). */
ICAE_API int icae_store_holders(icae_holder **holders, size_t *count, icae_store *store,
                                const char *owner, const char *id);

typedef struct icae_gc_result {
    uint64_t expired, evicted; /* contexts */
    uint64_t bytes;            /* freed */
} icae_gc_result;

/* Removes contexts that have expired and, if more than `quota` bytes are stored (0: the store's own
 * quota), those not used for longest. Returns freed space to the file system where it can. */
ICAE_API int icae_store_gc(icae_gc_result *out, icae_store *store, uint64_t quota);

typedef struct icae_store_info {
    const char *driver;               /* "sqlite" or "postgresql" */
    uint64_t contexts, expired, held; /* expired: not yet removed */
    uint64_t blobs, bytes, quota;     /* stored slot files; bytes of them */
    uint64_t schema;                  /* version of the tables */
} icae_store_info;

/* Cheap enough for a monitor that asks every few seconds. */
ICAE_API int icae_store_describe(icae_store_info *out, icae_store *store);
/* ICAE_OK if the database answers. */
ICAE_API int icae_store_ping(icae_store *store);

/* ---- serving ---------------------------------------------------------------------------------- */

/* An HTTP server as docs/openapi.yaml describes it: OpenAI's chat and completions over contexts that are
 * kept in a store. Zero fields are defaults. */
typedef struct icae_serve_options {
    const char *host;  /* NULL: 127.0.0.1 */
    int port;          /* 0: a free one, which `ready` tells */
    const char *name;  /* of the model; NULL: the last part of its path */
    icae_store *store; /* borrowed; NULL: no contexts */
    const char
        *tokens;   /* file of lines NAME TOKEN [REQUESTS A MINUTE [CONTEXTS]]; NULL: everyone may */
    bool insecure; /* may be reached from other machines without tokens */
    const char *cert, *key; /* PEM files; NULL: no TLS */
    const char *cors;       /* an origin whose pages may call, or "*"; NULL: none */
    int sequences;          /* replies at work at a time; 0: 32 */
    int queue;              /* requests that wait besides; 0: 64 */
    int max_n;              /* replies to one request; 0: 8 */
    uint64_t max_tokens;    /* of one reply; 0: 4096 */
    uint64_t max_body;      /* bytes; 0: 16 MiB */
    int max_connections;    /* 0: 2048 */
    int max_per_ip;         /* connections of one address; 0: no bound */
    uint64_t prefix_bytes;  /* cached keys and values of slots; 0: 256 MiB */
    double timeout;         /* seconds of silence, and for the head of a request; 0: 60 */
    double drain;           /* seconds that running requests have at the end; 0: 30 */
    double gc;              /* seconds between removals of what has expired in the store; 0: 300 */
    const char *log;        /* a file for JSON lines, or "-": standard error; NULL: none */
    void (*ready)(void *user, const char *url); /* may be NULL */
    bool (*stop)(void *user); /* asked some twenty times a second; true: drain and return */
    void *user;
} icae_serve_options;

/* Serves until `stop`. The session belongs to the server meanwhile; without adapter there are no contexts.
 * ICAE_EINVAL: the host can be reached from other machines, but there are no tokens. */
ICAE_API int icae_serve(icae_session *session, const icae_serve_options *options);

#ifdef __cplusplus
}
#endif
#endif
