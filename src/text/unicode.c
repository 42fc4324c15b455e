/*
 * unicode.c - normal forms and lower case, by utf8proc (the only file that includes it).
 *
 * utf8proc gives decompositions, combining classes and compositions of characters; the walk over a
 * text is done here, so that memory is the library's own, long runs of combining marks cost no more
 * than others, and characters newer than Hugging Face's tables stay as they are.
 */
#include "text/internal.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* Characters below this stand for themselves and have class 0; only the next may compose with them. */
static const uint32_t quiet_below[] = {
    [IC_NFC] = 0x300, [IC_NFD] = 0xc0, [IC_NFKC] = 0xa0, [IC_NFKD] = 0xa0};

/* Code points of a part that needs work. */
typedef struct region {
    int32_t *codes;
    size_t count, capacity;
    uint64_t *keys; /* of the sort: class, position and code point in one number */
    size_t key_capacity;
} region;

static int add_code(region *r, int32_t code)
{
    if (r->count == r->capacity) {
        int rc = ic_grow(&r->codes, &r->capacity, r->count + 1, sizeof *r->codes);
        if (rc < 0)
            return rc;
    }
    r->codes[r->count++] = code;
    return ICAE_OK;
}

static int add_decomposed(region *r, uint32_t code, ic_form form)
{
    utf8proc_int32_t parts[32];
    int last = 0;
    utf8proc_option_t options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
    if (form == IC_NFKC || form == IC_NFKD)
        options |= UTF8PROC_COMPAT;
    utf8proc_ssize_t n = -1;
    if (!ic_is_inert(code))
        n = utf8proc_decompose_char((utf8proc_int32_t)code, parts, IC_COUNT(parts), options, &last);
    if (n < 0 || n > (utf8proc_ssize_t)IC_COUNT(parts))
        return add_code(r, (int32_t)code);
    for (utf8proc_ssize_t i = 0; i < n; i++) {
        int rc = add_code(r, parts[i]);
        if (rc < 0)
            return rc;
    }
    return ICAE_OK;
}

static uint64_t class_of(int32_t code)
{
    if (code < 0x300 || ic_is_inert((uint32_t)code))
        return 0;
    return (uint64_t)utf8proc_get_property(code)->combining_class;
}

static int compare_keys(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Canonical order: each run of characters with a class is sorted by class, stably. */
static int order_marks(region *r)
{
    for (size_t i = 0; i < r->count;) {
        size_t n = 0;
        bool sorted = true;
        uint64_t before = 0;
        for (; i + n < r->count; n++) {
            uint64_t class = class_of(r->codes[i + n]);
            if (class == 0)
                break;
            sorted &= class >= before;
            before = class;
        }
        if (!sorted) {
            if (n > r->key_capacity) {
                int rc = ic_grow(&r->keys, &r->key_capacity, n, sizeof *r->keys);
                if (rc < 0)
                    return rc;
            }
            /* 8 bits of class, 35 of position, 21 of code point */
            for (size_t j = 0; j < n; j++)
                r->keys[j] =
                    class_of(r->codes[i + j]) << 56 | (uint64_t)j << 21 | (uint64_t)r->codes[i + j];
            qsort(r->keys, n, sizeof *r->keys, compare_keys);
            for (size_t j = 0; j < n; j++)
                r->codes[i + j] = (int32_t)(r->keys[j] & 0x1fffff);
        }
        i += n + 1;
    }
    return ICAE_OK;
}

/* Composes in place, between inert characters. */
static void compose(region *r)
{
    size_t to = 0;
    for (size_t i = 0; i < r->count;) {
        size_t n = 0;
        while (i + n < r->count && !ic_is_inert((uint32_t)r->codes[i + n]))
            n++;
        utf8proc_ssize_t left = utf8proc_normalize_utf32(r->codes + i, (utf8proc_ssize_t)n,
                                                         UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        size_t kept = left < 0 ? n : (size_t)left;
        memmove(r->codes + to, r->codes + i, kept * sizeof *r->codes);
        to += kept;
        i += n;
        if (i < r->count)
            r->codes[to++] = r->codes[i++];
    }
    r->count = to;
}

static int add_region(ic_buffer *out, region *r, ic_form form)
{
    int rc = order_marks(r);
    if (rc < 0)
        return rc;
    if (form == IC_NFC || form == IC_NFKC)
        compose(r);
    rc = ic_buffer_grow(out, 4 * r->count + 1);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < r->count; i++)
        out->size += (size_t)ic_utf8_encode(out->data + out->size, (uint32_t)r->codes[i]);
    out->data[out->size] = 0;
    r->count = 0;
    return ICAE_OK;
}

int ic_unicode_normalize(ic_buffer *out, const char *text, size_t size, ic_form form)
{
    int rc = ICAE_OK;
    region r = {0};
    uint32_t quiet = quiet_below[form];
    size_t copied = 0; /* input before this is done */
    for (size_t i = 0, previous = 0; i < size;) {
        uint32_t code;
        int length = ic_next_char(&code, text + i, size - i);
        if (code < quiet) {
            previous = i;
            i += (size_t)length;
            continue;
        }
        /* The quiet character in front may be the base of what follows. */
        size_t begin = i > copied ? previous : i;
        IC_TRY(ic_buffer_add(out, text + copied, begin - copied));
        if (begin < i) {
            uint32_t base;
            ic_next_char(&base, text + begin, size - begin);
            IC_TRY(add_decomposed(&r, base, form));
        }
        while (i < size) {
            length = ic_next_char(&code, text + i, size - i);
            if (code < quiet)
                break;
            IC_TRY(add_decomposed(&r, code, form));
            i += (size_t)length;
        }
        IC_TRY(add_region(out, &r, form));
        copied = i;
        previous = i;
    }
    rc = ic_buffer_add(out, text + copied, size - copied);
done:
    ic_free(r.codes);
    ic_free(r.keys);
    return rc;
}

/* Capitals that got a small letter in Unicode 15.1 to 17: first, last, first small one. */
static const uint32_t newer_capitals[][3] = {
    {0x1c89, 0x1c89, 0x1c8a},    {0xa7cb, 0xa7cb, 0x264},  {0xa7cc, 0xa7cc, 0xa7cd},
    {0xa7ce, 0xa7ce, 0xa7cf},    {0xa7d2, 0xa7d2, 0xa7d3}, {0xa7d4, 0xa7d4, 0xa7d5},
    {0xa7da, 0xa7da, 0xa7db},    {0xa7dc, 0xa7dc, 0x19b},  {0x10d50, 0x10d65, 0x10d70},
    {0x16ea0, 0x16eb8, 0x16ebb},
};

int ic_unicode_lower(char out[8], uint32_t code)
{
    if (code < 0x80)
        return ic_utf8_encode(out, code >= 'A' && code <= 'Z' ? code + 32 : code);
    if (code == 0x130) { /* the one whose small form is two characters */
        memcpy(out, "i\xcc\x87", 3);
        return 3;
    }
    for (size_t i = 0; i < IC_COUNT(newer_capitals); i++)
        if (code >= newer_capitals[i][0] && code <= newer_capitals[i][1])
            return ic_utf8_encode(out, code - newer_capitals[i][0] + newer_capitals[i][2]);
    return ic_utf8_encode(out, (uint32_t)utf8proc_tolower((utf8proc_int32_t)code));
}
