/*
 * safetensors.c - the container of weights, adapters and slots: read and written.
 *
 * Layout: header size (u64, little endian), header (JSON: name to dtype, shape, data_offsets;
 * strings under "__metadata__"), data. Owns the map and the parsed header, which holds all names.
 * Everything is checked on opening; afterwards each tensor lies inside the map.
 */
#include "format/format.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MAX_HEADER ((uint64_t)100 << 20)
#define METADATA   "__metadata__"

typedef struct owned {
    ic_json *header;
    ic_index index;
    char *path;
} owned;

/* ---- reading --------------------------------------------------------------------------------- */

static uint64_t u64_at(const unsigned char *p)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

/* A count or offset: a whole number that a double still holds exactly. */
static bool whole_number(int64_t *out, const ic_json *node)
{
    double v = ic_json_number(node, -1);
    if (!(v >= 0 && v <= 0x1p53))
        return false;
    *out = (int64_t)v;
    return (double)*out == v;
}

static int read_dtype(ic_tensor *t, const ic_json *node, const char *path)
{
    const char *name = ic_json_string(node);
    if (!name)
        return ic_fail(ICAE_EFORMAT, "%.300s: tensor '%.200s' has no dtype", path, t->name);
    if (strcmp(name, "BOOL") == 0)
        name = "U8";
    for (int i = 0; i < IC_DTYPES; i++) {
        if (!ic_dtypes[i].quantised && strcmp(name, ic_dtypes[i].name) == 0) {
            t->dtype = (ic_dtype)i;
            return ICAE_OK;
        }
    }
    return ic_fail(ICAE_EUNSUPPORTED,
                   "%.300s: tensor '%.200s' has dtype '%.40s'; known are F64, F32, F16, BF16, I64, "
                   "I32, I8, U8, BOOL",
                   path, t->name, name);
}

static int read_shape(ic_tensor *t, const ic_json *shape, const char *path)
{
    if (!ic_json_is_array(shape))
        return ic_fail(ICAE_EFORMAT, "%.300s: tensor '%.200s' has no shape", path, t->name);
    for (int i = 0; i < 4; i++)
        t->dim[i] = 1;
    for (const ic_json *d = ic_json_first(shape); d; d = ic_json_next(d)) {
        if (t->rank == 4)
            return ic_fail(ICAE_EUNSUPPORTED, "%.300s: tensor '%.200s' has more than 4 dimensions",
                           path, t->name);
        if (!whole_number(&t->dim[t->rank], d))
            return ic_fail(ICAE_EFORMAT,
                           "%.300s: tensor '%.200s': dimension %d is no whole number of 0 or more",
                           path, t->name, t->rank);
        t->rank++;
    }
    return ic_tensor_measure(t, path);
}

static int read_tensor(ic_tensor *t, const ic_json *entry, const unsigned char *data, size_t size,
                       const char *path)
{
    int rc = ICAE_OK;
    t->name = ic_json_key(entry);
    if (!ic_json_is_object(entry))
        return ic_fail(ICAE_EFORMAT, "%.300s: tensor '%.200s' is no JSON object", path, t->name);
    IC_TRY(read_dtype(t, ic_json_get(entry, "dtype"), path));
    IC_TRY(read_shape(t, ic_json_get(entry, "shape"), path));

    const ic_json *offsets = ic_json_get(entry, "data_offsets");
    const ic_json *first = ic_json_is_array(offsets) ? ic_json_first(offsets) : NULL;
    int64_t begin, end;
    if (!first || ic_json_count(offsets) != 2 || !whole_number(&begin, first) ||
        !whole_number(&end, ic_json_next(first)))
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: tensor '%.200s': data_offsets are not two whole numbers", path,
                       t->name);
    if (begin > end || (uint64_t)end > size)
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: tensor '%.200s': data offsets %" PRId64 " to %" PRId64
                       " are outside the file's %zu bytes of data",
                       path, t->name, begin, end, size);
    if ((uint64_t)(end - begin) != t->bytes)
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: tensor '%.200s': %" PRId64
                       " bytes of data where its shape and dtype need %zu",
                       path, t->name, end - begin, t->bytes);
    t->data = data + begin;
done:
    return rc;
}

