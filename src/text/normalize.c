/*
 * normalize.c - the normalisers of tokenizer.json: what is done to a text before it is split.
 *
 * Each step reads one buffer and writes another. Besides the text, the steps keep count of `origin`,
 * the bytes that stem from the very first character of the input, which the Metaspace pre-tokenizer
 * asks for later.
 */
#include "text/internal.h"

#include <string.h>

/* ---- reading ---------------------------------------------------------------------------------- */

static const struct {
    const char *type;
    ic_normalizer_kind kind;
    ic_form form;
} simple_kinds[] = {
    {"NFC", IC_NORMAL_FORM, IC_NFC},
    {"NFD", IC_NORMAL_FORM, IC_NFD},
    {"NFKC", IC_NORMAL_FORM, IC_NFKC},
    {"NFKD", IC_NORMAL_FORM, IC_NFKD},
    {"Strip", IC_NORMAL_STRIP, IC_NFC},
    {"Lowercase", IC_NORMAL_LOWERCASE, IC_NFC},
    {"StripAccents", IC_NORMAL_STRIP_ACCENTS, IC_NFC},
    {"Nmt", IC_NORMAL_NMT, IC_NFC},
    {"ByteLevel", IC_NORMAL_BYTE_LEVEL, IC_NFC},
    {"Prepend", IC_NORMAL_PREPEND, IC_NFC},
    {"Replace", IC_NORMAL_REPLACE, IC_NFC},
};

static int parse_one(ic_tokenizer *t, const ic_json *node, const char *type)
{
    size_t i = 0;
    while (i < IC_COUNT(simple_kinds) && strcmp(simple_kinds[i].type, type) != 0)
        i++;
    if (i == IC_COUNT(simple_kinds))
        return ic_fail(ICAE_EUNSUPPORTED, "%.200s: the normalizer \"%.50s\" is not supported",
                       t->name, type);
    size_t capacity = t->normalizer_count;
    int rc = ic_grow(&t->normalizers, &capacity, capacity + 1, sizeof *t->normalizers);
    if (rc < 0)
        return rc;
    ic_normalizer *n = &t->normalizers[t->normalizer_count++];
    *n = (ic_normalizer){.kind = simple_kinds[i].kind, .form = simple_kinds[i].form};
    n->left = ic_json_bool(ic_json_get(node, "strip_left"), true);
    n->right = ic_json_bool(ic_json_get(node, "strip_right"), true);
    if (n->kind != IC_NORMAL_PREPEND && n->kind != IC_NORMAL_REPLACE)
        return ICAE_OK;
    const char *text;
    bool prepend = n->kind == IC_NORMAL_PREPEND;
    rc = ic_json_need_string(&text, t, node, prepend ? "normalizer Prepend" : "normalizer Replace",
                             prepend ? "prepend" : "content");
    if (rc < 0)
        return rc;
    n->text = ic_strdup(text);
    if (!n->text)
        return ICAE_ENOMEM;
    return prepend ? ICAE_OK : ic_json_need_pattern(&n->regex, t, node, "normalizer Replace");
}

int ic_normalizers_parse(ic_tokenizer *t, const ic_json *node)
{
    return ic_each_component(t, node, "normalizer", "normalizers", parse_one);
}

void ic_normalizers_free(ic_tokenizer *t)
{
    for (size_t i = 0; i < t->normalizer_count; i++) {
        ic_free(t->normalizers[i].text);
        ic_regex_free(t->normalizers[i].regex);
    }
    ic_free(t->normalizers);
}

/* ---- running ---------------------------------------------------------------------------------- */

/* One text on its way: `in` becomes `out`. */
typedef struct passage {
    const ic_buffer *in;
    ic_buffer *out;
    size_t origin;
    bool whole; /* begins at the very start of the input */
    ic_scratch *scratch;
} passage;

static int copy(passage *p, size_t start, size_t end)
{
    return start < end ? ic_buffer_add(p->out, p->in->data + start, end - start) : ICAE_OK;
}

static int prepend(passage *p, const char *text)
{
    size_t size = strlen(text);
    int rc = ic_buffer_add(p->out, text, size);
    if (rc < 0 || (rc = copy(p, 0, p->in->size)) < 0)
        return rc;
    if (p->origin)
        p->origin += size;
    return ICAE_OK;
}

static int replace(passage *p, const ic_normalizer *n)
{
    int rc = ICAE_OK, found;
    size_t start, end, done_to = 0, origin = 0, size = strlen(n->text);
    ic_find find = {.regex = n->regex, .size = p->in->size};
    IC_TRY(ic_regex_subject(&find.text, n->regex, p->in->data, p->in->size, &p->scratch->shadow));
    while ((found = ic_find_next(&start, &end, &find, p->scratch->matcher)) > 0) {
        IC_TRY(copy(p, done_to, start));
        if (done_to < p->origin)
            origin = p->out->size - (start > p->origin ? start - p->origin : 0);
        IC_TRY(ic_buffer_add(p->out, n->text, size));
        /* What is put in stands where the last character of the match stood. */
        if (end > 0 ? end <= p->origin : p->whole)
            origin = p->out->size;
        done_to = end;
    }
    if ((rc = found) < 0)
        goto done;
    IC_TRY(copy(p, done_to, p->in->size));
    if (done_to < p->origin)
        origin = p->out->size - (p->in->size - p->origin);
    p->origin = origin;
done:
    return rc;
}

