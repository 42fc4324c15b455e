/*
 * memory.c - every allocation of the library, and arenas for scratch memory.
 *
 * Owns the count of live allocations and the switch that makes the n-th one fail (tests). A block
 * is what calloc gave (so that large ones are zeroed by the system, when touched) with 64 bytes
 * more: a small header that remembers where the block starts and how large it is, then the aligned
 * memory.
 */
#include "base/base.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ALIGNMENT       64
#define HUGE_PAGES_FROM ((size_t)4 << 20)
#define MEASURING_BASE  ((uintptr_t)4096) /* not NULL, aligned, and a fault when touched */

typedef struct header {
    size_t offset; /* of the aligned memory in its block */
    size_t size;   /* of the aligned memory */
} header;

static atomic_long live;
static atomic_long countdown = -1; /* successful allocations until all fail; negative: never */

long ic_memory_fail_after(long n)
{
    atomic_store(&countdown, n < 0 ? -1 : n);
    return atomic_load(&live);
}

long ic_memory_live(void)
{
    return atomic_load(&live);
}

bool ic_memory_count_in(void)
{
    long left = atomic_load(&countdown);
    while (left >= 0) {
        if (left == 0)
            return false;
        if (atomic_compare_exchange_weak(&countdown, &left, left - 1))
            break;
    }
    atomic_fetch_add(&live, 1);
    return true;
}

void ic_memory_count_out(void)
{
    atomic_fetch_sub(&live, 1);
}

static void fail(size_t count, size_t size)
{
    if (size == 1 || count == 1)
        ic_fail(ICAE_ENOMEM, "out of memory: %zu bytes wanted", count * size);
    else
        ic_fail(ICAE_ENOMEM, "out of memory: %zu times %zu bytes wanted", count, size);
}

/* False if the product (with room for the header) overflows or is beyond any memory. */
static bool product(size_t *bytes, size_t count, size_t size)
{
    return !__builtin_mul_overflow(count, size, bytes) && *bytes <= PTRDIFF_MAX - ALIGNMENT;
}

/* Where the aligned memory starts in a block; malloc's own alignment of 16 leaves room for the
 * header before it. */
static size_t offset_in(const char *start)
{
    return ALIGNMENT - (uintptr_t)start % ALIGNMENT;
}

static header *header_of(void *memory)
{
    return (header *)memory - 1;
}

void ic_memory_huge(void *mapping, size_t size)
{
#ifdef MADV_HUGEPAGE
    if (size >= HUGE_PAGES_FROM)
        (void)madvise(mapping, size, MADV_HUGEPAGE);
#endif
}

void *ic_alloc(size_t count, size_t size)
{
    size_t bytes;
    if (!product(&bytes, count, size) || !ic_memory_count_in()) {
        fail(count, size);
        return NULL;
    }
    char *start = calloc(1, bytes + ALIGNMENT);
    if (!start) {
        ic_memory_count_out();
        fail(count, size);
        return NULL;
    }
    size_t offset = offset_in(start);
    *header_of(start + offset) = (header){offset, bytes};
    return start + offset;
}

void *ic_resize(void *memory, size_t count, size_t size)
{
    if (!memory)
        return ic_alloc(count, size);
    size_t bytes;
    if (!product(&bytes, count, size) || !ic_memory_count_in()) {
        fail(count, size);
        return NULL;
    }
    ic_memory_count_out(); /* counted only to let it fail: one block stays one block */
    header old = *header_of(memory);
    char *start = realloc((char *)memory - old.offset, bytes + ALIGNMENT);
    if (!start) {
        fail(count, size);
        return NULL;
    }
    size_t offset = offset_in(start);
    if (offset != old.offset)
        memmove(start + offset, start + old.offset, IC_MIN(bytes, old.size));
    *header_of(start + offset) = (header){offset, bytes};
    return start + offset;
}

void ic_free(void *memory)
{
    if (!memory)
        return;
    ic_memory_count_out();
    free((char *)memory - header_of(memory)->offset);
}

char *ic_strndup(const char *s, size_t n)
{
    size_t size = strnlen(s, n);
    char *copy = ic_alloc(size + 1, 1);
    if (copy)
        memcpy(copy, s, size);
    return copy;
}

char *ic_strdup(const char *s)
{
    return ic_strndup(s, strlen(s));
}

char *ic_format(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (size < 0) {
        ic_fail(ICAE_EINVAL, "text cannot be formatted: %s", format);
        return NULL;
    }
    char *text = ic_alloc((size_t)size + 1, 1);
    if (!text)
        return NULL;
    va_start(arguments, format);
    vsnprintf(text, (size_t)size + 1, format, arguments);
    va_end(arguments);
    return text;
}

/* ---- arena ----------------------------------------------------------------------------------- */

void ic_arena_measure(ic_arena *a)
{
    a->used = a->peak = 0;
    a->measuring = true;
}

int ic_arena_reserve(ic_arena *a, size_t bytes)
{
    if (!a->base || a->size < bytes) {
        ic_arena_free(a);
        if (bytes > PTRDIFF_MAX || !ic_memory_count_in()) {
            fail(bytes, 1);
            return ICAE_ENOMEM;
        }
        size_t size = IC_MAX(bytes, (size_t)ALIGNMENT);
        void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base == MAP_FAILED) {
            ic_memory_count_out();
            fail(bytes, 1);
            return ICAE_ENOMEM;
        }
        ic_memory_huge(base, size);
        a->base = base;
        a->size = size;
    }
    a->used = a->peak = 0;
    a->measuring = false;
    return ICAE_OK;
}

void *ic_arena_take(ic_arena *a, size_t bytes)
{
    size_t at = (a->used + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
    if (a->measuring || !a->base) {
        /* Too much for any address space stays too much: reserving it will say so. */
        a->used = bytes > PTRDIFF_MAX - at ? PTRDIFF_MAX - 2 * (size_t)ALIGNMENT : at + bytes;
        a->peak = IC_MAX(a->peak, a->used);
        return (void *)(MEASURING_BASE + at);
    }
    assert(at <= a->size && bytes <= a->size - at);
    a->used = at + bytes;
    a->peak = IC_MAX(a->peak, a->used);
    return a->base + at;
}

void ic_arena_free(ic_arena *a)
{
    if (a->base) {
        munmap(a->base, a->size);
        ic_memory_count_out();
    }
    *a = (ic_arena){0};
}
