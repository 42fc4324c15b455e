/*
 * pattern.c - rewrites regular expressions from Oniguruma's syntax, which tokenizer.json files are
 * written for, to PCRE2's.
 *
 * What differs: what \s, \w, \d, \h, \v, \b and POSIX brackets mean, names of properties, nested
 * character classes and their intersections, the reach of (?i), the letter of "dot matches all".
 * Everything that is a class becomes an explicit one, so PCRE2's own notion of it does not matter.
 * What cannot be said in PCRE2 is refused by name. Knows nothing of matching.
 */
#include "text/internal.h"

#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 100
#define ANY       "[\\x{0}-\\x{10ffff}]"
#define NOTHING   "[^\\x{0}-\\x{10ffff}]"

#define SPACE                                                                                   \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}" \
    "\\x{205f}\\x{3000}"
#define NOT_SPACE                                                                           \
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-"  \
    "\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}" \
    "\\x{3001}-\\x{10ffff}"
/* With what Unicode 16 adds to properties of older characters. */
#define ALPHABETIC                                                                                 \
    "\\p{Alphabetic}\\x{363}-\\x{36f}\\x{c04}\\x{f82}\\x{f83}\\x{1dd3}-\\x{1de6}\\x{11080}"        \
    "\\x{11081}\\x{1171e}"
#define LOWER      "\\p{Lowercase}\\x{10fc}\\x{a7f2}-\\x{a7f4}\\x{ab69}"
#define WORD_CLASS "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
/* Outside of brackets Oniguruma counts superscript digits and fractions of Latin-1 too. */
#define WORD WORD_CLASS "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"
#define HEX  "0-9A-Fa-f"

/* Bodies of classes by name; spelling without case, spaces, '-' and '_'. */
static const struct {
    const char *name, *body;
} named_classes[] = {
    {"space", SPACE},
    {"whitespace", SPACE},
    {"word", WORD},
    {"digit", "\\p{Nd}"},
    {"xdigit", HEX},
    {"asciihexdigit", HEX},
    {"alpha", ALPHABETIC},
    {"alphabetic", ALPHABETIC},
    {"alnum", ALPHABETIC "\\p{Nd}"},
    {"lower", LOWER},
    {"lowercase", LOWER},
    {"upper", "\\p{Uppercase}"},
    {"punct", "\\p{P}"},
    {"blank", "\\p{Zs}\\x{9}"},
    {"cntrl", "\\p{Cc}"},
    {"any", "\\x{0}-\\x{10ffff}"},
    {"ascii", "\\x{0}-\\x{7f}"},
};

static const struct {
    const char *name, *value;
} long_categories[] = {
    {"letter", "L"},
    {"casedletter", "L&"},
    {"lc", "L&"},
    {"uppercaseletter", "Lu"},
    {"lowercaseletter", "Ll"},
    {"titlecaseletter", "Lt"},
    {"modifierletter", "Lm"},
    {"otherletter", "Lo"},
    {"mark", "M"},
    {"combiningmark", "M"},
    {"nonspacingmark", "Mn"},
    {"spacingmark", "Mc"},
    {"enclosingmark", "Me"},
    {"number", "N"},
    {"decimalnumber", "Nd"},
    {"letternumber", "Nl"},
    {"othernumber", "No"},
    {"punctuation", "P"},
    {"connectorpunctuation", "Pc"},
    {"dashpunctuation", "Pd"},
    {"openpunctuation", "Ps"},
    {"closepunctuation", "Pe"},
    {"initialpunctuation", "Pi"},
    {"finalpunctuation", "Pf"},
    {"otherpunctuation", "Po"},
    {"symbol", "S"},
    {"mathsymbol", "Sm"},
    {"currencysymbol", "Sc"},
    {"modifiersymbol", "Sk"},
    {"othersymbol", "So"},
    {"separator", "Z"},
    {"spaceseparator", "Zs"},
    {"lineseparator", "Zl"},
    {"paragraphseparator", "Zp"},
    {"other", "C"},
    {"control", "Cc"},
    {"format", "Cf"},
    {"surrogate", "Cs"},
    {"privateuse", "Co"},
    {"unassigned", "Cn"},
};

