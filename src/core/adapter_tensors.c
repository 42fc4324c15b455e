/*
 * adapter_tensors.c - the matrices of an adapter: found by their published names, checked against
 * the base, and brought into its order of rows.
 *
 * Matrices stay in the file's map wherever they can. Two things are done to lora_B: matrices beside
 * fused layers (Phi-3) are shared by what the layer was fused from, and rows of q and k are
 * reordered where the base has them in GGUF's order. Knows names and shapes, not settings.
 */
#include "core/adapter.h"
#include "core/metadata.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define MEMORY_NAME "memory_token_embed.weight"
#define PREFIX      "icae.base_model.model.model."

/* A linear layer as files name it, and the targets that it is made of. */
typedef struct part {
    const char *name;
    int first, count;
} part;

static const part parts[] = {
    {"self_attn.q_proj", IC_Q, 1},    {"self_attn.k_proj", IC_K, 1},
    {"self_attn.v_proj", IC_V, 1},    {"self_attn.o_proj", IC_O, 1},
    {"mlp.gate_proj", IC_GATE, 1},    {"mlp.up_proj", IC_UP, 1},
    {"mlp.down_proj", IC_DOWN, 1},    {"self_attn.qkv_proj", IC_Q, 3},
    {"mlp.gate_up_proj", IC_GATE, 2},
};

enum { PARTS = IC_COUNT(parts) };

static int target_rows(const ic_config *c, int target)
{
    int q = c->heads * c->head_width, kv = c->kv_heads * c->head_width;
    const int rows[IC_TARGETS] = {q, kv, kv, c->width, c->ffn_width, c->ffn_width, c->width};
    return rows[target];
}

static int part_rows(const ic_config *c, int p)
{
    int rows = 0;
    for (int i = 0; i < parts[p].count; i++)
        rows += target_rows(c, parts[p].first + i);
    return rows;
}

static int part_cols(const ic_config *c, int p)
{
    return p == IC_O ? c->heads * c->head_width : p == IC_DOWN ? c->ffn_width : c->width;
}

/* What a file has: [layers][PARTS][lora_A, lora_B], NULL where it has none. */
typedef struct search {
    icae_adapter *a;
    const ic_config *config;
    ic_adapter_found *found;
    const ic_tensor *memory;
    const ic_tensor **lora;
    int32_t *row_of[PARTS]; /* of lora_B, made when first needed */
} search;

static const ic_tensor **lora_at(const search *s, int layer, int p, int which)
{
    return &s->lora[((size_t)layer * PARTS + (size_t)p) * 2 + (size_t)which];
}

/* ---- names ------------------------------------------------------------------------------------
 */

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

static bool take(const char **s, const char *prefix)
{
    size_t n = strlen(prefix);
    bool hit = strncmp(*s, prefix, n) == 0;
    *s += hit ? n : 0;
    return hit;
}

/* "…layers.N.self_attn.q_proj.lora_A.default.weight", whatever stands before "layers"; PEFT leaves
 * out ".default". */
static bool parse_lora(const char *name, int *layer, int *p, int *which, bool *peft)
{
    const char *s = strstr(name, "layers.");
    int digits = 0;
    if (!s || (s > name && s[-1] != '.'))
        return false;
    s += strlen("layers.");
    for (*layer = 0; *s >= '0' && *s <= '9' && digits < 6; s++, digits++)
        *layer = *layer * 10 + (*s - '0');
    if (digits == 0 || !take(&s, "."))
        return false;
    for (*p = 0; *p < PARTS; ++*p)
        if (take(&s, parts[*p].name))
            break;
    if (*p == PARTS || !take(&s, ".lora_"))
        return false;
    *which = *s == 'B';
    if (!take(&s, "A") && !take(&s, "B"))
        return false;
    *peft = !take(&s, ".default");
    return strcmp(s, ".weight") == 0;
}

static int twice(const search *s, const ic_tensor *t, const ic_tensor *before)
{
    return ic_fail(ICAE_EFORMAT, "%.300s: tensors '%.150s' and '%.150s' are for the same matrix",
                   s->a->path, before->name, t->name);
}

