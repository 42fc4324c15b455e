/*
 * model.h - a decoder-only language model: configuration, weights, THE model definition, caches.
 *
 * transformer.c holds one function for a layer and one for the stack. Compression, decoding,
 * fidelity and training all call it, on every backend. Rows are tokens: a batch is packed sequences
 * without padding. Knows nothing of ICAE beyond LoRA matrices that may be added to a linear layer.
 */
#ifndef IC_MODEL_H
#define IC_MODEL_H

#include "backend/backend.h"
#include "text/text.h"

/* ---- configuration (config.c) ----------------------------------------------------------------- */

typedef enum {
    IC_ROPE_PLAIN,
    IC_ROPE_LINEAR, /* frequencies divided by factor */
    IC_ROPE_LLAMA3
} ic_rope_kind;

typedef struct ic_config {
    char architecture[32]; /* "llama", "mistral", "qwen2", "qwen3", "gemma", "phi3" */
    int width, layers, heads, kv_heads, head_width, ffn_width, vocabulary, max_positions;
    float norm_eps, embed_scale;
    bool tied_head, qk_norm;
    ic_activation activation;
    int window;               /* sliding window in rows; 0: none */
    uint64_t full_layers[64]; /* bit per layer: no window there */
    int rope_width;           /* elements of a head that turn; even, at most head_width */
    bool rope_interleaved;    /* pairs of neighbours, as GGUF stores llama's q and k */
    double rope_theta;
    ic_rope_kind rope_kind;
    double rope_factor, rope_low, rope_high, rope_original;
    int32_t bos;    /* -1: none */
    int32_t eos[8]; /* ends a generation */
    int eos_count;
} ic_config;

/* The window of a layer; 0: none. */
static inline int ic_config_window(const ic_config *c, int layer)
{
    return c->full_layers[layer / 64] >> (layer % 64) & 1 ? 0 : c->window;
}

/* config.json; every field that matters is read or refused. */
int ic_config_from_json(ic_config *out, const ic_json *json, const char *name);
/* Adds what generation_config.json says of bos and eos. */
void ic_config_add_generation(ic_config *c, const ic_json *json);
int ic_config_from_gguf(ic_config *out, const ic_gguf *g);
int ic_config_check(const ic_config *c, const char *name); /* all sizes possible */

/* ---- weights (weights.c) ---------------------------------------------------------------------- */

enum ic_target { IC_Q, IC_K, IC_V, IC_O, IC_GATE, IC_UP, IC_DOWN, IC_TARGETS };
extern const char *const ic_target_names[IC_TARGETS]; /* "q_proj", … */

typedef struct ic_linear_weight {
    ic_mat w;          /* [N, C], mapped from the file */
    const float *bias; /* [N] or NULL */
} ic_linear_weight;

typedef struct ic_layer {
    const float *attn_norm, *mlp_norm; /* [D] */
    const float *q_norm, *k_norm;      /* [K] or NULL */
    ic_linear_weight linear[IC_TARGETS];
} ic_layer;

struct icae_model {
    char *path;
    ic_config config;
    ic_tokenizer *tokenizer; /* NULL where the folder has none: only ids work then */
    const ic_chat_template *chat;
    ic_mat embed, head; /* [V, D] */
    ic_layer *layer;
    const float *norm; /* [D] */
    const float
        *rope_factors; /* [rope_width / 2] divisors of the frequencies (GGUF llama3), or NULL */
    icae_compute compute;
    ic_dtype weight_dtype; /* of most weights, for messages */
    uint64_t parameters, bytes;
    char identity[65];
    /* owned */
    ic_safetensors *shard;
    size_t shards;
    ic_gguf *gguf;
    void **owned; /* norms and biases as f32; what the file does not align */
    size_t owned_count;
};

/* The folder `name` among what comes with the library: $ICAE_DATA, the installation, the source tree. */
int ic_bundled_path(char **out, const char *name);

/* Fills layers, norms, embeddings and head of a model whose configuration is known from the files that
 * it holds open, checks every name and shape, and computes the identity. */
int ic_weights_bind(icae_model *m);

/* ---- LoRA ------------------------------------------------------------------------------------- */

/* y += scale * (x a^T) b^T beside a linear layer. a [R, C], b [N, R] (rows in the base's own order). */
typedef struct ic_lora {
    ic_mat a, b;
    float *da, *db; /* gradients, flat f32, same shapes; NULL: not trained */
} ic_lora;

typedef struct ic_lora_set {
    float scale;
    float dropout;       /* training only */
    uint64_t seed;       /* of dropout */
    const ic_lora *lora; /* [layers][IC_TARGETS]; a.data NULL: none */
} ic_lora_set;

/* ---- key/value cache (kv.c) ------------------------------------------------------------------- */

