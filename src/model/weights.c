/*
 * weights.c - finds every weight of a model in its files, by the names of Hugging Face or GGUF.
 *
 * Matrices stay where they are (memory-mapped); vectors (norms, biases) become f32 copies. Fused
 * matrices (Phi-3's qkv and gate_up) become views of their rows. Knows names and shapes, not meaning.
 */
#include "model/model.h"

#include <stdio.h>
#include <string.h>

const char *const ic_target_names[IC_TARGETS] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                 "gate_proj", "up_proj", "down_proj"};

/* Where a target's rows are found: a tensor, or part of a fused one. */
typedef struct place {
    char name[96];
    int64_t rows;  /* of the whole tensor */
    int64_t first; /* this target's first row in it */
} place;

/* ---- tensors ---------------------------------------------------------------------------------- */

static const ic_tensor *find(const icae_model *m, const char *name)
{
    if (m->gguf)
        return ic_gguf_find(m->gguf, name);
    for (size_t i = 0; i < m->shards; i++) {
        const ic_tensor *t = ic_safetensors_find(&m->shard[i], name);
        if (t)
            return t;
    }
    return NULL;
}

static bool is_weight_type(ic_dtype t)
{
    return t == IC_F32 || t == IC_F16 || t == IC_BF16 || ic_dtypes[t].quantised;
}

/* Keeps a copy that the model owns. */
static void *own(icae_model *m, size_t bytes)
{
    void **list = ic_resize(m->owned, m->owned_count + 1, sizeof *list);
    if (!list)
        return NULL;
    m->owned = list;
    void *copy = ic_alloc(bytes, 1);
    if (copy)
        m->owned[m->owned_count++] = copy;
    return copy;
}

static int missing(const icae_model *m, const char *name)
{
    return ic_fail(ICAE_ENOTFOUND, "%s: tensor %s is missing", m->path, name);
}

static int misshapen(const icae_model *m, const ic_tensor *t, int64_t rows, int64_t cols)
{
    if (cols < 0)
        return ic_fail(ICAE_EFORMAT, "%s: tensor %s has %lld x %lld elements, expected %lld",
                       m->path, t->name, (long long)t->dim[0], (long long)t->dim[1],
                       (long long)rows);
    return ic_fail(ICAE_EFORMAT, "%s: tensor %s is %lld x %lld, expected %lld x %lld", m->path,
                   t->name, (long long)t->dim[0], (long long)t->dim[1], (long long)rows,
                   (long long)cols);
}

static int matrix(ic_mat *out, icae_model *m, const char *name, int64_t rows, int64_t cols)
{
    const ic_tensor *t = find(m, name);
    if (!t)
        return missing(m, name);
    if (t->rank != 2 || t->dim[0] != rows || t->dim[1] != cols)
        return misshapen(m, t, rows, cols);
    if (!is_weight_type(t->dtype))
        return ic_fail(ICAE_EUNSUPPORTED,
                       "%s: tensor %s has type %s; weights must be floating point", m->path, name,
                       ic_dtypes[t->dtype].name);
    void *data = (void *)(uintptr_t)t->data;
    size_t unit = ic_dtypes[t->dtype].quantised ? 2 : (size_t)ic_dtypes[t->dtype].bytes;
    if ((uintptr_t)data % unit) {
        void *copy = own(m, t->bytes);
        if (!copy)
            return ICAE_ENOMEM;
        data = memcpy(copy, data, t->bytes);
    }
    *out = ic_mat_of(data, t->dtype, (int)rows, (int)cols);
    return ICAE_OK;
}

/* n values as f32, plus `add`. */
static int vector(const float **out, icae_model *m, const char *name, int64_t n, float add)
{
    const ic_tensor *t = find(m, name);
    if (!t)
        return missing(m, name);
    if (t->rank != 1 || t->dim[0] != n)
        return misshapen(m, t, n, -1);
    if (t->dtype != IC_F32 && t->dtype != IC_F16 && t->dtype != IC_BF16)
        return ic_fail(ICAE_EUNSUPPORTED, "%s: tensor %s has type %s, expected F32, F16 or BF16",
                       m->path, name, ic_dtypes[t->dtype].name);
    float *v = own(m, (size_t)n * sizeof *v);
    if (!v)
        return ICAE_ENOMEM;
    ic_to_f32(v, t->data, t->dtype, (size_t)n);
    for (int64_t i = 0; i < n; i++)
        v[i] += add;
    *out = v;
    return ICAE_OK;
}

