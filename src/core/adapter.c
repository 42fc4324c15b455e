/*
 * adapter.c - adapter files: opened in the published layouts, settings agreed upon, saved as v2.
 *
 * A setting may come from the file's metadata, from PEFT's adapter_config.json beside it, from the
 * caller, or be the published value; where two of the first three disagree, that is an error. Owns
 * the file; adapter_tensors.c finds the matrices in it.
 */
#include "core/adapter.h"
#include "core/metadata.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define FORMAT          "icae-adapter-1"
#define MAX_SEGMENT     (1 << 30) /* tokens: k times rate */
#define PUBLISHED_RATE  4
#define PUBLISHED_ALPHA 32

/* ---- metadata ---------------------------------------------------------------------------------
 */

static const char *find(const icae_adapter *a, const char *key)
{
    return ic_safetensors_metadata(&a->file, key);
}

static int wrong(const icae_adapter *a, const char *key, const char *expected)
{
    return ic_fail(ICAE_EFORMAT, "%.300s: metadata '%s' is '%.80s', expected %s", a->path, key,
                   find(a, key), expected);
}

/* *out stays as it is where the file does not say. */
static int read_int(int *out, const icae_adapter *a, const char *key, int least, int most)
{
    const char *text = find(a, key);
    uint64_t v;
    char expected[64];
    if (!text)
        return ICAE_OK;
    snprintf(expected, sizeof expected, "a number from %d to %d", least, most);
    if (!ic_metadata_u64(&v, text) || v < (uint64_t)least || v > (uint64_t)most)
        return wrong(a, key, expected);
    *out = (int)v;
    return ICAE_OK;
}

static int read_bool(bool *out, const icae_adapter *a, const char *key)
{
    const char *text = find(a, key);
    return !text || ic_metadata_bool(out, text) ? ICAE_OK : wrong(a, key, "true or false");
}

/* One of two words; *out says whether it is the second. */
static int read_word(bool *out, const icae_adapter *a, const char *key, const char *first,
                     const char *second)
{
    const char *text = find(a, key);
    char expected[64];
    if (!text)
        return ICAE_OK;
    *out = strcmp(text, second) == 0;
    snprintf(expected, sizeof expected, "%s or %s", first, second);
    return *out || strcmp(text, first) == 0 ? ICAE_OK : wrong(a, key, expected);
}

static bool possible_rate(float rate)
{
    return rate >= 1 && rate <= IC_MAX_RATE;
}

/* "2,4,8" */
static int read_rates(icae_adapter *a)
{
    const char *s = find(a, "rates");
    static const char expected[] = "up to 8 rates such as 2,4,8";
    while (s && *s) {
        char one[32];
        size_t n = strcspn(s, ",");
        if (n >= sizeof one || a->rates_count == IC_COUNT(a->rates))
            return wrong(a, "rates", expected);
        memcpy(one, s, n);
        one[n] = 0;
        float *rate = &a->rates[a->rates_count++];
        if (!ic_metadata_float(rate, one) || !possible_rate(*rate))
            return wrong(a, "rates", expected);
        s += n + (s[n] == ',');
    }
    return ICAE_OK;
}

/* What matters before the matrices are looked at. */
static int read_format(icae_adapter *a)
{
    const char *format = find(a, "format"), *base = find(a, "base");
    if (format && !strncmp(format, "icae-", 5) && strcmp(format, FORMAT) != 0)
        return ic_fail(strncmp(format, "icae-adapter-", 13) ? ICAE_EFORMAT : ICAE_EUNSUPPORTED,
                       "%.300s: format '%.40s'; adapters that this version reads have '" FORMAT "'",
                       a->path, format);
    if (!base || !*base)
        return ICAE_OK;
    if (!ic_metadata_sha256(base))
        return wrong(a, "base", "64 hexadecimal digits");
    if (strcmp(base, a->model->identity) != 0)
        return ic_fail(ICAE_EMISMATCH,
                       "adapter %.200s was made for base %.12s, this is base %.12s (%.200s)",
                       a->path, base, a->model->identity, a->model->path ? a->model->path : "");
    memcpy(a->base_identity, base, sizeof a->base_identity);
    return ICAE_OK;
}

static bool same_targets(const char *a, const char *b)
{
    char list[160];
    size_t count = 0;
    snprintf(list, sizeof list, ",%s,", b);
    for (const char *s = a; *s; s += strcspn(s, ","), s += *s == ',') {
        char one[40];
        size_t n = strcspn(s, ",");
        if (n + 2 >= sizeof one)
            return false;
        snprintf(one, sizeof one, ",%.*s,", (int)n, s);
        if (!strstr(list, one))
            return false;
        count++;
    }
    for (; *b; b += strcspn(b, ","), b += *b == ',')
        count--;
    return count == 0;
}