static int sort_lora(search *s, const ic_tensor *t)
{
    int layer, p, which;
    bool peft;
    if (!parse_lora(t->name, &layer, &p, &which, &peft))
        return ic_fail(ICAE_EUNSUPPORTED,
                       "%.300s: tensor '%.200s': no lora_A or lora_B of a linear layer known here",
                       s->a->path, t->name);
    if (layer >= s->config->layers)
        return ic_fail(ICAE_EMISMATCH,
                       "%.300s: tensor '%.200s': the adapter was made for a base of more than %d "
                       "layers, this one has %d",
                       s->a->path, t->name, layer, s->config->layers);
    if (parts[p].count > 1 && strcmp(s->config->architecture, "phi3") != 0)
        return ic_fail(ICAE_EMISMATCH,
                       "%.300s: tensor '%.200s': the adapter was made for a base with fused "
                       "layers, this one is %s",
                       s->a->path, t->name, s->config->architecture);
    const ic_tensor **place = lora_at(s, layer, p, which);
    if (*place)
        return twice(s, t, *place);
    *place = t;
    s->found->peft |= peft;
    return ICAE_OK;
}

/* Full training checkpoints hold the base as well: passed over, not mistaken for ours. */
static int sort_tensor(search *s, const ic_tensor *t)
{
    if (strstr(t->name, "lora_"))
        return sort_lora(s, t);
    if (strstr(t->name, "memory_head."))
        return ic_fail(ICAE_EUNSUPPORTED,
                       "%.300s: tensor '%.200s': adapters with a memory head are not supported",
                       s->a->path, t->name);
    s->found->checkpoint2 |= strstr(t->name, ".base_layer.") || !strncmp(t->name, "decoder.", 8);
    if (strcmp(t->name, MEMORY_NAME) != 0 && !ends_with(t->name, "." MEMORY_NAME))
        return ICAE_OK;
    if (s->memory)
        return twice(s, t, s->memory);
    s->memory = t;
    return ICAE_OK;
}

/* ---- checks -----------------------------------------------------------------------------------
 */

static int check_matrix(const search *s, const ic_tensor *t)
{
    if (t->dtype != IC_F32 && t->dtype != IC_F16 && t->dtype != IC_BF16)
        return ic_fail(ICAE_EUNSUPPORTED,
                       "%.300s: tensor '%.200s' is %s, expected F32, F16 or BF16", s->a->path,
                       t->name, ic_dtypes[t->dtype].name);
    if (t->rank != 2 || t->dim[0] < 1 || t->dim[1] < 1)
        return ic_fail(ICAE_EFORMAT, "%.300s: tensor '%.200s' is no matrix (rank %d)", s->a->path,
                       t->name, t->rank);
    return ICAE_OK;
}

static int check_memory(const search *s)
{
    const ic_tensor *t = s->memory;
    if (!t)
        return ic_fail(ICAE_ENOTFOUND,
                       "%.300s: tensor '" MEMORY_NAME "' is missing: LoRA matrices alone are no "
                       "ICAE adapter",
                       s->a->path);
    int rc = check_matrix(s, t);
    if (rc < 0)
        return rc;
    if (t->dim[1] != s->config->width)
        return ic_fail(ICAE_EMISMATCH,
                       "adapter %.300s was made for a base of width %" PRId64 ", this one has %d",
                       s->a->path, t->dim[1], s->config->width);
    if (t->dim[0] < 4 || t->dim[0] > IC_MAX_K + 3)
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: tensor '%.200s' has %" PRId64 " rows, expected k memory tokens and "
                       "3 more",
                       s->a->path, t->name, t->dim[0]);
    return ICAE_OK;
}

