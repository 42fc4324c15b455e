/*
 * config.c - what a model is, from config.json or GGUF metadata.
 *
 * Every field that changes the computation is read, or refused by name: a model that we would compute
 * wrongly must not open. Defaults are those of each family where a file leaves a field out.
 */
#include "model/model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MOST_LAYERS = 64 * 64 }; /* bits of full_layers */

#define SUPPORTED "llama, mistral, qwen2, qwen3, gemma, phi3"

typedef struct family {
    const char *name;
    int kv_heads, head_width, window; /* defaults; 0: as many as heads, width / heads, none */
    double eps;
    bool tied, window_switch; /* window only with use_sliding_window, from max_window_layers on */
} family;

static const family families[] = {
    {"llama", 0, 0, 0, 1e-6, false, false},    {"mistral", 8, 0, 4096, 1e-6, false, false},
    {"qwen2", 32, 0, 4096, 1e-6, false, true}, {"qwen3", 32, 128, 4096, 1e-6, false, true},
    {"gemma", 16, 256, 0, 1e-6, true, false},  {"phi3", 0, 0, 0, 1e-5, false, false},
};

static const family *find_family(const char *name)
{
    for (size_t i = 0; i < IC_COUNT(families); i++)
        if (!strcmp(families[i].name, name))
            return &families[i];
    return NULL;
}

/* ---- checks ----------------------------------------------------------------------------------- */

static int in_range(const char *file, const char *field, double value, double low, double high)
{
    if (value >= low && value <= high && value == floor(value))
        return ICAE_OK;
    return ic_fail(ICAE_EFORMAT, "%s: %s is %g, expected a whole number from %g to %g", file, field,
                   value, low, high);
}

int ic_config_check(const ic_config *c, const char *name)
{
    int rc = ICAE_OK;
    IC_TRY(in_range(name, "hidden_size", c->width, 1, 1 << 17));
    IC_TRY(in_range(name, "num_hidden_layers", c->layers, 1, MOST_LAYERS));
    IC_TRY(in_range(name, "num_attention_heads", c->heads, 1, 4096));
    IC_TRY(in_range(name, "num_key_value_heads", c->kv_heads, 1, c->heads));
    IC_TRY(in_range(name, "head_dim", c->head_width, 2, 1024));
    IC_TRY(in_range(name, "intermediate_size", c->ffn_width, 1, 1 << 19));
    IC_TRY(in_range(name, "vocab_size", c->vocabulary, 1, 1 << 22));
    IC_TRY(in_range(name, "max_position_embeddings", c->max_positions, 1, 1 << 30));
    IC_TRY(in_range(name, "rotary width", c->rope_width, 2, c->head_width));
    if (c->heads % c->kv_heads)
        return ic_fail(ICAE_EFORMAT, "%s: %d attention heads cannot share %d key/value heads", name,
                       c->heads, c->kv_heads);
    if (c->rope_width % 2)
        return ic_fail(ICAE_EFORMAT, "%s: rotary width %d is odd", name, c->rope_width);
    if (!(c->norm_eps >= 0 && c->norm_eps < 1))
        return ic_fail(ICAE_EFORMAT, "%s: rms_norm_eps is %g", name, (double)c->norm_eps);
    if (!(c->rope_theta > 0) || !isfinite(c->rope_theta))
        return ic_fail(ICAE_EFORMAT, "%s: rope_theta is %g, expected a positive number", name,
                       c->rope_theta);
    if (c->rope_kind != IC_ROPE_PLAIN && !(c->rope_factor > 0))
        return ic_fail(ICAE_EFORMAT, "%s: rope scaling factor is %g, expected a positive number",
                       name, c->rope_factor);
    if (c->rope_kind == IC_ROPE_LLAMA3 &&
        !(c->rope_low > 0 && c->rope_high > c->rope_low && c->rope_original > 0))
        return ic_fail(ICAE_EFORMAT,
                       "%s: llama3 rope scaling needs 0 < low_freq_factor < high_freq_factor and "
                       "original_max_position_embeddings",
                       name);
done:
    return rc;
}

/* ---- config.json ------------------------------------------------------------------------------ */

/* A whole number; null or absent gives `otherwise`; -1 with the message set if it is out of range. */
static int whole(int *out, const ic_json *o, const char *key, int otherwise, const char *name)
{
    const ic_json *v = ic_json_get(o, key);
    if (ic_json_is_null(v)) {
        *out = otherwise;
        return ICAE_OK;
    }
    double d = ic_json_number(v, NAN);
    if (!(d >= -1 && d <= 1 << 30) || d != floor(d))
        return ic_fail(ICAE_EFORMAT, "%s: %s must be a whole number", name, key);
    *out = (int)d;
    return ICAE_OK;
}

