/*
 * slots_file.c - slot files (.icae): a safetensors file with a checksum, written and read.
 *
 * docs/formats.md is the contract. A file is opened only if everything in it is possible and agrees
 * with everything else, so that nobody behind this door checks again. Knows nothing of models.
 */
#include "core/slots_file.h"
#include "core/metadata.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT        "icae-slots-1"
#define MAX_TOKENS    ((uint64_t)1 << 31)
#define MAX_WIDTH     (1 << 24)
#define MAX_TEXT_SIZE ((uint64_t)1 << 48)

enum { MAX_ENTRIES = 64 }; /* tensors or metadata of a file: a few more than are known */

/* ---- checksum ---------------------------------------------------------------------------------
 */

static int by_key(const void *a, const void *b)
{
    const ic_pair *p = *(const ic_pair *const *)a, *q = *(const ic_pair *const *)b;
    int order = strcmp(p->key, q->key);
    return order ? order : strcmp(p->value, q->value);
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const ic_tensor *const *)a)->name, (*(const ic_tensor *const *)b)->name);
}

static void add_string(ic_hash *h, const char *s)
{
    ic_hash_add(h, s, strlen(s) + 1);
}

static void add_tensor(ic_hash *h, const ic_tensor *t)
{
    char shape[4 * 24] = "";
    for (int i = 0, n = 0; i < t->rank; i++)
        n += snprintf(shape + n, sizeof shape - (size_t)n, "%s%" PRId64, i > 0 ? "," : "",
                      t->dim[i]);
    add_string(h, t->name);
    add_string(h, ic_dtypes[t->dtype].name);
    add_string(h, shape);
    ic_hash_add(h, t->data, t->bytes);
}

int ic_slots_checksum(char hex[65], const ic_tensor *tensors, size_t tensor_count,
                      const ic_pair *metadata, size_t metadata_count)
{
    const ic_pair *pairs[MAX_ENTRIES];
    const ic_tensor *list[MAX_ENTRIES];
    ic_hash *h;
    if (tensor_count > MAX_ENTRIES || metadata_count > MAX_ENTRIES)
        return ic_fail(ICAE_EFORMAT, "%zu tensors and %zu metadata entries, at most %d are allowed",
                       tensor_count, metadata_count, MAX_ENTRIES);
    int rc = ic_hash_new(&h);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < metadata_count; i++)
        pairs[i] = &metadata[i];
    for (size_t i = 0; i < tensor_count; i++)
        list[i] = &tensors[i];
    qsort(pairs, metadata_count, sizeof *pairs, by_key);
    qsort(list, tensor_count, sizeof *list, by_name);
    for (size_t i = 0; i < metadata_count; i++) {
        if (strcmp(pairs[i]->key, "checksum") == 0)
            continue;
        add_string(h, pairs[i]->key);
        add_string(h, pairs[i]->value);
    }
    for (size_t i = 0; i < tensor_count; i++)
        add_tensor(h, list[i]);
    ic_hash_finish(h, hex);
    return ICAE_OK;
}

/* ---- writing ----------------------------------------------------------------------------------
 */

enum { TENSORS = 7, PAIRS = 16 };

/* A file in the making: tensors and metadata with the memory behind them. */
typedef struct writing {
    ic_tensor tensor[TENSORS];
    size_t tensors;
    ic_pair pair[PAIRS];
    char value[PAIRS][65];
    size_t pairs;
    double *loss;
    int32_t *segments, *fidelity;
} writing;

static void put_tensor(writing *w, const char *name, ic_dtype dtype, const void *data,
                       uint64_t rows, int64_t cols)
{
    uint64_t values = rows * (uint64_t)IC_MAX(cols, 1);
    w->tensor[w->tensors++] = (ic_tensor){
        .name = name,
        .dtype = dtype,
        .rank = cols ? 2 : 1,
        .dim = {(int64_t)rows, cols ? cols : 1, 1, 1},
        .data = data,
        .bytes = ic_row_bytes(dtype, (size_t)values),
    };
}

static void put_string(writing *w, const char *key, const char *value)
{
    char *copy = w->value[w->pairs];
    snprintf(copy, sizeof w->value[0], "%s", value);
    w->pair[w->pairs++] = (ic_pair){key, copy};
}

static void put_number(writing *w, const char *key, uint64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, value);
    put_string(w, key, text);
}

