/*
 * index.c - what the containers share: tensors by name, their sizes, and that they do not overlap.
 *
 * Knows tensors, not file layouts.
 */
#include "format/format.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const ic_tensor *const *)a)->name, (*(const ic_tensor *const *)b)->name);
}

static int by_place(const void *a, const void *b)
{
    const ic_tensor *s = *(const ic_tensor *const *)a, *t = *(const ic_tensor *const *)b;
    uintptr_t p = (uintptr_t)s->data, q = (uintptr_t)t->data;
    if (p != q)
        return p < q ? -1 : 1;
    return (s->bytes > t->bytes) - (s->bytes < t->bytes); /* empty ones first */
}

static const ic_tensor **pointers(const ic_tensor *tensors, size_t count)
{
    const ic_tensor **list = ic_alloc(IC_MAX(count, (size_t)1), sizeof(ic_tensor *));
    for (size_t i = 0; list && i < count; i++)
        list[i] = tensors + i;
    return list;
}

int ic_index_build(ic_index *out, const ic_tensor *tensors, size_t count, const char *path)
{
    *out = (ic_index){0};
    const ic_tensor **list = pointers(tensors, count);
    if (!list)
        return ICAE_ENOMEM;
    qsort(list, count, sizeof *list, by_name);
    for (size_t i = 1; i < count; i++) {
        if (strcmp(list[i - 1]->name, list[i]->name) == 0) {
            int rc = ic_fail(ICAE_EFORMAT, "%.300s: two tensors are called '%.200s'", path,
                             list[i]->name);
            ic_free(list);
            return rc;
        }
    }
    *out = (ic_index){list, count};
    return ICAE_OK;
}

const ic_tensor *ic_index_find(const ic_index *index, const char *name)
{
    if (index->count == 0)
        return NULL;
    ic_tensor wanted = {.name = name};
    const ic_tensor *key = &wanted;
    const ic_tensor **hit = bsearch(&key, index->sorted, index->count, sizeof key, by_name);
    return hit ? *hit : NULL;
}

void ic_index_free(ic_index *index)
{
    ic_free(index->sorted);
    *index = (ic_index){0};
}

int ic_tensor_measure(ic_tensor *t, const char *path)
{
    size_t values = 1, bytes;
    const ic_dtype_info *type = &ic_dtypes[t->dtype];
    bool overflow = false;
    for (int i = 0; i < t->rank; i++) {
        if (t->dim[i] < 0)
            return ic_fail(ICAE_EFORMAT,
                           "%.300s: tensor '%.200s': dimension %d is %" PRId64
                           ", expected 0 or more",
                           path, t->name, i, t->dim[i]);
        overflow |= __builtin_mul_overflow(values, (size_t)t->dim[i], &values);
    }
    overflow |= __builtin_mul_overflow(values / (size_t)type->block, (size_t)type->bytes, &bytes);
    if (overflow || bytes > PTRDIFF_MAX)
        return ic_fail(ICAE_EFORMAT, "%.300s: tensor '%.200s': its shape is larger than any memory",
                       path, t->name);
    int64_t row = t->rank > 0 ? t->dim[t->rank - 1] : 1;
    if (row % type->block != 0)
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: tensor '%.200s': rows of %" PRId64
                       " values are not whole blocks of %d (%s)",
                       path, t->name, row, type->block, type->name);
    t->bytes = bytes;
    return ICAE_OK;
}

static int check_places(const ic_tensor **list, size_t count, const char *start, size_t size,
                        bool dense, const char *path)
{
    const char *end = start; /* of the tensor before */
    for (size_t i = 0; i < count; i++) {
        const char *data = list[i]->data;
        if (data < end)
            return ic_fail(ICAE_EFORMAT,
                           "%.300s: tensors '%.150s' and '%.150s' overlap at data offset %zu", path,
                           list[i - 1]->name, list[i]->name, (size_t)(data - start));
        if (dense && data > end)
            return ic_fail(ICAE_EFORMAT,
                           "%.300s: tensor '%.200s' starts at data offset %zu, expected %zu", path,
                           list[i]->name, (size_t)(data - start), (size_t)(end - start));
        end = data + list[i]->bytes;
    }
    if (dense && (size_t)(end - start) != size)
        return ic_fail(ICAE_EFORMAT, "%.300s: tensors take %zu bytes of data, but the file has %zu",
                       path, (size_t)(end - start), size);
    return ICAE_OK;
}

int ic_tensors_disjoint(const ic_tensor *tensors, size_t count, const void *start, size_t size,
                        bool dense, const char *path)
{
    const ic_tensor **list = pointers(tensors, count);
    if (!list)
        return ICAE_ENOMEM;
    qsort(list, count, sizeof *list, by_place);
    int rc = check_places(list, count, start, size, dense, path);
    ic_free(list);
    return rc;
}