static const char *const short_categories[] = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",  "Nd", "Nl",
    "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk",
    "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Cs", "Co", "Cn",
};

static const char *const binary_properties[] = {
    "cased",
    "caseignorable",
    "dash",
    "diacritic",
    "emoji",
    "emojicomponent",
    "emojimodifier",
    "emojimodifierbase",
    "emojipresentation",
    "extendedpictographic",
    "extender",
    "graphemebase",
    "graphemeextend",
    "hexdigit",
    "idcontinue",
    "ideographic",
    "idstart",
    "joincontrol",
    "lowercase",
    "math",
    "quotationmark",
    "radical",
    "regionalindicator",
    "softdotted",
    "terminalpunctuation",
    "unifiedideograph",
    "uppercase",
    "variationselector",
    "xidcontinue",
    "xidstart",
};

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

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* ---- what stands for one character ------------------------------------------------------------
 */

/* A set of characters on its way: `simple` fits between brackets, `others` are alternatives that
 * each match one character. */
typedef struct set {
    ic_buffer simple, others;
} set;

static void set_free(set *s)
{
    ic_buffer_free(&s->simple);
    ic_buffer_free(&s->others);
}

static int set_add_other(set *s, const char *pattern)
{
    int rc = ICAE_OK;
    if (s->others.size)
        rc = put(&s->others, "|");
    return rc < 0 ? rc : put(&s->others, pattern);
}

/* Adds a class given by its body, or its complement. */
static int set_add_body(set *s, const char *body, bool negated)
{
    if (!negated)
        return put(&s->simple, body);
    if (strcmp(body, SPACE) == 0)
        return put(&s->simple, NOT_SPACE);
    char *complement = ic_format("[^%s]", body);
    if (!complement)
        return ICAE_ENOMEM;
    int rc = set_add_other(s, complement);
    ic_free(complement);
    return rc;
}

/* Appends a pattern that matches one character of the set. */
static int set_write(ic_buffer *out, const set *s, bool negated)
{
    const char *simple = s->simple.size ? s->simple.data : NULL;
    if (!s->others.size) {
        if (!simple)
            return put(out, negated ? ANY : NOTHING);
        return ic_buffer_addf(out, "[%s%s]", negated ? "^" : "", simple);
    }
    const char *open = negated ? "(?:(?!" : "(?:", *close = negated ? ")" ANY ")" : ")";
    if (simple)
        return ic_buffer_addf(out, "%s[%s]|%s%s", open, simple, s->others.data, close);
    return ic_buffer_addf(out, "%s%s%s", open, s->others.data, close);
}

static int write_body(ic_buffer *out, const char *body, bool negated)
{
    return ic_buffer_addf(out, "[%s%s]", negated ? "^" : "", body);
}

/* Writes a name without case, spaces, '-' and '_'; false if it is too long. */
static bool plain_name(char *out, size_t room, const char *name, size_t size)
{
    size_t n = 0;
    for (size_t i = 0; i < size; i++) {
        char c = name[i];
        if (c == ' ' || c == '-' || c == '_')
            continue;
        if (n + 1 >= room || !(is_letter(c) || is_digit(c)))
            return false;
        out[n++] = c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
    }
    out[n] = 0;
    return n > 0;
}

static const char *class_named(const char *name)
{
    for (size_t i = 0; i < IC_COUNT(named_classes); i++)
        if (strcmp(named_classes[i].name, name) == 0)
            return named_classes[i].body;
    return NULL;
}