static void put_metadata(writing *w, const icae_slots *s)
{
    char rate[32];
    ic_metadata_print(rate, s->rate);
    put_string(w, "format", FORMAT);
    put_string(w, "base", s->base);
    put_string(w, "adapter", s->adapter);
    put_number(w, "tokens", s->tokens);
    put_number(w, "text_size", s->text_size);
    put_string(w, "text_sha256", s->text_sha256);
    put_string(w, "rate", rate);
    put_number(w, "span", s->span);
    if (s->refined)
        put_number(w, "refined", s->refined);
    if (s->measured)
        put_number(w, "exact_prefix", s->prefix);
}

/* Large numbers first, so that every tensor is aligned for its type. */
static int put_tensors(writing *w, const icae_slots *s)
{
    uint32_t n = s->segments;
    w->segments = ic_alloc(n, 2 * sizeof *w->segments);
    w->fidelity = ic_alloc(n, 2 * sizeof *w->fidelity);
    w->loss = ic_alloc(n, sizeof *w->loss);
    if (!w->segments || !w->fidelity || !w->loss)
        return ICAE_ENOMEM;
    for (uint32_t i = 0; i < n; i++) {
        w->segments[2 * i] = (int32_t)s->segment[i].tokens;
        w->segments[2 * i + 1] = (int32_t)s->segment[i].slots;
        w->fidelity[2 * i] = (int32_t)s->segment[i].right;
        w->fidelity[2 * i + 1] = (int32_t)s->segment[i].prefix;
        w->loss[i] = s->segment[i].loss_sum;
    }
    if (s->measured)
        put_tensor(w, "loss", IC_F64, w->loss, n, 0);
    if (s->scales)
        put_tensor(w, "scales", IC_F32, s->scales, s->count, 0);
    put_tensor(w, "segments", IC_I32, w->segments, n, 2);
    if (s->measured) {
        put_tensor(w, "fidelity", IC_I32, w->fidelity, n, 2);
        put_tensor(w, "doubtful", IC_I32, s->doubtful, s->doubtful_count, 0);
    }
    put_tensor(w, "slots", s->dtype, s->values, s->count, s->width);
    if (s->corrections.size > 0)
        put_tensor(w, "corrections", IC_U8, s->corrections.data, s->corrections.size, 0);
    return ICAE_OK;
}

/* All that the file will hold; *w is freed by end(). */
static int begin(writing **out, const icae_slots *s, const char *path)
{
    int rc = ICAE_OK;
    char checksum[65];
    if (s->dtype != IC_BF16 && s->dtype != IC_I8)
        return ic_fail(ICAE_EINVAL,
                       "%.300s: slots in %s are for memory only, files hold BF16 or I8", path,
                       ic_dtypes[s->dtype].name);
    writing *w = *out = ic_alloc(1, sizeof *w);
    if (!w)
        return ICAE_ENOMEM;
    put_metadata(w, s);
    IC_TRY(put_tensors(w, s));
    IC_TRY(ic_slots_checksum(checksum, w->tensor, w->tensors, w->pair, w->pairs));
    put_string(w, "checksum", checksum);
done:
    return rc;
}

static void end(writing *w)
{
    if (!w)
        return;
    ic_free(w->segments);
    ic_free(w->fidelity);
    ic_free(w->loss);
    ic_free(w);
}

int icae_slots_save(const icae_slots *s, const char *path)
{
    writing *w = NULL;
    int rc = begin(&w, s, path);
    if (rc == ICAE_OK)
        rc = ic_safetensors_write(path, w->tensor, w->tensors, w->pair, w->pairs);
    end(w);
    return rc;
}

int icae_slots_write(char **data, size_t *size, const icae_slots *s)
{
    writing *w = NULL;
    ic_buffer bytes = {0};
    int rc = begin(&w, s, "slots");
    if (rc == ICAE_OK)
        rc = ic_safetensors_build(&bytes, "slots", w->tensor, w->tensors, w->pair, w->pairs);
    end(w);
    *data = bytes.data;
    *size = bytes.size;
    return rc;
}

/* ---- reading: metadata ------------------------------------------------------------------------
 */

static int wrong(const ic_safetensors *st, const char *key, const char *value, const char *expected)
{
    return ic_fail(ICAE_EFORMAT, "%.300s: metadata '%s' is '%.80s', expected %s", st->path, key,
                   value ? value : "(absent)", expected);
}

