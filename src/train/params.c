/*
 * params.c - the trained values of an adapter as one flat buffer, and what is done to all of them at
 * once: first values, bf16 copy, saving, AdamW.
 *
 * An adapter is made the way a file's is (core's adapter_tensors.c knows names, shapes and the base's
 * order of rows), then its matrices are moved into the buffer. Knows nothing of examples or losses.
 */
#include "core/adapter.h"
#include "train/train.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define PREFIX "icae.base_model.model.model.layers"

enum { PART_MEANS = 16 /* tokens a memory row is the mean of */ };

/* ---- from tensors in published order to the flat buffer --------------------------------------- */

/* Where the element that `data` points to in an adapter's tensors went. */
static size_t offset_of(const icae_adapter *a, const void *data)
{
    size_t offset = 0;
    for (size_t i = 0; i < a->tensor_count; i++) {
        ic_mat m = a->tensors[i].m;
        const char *start = m.data, *at = data;
        size_t n = (size_t)m.rows * (size_t)m.cols;
        if (at >= start && at < start + n * sizeof(float))
            return offset + (size_t)(at - start) / sizeof(float);
        offset += n;
    }
    return offset;
}

/* A LoRA matrix: values from the shadow if there is one. */
static float *move(ic_params *p, ic_mat *m)
{
    size_t offset = offset_of(p->adapter, m->data);
    m->data = p->shadow ? (void *)(p->shadow + offset) : p->p + offset;
    m->dtype = p->shadow ? IC_BF16 : IC_F32;
    return p->g + offset;
}

/* Copies the values of the adapter's tensors, all F32, and lets the adapter point at the copy. */
static int adopt(ic_params *p, bool bf16)
{
    icae_adapter *a = p->adapter;
    for (size_t i = 0; i < a->tensor_count; i++)
        p->count += (size_t)a->tensors[i].m.rows * (size_t)a->tensors[i].m.cols;
    p->p = ic_alloc(p->count, sizeof *p->p);
    p->g = ic_alloc(p->count, sizeof *p->g);
    p->m = ic_alloc(p->count, sizeof *p->m);
    p->v = ic_alloc(p->count, sizeof *p->v);
    p->shadow = bf16 ? ic_alloc(p->count, sizeof *p->shadow) : NULL;
    if (!p->p || !p->g || !p->m || !p->v || (bf16 && !p->shadow))
        return ICAE_ENOMEM;
    for (int i = 0; i < p->model->config.layers * IC_TARGETS; i++) {
        ic_lora *l = &a->lora[i];
        if (l->a.data) {
            l->da = move(p, &l->a);
            l->db = move(p, &l->b);
        }
    }
    size_t offset = 0;
    for (size_t i = 0; i < a->tensor_count; i++) {
        ic_mat *m = &a->tensors[i].m;
        size_t n = (size_t)m->rows * (size_t)m->cols;
        memcpy(p->p + offset, m->data, n * sizeof(float));
        m->data = p->p + offset;
        offset += n;
    }
    a->memory = a->tensors[0].m; /* first in the list, and added in F32 */
    for (size_t i = 0; i < a->owned_count; i++) {
        bool rows = false; /* the orders of rows stay in use, copies of matrices do not */
        for (size_t j = 0; j < a->tensor_count; j++)
            rows |= a->owned[i] == (const void *)a->tensors[j].row_of;
        if (!rows) {
            ic_free(a->owned[i]);
            a->owned[i] = NULL;
        }
    }
    ic_params_refresh(p);
    return ICAE_OK;
}

