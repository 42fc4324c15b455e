/*
 * vocab.c - the two ways between token texts and ids, and the alphabet of byte-level tokenizers.
 *
 * Texts lie in one buffer; a hash table with open addressing leads from text to id. Knows nothing
 * of merges or of what tokens mean.
 */
#include "text/internal.h"

#include <string.h>

/* Eight bytes at a time; texts are short and the table is the cost, not this. */
static uint64_t hash_text(const char *text, size_t size)
{
    uint64_t h = 0x9e3779b97f4a7c15u ^ size;
    while (size >= 8) {
        uint64_t w;
        memcpy(&w, text, 8);
        h = (h ^ w) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
        text += 8;
        size -= 8;
    }
    uint64_t w = 0;
    memcpy(&w, text, size);
    h = (h ^ w) * 0xc4ceb9fe1a85ec53u;
    return h ^ h >> 29;
}

static int resize_table(ic_vocab *v, size_t slots)
{
    int32_t *table = ic_alloc(slots, sizeof *table);
    if (!table)
        return ICAE_ENOMEM;
    memset(table, 0xff, slots * sizeof *table);
    for (size_t i = 0; i < v->slot_count; i++) {
        int32_t id = v->slots[i];
        if (id < 0)
            continue;
        const ic_token_text *token = &v->tokens[id];
        size_t at = hash_text(v->strings.data + token->start, token->size) & (slots - 1);
        while (table[at] >= 0)
            at = (at + 1) & (slots - 1);
        table[at] = id;
    }
    ic_free(v->slots);
    v->slots = table;
    v->slot_count = slots;
    return ICAE_OK;
}

int ic_vocab_new(ic_vocab *v, size_t expected)
{
    *v = (ic_vocab){0};
    size_t slots = 64;
    while (slots < 2 * IC_MIN(expected, (size_t)IC_MAX_ID))
        slots *= 2;
    return resize_table(v, slots);
}

/* Makes room for ids up to `id`. */
static int reach(ic_vocab *v, int32_t id)
{
    if (id >= v->capacity) {
        size_t capacity = (size_t)v->capacity;
        int rc = ic_grow(&v->tokens, &capacity, (size_t)id + 1, sizeof *v->tokens);
        if (rc < 0)
            return rc;
        memset(v->tokens + v->capacity, 0, (capacity - (size_t)v->capacity) * sizeof *v->tokens);
        v->capacity = (int32_t)capacity;
    }
    v->size = IC_MAX(v->size, id + 1);
    return ICAE_OK;
}

int ic_vocab_set(ic_vocab *v, int32_t id, const char *text, size_t size, bool hash)
{
    if (size > UINT32_MAX)
        return ic_fail(ICAE_ELIMIT, "a token of %zu bytes", size);
    int rc = reach(v, id);
    if (rc < 0)
        return rc;
    if (2 * (v->count + 1) > v->slot_count && (rc = resize_table(v, 2 * v->slot_count)) < 0)
        return rc;
    size_t start = v->strings.size;
    if ((rc = ic_buffer_add(&v->strings, text, size)) < 0 ||
        (rc = ic_buffer_add(&v->strings, "", 1)) < 0)
        return rc;
    v->tokens[id] = (ic_token_text){start, (uint32_t)size, true};
    v->count++;
    if (!hash)
        return ICAE_OK;
    size_t at = hash_text(text, size) & (v->slot_count - 1);
    while (v->slots[at] >= 0)
        at = (at + 1) & (v->slot_count - 1);
    v->slots[at] = id;
    return ICAE_OK;
}

int32_t ic_vocab_find(const ic_vocab *v, const char *text, size_t size)
{
    size_t at = hash_text(text, size) & (v->slot_count - 1);
    for (; v->slots[at] >= 0; at = (at + 1) & (v->slot_count - 1)) {
        const ic_token_text *token = &v->tokens[v->slots[at]];
        if (token->size == size && memcmp(v->strings.data + token->start, text, size) == 0)
            return v->slots[at];
    }
    return IC_NO_TOKEN;
}

const char *ic_vocab_text(const ic_vocab *v, int32_t id, size_t *size)
{
    if (id < 0 || id >= v->size || !v->tokens[id].used)
        return NULL;
    *size = v->tokens[id].size;
    return v->strings.data + v->tokens[id].start;
}

void ic_vocab_index(ic_vocab *v)
{
    static const char hex[] = "0123456789ABCDEF";
    for (int i = 0; i < 256; i++) {
        char name[6] = {'<', '0', 'x', hex[i >> 4], hex[i & 15], '>'};
        v->bytes[i] = ic_vocab_find(v, name, sizeof name);
    }
    for (uint32_t code = 0; code < IC_COUNT(v->latin); code++) {
        char text[4];
        int size = ic_utf8_encode(text, code);
        v->latin[code] = ic_vocab_find(v, text, (size_t)size);
    }
}

void ic_vocab_free(ic_vocab *v)
{
    ic_buffer_free(&v->strings);
    ic_free(v->tokens);
    ic_free(v->slots);
    *v = (ic_vocab){0};
}

/* Printable bytes of Latin-1 stand for themselves, the others for U+0100 and on, in order. */
static bool is_printable(int byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

/* Number of bytes below `byte` that are not printable. */
static int rank_of(int byte)
{
    if (byte <= 0x20)
        return byte;
    return byte <= 0xa0 ? byte - 0x7f + 0x21 : 0x43; /* the last is 0xad */
}

int ic_byte_char(char out[4], unsigned char byte)
{
    return ic_utf8_encode(out, is_printable(byte) ? byte : (uint32_t)(0x100 + rank_of(byte)));
}

int ic_char_byte(uint32_t code)
{
    if (code < 0x100)
        return is_printable((int)code) ? (int)code : -1;
    if (code < 0x121)
        return (int)code - 0x100;
    if (code < 0x143)
        return (int)code - 0x121 + 0x7f;
    return code == 0x143 ? 0xad : -1;
}

int ic_append_byte_level(ic_buffer *out, const char *text, size_t size)
{
    int rc = ic_buffer_grow(out, 2 * size + 1);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < size; i++)
        out->size += (size_t)ic_byte_char(out->data + out->size, (unsigned char)text[i]);
    out->data[out->size] = 0;
    return ICAE_OK;
}
