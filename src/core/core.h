/*
 * core.h - ICAE itself: adapter, slots, sessions, what a decoder reads, corrections.
 *
 * Special tokens have negative ids inside the library (there is no text id below 0): memory tokens
 * and [AE], [LM], [FT] are rows of the adapter's embedding table.
 */
#ifndef IC_CORE_H
#define IC_CORE_H

#include "model/model.h"

/* ---- adapter (adapter.c) ---------------------------------------------------------------------- */

/* One tensor of the adapter under its published name. */
typedef struct ic_adapter_tensor {
    char *name;
    ic_mat m;              /* as used: rows of lora_B in the base's own order */
    const int32_t *row_of; /* published row i is row row_of[i] of m; NULL: the same order */
} ic_adapter_tensor;

struct icae_adapter {
    char *path;
    const icae_model *model;
    char layout[4]; /* "v1", "v2" */
    int k, rank;
    float rate, alpha;
    float rates[8]; /* rates it was trained for; rates_count 0: only `rate` */
    int rates_count;
    bool lm_token; /* [LM] was trained */
    bool bos; /* texts are compressed with the tokenizer's bos in front: metadata `bos`; without
                                 it true for published files (no metadata), false for ours */
    int span; /* tokens that restoration was trained for; metadata `span`; 0: no limit */
    int refine, expand; /* what pays, by its maker; metadata of these names; 0: neither */
    bool spread;        /* positions = spread, else sequential */
    bool proportional;  /* slots = proportional, else fixed */
    bool
        both; /* metadata lora = both: LoRA is the decoder's too; to train on and to merge, not to use */
    char targets[128]; /* "q_proj,v_proj" */
    char identity[65];
    char base_identity[65]; /* "" if the file does not say */
    ic_mat memory;          /* [k + 3, D]: memory tokens, [AE], [LM], [FT]; any float type */
    ic_lora *lora;          /* [layers][IC_TARGETS]; mats point into the file where they can */
    ic_lora_set set;        /* scale = alpha / rank, over `lora` */
    ic_adapter_tensor *tensors;
    size_t tensor_count;
    /* owned */
    ic_safetensors file;
    ic_pt pt;
    void **owned;
    size_t owned_count;
};

/* Published v1 adapters read questions without chat template, [FT] on both sides. a may be NULL. */
bool ic_adapter_plain(const icae_adapter *a);

/* ---- segments and positions (segment.c): DESIGN semantics, pure arithmetic -------------------- */

/* Segment count of `tokens` tokens at k slots and rate r: ceil(tokens / (k r)); each has
 * ceil(tokens / n) tokens, the last fewer. */
int ic_segment_count(const icae_adapter *a, float rate, uint64_t tokens);
int ic_segment_tokens(const icae_adapter *a, float rate, uint64_t tokens, int segment);
/* Slots of a segment of `tokens` tokens. */
int ic_segment_slots(const icae_adapter *a, float rate, int tokens);
/* Position of slot j of the `slots` slots of a segment of `tokens` tokens that starts at 0: spread
 * (j + 1/2) tokens / slots - 1/2 in double. */
double ic_slot_position(int j, int slots, int tokens);
/* Where it stands behind the first of them, or of the text's start, by the adapter's scheme. */
static inline double ic_slot_at(const icae_adapter *a, int j, int slots, int tokens)
{
    return a->spread ? ic_slot_position(j, slots, tokens) : j;
}

/* ---- slots (slots.c) -------------------------------------------------------------------------- */

typedef struct ic_segment {
    uint32_t tokens, slots;
    double loss_sum; /* nats, over tokens; fidelity only if slots->measured */
    uint32_t right;  /* tokens that greedy decoding gets right */
    uint32_t prefix; /* right tokens from the segment's start */
} ic_segment;

struct icae_slots {
    int width;
    uint64_t count, tokens, text_size;
    ic_dtype dtype; /* BF16 or I8; F32 never leaves memory */
    void *values;   /* [count, width] */
    float *scales;  /* [count] for I8: value = scale * int8; else NULL */
    ic_segment *segment;
    uint32_t segments;
    char base[65], adapter[65], text_sha256[65];
    float rate;
    uint64_t span;    /* tokens restored at a time (metadata `span`); at least one segment is */
    uint32_t refined; /* steps that refining might take (metadata `refined`); 0: none */
    bool measured;
    uint64_t prefix;    /* exact prefix of the whole text, tokens */
    uint32_t *doubtful; /* token offsets */
    size_t doubtful_count;
    ic_buffer corrections; /* size 0: none; exact.c */
    uint64_t correction_count;
    double int8_error; /* of slots just made, see icae_slots_info */
    icae_fidelity before_int8, before_refining;
};