static int read_u64(uint64_t *out, const ic_safetensors *st, const char *key, uint64_t least,
                    uint64_t most)
{
    const char *text = ic_safetensors_metadata(st, key);
    char expected[80];
    if (text && ic_metadata_u64(out, text) && *out >= least && *out <= most)
        return ICAE_OK;
    snprintf(expected, sizeof expected, "a number from %" PRIu64 " to %" PRIu64, least, most);
    return wrong(st, key, text, expected);
}

static int read_sha256(char out[65], const ic_safetensors *st, const char *key)
{
    const char *text = ic_safetensors_metadata(st, key);
    if (!text || !ic_metadata_sha256(text))
        return wrong(st, key, text, "64 hexadecimal digits");
    memcpy(out, text, 65);
    return ICAE_OK;
}

static int read_metadata(icae_slots *s, const ic_safetensors *st)
{
    int rc = ICAE_OK;
    IC_TRY(read_sha256(s->base, st, "base"));
    IC_TRY(read_sha256(s->adapter, st, "adapter"));
    IC_TRY(read_sha256(s->text_sha256, st, "text_sha256"));
    IC_TRY(read_u64(&s->tokens, st, "tokens", 1, MAX_TOKENS));
    IC_TRY(read_u64(&s->text_size, st, "text_size", 0, MAX_TEXT_SIZE));
    IC_TRY(read_u64(&s->span, st, "span", 1, UINT64_MAX));
    if (ic_safetensors_metadata(st, "refined")) {
        uint64_t steps;
        IC_TRY(read_u64(&steps, st, "refined", 1, IC_MOST_REFINING));
        s->refined = (uint32_t)steps;
    }
    const char *rate = ic_safetensors_metadata(st, "rate");
    if (!rate || !ic_metadata_float(&s->rate, rate) || !(s->rate >= 1 && s->rate <= IC_MAX_RATE))
        return wrong(st, "rate", rate, "a number from 1 to 65536");
    if (ic_safetensors_find(st, "fidelity")) {
        IC_TRY(read_u64(&s->prefix, st, "exact_prefix", 0, s->tokens));
        s->measured = true;
    }
done:
    return rc;
}

static int check_format(const ic_safetensors *st)
{
    char hex[65];
    const char *format = ic_safetensors_metadata(st, "format");
    const char *checksum = ic_safetensors_metadata(st, "checksum");
    if (!format || strncmp(format, "icae-slots-", 11) != 0)
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: not a slot file: metadata 'format' is '%.40s', expected '" FORMAT
                       "'",
                       st->path, format ? format : "(absent)");
    if (strcmp(format, FORMAT) != 0)
        return ic_fail(ICAE_EUNSUPPORTED, "%.300s: format '%.40s'; this version reads '" FORMAT "'",
                       st->path, format);
    if (st->count > MAX_ENTRIES || st->metadata_count > MAX_ENTRIES)
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: %zu tensors and %zu metadata entries are too many for a slot file",
                       st->path, st->count, st->metadata_count);
    int rc = ic_slots_checksum(hex, st->tensors, st->count, st->metadata, st->metadata_count);
    if (rc < 0)
        return rc;
    if (!checksum || strcmp(checksum, hex) != 0)
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: the file is damaged: its checksum is %.12s, it should be %.12s",
                       st->path, hex, checksum ? checksum : "there");
    return ICAE_OK;
}

/* ---- reading: tensors -------------------------------------------------------------------------
 */

/* Finds a tensor [rows, cols] (cols 0: one dimension; rows negative: any). */
static int find(const ic_tensor **out, const ic_safetensors *st, const char *name, ic_dtype dtype,
                int64_t rows, int64_t cols)
{
    const ic_tensor *t = *out = ic_safetensors_find(st, name);
    if (!t)
        return ic_fail(ICAE_EFORMAT, "%.300s: tensor '%s' is missing", st->path, name);
    if (t->dtype != dtype || t->rank != (cols ? 2 : 1) || (cols && t->dim[1] != cols) ||
        (rows >= 0 && t->dim[0] != rows))
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: tensor '%s' is %s of rank %d, %" PRId64 " x %" PRId64
                       "; expected %s of rank %d, %" PRId64 " x %" PRId64 " (-1: any)",
                       st->path, name, ic_dtypes[t->dtype].name, t->rank, t->dim[0], t->dim[1],
                       ic_dtypes[dtype].name, cols ? 2 : 1, rows, cols ? cols : 1);
    return ICAE_OK;
}