/* ---- names ------------------------------------------------------------------------------------ */

static void target_size(const ic_config *c, int target, int64_t *rows, int64_t *cols)
{
    int64_t q = (int64_t)c->heads * c->head_width, kv = (int64_t)c->kv_heads * c->head_width;
    const int64_t n[IC_TARGETS] = {q, kv, kv, c->width, c->ffn_width, c->ffn_width, c->width};
    *rows = n[target];
    *cols = target == IC_O ? q : target == IC_DOWN ? c->ffn_width : c->width;
}

/* The tensor (without .weight) that holds a target, and its rows there. */
static place place_of(const icae_model *m, int layer, int target)
{
    static const char *const gguf[IC_TARGETS] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                                 "ffn_gate", "ffn_up", "ffn_down"};
    const ic_config *c = &m->config;
    int64_t rows, cols, q, kv;
    target_size(c, target, &rows, &cols);
    target_size(c, IC_Q, &q, &cols);
    target_size(c, IC_K, &kv, &cols);
    place p = {.rows = rows};
    const char *name = m->gguf ? gguf[target] : ic_target_names[target];
    if (!strcmp(c->architecture, "phi3") && target != IC_O && target != IC_DOWN) {
        bool attention = target <= IC_V;
        p.rows = attention ? q + 2 * kv : 2 * (int64_t)c->ffn_width;
        p.first = target == IC_K ? q : target == IC_V ? q + kv : target == IC_UP ? c->ffn_width : 0;
        name =
            attention ? (m->gguf ? "attn_qkv" : "qkv_proj") : (m->gguf ? "ffn_up" : "gate_up_proj");
    }
    if (m->gguf)
        snprintf(p.name, sizeof p.name, "blk.%d.%s", layer, name);
    else
        snprintf(p.name, sizeof p.name, "model.layers.%d.%s.%s", layer,
                 target <= IC_O ? "self_attn" : "mlp", name);
    return p;
}

/* A bias tensor is used wherever there is one: which layers have it is the file's business. */
static int linear(ic_linear_weight *out, icae_model *m, int layer, int target)
{
    int rc = ICAE_OK;
    char name[112];
    int64_t rows, cols;
    target_size(&m->config, target, &rows, &cols);
    place p = place_of(m, layer, target);
    ic_mat whole;
    snprintf(name, sizeof name, "%s.weight", p.name);
    IC_TRY(matrix(&whole, m, name, p.rows, cols));
    out->w = ic_mat_rows(whole, (int)p.first, (int)rows);
    snprintf(name, sizeof name, "%s.bias", p.name);
    if (find(m, name)) {
        const float *bias;
        IC_TRY(vector(&bias, m, name, p.rows, 0));
        out->bias = bias + p.first;
    }
done:
    return rc;
}

static int layer_vector(const float **out, icae_model *m, int layer, const char *hf,
                        const char *gguf, int64_t n, float add)
{
    char name[112];
    if (m->gguf)
        snprintf(name, sizeof name, "blk.%d.%s.weight", layer, gguf);
    else
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, hf);
    return vector(out, m, name, n, add);
}

static int bind_layer(icae_model *m, int l, float norm_add)
{
    int rc = ICAE_OK;
    const ic_config *c = &m->config;
    ic_layer *y = &m->layer[l];
    IC_TRY(layer_vector(&y->attn_norm, m, l, "input_layernorm", "attn_norm", c->width, norm_add));
    IC_TRY(layer_vector(&y->mlp_norm, m, l, "post_attention_layernorm", "ffn_norm", c->width,
                        norm_add));
    if (c->qk_norm) {
        IC_TRY(layer_vector(&y->q_norm, m, l, "self_attn.q_norm", "attn_q_norm", c->head_width, 0));
        IC_TRY(layer_vector(&y->k_norm, m, l, "self_attn.k_norm", "attn_k_norm", c->head_width, 0));
    }
    for (int t = 0; t < IC_TARGETS; t++)
        IC_TRY(linear(&y->linear[t], m, l, t));
done:
    return rc;
}

