/*
 * exact.c - corrections: what makes a restoration exact, as a compact byte string.
 *
 * Two parts: the tokens that greedy decoding may get wrong, and a patch from the text of the right
 * tokens to the original bytes (tokenizers lose invalid UTF-8, normalise characters, and the like).
 * docs/formats.md has the layout. Blobs come from files: everything is checked when read.
 */
#include "core/core.h"

#include <inttypes.h>
#include <string.h>

#define VERSION 1

/* ---- varints and bits -------------------------------------------------------------------------
 */

static int put_varint(ic_buffer *b, uint64_t v)
{
    char bytes[10];
    size_t n = 0;
    do {
        bytes[n] = (char)(v & 0x7f);
        v >>= 7;
        if (v)
            bytes[n] = (char)(bytes[n] | (char)0x80);
        n++;
    } while (v);
    return ic_buffer_add(b, bytes, n);
}

typedef struct reader {
    const unsigned char *at, *end;
} reader;

static bool get_varint(uint64_t *v, reader *r)
{
    *v = 0;
    for (unsigned shift = 0; r->at < r->end && shift < 64; shift += 7) {
        uint64_t byte = *r->at++;
        if (shift == 63 && byte > 1)
            return false;
        *v |= (byte & 0x7f) << shift;
        if (byte < 0x80)
            return true;
    }
    return false;
}

/* Bits, least significant first. */
typedef struct bit_writer {
    ic_buffer *out;
    unsigned used; /* bits in `byte` */
    unsigned char byte;
} bit_writer;

static int put_bits(bit_writer *w, uint64_t v, unsigned count)
{
    int rc = ICAE_OK;
    for (unsigned i = 0; i < count; i++) {
        w->byte = (unsigned char)(w->byte | (v >> i & 1) << w->used);
        if (++w->used == 8) {
            IC_TRY(ic_buffer_add(w->out, &w->byte, 1));
            w->used = w->byte = 0;
        }
    }
done:
    return rc;
}

typedef struct bit_reader {
    const unsigned char *data;
    size_t at, end; /* in bits */
} bit_reader;

static bool get_bits(uint64_t *v, bit_reader *r, unsigned count)
{
    *v = 0;
    if (count > r->end - r->at)
        return false;
    for (unsigned i = 0; i < count; i++, r->at++)
        *v |= (uint64_t)(r->data[r->at / 8] >> r->at % 8 & 1) << i;
    return true;
}

static int damaged(const char *what)
{
    return ic_fail(ICAE_EFORMAT, "the corrections are damaged: %s", what);
}

/* ---- corrections ------------------------------------------------------------------------------
 */

static uint64_t gap_at(const ic_correction *c, size_t i)
{
    return i == 0 ? c[0].at : c[i].at - c[i - 1].at - 1;
}

/* The Rice parameter under which the gaps take the fewest bits. */
static unsigned best_parameter(const ic_correction *c, size_t count)
{
    unsigned best = 0;
    uint64_t least = UINT64_MAX;
    for (unsigned p = 0; p < 32; p++) {
        uint64_t bits = count * (uint64_t)(p + 1);
        for (size_t i = 0; i < count; i++)
            bits += gap_at(c, i) >> p;
        if (bits < least) {
            least = bits;
            best = p;
        }
    }
    return best;
}

/* Gaps between offsets Rice coded, ids in as many bits as the largest needs. */
static int put_corrections(ic_buffer *out, const ic_correction *c, size_t count)
{
    int rc = ICAE_OK;
    unsigned width = 0, p = best_parameter(c, count);
    for (size_t i = 0; i < count; i++) {
        if (c[i].id < 0 || (i > 0 && c[i].at <= c[i - 1].at))
            return ic_fail(ICAE_EINVAL,
                           "correction %zu (token %" PRIu32 ", id %" PRId32
                           ") is out of order or no text id",
                           i, c[i].at, c[i].id);
        while (width < 31 && c[i].id >> width)
            width++;
    }
    IC_TRY(put_varint(out, count));
    if (count == 0)
        return ICAE_OK;
    unsigned char head[2] = {(unsigned char)p, (unsigned char)width};
    IC_TRY(ic_buffer_add(out, head, 2));
    bit_writer w = {.out = out};
    for (size_t i = 0; i < count; i++) {
        uint64_t gap = gap_at(c, i);
        for (uint64_t q = gap >> p; q > 0; q--)
            IC_TRY(put_bits(&w, 1, 1));
        IC_TRY(put_bits(&w, 0, 1));
        IC_TRY(put_bits(&w, gap, p));
        IC_TRY(put_bits(&w, (uint64_t)c[i].id, width));
    }
    if (w.used)
        IC_TRY(ic_buffer_add(out, &w.byte, 1));
done:
    return rc;
}

