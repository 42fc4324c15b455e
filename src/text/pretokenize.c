/*
 * pretokenize.c - the pre-tokenizers of tokenizer.json: where a text is cut before merging.
 *
 * Each step reads the pieces of one list and writes those of another. A step first finds events (what
 * matches and what lies between), then a behaviour makes pieces of them. Steps that change the text
 * (Metaspace, ByteLevel) write a new one.
 */
#include "text/internal.h"

#include <string.h>

#define BYTE_LEVEL_PATTERN \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
/* \w and \s as Rust's regular expressions have them: words, and what is neither word nor space. */
#define RUST_WORD          "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}"
#define WHITESPACE_PATTERN "[" RUST_WORD "]+|[^" RUST_WORD "\\s]+"

/* ---- reading ---------------------------------------------------------------------------------- */

static int add_step(ic_tokenizer *t, ic_pretokenizer **out)
{
    size_t capacity = t->pretokenizer_count;
    int rc = ic_grow(&t->pretokenizers, &capacity, capacity + 1, sizeof *t->pretokenizers);
    if (rc < 0)
        return rc;
    *out = &t->pretokenizers[t->pretokenizer_count++];
    **out = (ic_pretokenizer){0};
    return ICAE_OK;
}

int ic_tokenizer_add_split(ic_tokenizer *t, const char *pattern, ic_behavior behavior)
{
    ic_pretokenizer *p;
    int rc = add_step(t, &p);
    if (rc < 0)
        return rc;
    p->kind = IC_PRE_SPLIT;
    p->behavior = behavior;
    rc = ic_regex_new(&p->regex, pattern, t->name);
    if (rc >= 0)
        ic_regex_as_unicode_15(p->regex);
    return rc;
}

int ic_tokenizer_add_byte_level(ic_tokenizer *t)
{
    ic_pretokenizer *p;
    int rc = add_step(t, &p);
    if (rc >= 0)
        p->kind = IC_PRE_BYTE_LEVEL;
    return rc;
}

static int parse_behavior(ic_behavior *out, const ic_tokenizer *t, const ic_json *node,
                          const char *what)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const char *text;
    int rc = ic_json_need_string(&text, t, node, what, "behavior");
    for (size_t i = 0; i < IC_COUNT(names) && rc >= 0; i++) {
        if (strcmp(names[i], text) == 0) {
            *out = (ic_behavior)i;
            return ICAE_OK;
        }
    }
    return rc < 0 ? rc
                  : ic_fail(ICAE_EFORMAT, "%.200s: %s has the unknown behavior \"%.50s\"", t->name,
                            what, text);
}

static int parse_metaspace(ic_pretokenizer *p, const ic_tokenizer *t, const ic_json *node)
{
    static const char *const schemes[] = {"always", "first", "never"};
    int rc = ic_json_need_char(p->replacement, t, node, "Metaspace", "replacement");
    if (rc < 0)
        return rc;
    const ic_json *scheme = ic_json_get(node, "prepend_scheme");
    const char *text = scheme ? ic_json_string(scheme) : "always";
    size_t i = 0;
    while (text && i < IC_COUNT(schemes) && strcmp(schemes[i], text) != 0)
        i++;
    if (!text || i == IC_COUNT(schemes))
        return ic_fail(ICAE_EFORMAT, "%.200s: Metaspace has the unknown prepend_scheme \"%.50s\"",
                       t->name, text ? text : "");
    p->prepend = (ic_prepend)i;
    if (!ic_json_bool(ic_json_get(node, "add_prefix_space"), true)) {
        if (scheme && p->prepend != IC_PREPEND_NEVER)
            return ic_fail(ICAE_EFORMAT,
                           "%.200s: Metaspace's add_prefix_space contradicts its prepend_scheme",
                           t->name);
        p->prepend = IC_PREPEND_NEVER;
    }
    p->split = ic_json_bool(ic_json_get(node, "split"), true);
    return ICAE_OK;
}

static int parse_split(ic_pretokenizer *p, const ic_tokenizer *t, const ic_json *node)
{
    int rc = parse_behavior(&p->behavior, t, node, "Split");
    p->invert = ic_json_bool(ic_json_get(node, "invert"), false);
    return rc < 0 ? rc : ic_json_need_pattern(&p->regex, t, node, "pre_tokenizer Split");
}

static const struct {
    const char *type;
    ic_pre_kind kind;
} kinds[] = {
    {"ByteLevel", IC_PRE_BYTE_LEVEL},
    {"Metaspace", IC_PRE_METASPACE},
    {"Split", IC_PRE_SPLIT},
    {"Whitespace", IC_PRE_SPLIT},
    {"Digits", IC_PRE_DIGITS},
    {"Punctuation", IC_PRE_PUNCTUATION},
    {"WhitespaceSplit", IC_PRE_WHITESPACE_SPLIT},
    {"BertPreTokenizer", IC_PRE_WHITESPACE_SPLIT},
    {"CharDelimiterSplit", IC_PRE_DELIMITER},
    {"FixedLength", IC_PRE_FIXED_LENGTH},
};