/* Metadata beside the matrices; they are the truth about k, rank and targets. */
static int read_metadata(icae_adapter *a, bool published_pt)
{
    int rc = ICAE_OK, k = a->k, rank = a->rank;
    bool v1 = published_pt;
    const char *targets = find(a, "targets"), *rate = find(a, "rate"), *alpha = find(a, "alpha");
    IC_TRY(read_int(&k, a, "k", 1, IC_MAX_K));
    IC_TRY(read_int(&rank, a, "rank", 1, IC_MAX_K));
    if (k != a->k)
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: metadata 'k' is %d, memory_token_embed.weight has %d + 3 rows",
                       a->path, k, a->k);
    if (rank != a->rank)
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: metadata 'rank' is %d, the LoRA matrices have rank %d", a->path,
                       rank, a->rank);
    if (targets && !same_targets(targets, a->targets))
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: metadata 'targets' is '%.120s', the LoRA matrices are for '%s'",
                       a->path, targets, a->targets);
    if (rate && (!ic_metadata_float(&a->rate, rate) || !possible_rate(a->rate)))
        return wrong(a, "rate", "a number from 1 to 65536");
    if (alpha && (!ic_metadata_float(&a->alpha, alpha) || !(a->alpha > 0)))
        return wrong(a, "alpha", "a number above 0");
    IC_TRY(read_rates(a));
    IC_TRY(read_word(&a->spread, a, "positions", "sequential", "spread"));
    IC_TRY(read_word(&a->proportional, a, "slots", "fixed", "proportional"));
    IC_TRY(read_word(&a->both, a, "lora", "encoder", "both"));
    IC_TRY(read_bool(&a->lm_token, a, "lm_token"));
    /* The published files say nothing, and their texts begin with bos; ours say when they do. */
    a->bos = !find(a, "k");
    IC_TRY(read_bool(&a->bos, a, "bos"));
    IC_TRY(read_int(&a->span, a, "span", 0, INT32_MAX));
    IC_TRY(read_int(&a->refine, a, "refine", 0, IC_MOST_REFINING));
    IC_TRY(read_int(&a->expand, a, "expand", 0, IC_MOST_EXPANDING));
    if (find(a, "layout")) {
        v1 = false;
        IC_TRY(read_word(&v1, a, "layout", "v2", "v1"));
    }
    snprintf(a->layout, sizeof a->layout, v1 ? "v1" : "v2");
done:
    return rc;
}

/* ---- PEFT's adapter_config.json ---------------------------------------------------------------
 */

static int unsupported(const char *path, const char *key)
{
    return ic_fail(ICAE_EUNSUPPORTED, "%.300s: '%s' is not supported", path, key);
}

static int read_peft(icae_adapter *a, const ic_json *json, const char *path)
{
    static const char *const refused[] = {"use_rslora", "use_dora", "fan_in_fan_out"};
    static const char *const patterns[] = {"rank_pattern", "alpha_pattern"};
    for (size_t i = 0; i < IC_COUNT(refused); i++)
        if (ic_json_bool(ic_json_get(json, refused[i]), false))
            return unsupported(path, refused[i]);
    for (size_t i = 0; i < IC_COUNT(patterns); i++)
        if (ic_json_count(ic_json_get(json, patterns[i])) > 0)
            return unsupported(path, patterns[i]);
    double r = ic_json_number(ic_json_get(json, "r"), a->rank);
    if (r != a->rank)
        return ic_fail(ICAE_EFORMAT, "%.300s: 'r' is %g, the LoRA matrices have rank %d", path, r,
                       a->rank);
    double alpha = ic_json_number(ic_json_get(json, "lora_alpha"), 0);
    if (!(alpha > 0 && alpha < 1e9))
        return ic_fail(ICAE_EFORMAT, "%.300s: 'lora_alpha' is missing or no number above 0", path);
    if (a->alpha != 0 && a->alpha != (float)alpha)
        return ic_fail(ICAE_EFORMAT, "%.300s: 'lora_alpha' is %g, the adapter's metadata say %g",
                       path, alpha, (double)a->alpha);
    a->alpha = (float)alpha;
    const ic_json *targets = ic_json_get(json, "target_modules");
    for (const ic_json *t = ic_json_first(targets); t; t = ic_json_next(t)) {
        const char *name = ic_json_string(t);
        char list[160], one[40];
        snprintf(list, sizeof list, ",%s,", a->targets);
        snprintf(one, sizeof one, ",%.30s,", name ? name : "?");
        if (!strstr(list, one))
            return ic_fail(ICAE_EFORMAT,
                           "%.300s: target module '%.60s' has no LoRA matrices, there are %s", path,
                           name ? name : "?", a->targets);
    }
    return ICAE_OK;
}