static bool get_correction(uint64_t *gap, uint64_t *id, bit_reader *r, unsigned p, unsigned width)
{
    uint64_t q = 0, bit, low;
    for (;; q++) {
        if (!get_bits(&bit, r, 1))
            return false;
        if (!bit)
            break;
    }
    if (!get_bits(&low, r, p) || !get_bits(id, r, width) || q > UINT64_MAX >> 32)
        return false;
    *gap = q << p | low;
    return true;
}

static int get_corrections(ic_correction *c, size_t count, bit_reader *r, unsigned p,
                           unsigned width, int vocabulary, uint64_t tokens)
{
    uint64_t at = 0, gap, id;
    for (size_t i = 0; i < count; i++, at++) {
        if (!get_correction(&gap, &id, r, p, width))
            return damaged("they end too early");
        if (__builtin_add_overflow(at, gap, &at) || at >= tokens)
            return ic_fail(ICAE_EFORMAT,
                           "the corrections are damaged: number %zu is for token %" PRIu64
                           " of %" PRIu64,
                           i, at, tokens);
        if (id >= (uint64_t)vocabulary)
            return ic_fail(ICAE_EFORMAT,
                           "the corrections are damaged: number %zu is token id %" PRIu64
                           " of a vocabulary of %d",
                           i, id, vocabulary);
        c[i] = (ic_correction){(uint32_t)at, (int32_t)id};
    }
    return ICAE_OK;
}

/* Splits a blob into its two parts. */
static int split(reader *corrections, reader *patch, const void *blob, size_t size)
{
    if (size == 0)
        return damaged("they are empty");
    reader r = {blob, (const unsigned char *)blob + size};
    uint64_t length;
    if (*r.at++ != VERSION)
        return ic_fail(ICAE_EUNSUPPORTED, "the corrections have version %d, known is %d", r.at[-1],
                       VERSION);
    if (!get_varint(&length, &r) || length > (uint64_t)(r.end - r.at))
        return damaged("they are cut off");
    *corrections = (reader){r.at, r.at + length};
    *patch = (reader){r.at + length, r.end};
    return ICAE_OK;
}

int ic_exact_decode_corrections(ic_correction **c, size_t *count, const void *blob, size_t size,
                                int vocabulary, uint64_t tokens)
{
    reader r, patch;
    uint64_t n;
    *c = NULL;
    *count = 0;
    int rc = split(&r, &patch, blob, size);
    if (rc < 0)
        return rc;
    tokens = IC_MIN(tokens, (uint64_t)UINT32_MAX);
    if (!get_varint(&n, &r) || n > tokens)
        return damaged("their number is impossible");
    ic_correction *list = NULL;
    bit_reader bits = {0};
    if (n > 0) {
        if (r.end - r.at < 2 || r.at[0] > 31 || r.at[1] > 31)
            return damaged("their header is impossible");
        unsigned p = r.at[0], width = r.at[1];
        bits = (bit_reader){.data = r.at + 2, .end = (size_t)(r.end - r.at - 2) * 8};
        if (n > bits.end / (1 + p + width)) /* before memory is taken for them */
            return damaged("they are cut off");
        list = ic_alloc((size_t)n, sizeof *list);
        if (!list)
            return ICAE_ENOMEM;
        rc = get_corrections(list, (size_t)n, &bits, p, width, vocabulary, tokens);
        r.at += 2;
    }
    if (rc == ICAE_OK && (bits.at + 7) / 8 != (size_t)(r.end - r.at))
        rc = damaged("something follows them");
    if (rc < 0) {
        ic_free(list);
        return rc;
    }
    *c = list;
    *count = (size_t)n;
    return ICAE_OK;
}

/* ---- finding the patch ------------------------------------------------------------------------
 */

/* A patch is a list of: copy so many bytes of the decoded text, leave out so many, insert these. */
typedef struct patch {
    ic_buffer ops;
    uint64_t count;
    const char *original;
    size_t copy, left_out; /* of the operation that may still grow */
    size_t insert_from, insert;
} patch;

static int flush(patch *p)
{
    int rc = ICAE_OK;
    if (p->left_out == 0 && p->insert == 0)
        return ICAE_OK;
    IC_TRY(put_varint(&p->ops, p->copy));
    IC_TRY(put_varint(&p->ops, p->left_out));
    IC_TRY(put_varint(&p->ops, p->insert));
    IC_TRY(ic_buffer_add(&p->ops, p->original + p->insert_from, p->insert));
    p->count++;
    p->copy = p->left_out = p->insert = 0;
done:
    return rc;
}