static int parse_members(ic_pretokenizer *p, const ic_tokenizer *t, const ic_json *node,
                         const char *type)
{
    switch (p->kind) {
    case IC_PRE_BYTE_LEVEL:
        p->add_prefix_space = ic_json_bool(ic_json_get(node, "add_prefix_space"), true);
        if (!ic_json_bool(ic_json_get(node, "use_regex"), true))
            return ICAE_OK;
        return ic_regex_new(&p->regex, BYTE_LEVEL_PATTERN, "ByteLevel");
    case IC_PRE_METASPACE:
        return parse_metaspace(p, t, node);
    case IC_PRE_SPLIT:
        if (strcmp(type, "Whitespace") != 0)
            return parse_split(p, t, node);
        p->invert = true;
        return ic_regex_new(&p->regex, WHITESPACE_PATTERN, "Whitespace");
    case IC_PRE_DIGITS:
        p->behavior = ic_json_bool(ic_json_get(node, "individual_digits"), false) ? IC_ISOLATED
                                                                                  : IC_CONTIGUOUS;
        return ICAE_OK;
    case IC_PRE_PUNCTUATION:
        p->behavior = IC_ISOLATED;
        return ic_json_get(node, "behavior") ? parse_behavior(&p->behavior, t, node, "Punctuation")
                                             : ICAE_OK;
    case IC_PRE_DELIMITER:
        return ic_json_need_char(p->replacement, t, node, type, "delimiter");
    case IC_PRE_FIXED_LENGTH:
        p->length = 5;
        if (!ic_json_get(node, "length"))
            return ICAE_OK;
        int rc = ic_json_need_count(&p->length, t, node, type, "length", INT32_MAX);
        if (rc >= 0 && p->length == 0)
            rc = ic_fail(ICAE_EFORMAT, "%.200s: FixedLength of 0", t->name);
        return rc;
    default: /* WhitespaceSplit: IC_REMOVED */
        return ICAE_OK;
    }
}

static int parse_one(ic_tokenizer *t, const ic_json *node, const char *type)
{
    ic_pretokenizer *p;
    for (size_t i = 0; i < IC_COUNT(kinds); i++) {
        if (strcmp(kinds[i].type, type) != 0)
            continue;
        int rc = add_step(t, &p);
        if (rc < 0)
            return rc;
        p->kind = kinds[i].kind;
        rc = parse_members(p, t, node, type);
        if (rc < 0 || strcmp(type, "BertPreTokenizer") != 0)
            return rc;
        if ((rc = add_step(t, &p)) >= 0) {
            p->kind = IC_PRE_PUNCTUATION;
            p->behavior = IC_ISOLATED;
        }
        return rc;
    }
    return ic_fail(ICAE_EUNSUPPORTED, "%.200s: the pre_tokenizer \"%.50s\" is not supported",
                   t->name, type);
}

int ic_pretokenizers_parse(ic_tokenizer *t, const ic_json *node)
{
    return ic_each_component(t, node, "pre_tokenizer", "pretokenizers", parse_one);
}

void ic_pretokenizers_free(ic_tokenizer *t)
{
    for (size_t i = 0; i < t->pretokenizer_count; i++)
        ic_regex_free(t->pretokenizers[i].regex);
    ic_free(t->pretokenizers);
}

/* ---- events and behaviours -------------------------------------------------------------------- */

/* Events lie in scratch->events, offsets within the span. */
static int add_event(ic_scratch *s, size_t start, size_t end, bool match)
{
    if (s->event_count == s->event_capacity) {
        int rc = ic_grow(&s->events, &s->event_capacity, s->event_count + 1, sizeof *s->events);
        if (rc < 0)
            return rc;
    }
    s->events[s->event_count++] = (ic_event){start, end, match};
    return ICAE_OK;
}

static int find_matches(ic_scratch *s, const ic_regex *regex, const char *text, size_t size,
                        bool invert)
{
    int rc = ICAE_OK, found;
    size_t start, end, done_to = 0;
    ic_find find = {.regex = regex, .text = text, .size = size};
    while ((found = ic_find_next(&start, &end, &find, s->matcher)) > 0) {
        if (done_to != start)
            IC_TRY(add_event(s, done_to, start, invert));
        IC_TRY(add_event(s, start, end, !invert));
        done_to = end;
    }
    if ((rc = found) < 0)
        goto done;
    if (done_to != size)
        rc = add_event(s, done_to, size, invert);
done:
    return rc;
}