/* An empty value for `segments` segments and `count` slots, dtype as asked. */
int ic_slots_new(icae_slots **out, int width, uint64_t count, uint32_t segments, ic_dtype dtype);
/* Stores f32 rows [n, width] as slots first … first + n - 1 in the slots' dtype. */
void ic_slots_put(icae_slots *s, uint64_t first, const float *rows, uint64_t n);
/* Slots first … as f32 rows. */
void ic_slots_get(float *rows, const icae_slots *s, uint64_t first, uint64_t n);
/* The text of `a` with that of `b` behind it. Vectors, segments and fidelity are theirs; it has no
 * corrections, and its text_sha256 is the hash of both hashes' digits, one behind the other.
 * ICAE_EMISMATCH if they are of different base, adapter or dtype. */
int ic_slots_join(icae_slots **out, const icae_slots *a, const icae_slots *b);

/* Rounds slots to I8 and notes the error. */
int ic_slots_to_int8(icae_slots *s);

/* ---- exactness (exact.c) ---------------------------------------------------------------------- */

/* Corrections are a self-contained byte string: tokens that greedy decoding would get wrong or nearly
 * wrong, with their offsets, and a patch from the decoded text to the original bytes. */
typedef struct ic_correction {
    uint32_t at; /* token offset */
    int32_t id;  /* the right token */
} ic_correction;

/* `decoded` is the tokenizer's text for the right ids, `original` the input's bytes. */
int ic_exact_encode(ic_buffer *out, const ic_correction *c, size_t count, const char *decoded,
                    size_t decoded_size, const char *original, size_t original_size);
/* *c is the caller's (ic_free). `vocabulary`, `tokens`: bounds for ids and offsets. */
int ic_exact_decode_corrections(ic_correction **c, size_t *count, const void *blob, size_t size,
                                int vocabulary, uint64_t tokens);
/* Applies the patch: appends the original to *out. */
int ic_exact_apply_patch(ic_buffer *out, const void *blob, size_t size, const char *decoded,
                         size_t decoded_size, uint64_t original_size);

/* ---- session (session.c) ---------------------------------------------------------------------- */

struct icae_session {
    const icae_model *model;
    const icae_adapter *adapter; /* may be NULL */
    ic_backend *be, *counting;
    ic_arena arena;
    ic_dtype act;
    uint64_t memory; /* bound on the arena */
    icae_progress_fn progress;
    void *user;
};

/* Reserves the arena for whatever `body` takes when run on the counting backend. */
typedef void (*ic_body_fn)(ic_run *r, void *argument);
int ic_session_run(icae_session *s, ic_body_fn body, void *argument);
/* Bytes that it would take. */
size_t ic_session_measure(icae_session *s, ic_body_fn body, void *argument);

/* ---- what a decoder reads (prompt.c) ---------------------------------------------------------- */

enum { IC_AE = -1, IC_LM = -2, IC_FT = -3, IC_SLOT = -4 }; /* memory token j: -16 - j */

/* Rows of a decoder's input: text ids, special tokens and slots, with their positions. */
typedef struct ic_prompt {
    const icae_session *session;
    int32_t *id;        /* text id, or IC_AE …, or IC_SLOT */
    const float **slot; /* row of an IC_SLOT; else NULL */
    float *pos;
    int rows, capacity, slots;
    double next;   /* position of the next token */
    float **owned; /* slot values */
    size_t owned_count;
} ic_prompt;

void ic_prompt_begin(ic_prompt *p, const icae_session *s);
int ic_prompt_ids(ic_prompt *p, const int32_t *ids, size_t count); /* text and special ids */
/* The slots of `count` segments from `first` on, at the positions that the adapter's scheme gives them.
 * *start (may be NULL): the position where their text begins. */
int ic_prompt_slots(ic_prompt *p, const icae_slots *slots, uint32_t first, uint32_t count,
                    double *start);
/* ICAE_ELIMIT, with the numbers, unless `more` tokens fit behind the prompt. */
int ic_prompt_fits(const ic_prompt *p, uint64_t more, const char *what);
void ic_prompt_free(ic_prompt *p);

enum { IC_READ_CHUNK = 512 }; /* rows read at a time: enough for full speed, little scratch */