/* An adapter of `shape` that holds the tensors given. */
static int bind(ic_params *p, const ic_tensor *tensors, size_t count, bool bf16)
{
    int rc = ICAE_OK;
    ic_adapter_found found = {0};
    const ic_adapter_shape *shape = &p->shape;
    icae_adapter *a = p->adapter = ic_alloc(1, sizeof *a);
    if (!a || !(a->path = ic_strdup("adapter in training")))
        return ICAE_ENOMEM;
    a->model = p->model;
    snprintf(a->layout, sizeof a->layout, "v2");
    memcpy(a->base_identity, p->model->identity, sizeof a->base_identity);
    IC_TRY(ic_adapter_bind(a, &found, tensors, count));
    a->rate = shape->rate;
    a->alpha = shape->alpha;
    a->rates_count = shape->rates_count;
    memcpy(a->rates, shape->rates, sizeof a->rates);
    a->spread = shape->spread;
    a->proportional = shape->proportional;
    a->both = shape->both;
    a->lm_token = shape->lm_token;
    a->bos = shape->bos;
    a->span = shape->span;
    a->set = (ic_lora_set){.scale = a->alpha / (float)a->rank, .lora = a->lora};
    IC_TRY(adopt(p, bf16));
done:
    return rc;
}

static ic_params *empty(const icae_model *model, const ic_adapter_shape *shape)
{
    ic_params *p = ic_alloc(1, sizeof *p);
    if (p) {
        p->model = model;
        p->shape = *shape;
    }
    return p;
}

/* ---- a fresh adapter -------------------------------------------------------------------------- */

/* A list of tensors that grows, with the values that they begin with. */
typedef struct fresh {
    const icae_model *model;
    const ic_adapter_shape *shape;
    uint64_t seed, stream; /* one stream a tensor */
    ic_tensor *tensor;
    size_t count;
} fresh;

static int add_tensor(fresh *f, char *name, int rows, int cols, float **values)
{
    ic_tensor *list = ic_resize(f->tensor, f->count + 1, sizeof *list);
    if (list)
        f->tensor = list;
    *values = list ? ic_alloc((size_t)rows * (size_t)cols, sizeof **values) : NULL;
    if (!name || !*values) {
        ic_free(name);
        ic_free(*values);
        return ICAE_ENOMEM;
    }
    f->tensor[f->count++] = (ic_tensor){.name = name,
                                        .dtype = IC_F32,
                                        .rank = 2,
                                        .dim = {rows, cols, 1, 1},
                                        .data = *values,
                                        .bytes = (size_t)rows * (size_t)cols * sizeof **values};
    f->stream = IC_STREAM_INIT + ((uint64_t)f->count << 8);
    return ICAE_OK;
}

/* Root mean square of the token embeddings, as the model reads them. */
static float token_scale(const icae_model *m, float *row)
{
    double sum = 0;
    for (int i = 0; i < m->embed.rows; i++) {
        ic_to_f32(row, ic_mat_row(m->embed, (size_t)i), m->embed.dtype, (size_t)m->embed.cols);
        for (int c = 0; c < m->embed.cols; c++)
            sum += (double)row[c] * (double)row[c];
    }
    return (float)sqrt(sum / m->embed.rows / m->embed.cols) * m->config.embed_scale;
}

static void fill_memory(const fresh *f, float *values, int rows, float *token, ic_memory_init init)
{
    const icae_model *m = f->model;
    size_t width = (size_t)m->config.width;
    float scale = init == IC_INIT_TOKEN_SCALE ? token_scale(m, token) : 1;
    for (size_t i = 0; i < (size_t)rows * width && init != IC_INIT_TOKEN_MEANS; i++)
        values[i] = scale * (float)ic_random_normal(f->seed, f->stream, i);
    for (size_t i = 0; i < (size_t)rows * PART_MEANS && init == IC_INIT_TOKEN_MEANS; i++) {
        double at = ic_random_unit(f->seed, f->stream, i) * m->embed.rows;
        ic_to_f32(token, ic_mat_row(m->embed, (size_t)at), m->embed.dtype, width);
        for (size_t c = 0; c < width; c++)
            values[i / PART_MEANS * width + c] += token[c] * m->config.embed_scale / PART_MEANS;
    }
}

static int add_memory(fresh *f, ic_memory_init init)
{
    float *values, *token = ic_alloc((size_t)f->model->config.width, sizeof *token);
    int rows = f->shape->k + 3, rc;
    if (!token)
        return ICAE_ENOMEM;
    rc = add_tensor(f, ic_strdup("memory_token_embed.weight"), rows, f->model->config.width,
                    &values);
    if (rc == ICAE_OK)
        fill_memory(f, values, rows, token, init);
    ic_free(token);
    return rc;
}