static int required(int *out, const ic_json *o, const char *key, const char *name)
{
    if (ic_json_is_null(ic_json_get(o, key)))
        return ic_fail(ICAE_EFORMAT, "%s: no %s", name, key);
    return whole(out, o, key, 0, name);
}

static int read_rope(ic_config *c, const ic_json *json, const char *name)
{
    const ic_json *scaling = ic_json_get(json, "rope_scaling");
    const ic_json *newer = ic_json_get(json, "rope_parameters");
    if (ic_json_is_null(scaling))
        scaling = newer;
    c->rope_theta = ic_json_number(ic_json_get(json, "rope_theta"), 10000);
    c->rope_theta = ic_json_number(ic_json_get(newer, "rope_theta"), c->rope_theta);
    c->rope_theta = ic_json_number(ic_json_get(scaling, "rope_theta"), c->rope_theta);
    double part = ic_json_number(ic_json_get(json, "partial_rotary_factor"), 1);
    part = ic_json_number(ic_json_get(newer, "partial_rotary_factor"), part);
    c->rope_width = c->head_width;
    if (!strcmp(c->architecture, "phi3"))
        c->rope_width = (int)((double)c->head_width * part);
    if (ic_json_is_null(scaling))
        return ICAE_OK;
    if (!ic_json_is_object(scaling))
        return ic_fail(ICAE_EFORMAT, "%s: rope_scaling must be an object or null", name);
    const char *kind = ic_json_string(ic_json_get(scaling, "rope_type"));
    if (!kind)
        kind = ic_json_string(ic_json_get(scaling, "type"));
    c->rope_factor = ic_json_number(ic_json_get(scaling, "factor"), 0);
    if (!kind || !strcmp(kind, "default"))
        return ICAE_OK;
    bool phi3 = !strcmp(c->architecture, "phi3");
    if (!strcmp(kind, "linear") && !phi3) {
        c->rope_kind = IC_ROPE_LINEAR;
    } else if (!strcmp(kind, "llama3") && !phi3) {
        c->rope_kind = IC_ROPE_LLAMA3;
        c->rope_low = ic_json_number(ic_json_get(scaling, "low_freq_factor"), 0);
        c->rope_high = ic_json_number(ic_json_get(scaling, "high_freq_factor"), 0);
        c->rope_original = ic_json_number(ic_json_get(scaling, "original_max_position_embeddings"),
                                          c->max_positions);
    } else {
        return ic_fail(
            ICAE_EUNSUPPORTED,
            "%s: rope scaling \"%s\" is not supported for %s (supported: default, linear, "
            "llama3)",
            name, kind, c->architecture);
    }
    return ICAE_OK;
}

static void set_full(ic_config *c, int layer)
{
    c->full_layers[layer / 64] |= (uint64_t)1 << (layer % 64);
}

/* An explicit list of layer types wins over max_window_layers. */
static int read_layer_types(ic_config *c, const ic_json *types, const char *name)
{
    int i = 0;
    for (const ic_json *t = ic_json_first(types); t && i < c->layers; t = ic_json_next(t), i++) {
        const char *s = ic_json_string(t);
        if (s && !strcmp(s, "full_attention"))
            set_full(c, i);
        else if (!s || strcmp(s, "sliding_attention"))
            return ic_fail(
                ICAE_EUNSUPPORTED,
                "%s: layer_types[%d] is %s (supported: full_attention, sliding_attention)", name, i,
                s ? s : "no string");
    }
    if (i < c->layers)
        return ic_fail(ICAE_EFORMAT, "%s: layer_types has %d entries for %d layers", name, i,
                       c->layers);
    return ICAE_OK;
}

/* Which layers see a window only. */
static int read_window(ic_config *c, const ic_json *json, const family *f, const char *name)
{
    int rc = ICAE_OK, first = 0;
    if (!strcmp(f->name, "llama") || !strcmp(f->name, "gemma"))
        return ICAE_OK;
    bool given = ic_json_get(json, "sliding_window") != NULL;
    IC_TRY(whole(&c->window, json, "sliding_window", given ? 0 : f->window, name));
    if (c->window < 0)
        return ic_fail(ICAE_EFORMAT, "%s: sliding_window is %d", name, c->window);
    if (f->window_switch && !ic_json_bool(ic_json_get(json, "use_sliding_window"), false))
        c->window = 0;
    const ic_json *types = ic_json_get(json, "layer_types");
    if (!c->window)
        return ICAE_OK;
    if (ic_json_is_array(types))
        return read_layer_types(c, types, name);
    if (f->window_switch)
        IC_TRY(whole(&first, json, "max_window_layers", 28, name));
    for (int l = 0; l < IC_MIN(first, c->layers); l++)
        set_full(c, l);
done:
    return rc;
}