static bool char_matches(const ic_pretokenizer *p, uint32_t code, const char *at, size_t length)
{
    switch (p->kind) {
    case IC_PRE_DIGITS:
        return ic_is_numeric(code);
    case IC_PRE_PUNCTUATION:
        return ic_is_punctuation(code);
    case IC_PRE_WHITESPACE_SPLIT:
        return ic_is_whitespace(code);
    default: /* Metaspace, CharDelimiterSplit */
        return memcmp(at, p->replacement, length) == 0 && p->replacement[length] == 0;
    }
}

/* Every character that matches is an event of its own. */
static int find_chars(ic_scratch *s, const ic_pretokenizer *p, const char *text, size_t size)
{
    int rc = ICAE_OK;
    size_t done_to = 0;
    for (size_t i = 0; i < size;) {
        uint32_t code;
        size_t length = (size_t)ic_next_char(&code, text + i, size - i);
        if (char_matches(p, code, text + i, length)) {
            if (done_to < i)
                IC_TRY(add_event(s, done_to, i, false));
            IC_TRY(add_event(s, i, i + length, true));
            done_to = i + length;
        }
        i += length;
    }
    if (done_to < size)
        rc = add_event(s, done_to, size, false);
done:
    return rc;
}

/* Joins events with the one before (or, backwards, behind) as the behaviour says. */
static void join_events(ic_scratch *s, ic_behavior behavior)
{
    size_t n = s->event_count, kept = 0;
    bool before = false, backwards = behavior == IC_MERGED_NEXT;
    ic_event *events = s->events;
    for (size_t i = 0; i < n; i++) {
        ic_event e = events[backwards ? n - 1 - i : i];
        bool joins = behavior == IC_CONTIGUOUS ? e.match == before : e.match && !before;
        before = e.match;
        ic_event *last = kept == 0 ? NULL : backwards ? &events[n - kept] : &events[kept - 1];
        if (joins && last) {
            last->start = IC_MIN(last->start, e.start);
            last->end = IC_MAX(last->end, e.end);
        } else {
            events[backwards ? n - 1 - kept : kept] = e;
            kept++;
        }
    }
    if (backwards)
        memmove(events, events + n - kept, kept * sizeof *events);
    s->event_count = kept;
}

static int add_events(ic_pieces *out, ic_scratch *s, size_t base, ic_behavior behavior)
{
    int rc = ICAE_OK;
    if (behavior > IC_ISOLATED)
        join_events(s, behavior);
    for (size_t i = 0; i < s->event_count && rc >= 0; i++) {
        const ic_event *e = &s->events[i];
        if (behavior != IC_REMOVED || !e->match)
            rc = ic_pieces_add(out, base + e->start, e->end - e->start);
    }
    s->event_count = 0;
    return rc;
}

/* ---- steps ------------------------------------------------------------------------------------ */

/* The list that was written becomes the one that is read; its text stays if it was not changed. */
static void finish_step(ic_scratch *s, bool same_text)
{
    ic_pieces new = s->spare;
    s->spare = s->pieces;
    s->pieces = new;
    if (same_text) {
        ic_buffer text = s->pieces.text;
        s->pieces.text = s->spare.text;
        s->spare.text = text;
        s->pieces.origin = s->spare.origin;
    }
}

static int split(ic_scratch *s, const ic_pretokenizer *p, const ic_regex *regex)
{
    const char *text = s->pieces.text.data;
    int rc = ICAE_OK;
    s->spare.count = 0;
    s->event_count = 0;
    if (regex)
        IC_TRY(ic_regex_subject(&text, regex, text, s->pieces.text.size, &s->shadow));
    for (size_t i = 0; i < s->pieces.count; i++) {
        ic_span span = s->pieces.spans[i];
        if (regex)
            IC_TRY(find_matches(s, regex, text + span.start, span.size, p->invert));
        else
            IC_TRY(find_chars(s, p, text + span.start, span.size));
        IC_TRY(add_events(&s->spare, s, span.start, p->behavior));
    }
    finish_step(s, true);
done:
    return rc;
}

static int fixed_length(ic_scratch *s, size_t length)
{
    const char *text = s->pieces.text.data;
    s->spare.count = 0;
    for (size_t i = 0; i < s->pieces.count; i++) {
        size_t at = s->pieces.spans[i].start, end = at + s->pieces.spans[i].size;
        while (at < end) {
            size_t start = at;
            uint32_t code;
            for (size_t n = 0; n < length && at < end; n++)
                at += (size_t)ic_next_char(&code, text + at, end - at);
            int rc = ic_pieces_add(&s->spare, start, at - start);
            if (rc < 0)
                return rc;
        }
    }
    finish_step(s, true);
    return ICAE_OK;
}

