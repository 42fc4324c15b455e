/*
 * gguf.c - GGUF files, versions 2 and 3, read.
 *
 * Layout: magic, version, counts; key-value pairs; tensor entries (name, dimensions innermost
 * first, type, offset); data. All little endian. Owns the map, the tables and zero-terminated
 * copies of keys and names; values stay in the map, checked, so that reading them later cannot
 * fail.
 */
#include "format/format.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    TYPE_U8,
    TYPE_I8,
    TYPE_U16,
    TYPE_I16,
    TYPE_U32,
    TYPE_I32,
    TYPE_F32,
    TYPE_BOOL,
    TYPE_STRING,
    TYPE_ARRAY,
    TYPE_U64,
    TYPE_I64,
    TYPE_F64,
    TYPES
};

/* Bytes of a value; strings and arrays: the least they take. */
static const size_t type_bytes[TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};

#define MAX_NAME          65535
#define MAX_ENTRIES       ((uint64_t)1 << 20) /* of tensors and of values: far beyond any model */
#define LEAST_VALUE       (8 + 4 + 1)         /* key length, type, a byte */
#define LEAST_TENSOR      (8 + 4 + 4 + 8)     /* name length, rank, type, offset */
#define DEFAULT_ALIGNMENT 32

/* Tensor types by their number; those we read have an ic_dtype. */
static const struct tensor_type {
    const char *name;
    int dtype; /* -1: not read */
} tensor_types[] = {
    [0] = {"F32", IC_F32},    [1] = {"F16", IC_F16},    [2] = {"Q4_0", IC_Q4_0},
    [3] = {"Q4_1", -1},       [6] = {"Q5_0", -1},       [7] = {"Q5_1", -1},
    [8] = {"Q8_0", IC_Q8_0},  [9] = {"Q8_1", -1},       [10] = {"Q2_K", -1},
    [11] = {"Q3_K", -1},      [12] = {"Q4_K", IC_Q4_K}, [13] = {"Q5_K", IC_Q5_K},
    [14] = {"Q6_K", IC_Q6_K}, [15] = {"Q8_K", -1},      [16] = {"IQ2_XXS", -1},
    [17] = {"IQ2_XS", -1},    [18] = {"IQ3_XXS", -1},   [19] = {"IQ1_S", -1},
    [20] = {"IQ4_NL", -1},    [21] = {"IQ3_S", -1},     [22] = {"IQ2_S", -1},
    [23] = {"IQ4_XS", -1},    [24] = {"I8", IC_I8},     [25] = {"I16", -1},
    [26] = {"I32", IC_I32},   [27] = {"I64", IC_I64},   [28] = {"F64", IC_F64},
    [29] = {"IQ1_M", -1},     [30] = {"BF16", IC_BF16}, [34] = {"TQ1_0", -1},
    [35] = {"TQ2_0", -1},     [39] = {"MXFP4", -1},
};

typedef struct owned {
    char *path;
    const ic_gguf_value **sorted; /* by key */
    ic_index index;
} owned;

/* ---- a reader that cannot leave the map ------------------------------------------------------ */

typedef struct cursor {
    const unsigned char *p, *end;
    const unsigned char *start; /* of the file */
    const char *path;
} cursor;

static size_t left(const cursor *c)
{
    return (size_t)(c->end - c->p);
}

static int truncated(const cursor *c, const char *what)
{
    return ic_fail(ICAE_EFORMAT,
                   "%.300s: truncated or damaged: %s at byte %zu passes the end of the file",
                   c->path, what, (size_t)(c->p - c->start));
}

static uint64_t little_endian(const unsigned char *p, size_t bytes)
{
    uint64_t v = 0;
    for (size_t i = bytes; i-- > 0;)
        v = v << 8 | p[i];
    return v;
}

static int take_u32(uint32_t *out, cursor *c, const char *what)
{
    if (left(c) < 4)
        return truncated(c, what);
    *out = (uint32_t)little_endian(c->p, 4);
    c->p += 4;
    return ICAE_OK;
}

static int take_u64(uint64_t *out, cursor *c, const char *what)
{
    if (left(c) < 8)
        return truncated(c, what);
    *out = little_endian(c->p, 8);
    c->p += 8;
    return ICAE_OK;
}

/* A key or name: a copy with a 0 byte behind it, freed on closing. */
static int take_name(const char **out, cursor *c, const char *what)
{
    uint64_t size;
    int rc = take_u64(&size, c, what);
    if (rc < 0)
        return rc;
    if (size > left(c))
        return truncated(c, what);
    if (size > MAX_NAME || memchr(c->p, 0, (size_t)size))
        return ic_fail(ICAE_EFORMAT, "%.300s: %s at byte %zu is too long or has a 0 byte", c->path,
                       what, (size_t)(c->p - c->start));
    *out = ic_strndup((const char *)c->p, (size_t)size);
    c->p += size;
    return *out ? ICAE_OK : ICAE_ENOMEM;
}

