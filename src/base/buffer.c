/*
 * buffer.c - a byte buffer that grows, with an optional limit.
 */
#include "base/base.h"

#include <stdio.h>
#include <string.h>

#define FIRST_CAPACITY 256

int ic_buffer_grow(ic_buffer *b, size_t extra)
{
    size_t wanted;
    if (__builtin_add_overflow(b->size, extra, &wanted) || wanted > PTRDIFF_MAX / 2)
        return ic_fail(ICAE_ENOMEM, "out of memory: a buffer of %zu bytes wanted %zu more", b->size,
                       extra);
    if (b->limit && wanted > b->limit)
        return ic_fail(ICAE_ELIMIT, "more than the allowed %zu bytes", b->limit);
    if (b->data && wanted < b->capacity)
        return ICAE_OK;
    size_t capacity = IC_MAX(IC_MAX(wanted + 1, b->capacity * 2), (size_t)FIRST_CAPACITY);
    if (b->limit)
        capacity = IC_MIN(capacity, b->limit + 1);
    char *data = ic_resize(b->data, capacity, 1);
    if (!data)
        return ICAE_ENOMEM;
    data[b->size] = 0;
    b->data = data;
    b->capacity = capacity;
    return ICAE_OK;
}

int ic_buffer_add(ic_buffer *b, const void *data, size_t size)
{
    int rc = ic_buffer_grow(b, size);
    if (rc < 0)
        return rc;
    if (size > 0)
        memcpy(b->data + b->size, data, size);
    b->size += size;
    b->data[b->size] = 0;
    return ICAE_OK;
}

int ic_buffer_addf(ic_buffer *b, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (size < 0)
        return ic_fail(ICAE_EINVAL, "text cannot be formatted: %s", format);
    int rc = ic_buffer_grow(b, (size_t)size);
    if (rc < 0)
        return rc;
    va_start(arguments, format);
    vsnprintf(b->data + b->size, (size_t)size + 1, format, arguments);
    va_end(arguments);
    b->size += (size_t)size;
    return ICAE_OK;
}

void ic_buffer_free(ic_buffer *b)
{
    ic_free(b->data);
    *b = (ic_buffer){.limit = b->limit};
}
