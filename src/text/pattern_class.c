/*
 * pattern_class.c - what classes of characters of Oniguruma's patterns are in PCRE2's.
 *
 * Owns the names of classes and properties with their bodies (what stands between brackets), and sets
 * that grow item by item and are written as a pattern for one character. Every class is spelled out,
 * so PCRE2's own notion of \s, \w and the like does not matter. Knows nothing of groups.
 */
#include "text/internal.h"

#include <stdio.h>
#include <string.h>

#define ANY     "[\\x{0}-\\x{10ffff}]"
#define NOTHING "[^\\x{0}-\\x{10ffff}]"

#define SPACE                                                                                   \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}" \
    "\\x{205f}\\x{3000}"
#define NOT_SPACE                                                                           \
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-"  \
    "\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}" \
    "\\x{3001}-\\x{10ffff}"
/* With what Unicode 16 adds to properties of older characters. */
#define ALPHABETIC                                                                          \
    "\\p{Alphabetic}\\x{363}-\\x{36f}\\x{c04}\\x{f82}\\x{f83}\\x{1dd3}-\\x{1de6}\\x{11080}" \
    "\\x{11081}\\x{1171e}"
#define LOWER      "\\p{Lowercase}\\x{10fc}\\x{a7f2}-\\x{a7f4}\\x{ab69}"
#define WORD_CLASS "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
/* Outside of brackets Oniguruma counts superscript digits and fractions of Latin-1 too. */
#define WORD WORD_CLASS "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"
#define HEX  "0-9A-Fa-f"

static int put(ic_buffer *b, const char *text)
{
    return ic_buffer_add(b, text, strlen(text));
}

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

void ic_charset_free(ic_charset *s)
{
    ic_buffer_free(&s->simple);
    ic_buffer_free(&s->others);
}

int ic_charset_add_other(ic_charset *s, const char *pattern)
{
    int rc = ICAE_OK;
    if (s->others.size)
        rc = put(&s->others, "|");
    return rc < 0 ? rc : put(&s->others, pattern);
}

int ic_charset_add_body(ic_charset *s, const char *body, bool negated)
{
    if (strcmp(body, WORD) == 0)
        body = WORD_CLASS;
    if (!negated)
        return put(&s->simple, body);
    if (strcmp(body, SPACE) == 0)
        return put(&s->simple, NOT_SPACE);
    char *complement = ic_format("[^%s]", body);
    if (!complement)
        return ICAE_ENOMEM;
    int rc = ic_charset_add_other(s, complement);
    ic_free(complement);
    return rc;
}

/* Appends a pattern that matches one character of the set. */
int ic_charset_write(ic_buffer *out, const ic_charset *s, bool negated)
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

int ic_class_write(ic_buffer *out, const char *body, bool negated)
{
    return ic_buffer_addf(out, "[%s%s]", negated ? "^" : "", body);
}

/* Writes a name without case, spaces, '-' and '_'; false if it is too long. */
bool ic_plain_name(char *out, size_t room, const char *name, size_t size)
{
    size_t n = 0;
    for (size_t i = 0; i < size; i++) {
        char c = name[i];
        if (c == ' ' || c == '-' || c == '_')
            continue;
        c = c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
        if (n + 1 >= room || !((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')))
            return false;
        out[n++] = c;
    }
    out[n] = 0;
    return n > 0;
}

const char *ic_class_named(const char *name)
{
    for (size_t i = 0; i < IC_COUNT(named_classes); i++)
        if (strcmp(named_classes[i].name, name) == 0)
            return named_classes[i].body;
    return NULL;
}

/* Body of the class \p{name}, in `room`; NULL: no such property. */
const char *ic_property_body(char room[64], const char *name)
{
    const char *body = ic_class_named(name), *category = NULL;
    if (body)
        return body;
    for (size_t i = 0; i < IC_COUNT(long_categories) && !category; i++)
        if (strcmp(long_categories[i].name, name) == 0)
            category = long_categories[i].value;
    for (size_t i = 0; i < IC_COUNT(short_categories) && !category; i++) {
        char lower[4];
        ic_plain_name(lower, sizeof lower, short_categories[i], strlen(short_categories[i]));
        if (strcmp(lower, name) == 0)
            category = short_categories[i];
    }
    const char *prefix = category ? "" : "sc:";
    for (size_t i = 0; i < IC_COUNT(binary_properties); i++)
        if (strcmp(binary_properties[i], name) == 0)
            prefix = "";
    snprintf(room, 64, "\\p{%s%.48s}", prefix, category ? category : name);
    return room;
}

/* The class a letter behind a backslash stands for; NULL if none. */
const char *ic_class_of_letter(char letter)
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