static int read_metadata(ic_safetensors *st, const ic_json *node)
{
    if (!ic_json_is_object(node))
        return ic_fail(ICAE_EFORMAT, "%.300s: " METADATA " is no JSON object", st->path);
    if (st->metadata)
        return ic_fail(ICAE_EFORMAT, "%.300s: " METADATA " stands twice in the header", st->path);
    st->metadata = ic_alloc(ic_json_count(node) + 1, sizeof *st->metadata);
    if (!st->metadata)
        return ICAE_ENOMEM;
    for (const ic_json *m = ic_json_first(node); m; m = ic_json_next(m)) {
        ic_pair pair = {ic_json_key(m), ic_json_string(m)};
        if (!pair.value)
            return ic_fail(ICAE_EFORMAT, "%.300s: metadata '%.200s' is no string", st->path,
                           pair.key);
        st->metadata[st->metadata_count++] = pair;
    }
    return ICAE_OK;
}

static int read_header(ic_safetensors *st)
{
    owned *o = st->owned;
    if (st->map.size < 8)
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: %zu bytes are too few for a safetensors file (expected 8 and more)",
                       st->path, st->map.size);
    uint64_t header = u64_at(st->map.data);
    if (header > MAX_HEADER)
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: no safetensors file: its header would have %" PRIu64
                       " bytes, at most 100 MiB are allowed",
                       st->path, header);
    if (header > st->map.size - 8)
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: truncated: the header has %" PRIu64
                       " bytes, the file only %zu behind byte 8",
                       st->path, header, st->map.size - 8);
    const unsigned char *data = st->map.data + 8 + header;
    size_t size = st->map.size - 8 - (size_t)header;
    int rc = ICAE_OK;
    IC_TRY(ic_json_parse(&o->header, (const char *)st->map.data + 8, (size_t)header, st->path));
    if (!ic_json_is_object(o->header))
        return ic_fail(ICAE_EFORMAT, "%.300s: the safetensors header is no JSON object", st->path);
    st->tensors = ic_alloc(ic_json_count(o->header) + 1, sizeof *st->tensors);
    if (!st->tensors)
        return ICAE_ENOMEM;
    for (const ic_json *e = ic_json_first(o->header); e; e = ic_json_next(e)) {
        if (strcmp(ic_json_key(e), METADATA) == 0)
            IC_TRY(read_metadata(st, e));
        else
            IC_TRY(read_tensor(&st->tensors[st->count++], e, data, size, st->path));
    }
    IC_TRY(ic_index_build(&o->index, st->tensors, st->count, st->path));
    IC_TRY(ic_tensors_disjoint(st->tensors, st->count, data, size, true, st->path));
done:
    return rc;
}

int ic_safetensors_read(ic_safetensors *out, ic_map *map, const char *path)
{
    *out = (ic_safetensors){.map = *map};
    *map = (ic_map){0};
    int rc = ICAE_ENOMEM;
    owned *o = out->owned = ic_alloc(1, sizeof *o);
    if (o)
        out->path = o->path = ic_strdup(path);
    if (out->path)
        rc = read_header(out);
    if (rc < 0)
        ic_safetensors_close(out);
    return rc;
}

int ic_safetensors_open(ic_safetensors *out, const char *path)
{
    *out = (ic_safetensors){0};
    ic_map map;
    int rc = ic_map_open(&map, path);
    return rc < 0 ? rc : ic_safetensors_read(out, &map, path);
}

void ic_safetensors_close(ic_safetensors *st)
{
    owned *o = st->owned;
    if (o) {
        ic_json_free(o->header);
        ic_index_free(&o->index);
        ic_free(o->path);
    }
    ic_free(o);
    ic_free(st->tensors);
    ic_free(st->metadata);
    ic_map_close(&st->map);
    *st = (ic_safetensors){0};
}

const ic_tensor *ic_safetensors_find(const ic_safetensors *st, const char *name)
{
    const owned *o = st->owned;
    return o ? ic_index_find(&o->index, name) : NULL;
}

const char *ic_safetensors_metadata(const ic_safetensors *st, const char *key)
{
    for (size_t i = 0; i < st->metadata_count; i++)
        if (strcmp(st->metadata[i].key, key) == 0)
            return st->metadata[i].value;
    return NULL;
}

/* ---- writing --------------------------------------------------------------------------------- */

static int add_quoted(ic_buffer *b, const char *s)
{
    return ic_json_quote(b, s, strlen(s));
}

static int add_tensor(ic_buffer *b, const ic_tensor *t, uint64_t *offset)
{
    int rc = ICAE_OK;
    IC_TRY(add_quoted(b, t->name));
    IC_TRY(ic_buffer_addf(b, ":{\"dtype\":\"%s\",\"shape\":[", ic_dtypes[t->dtype].name));
    for (int i = 0; i < t->rank; i++)
        IC_TRY(ic_buffer_addf(b, "%s%" PRId64, i > 0 ? "," : "", t->dim[i]));
    IC_TRY(ic_buffer_addf(b, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", *offset,
                          *offset + t->bytes));
    *offset += t->bytes;
done:
    return rc;
}

