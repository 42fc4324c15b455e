/*
 * kv.c - key/value caches: what the decoder remembers of the rows it has read.
 *
 * One block of memory per sequence, [layers][2][capacity][G*K], so that growing is one copy. Sequences that
 * begin alike may read their first rows from one cache, which nobody writes to any more: it counts who
 * holds it. Knows nothing of what the rows stand for.
 */
#include "model/model.h"

#include <string.h>

static int new_cache(ic_kv **out, const ic_kv *like, int capacity)
{
    ic_kv *kv = ic_alloc(1, sizeof *kv);
    if (!kv)
        return ICAE_ENOMEM;
    *kv = (ic_kv){.layers = like->layers, .width = like->width, .dtype = like->dtype, .users = 1};
    int rc = ic_kv_grow(kv, capacity);
    if (rc < 0)
        ic_kv_free(kv);
    else
        *out = kv;
    return rc;
}

int ic_kv_new(ic_kv **out, const ic_config *c, ic_dtype dtype, int capacity)
{
    ic_kv like = {.layers = c->layers, .width = c->kv_heads * c->head_width, .dtype = dtype};
    return new_cache(out, &like, capacity);
}

/* Rows first … first+count-1, which neither shares; afterwards *to holds nothing beyond. */
static void copy_rows(ic_kv *to, const ic_kv *from, int first, int count)
{
    size_t bytes = (size_t)count * (size_t)to->width * (size_t)ic_dtypes[to->dtype].bytes;
    for (int i = 0; i < to->layers * 2 && count > 0; i++)
        memcpy(ic_kv_at(to, i / 2, i % 2, first), ic_kv_at(from, i / 2, i % 2, first), bytes);
    to->rows = first + count;
}

/* Memory for `capacity` rows, of which the first are shared; rows beyond those are kept. */
static int resize(ic_kv *kv, ic_kv *prefix, int shared, int capacity)
{
    ic_kv old = *kv;
    size_t row = (size_t)kv->width * (size_t)ic_dtypes[kv->dtype].bytes;
    char *data = ic_alloc((size_t)kv->layers * 2 * (size_t)(capacity - shared) * row, 1);
    if (!data)
        return ICAE_ENOMEM;
    kv->data = data;
    kv->prefix = prefix;
    kv->shared = shared;
    kv->capacity = capacity;
    copy_rows(kv, &old, shared, IC_MAX(0, old.rows - shared));
    ic_free(old.data);
    return ICAE_OK;
}

int ic_kv_grow(ic_kv *kv, int capacity)
{
    return capacity > kv->capacity ? resize(kv, kv->prefix, kv->shared, capacity) : ICAE_OK;
}

int ic_kv_share(ic_kv *kv, int rows)
{
    ic_kv *prefix;
    assert(rows <= kv->rows);
    rows -= rows % IC_SHARED_ROWS;
    if (!rows || kv->prefix)
        return ICAE_OK;
    int rc = new_cache(&prefix, kv, rows);
    if (rc < 0)
        return rc;
    copy_rows(prefix, kv, 0, rows);
    rc = resize(kv, prefix, rows, kv->capacity);
    if (rc < 0)
        ic_kv_free(prefix);
    return rc;
}

int ic_kv_fork(ic_kv **out, const ic_kv *from, int rows)
{
    ic_kv *kv;
    assert(rows >= from->shared && rows <= from->rows);
    int rc = new_cache(&kv, from, 0);
    if (rc < 0)
        return rc;
    if (from->prefix)
        from->prefix->users++;
    kv->prefix = from->prefix;
    kv->rows = kv->capacity = kv->shared = from->shared;
    rc = ic_kv_grow(kv, rows);
    if (rc < 0) {
        ic_kv_free(kv);
        return rc;
    }
    copy_rows(kv, from, kv->shared, rows - kv->shared);
    *out = kv;
    return ICAE_OK;
}

void ic_kv_free(ic_kv *kv)
{
    if (!kv || --kv->users)
        return;
    ic_kv_free(kv->prefix);
    ic_free(kv->data);
    ic_free(kv);
}