/* The config beside the adapter file, if there is one. */
static int read_peft_config(icae_adapter *a)
{
    int rc = ICAE_OK;
    ic_map map = {0};
    ic_json *json = NULL;
    const char *slash = strrchr(a->path, '/');
    char *path =
        ic_format("%.*sadapter_config.json", slash ? (int)(slash - a->path) + 1 : 0, a->path);
    if (!path)
        return ICAE_ENOMEM;
    if (!ic_path_exists(path))
        goto done;
    IC_TRY(ic_map_open(&map, path));
    IC_TRY(ic_json_parse(&json, (const char *)map.data, map.size, path));
    IC_TRY(read_peft(a, json, path));
done:
    ic_json_free(json);
    ic_map_close(&map);
    ic_free(path);
    return rc;
}

/* ---- settings ---------------------------------------------------------------------------------
 */

static int contradiction(const icae_adapter *a, const char *what, double asked, double has)
{
    return ic_fail(ICAE_EINVAL, "%s %g was asked for, adapter %.300s has %g", what, asked, a->path,
                   has);
}

static bool trained_for(const icae_adapter *a, float rate)
{
    for (int i = 0; i < a->rates_count; i++)
        if (a->rates[i] == rate)
            return true;
    return false;
}

/* A choice between two words that the file may already have made. */
static int settle_word(bool *value, const icae_adapter *a, const char *key, const char *asked,
                       const char *no, const char *yes)
{
    if (!asked)
        return ICAE_OK;
    if (strcmp(asked, no) && strcmp(asked, yes))
        return ic_fail(ICAE_EINVAL, "%s '%.40s': expected %s or %s", key, asked, no, yes);
    bool wanted = !strcmp(asked, yes);
    if (find(a, key) && wanted != *value)
        return ic_fail(ICAE_EINVAL, "%s %s was asked for, adapter %.300s has %s", key, asked,
                       a->path, *value ? yes : no);
    *value = wanted;
    return ICAE_OK;
}

/* The caller's options, then the published values, for what is still unknown. */
static int settle(icae_adapter *a, const icae_adapter_options *o)
{
    if (o->k && o->k != a->k)
        return contradiction(a, "k", o->k, a->k);
    if (o->rate != 0 && a->rate != 0 && o->rate != a->rate && !trained_for(a, o->rate))
        return contradiction(a, "rate", (double)o->rate, (double)a->rate);
    if (o->alpha != 0 && a->alpha != 0 && o->alpha != a->alpha)
        return contradiction(a, "alpha", (double)o->alpha, (double)a->alpha);
    int rc = settle_word(&a->spread, a, "positions", o->positions, "sequential", "spread");
    if (rc == ICAE_OK)
        rc = settle_word(&a->proportional, a, "slots", o->slots, "fixed", "proportional");
    if (rc < 0)
        return rc;
    if (o->lm_token && !find(a, "lm_token"))
        a->lm_token = true;
    if (o->rate != 0)
        a->rate = o->rate;
    if (o->alpha != 0)
        a->alpha = o->alpha;
    if (a->rate == 0)
        a->rate = a->rates_count > 0 ? a->rates[0] : PUBLISHED_RATE;
    if (a->alpha == 0)
        a->alpha = PUBLISHED_ALPHA;
    if (!possible_rate(a->rate))
        return ic_fail(ICAE_EINVAL, "rate %g: expected 1 to 65536 tokens a slot", (double)a->rate);
    if (!(a->alpha > 0) || !isfinite(a->alpha))
        return ic_fail(ICAE_EINVAL, "alpha %g: expected a number above 0", (double)a->alpha);
    if ((double)a->k * (double)a->rate > MAX_SEGMENT)
        return ic_fail(ICAE_EFORMAT, "%.300s: k %d and rate %g make segments longer than %d tokens",
                       a->path, a->k, (double)a->rate, MAX_SEGMENT);
    if (!strcmp(a->layout, "v1") && a->span == 0)
        a->span = (int)((float)a->k * a->rate); /* it never saw more than one segment */
    a->set = (ic_lora_set){.scale = a->alpha / (float)a->rank, .lora = a->lora};
    return ICAE_OK;
}