/* lora_A [R, in] and lora_B [out, R] of one layer. */
static int check_pair(const search *s, int layer, int p)
{
    int rc = ICAE_OK;
    const ic_tensor *a = *lora_at(s, layer, p, 0), *b = *lora_at(s, layer, p, 1);
    int rank = s->a->rank;
    if (!a || !b)
        return ic_fail(ICAE_ENOTFOUND, "%.300s: tensor '%.200s' has no partner lora_%s", s->a->path,
                       a ? a->name : b->name, a ? "B" : "A");
    IC_TRY(check_matrix(s, a));
    IC_TRY(check_matrix(s, b));
    if (a->dim[1] != part_cols(s->config, p))
        return ic_fail(ICAE_EMISMATCH,
                       "adapter %.300s was made for a base with %" PRId64
                       " inputs of %s, this one has %d",
                       s->a->path, a->dim[1], parts[p].name, part_cols(s->config, p));
    if (b->dim[0] != part_rows(s->config, p))
        return ic_fail(ICAE_EMISMATCH,
                       "adapter %.300s was made for a base with %" PRId64
                       " outputs of %s, this one has %d",
                       s->a->path, b->dim[0], parts[p].name, part_rows(s->config, p));
    if (a->dim[0] != b->dim[1] || a->dim[0] > IC_MAX_K)
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: tensor '%.200s' is of rank %" PRId64
                       ", its lora_B of rank %" PRId64,
                       s->a->path, a->name, a->dim[0], b->dim[1]);
    if (rank && a->dim[0] != rank)
        return ic_fail(ICAE_EUNSUPPORTED,
                       "%.300s: tensor '%.200s' is of rank %" PRId64
                       ", others of rank %d: one rank for all is supported",
                       s->a->path, a->name, a->dim[0], rank);
    s->a->rank = (int)a->dim[0];
done:
    return rc;
}

/* A layer without the LoRA that others have means another number of layers, unless the adapter
 * itself names this base. */
static int check_lora(search *s)
{
    int rc = ICAE_OK;
    icae_adapter *a = s->a;
    const part *owner[IC_TARGETS] = {0};
    for (int p = 0; p < PARTS; p++) {
        int missing = -1, present = 0;
        for (int l = 0; l < s->config->layers; l++) {
            if (!*lora_at(s, l, p, 0) && !*lora_at(s, l, p, 1)) {
                missing = missing < 0 ? l : missing;
                continue;
            }
            IC_TRY(check_pair(s, l, p));
            present++;
        }
        if (present && missing >= 0 && !a->base_identity[0])
            return ic_fail(ICAE_EMISMATCH,
                           "adapter %.300s was made for another base: it has no LoRA for %s of "
                           "layer %d, this one has %d layers",
                           a->path, parts[p].name, missing, s->config->layers);
        for (int i = parts[p].first; present && i < parts[p].first + parts[p].count; i++) {
            if (owner[i])
                return ic_fail(ICAE_EFORMAT, "%.300s: LoRA for both %s and %s", a->path,
                               owner[i]->name, parts[p].name);
            owner[i] = &parts[p];
        }
        a->tensor_count += 2 * (size_t)present;
        if (present) {
            size_t n = strlen(a->targets);
            snprintf(a->targets + n, sizeof a->targets - n, "%s%s", n > 0 ? "," : "",
                     strchr(parts[p].name, '.') + 1);
        }
    }
    if (!a->rank)
        rc = ic_fail(ICAE_ENOTFOUND,
                     "%.300s: no LoRA matrices, expected tensors such as '" PREFIX
                     "layers.0.self_attn.q_proj.lora_A.default.weight'",
                     a->path);
done:
    return rc;
}

/* ---- matrices ---------------------------------------------------------------------------------
 */

void *ic_adapter_own(icae_adapter *a, size_t count, size_t size)
{
    void **list = ic_resize(a->owned, a->owned_count + 1, sizeof *list);
    if (!list)
        return NULL;
    a->owned = list;
    void *memory = ic_alloc(count, size);
    if (memory)
        a->owned[a->owned_count++] = memory;
    return memory;
}

/* Rotary pairs: published rows of a head have them at (i, i + half), the base at (2i, 2i + 1). */
static int32_t interleaved(const ic_config *c, int32_t row)
{
    int32_t width = c->head_width, half = c->rope_width / 2, i = row % width;
    if (i >= 2 * half)
        return row;
    return row - i + 2 * (i % half) + i / half;
}