/* ---- values ---------------------------------------------------------------------------------- */

static int skip_string(cursor *c, const char *key)
{
    uint64_t size;
    int rc = take_u64(&size, c, key);
    if (rc < 0)
        return rc;
    if (size > left(c))
        return truncated(c, key);
    c->p += size;
    return ICAE_OK;
}

static int take_value(ic_gguf_value *v, cursor *c)
{
    int rc = ICAE_OK;
    IC_TRY(take_u32(&v->type, c, v->key));
    v->count = 1;
    uint32_t type = v->type;
    if (type == TYPE_ARRAY) {
        IC_TRY(take_u32(&v->array_type, c, v->key));
        IC_TRY(take_u64(&v->count, c, v->key));
        type = v->array_type;
    }
    if (type >= TYPES || type == TYPE_ARRAY)
        return ic_fail(type == TYPE_ARRAY ? ICAE_EUNSUPPORTED : ICAE_EFORMAT,
                       "%.300s: key '%.200s' has value type %" PRIu32 "%s", c->path, v->key, type,
                       type == TYPE_ARRAY ? " (an array of arrays)" : ", expected 0 to 12");
    if (v->count > left(c) / type_bytes[type])
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: key '%.200s': %" PRIu64 " values do not fit the file's %zu bytes",
                       c->path, v->key, v->count, left(c));
    v->data = c->p;
    if (type != TYPE_STRING)
        c->p += v->count * type_bytes[type];
    else
        for (uint64_t i = 0; i < v->count; i++)
            IC_TRY(skip_string(c, v->key));
done:
    return rc;
}

static int by_key(const void *a, const void *b)
{
    return strcmp((*(const ic_gguf_value *const *)a)->key, (*(const ic_gguf_value *const *)b)->key);
}

static int index_values(ic_gguf *g)
{
    owned *o = g->owned;
    o->sorted = ic_alloc(g->value_count + 1, sizeof(ic_gguf_value *));
    if (!o->sorted)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < g->value_count; i++)
        o->sorted[i] = &g->values[i];
    qsort(o->sorted, g->value_count, sizeof *o->sorted, by_key);
    for (size_t i = 1; i < g->value_count; i++)
        if (strcmp(o->sorted[i - 1]->key, o->sorted[i]->key) == 0)
            return ic_fail(ICAE_EFORMAT, "%.300s: key '%.200s' stands twice", g->path,
                           o->sorted[i]->key);
    return ICAE_OK;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static int take_dimensions(ic_tensor *t, cursor *c)
{
    int rc = ICAE_OK;
    uint32_t rank;
    IC_TRY(take_u32(&rank, c, t->name));
    if (rank > 4)
        return ic_fail(ICAE_EUNSUPPORTED,
                       "%.300s: tensor '%.200s' has %" PRIu32 " dimensions, at most 4 are possible",
                       c->path, t->name, rank);
    t->rank = (int)rank;
    for (int i = 0; i < 4; i++)
        t->dim[i] = 1;
    for (int i = t->rank - 1; i >= 0; i--) {
        uint64_t d;
        IC_TRY(take_u64(&d, c, t->name));
        if (d > INT64_MAX)
            return ic_fail(ICAE_EFORMAT, "%.300s: tensor '%.200s' has a dimension of %" PRIu64,
                           c->path, t->name, d);
        t->dim[i] = (int64_t)d;
    }
done:
    return rc;
}

static int take_type(ic_tensor *t, cursor *c)
{
    uint32_t type;
    int rc = take_u32(&type, c, t->name);
    if (rc < 0)
        return rc;
    if (type >= IC_COUNT(tensor_types) || !tensor_types[type].name)
        return ic_fail(ICAE_EUNSUPPORTED, "%.300s: tensor '%.200s' has unknown type %" PRIu32,
                       c->path, t->name, type);
    if (tensor_types[type].dtype < 0)
        return ic_fail(ICAE_EUNSUPPORTED,
                       "%.300s: tensor '%.200s' has type %s; supported are F32, F16, BF16, F64, "
                       "Q8_0, Q4_0, Q4_K, Q5_K, Q6_K and integers",
                       c->path, t->name, tensor_types[type].name);
    t->dtype = (ic_dtype)tensor_types[type].dtype;
    return ICAE_OK;
}