/* ---- identity --------------------------------------------------------------------------------- */

/* Sixteen samples of 64 bytes a matrix, evenly spread: enough to tell any two models apart, cheap
 * enough for every opening of a file of many gigabytes. */
static void hash_matrix(ic_hash *h, icae_model *m, ic_mat w)
{
    enum { SAMPLES = 16, SAMPLE = 64 };
    size_t bytes = (size_t)w.rows * ic_row_bytes(w.dtype, (size_t)w.cols);
    int32_t shape[3] = {(int32_t)w.dtype, w.rows, w.cols};
    ic_hash_add(h, shape, sizeof shape);
    if (bytes <= SAMPLES * SAMPLE)
        ic_hash_add(h, w.data, bytes);
    else
        for (size_t i = 0; i < SAMPLES; i++)
            ic_hash_add(h, (const char *)w.data + (bytes - SAMPLE) / (SAMPLES - 1) * i, SAMPLE);
    m->bytes += bytes;
    m->parameters += (uint64_t)w.rows * (uint64_t)w.cols;
}

static int identify(icae_model *m)
{
    const ic_config *c = &m->config;
    ic_hash *h;
    int rc = ic_hash_new(&h);
    if (rc < 0)
        return rc;
    char text[512];
    int n = snprintf(text, sizeof text,
                     "icae-base-1 %s %d %d %d %d %d %d %d %.9g %d %d %d %.9g %d %.9g",
                     c->architecture, c->width, c->layers, c->heads, c->kv_heads, c->head_width,
                     c->ffn_width, c->vocabulary, (double)c->norm_eps, c->window, c->rope_width,
                     c->rope_interleaved, c->rope_theta, (int)c->rope_kind, c->rope_factor);
    ic_hash_add(h, text, (size_t)n);
    ic_hash_add(h, c->full_layers, sizeof c->full_layers);
    hash_matrix(h, m, m->embed);
    for (int l = 0; l < c->layers; l++) {
        ic_hash_add(h, m->layer[l].attn_norm, (size_t)c->width * sizeof(float));
        for (int t = 0; t < IC_TARGETS; t++)
            hash_matrix(h, m, m->layer[l].linear[t].w);
    }
    if (!c->tied_head)
        hash_matrix(h, m, m->head);
    ic_hash_finish(h, m->identity);
    return ICAE_OK;
}

/* ---- everything ------------------------------------------------------------------------------- */

int ic_weights_bind(icae_model *m)
{
    int rc = ICAE_OK;
    const ic_config *c = &m->config;
    /* Gemma's norms multiply by 1 + w; GGUF stores the sum */
    float norm_add = !m->gguf && !strcmp(c->architecture, "gemma") ? 1 : 0;
    m->layer = ic_alloc((size_t)c->layers, sizeof *m->layer);
    if (!m->layer)
        return ICAE_ENOMEM;
    IC_TRY(matrix(&m->embed, m, m->gguf ? "token_embd.weight" : "model.embed_tokens.weight",
                  c->vocabulary, c->width));
    IC_TRY(vector(&m->norm, m, m->gguf ? "output_norm.weight" : "model.norm.weight", c->width,
                  norm_add));
    m->head = m->embed;
    if (!c->tied_head)
        IC_TRY(matrix(&m->head, m, m->gguf ? "output.weight" : "lm_head.weight", c->vocabulary,
                      c->width));
    for (int l = 0; l < c->layers; l++)
        IC_TRY(bind_layer(m, l, norm_add));
    if (m->gguf && ic_gguf_find(m->gguf, "rope_factors_long.weight"))
        return ic_fail(ICAE_EUNSUPPORTED, "%s: longrope scaling is not supported", m->path);
    if (m->gguf && ic_gguf_find(m->gguf, "rope_freqs.weight"))
        IC_TRY(vector(&m->rope_factors, m, "rope_freqs.weight", c->rope_width / 2, 0));
    m->weight_dtype = m->layer[0].linear[IC_Q].w.dtype;
    IC_TRY(identify(m));
done:
    return rc;
}
