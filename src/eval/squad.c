/*
 * squad.c - exact match and F1 as SQuAD's evaluation script (version 2) defines them: texts are put in
 * lower case, ASCII punctuation, then the articles a, an, the are removed, and words compared.
 */
#include "eval/metrics.h"

#include <string.h>

/* A letter, digit or underscore, by Unicode, as \w has it (near enough beyond ASCII: symbols, marks
 * and punctuation are not). */
static bool is_word(uint32_t c)
{
    if (c < 0x80)
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               c == '_';
    if (c < 0xc0)
        return c == 0xaa || c == 0xb2 || c == 0xb3 || c == 0xb5 || c == 0xb9 || c == 0xba ||
               (c >= 0xbc && c <= 0xbe);
    if (c == 0xd7 || c == 0xf7 || (c >= 0x20a0 && c <= 0x20c0) || (c >= 0x2190 && c <= 0x245f) ||
        (c >= 0x2500 && c <= 0x2775) || (c >= 0x2794 && c <= 0x2bff) ||
        (c >= 0x1f000 && c <= 0x1f0ff) || (c >= 0x1f300 && c <= 0x1faff))
        return false;
    return !ic_is_whitespace(c) && !ic_is_punctuation(c) && !ic_is_combining_mark(c) && c != 0xfffd;
}

static bool is_article(const char *s, size_t n)
{
    return (n == 1 && s[0] == 'a') || (n == 2 && !memcmp(s, "an", 2)) ||
           (n == 3 && !memcmp(s, "the", 3));
}

/* Runs of word characters that are an article become a space. */
static int remove_articles(ic_buffer *out, const char *text, size_t size)
{
    int rc = ICAE_OK;
    size_t begin = 0, at = 0;
    while (at <= size) {
        uint32_t code = ' ';
        int n = at < size ? ic_utf8_decode(&code, text + at, size - at) : 1;
        if (n < 0) {
            code = ' ';
            n = -n;
        }
        if (!(at < size && is_word(code))) {
            if (is_article(text + begin, at - begin))
                IC_TRY(ic_buffer_add(out, " ", 1));
            else
                IC_TRY(ic_buffer_add(out, text + begin, at - begin));
            if (at < size)
                IC_TRY(ic_buffer_add(out, text + at, (size_t)n));
            begin = at + (size_t)n;
        }
        at += (size_t)n;
    }
done:
    return rc;
}

int ic_squad_normalize(ic_buffer *out, const char *text, size_t size)
{
    int rc = ICAE_OK;
    ic_buffer lower = {0}, bare = {0}, plain = {0};
    ic_words w = {0};
    IC_TRY(ic_text_lower(&lower, text, size));
    for (size_t i = 0; i < lower.size; i++) {
        unsigned char c = (unsigned char)lower.data[i];
        if (c < 0x80 && strchr("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", c) && c)
            continue;
        IC_TRY(ic_buffer_add(&bare, lower.data + i, 1));
    }
    IC_TRY(remove_articles(&plain, bare.data ? bare.data : "", bare.size));
    IC_TRY(ic_words_split(&w, plain.data ? plain.data : "", plain.size));
    for (size_t i = 0; i < w.count; i++) {
        if (i)
            IC_TRY(ic_buffer_add(out, " ", 1));
        IC_TRY(ic_buffer_add(out, w.word[i], w.size[i]));
    }
done:
    ic_words_free(&w);
    ic_buffer_free(&lower);
    ic_buffer_free(&bare);
    ic_buffer_free(&plain);
    return rc;
}

int ic_squad_score(ic_squad *out, const char *candidate, size_t candidate_size,
                   const char *reference, size_t reference_size)
{
    int rc = ICAE_OK;
    uint64_t common;
    ic_words c = {0}, r = {0};
    IC_TRY(ic_squad_normalize(&c.text, candidate, candidate_size));
    IC_TRY(ic_squad_normalize(&r.text, reference, reference_size));
    bool equal = c.text.size == r.text.size &&
                 (!c.text.size || memcmp(c.text.data, r.text.data, c.text.size) == 0);
    IC_TRY(ic_words_split(&c, c.text.data ? c.text.data : "", c.text.size));
    IC_TRY(ic_words_split(&r, r.text.data ? r.text.data : "", r.text.size));
    IC_TRY(ic_words_number(&c, &r));
    IC_TRY(ic_words_common(&common, &c, &r, 1));
    *out = (ic_squad){.exact = equal};
    if (!c.count || !r.count)
        out->f1 = equal;
    else if (common) {
        double precision = (double)common / (double)c.count,
               recall = (double)common / (double)r.count;
        out->f1 = 2 * precision * recall / (precision + recall);
    }
done:
    ic_words_free(&c);
    ic_words_free(&r);
    return rc;
}
