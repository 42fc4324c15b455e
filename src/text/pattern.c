/*
 * pattern.c - rewrites regular expressions from Oniguruma's syntax, which tokenizer.json files are
 * written for, to PCRE2's.
 *
 * What differs: what classes of characters are (pattern_class.c), nested classes and their
 * intersections, the reach of (?i), the letter of "dot matches all". What cannot be said in PCRE2 is
 * refused by name. Knows nothing of matching.
 */
#include "text/internal.h"

#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 100
#define ANY       "[\\x{0}-\\x{10ffff}]"

typedef struct reader {
    const char *pattern, *where;
    size_t at, size;
} reader;

static int refuse(const reader *r, const char *what)
{
    return ic_fail(ICAE_EUNSUPPORTED, "%.200s: %s in the pattern \"%.200s\" is not supported",
                   r->where, what, r->pattern);
}

static int broken(const reader *r, const char *what)
{
    return ic_fail(ICAE_EFORMAT, "%.200s: %s in the pattern \"%.200s\" (at byte %zu)", r->where,
                   what, r->pattern, r->at);
}

static int put(ic_buffer *b, const char *text)
{
    return ic_buffer_add(b, text, strlen(text));
}

static bool next_is(const reader *r, const char *text)
{
    return strncmp(r->pattern + r->at, text, strlen(text)) == 0;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* \p{…} or \P{…}, from behind the letter. */
static int read_property(char room[64], const char **body, bool *negated, reader *r)
{
    if (r->pattern[r->at] != '{')
        return refuse(r, "\\p without braces");
    size_t begin = ++r->at;
    while (r->at < r->size && r->pattern[r->at] != '}')
        r->at++;
    if (r->at == r->size)
        return broken(r, "\\p{ without end");
    size_t end = r->at++;
    if (r->pattern[begin] == '^') {
        *negated = !*negated;
        begin++;
    }
    char name[48];
    if (!ic_plain_name(name, sizeof name, r->pattern + begin, end - begin))
        return refuse(r, "this property");
    *body = ic_property_body(room, name);
    return ICAE_OK;
}

static int hex_value(char c)
{
    if (is_digit(c))
        return c - '0';
    c = (char)(c | 32);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static uint32_t read_hex(reader *r, int digits)
{
    uint32_t code = 0;
    for (int i = 0; i < digits && hex_value(r->pattern[r->at]) >= 0; i++)
        code = code << 4 | (uint32_t)hex_value(r->pattern[r->at++]);
    return code;
}

/* A single character given by an escape, from behind the backslash. */
static int read_escaped_char(uint32_t *code, reader *r)
{
    static const char letters[] = "tnrfvae", codes[] = "\t\n\r\f\v\a\x1b";
    char c = r->pattern[r->at];
    if (r->at >= r->size)
        return broken(r, "a backslash at the end");
    const char *known = strchr(letters, c);
    if (known) {
        r->at++;
        *code = (uint32_t)codes[known - letters];
    } else if (c == 'x' && r->pattern[r->at + 1] == '{') {
        r->at += 2;
        *code = read_hex(r, 8);
        if (r->pattern[r->at++] != '}')
            return broken(r, "\\x{ without end");
    } else if (c == 'x' || c == 'u') {
        r->at++;
        *code = read_hex(r, c == 'x' ? 2 : 4);
    } else if (c == '0') {
        *code = 0;
        for (int i = 0; i < 3 && r->pattern[r->at] >= '0' && r->pattern[r->at] <= '7'; i++)
            *code = *code * 8 + (uint32_t)(r->pattern[r->at++] - '0');
    } else if (is_digit(c) || strchr("cCMkgpPXRKGyYNO", c)) {
        return refuse(r, "this escape");
    } else { /* any other stands for itself */
        r->at += (size_t)ic_next_char(code, r->pattern + r->at, r->size - r->at);
    }
    if (*code > 0x10ffff || (*code >= 0xd800 && *code < 0xe000))
        return broken(r, "a character beyond Unicode");
    return ICAE_OK;
}

/* ---- [ … ] ------------------------------------------------------------------------------------
 */

static int read_class(ic_buffer *out, reader *r, int depth);

/* [:name:], from behind "[:". */
static int read_posix(ic_charset *s, reader *r)
{
    const char *end = strstr(r->pattern + r->at, ":]");
    bool negated = r->pattern[r->at] == '^';
    r->at += negated;
    char name[48];
    if (!end ||
        !ic_plain_name(name, sizeof name, r->pattern + r->at,
                       (size_t)(end - (r->pattern + r->at))) ||
        !ic_class_named(name))
        return refuse(r, "this POSIX bracket");
    r->at = (size_t)(end - r->pattern) + 2;
    const char *body = ic_class_named(name);
    if (strcmp(name, "punct") == 0) /* in brackets symbols count too */
        body = "\\p{P}\\p{S}";
    return ic_charset_add_body(s, body, negated);
}

/* One item of a class; *is_char and *code if it is a single character (not added yet). */
static int read_item(ic_charset *s, bool *is_char, uint32_t *code, reader *r, int depth)
{
    *is_char = false;
    if (next_is(r, "[:") && strstr(r->pattern + r->at, ":]")) {
        r->at += 2;
        return read_posix(s, r);
    }
    if (r->pattern[r->at] == '[') {
        r->at++;
        ic_buffer inner = {0};
        int rc = read_class(&inner, r, depth + 1);
        if (rc >= 0)
            rc = ic_charset_add_other(s, inner.data);
        ic_buffer_free(&inner);
        return rc;
    }
    *is_char = true;
    if (r->pattern[r->at] != '\\') {
        r->at += (size_t)ic_next_char(code, r->pattern + r->at, r->size - r->at);
        return ICAE_OK;
    }
    char letter = r->pattern[++r->at], room[64];
    const char *body = letter ? ic_class_of_letter(letter) : NULL;
    bool negated = letter >= 'A' && letter <= 'Z';
    if (letter == 'p' || letter == 'P') {
        r->at++;
        int rc = read_property(room, &body, &negated, r);
        if (rc < 0)
            return rc;
    } else if (body) {
        r->at++;
    } else if (letter == 'b') {
        r->at++;
        *code = 8;
        return ICAE_OK;
    } else {
        return read_escaped_char(code, r);
    }
    *is_char = false;
    return ic_charset_add_body(s, body, negated);
}

/* Items up to "]" or "&&". */
static int read_items(ic_charset *s, reader *r, int depth, bool first)
{
    int rc = ICAE_OK;
    while (r->at < r->size && !next_is(r, "&&") && (first || r->pattern[r->at] != ']')) {
        bool is_char, is_last = false;
        uint32_t low = 0, high = 0;
        first = false;
        IC_TRY(read_item(s, &is_char, &low, r, depth));
        if (!is_char)
            continue;
        high = low;
        if (r->pattern[r->at] == '-' && r->at + 1 < r->size && r->pattern[r->at + 1] != ']' &&
            !next_is(r, "-&&") && r->pattern[r->at + 1] != '[') {
            size_t dash = r->at++;
            IC_TRY(read_item(s, &is_last, &high, r, depth));
            if (!is_last) { /* [a-\d]: the dash is one */
                high = low;
                IC_TRY(put(&s->simple, "\\x{2d}"));
            } else if (high < low) {
                r->at = dash;
                return broken(r, "an empty range");
            }
        }
        IC_TRY(ic_buffer_addf(&s->simple, high > low ? "\\x{%x}-\\x{%x}" : "\\x{%x}", low, high));
    }
done:
    return rc;
}

/* A class from behind its "[": appends a pattern that matches one character. */
static int read_class(ic_buffer *out, reader *r, int depth)
{
    int rc = ICAE_OK;
    ic_charset s = {0};
    ic_buffer all = {0};
    if (depth > MAX_DEPTH)
        return refuse(r, "so deep a nesting of classes");
    bool negated = r->pattern[r->at] == '^', parts = false;
    r->at += negated;
    bool bracket = r->pattern[r->at] == ']' && strchr(r->pattern + r->at + 1, ']');
    for (;;) {
        IC_TRY(read_items(&s, r, depth, bracket));
        bracket = false;
        if (r->at >= r->size) {
            rc = broken(r, "a class without end");
            goto done;
        }
        bool more = r->pattern[r->at] == '&';
        if (!more && !parts)
            break;
        /* All but the last of an intersection are looked at ahead. */
        parts = true;
        IC_TRY(put(&all, more ? "(?=" : ""));
        IC_TRY(ic_charset_write(&all, &s, false));
        IC_TRY(put(&all, more ? ")" : ""));
        ic_charset_free(&s);
        s = (ic_charset){0};
        if (!more)
            break;
        r->at += 2;
    }
    r->at++;
    if (!parts)
        rc = ic_charset_write(out, &s, negated);
    else
        rc = ic_buffer_addf(out, negated ? "(?:(?!%s)" ANY ")" : "(?:%s)", all.data);
done:
    ic_charset_free(&s);
    ic_buffer_free(&all);
    return rc;
}

/* ---- outside of classes -----------------------------------------------------------------------
 */

static int write_char(ic_buffer *out, uint32_t code)
{
    return ic_buffer_addf(out, "\\x{%x}", code);
}

static int read_escape(ic_buffer *out, reader *r)
{
    char letter = r->pattern[r->at], room[64];
    bool negated = letter >= 'A' && letter <= 'Z';
    const char *body = letter ? ic_class_of_letter(letter) : NULL;
    if (body) {
        r->at++;
        return ic_class_write(out, body, negated);
    }
    switch (letter) {
    case 'p':
    case 'P': {
        r->at++;
        int rc = read_property(room, &body, &negated, r);
        return rc < 0 ? rc : ic_class_write(out, body, negated);
    }
    case 'b':
    case 'B':
        r->at++;
        body = ic_class_of_letter('w');
        return ic_buffer_addf(out,
                              negated ? "(?:(?<=[%s])(?=[%s])|(?<![%s])(?![%s]))"
                                      : "(?:(?<=[%s])(?![%s])|(?<![%s])(?=[%s]))",
                              body, body, body, body);
    case 'R':
        r->at++;
        return put(out, "(?>\\r\\n|[\\x{a}-\\x{d}\\x{85}\\x{2028}\\x{2029}])");
    case 'N':
        r->at++;
        return put(out, "[^\\n]");
    case 'O':
        r->at++;
        return put(out, ANY);
    case 'A':
    case 'z':
    case 'Z':
    case 'G':
    case 'X':
        r->at++;
        return ic_buffer_addf(out, "\\%c", letter);
    default:
        break;
    }
    if (letter >= '1' && letter <= '9' && !is_digit(r->pattern[r->at + 1])) {
        r->at++;
        return ic_buffer_addf(out, "(?:\\%c)", letter);
    }
    uint32_t code;
    int rc = read_escaped_char(&code, r);
    return rc < 0 ? rc : write_char(out, code);
}

/* {n}, {n,}, {n,m} and {,m}; anything else is a brace. */
static int read_interval(ic_buffer *out, reader *r)
{
    size_t i = r->at + 1;
    int digits = 0, more = 0;
    for (; is_digit(r->pattern[i]); i++)
        digits++;
    bool comma = r->pattern[i] == ',';
    for (i += comma; comma && is_digit(r->pattern[i]); i++)
        more++;
    if (r->pattern[i] != '}' || digits + more == 0 || digits > 5 || more > 5) {
        r->at++;
        return put(out, "\\{");
    }
    size_t begin = r->at;
    r->at = i + 1;
    if (r->pattern[r->at] == '+' || (r->pattern[r->at] == '?' && !comma))
        return refuse(r, "a quantifier behind an interval");
    if (digits == 0)
        return ic_buffer_addf(out, "{0%.*s", (int)(r->at - begin - 1), r->pattern + begin + 1);
    return ic_buffer_add(out, r->pattern + begin, r->at - begin);
}

typedef struct nesting {
    int depth;
    int closing[MAX_DEPTH + 1]; /* parentheses that an option opened until the end of the group */
} nesting;

/* (?imx-imx) and (?imx-imx:…), from behind "(?". */
static int read_options(ic_buffer *out, reader *r, nesting *n)
{
    char on[8] = "", off[8] = "", *now = on;
    for (; r->at < r->size; r->at++) {
        char c = r->pattern[r->at];
        if (c == '-' && now == on)
            now = off;
        else if (c == 'x' && now == off)
            continue; /* never on */
        else if ((c == 'i' || c == 'm') && strlen(now) < 4)
            now[strlen(now)] = c == 'i' ? 'i' : 's';
        else
            break;
    }
    char end = r->pattern[r->at];
    if (end != ')' && end != ':')
        return refuse(r, "this kind of group (?…");
    r->at++;
    /* Options by themselves reach to the end of the group, over all its alternatives. */
    if (end == ')')
        n->closing[n->depth]++;
    else
        n->closing[++n->depth] = 0;
    return ic_buffer_addf(out, *off ? "(?%s-%s:" : "(?%s:", on, off);
}

static int read_group(ic_buffer *out, reader *r, nesting *n)
{
    static const char *const kinds[] = {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!"};
    if (n->depth >= MAX_DEPTH || n->closing[n->depth] > MAX_DEPTH)
        return refuse(r, "so deep a nesting of groups");
    if (next_is(r, "(*"))
        return refuse(r, "(*");
    if (next_is(r, "(?#")) {
        const char *end = strchr(r->pattern + r->at, ')');
        if (!end)
            return broken(r, "a comment without end");
        r->at = (size_t)(end - r->pattern) + 1;
        return ICAE_OK;
    }
    for (size_t i = 0; i < IC_COUNT(kinds); i++) {
        if (!next_is(r, kinds[i]))
            continue;
        r->at += strlen(kinds[i]);
        n->closing[++n->depth] = 0;
        return put(out, kinds[i]);
    }
    if (next_is(r, "(?")) {
        r->at += 2;
        return read_options(out, r, n);
    }
    r->at++;
    n->closing[++n->depth] = 0;
    return put(out, "(");
}

static int close_group(ic_buffer *out, nesting *n)
{
    int rc = ICAE_OK;
    for (; n->closing[n->depth] > 0 && rc >= 0; n->closing[n->depth]--)
        rc = put(out, ")");
    return rc;
}

int ic_pattern_translate(ic_buffer *out, const char *pattern, const char *where)
{
    int rc = ICAE_OK;
    nesting n = {0};
    reader r = {.pattern = pattern, .where = where, .size = strlen(pattern)};
    while (r.at < r.size) {
        char c = pattern[r.at];
        if (c == '\\') {
            r.at++;
            IC_TRY(read_escape(out, &r));
        } else if (c == '[') {
            r.at++;
            IC_TRY(read_class(out, &r, 0));
        } else if (c == '(') {
            IC_TRY(read_group(out, &r, &n));
        } else if (c == ')') {
            if (n.depth == 0)
                return broken(&r, "an unmatched parenthesis");
            IC_TRY(close_group(out, &n));
            n.depth--;
            r.at++;
            IC_TRY(put(out, ")"));
        } else if (c == '{') {
            IC_TRY(read_interval(out, &r));
        } else {
            r.at++;
            IC_TRY(ic_buffer_add(out, &c, 1));
        }
    }
    if (n.depth > 0)
        return broken(&r, "a group without end");
    rc = close_group(out, &n);
    if (rc >= 0 && !out->size)
        rc = put(out, "(?:)");
done:
    return rc;
}