/* ---- opening ----------------------------------------------------------------------------------
 */

/* In a folder: our name, then PEFT's. */
static int path_in_folder(char **out, const char *folder)
{
    static const char *const names[] = {"icae.safetensors", "adapter_model.safetensors"};
    for (size_t i = 0; i < IC_COUNT(names); i++) {
        char *path = ic_path_join(folder, names[i]);
        if (!path)
            return ICAE_ENOMEM;
        if (ic_path_exists(path)) {
            *out = path;
            return ICAE_OK;
        }
        ic_free(path);
    }
    return ic_fail(ICAE_ENOTFOUND,
                   "the folder %.300s holds no icae.safetensors; give an adapter file", folder);
}

static int find_path(char **out, const char *path, const icae_model *m)
{
    if (!path) {
        char *bundled = ic_path_join(m->path, "icae.safetensors");
        if (!bundled)
            return ICAE_ENOMEM;
        *out = bundled;
        if (ic_path_exists(bundled))
            return ICAE_OK;
        return ic_fail(ICAE_ENOTFOUND,
                       "the model %.300s has no icae.safetensors beside it; give an adapter file",
                       m->path);
    }
    if (ic_path_is_folder(path))
        return path_in_folder(out, path);
    *out = ic_strdup(path);
    return *out ? ICAE_OK : ICAE_ENOMEM;
}

/* Which container a file is shows its first bytes, not its name: a zip, or the pickle of old
 * versions of torch (which pt.c refuses by name). Both could be sizes of a safetensors header. */
static bool is_pt(const ic_map *map)
{
    return map->size > 8 && map->data[8] != '{' &&
           (memcmp(map->data, "PK\3\4", 4) == 0 || memcmp(map->data, "\x80\2\x8a\x0a", 4) == 0);
}

static int open_file(icae_adapter *a, const ic_tensor **tensors, size_t *count, bool *pt)
{
    ic_map map;
    int rc = ic_map_open(&map, a->path);
    if (rc < 0)
        return rc;
    *pt = is_pt(&map);
    if (*pt) {
        rc = ic_pt_read(&a->pt, &map, a->path);
        *tensors = a->pt.tensors;
        *count = a->pt.count;
    } else {
        rc = ic_safetensors_read(&a->file, &map, a->path);
        *tensors = a->file.tensors;
        *count = a->file.count;
    }
    return rc;
}

static int open_all(icae_adapter *a, const icae_adapter_options *o)
{
    int rc = ICAE_OK;
    bool pt;
    const ic_tensor *tensors;
    size_t count;
    ic_adapter_found found = {0};
    IC_TRY(open_file(a, &tensors, &count, &pt));
    IC_TRY(read_format(a));
    IC_TRY(ic_adapter_bind(a, &found, tensors, count));
    IC_TRY(read_metadata(a, pt && !found.checkpoint2));
    if (found.peft)
        IC_TRY(read_peft_config(a));
    IC_TRY(settle(a, o));
    IC_TRY(ic_adapter_identify(a));
done:
    return rc;
}

int icae_adapter_open(icae_adapter **out, const char *path, const icae_model *model,
                      const icae_adapter_options *options)
{
    int rc = ICAE_OK;
    static const icae_adapter_options defaults;
    if (!model)
        return ic_fail(ICAE_EINVAL, "an adapter is opened for a model: none was given");
    icae_adapter *a = ic_alloc(1, sizeof *a);
    if (!a)
        return ICAE_ENOMEM;
    a->model = model;
    IC_TRY(find_path(&a->path, path, model));
    IC_TRY(open_all(a, options ? options : &defaults));
    *out = a;
    return ICAE_OK;
done:
    icae_adapter_free(a);
    return rc;
}

void icae_adapter_free(icae_adapter *a)
{
    if (!a)
        return;
    for (size_t i = 0; a->tensors && i < a->tensor_count; i++)
        ic_free(a->tensors[i].name);
    ic_free(a->tensors);
    ic_free(a->lora);
    for (size_t i = 0; i < a->owned_count; i++)
        ic_free(a->owned[i]);
    ic_free(a->owned);
    ic_safetensors_close(&a->file);
    ic_pt_close(&a->pt);
    ic_free(a->path);
    ic_free(a);
}

bool ic_adapter_plain(const icae_adapter *a)
{
    return a && strcmp(a->layout, "v1") == 0;
}

