/*
 * lists.c - growing lists of ids and of pieces, and what an encode call needs besides the tokenizer.
 */
#include "text/internal.h"

#include <string.h>

int ic_grow(void *array, size_t *capacity, size_t wanted, size_t size)
{
    if (wanted <= *capacity)
        return ICAE_OK;
    size_t bigger = IC_MAX(wanted, *capacity < 16 ? 32 : *capacity * 2);
    void *memory;
    memcpy(&memory, array, sizeof memory);
    memory = ic_resize(memory, bigger, size);
    if (!memory)
        return ICAE_ENOMEM;
    memcpy(array, &memory, sizeof memory);
    *capacity = bigger;
    return ICAE_OK;
}

/* Short ones byte by byte: sanitizers let memmem look over all of the text, however near the hit. */
const char *ic_find_text(const char *text, size_t size, const char *wanted, size_t wanted_size)
{
    const char *end = text + size;
    if (wanted_size == 0 || wanted_size > 16)
        return memmem(text, size, wanted, wanted_size);
    while ((size_t)(end - text) >= wanted_size) {
        const char *hit = memchr(text, wanted[0], (size_t)(end - text) - wanted_size + 1);
        if (!hit || memcmp(hit, wanted, wanted_size) == 0)
            return hit;
        text = hit + 1;
    }
    return NULL;
}

int ic_ids_add(ic_ids *list, int32_t id)
{
    if (list->count == list->capacity) {
        int rc = ic_grow(&list->ids, &list->capacity, list->count + 1, sizeof *list->ids);
        if (rc < 0)
            return rc;
    }
    list->ids[list->count++] = id;
    return ICAE_OK;
}

int ic_ids_append(ic_ids *list, const int32_t *ids, size_t count)
{
    if (count == 0)
        return ICAE_OK;
    if (count > SIZE_MAX / sizeof *ids - list->count)
        return ic_fail(ICAE_ENOMEM, "out of memory: %zu more ids wanted", count);
    int rc = ic_grow(&list->ids, &list->capacity, list->count + count, sizeof *list->ids);
    if (rc < 0)
        return rc;
    memcpy(list->ids + list->count, ids, count * sizeof *ids);
    list->count += count;
    return ICAE_OK;
}

void ic_ids_free(ic_ids *list)
{
    ic_free(list->ids);
    *list = (ic_ids){0};
}

int ic_pieces_add(ic_pieces *p, size_t start, size_t size)
{
    if (size == 0)
        return ICAE_OK;
    if (p->count == p->capacity) {
        int rc = ic_grow(&p->spans, &p->capacity, p->count + 1, sizeof *p->spans);
        if (rc < 0)
            return rc;
    }
    p->spans[p->count++] = (ic_span){start, size};
    return ICAE_OK;
}

void ic_pieces_clear(ic_pieces *p)
{
    p->text.size = 0;
    p->count = 0;
    p->origin = 0;
}

void ic_pieces_free(ic_pieces *p)
{
    ic_buffer_free(&p->text);
    ic_free(p->spans);
    *p = (ic_pieces){0};
}

void ic_scratch_limit(ic_scratch *s, size_t size)
{
    size_t limit = size < SIZE_MAX / 32 ? IC_GROWTH + 16 * size : SIZE_MAX / 2;
    s->normal.limit = s->other.limit = s->pieces.text.limit = s->spare.text.limit = limit;
}

void ic_scratch_free(ic_scratch *s)
{
    ic_buffer_free(&s->valid);
    ic_buffer_free(&s->normal);
    ic_buffer_free(&s->other);
    ic_buffer_free(&s->shadow);
    ic_pieces_free(&s->pieces);
    ic_pieces_free(&s->spare);
    ic_free(s->events);
    ic_free(s->symbols);
    ic_free(s->heap);
    ic_matcher_free(s->matcher);
    ic_ids_free(&s->ids);
    *s = (ic_scratch){0};
}