/* Body of the class \p{name}, in `room`; NULL: no such property. */
static const char *property_body(char room[64], const char *name)
{
    const char *body = class_named(name), *category = NULL;
    if (body)
        return body;
    for (size_t i = 0; i < IC_COUNT(long_categories) && !category; i++)
        if (strcmp(long_categories[i].name, name) == 0)
            category = long_categories[i].value;
    for (size_t i = 0; i < IC_COUNT(short_categories) && !category; i++) {
        char lower[4];
        plain_name(lower, sizeof lower, short_categories[i], strlen(short_categories[i]));
        if (strcmp(lower, name) == 0)
            category = short_categories[i];
    }
    const char *prefix = category ? "" : "sc:";
    for (size_t i = 0; i < IC_COUNT(binary_properties); i++)
        if (strcmp(binary_properties[i], name) == 0)
            prefix = "";
    strcpy(room, "\\p{");
    strcat(room, prefix);
    strncat(room, category ? category : name, 48);
    strcat(room, "}");
    return room;
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
    if (!plain_name(name, sizeof name, r->pattern + begin, end - begin))
        return refuse(r, "this property");
    *body = property_body(room, name);
    return ICAE_OK;
}

/* The class a letter behind a backslash stands for; NULL if none. */
static const char *class_of_letter(char letter)
{
    switch (letter) {
    case 's':
    case 'S':
        return SPACE;
    case 'w':
    case 'W':
        return WORD;
    case 'd':
    case 'D':
        return "\\p{Nd}";
    case 'h':
    case 'H':
        return HEX;
    default:
        return NULL;
    }
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
static int read_posix(set *s, reader *r)
{
    const char *end = strstr(r->pattern + r->at, ":]");
    bool negated = r->pattern[r->at] == '^';
    r->at += negated;
    char name[48];
    if (!end ||
        !plain_name(name, sizeof name, r->pattern + r->at, (size_t)(end - (r->pattern + r->at))) ||
        !class_named(name))
        return refuse(r, "this POSIX bracket");
    r->at = (size_t)(end - r->pattern) + 2;
    const char *body = class_named(name);
    if (strcmp(name, "punct") == 0) /* in brackets symbols count too */
        body = "\\p{P}\\p{S}";
    return set_add_body(s, strcmp(body, WORD) == 0 ? WORD_CLASS : body, negated);
}

/* One item of a class; *is_char and *code if it is a single character (not added yet). */
static int read_item(set *s, bool *is_char, uint32_t *code, reader *r, int depth)
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
            rc = set_add_other(s, inner.data);
        ic_buffer_free(&inner);
        return rc;
    }
    *is_char = true;
    if (r->pattern[r->at] != '\\') {
        r->at += (size_t)ic_next_char(code, r->pattern + r->at, r->size - r->at);
        return ICAE_OK;
    }
    char letter = r->pattern[++r->at], room[64];
    const char *body = letter ? class_of_letter(letter) : NULL;
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
    return set_add_body(s, strcmp(body, WORD) == 0 ? WORD_CLASS : body, negated);
}

/* Items up to "]" or "&&". */
static int read_items(set *s, reader *r, int depth, bool first)
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
    set s = {0};
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
        IC_TRY(set_write(&all, &s, false));
        IC_TRY(put(&all, more ? ")" : ""));
        set_free(&s);
        s = (set){0};
        if (!more)
            break;
        r->at += 2;
    }
    r->at++;
    if (!parts)
        rc = set_write(out, &s, negated);
    else
        rc = ic_buffer_addf(out, negated ? "(?:(?!%s)" ANY ")" : "(?:%s)", all.data);
done:
    set_free(&s);
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
    const char *body = letter ? class_of_letter(letter) : NULL;
    static const char inside[] = "(?:(?<=[" WORD "])(?=[" WORD "])|(?<![" WORD "])(?![" WORD "]))";
    static const char border[] = "(?:(?<=[" WORD "])(?![" WORD "])|(?<![" WORD "])(?=[" WORD "]))";
    if (body) {
        r->at++;
        return write_body(out, body, negated);
    }
    switch (letter) {
    case 'p':
    case 'P': {
        r->at++;
        int rc = read_property(room, &body, &negated, r);
        return rc < 0 ? rc : write_body(out, body, negated);
    }
    case 'b':
    case 'B':
        r->at++;
        return put(out, negated ? inside : border);
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
            strncat(now, c == 'i' ? "i" : "s", 2);
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
