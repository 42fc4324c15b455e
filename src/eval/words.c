/*
 * words.c - lists of words and the n-grams they have in common: what BLEU, ROUGE and F1 count.
 *
 * Words become numbers first, so that n-grams are compared as short arrays. Knows no metric.
 */
#include "eval/metrics.h"

#include <stdlib.h>
#include <string.h>

int ic_words_add(ic_words *w, const char *word, size_t size)
{
    if (size > UINT32_MAX)
        return ic_fail(ICAE_ELIMIT, "a word of %zu bytes is too long", size);
    if (w->count == w->capacity) {
        size_t n = IC_MAX((size_t)256, w->capacity * 2);
        const char **words = ic_resize(w->word, n, sizeof *words);
        w->word = words ? words : w->word;
        uint32_t *sizes = ic_resize(w->size, n, sizeof *sizes);
        w->size = sizes ? sizes : w->size;
        uint32_t *ids = ic_resize(w->id, n, sizeof *ids);
        w->id = ids ? ids : w->id;
        if (!words || !sizes || !ids)
            return ICAE_ENOMEM;
        w->capacity = n;
    }
    w->word[w->count] = word;
    w->size[w->count] = (uint32_t)size;
    w->id[w->count++] = 0;
    return ICAE_OK;
}

/* White space as str.split() of the reference tools sees it: Unicode's, and the four separators. */
static bool is_space(uint32_t code)
{
    return ic_is_whitespace(code) || (code >= 0x1c && code <= 0x1f);
}

int ic_words_split(ic_words *w, const char *text, size_t size)
{
    int rc = ICAE_OK;
    size_t begin = 0, at = 0;
    while (at < size) {
        uint32_t code = 0xfffd;
        int n = ic_utf8_decode(&code, text + at, size - at);
        bool space = n > 0 && is_space(code);
        if (space && at > begin)
            IC_TRY(ic_words_add(w, text + begin, at - begin));
        at += (size_t)abs(n);
        if (space)
            begin = at;
    }
    if (size > begin)
        IC_TRY(ic_words_add(w, text + begin, size - begin));
done:
    return rc;
}

void ic_words_free(ic_words *w)
{
    ic_free(w->word);
    ic_free(w->size);
    ic_free(w->id);
    ic_buffer_free(&w->text);
    *w = (ic_words){0};
}

typedef struct entry {
    const char *word;
    uint32_t size, *id;
} entry;

static int compare_entries(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->size != y->size)
        return x->size < y->size ? -1 : 1;
    return memcmp(x->word, y->word, x->size);
}

int ic_words_number(ic_words *a, ic_words *b)
{
    size_t n = a->count + b->count;
    entry *e = ic_alloc(IC_MAX(n, (size_t)1), sizeof *e);
    if (!e)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < a->count; i++)
        e[i] = (entry){a->word[i], a->size[i], &a->id[i]};
    for (size_t i = 0; i < b->count; i++)
        e[a->count + i] = (entry){b->word[i], b->size[i], &b->id[i]};
    qsort(e, n, sizeof *e, compare_entries);
    for (size_t i = 0; i < n; i++)
        *e[i].id = i && compare_entries(&e[i], &e[i - 1]) == 0 ? *e[i - 1].id : (uint32_t)i;
    ic_free(e);
    return ICAE_OK;
}

/* ---- n-grams ---------------------------------------------------------------------------------- */

typedef struct gram {
    uint32_t id[4];
} gram;

static int compare_grams(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(gram));
}

static gram *sorted_grams(const ic_words *w, size_t n, size_t *count)
{
    *count = w->count >= n ? w->count - n + 1 : 0;
    gram *g = ic_alloc(IC_MAX(*count, (size_t)1), sizeof *g);
    if (!g)
        return NULL;
    for (size_t i = 0; i < *count; i++)
        memcpy(g[i].id, w->id + i, n * sizeof *w->id);
    qsort(g, *count, sizeof *g, compare_grams);
    return g;
}

int ic_words_common(uint64_t *common, const ic_words *a, const ic_words *b, size_t n)
{
    size_t na, nb;
    assert(n >= 1 && n <= 4);
    gram *x = sorted_grams(a, n, &na), *y = sorted_grams(b, n, &nb);
    *common = 0;
    for (size_t i = 0, j = 0; x && y && i < na && j < nb;) {
        int order = compare_grams(&x[i], &y[j]);
        *common += order == 0;
        i += order <= 0;
        j += order >= 0;
    }
    bool ok = x && y;
    ic_free(x);
    ic_free(y);
    return ok ? ICAE_OK : ICAE_ENOMEM;
}