/* Where published rows of a part's lora_B go; *out stays NULL if the base has the same order. */
static int make_row_of(const int32_t **out, search *s, int p)
{
    const ic_config *c = s->config;
    bool turns = parts[p].first == IC_Q || p == IC_K;
    *out = s->row_of[p];
    if (*out || !c->rope_interleaved || !turns)
        return ICAE_OK;
    int rows = part_rows(c, p), q = target_rows(c, IC_Q), k = target_rows(c, IC_K);
    int turning = p == IC_Q || p == IC_K ? rows : q + k; /* v does not turn */
    int32_t *row_of = ic_adapter_own(s->a, (size_t)rows, sizeof *row_of);
    if (!row_of)
        return ICAE_ENOMEM;
    for (int i = 0; i < rows; i++)
        row_of[i] = i < turning ? interleaved(c, i) : i;
    *out = s->row_of[p] = row_of;
    return ICAE_OK;
}

/* The matrix in the file, or a copy if it is not aligned or its rows must be reordered. */
static int add_matrix(ic_adapter_tensor *out, icae_adapter *a, const ic_tensor *t, char *name,
                      const int32_t *row_of)
{
    void *data = (void *)(uintptr_t)t->data;
    out->name = name;
    out->row_of = row_of;
    if (!name)
        return ICAE_ENOMEM;
    if (row_of || (uintptr_t)data % (size_t)ic_dtypes[t->dtype].bytes) {
        size_t row = ic_row_bytes(t->dtype, (size_t)t->dim[1]);
        data = ic_adapter_own(a, (size_t)t->dim[0], row);
        if (!data)
            return ICAE_ENOMEM;
        for (int64_t i = 0; i < t->dim[0]; i++)
            memcpy((char *)data + (size_t)(row_of ? row_of[i] : i) * row,
                   (const char *)t->data + (size_t)i * row, row);
    }
    out->m = ic_mat_of(data, t->dtype, (int)t->dim[0], (int)t->dim[1]);
    return ICAE_OK;
}

/* One layer's pair into the list, and to every target that it serves. */
static int add_pair(search *s, ic_adapter_tensor *out, int layer, int p)
{
    int rc = ICAE_OK;
    icae_adapter *a = s->a;
    const int32_t *row_of;
    const char *format = PREFIX "layers.%d.%s.lora_%c.default.weight";
    IC_TRY(make_row_of(&row_of, s, p));
    IC_TRY(add_matrix(&out[0], a, *lora_at(s, layer, p, 0),
                      ic_format(format, layer, parts[p].name, 'A'), NULL));
    IC_TRY(add_matrix(&out[1], a, *lora_at(s, layer, p, 1),
                      ic_format(format, layer, parts[p].name, 'B'), row_of));
    int row = 0;
    for (int i = parts[p].first; i < parts[p].first + parts[p].count; i++) {
        int rows = target_rows(s->config, i);
        a->lora[layer * IC_TARGETS + i] =
            (ic_lora){.a = out[0].m, .b = ic_mat_rows(out[1].m, row, rows)};
        row += rows;
    }
done:
    return rc;
}

static int add_all(search *s)
{
    int rc = ICAE_OK;
    icae_adapter *a = s->a;
    a->tensors = ic_alloc(a->tensor_count, sizeof *a->tensors);
    a->lora = ic_alloc((size_t)s->config->layers * IC_TARGETS, sizeof *a->lora);
    if (!a->tensors || !a->lora)
        return ICAE_ENOMEM;
    IC_TRY(add_matrix(&a->tensors[0], a, s->memory, ic_strdup(MEMORY_NAME), NULL));
    a->memory = a->tensors[0].m;
    a->k = a->memory.rows - 3;
    ic_adapter_tensor *next = a->tensors + 1;
    for (int l = 0; l < s->config->layers; l++) {
        for (int p = 0; p < PARTS; p++) {
            if (!*lora_at(s, l, p, 0))
                continue;
            IC_TRY(add_pair(s, next, l, p));
            next += 2;
        }
    }
done:
    return rc;
}

