/*
 * bpe.c - byte pair encoding: the symbols of a piece of text are merged, best pair first, leftmost
 * of equals.
 *
 * What a pair becomes, and how early, is in a hash table of merges (tokenizer.json, GGUF "gpt2"), or
 * is the token of its text, ordered by score (GGUF "llama"). A piece is first cut where no merge
 * can join, into words that mostly have a few symbols: those are merged by looking through all
 * pairs, longer ones with a heap. Knows nothing of added tokens or of where pieces come from.
 */
#include "text/internal.h"

#include <string.h>

#define EMPTY UINT64_MAX
#define SMALL 40 /* symbols: fewer are merged without a heap */

static uint64_t mix(uint64_t x)
{
    x *= 0x9e3779b97f4a7c15u;
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    return x ^ x >> 29;
}

/* ---- the table of merges ---------------------------------------------------------------------- */

static uint64_t pair_key(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static ic_merge *slot_of(ic_merge *merges, size_t slots, uint64_t pair)
{
    size_t at = mix(pair) & (slots - 1);
    while (merges[at].pair != EMPTY && merges[at].pair != pair)
        at = (at + 1) & (slots - 1);
    return &merges[at];
}

int ic_bpe_reserve(ic_bpe *b, size_t merges)
{
    size_t slots = 64;
    while (slots < 2 * merges)
        slots *= 2;
    if (slots <= b->merge_slots)
        return ICAE_OK;
    ic_merge *table = ic_alloc(slots, sizeof *table);
    if (!table)
        return ICAE_ENOMEM;
    memset(table, 0xff, slots * sizeof *table);
    for (size_t i = 0; i < b->merge_slots; i++)
        if (b->merges[i].pair != EMPTY)
            *slot_of(table, slots, b->merges[i].pair) = b->merges[i];
    ic_free(b->merges);
    b->merges = table;
    b->merge_slots = slots;
    return ICAE_OK;
}

int ic_bpe_add_merge(ic_bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id,
                     bool replace)
{
    int rc = ic_bpe_reserve(b, b->merge_count + 1);
    if (rc < 0)
        return rc;
    uint64_t pair = pair_key(left, right);
    ic_merge *slot = slot_of(b->merges, b->merge_slots, pair);
    bool is_new = slot->pair == EMPTY;
    if (is_new || replace)
        *slot = (ic_merge){pair, rank, id};
    b->merge_count += is_new;
    return ICAE_OK;
}

void ic_bpe_free(ic_bpe *b)
{
    ic_free(b->merges);
    ic_free(b->joins);
    ic_free(b->ranks);
    ic_free(b->unknown);
    ic_free(b->prefix);
    ic_free(b->suffix);
    *b = (ic_bpe){0};
}

/* ---- where a merge can join ------------------------------------------------------------------- */

static uint32_t first_char(const char *text, size_t size)
{
    uint32_t code;
    ic_next_char(&code, text, size);
    return code;
}

static uint32_t last_char(const char *text, size_t size)
{
    size_t at = size - 1;
    while (at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80)
        at--;
    return first_char(text + at, size - at);
}

static bool can_join(const ic_bpe *b, uint32_t left, uint32_t right)
{
    uint64_t pair = (uint64_t)left << 32 | right;
    size_t at = mix(pair) & (b->join_slots - 1);
    while (b->joins[at] != EMPTY && b->joins[at] != pair)
        at = (at + 1) & (b->join_slots - 1);
    return b->joins[at] == pair;
}

static int add_join(ic_bpe *b, size_t *count, uint32_t left, uint32_t right)
{
    if (2 * (*count + 1) > b->join_slots) {
        size_t slots = IC_MAX(2 * b->join_slots, (size_t)1024);
        uint64_t *old = b->joins, *table = ic_alloc(slots, sizeof *table);
        if (!table)
            return ICAE_ENOMEM;
        memset(table, 0xff, slots * sizeof *table);
        for (size_t i = 0; i < b->join_slots; i++) {
            if (old[i] == EMPTY)
                continue;
            size_t at = mix(old[i]) & (slots - 1);
            while (table[at] != EMPTY)
                at = (at + 1) & (slots - 1);
            table[at] = old[i];
        }
        b->joins = table;
        b->join_slots = slots;
        ic_free(old);
    }
    uint64_t pair = (uint64_t)left << 32 | right;
    size_t at = mix(pair) & (b->join_slots - 1);
    while (b->joins[at] != EMPTY && b->joins[at] != pair)
        at = (at + 1) & (b->join_slots - 1);
    *count += b->joins[at] == EMPTY;
    b->joins[at] = pair;
    return ICAE_OK;
}

/* Every pair of neighbours inside a token. */
static int join_inside(ic_bpe *b, size_t *count, const char *text, size_t size)
{
    uint32_t before = 0, code;
    for (size_t i = 0; i < size;) {
        size_t length = (size_t)ic_next_char(&code, text + i, size - i);
        int rc = i > 0 ? add_join(b, count, before, code) : ICAE_OK;
        if (rc < 0)
            return rc;
        before = code;
        i += length;
    }
    return ICAE_OK;
}

/* The text of a merged token is that of its parts, so the characters at the seam are those of the
 * symbols there, whatever was merged before. (Not so with a prefix inside of words.) */
int ic_bpe_index_joins(ic_bpe *b, const ic_vocab *v)
{
    size_t count = 0, left_size, right_size;
    int rc = ICAE_OK;
    if (b->prefix || b->suffix)
        return ICAE_OK;
    if (b->ranks) {
        for (int32_t id = 0; id < v->size && rc >= 0; id++) {
            const char *text = ic_vocab_text(v, id, &left_size);
            if (text)
                rc = join_inside(b, &count, text, left_size);
        }
        return rc;
    }
    for (size_t i = 0; i < b->merge_slots && rc >= 0; i++) {
        if (b->merges[i].pair == EMPTY)
            continue;
        const char *left = ic_vocab_text(v, (int32_t)(b->merges[i].pair >> 32), &left_size);
        const char *right = ic_vocab_text(v, (int32_t)b->merges[i].pair, &right_size);
        if (left_size && right_size)
            rc = add_join(b, &count, last_char(left, left_size), first_char(right, right_size));
    }
    return rc;
}

/* ---- symbols ---------------------------------------------------------------------------------- */

/* While symbols are made, `next` says whether one is a character by itself. */
typedef struct work {
    const ic_bpe *b;
    const ic_vocab *v;
    ic_scratch *scratch;
    const char *text;
    size_t size, count;
} work;

static int add_symbol(work *w, int32_t id, size_t start, size_t size, bool plain)
{
    ic_scratch *s = w->scratch;
    if (w->count == s->symbol_capacity) {
        int rc = ic_grow(&s->symbols, &s->symbol_capacity, w->count + 1, sizeof *s->symbols);
        if (rc < 0)
            return rc;
    }
    s->symbols[w->count++] =
        (ic_symbol){.id = id, .start = (uint32_t)start, .size = (uint32_t)size, .next = plain};
    return ICAE_OK;
}

static int32_t find_char(const ic_vocab *v, uint32_t code, const char *text, size_t size)
{
    return code < IC_COUNT(v->latin) ? v->latin[code] : ic_vocab_find(v, text, size);
}

/* A character with what the model puts in front of or behind it. */
static int decorate(ic_buffer *out, const work *w, size_t at, size_t size)
{
    const ic_bpe *b = w->b;
    int rc = ICAE_OK;
    out->size = 0;
    if (b->prefix && at > 0)
        rc = ic_buffer_add(out, b->prefix, strlen(b->prefix));
    if (rc >= 0)
        rc = ic_buffer_add(out, w->text + at, size);
    if (rc >= 0 && b->suffix && at + size == w->size)
        rc = ic_buffer_add(out, b->suffix, strlen(b->suffix));
    return rc;
}

static bool has_bytes(const ic_vocab *v, const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (v->bytes[(unsigned char)text[i]] < 0)
            return false;
    return true;
}

/* An unknown character, `text` with its decoration. Unknown ones in a row may become one symbol,
 * which is why the last is held back; bytes do not release it (as in Hugging Face's). */
static int add_unknown(work *w, size_t *held, size_t at, size_t size, const char *text,
                       size_t text_size)
{
    const ic_bpe *b = w->b;
    int rc = ICAE_OK;
    if (b->byte_fallback && has_bytes(w->v, text, text_size)) {
        for (size_t i = 0; i < text_size && rc >= 0; i++)
            rc = add_symbol(w, w->v->bytes[(unsigned char)text[i]], at, 1, false);
        return rc;
    }
    if (!b->unknown)
        return ICAE_OK;
    if (b->unknown_id < 0)
        return ic_fail(ICAE_EFORMAT,
                       "the tokenizer's unk_token \"%.100s\" is not in its vocabulary", b->unknown);
    if (*held && b->fuse_unknown)
        *held += size;
    else {
        if (*held)
            rc = add_symbol(w, b->unknown_id, at, *held, false);
        *held = size;
    }
    return rc;
}

static int make_symbols(work *w)
{
    int rc = ICAE_OK;
    size_t held = 0;
    ic_buffer decorated = {0};
    for (size_t at = 0; at < w->size;) {
        uint32_t code;
        size_t size = (size_t)ic_next_char(&code, w->text + at, w->size - at), text_size = size;
        const char *text = w->text + at;
        int32_t id;
        if (w->b->prefix || w->b->suffix) {
            IC_TRY(decorate(&decorated, w, at, size));
            text = decorated.data;
            text_size = decorated.size;
            id = ic_vocab_find(w->v, text, text_size);
        } else {
            id = find_char(w->v, code, text, size);
        }
        if (id >= 0 || w->b->ranks || w->b->keep_unknown) {
            if (held)
                IC_TRY(add_symbol(w, w->b->unknown_id, at, held, false));
            held = 0;
            IC_TRY(add_symbol(w, id, at, size, true));
        } else {
            IC_TRY(add_unknown(w, &held, at, size, text, text_size));
        }
        at += size;
    }
    if (held)
        rc = add_symbol(w, w->b->unknown_id, w->size, held, false);
done:
    ic_buffer_free(&decorated);
    return rc;
}

/* ---- merging ---------------------------------------------------------------------------------- */

/* What a pair becomes; false: it stays. */
static bool find_pair(uint32_t *rank, int32_t *id, const work *w, const ic_symbol *left,
                      const ic_symbol *right)
{
    const ic_bpe *b = w->b;
    if (b->ranks) {
        size_t size = (size_t)left->size + right->size;
        *id = size > b->longest ? IC_NO_TOKEN : ic_vocab_find(w->v, w->text + left->start, size);
        if (*id < 0)
            return false;
        *rank = b->ranks[*id];
        return true;
    }
    if (!b->merge_slots)
        return false;
    const ic_merge *m = slot_of(b->merges, b->merge_slots, pair_key(left->id, right->id));
    if (m->pair == EMPTY)
        return false;
    *rank = m->rank;
    *id = m->id;
    return true;
}

/* All pairs are looked at for every merge: best for few symbols. Returns how many are left. */
static size_t merge_small(const work *w, ic_symbol *s, size_t n)
{
    uint64_t best[SMALL]; /* rank and id of the pair that begins here; EMPTY: none */
    for (size_t i = 0; i + 1 < n; i++) {
        uint32_t rank;
        int32_t id;
        best[i] = find_pair(&rank, &id, w, &s[i], &s[i + 1]) ? (uint64_t)rank << 32 | (uint32_t)id
                                                             : EMPTY;
    }
    while (n > 1) {
        size_t at = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (best[i] >> 32 < best[at] >> 32)
                at = i;
        if (best[at] == EMPTY)
            break;
        s[at].id = (int32_t)best[at];
        s[at].size += s[at + 1].size;
        memmove(&s[at + 1], &s[at + 2], (n - at - 2) * sizeof *s);
        memmove(&best[at], &best[at + 1], (n - at - 2) * sizeof *best);
        n--;
        for (size_t i = at > 0 ? at - 1 : 0; i <= at && i + 1 < n; i++) {
            uint32_t rank;
            int32_t id;
            best[i] = find_pair(&rank, &id, w, &s[i], &s[i + 1])
                          ? (uint64_t)rank << 32 | (uint32_t)id
                          : EMPTY;
        }
    }
    return n;
}

static int heap_push(ic_scratch *s, ic_heap_entry entry)
{
    int rc = s->heap_count < s->heap_capacity
                 ? ICAE_OK
                 : ic_grow(&s->heap, &s->heap_capacity, s->heap_count + 1, sizeof *s->heap);
    if (rc < 0)
        return rc;
    size_t at = s->heap_count++;
    while (at > 0 && s->heap[(at - 1) / 2].key > entry.key) {
        s->heap[at] = s->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    s->heap[at] = entry;
    return ICAE_OK;
}

static ic_heap_entry heap_pop(ic_scratch *s)
{
    ic_heap_entry top = s->heap[0], last = s->heap[--s->heap_count];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < s->heap_count; at = child) {
        if (child + 1 < s->heap_count && s->heap[child + 1].key < s->heap[child].key)
            child++;
        if (s->heap[child].key >= last.key)
            break;
        s->heap[at] = s->heap[child];
    }
    s->heap[at] = last;
    return top;
}

static int push_pair(const work *w, const ic_symbol *s, int32_t left, int32_t right)
{
    uint32_t rank;
    int32_t id;
    if (left < 0 || right < 0 || !find_pair(&rank, &id, w, &s[left], &s[right]))
        return ICAE_OK;
    return heap_push(w->scratch, (ic_heap_entry){(uint64_t)rank << 32 | (uint32_t)left, id});
}

static int merge_large(size_t *left, const work *w, ic_symbol *s, size_t n)
{
    int rc = ICAE_OK;
    w->scratch->heap_count = 0;
    for (size_t i = 0; i < n; i++) {
        s[i].previous = (int32_t)i - 1;
        s[i].next = i + 1 < n ? (int32_t)i + 1 : -1;
    }
    for (size_t i = 0; i + 1 < n; i++)
        IC_TRY(push_pair(w, s, (int32_t)i, (int32_t)i + 1));
    while (w->scratch->heap_count > 0) {
        ic_heap_entry e = heap_pop(w->scratch);
        int32_t at = (int32_t)(uint32_t)e.key, next = s[at].next, id;
        uint32_t rank;
        /* Entries are not taken out when a symbol changes, they are recognised here. */
        if (s[at].size == 0 || next < 0 || !find_pair(&rank, &id, w, &s[at], &s[next]) ||
            id != e.id)
            continue;
        s[at].id = id;
        s[at].size += s[next].size;
        s[next].size = 0;
        s[at].next = s[next].next;
        if (s[at].next >= 0)
            s[s[at].next].previous = at;
        IC_TRY(push_pair(w, s, s[at].previous, at));
        IC_TRY(push_pair(w, s, at, s[at].next));
    }
    *left = 0;
    for (size_t i = 0; i < n; i++)
        if (s[i].size)
            s[(*left)++] = s[i];
done:
    return rc;
}

/* ---- output ----------------------------------------------------------------------------------- */

/* A symbol that is no token: its bytes, as llama.cpp spells it. */
static int spell(ic_ids *out, const work *w, const ic_symbol *s)
{
    int rc = ICAE_OK;
    size_t size = s->size;
    const char *text = w->text + s->start;
    if (!w->b->ranks)
        text = ic_vocab_text(w->v, s->id, &size);
    for (size_t i = 0; text && i < size && rc >= 0; i++) {
        unsigned char byte = (unsigned char)text[i];
        int32_t id = w->b->ranks ? w->v->bytes[byte] : IC_NO_TOKEN;
        if (id < 0 && byte < 0x80)
            id = w->v->latin[byte];
        if (id < 0 && w->b->ranks)
            id = w->b->unknown_id;
        if (id >= 0 && id < w->b->public_size)
            rc = ic_ids_add(out, id);
    }
    return rc;
}

static int merge_word(ic_ids *out, const work *w, ic_symbol *s, size_t n)
{
    int rc = ICAE_OK;
    if (n <= SMALL)
        n = merge_small(w, s, n);
    else if ((rc = merge_large(&n, w, s, n)) < 0)
        return rc;
    for (size_t i = 0; i < n && rc >= 0; i++)
        rc = s[i].id >= 0 && s[i].id < w->b->public_size ? ic_ids_add(out, s[i].id)
                                                         : spell(out, w, &s[i]);
    return rc;
}

/* The character a symbol ends or begins with. */
static uint32_t edge_of(const work *w, const ic_symbol *s, bool last)
{
    size_t size = s->size;
    const char *text = w->text + s->start;
    if (!s->next)
        text = ic_vocab_text(w->v, s->id, &size);
    if (!text || !size)
        return 0;
    return last ? last_char(text, size) : first_char(text, size);
}

int ic_bpe_encode(ic_ids *out, const ic_bpe *b, const ic_vocab *v, const char *text, size_t size,
                  ic_scratch *scratch)
{
    int rc = ICAE_OK;
    work w = {b, v, scratch, text, size, 0};
    if (size == 0)
        return ICAE_OK;
    if (size > INT32_MAX)
        return ic_fail(ICAE_ELIMIT, "a piece of %zu bytes is too long for the tokenizer", size);
    if (b->ignore_merges) {
        int32_t id = ic_vocab_find(v, text, size);
        if (id >= 0 && id < b->public_size)
            return ic_ids_add(out, id);
    }
    IC_TRY(make_symbols(&w));
    size_t begin = 0;
    for (size_t i = 1; i <= w.count; i++) {
        const ic_symbol *s = &scratch->symbols[i - 1];
        if (i < w.count &&
            (!b->joins || can_join(b, edge_of(&w, s, true), edge_of(&w, s + 1, false))))
            continue;
        IC_TRY(merge_word(out, &w, scratch->symbols + begin, i - begin));
        begin = i;
    }
done:
    return rc;
}
