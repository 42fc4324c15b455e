/*
 * regex.c - regular expressions by PCRE2 (the only file that includes it), and fixed texts.
 *
 * A compiled pattern is shared by threads; match data and the JIT's stack belong to a matcher, which
 * is one thread's. Every match has a limit of steps, so that no pattern from a file can hang a
 * program: it ends in an error.
 */
#include "text/internal.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

#define MAX_PATTERN     65536
#define STEPS           2000000u /* of a match, and so many more a byte of text */
#define STEPS_PER_BYTE  32u
#define HEAP_KIB        262144u
#define JIT_STACK_START (32 * 1024)
#define JIT_STACK_MAX   (4 * 1024 * 1024)

struct ic_regex {
    pcre2_code *code; /* NULL: a fixed text */
    pcre2_general_context *memory;
    char *literal, *where;
    size_t literal_size;
    bool jit, unicode_15;
};

struct ic_matcher {
    pcre2_general_context *memory;
    pcre2_match_context *context;
    pcre2_match_data *data;
    pcre2_jit_stack *stack;
};

static void *allocate(size_t size, void *unused)
{
    (void)unused;
    return ic_alloc(1, size);
}

static void release(void *memory, void *unused)
{
    (void)unused;
    ic_free(memory);
}

static int no_memory(void)
{
    return ic_fail(ICAE_ENOMEM, "out of memory for a regular expression");
}

static int compile(ic_regex *r, const char *pattern, const char *original)
{
    uint32_t options =
        PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_UTF_CHECK;
    pcre2_compile_context *context = pcre2_compile_context_create(r->memory);
    if (!context)
        return no_memory();
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_set_max_pattern_length(context, MAX_PATTERN);
    pcre2_set_parens_nest_limit(context, 250);
    int number;
    size_t at;
    r->code =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, options, &number, &at, context);
    pcre2_compile_context_free(context);
    if (!r->code && number == PCRE2_ERROR_HEAP_FAILED)
        return no_memory();
    if (!r->code) {
        char message[120] = "";
        pcre2_get_error_message(number, (PCRE2_UCHAR *)message, sizeof message);
        return ic_fail(ICAE_EUNSUPPORTED, "%.200s: the pattern \"%.200s\": %s", r->where, original,
                       message);
    }
    int jit = pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE);
    r->jit = jit == 0; /* without it: slower, same matches */
    return ICAE_OK;
}

static int new_regex(ic_regex **out, const char *where)
{
    *out = ic_alloc(1, sizeof **out);
    if (!*out)
        return ICAE_ENOMEM;
    (*out)->where = ic_strdup(where);
    return (*out)->where ? ICAE_OK : ICAE_ENOMEM;
}

int ic_regex_new(ic_regex **out, const char *pattern, const char *where)
{
    int rc;
    ic_buffer translated = {.limit = MAX_PATTERN};
    IC_TRY(new_regex(out, where));
    (*out)->memory = pcre2_general_context_create(allocate, release, NULL);
    if (!(*out)->memory) {
        rc = no_memory();
        goto done;
    }
    IC_TRY(ic_pattern_translate(&translated, pattern, where));
    rc = compile(*out, translated.data, pattern);
done:
    ic_buffer_free(&translated);
    if (rc < 0) {
        ic_regex_free(*out);
        *out = NULL;
    }
    return rc;
}

int ic_regex_new_literal(ic_regex **out, const char *text)
{
    int rc = new_regex(out, "a fixed text");
    if (rc >= 0) {
        (*out)->literal = ic_strdup(text);
        (*out)->literal_size = strlen(text);
        rc = (*out)->literal ? ICAE_OK : ICAE_ENOMEM;
    }
    if (rc < 0) {
        ic_regex_free(*out);
        *out = NULL;
    }
    return rc;
}

void ic_regex_free(ic_regex *r)
{
    if (!r)
        return;
    pcre2_code_free(r->code);
    pcre2_general_context_free(r->memory);
    ic_free(r->literal);
    ic_free(r->where);
    ic_free(r);
}

void ic_regex_as_unicode_15(ic_regex *r)
{
    r->unicode_15 = true;
}

bool ic_regex_is_literal(const ic_regex *r)
{
    return !r->code;
}

bool ic_regex_is_one_char(const ic_regex *r)
{
    uint32_t code;
    return !r->code && r->literal_size &&
           (size_t)ic_next_char(&code, r->literal, r->literal_size) == r->literal_size;
}