/* `offset`: kept aside until the start of the data is known. */
static int take_tensor(ic_tensor *t, uint64_t *offset, cursor *c)
{
    int rc = ICAE_OK;
    IC_TRY(take_name(&t->name, c, "the name of a tensor"));
    IC_TRY(take_dimensions(t, c));
    IC_TRY(take_type(t, c));
    IC_TRY(take_u64(offset, c, t->name));
    IC_TRY(ic_tensor_measure(t, c->path));
done:
    return rc;
}

/* The data starts at the next multiple of the alignment behind the entries. */
static int place_tensors(ic_gguf *g, const uint64_t *offsets, const cursor *c)
{
    owned *o = g->owned;
    const ic_gguf_value *v = ic_gguf_get(g, "general.alignment");
    if (v && v->type != TYPE_U32)
        return ic_fail(ICAE_EFORMAT, "%.300s: general.alignment is no 32-bit number", g->path);
    uint64_t alignment = v ? little_endian(v->data, 4) : DEFAULT_ALIGNMENT;
    if (alignment == 0 || (alignment & (alignment - 1)) != 0)
        return ic_fail(ICAE_EFORMAT, "%.300s: general.alignment is %" PRIu64 ", no power of two",
                       g->path, alignment);
    size_t header = (size_t)(c->p - c->start);
    size_t start = (header + (size_t)alignment - 1) & ~((size_t)alignment - 1);
    size_t size = start <= g->map.size ? g->map.size - start : 0;
    const unsigned char *data = g->map.data + IC_MIN(start, g->map.size);
    for (size_t i = 0; i < g->count; i++) {
        ic_tensor *t = &g->tensors[i];
        if (offsets[i] % alignment != 0)
            return ic_fail(ICAE_EFORMAT,
                           "%.300s: tensor '%.200s': offset %" PRIu64 " is no multiple of %" PRIu64,
                           g->path, t->name, offsets[i], alignment);
        if (offsets[i] > size || t->bytes > size - offsets[i])
            return ic_fail(
                ICAE_EFORMAT,
                "%.300s: truncated: tensor '%.200s' has %zu bytes at data offset %" PRIu64
                ", the file only %zu bytes of data",
                g->path, t->name, t->bytes, offsets[i], size);
        t->data = data + offsets[i];
    }
    int rc = ic_index_build(&o->index, g->tensors, g->count, g->path);
    return rc < 0 ? rc : ic_tensors_disjoint(g->tensors, g->count, data, size, false, g->path);
}

/* ---- opening --------------------------------------------------------------------------------- */

static int take_counts(ic_gguf *g, cursor *c, uint64_t *tensors, uint64_t *values)
{
    int rc = ICAE_OK;
    uint32_t version;
    if (left(c) < 4 || memcmp(c->p, "GGUF", 4) != 0)
        return ic_fail(ICAE_EFORMAT, "%.300s: no GGUF file (its first four bytes are others)",
                       g->path);
    c->p += 4;
    IC_TRY(take_u32(&version, c, "the version"));
    if (version != 2 && version != 3)
        return ic_fail(ICAE_EUNSUPPORTED,
                       "%.300s: GGUF version %" PRIu32 "%s; supported are 2 and 3", g->path,
                       version, version << 16 ? "" : " (big endian)");
    IC_TRY(take_u64(tensors, c, "the number of tensors"));
    IC_TRY(take_u64(values, c, "the number of values"));
    if (*tensors > left(c) / LEAST_TENSOR || *values > left(c) / LEAST_VALUE)
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: %" PRIu64 " tensors and %" PRIu64
                       " values do not fit a file of %zu bytes",
                       g->path, *tensors, *values, g->map.size);
    if (*tensors > MAX_ENTRIES || *values > MAX_ENTRIES)
        return ic_fail(ICAE_ELIMIT,
                       "%.300s: %" PRIu64 " tensors, %" PRIu64
                       " values: more than a model can have",
                       g->path, *tensors, *values);
done:
    return rc;
}

static int read_all(ic_gguf *g)
{
    cursor c = {g->map.data, g->map.data + g->map.size, g->map.data, g->path};
    uint64_t tensors, values;
    uint64_t *offsets = NULL;
    int rc = ICAE_OK;
    IC_TRY(take_counts(g, &c, &tensors, &values));
    g->values = ic_alloc((size_t)values + 1, sizeof *g->values);
    g->tensors = ic_alloc((size_t)tensors + 1, sizeof *g->tensors);
    offsets = ic_alloc((size_t)tensors + 1, sizeof *offsets);
    if (!g->values || !g->tensors || !offsets) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (uint64_t i = 0; i < values; i++) {
        ic_gguf_value *v = &g->values[g->value_count++];
        IC_TRY(take_name(&v->key, &c, "a key"));
        IC_TRY(take_value(v, &c));
    }
    IC_TRY(index_values(g));
    for (uint64_t i = 0; i < tensors; i++)
        IC_TRY(take_tensor(&g->tensors[g->count++], &offsets[i], &c));
    IC_TRY(place_tensors(g, offsets, &c));
done:
    ic_free(offsets);
    return rc;
}