/* A uniform in ±1/sqrt(inputs) (Kaiming with a = sqrt 5), B zero. */
static int add_pair(fresh *f, int layer, const char *part, int rows, int cols)
{
    int rc = ICAE_OK, rank = f->shape->rank;
    float *a, *b;
    IC_TRY(add_tensor(f, ic_format(PREFIX ".%d.%s.lora_A.default.weight", layer, part), rank, cols,
                      &a));
    double bound = 1 / sqrt((double)cols);
    for (size_t i = 0; i < (size_t)rank * (size_t)cols; i++)
        a[i] = (float)(bound * (2 * ic_random_unit(f->seed, f->stream, i) - 1));
    IC_TRY(add_tensor(f, ic_format(PREFIX ".%d.%s.lora_B.default.weight", layer, part), rows, rank,
                      &b));
done:
    return rc;
}

/* The pairs of a layer. Where the base fuses matrices (Phi-3), any of the fused targets means all. */
static int add_layer(fresh *f, int layer)
{
    int rc = ICAE_OK;
    const ic_layer *l = &f->model->layer[layer];
    const bool *t = f->shape->target;
    bool fused = !strcmp(f->model->config.architecture, "phi3");
    for (int i = 0; i < IC_TARGETS; i++) {
        char part[32];
        int rows = l->linear[i].w.rows, cols = l->linear[i].w.cols;
        bool wanted = t[i];
        snprintf(part, sizeof part, "%s.%s", i <= IC_O ? "self_attn" : "mlp", ic_target_names[i]);
        if (fused && i <= IC_V) {
            wanted = i == IC_Q && (t[IC_Q] || t[IC_K] || t[IC_V]);
            rows += l->linear[IC_K].w.rows + l->linear[IC_V].w.rows;
            snprintf(part, sizeof part, "self_attn.qkv_proj");
        } else if (fused && i != IC_O && i != IC_DOWN) {
            wanted = i == IC_GATE && (t[IC_GATE] || t[IC_UP]);
            rows += l->linear[IC_UP].w.rows;
            snprintf(part, sizeof part, "mlp.gate_up_proj");
        }
        if (wanted)
            IC_TRY(add_pair(f, layer, part, rows, cols));
    }
done:
    return rc;
}

static void tensors_free(ic_tensor *tensor, size_t count)
{
    for (size_t i = 0; tensor && i < count; i++) {
        ic_free((void *)(uintptr_t)tensor[i].name);
        ic_free((void *)(uintptr_t)tensor[i].data);
    }
    ic_free(tensor);
}

int ic_params_new(ic_params **out, const icae_model *model, const ic_adapter_shape *shape,
                  ic_memory_init init, uint64_t seed, bool bf16)
{
    int rc = ICAE_OK;
    fresh f = {.model = model, .shape = shape, .seed = seed};
    ic_params *p = empty(model, shape);
    if (!p)
        return ICAE_ENOMEM;
    IC_TRY(add_memory(&f, init));
    for (int l = 0; l < model->config.layers; l++)
        IC_TRY(add_layer(&f, l));
    IC_TRY(bind(p, f.tensor, f.count, bf16));
    *out = p;
    p = NULL;
done:
    tensors_free(f.tensor, f.count);
    ic_params_free(p);
    return rc;
}

/* ---- an existing adapter ---------------------------------------------------------------------- */

/* A tensor as published, in F32. */
static int publish(ic_tensor *out, const ic_adapter_tensor *t)
{
    size_t rows = (size_t)t->m.rows, cols = (size_t)t->m.cols;
    float *values = ic_alloc(rows * cols, sizeof *values);
    char *name = ic_strdup(t->name);
    *out = (ic_tensor){.name = name,
                       .dtype = IC_F32,
                       .rank = 2,
                       .dim = {t->m.rows, t->m.cols, 1, 1},
                       .data = values,
                       .bytes = rows * cols * sizeof *values};
    if (!values || !name)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < rows; i++)
        ic_to_f32(values + i * cols, ic_adapter_row(t, (int)i), t->m.dtype, cols);
    return ICAE_OK;
}