/* Copying fewer bytes than an operation takes is dearer than inserting them, too. */
static int add_op(patch *p, size_t copy, size_t left_out, size_t insert_from, size_t insert)
{
    enum { LEAST_COPY = 4 };
    int rc = ICAE_OK;
    bool pending = p->left_out > 0 || p->insert > 0;
    if (pending && copy < LEAST_COPY) {
        left_out += copy;
        insert += copy;
    } else {
        IC_TRY(flush(p));
        p->copy = copy;
        p->insert_from = insert_from;
    }
    p->left_out += left_out;
    p->insert += insert;
done:
    return rc;
}

typedef struct text {
    const char *at;
    size_t size;
} text;

static text skip(text t, size_t n)
{
    return (text){t.at + n, t.size - n};
}

static size_t common(text a, text b, size_t limit)
{
    size_t n = 0, most = IC_MIN(IC_MIN(a.size, b.size), limit);
    while (most - n >= 64 && memcmp(a.at + n, b.at + n, 64) == 0)
        n += 64;
    while (n < most && a.at[n] == b.at[n])
        n++;
    return n;
}

/* That both go on alike for `need` bytes, or to their common end. */
static bool resumes(text a, text b, size_t need)
{
    if (a.size < need || b.size < need)
        return a.size == b.size && common(a, b, need) == a.size;
    return common(a, b, need) == need;
}

/* The smallest change (bytes of a plus bytes of b) behind which both go on alike. */
static bool find_near(size_t *skip_a, size_t *skip_b, text a, text b)
{
    enum { NEAR = 48 };
    for (size_t sum = 1; sum <= NEAR; sum++) {
        /* A short match is enough where little would be changed: the next change is near there. */
        size_t need = sum <= 6 ? 4 : 8;
        for (size_t i = 0; i <= sum; i++) {
            if (i <= a.size && sum - i <= b.size && resumes(skip(a, i), skip(b, sum - i), need)) {
                *skip_a = i;
                *skip_b = sum - i;
                return true;
            }
        }
    }
    return false;
}

/* The first place of b, within a window, that is also in a. */
static bool find_far(size_t *skip_a, size_t *skip_b, text a, text b)
{
    enum { WINDOW = 4096, NEED = 16, BITS = 12 };
    uint16_t table[1 << BITS] = {0}; /* 1 + offset in a of 8 bytes with that hash; the first wins */
    uint64_t word;
    size_t in_a = IC_MIN(a.size, (size_t)WINDOW), in_b = IC_MIN(b.size, (size_t)WINDOW);
    for (size_t i = in_a; i-- > 0;) {
        if (a.size - i < NEED)
            continue;
        memcpy(&word, a.at + i, sizeof word);
        table[word * 0x9e3779b97f4a7c15u >> (64 - BITS)] = (uint16_t)(i + 1);
    }
    for (size_t i = 0; i < in_b && b.size - i >= NEED; i++) {
        memcpy(&word, b.at + i, sizeof word);
        size_t hit = table[word * 0x9e3779b97f4a7c15u >> (64 - BITS)];
        if (hit > 0 && resumes(skip(a, hit - 1), skip(b, i), NEED)) {
            *skip_a = hit - 1;
            *skip_b = i;
            return true;
        }
    }
    return false;
}

/* How much to replace where a (decoded) and b (original) differ; never nothing of both. */
static void find_change(size_t *skip_a, size_t *skip_b, text a, text b)
{
    enum { BLOCK = 1024 };
    *skip_a = a.size;
    *skip_b = b.size;
    if (a.size == 0 || b.size == 0)
        return;
    /* What is not UTF-8 was read as U+FFFD: no need to search, and no way to lose track. */
    uint32_t code;
    int length = ic_utf8_decode(&code, b.at, b.size);
    if (length < 0 && a.size >= 3 && memcmp(a.at, "\xef\xbf\xbd", 3) == 0) {
        *skip_a = 3;
        *skip_b = (size_t)-length;
        return;
    }
    if (find_near(skip_a, skip_b, a, b) || find_far(skip_a, skip_b, a, b))
        return;
    /* Nothing alike: replace a block, by as much of a as b's block is of b. */
    *skip_b = IC_MIN(b.size, (size_t)BLOCK);
    *skip_a = (size_t)((double)a.size * ((double)*skip_b / (double)b.size));
    *skip_a = IC_MIN(*skip_a, a.size);
}