/* Rows of one prompt to be read together with those of others. */
typedef struct ic_read {
    const ic_prompt *prompt;
    int first, count; /* its rows */
    ic_kv *kv;        /* what was read before and where this goes (grows); NULL in all: neither */
    const int32_t *targets; /* of its last `scored` rows */
    int scored;
    ic_score *scores;
    float *logits; /* [V] of its last row; or NULL */
} ic_read;

/* Runs the base (no LoRA) over the rows of all prompts as one packed batch; advances the caches. */
int ic_read_rows(icae_session *s, const ic_read *reads, int count);

/* Runs the base over rows first … first + count - 1 of one prompt, behind what `kv` holds
 * (NULL: nothing before, nothing kept). Scores of the last `scored` rows against `targets`, and/or the
 * logits of the last row [V]. Long prompts are read in chunks. */
int ic_prompt_read(icae_session *s, const ic_prompt *p, int first, int count, ic_kv *kv,
                   const int32_t *targets, int scored, ic_score *scores, float *logits);

/* ---- compress (encode.c, compress.c) ---------------------------------------------------------- */

/* The segments of ids, through base + LoRA, as one packed batch (or several, within the memory
 * bound): slots [total slots, D] f32 in order. *values is the caller's. */
int ic_encode(float **values, uint64_t *count, icae_session *s, const int32_t *ids, uint64_t tokens,
              float rate);

/* The same in steps, between which the session may do other work. ids are borrowed. */
typedef struct ic_encoding ic_encoding;
typedef struct ic_encoded {
    uint64_t tokens, slots; /* done */
    float *values;          /* [slots, D] */
} ic_encoded;

int ic_encoding_new(ic_encoding **out, icae_session *s, const int32_t *ids, uint64_t tokens,
                    float rate);
/* Whole segments of at most `most` tokens together (0: any), but at least one. 1: there are more. */
int ic_encoding_step(ic_encoding *e, uint64_t most);
const ic_encoded *ic_encoding_made(const ic_encoding *e);
void ic_encoding_free(ic_encoding *e);

/* Slots of ids as icae_compress makes them from a text, in bf16, without checksum and fidelity. */
int ic_compress_ids(icae_slots **out, icae_session *s, const ic_ids *ids,
                    const icae_compress_options *options);

/* icae_compress in steps of some `rows` that the model reads (0: as many as memory allows), between
 * which the session may do other work. Only the steps use the session: the text is tokenized by
 * ic_compression_new, in whatever thread. The text is borrowed. */
typedef struct ic_compression ic_compression;
int ic_compression_new(ic_compression **out, icae_session *s, const char *text, size_t size,
                       const icae_compress_options *options);
int ic_compression_step(ic_compression *c, int rows); /* 1: there is more to do */
/* Tokens done of the stage at work: 0 encoding, 1 refining, 2 checking. */
int ic_compression_stage(const ic_compression *c, uint64_t *done, uint64_t *total);
int ic_compression_take(icae_slots **out, ic_compression *c); /* once it is done */
void ic_compression_free(ic_compression *c);

/* ---- spans and fidelity (fidelity.c) ---------------------------------------------------------- */

/* A run of whole segments that is checked and restored by itself. */
typedef struct ic_span {
    uint32_t first_segment, segments;
    uint64_t first_token, tokens;
} ic_span;

/* The span that starts at segment `first`; false when there is none. */
bool ic_span_at(ic_span *out, const icae_slots *slots, uint32_t first);
/* [slots of the span][AE]: what restoration reads. *start: position of the first restored token. */
int ic_span_prompt(ic_prompt *p, const icae_session *s, const icae_slots *slots,
                   const ic_span *span);
/* Scores of every token of ids given the slots: scores [slots->tokens], the caller's. */
int ic_slots_score(ic_score *scores, icae_session *s, const icae_slots *slots, const int32_t *ids);
/* The same in steps of `rows`; all pointers are borrowed. */
typedef struct ic_scoring {
    icae_session *session;
    const icae_slots *slots;
    const int32_t *ids;
    ic_score *scores;
    uint64_t done; /* tokens */
    ic_span span;  /* at work, if prompt.rows */
    ic_prompt prompt;
    ic_kv *kv;
    int read; /* rows of the prompt */
} ic_scoring;
int ic_scoring_step(ic_scoring *s, int rows); /* 1: there is more to do */
void ic_scoring_end(ic_scoring *s);