static int check_tensor(const ic_tensor *t, const char *path)
{
    ic_tensor measured = *t;
    if (t->rank < 0 || t->rank > 4 || ic_dtypes[t->dtype].quantised)
        return ic_fail(ICAE_EINVAL, "%.300s: tensor '%.200s' (%s, rank %d) cannot be written", path,
                       t->name, ic_dtypes[t->dtype].name, t->rank);
    int rc = ic_tensor_measure(&measured, path);
    if (rc == ICAE_OK && measured.bytes != t->bytes)
        return ic_fail(ICAE_EINVAL,
                       "%.300s: tensor '%.200s' has %zu bytes, its shape and dtype need %zu", path,
                       t->name, t->bytes, measured.bytes);
    return rc;
}

/* Header size, header, and spaces up to a multiple of 64. */
static int build_header(ic_buffer *b, const ic_tensor *tensors, size_t count,
                        const ic_pair *metadata, size_t metadata_count)
{
    int rc = ICAE_OK;
    uint64_t offset = 0;
    const char *comma = "";
    IC_TRY(ic_buffer_add(b, "\0\0\0\0\0\0\0\0{", 9));
    if (metadata_count > 0) {
        IC_TRY(ic_buffer_addf(b, "\"" METADATA "\":{"));
        for (size_t i = 0; i < metadata_count; i++) {
            IC_TRY(ic_buffer_addf(b, "%s", i > 0 ? "," : ""));
            IC_TRY(add_quoted(b, metadata[i].key));
            IC_TRY(ic_buffer_add(b, ":", 1));
            IC_TRY(add_quoted(b, metadata[i].value));
        }
        IC_TRY(ic_buffer_add(b, "}", 1));
        comma = ",";
    }
    for (size_t i = 0; i < count; i++, comma = ",") {
        IC_TRY(ic_buffer_addf(b, "%s", comma));
        IC_TRY(add_tensor(b, &tensors[i], &offset));
    }
    IC_TRY(ic_buffer_add(b, "}", 1));
    while (b->size % 64 != 0)
        IC_TRY(ic_buffer_add(b, " ", 1));
    uint64_t header = b->size - 8;
    for (int i = 0; i < 8; i++)
        b->data[i] = (char)(header >> 8 * i);
done:
    return rc;
}

/* Checks what is to be written, and makes its header. */
static int begin(ic_buffer *header, const char *path, const ic_tensor *tensors, size_t count,
                 const ic_pair *metadata, size_t metadata_count)
{
    int rc = ICAE_OK;
    ic_index index = {0};
    header->limit = (size_t)MAX_HEADER + 8;
    for (size_t i = 0; i < count; i++)
        IC_TRY(check_tensor(&tensors[i], path));
    IC_TRY(ic_index_build(&index, tensors, count, path)); /* for names that stand twice */
    IC_TRY(build_header(header, tensors, count, metadata, metadata_count));
done:
    ic_index_free(&index);
    return rc;
}

int ic_safetensors_write(const char *path, const ic_tensor *tensors, size_t count,
                         const ic_pair *metadata, size_t metadata_count)
{
    int rc = ICAE_OK;
    ic_buffer header = {0};
    ic_file file = {0};
    IC_TRY(begin(&header, path, tensors, count, metadata, metadata_count));
    IC_TRY(ic_file_create(&file, path));
    IC_TRY(ic_file_write(&file, header.data, header.size));
    for (size_t i = 0; i < count; i++)
        IC_TRY(ic_file_write(&file, tensors[i].data, tensors[i].bytes));
    IC_TRY(ic_file_commit(&file));
done:
    ic_file_abandon(&file);
    ic_buffer_free(&header);
    return rc;
}

int ic_safetensors_build(ic_buffer *out, const char *name, const ic_tensor *tensors, size_t count,
                         const ic_pair *metadata, size_t metadata_count)
{
    int rc = ICAE_OK;
    size_t data = 0;
    IC_TRY(begin(out, name, tensors, count, metadata, metadata_count));
    out->limit = 0;
    for (size_t i = 0; i < count; i++)
        data += tensors[i].bytes;
    IC_TRY(ic_buffer_grow(out, data));
    for (size_t i = 0; i < count; i++)
        IC_TRY(ic_buffer_add(out, tensors[i].data, tensors[i].bytes));
done:
    if (rc < 0)
        ic_buffer_free(out);
    return rc;
}
