/*
 * gguf_encode.c - encoding as llama.cpp does it: special tokens are cut out longest first, all of one
 * before the next; what remains is merged by score or as byte-level BPE.
 */
#include "text/internal.h"

#include <string.h>

/* A part of the text, or a token that was found. */
typedef struct fragment {
    size_t start, size;
    int32_t id; /* IC_NO_TOKEN: text */
} fragment;

typedef struct fragments {
    fragment *items;
    size_t count, capacity;
} fragments;

static int add_fragment(fragments *f, fragment item)
{
    int rc = ic_grow(&f->items, &f->capacity, f->count + 1, sizeof *f->items);
    if (rc >= 0)
        f->items[f->count++] = item;
    return rc;
}

/* Cuts one token out of all fragments of text. */
static int cut_token(fragments *to, const fragments *from, const char *text, const ic_tokenizer *t,
                     int32_t id)
{
    size_t size;
    int rc = ICAE_OK;
    const char *token = ic_vocab_text(&t->vocab, id, &size);
    to->count = 0;
    for (size_t i = 0; i < from->count && rc >= 0; i++) {
        fragment f = from->items[i];
        const char *hit;
        while (f.id < 0 && f.size && rc >= 0 &&
               (hit = ic_find_text(text + f.start, f.size, token, size))) {
            size_t before = (size_t)(hit - text) - f.start;
            if (before)
                rc = add_fragment(to, (fragment){f.start, before, IC_NO_TOKEN});
            if (rc >= 0)
                rc = add_fragment(to, (fragment){f.start + before, size, id});
            f.start += before + size;
            f.size -= before + size;
            while (t->gguf->types[id] & IC_TOKEN_STRIPS_RIGHT && f.size &&
                   strchr(" \t\n\v\f\r", text[f.start]) && text[f.start]) {
                f.start++;
                f.size--;
            }
        }
        if (rc >= 0 && (f.id >= 0 || f.size))
            rc = add_fragment(to, f);
    }
    return rc;
}

/* All pairs of bytes of the text, to see fast what cannot be in it. */
static void mark_pairs(unsigned char pairs[8192], const char *text, size_t size)
{
    memset(pairs, 0, 8192);
    for (size_t i = 0; i + 1 < size; i++) {
        unsigned pair = (unsigned)(unsigned char)text[i] << 8 | (unsigned char)text[i + 1];
        pairs[pair >> 3] |= (unsigned char)(1u << (pair & 7));
    }
}

static bool may_hold(const unsigned char pairs[8192], const char *token, size_t size)
{
    for (size_t i = 0; i + 1 < size; i++) {
        unsigned pair = (unsigned)(unsigned char)token[i] << 8 | (unsigned char)token[i + 1];
        if (!(pairs[pair >> 3] >> (pair & 7) & 1))
            return false;
    }
    return true;
}

static int cut_all(fragments *out, const ic_tokenizer *t, const char *text, size_t size,
                   bool untrusted)
{
    const ic_gguf_text *x = t->gguf;
    fragments next = {0};
    unsigned char pairs[8192];
    int rc = size ? add_fragment(out, (fragment){0, size, IC_NO_TOKEN}) : ICAE_OK;
    mark_pairs(pairs, text, size);
    for (size_t i = 0; i < x->cut_count && rc >= 0; i++) {
        size_t length;
        const char *token = ic_vocab_text(&t->vocab, x->cut[i], &length);
        if (untrusted && x->types[x->cut[i]] & (IC_TOKEN_CONTROL | IC_TOKEN_UNKNOWN))
            continue;
        if (length > size || !may_hold(pairs, token, length))
            continue;
        rc = cut_token(&next, out, text, t, x->cut[i]);
        fragments swapped = *out;
        *out = next;
        next = swapped;
    }
    ic_free(next.items);
    return rc;
}

/* Spaces become U+2581; one more in front where a text begins. */
static int encode_by_score(ic_ids *out, const ic_tokenizer *t, const char *text, size_t size,
                           bool space, ic_scratch *s)
{
    int rc;
    s->normal.size = 0;
    IC_TRY(ic_buffer_add(&s->normal, "▁", space ? 3 : 0));
    for (size_t i = 0; i < size;) {
        const char *hit = memchr(text + i, ' ', size - i);
        size_t run = hit ? (size_t)(hit - text) - i : size - i;
        IC_TRY(ic_buffer_add(&s->normal, text + i, run));
        IC_TRY(ic_buffer_add(&s->normal, "▁", hit ? 3 : 0));
        i += run + (hit != NULL);
    }
    rc = ic_bpe_encode(out, &t->bpe, &t->vocab, s->normal.data, s->normal.size, s);
done:
    return rc;
}

int ic_gguf_encode(ic_ids *out, const ic_tokenizer *t, const char *text, size_t size, bool special,
                   bool untrusted, ic_scratch *scratch)
{
    const ic_gguf_text *x = t->gguf;
    fragments f = {0};
    bool begins = true;
    int rc = cut_all(&f, t, text, size, untrusted);
    if (rc >= 0 && special && x->add_bos)
        rc = ic_ids_add(out, t->bos);
    for (size_t i = 0; i < f.count && rc >= 0; i++) {
        const fragment *item = &f.items[i];
        if (item->id >= 0)
            rc = ic_ids_add(out, item->id);
        else if (x->by_score)
            rc = encode_by_score(out, t, text + item->start, item->size, begins && x->space_prefix,
                                 scratch);
        else
            rc = ic_encode_piece(out, t, text + item->start, item->size, 0, scratch);
        begins = item->id >= 0;
    }
    if (rc >= 0 && special && x->add_eos)
        rc = ic_ids_add(out, t->eos);
    ic_free(f.items);
    return rc;
}