/* Appends a piece with spaces replaced, as a new piece with `prefix` in front. */
static int add_replaced(ic_scratch *s, ic_span span, const char *prefix, const char *replacement)
{
    ic_pieces *to = &s->spare;
    const char *text = s->pieces.text.data + span.start;
    size_t begin = to->text.size, size = strlen(replacement), origin;
    size_t from_origin = s->pieces.origin > span.start ? s->pieces.origin - span.start : 0;
    int rc = ic_buffer_add(&to->text, prefix, strlen(prefix));
    origin = to->text.size;
    for (size_t i = 0; i < span.size && rc >= 0;) {
        const char *space = memchr(text + i, ' ', span.size - i);
        size_t run = space ? (size_t)(space - text) - i : span.size - i;
        if (i < from_origin)
            origin = to->text.size + IC_MIN(run, from_origin - i);
        rc = ic_buffer_add(&to->text, text + i, run);
        i += run;
        if (space && rc >= 0) {
            rc = ic_buffer_add(&to->text, replacement, size);
            origin = i++ < from_origin ? to->text.size : origin;
        }
    }
    if (from_origin)
        to->origin = origin;
    return rc < 0 ? rc : ic_pieces_add(to, begin, to->text.size - begin);
}

static int metaspace(ic_scratch *s, const ic_pretokenizer *p)
{
    int rc = ICAE_OK;
    size_t size = strlen(p->replacement);
    ic_pieces_clear(&s->spare);
    for (size_t i = 0; i < s->pieces.count; i++) {
        ic_span span = s->pieces.spans[i];
        const char *text = s->pieces.text.data + span.start;
        bool there =
            text[0] == ' ' || (span.size >= size && memcmp(text, p->replacement, size) == 0);
        bool wanted = p->prepend == IC_PREPEND_ALWAYS ||
                      (p->prepend == IC_PREPEND_FIRST && span.start < s->pieces.origin);
        IC_TRY(add_replaced(s, span, wanted && !there ? p->replacement : "", p->replacement));
    }
    finish_step(s, false);
    if (p->split) {
        ic_pretokenizer cut = *p;
        cut.behavior = IC_MERGED_NEXT;
        rc = split(s, &cut, NULL);
    }
done:
    return rc;
}

static int byte_level(ic_scratch *s, const ic_pretokenizer *p)
{
    int rc = ICAE_OK;
    if (p->add_prefix_space) {
        ic_pieces_clear(&s->spare);
        for (size_t i = 0; i < s->pieces.count; i++) {
            ic_span span = s->pieces.spans[i];
            bool there = s->pieces.text.data[span.start] == ' ';
            IC_TRY(add_replaced(s, span, there ? "" : " ", " "));
        }
        finish_step(s, false);
    }
    if (p->regex) {
        ic_pretokenizer cut = *p;
        cut.behavior = IC_ISOLATED;
        IC_TRY(split(s, &cut, p->regex));
    }
    ic_pieces_clear(&s->spare);
    IC_TRY(ic_buffer_grow(&s->spare.text, 2 * s->pieces.text.size + 1));
    for (size_t i = 0; i < s->pieces.count; i++) {
        ic_span span = s->pieces.spans[i];
        size_t begin = s->spare.text.size, origin = s->pieces.origin;
        const char *text = s->pieces.text.data + span.start;
        size_t first = origin > span.start ? IC_MIN(origin - span.start, span.size) : 0;
        IC_TRY(ic_append_byte_level(&s->spare.text, text, first));
        if (first)
            s->spare.origin = s->spare.text.size;
        IC_TRY(ic_append_byte_level(&s->spare.text, text + first, span.size - first));
        IC_TRY(ic_pieces_add(&s->spare, begin, s->spare.text.size - begin));
    }
    finish_step(s, false);
done:
    return rc;
}

int ic_pretokenizers_run(const ic_tokenizer *t, ic_scratch *scratch)
{
    int rc = ICAE_OK;
    if (!scratch->matcher && t->pretokenizer_count)
        rc = ic_matcher_new(&scratch->matcher);
    for (size_t i = 0; i < t->pretokenizer_count && scratch->pieces.count && rc >= 0; i++) {
        const ic_pretokenizer *p = &t->pretokenizers[i];
        switch (p->kind) {
        case IC_PRE_BYTE_LEVEL:
            rc = byte_level(scratch, p);
            break;
        case IC_PRE_METASPACE:
            rc = metaspace(scratch, p);
            break;
        case IC_PRE_FIXED_LENGTH:
            rc = fixed_length(scratch, p->length);
            break;
        default:
            rc = split(scratch, p, p->kind == IC_PRE_SPLIT ? p->regex : NULL);
        }
    }
    return rc;
}