typedef struct ic_kv ic_kv;
struct ic_kv {
    int layers, width;  /* width = G*K */
    int rows, capacity; /* rows in use */
    int shared; /* the first of them, which are read from `prefix`; a multiple of IC_SHARED_ROWS */
    int users;  /* that hold it; one thread counts */
    ic_dtype dtype;
    ic_kv *prefix; /* NULL: none */
    char *data;    /* [layers][2][capacity - shared][width] */
};

int ic_kv_new(ic_kv **out, const ic_config *c, ic_dtype dtype, int capacity);
int ic_kv_grow(ic_kv *kv, int capacity); /* keeps what it holds; never shrinks */
void ic_kv_free(ic_kv *kv); /* what others share stays until the last of them is gone */
/* Moves the first `rows` rows (but for fewer than IC_SHARED_ROWS) to where caches made by ic_kv_fork share
 * them. Does nothing if some are shared already. */
int ic_kv_share(ic_kv *kv, int rows);
/* A cache that begins with the first `rows` rows of another: what that one shares is shared, the rest,
 * which must be in use, copied. */
int ic_kv_fork(ic_kv **out, const ic_kv *from, int rows);
/* Of a row that is not shared. */
static inline void *ic_kv_at(const ic_kv *kv, int layer, int which, int row)
{
    size_t matrix = (size_t)(kv->capacity - kv->shared) * (size_t)kv->width;
    size_t at = (size_t)(row - kv->shared) * (size_t)kv->width;
    return kv->data +
           (size_t)ic_dtypes[kv->dtype].bytes * (((size_t)layer * 2 + (size_t)which) * matrix + at);
}

/* ---- a run: operations at work (ops.c) -------------------------------------------------------- */

typedef struct ic_tape ic_tape; /* tape.h */

/* Where operations compute. On the counting backend with a measuring arena the same calls only tell
 * how much memory they take: then no address may be touched. */
typedef struct ic_run {
    ic_backend *be;
    ic_arena *arena;
    ic_tape *tape;  /* records what a backward pass needs; NULL: inference */
    ic_arena *keep; /* where a tape keeps results */
    ic_dtype act;   /* of activations and caches: F32, or BF16 with the residual stream in F32 */
} ic_run;

/* An activation. `id` names its gradient on the tape; 0: none is wanted. */
typedef struct ic_var {
    ic_mat m;
    int id;
} ic_var;

ic_var ic_new(ic_run *r, int rows, int cols, ic_dtype dtype);

/* ---- the transformer (transformer.c) ---------------------------------------------------------- */

/* Packed sequences. Rows of sequence s: start[s] … start[s+1]-1. */
typedef struct ic_batch {
    int seqs;
    const int *start; /* [seqs + 1] */
    const float *pos; /* [rows] rotary positions, real numbers */
    const int
        *tail; /* [seqs] last rows of each sequence whose hidden states are wanted; NULL: all */
    ic_kv *const
        *kv; /* [seqs] caches of what comes before, with room for what comes now; NULL: none.
                            Their `rows` is left to the caller to advance. */
} ic_batch;

static inline int ic_batch_rows(const ic_batch *b)
{
    return b->start[b->seqs];
}
int ic_batch_tail_rows(const ic_batch *b); /* rows of the result */

/* Input embeddings [T, D] F32 -> hidden states after the final norm [tail rows, D] of r->act, sequence
 * after sequence. Overwrites x unless a tape records. `lora` NULL: the plain base. */
ic_var ic_transformer(ic_run *r, const icae_model *model, const ic_lora_set *lora,
                      const ic_batch *b, ic_var x);

/* Row to[i] of x [.., D] F32 (NULL: i) becomes the embedding of text id ids[i]. */
void ic_embed(ic_run *r, const icae_model *model, ic_var x, const int32_t *to, const int32_t *ids,
              int n);

/* Logits [rows, V] F32 of hidden states. */
ic_var ic_logits(ic_run *r, const icae_model *model, ic_var hidden);
/* Another reader of the same targets: a row's target becomes that reader's distribution, to the share
 * weights[row] / (weight of the row's loss). */
typedef struct ic_teacher {
    ic_mat hidden;        /* [rows, D] of r->act; rows of weight 0 are any rows */
    const float *weights; /* [rows] */
} ic_teacher;

/* Scores of hidden rows against the targets, the logits of some rows at a time since V may be large; if
 * dhidden [rows, D] F32 has memory, also the gradient of the sum of weights times losses, whose targets
 * are mixed with those of a teacher (NULL: none). Scores are always against the targets themselves. */
void ic_score_hidden(ic_run *r, const icae_model *model, ic_mat hidden, const int32_t *targets,
                     ic_score *scores, const float *weights, const ic_teacher *teacher,
                     ic_mat dhidden);

/* ---- sampling (sample.c) ---------------------------------------------------------------------- */

/* Chooses an id from logits [V]; greedy: the lowest id among the largest. `step` numbers the draw.
 * `scratch` holds 2 V floats (unused if greedy). */
int32_t ic_sample(const float *logits, int vocabulary, const icae_sampling *s, uint64_t step,
                  float *scratch);

#endif