static int32_t i32_at(const ic_tensor *t, uint64_t i)
{
    int32_t v;
    memcpy(&v, (const char *)t->data + i * sizeof v, sizeof v);
    return v;
}

/* An empty value of the size that the file says, checked for possible sizes. */
static int make(icae_slots **out, const ic_safetensors *st)
{
    int rc = ICAE_OK;
    const ic_tensor *t = ic_safetensors_find(st, "slots"), *segments;
    if (!t)
        return ic_fail(ICAE_EFORMAT, "%.300s: tensor 'slots' is missing", st->path);
    if ((t->dtype != IC_BF16 && t->dtype != IC_I8) || t->rank != 2 || t->dim[0] < 1 ||
        t->dim[0] > (int64_t)MAX_TOKENS || t->dim[1] < 1 || t->dim[1] > MAX_WIDTH)
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: tensor 'slots' is %s of rank %d, %" PRId64 " x %" PRId64
                       "; expected BF16 or I8, slots x width",
                       st->path, ic_dtypes[t->dtype].name, t->rank, t->dim[0], t->dim[1]);
    IC_TRY(find(&segments, st, "segments", IC_I32, -1, 2));
    if (segments->dim[0] < 1 || segments->dim[0] > t->dim[0])
        return ic_fail(ICAE_EFORMAT, "%.300s: %" PRId64 " segments for %" PRId64 " slots", st->path,
                       segments->dim[0], t->dim[0]);
    IC_TRY(ic_slots_new(out, (int)t->dim[1], (uint64_t)t->dim[0], (uint32_t)segments->dim[0],
                        t->dtype));
done:
    return rc;
}

static int read_segments(icae_slots *s, const ic_safetensors *st)
{
    int rc = ICAE_OK;
    const ic_tensor *t;
    uint64_t tokens = 0, slots = 0;
    IC_TRY(find(&t, st, "segments", IC_I32, s->segments, 2));
    for (uint32_t i = 0; i < s->segments; i++) {
        int32_t n = i32_at(t, 2 * (uint64_t)i), k = i32_at(t, 2 * (uint64_t)i + 1);
        if (n < 1 || k < 1)
            return ic_fail(ICAE_EFORMAT,
                           "%.300s: segment %" PRIu32 " has %" PRId32 " tokens in %" PRId32
                           " slots, expected one or more of each",
                           st->path, i, n, k);
        s->segment[i].tokens = (uint32_t)n;
        s->segment[i].slots = (uint32_t)k;
        tokens += (uint32_t)n;
        slots += (uint32_t)k;
    }
    if (tokens != s->tokens || slots != s->count)
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: its segments have %" PRIu64 " tokens in %" PRIu64
                       " slots, the file says %" PRIu64 " in %" PRIu64,
                       st->path, tokens, slots, s->tokens, s->count);
done:
    return rc;
}

static int read_values(icae_slots *s, const ic_safetensors *st)
{
    int rc = ICAE_OK;
    const ic_tensor *t;
    size_t n = (size_t)s->count * (size_t)s->width;
    IC_TRY(find(&t, st, "slots", s->dtype, (int64_t)s->count, s->width));
    memcpy(s->values, t->data, t->bytes);
    const uint16_t *bf16 = s->values;
    for (size_t i = 0; s->dtype == IC_BF16 && i < n; i++)
        if ((bf16[i] & 0x7f80) == 0x7f80)
            return ic_fail(ICAE_EFORMAT, "%.300s: slot %zu, element %zu is not finite", st->path,
                           i / (size_t)s->width, i % (size_t)s->width);
    if (s->dtype == IC_I8) {
        IC_TRY(find(&t, st, "scales", IC_F32, (int64_t)s->count, 0));
        memcpy(s->scales, t->data, t->bytes);
        for (uint64_t i = 0; i < s->count; i++)
            if (!(s->scales[i] >= 0 && isfinite(s->scales[i] * 128)))
                return ic_fail(ICAE_EFORMAT,
                               "%.300s: the scale of slot %" PRIu64 " is %g, expected 0 or more",
                               st->path, i, (double)s->scales[i]);
    }
done:
    return rc;
}