int ic_regex_subject(const char **subject, const ic_regex *r, const char *text, size_t size,
                     ic_buffer *shadow)
{
    bool copied = false;
    *subject = text;
    for (size_t i = 0; r->code && i < size;) {
        uint32_t code, older;
        if ((unsigned char)text[i] < 0xe0) { /* no newer character is below U+0800 */
            i++;
            continue;
        }
        size_t length = (size_t)ic_next_char(&code, text + i, size - i);
        if ((older = ic_older_character(code, !r->unicode_15)) != code) {
            if (!copied) {
                shadow->size = 0;
                int rc = ic_buffer_add(shadow, text, size);
                if (rc < 0)
                    return rc;
                *subject = shadow->data;
                copied = true;
            }
            ic_utf8_encode(shadow->data + i, older);
        }
        i += length;
    }
    return ICAE_OK;
}

int ic_matcher_new(ic_matcher **out)
{
    ic_matcher *m = ic_alloc(1, sizeof *m);
    *out = NULL;
    if (!m)
        return ICAE_ENOMEM;
    m->memory = pcre2_general_context_create(allocate, release, NULL);
    m->context = m->memory ? pcre2_match_context_create(m->memory) : NULL;
    m->data = m->memory ? pcre2_match_data_create(2, m->memory) : NULL;
    if (!m->context || !m->data) {
        ic_matcher_free(m);
        return no_memory();
    }
    m->stack = pcre2_jit_stack_create(JIT_STACK_START, JIT_STACK_MAX, m->memory);
    if (m->stack) /* without: the JIT's default, smaller one */
        pcre2_jit_stack_assign(m->context, NULL, m->stack);
    pcre2_set_heap_limit(m->context, HEAP_KIB);
    *out = m;
    return ICAE_OK;
}

void ic_matcher_free(ic_matcher *m)
{
    if (!m)
        return;
    pcre2_jit_stack_free(m->stack);
    pcre2_match_data_free(m->data);
    pcre2_match_context_free(m->context);
    pcre2_general_context_free(m->memory);
    ic_free(m);
}

/* One search from f->at. 1, 0 or an error. */
static int search(size_t *start, size_t *end, const ic_find *f, ic_matcher *m)
{
    const ic_regex *r = f->regex;
    if (!r->code) {
        const char *hit = f->text + f->at;
        if (r->literal_size)
            hit = ic_find_text(hit, f->size - f->at, r->literal, r->literal_size);
        if (!hit)
            return 0;
        *start = (size_t)(hit - f->text);
        *end = *start + r->literal_size;
        return 1;
    }
    int n = PCRE2_ERROR_JIT_STACKLIMIT;
    PCRE2_SPTR text = (PCRE2_SPTR)f->text;
    if (r->jit)
        n = pcre2_jit_match(r->code, text, f->size, f->at, 0, m->data, m->context);
    if (n == PCRE2_ERROR_JIT_STACKLIMIT)
        n = pcre2_match(r->code, text, f->size, f->at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, m->data,
                        m->context);
    if (n == PCRE2_ERROR_NOMATCH)
        return 0;
    if (n == PCRE2_ERROR_NOMEMORY)
        return no_memory();
    if (n < 0)
        return ic_fail(ICAE_ELIMIT, "%.200s: its pattern takes too many steps on this text",
                       r->where);
    const size_t *ends = pcre2_get_ovector_pointer(m->data);
    *start = ends[0];
    *end = ends[1];
    if (*start > *end || *start < f->at)
        return ic_fail(ICAE_EUNSUPPORTED, "%.200s: its pattern matches backwards", r->where);
    return 1;
}

int ic_find_next(size_t *start, size_t *end, ic_find *f, ic_matcher *m)
{
    if (f->at == 0 && !f->any && f->regex->code) {
        uint64_t steps = STEPS + (uint64_t)f->size * STEPS_PER_BYTE;
        pcre2_set_match_limit(m->context, (uint32_t)IC_MIN(steps, UINT32_MAX));
    }
    while (f->at <= f->size) {
        int found = search(start, end, f, m);
        if (found <= 0)
            return found;
        if (*start != *end || !f->any || f->last_end != *end) {
            f->at = f->last_end = *end;
            f->any = true;
            return 1;
        }
        uint32_t code;
        f->at +=
            f->at < f->size ? (size_t)ic_next_char(&code, f->text + f->at, f->size - f->at) : 1;
    }
    return 0;
}
