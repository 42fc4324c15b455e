/*
 * kv.c - key/value caches: what the decoder remembers of the rows it has read.
 *
 * One block of memory per sequence, [layers][2][capacity][G*K], so that growing is one copy. Knows
 * nothing of what the rows stand for.
 */
#include "model/model.h"

#include <string.h>

static size_t kv_bytes(const ic_kv *kv, int capacity)
{
    return (size_t)kv->layers * 2 * (size_t)capacity * (size_t)kv->width *
           (size_t)ic_dtypes[kv->dtype].bytes;
}

int ic_kv_new(ic_kv **out, const ic_config *c, ic_dtype dtype, int capacity)
{
    int rc = ICAE_OK;
    ic_kv *kv = ic_alloc(1, sizeof *kv);
    if (!kv)
        return ICAE_ENOMEM;
    kv->layers = c->layers;
    kv->width = c->kv_heads * c->head_width;
    kv->dtype = dtype;
    IC_TRY(ic_kv_grow(kv, capacity));
    *out = kv;
    return ICAE_OK;
done:
    ic_kv_free(kv);
    return rc;
}

int ic_kv_grow(ic_kv *kv, int capacity)
{
    if (capacity <= kv->capacity)
        return ICAE_OK;
    char *data = ic_alloc(kv_bytes(kv, capacity), 1);
    if (!data)
        return ICAE_ENOMEM;
    size_t row = (size_t)kv->width * (size_t)ic_dtypes[kv->dtype].bytes;
    for (int i = 0; i < kv->layers * 2 && kv->rows; i++)
        memcpy(data + (size_t)i * (size_t)capacity * row,
               kv->data + (size_t)i * (size_t)kv->capacity * row, (size_t)kv->rows * row);
    ic_free(kv->data);
    kv->data = data;
    kv->capacity = capacity;
    return ICAE_OK;
}

void ic_kv_copy(ic_kv *to, const ic_kv *from, int rows)
{
    assert(rows <= from->rows && rows <= to->capacity && to->dtype == from->dtype);
    size_t row = (size_t)to->width * (size_t)ic_dtypes[to->dtype].bytes;
    for (int i = 0; i < to->layers * 2; i++)
        memcpy(to->data + (size_t)i * (size_t)to->capacity * row,
               from->data + (size_t)i * (size_t)from->capacity * row, (size_t)rows * row);
    to->rows = rows;
}

void ic_kv_free(ic_kv *kv)
{
    if (!kv)
        return;
    ic_free(kv->data);
    ic_free(kv);
}