static int strip(passage *p, bool left, bool right)
{
    const char *text = p->in->data;
    size_t start = 0, end = p->in->size;
    while (left && start < end) {
        uint32_t code;
        size_t length = (size_t)ic_next_char(&code, text + start, end - start);
        if (!ic_is_whitespace(code))
            break;
        start += length;
    }
    while (right && start < end) {
        uint32_t code;
        size_t at = end - 1;
        while (((unsigned char)text[at] & 0xc0) == 0x80)
            at--;
        ic_next_char(&code, text + at, end - at);
        if (!ic_is_whitespace(code))
            break;
        end = at;
    }
    p->origin = p->origin > start ? IC_MIN(p->origin, end) - start : 0;
    return copy(p, start, end);
}

/* Characters one by one: bytes of what stands for `code`, 0 if it goes. */
static int one_char(char out[8], uint32_t code, const ic_normalizer *n)
{
    switch (n->kind) {
    case IC_NORMAL_LOWERCASE:
        return ic_unicode_lower(out, code);
    case IC_NORMAL_STRIP_ACCENTS:
        return ic_is_combining_mark(code) ? 0 : ic_utf8_encode(out, code);
    default: /* IC_NORMAL_NMT */
        if ((code >= 1 && code <= 8) || code == 0xb || (code >= 0xe && code <= 0x1f) ||
            code == 0x7f || code == 0x8f || code == 0x9f)
            return 0;
        if ((code >= 9 && code <= 13) || code == 0x1680 || (code >= 0x200b && code <= 0x200f) ||
            code == 0x2028 || code == 0x2029 || code == 0x2581 || code == 0xfeff || code == 0xfffd)
            code = ' ';
        return ic_utf8_encode(out, code);
    }
}

static int each_char(passage *p, const ic_normalizer *n)
{
    size_t origin = 0;
    for (size_t i = 0; i < p->in->size;) {
        uint32_t code;
        char out[8];
        i += (size_t)ic_next_char(&code, p->in->data + i, p->in->size - i);
        int rc = ic_buffer_add(p->out, out, (size_t)one_char(out, code, n));
        if (rc < 0)
            return rc;
        if (i <= p->origin)
            origin = p->out->size;
    }
    p->origin = origin;
    return ICAE_OK;
}

static int normal_form(passage *p, ic_form form)
{
    size_t origin = IC_MIN(p->origin, p->in->size);
    int rc = ICAE_OK;
    if (origin) { /* measured apart; nothing but its size is wanted */
        IC_TRY(ic_unicode_normalize(p->out, p->in->data, origin, form));
        p->origin = p->out->size;
        p->out->size = 0;
    }
    IC_TRY(ic_unicode_normalize(p->out, p->in->data, p->in->size, form));
    p->origin = IC_MIN(p->origin, p->out->size);
done:
    return rc;
}

static int byte_level(passage *p)
{
    size_t origin = IC_MIN(p->origin, p->in->size);
    int rc = ic_append_byte_level(p->out, p->in->data, origin);
    p->origin = p->out->size;
    if (rc >= 0)
        rc = ic_append_byte_level(p->out, p->in->data + origin, p->in->size - origin);
    return rc;
}

static int run_one(passage *p, const ic_normalizer *n)
{
    switch (n->kind) {
    case IC_NORMAL_FORM:
        return normal_form(p, n->form);
    case IC_NORMAL_PREPEND:
        return prepend(p, n->text);
    case IC_NORMAL_REPLACE:
        return replace(p, n);
    case IC_NORMAL_STRIP:
        return strip(p, n->left, n->right);
    case IC_NORMAL_BYTE_LEVEL:
        return byte_level(p);
    default:
        return each_char(p, n);
    }
}

int ic_normalizers_run(const ic_tokenizer *t, ic_scratch *scratch, size_t *origin, bool whole)
{
    if (!scratch->matcher) {
        int rc = ic_matcher_new(&scratch->matcher);
        if (rc < 0)
            return rc;
    }
    for (size_t i = 0; i < t->normalizer_count; i++) {
        const ic_normalizer *n = &t->normalizers[i];
        /* Hugging Face's finds nothing in an empty text, not even nothing. */
        if (scratch->normal.size == 0)
            break;
        scratch->other.size = 0;
        passage p = {&scratch->normal, &scratch->other, *origin, whole, scratch};
        int rc = run_one(&p, n);
        if (rc < 0)
            return rc;
        *origin = p.origin;
        ic_buffer swapped = scratch->normal;
        scratch->normal = scratch->other;
        scratch->other = swapped;
    }
    return ICAE_OK;
}