static int read_fidelity(icae_slots *s, const ic_safetensors *st)
{
    int rc = ICAE_OK;
    const ic_tensor *counts, *loss;
    IC_TRY(find(&counts, st, "fidelity", IC_I32, s->segments, 2));
    IC_TRY(find(&loss, st, "loss", IC_F64, s->segments, 0));
    for (uint32_t i = 0; i < s->segments; i++) {
        ic_segment *g = &s->segment[i];
        int32_t right = i32_at(counts, 2 * (uint64_t)i),
                prefix = i32_at(counts, 2 * (uint64_t)i + 1);
        memcpy(&g->loss_sum, (const char *)loss->data + i * sizeof g->loss_sum, sizeof g->loss_sum);
        if (right < 0 || (uint32_t)right > g->tokens || prefix < 0 || prefix > right ||
            !isfinite(g->loss_sum))
            return ic_fail(ICAE_EFORMAT,
                           "%.300s: fidelity of segment %" PRIu32 ": %" PRId32
                           " right, prefix %" PRId32 ", loss %g, of %" PRIu32 " tokens",
                           st->path, i, right, prefix, g->loss_sum, g->tokens);
        g->right = (uint32_t)right;
        g->prefix = (uint32_t)prefix;
    }
done:
    return rc;
}

static int read_doubtful(icae_slots *s, const ic_safetensors *st)
{
    int rc = ICAE_OK;
    const ic_tensor *t;
    IC_TRY(find(&t, st, "doubtful", IC_I32, -1, 0));
    size_t n = (size_t)t->dim[0];
    s->doubtful = ic_alloc(IC_MAX(n, (size_t)1), sizeof *s->doubtful);
    if (!s->doubtful)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < n; i++) {
        int32_t at = i32_at(t, i);
        if (at < 0 || (uint64_t)at >= s->tokens || (i > 0 && (uint32_t)at <= s->doubtful[i - 1]))
            return ic_fail(ICAE_EFORMAT,
                           "%.300s: doubtful token %zu is %" PRId32
                           ", expected ascending offsets below %" PRIu64,
                           st->path, i, at, s->tokens);
        s->doubtful[i] = (uint32_t)at;
    }
    s->doubtful_count = n;
done:
    return rc;
}

/* The ids are checked against a vocabulary when they are used. */
static int read_corrections(icae_slots *s, const ic_safetensors *st)
{
    int rc = ICAE_OK;
    const ic_tensor *t;
    ic_correction *list;
    size_t count;
    IC_TRY(find(&t, st, "corrections", IC_U8, -1, 0));
    IC_TRY(ic_exact_decode_corrections(&list, &count, t->data, t->bytes, INT32_MAX, s->tokens));
    ic_free(list);
    s->correction_count = count;
    IC_TRY(ic_buffer_add(&s->corrections, t->data, t->bytes));
done:
    return rc;
}

static int read_all(icae_slots **out, const ic_safetensors *st)
{
    int rc = ICAE_OK;
    icae_slots *s = NULL;
    IC_TRY(check_format(st));
    IC_TRY(make(&s, st));
    IC_TRY(read_metadata(s, st));
    IC_TRY(read_segments(s, st));
    IC_TRY(read_values(s, st));
    if (s->measured) {
        IC_TRY(read_fidelity(s, st));
        IC_TRY(read_doubtful(s, st));
    }
    if (ic_safetensors_find(st, "corrections"))
        IC_TRY(read_corrections(s, st));
    *out = s;
    s = NULL;
done:
    icae_slots_free(s);
    return rc;
}

int ic_slots_read(icae_slots **out, ic_map *map, const char *path)
{
    ic_safetensors st;
    int rc = ic_safetensors_read(&st, map, path);
    if (rc < 0)
        return rc;
    rc = read_all(out, &st);
    ic_safetensors_close(&st);
    return rc;
}

int icae_slots_open(icae_slots **out, const char *path)
{
    ic_map map;
    int rc = ic_map_open(&map, path);
    return rc < 0 ? rc : ic_slots_read(out, &map, path);
}

int icae_slots_read(icae_slots **out, const void *data, size_t size, const char *name)
{
    ic_map map = {.data = ic_alloc(IC_MAX(size, (size_t)1), 1), .size = size};
    if (!map.data)
        return ICAE_ENOMEM;
    if (size > 0)
        memcpy((void *)map.data, data, size);
    return ic_slots_read(out, &map, name);
}