static ic_adapter_shape shape_of(const icae_adapter *a)
{
    ic_adapter_shape s = {
        .k = a->k,
        .rank = a->rank,
        .rate = a->rate,
        .alpha = a->alpha,
        .rates_count = a->rates_count,
        .spread = a->spread,
        .proportional = a->proportional,
        .both = a->both,
        .lm_token = a->lm_token,
        .bos = a->bos,
        .span = a->span,
    };
    memcpy(s.rates, a->rates, sizeof s.rates);
    for (int i = 0; i < a->model->config.layers * IC_TARGETS; i++)
        s.target[i % IC_TARGETS] |= a->lora[i].a.data != NULL;
    return s;
}

int ic_params_from_adapter(ic_params **out, const icae_adapter *adapter, bool bf16)
{
    int rc = ICAE_OK;
    ic_adapter_shape shape = shape_of(adapter);
    ic_tensor *tensors = ic_alloc(adapter->tensor_count, sizeof *tensors);
    ic_params *p = empty(adapter->model, &shape);
    if (!tensors || !p) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (size_t i = 0; i < adapter->tensor_count; i++)
        IC_TRY(publish(&tensors[i], &adapter->tensors[i]));
    IC_TRY(bind(p, tensors, adapter->tensor_count, bf16));
    *out = p;
    p = NULL;
done:
    tensors_free(tensors, adapter->tensor_count);
    ic_params_free(p);
    return rc;
}

/* ---- all values at once ----------------------------------------------------------------------- */

void ic_params_refresh(ic_params *p)
{
    if (p->shadow)
        ic_from_f32(p->shadow, p->p, IC_BF16, p->count);
}

int ic_params_save(const ic_params *p, const char *path)
{
    return icae_adapter_save(p->adapter, path);
}

void ic_params_free(ic_params *p)
{
    if (!p)
        return;
    icae_adapter_free(p->adapter);
    ic_free(p->p);
    ic_free(p->g);
    ic_free(p->m);
    ic_free(p->v);
    ic_free(p->shadow);
    ic_free(p);
}

/* The shadow by the backend, which shares rows out to threads. */
static void refresh_by(ic_backend *be, ic_params *p)
{
    enum { ROW = 4096 };
    int rows = (int)(p->count / ROW), rest = (int)(p->count % ROW);
    size_t at = (size_t)rows * ROW;
    if (!p->shadow)
        return;
    be->rows(be, ic_mat_of(p->shadow, IC_BF16, rows, ROW), NULL, ic_mat_of(p->p, IC_F32, rows, ROW),
             NULL, rows, 1, false);
    if (rest)
        be->rows(be, ic_mat_of(p->shadow + at, IC_BF16, 1, rest), NULL,
                 ic_mat_of(p->p + at, IC_F32, 1, rest), NULL, 1, 1, false);
}

int ic_params_update(icae_session *s, ic_params *p, const ic_adamw *o, uint64_t step, double *norm)
{
    ic_backend *be = s->be;
    *norm = sqrt(be->sum_squares(be, p->g, p->count));
    bool finite = isfinite(*norm);
    if (finite) {
        double scale = o->clip > 0 ? (double)o->clip / (*norm + 1e-6) : 1;
        double c1 = 1 - pow((double)o->beta1, (double)step);
        double c2 = 1 - pow((double)o->beta2, (double)step);
        be->adamw(be, p->p, p->m, p->v, p->g, p->count, o->lr, o->beta1, o->beta2, o->eps, o->decay,
                  (float)c1, (float)c2, (float)IC_MIN(scale, 1));
        refresh_by(be, p);
    }
    memset(p->g, 0, p->count * sizeof *p->g);
    return finite ? ICAE_OK : 1;
}