static int read_activation(ic_config *c, const ic_json *json, const char *name)
{
    bool gemma = !strcmp(c->architecture, "gemma");
    const char *act = ic_json_string(ic_json_get(json, "hidden_act"));
    if (!act)
        act = gemma ? "gelu_pytorch_tanh" : "silu";
    c->activation = gemma ? IC_GELU_TANH : IC_SILU;
    if (gemma ? !strncmp(act, "gelu", 4) : !strcmp(act, "silu"))
        return ICAE_OK;
    return ic_fail(ICAE_EUNSUPPORTED,
                   "%s: hidden_act \"%s\" is not supported for %s (supported: %s)", name, act,
                   c->architecture, gemma ? "gelu_pytorch_tanh" : "silu");
}

static void add_eos(ic_config *c, double id)
{
    if (!(id >= 0 && id < c->vocabulary) || c->eos_count == (int)IC_COUNT(c->eos))
        return;
    for (int i = 0; i < c->eos_count; i++)
        if (c->eos[i] == (int32_t)id)
            return;
    c->eos[c->eos_count++] = (int32_t)id;
}

/* bos_token_id and eos_token_id (a number or a list), of config.json or generation_config.json. */
static void read_ends(ic_config *c, const ic_json *json)
{
    double bos = ic_json_number(ic_json_get(json, "bos_token_id"), -1);
    if (bos >= 0 && bos < c->vocabulary)
        c->bos = (int32_t)bos;
    const ic_json *eos = ic_json_get(json, "eos_token_id");
    add_eos(c, ic_json_number(eos, -1));
    if (ic_json_is_array(eos))
        for (const ic_json *e = ic_json_first(eos); e; e = ic_json_next(e))
            add_eos(c, ic_json_number(e, -1));
}

int ic_config_from_json(ic_config *c, const ic_json *json, const char *name)
{
    int rc = ICAE_OK;
    *c = (ic_config){.bos = -1, .embed_scale = 1};
    const char *type = ic_json_string(ic_json_get(json, "model_type"));
    const family *f = type ? find_family(type) : NULL;
    if (!f)
        return ic_fail(type ? ICAE_EUNSUPPORTED : ICAE_EFORMAT,
                       "%s: model_type %s%s%s is not supported (supported: " SUPPORTED ")", name,
                       type ? "\"" : "", type ? type : "is missing and", type ? "\"" : "");
    snprintf(c->architecture, sizeof c->architecture, "%s", f->name);
    IC_TRY(required(&c->width, json, "hidden_size", name));
    IC_TRY(required(&c->layers, json, "num_hidden_layers", name));
    IC_TRY(in_range(name, "num_hidden_layers", c->layers, 1, MOST_LAYERS));
    IC_TRY(required(&c->heads, json, "num_attention_heads", name));
    IC_TRY(required(&c->ffn_width, json, "intermediate_size", name));
    IC_TRY(required(&c->vocabulary, json, "vocab_size", name));
    bool given = ic_json_get(json, "num_key_value_heads") != NULL;
    IC_TRY(whole(&c->kv_heads, json, "num_key_value_heads",
                 given || !f->kv_heads ? c->heads : f->kv_heads, name));
    int width = c->heads > 0 ? c->width / c->heads : 0;
    given = ic_json_get(json, "head_dim") != NULL;
    IC_TRY(whole(&c->head_width, json, "head_dim", given || !f->head_width ? width : f->head_width,
                 name));
    IC_TRY(whole(&c->max_positions, json, "max_position_embeddings", 2048, name));
    c->norm_eps = (float)ic_json_number(ic_json_get(json, "rms_norm_eps"), f->eps);
    c->tied_head = ic_json_bool(ic_json_get(json, "tie_word_embeddings"), f->tied);
    c->qk_norm = !strcmp(f->name, "qwen3");
    if (!strcmp(f->name, "gemma"))
        c->embed_scale = sqrtf((float)c->width);
    IC_TRY(read_activation(c, json, name));
    IC_TRY(read_rope(c, json, name));
    IC_TRY(read_window(c, json, f, name));
    read_ends(c, json);
    IC_TRY(ic_config_check(c, name));
done:
    return rc;
}

void ic_config_add_generation(ic_config *c, const ic_json *json)
{
    read_ends(c, json);
}

/* ---- GGUF ------------------------------------------------------------------------------------- */

/* The number under "<architecture>.<key>". */
static double gguf_number(const ic_gguf *g, const char *arch, const char *key, double otherwise)
{
    char *full = ic_format("%s.%s", arch, key);
    double v = full ? ic_gguf_number(g, full, otherwise) : otherwise;
    ic_free(full);
    return v;
}