static int find_patch(patch *p, text decoded, text original)
{
    int rc = ICAE_OK;
    text a = decoded, b = original;
    for (;;) {
        size_t same = common(a, b, SIZE_MAX), skip_a, skip_b;
        /* Differences count from the start of a character: U+FFFD begins as broken ones do. */
        for (int i = 0; i < 3 && same > 0 && same < a.size && (a.at[same] & 0xc0) == 0x80; i++)
            same--;
        a = skip(a, same);
        b = skip(b, same);
        if (a.size == 0 && b.size == 0)
            break;
        find_change(&skip_a, &skip_b, a, b);
        IC_TRY(add_op(p, same, skip_a, (size_t)(b.at - original.at), skip_b));
        a = skip(a, skip_a);
        b = skip(b, skip_b);
    }
    IC_TRY(flush(p));
    if (p->ops.size > original.size + 32) { /* worse than the text itself */
        p->ops.size = 0;
        p->count = 0;
        IC_TRY(add_op(p, 0, decoded.size, 0, original.size));
        IC_TRY(flush(p));
    }
done:
    return rc;
}

/* ---- the blob ---------------------------------------------------------------------------------
 */

int ic_exact_encode(ic_buffer *out, const ic_correction *c, size_t count, const char *decoded,
                    size_t decoded_size, const char *original, size_t original_size)
{
    int rc = ICAE_OK;
    const char version = VERSION;
    size_t start = out->size;
    ic_buffer corrections = {0};
    patch p = {.original = original};
    IC_TRY(put_corrections(&corrections, c, count));
    IC_TRY(find_patch(&p, (text){decoded, decoded_size}, (text){original, original_size}));
    IC_TRY(ic_buffer_add(out, &version, 1));
    IC_TRY(put_varint(out, corrections.size));
    IC_TRY(ic_buffer_add(out, corrections.data, corrections.size));
    IC_TRY(put_varint(out, decoded_size));
    IC_TRY(put_varint(out, p.count));
    IC_TRY(ic_buffer_add(out, p.ops.data, p.ops.size));
done:
    if (rc < 0)
        out->size = start;
    ic_buffer_free(&corrections);
    ic_buffer_free(&p.ops);
    return rc;
}

/* Appends, or says that the original would become longer than it was. */
static int append(ic_buffer *out, size_t *room, const void *data, uint64_t size)
{
    if (size > *room)
        return damaged("the text they give is too long");
    *room -= (size_t)size;
    return ic_buffer_add(out, data, (size_t)size);
}

static int apply(ic_buffer *out, size_t room, reader r, text decoded)
{
    int rc = ICAE_OK;
    uint64_t count, copy, left_out, insert;
    if (!get_varint(&count, &r))
        return damaged("the patch is cut off");
    while (count-- > 0) {
        if (!get_varint(&copy, &r) || !get_varint(&left_out, &r) || !get_varint(&insert, &r) ||
            insert > (uint64_t)(r.end - r.at))
            return damaged("the patch is cut off");
        if (copy > decoded.size || left_out > decoded.size - copy)
            return damaged("the patch reaches beyond the text");
        IC_TRY(append(out, &room, decoded.at, copy));
        IC_TRY(append(out, &room, r.at, insert));
        decoded = skip(decoded, (size_t)(copy + left_out));
        r.at += insert;
    }
    if (r.at != r.end)
        return damaged("something follows the patch");
    IC_TRY(append(out, &room, decoded.at, decoded.size));
    if (room > 0)
        return damaged("the text they give is too short");
done:
    return rc;
}

int ic_exact_apply_patch(ic_buffer *out, const void *blob, size_t size, const char *decoded,
                         size_t decoded_size, uint64_t original_size)
{
    reader corrections, r;
    uint64_t expected;
    size_t start = out->size;
    int rc = split(&corrections, &r, blob, size);
    if (rc < 0)
        return rc;
    if (!get_varint(&expected, &r))
        return damaged("the patch is cut off");
    if (expected != decoded_size)
        return ic_fail(ICAE_EINEXACT,
                       "the decoded text has %zu bytes where the corrections expect %" PRIu64,
                       decoded_size, expected);
    if (original_size > (uint64_t)decoded_size + size)
        return damaged("they cannot give a text of the original's size");
    rc = apply(out, (size_t)original_size, r, (text){decoded, decoded_size});
    if (rc < 0)
        out->size = start;
    return rc;
}