/* Ids of a text to be compressed: added special tokens written out in it are ordinary text. */
int ic_session_tokenize(ic_ids *ids, const icae_session *s, const char *text, size_t size);

/* ---- refinement (refine.c) -------------------------------------------------------------------- */

/* Slots improved span by span, by up to `steps` passes forward and back each; a span ends early once none
 * of its tokens is doubtful. All pointers are borrowed. ids [slots->tokens]: the text. */
enum { IC_MOST_REFINING = 10000 };
typedef struct ic_refinement ic_refinement;
int ic_refinement_new(ic_refinement **out, icae_session *s, icae_slots *slots, const int32_t *ids,
                      int steps);
int ic_refinement_step(ic_refinement *f);            /* one pass. 1: there is more to do */
uint64_t ic_refinement_done(const ic_refinement *f); /* tokens, in part */
void ic_refinement_free(ic_refinement *f);

/* ---- expansion (expand.c) --------------------------------------------------------------------- */

/* A segment that was restored from its slots, to be read as text. */
enum { IC_MOST_EXPANDING = 1 << 20 };
typedef struct ic_expanded {
    const icae_slots *slots; /* borrowed */
    uint32_t segment;
    ic_ids ids;
} ic_expanded;

typedef struct ic_expansion {
    ic_expanded *item; /* in the order of the text */
    size_t count;
} ic_expansion;

/* The text of a segment, or NULL: it is read from its slots. x may be NULL. */
const ic_ids *ic_expansion_at(const ic_expansion *x, const icae_slots *slots, uint32_t segment);
void ic_expansion_free(ic_expansion *x);
/* Rows of the segments from `first` on that are read in one way: the text of one, or the slots of all up to
 * the next that is expanded. *end: the segment behind them. */
int ic_prompt_run(ic_prompt *p, const icae_slots *slots, uint32_t first, const ic_expansion *x,
                  uint32_t *end);

/* Up to `most` segments: the last ones of the last part (none if that is text), or those of all parts that
 * make a question (its last 256 tokens) likeliest; left: what the chat template puts before a context. */
int ic_expand_last(ic_expansion *out, icae_session *s, const icae_part *parts, size_t count,
                   int most);
int ic_expand_for(ic_expansion *out, icae_session *s, const icae_part *parts, size_t count,
                  const ic_ids *left, const ic_ids *question, int most);

/* ic_expand_for in steps of some `rows`, between which the session may do other work. Slots are borrowed. */
typedef struct ic_expanding ic_expanding;
int ic_expanding_for(ic_expanding **out, icae_session *s, const icae_part *parts, size_t count,
                     const ic_ids *left, const ic_ids *question, int most);
int ic_expanding_step(ic_expanding *e, int rows);           /* 1: there is more to do */
void ic_expanding_take(ic_expansion *out, ic_expanding *e); /* once it is done */
void ic_expanding_free(ic_expanding *e);

/* ---- continuations and questions (read.c) ----------------------------------------------------- */

/* What the decoder reads to continue the parts, or for a question about them, up to where the text or answer
 * begins; with up to `expand` segments expanded. */
int ic_continue_prompt(ic_prompt *p, icae_session *s, const icae_part *parts, size_t count,
                       int expand);
int ic_ask_prompt(ic_prompt *p, icae_session *s, const icae_part *parts, size_t count,
                  const char *question, int expand);
/* The token that ends a reply besides eos; -1: none. */
int32_t ic_end_of_turn(const icae_session *s);

/* ---- generation (generate.c) ------------------------------------------------------------------ */

/* One reply: what it may become, where it goes. */
typedef struct ic_generation {
    icae_sampling sampling;
    const ic_correction *corrections; /* forced ids by index of the generated token, ascending */
    size_t correction_count;
    uint64_t expected;                   /* restoring: stop after so many tokens; 0: unknown */
    bool through_eos;                    /* do not stop at eos */
    int32_t end_of_turn;                 /* ends a reply besides eos; -1: none */
    int (*take)(void *user, int32_t id); /* each generated id but the one that ends; 0 to go on */
    void (*look)(void *user, const float *logits, int32_t id); /* before take; may be NULL */
    void *user;
    icae_result result; /* out, except `exact` */
} ic_generation;

/* Reads the prompt's rows from `first` on into *kv (made or grown as needed), then generates. The
 * generated tokens become rows of the prompt; all but the last are in the cache. */
int ic_generate(icae_session *s, ic_prompt *p, int first, ic_kv **kv, ic_generation *g);

#endif