static int gguf_whole(int *out, const ic_gguf *g, const char *arch, const char *key,
                      double otherwise)
{
    double v = gguf_number(g, arch, key, otherwise);
    *out = v >= 0 && v <= 1 << 30 ? (int)v : -1;
    return v == -1 ? ic_fail(ICAE_EFORMAT, "%s: no %s.%s", g->path, arch, key) : ICAE_OK;
}

static int gguf_rope(ic_config *c, const ic_gguf *g, const char *arch)
{
    c->rope_theta = gguf_number(g, arch, "rope.freq_base", 10000);
    c->rope_width = (int)gguf_number(g, arch, "rope.dimension_count", c->head_width);
    c->rope_interleaved = !strcmp(arch, "llama");
    char *key = ic_format("%s.rope.scaling.type", arch);
    if (!key)
        return ICAE_ENOMEM;
    size_t n = 0;
    const char *kind = ic_gguf_string(g, key, &n);
    ic_free(key);
    if (kind && n == 6 && !memcmp(kind, "linear", 6)) {
        c->rope_kind = IC_ROPE_LINEAR;
        c->rope_factor = gguf_number(g, arch, "rope.scaling.factor", 0);
    } else if (kind && !(n == 4 && !memcmp(kind, "none", 4))) {
        return ic_fail(
            ICAE_EUNSUPPORTED,
            "%s: rope scaling \"%.*s\" is not supported (supported: none, linear, llama3 "
            "by rope_freqs)",
            g->path, (int)IC_MIN(n, 40), kind);
    }
    return ICAE_OK;
}

int ic_config_from_gguf(ic_config *c, const ic_gguf *g)
{
    int rc = ICAE_OK;
    *c = (ic_config){.bos = -1, .embed_scale = 1};
    size_t n = 0;
    const char *arch = ic_gguf_string(g, "general.architecture", &n);
    const family *f = NULL;
    for (size_t i = 0; arch && i < IC_COUNT(families); i++)
        if (strlen(families[i].name) == n && !memcmp(families[i].name, arch, n))
            f = &families[i];
    if (!f || !strcmp(f->name, "mistral")) /* GGUF files of Mistral say llama */
        return ic_fail(
            ICAE_EUNSUPPORTED,
            "%s: architecture \"%.*s\" is not supported (supported: llama (also Mistral), "
            "qwen2, qwen3, gemma, phi3)",
            g->path, (int)IC_MIN(n, 40), arch ? arch : "");
    snprintf(c->architecture, sizeof c->architecture, "%s", f->name);
    IC_TRY(gguf_whole(&c->width, g, f->name, "embedding_length", -1));
    IC_TRY(gguf_whole(&c->layers, g, f->name, "block_count", -1));
    IC_TRY(gguf_whole(&c->heads, g, f->name, "attention.head_count", -1));
    IC_TRY(gguf_whole(&c->kv_heads, g, f->name, "attention.head_count_kv", c->heads));
    IC_TRY(gguf_whole(&c->ffn_width, g, f->name, "feed_forward_length", -1));
    IC_TRY(gguf_whole(&c->max_positions, g, f->name, "context_length", -1));
    IC_TRY(gguf_whole(&c->head_width, g, f->name, "attention.key_length",
                      c->heads > 0 ? c->width / c->heads : 0));
    const ic_tensor *embed = ic_gguf_find(g, "token_embd.weight");
    if (!embed || embed->rank != 2 || embed->dim[0] > 1 << 22)
        return ic_fail(ICAE_EFORMAT, "%s: no matrix token_embd.weight", g->path);
    c->vocabulary = (int)embed->dim[0];
    c->norm_eps = (float)gguf_number(g, f->name, "attention.layer_norm_rms_epsilon", f->eps);
    c->tied_head = !ic_gguf_find(g, "output.weight");
    c->qk_norm = !strcmp(f->name, "qwen3");
    c->activation = !strcmp(f->name, "gemma") ? IC_GELU_TANH : IC_SILU;
    if (c->activation == IC_GELU_TANH)
        c->embed_scale = sqrtf((float)c->width);
    if (!strcmp(f->name, "phi3"))
        IC_TRY(gguf_whole(&c->window, g, f->name, "attention.sliding_window", 0));
    IC_TRY(gguf_rope(c, g, f->name));
    double bos = ic_gguf_number(g, "tokenizer.ggml.bos_token_id", -1);
    if (bos >= 0 && bos < c->vocabulary)
        c->bos = (int32_t)bos;
    add_eos(c, ic_gguf_number(g, "tokenizer.ggml.eos_token_id", -1));
    add_eos(c, ic_gguf_number(g, "tokenizer.ggml.eot_token_id", -1));
    IC_TRY(ic_config_check(c, g->path));
done:
    return rc;
}