int ic_gguf_read(ic_gguf *out, ic_map *map, const char *path)
{
    *out = (ic_gguf){.map = *map};
    *map = (ic_map){0};
    int rc = ICAE_ENOMEM;
    owned *o = out->owned = ic_alloc(1, sizeof *o);
    if (o)
        out->path = o->path = ic_strdup(path);
    if (out->path)
        rc = read_all(out);
    if (rc < 0)
        ic_gguf_close(out);
    return rc;
}

int ic_gguf_open(ic_gguf *out, const char *path)
{
    *out = (ic_gguf){0};
    ic_map map;
    int rc = ic_map_open(&map, path);
    return rc < 0 ? rc : ic_gguf_read(out, &map, path);
}

void ic_gguf_close(ic_gguf *g)
{
    owned *o = g->owned;
    if (o) {
        ic_index_free(&o->index);
        ic_free(o->sorted);
        ic_free(o->path);
    }
    for (size_t i = 0; i < g->value_count; i++)
        ic_free((char *)g->values[i].key);
    for (size_t i = 0; i < g->count; i++)
        ic_free((char *)g->tensors[i].name);
    ic_free(o);
    ic_free(g->values);
    ic_free(g->tensors);
    ic_map_close(&g->map);
    *g = (ic_gguf){0};
}

/* ---- looking up ------------------------------------------------------------------------------ */

const ic_tensor *ic_gguf_find(const ic_gguf *g, const char *name)
{
    const owned *o = g->owned;
    return o ? ic_index_find(&o->index, name) : NULL;
}

const ic_gguf_value *ic_gguf_get(const ic_gguf *g, const char *key)
{
    const owned *o = g->owned;
    if (!o || g->value_count == 0)
        return NULL;
    ic_gguf_value wanted = {.key = key};
    const ic_gguf_value *probe = &wanted;
    const ic_gguf_value **hit = bsearch(&probe, o->sorted, g->value_count, sizeof probe, by_key);
    return hit ? *hit : NULL;
}

static double number_at(const unsigned char *p, uint32_t type, double otherwise)
{
    uint64_t v = little_endian(p, type_bytes[type]);
    uint32_t low = (uint32_t)v;
    float f;
    double d;
    switch (type) {
    case TYPE_U8:
    case TYPE_U16:
    case TYPE_U32:
    case TYPE_U64:
        return (double)v;
    case TYPE_I8:
        return (int8_t)v;
    case TYPE_I16:
        return (int16_t)v;
    case TYPE_I32:
        return (int32_t)v;
    case TYPE_I64:
        return (double)(int64_t)v;
    case TYPE_BOOL:
        return v != 0;
    case TYPE_F32:
        memcpy(&f, &low, sizeof f);
        return f;
    case TYPE_F64:
        memcpy(&d, &v, sizeof d);
        return d;
    default:
        return otherwise;
    }
}

double ic_gguf_number(const ic_gguf *g, const char *key, double otherwise)
{
    const ic_gguf_value *v = ic_gguf_get(g, key);
    if (!v || v->type == TYPE_STRING || v->type == TYPE_ARRAY)
        return otherwise;
    return number_at(v->data, v->type, otherwise);
}

const char *ic_gguf_string(const ic_gguf *g, const char *key, size_t *size)
{
    const ic_gguf_value *v = ic_gguf_get(g, key);
    *size = 0;
    if (!v || v->type != TYPE_STRING)
        return NULL;
    *size = (size_t)little_endian(v->data, 8);
    return (const char *)v->data + 8;
}

const char *ic_gguf_next_string(const ic_gguf_value *array, const unsigned char **at, size_t *size)
{
    assert(array->type == TYPE_ARRAY && array->array_type == TYPE_STRING);
    (void)array;
    *size = (size_t)little_endian(*at, 8);
    const char *string = (const char *)*at + 8;
    *at += 8 + *size;
    return string;
}

double ic_gguf_element(const ic_gguf_value *array, uint64_t i)
{
    assert(array->type == TYPE_ARRAY && array->array_type != TYPE_STRING && i < array->count);
    return number_at(array->data + i * type_bytes[array->array_type], array->array_type, 0);
}
