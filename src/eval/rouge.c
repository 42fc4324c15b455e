/*
 * rouge.c - ROUGE (Lin 2004) as the rouge-score package computes it without stemmer: lower case,
 * words of a-z and 0-9, F of n-gram overlap and of the longest common subsequence of the whole text.
 */
#include "eval/metrics.h"

#include <string.h>

static bool is_letter_at(const char *text, size_t size, size_t at)
{
    uint32_t code;
    return at < size && ic_utf8_decode(&code, text + at, size - at) > 0 &&
           (code >= 0x80 ? !ic_is_whitespace(code) && !ic_is_punctuation(code)
                         : (code | 32) >= 'a' && (code | 32) <= 'z');
}

/* A capital sigma that ends a word has a lower case of its own. */
static const char *lower_sigma(const char *text, size_t size, size_t at)
{
    size_t before = at;
    while (before && ((unsigned char)text[--before] & 0xc0) == 0x80)
        ;
    bool last = at && is_letter_at(text, size, before) && !is_letter_at(text, size, at + 2);
    return last ? "\xcf\x82" : "\xcf\x83";
}

int ic_text_lower(ic_buffer *out, const char *text, size_t size)
{
    int rc = ICAE_OK;
    for (size_t at = 0; at < size;) {
        uint32_t code;
        char lower[8];
        int n = ic_utf8_decode(&code, text + at, size - at);
        if (n < 0) {
            IC_TRY(ic_buffer_add(out, text + at, (size_t)-n));
            at += (size_t)-n;
            continue;
        }
        int m = ic_unicode_lower(lower, code);
        if (code == 0x3a3)
            memcpy(lower, lower_sigma(text, size, at), 2);
        IC_TRY(ic_buffer_add(out, lower, (size_t)m));
        at += (size_t)n;
    }
done:
    return rc;
}

static int tokenize(ic_words *w, const char *text, size_t size)
{
    int rc = ICAE_OK;
    IC_TRY(ic_text_lower(&w->text, text, size));
    size_t begin = 0;
    for (size_t i = 0; i <= w->text.size; i++) {
        char c = ' ';
        if (i < w->text.size)
            c = w->text.data[i];
        if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'))
            continue;
        if (i > begin)
            IC_TRY(ic_words_add(w, w->text.data + begin, i - begin));
        begin = i + 1;
    }
done:
    return rc;
}

static ic_overlap overlap(uint64_t common, size_t candidate, size_t reference)
{
    ic_overlap o = {0};
    o.precision = (double)common / (double)IC_MAX(candidate, (size_t)1);
    o.recall = (double)common / (double)IC_MAX(reference, (size_t)1);
    if (common)
        o.f = 2 * o.precision * o.recall / (o.precision + o.recall);
    return o;
}

static size_t grams(const ic_words *w, size_t n)
{
    return w->count >= n ? w->count - n + 1 : 0;
}

/* Length of the longest common subsequence, in one row of the usual table. */
static int common_subsequence(uint64_t *out, const ic_words *a, const ic_words *b)
{
    uint32_t *row = ic_alloc(b->count + 1, sizeof *row);
    if (!row)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < a->count; i++) {
        uint32_t diagonal = 0;
        for (size_t j = 0; j < b->count; j++) {
            uint32_t above = row[j + 1];
            row[j + 1] = a->id[i] == b->id[j] ? diagonal + 1 : IC_MAX(above, row[j]);
            diagonal = above;
        }
    }
    *out = row[b->count];
    ic_free(row);
    return ICAE_OK;
}

int ic_rouge_score(ic_rouge *out, const char *candidate, size_t candidate_size,
                   const char *reference, size_t reference_size)
{
    int rc = ICAE_OK;
    uint64_t one, two, l;
    ic_words c = {0}, r = {0};
    IC_TRY(tokenize(&c, candidate, candidate_size));
    IC_TRY(tokenize(&r, reference, reference_size));
    IC_TRY(ic_words_number(&c, &r));
    IC_TRY(ic_words_common(&one, &c, &r, 1));
    IC_TRY(ic_words_common(&two, &c, &r, 2));
    IC_TRY(common_subsequence(&l, &c, &r));
    out->one = overlap(one, c.count, r.count);
    out->two = overlap(two, grams(&c, 2), grams(&r, 2));
    out->l = overlap(l, c.count, r.count);
done:
    ic_words_free(&c);
    ic_words_free(&r);
    return rc;
}