icae_adapter_info icae_adapter_describe(const icae_adapter *a)
{
    icae_adapter_info info = {
        .path = a->path,
        .identity = a->identity,
        .targets = a->targets,
        .positions = a->spread ? "spread" : "sequential",
        .slots = a->proportional ? "proportional" : "fixed",
        .layout = a->layout,
        .k = a->k,
        .rank = a->rank,
        .rate = a->rate,
        .alpha = a->alpha,
        .lm_token = a->lm_token,
        .refine = a->refine,
        .expand = a->expand,
    };
    for (size_t i = 0; i < a->tensor_count; i++)
        info.parameters += (uint64_t)a->tensors[i].m.rows * (uint64_t)a->tensors[i].m.cols;
    return info;
}

/* ---- saving -----------------------------------------------------------------------------------
 */

enum { MAX_PAIRS = 18 };

typedef struct metadata {
    ic_pair pair[MAX_PAIRS];
    char value[MAX_PAIRS][160];
    size_t count;
} metadata;

static void put(metadata *m, const char *key, const char *value)
{
    snprintf(m->value[m->count], sizeof m->value[0], "%s", value);
    m->pair[m->count] = (ic_pair){key, m->value[m->count]};
    m->count++;
}

static void put_number(metadata *m, const char *key, float value)
{
    char text[32];
    ic_metadata_print(text, value);
    put(m, key, text);
}

static void put_int(metadata *m, const char *key, int value)
{
    char text[16];
    snprintf(text, sizeof text, "%d", value);
    put(m, key, text);
}

static void put_all(metadata *m, const icae_adapter *a)
{
    char rates[160] = "";
    for (int i = 0; i < a->rates_count; i++) {
        char one[32];
        size_t n = strlen(rates);
        ic_metadata_print(one, a->rates[i]);
        snprintf(rates + n, sizeof rates - n, "%s%.16s", i > 0 ? "," : "", one);
    }
    put(m, "format", FORMAT);
    put(m, "base", a->base_identity[0] ? a->base_identity : a->model->identity);
    put(m, "layout", a->layout);
    put_int(m, "k", a->k);
    put_number(m, "rate", a->rate);
    if (a->rates_count > 0)
        put(m, "rates", rates);
    put_int(m, "rank", a->rank);
    put_number(m, "alpha", a->alpha);
    put(m, "targets", a->targets);
    put(m, "positions", a->spread ? "spread" : "sequential");
    put(m, "slots", a->proportional ? "proportional" : "fixed");
    if (a->both)
        put(m, "lora", "both");
    put(m, "lm_token", a->lm_token ? "true" : "false");
    put(m, "bos", a->bos ? "true" : "false");
    put_int(m, "span", a->span);
    if (a->refine)
        put_int(m, "refine", a->refine);
    if (a->expand)
        put_int(m, "expand", a->expand);
}

/* A tensor as published; rows in another order are gathered into *copy. */
static int publish(ic_tensor *out, char **copy, const ic_adapter_tensor *t)
{
    size_t row = ic_row_bytes(t->m.dtype, (size_t)t->m.cols);
    *out = (ic_tensor){
        .name = t->name,
        .dtype = t->m.dtype,
        .rank = 2,
        .dim = {t->m.rows, t->m.cols, 1, 1},
        .data = t->m.data,
        .bytes = (size_t)t->m.rows * row,
    };
    if (!t->row_of && t->m.stride == (size_t)t->m.cols)
        return ICAE_OK;
    *copy = ic_alloc((size_t)t->m.rows, row);
    if (!*copy)
        return ICAE_ENOMEM;
    for (int i = 0; i < t->m.rows; i++)
        memcpy(*copy + (size_t)i * row, ic_adapter_row(t, i), row);
    out->data = *copy;
    return ICAE_OK;
}

int icae_adapter_save(const icae_adapter *a, const char *path)
{
    int rc = ICAE_OK;
    metadata m = {0};
    ic_tensor *tensors = ic_alloc(a->tensor_count, sizeof *tensors);
    char **copies = ic_alloc(a->tensor_count, sizeof *copies);
    if (!tensors || !copies) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (size_t i = 0; i < a->tensor_count; i++)
        IC_TRY(publish(&tensors[i], &copies[i], &a->tensors[i]));
    put_all(&m, a);
    IC_TRY(ic_safetensors_write(path, tensors, a->tensor_count, m.pair, m.count));
done:
    for (size_t i = 0; copies && i < a->tensor_count; i++)
        ic_free(copies[i]);
    ic_free(copies);
    ic_free(tensors);
    return rc;
}