int ic_adapter_bind(icae_adapter *a, ic_adapter_found *found, const ic_tensor *tensors,
                    size_t count)
{
    int rc = ICAE_OK;
    search s = {.a = a, .config = &a->model->config, .found = found};
    size_t places = (size_t)s.config->layers * PARTS * 2;
    s.lora = ic_alloc(places, sizeof *s.lora);
    if (!s.lora)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < count; i++)
        IC_TRY(sort_tensor(&s, &tensors[i]));
    a->tensor_count = 1;
    IC_TRY(check_memory(&s));
    IC_TRY(check_lora(&s));
    IC_TRY(add_all(&s));
done:
    ic_free(s.lora);
    return rc;
}

const void *ic_adapter_row(const ic_adapter_tensor *t, int i)
{
    return ic_mat_row(t->m, (size_t)(t->row_of ? t->row_of[i] : i));
}

/* ---- identity ---------------------------------------------------------------------------------
 */

enum { ALL_VALUES = 16 << 20, SAMPLES = 64, SAMPLE = 64 };

/* n values of a published row, as f32: an adapter saved in another type keeps its identity if its
 * values are kept. */
static int add_values(ic_hash *h, const char *path, const ic_adapter_tensor *t, int row, int first,
                      int n)
{
    float values[256];
    const char *data = ic_adapter_row(t, row);
    size_t bytes = (size_t)ic_dtypes[t->m.dtype].bytes;
    for (int i = first; i < first + n; i += (int)IC_COUNT(values)) {
        int some = IC_MIN(first + n - i, (int)IC_COUNT(values));
        ic_to_f32(values, data + (size_t)i * bytes, t->m.dtype, (size_t)some);
        for (int j = 0; j < some; j++)
            if (!isfinite(values[j]))
                return ic_fail(ICAE_EFORMAT,
                               "%.300s: tensor '%.200s': row %d, column %d is not finite", path,
                               t->name, row, i + j);
        ic_hash_add(h, values, (size_t)some * sizeof *values);
    }
    return ICAE_OK;
}

static int add_tensor(ic_hash *h, const char *path, const ic_adapter_tensor *t, bool all)
{
    int rc = ICAE_OK, rows = t->m.rows, cols = t->m.cols;
    char shape[32];
    ic_hash_add(h, t->name, strlen(t->name) + 1);
    snprintf(shape, sizeof shape, "%d,%d", rows, cols);
    ic_hash_add(h, shape, strlen(shape) + 1);
    for (int i = 0; all && i < rows; i++)
        IC_TRY(add_values(h, path, t, i, 0, cols));
    /* Samples run down the rows once and across the columns 37 times. */
    int n = IC_MIN(cols, SAMPLE);
    for (int64_t i = 0; !all && i < SAMPLES; i++)
        IC_TRY(add_values(h, path, t, (int)((rows - 1) * i / (SAMPLES - 1)),
                          (int)((cols - n) * (i * 37 % SAMPLES) / (SAMPLES - 1)), n));
done:
    return rc;
}

int ic_adapter_identify(icae_adapter *a)
{
    int rc = ICAE_OK;
    uint64_t values = 0;
    char text[160], alpha[32];
    ic_hash *h;
    IC_TRY(ic_hash_new(&h));
    for (size_t i = 0; i < a->tensor_count; i++)
        values += (uint64_t)a->tensors[i].m.rows * (uint64_t)a->tensors[i].m.cols;
    ic_metadata_print(alpha, a->alpha);
    snprintf(text, sizeof text, "icae-adapter-1 %s alpha=%s positions=%s slots=%s bos=%d%s",
             a->layout, alpha, a->spread ? "spread" : "sequential",
             a->proportional ? "proportional" : "fixed", a->bos, a->both ? " lora=both" : "");
    ic_hash_add(h, text, strlen(text) + 1);
    for (size_t i = 0; i < a->tensor_count && rc == ICAE_OK; i++)
        rc = add_tensor(h, a->path, &a->tensors[i], i == 0 || values <= ALL_VALUES);
    ic_hash_finish(h, rc == ICAE_OK ? a->identity : NULL);
done:
    return rc;
}
