/*
 * added.c - added tokens: texts that are found as a whole, before (or after) normalisation, whatever
 * the model would make of them.
 *
 * Owns their list and two sorted ones to search in; the longest token at the leftmost place wins, and
 * the search goes on behind it. What single_word, lstrip and rstrip do follows Hugging Face's, with
 * its corner cases. The text between tokens is handed to a callback.
 */
#include "text/internal.h"

#include <stdlib.h>
#include <string.h>

/* What counts as part of a word next to a single_word token. */
#define WORD_PATTERN "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}]"

/* ---- searching -------------------------------------------------------------------------------- */

static const char *text_of(const ic_added_token *token, size_t *size)
{
    *size = token->normal ? token->normal_size : token->size;
    return token->normal ? token->normal : token->content;
}

static int compare_tokens(const void *a, const void *b)
{
    size_t m, n;
    const ic_added_token *x = *(const ic_added_token *const *)a;
    const ic_added_token *y = *(const ic_added_token *const *)b;
    const char *s = text_of(x, &m), *t = text_of(y, &n);
    int order = memcmp(s, t, IC_MIN(m, n));
    if (order)
        return order;
    return m != n ? (m > n) - (m < n) : (x->id > y->id) - (x->id < y->id);
}

/* First token in [low, high) that has, at `depth`, a byte of at least `byte` (257: none has). */
static size_t lower_bound(const ic_added_token *const *sorted, size_t low, size_t high,
                          size_t depth, unsigned byte)
{
    while (low < high) {
        size_t middle = (low + high) / 2, size;
        const char *text = text_of(sorted[middle], &size);
        unsigned have = depth < size ? (unsigned char)text[depth] + 1u : 0;
        if (have < byte + 1)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest token that begins the text. */
static const ic_added_token *longest(const ic_added *a, int which, const char *text, size_t size)
{
    const ic_added_token *const *sorted = a->sorted[which], *found = NULL;
    unsigned char first = (unsigned char)text[0];
    size_t low = a->first[which][first], high = a->first[which][first + 1];
    for (size_t depth = 1; low < high; depth++) {
        size_t length;
        text_of(sorted[low], &length);
        if (length == depth)
            found = sorted[low];
        if (depth == size)
            break;
        unsigned byte = (unsigned char)text[depth];
        low = lower_bound(sorted, low, high, depth, byte);
        high = lower_bound(sorted, low, high, depth, byte + 1);
    }
    return found;
}

/* Start of the last character before `at`. */
static size_t back(const char *text, size_t at)
{
    do
        at--;
    while (at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80);
    return at;
}

static int is_word(const ic_added *a, const char *text, size_t size, ic_matcher *m)
{
    uint32_t code;
    char older[4];
    size_t start, end;
    ic_next_char(&code, text, size);
    int length = ic_utf8_encode(older, ic_older_character(code, true));
    ic_find find = {.regex = a->word, .text = older, .size = (size_t)length};
    return ic_find_next(&start, &end, &find, m);
}

/* 1 if the token at [start, end) is a word by itself, 0 if not, or an error. */
static int stands_alone(const ic_added *a, const char *text, size_t size, size_t start, size_t end,
                        ic_matcher *m)
{
    int word = 0;
    if (start > 0)
        word = is_word(a, text + back(text, start), start - back(text, start), m);
    if (word == 0 && end < size)
        word = is_word(a, text + end, size - end, m);
    return word < 0 ? word : !word;
}

static size_t strip_left(const char *text, size_t start)
{
    while (start > 0) {
        uint32_t code;
        size_t before = back(text, start);
        ic_next_char(&code, text + before, start - before);
        if (!ic_is_whitespace(code))
            break;
        start = before;
    }
    return start;
}

static size_t strip_right(const char *text, size_t size, size_t end)
{
    while (end < size) {
        uint32_t code;
        size_t length = (size_t)ic_next_char(&code, text + end, size - end);
        if (!ic_is_whitespace(code))
            break;
        end += length;
    }
    return end;
}

int ic_added_split(const ic_added *a, int which, const char *text, size_t size, bool skip_special,
                   ic_matcher *m, ic_piece_fn fn, void *user)
{
    int rc = ICAE_OK;
    size_t done_to = 0;
    for (size_t at = 0; a->sorted_count[which] && at < size;) {
        const ic_added_token *token = longest(a, which, text + at, size - at);
        if (!token) {
            at++;
            continue;
        }
        size_t length, start = at;
        text_of(token, &length);
        size_t end = at = at + length;
        if (skip_special && token->special)
            continue;
        if (token->single_word) {
            int alone = stands_alone(a, text, size, start, end, m);
            if (alone < 0)
                return alone;
            if (!alone)
                continue;
        }
        if (token->lstrip)
            start = IC_MAX(strip_left(text, start), done_to);
        if (token->rstrip)
            end = strip_right(text, size, end);
        if (done_to < start)
            IC_TRY(fn(user, IC_NO_TOKEN, done_to, start - done_to));
        if (start < end) /* else what was stripped before has swallowed it */
            IC_TRY(fn(user, token->id, start, end - start));
        done_to = end;
    }
    if (done_to < size)
        rc = fn(user, IC_NO_TOKEN, done_to, size - done_to);
done:
    return rc;
}

/* ---- making them ------------------------------------------------------------------------------ */

static int sort_tokens(ic_added *a, int which)
{
    a->sorted[which] = ic_alloc(a->count, sizeof *a->sorted[which]);
    if (!a->sorted[which])
        return ICAE_ENOMEM;
    size_t n = 0, size;
    for (size_t i = 0; i < a->count; i++) {
        text_of(&a->tokens[i], &size);
        if (a->tokens[i].normalized == (which == 1) && size > 0)
            a->sorted[which][n++] = &a->tokens[i];
    }
    if (n)
        qsort(a->sorted[which], n, sizeof *a->sorted[which], compare_tokens);
    a->sorted_count[which] = n;
    for (unsigned byte = 0; byte <= 256; byte++)
        a->first[which][byte] = (uint32_t)lower_bound(a->sorted[which], 0, n, 0, byte);
    return ICAE_OK;
}

static int index_tokens(ic_added *a)
{
    int rc = ICAE_OK;
    bool words = false;
    for (size_t i = 0; i < a->count; i++)
        words |= a->tokens[i].single_word;
    if (words)
        IC_TRY(ic_regex_new(&a->word, WORD_PATTERN, "single_word"));
    IC_TRY(sort_tokens(a, 0));
    IC_TRY(sort_tokens(a, 1));
done:
    return rc;
}

static int normalise(ic_added_token *token, const ic_tokenizer *t, ic_scratch *scratch)
{
    size_t origin = 0;
    ic_free(token->normal);
    token->normal = NULL;
    if (!token->normalized || !t->normalizer_count)
        return ICAE_OK;
    scratch->normal.size = 0;
    int rc = ic_buffer_add(&scratch->normal, token->content, token->size);
    if (rc < 0 || (rc = ic_normalizers_run(t, scratch, &origin, false)) < 0)
        return rc;
    const ic_buffer *b = &scratch->normal;
    if (b->size == token->size && memcmp(b->data, token->content, b->size) == 0)
        return ICAE_OK;
    token->normal = ic_strndup(b->data ? b->data : "", b->size);
    token->normal_size = b->size;
    return token->normal ? ICAE_OK : ICAE_ENOMEM;
}

/* The model's id of the text, else the next free one: as Hugging Face does, whatever the file says. */
static int find_id(int32_t *id, int32_t *next, const ic_tokenizer *t, const char *text, size_t size)
{
    *id = ic_vocab_find(&t->vocab, text, size);
    if (*id < 0)
        *id = (*next)++;
    if (*id >= IC_MAX_ID)
        return ic_fail(ICAE_ELIMIT, "%.200s: added tokens need ids beyond %d", t->name, IC_MAX_ID);
    return ICAE_OK;
}

static int add_token(ic_tokenizer *t, const ic_json *node, int32_t *next, ic_scratch *scratch)
{
    ic_added *a = &t->added;
    const char *content;
    size_t ignored;
    int rc = ic_json_need_string(&content, t, node, "added_tokens", "content");
    if (rc < 0 ||
        (rc = ic_json_need_count(&ignored, t, node, "added_tokens", "id", IC_MAX_ID - 1)) < 0)
        return rc;
    size_t size = strlen(content);
    if (size == 0)
        return ICAE_OK;
    int32_t id = ic_vocab_find(&a->names, content, size);
    ic_added_token *token = NULL;
    for (size_t i = a->count; id >= 0 && i-- > 0 && !token;)
        token = a->tokens[i].id == id ? &a->tokens[i] : NULL;
    if (!token) {
        if ((rc = find_id(&id, next, t, content, size)) < 0 ||
            (rc = ic_vocab_set(&a->names, id, content, size, true)) < 0)
            return rc;
        token = &a->tokens[a->count];
        *token = (ic_added_token){.id = id, .size = size, .content = ic_strdup(content)};
        if (!token->content)
            return ICAE_ENOMEM;
        a->count++;
    }
    token->special |= ic_json_bool(ic_json_get(node, "special"), false);
    token->single_word = ic_json_bool(ic_json_get(node, "single_word"), false);
    token->lstrip = ic_json_bool(ic_json_get(node, "lstrip"), false);
    token->rstrip = ic_json_bool(ic_json_get(node, "rstrip"), false);
    token->normalized = ic_json_bool(ic_json_get(node, "normalized"), !token->special);
    return normalise(token, t, scratch);
}

int ic_added_parse(ic_tokenizer *t, const ic_json *node)
{
    int rc = ICAE_OK;
    ic_scratch scratch = {0};
    ic_added *a = &t->added;
    if (!ic_json_is_null(node) && !ic_json_is_array(node))
        return ic_fail(ICAE_EFORMAT, "%.200s: added_tokens is not a list", t->name);
    size_t count = ic_json_count(node);
    if (count > IC_MAX_ID)
        return ic_fail(ICAE_ELIMIT, "%.200s: %zu added tokens", t->name, count);
    int32_t next = (int32_t)t->vocab.count;
    ic_scratch_limit(&scratch, 0);
    IC_TRY(ic_vocab_new(&a->names, count));
    a->tokens = ic_alloc(count + 1, sizeof *a->tokens);
    if (!a->tokens) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (const ic_json *i = ic_json_first(node); i; i = ic_json_next(i))
        IC_TRY(add_token(t, i, &next, &scratch));
    rc = index_tokens(a);
done:
    ic_scratch_free(&scratch);
    return rc;
}

void ic_added_free(ic_added *a)
{
    for (size_t i = 0; i < a->count; i++) {
        ic_free(a->tokens[i].content);
        ic_free(a->tokens[i].normal);
    }
    ic_free(a->tokens);
    ic_free(a->sorted[0]);
    ic_free(a->sorted[1]);
    ic_regex_free(a->word);
    ic_vocab_free(&a->names);
    *a = (ic_added){0};
}
