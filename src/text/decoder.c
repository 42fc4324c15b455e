/*
 * decoder.c - from ids back to text: the chain of decoders of tokenizer.json.
 *
 * The tokens are a list of texts; each decoder makes another list of it, and what is left at the end
 * is joined. A part of a longer list can be decoded too (stream.c): then the first text need not
 * be the very first, and the last not the last. Knows nothing of encoding.
 */
#include "text/internal.h"

#include <string.h>

/* ---- reading ---------------------------------------------------------------------------------- */

int ic_tokenizer_add_decoder(ic_tokenizer *t, ic_decoder_kind kind, ic_decoder **out)
{
    size_t capacity = t->decoder_count;
    int rc = ic_grow(&t->decoders, &capacity, capacity + 1, sizeof *t->decoders);
    if (rc < 0)
        return rc;
    *out = &t->decoders[t->decoder_count++];
    **out = (ic_decoder){.kind = kind};
    t->has_decoder = true;
    return ICAE_OK;
}

static const struct {
    const char *type;
    ic_decoder_kind kind;
} kinds[] = {
    {"ByteLevel", IC_DECODE_BYTE_LEVEL},
    {"Metaspace", IC_DECODE_METASPACE},
    {"Replace", IC_DECODE_REPLACE},
    {"ByteFallback", IC_DECODE_BYTE_FALLBACK},
    {"Fuse", IC_DECODE_FUSE},
    {"Strip", IC_DECODE_STRIP},
    {"BPEDecoder", IC_DECODE_BPE},
    {"WordPiece", IC_DECODE_WORDPIECE},
};

static int copy_text(ic_decoder *d, const ic_tokenizer *t, const ic_json *node, const char *type,
                     const char *key)
{
    const char *text;
    int rc = ic_json_need_string(&text, t, node, type, key);
    if (rc < 0)
        return rc;
    d->text = ic_strdup(text);
    if (!d->text)
        return ICAE_ENOMEM;
    return d->kind == IC_DECODE_BPE ? ic_regex_new_literal(&d->regex, d->text) : ICAE_OK;
}

static int parse_metaspace(ic_decoder *d, const ic_tokenizer *t, const ic_json *node)
{
    const char *scheme = ic_json_string(ic_json_get(node, "prepend_scheme"));
    d->never = (scheme && strcmp(scheme, "never") == 0) ||
               !ic_json_bool(ic_json_get(node, "add_prefix_space"), true);
    return ic_json_need_char(d->character, t, node, "decoder Metaspace", "replacement");
}

static int parse_strip(ic_decoder *d, const ic_tokenizer *t, const ic_json *node)
{
    int rc = ic_json_need_char(d->character, t, node, "decoder Strip", "content");
    if (rc >= 0)
        rc = ic_json_need_count(&d->start, t, node, "decoder Strip", "start", INT32_MAX);
    if (rc >= 0)
        rc = ic_json_need_count(&d->stop, t, node, "decoder Strip", "stop", INT32_MAX);
    return rc;
}

static int parse_one(ic_tokenizer *t, const ic_json *node, const char *type)
{
    size_t i = 0;
    while (i < IC_COUNT(kinds) && strcmp(kinds[i].type, type) != 0)
        i++;
    if (i == IC_COUNT(kinds))
        return ic_fail(ICAE_EUNSUPPORTED, "%.200s: the decoder \"%.50s\" is not supported", t->name,
                       type);
    ic_decoder *d;
    int rc = ic_tokenizer_add_decoder(t, kinds[i].kind, &d);
    if (rc < 0)
        return rc;
    switch (d->kind) {
    case IC_DECODE_METASPACE:
        return parse_metaspace(d, t, node);
    case IC_DECODE_REPLACE:
        rc = copy_text(d, t, node, "decoder Replace", "content");
        return rc < 0 ? rc : ic_json_need_pattern(&d->regex, t, node, "decoder Replace");
    case IC_DECODE_STRIP:
        return parse_strip(d, t, node);
    case IC_DECODE_BPE:
        return copy_text(d, t, node, "BPEDecoder", "suffix");
    case IC_DECODE_WORDPIECE:
        d->cleanup = ic_json_bool(ic_json_get(node, "cleanup"), true);
        return copy_text(d, t, node, "decoder WordPiece", "prefix");
    default:
        return ICAE_OK;
    }
}

int ic_decoders_parse(ic_tokenizer *t, const ic_json *node)
{
    t->has_decoder = !ic_json_is_null(node);
    return ic_each_component(t, node, "decoder", "decoders", parse_one);
}

void ic_decoders_free(ic_tokenizer *t)
{
    for (size_t i = 0; i < t->decoder_count; i++) {
        ic_free(t->decoders[i].text);
        ic_regex_free(t->decoders[i].regex);
    }
    ic_free(t->decoders);
}

/* ---- the list --------------------------------------------------------------------------------- */

/* Texts in a row in one buffer; ends[i] is where text i ends. */
typedef struct texts {
    ic_buffer data;
    size_t *ends;
    size_t count, capacity;
} texts;

typedef struct run {
    texts in, out;
    const ic_decoder *d;
    ic_decode_part part;
    bool fused; /* Fuse or ByteLevel was before: one text, whose beginning is the first's */
    ic_matcher *matcher;
    ic_buffer shadow;
} run;

static int end_text(texts *l)
{
    if (l->count == l->capacity) {
        int rc = ic_grow(&l->ends, &l->capacity, l->count + 1, sizeof *l->ends);
        if (rc < 0)
            return rc;
    }
    l->ends[l->count++] = l->data.size;
    return ICAE_OK;
}

static int add_text(texts *l, const char *text, size_t size)
{
    int rc = size ? ic_buffer_add(&l->data, text, size) : ICAE_OK;
    return rc < 0 ? rc : end_text(l);
}

static const char *text_at(const texts *l, size_t i, size_t *size)
{
    size_t begin = i > 0 ? l->ends[i - 1] : 0;
    *size = l->ends[i] - begin;
    return l->data.data ? l->data.data + begin : "";
}

/* ---- decoders --------------------------------------------------------------------------------- */

/* All tokens' bytes: a token of other characters than the alphabet's is taken as it is. */
static int byte_level(run *r)
{
    ic_buffer bytes = {0};
    int rc = ICAE_OK;
    for (size_t i = 0; i < r->in.count; i++) {
        size_t size, before = bytes.size;
        const char *text = text_at(&r->in, i, &size);
        IC_TRY(ic_buffer_grow(&bytes, size + 1));
        for (size_t at = 0; at < size;) {
            uint32_t code;
            at += (size_t)ic_next_char(&code, text + at, size - at);
            int byte = ic_char_byte(code);
            if (byte < 0) {
                bytes.size = before;
                memcpy(bytes.data + bytes.size, text, size);
                bytes.size += size;
                break;
            }
            bytes.data[bytes.size++] = (char)byte;
        }
    }
    size_t whole =
        r->part.last ? bytes.size : ic_utf8_whole(bytes.data ? bytes.data : "", bytes.size);
    if (r->part.open)
        *r->part.open = bytes.size - whole;
    for (size_t at = 0; at < whole;) {
        uint32_t code;
        int length = ic_utf8_decode(&code, bytes.data + at, whole - at);
        if (length > 0)
            IC_TRY(ic_buffer_add(&r->out.data, bytes.data + at, (size_t)length));
        else
            IC_TRY(ic_buffer_add(&r->out.data, "\xef\xbf\xbd", 3));
        at += (size_t)(length > 0 ? length : -length);
    }
    rc = end_text(&r->out);
done:
    ic_buffer_free(&bytes);
    return rc;
}

static int metaspace(run *r, const char *text, size_t size, bool first)
{
    const char *mark = r->d->character;
    size_t length = strlen(mark);
    for (size_t at = 0; at < size;) {
        const char *hit = ic_find_text(text + at, size - at, mark, length);
        size_t run_size = hit ? (size_t)(hit - text) - at : size - at;
        int rc = ic_buffer_add(&r->out.data, text + at, run_size);
        if (rc >= 0 && hit && !(first && !r->d->never))
            rc = ic_buffer_add(&r->out.data, " ", 1);
        if (rc < 0)
            return rc;
        at += run_size + (hit ? length : 0);
    }
    return end_text(&r->out);
}

static int replace(run *r, const char *text, size_t size, const char *content)
{
    int rc = ICAE_OK, found;
    size_t start, end, done_to = 0, length = strlen(content);
    ic_find find = {.regex = r->d->regex, .size = size};
    if (size == 0)
        return end_text(&r->out);
    IC_TRY(ic_regex_subject(&find.text, r->d->regex, text, size, &r->shadow));
    while ((found = ic_find_next(&start, &end, &find, r->matcher)) > 0) {
        IC_TRY(ic_buffer_add(&r->out.data, text + done_to, start - done_to));
        IC_TRY(ic_buffer_add(&r->out.data, content, length));
        done_to = end;
    }
    if ((rc = found) < 0)
        goto done;
    IC_TRY(ic_buffer_add(&r->out.data, text + done_to, size - done_to));
    rc = end_text(&r->out);
done:
    return rc;
}

static int strip(run *r, const char *text, size_t size, bool first)
{
    const char *content = r->d->character;
    size_t length = strlen(content), start = 0, end = size;
    for (size_t i = 0; i < r->d->start && first; i++) {
        if (size - start < length || memcmp(text + start, content, length) != 0)
            break;
        start += length;
    }
    for (size_t i = 0; i < r->d->stop; i++) {
        if (end < length || memcmp(text + end - length, content, length) != 0)
            break;
        end -= length;
    }
    return add_text(&r->out, text + start, end > start ? end - start : 0);
}

/* `to` is not longer than `from`. */
static void replace_fixed(ic_buffer *b, const char *from, const char *to)
{
    size_t m = strlen(from), n = strlen(to), at = 0;
    const char *hit;
    while (b->data && (hit = ic_find_text(b->data + at, b->size - at, from, m))) {
        at = (size_t)(hit - b->data);
        memmove(b->data + at + n, b->data + at + m, b->size - at - m);
        memcpy(b->data + at, to, n);
        b->size -= m - n;
        at += n;
    }
}

static int wordpiece(run *r, const char *text, size_t size, bool first)
{
    static const char *const clean[][2] = {
        {" .", "."},   {" ?", "?"},     {" !", "!"},     {" ,", ","},
        {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},   {" do not", " don't"},
        {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
    };
    size_t prefix = strlen(r->d->text);
    ic_buffer b = {0};
    int rc = ICAE_OK;
    bool inside = size >= prefix && memcmp(text, r->d->text, prefix) == 0;
    if (!first && !inside)
        IC_TRY(ic_buffer_add(&b, " ", 1));
    if (!first && inside)
        IC_TRY(ic_buffer_add(&b, text + prefix, size - prefix));
    else
        IC_TRY(ic_buffer_add(&b, text, size));
    for (size_t i = 0; i < IC_COUNT(clean) && r->d->cleanup; i++)
        replace_fixed(&b, clean[i][0], clean[i][1]);
    rc = add_text(&r->out, b.data ? b.data : "", b.size);
done:
    ic_buffer_free(&b);
    return rc;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 32);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte that <0xXX> stands for, -1 if the token is no such. */
static int fallback_byte(const char *text, size_t size)
{
    if (size != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>')
        return -1;
    int high = hex_digit(text[3]), low = hex_digit(text[4]);
    if (text[3] == '+') /* as Rust reads numbers */
        high = 0;
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

/* A run of bytes is one text if all of it is UTF-8, else each is U+FFFD. */
static int end_bytes(run *r, ic_buffer *bytes)
{
    int rc = ICAE_OK;
    bool valid = true;
    for (size_t at = 0; at < bytes->size && valid;) {
        uint32_t code;
        int length = ic_utf8_decode(&code, bytes->data + at, bytes->size - at);
        valid = length > 0;
        at += valid ? (size_t)length : 0;
    }
    if (valid && bytes->size)
        rc = add_text(&r->out, bytes->data, bytes->size);
    for (size_t i = 0; i < bytes->size && !valid && rc >= 0; i++)
        rc = add_text(&r->out, "\xef\xbf\xbd", 3);
    bytes->size = 0;
    return rc;
}

static int byte_fallback(run *r)
{
    ic_buffer bytes = {0};
    int rc = ICAE_OK;
    for (size_t i = 0; i < r->in.count; i++) {
        size_t size;
        const char *text = text_at(&r->in, i, &size);
        int byte = fallback_byte(text, size);
        char c = (char)byte;
        if (byte >= 0) {
            IC_TRY(ic_buffer_add(&bytes, &c, 1));
            continue;
        }
        IC_TRY(end_bytes(r, &bytes));
        IC_TRY(add_text(&r->out, text, size));
    }
    rc = end_bytes(r, &bytes);
done:
    ic_buffer_free(&bytes);
    return rc;
}

static int fuse(run *r)
{
    int rc =
        r->in.data.size ? ic_buffer_add(&r->out.data, r->in.data.data, r->in.data.size) : ICAE_OK;
    return rc < 0 ? rc : end_text(&r->out);
}

static int run_one(run *r)
{
    switch (r->d->kind) {
    case IC_DECODE_BYTE_LEVEL:
        r->fused = true;
        return byte_level(r);
    case IC_DECODE_FUSE:
        r->fused = true;
        return fuse(r);
    case IC_DECODE_BYTE_FALLBACK:
        return byte_fallback(r);
    default:
        break;
    }
    int rc = ICAE_OK;
    for (size_t i = 0; i < r->in.count && rc >= 0; i++) {
        size_t size;
        const char *text = text_at(&r->in, i, &size);
        bool first = i == 0 && r->part.first, last = i + 1 == r->in.count && r->part.last;
        switch (r->d->kind) {
        case IC_DECODE_METASPACE: /* a fused text is the first, all of it */
            rc = metaspace(r, text, size, r->fused ? true : first);
            break;
        case IC_DECODE_REPLACE:
            rc = replace(r, text, size, r->d->text);
            break;
        case IC_DECODE_STRIP:
            rc = strip(r, text, size, r->fused ? first : true);
            break;
        case IC_DECODE_BPE:
            rc = replace(r, text, size, last ? "" : " ");
            break;
        default:
            rc = wordpiece(r, text, size, r->fused ? true : first);
        }
    }
    return rc;
}

const char *ic_decode_source(const ic_tokenizer *t, int32_t id, bool skip_special, size_t *size)
{
    if (id < 0 || id >= t->size || (skip_special && t->special && t->special[id] & 2))
        return NULL;
    if (t->decode_text && t->decode_text[id]) {
        *size = strlen(t->decode_text[id]);
        return t->decode_text[id];
    }
    const char *text = ic_vocab_text(&t->added.names, id, size);
    return text ? text : ic_vocab_text(&t->vocab, id, size);
}

static int run_all(run *r, const ic_tokenizer *t)
{
    for (size_t i = 0; i < t->decoder_count; i++) {
        r->d = &t->decoders[i];
        r->out.data.size = r->out.count = 0;
        int rc = run_one(r);
        if (rc < 0)
            return rc;
        texts swapped = r->in;
        r->in = r->out;
        r->out = swapped;
    }
    return ICAE_OK;
}

int ic_decoders_run(ic_buffer *out, const ic_tokenizer *t, const int32_t *ids, size_t count,
                    bool skip_special, ic_decode_part part)
{
    run r = {.part = part};
    int rc = ICAE_OK;
    if (part.open)
        *part.open = 0;
    r.in.data.limit = r.out.data.limit = IC_GROWTH + count * 1024;
    for (size_t i = 0; i < count; i++) {
        size_t size;
        const char *text = ic_decode_source(t, ids[i], skip_special, &size);
        if (!text)
            continue;
        if (!t->has_decoder && !(part.first && r.in.count == 0))
            IC_TRY(ic_buffer_add(&r.in.data, " ", 1));
        IC_TRY(add_text(&r.in, text, size));
    }
    for (size_t i = 0; i < t->decoder_count && !r.matcher; i++)
        if (t->decoders[i].regex && !ic_regex_is_literal(t->decoders[i].regex))
            IC_TRY(ic_matcher_new(&r.matcher));
    IC_TRY(run_all(&r, t));
    if (r.in.data.size)
        rc = ic_buffer_add(out, r.in.data.data, r.in.data.size);
done:
    ic_buffer_free(&r.in.data);
    ic_buffer_free(&r.out.data);
    ic_buffer_free(&r.shadow);
    ic_free(r.in.ends);
    ic_free(r.out.ends);
    ic_matcher_free(r.matcher);
    return rc;
}

bool ic_decoders_can_stream(const ic_tokenizer *t)
{
    bool fused = false, bytes = false;
    for (size_t i = 0; i < t->decoder_count; i++) {
        const ic_decoder *d = &t->decoders[i];
        switch (d->kind) {
        case IC_DECODE_BYTE_LEVEL:
            if (fused)
                return false;
            fused = true;
            break;
        case IC_DECODE_FUSE:
            fused = true;
            break;
        case IC_DECODE_BYTE_FALLBACK:
            if (fused || bytes)
                return false;
            bytes = true;
            break;
        case IC_DECODE_STRIP:
            if (fused && d->stop)
                return false;
            break;
        case IC_DECODE_REPLACE:
            if (fused && !ic_regex_is_one_char(d->regex))
                return false;
            break;
        case IC_DECODE_METASPACE:
            break;
        default: /* depend on the last token, or look at more than a character */
            return false;
        }
    }
    return true;
}

int ic_decoders_is_byte(const ic_tokenizer *t, int32_t id, bool first)
{
    run r = {.part = {.first = first}};
    int rc = 0;
    size_t size = 0, i = 0;
    while (i < t->decoder_count && t->decoders[i].kind != IC_DECODE_BYTE_FALLBACK)
        i++;
    const char *text = ic_decode_source(t, id, false, &size);
    if (i == t->decoder_count || !text)
        return 0;
    /* Only the steps before ByteFallback, which work on single tokens. */
    ic_tokenizer before = *t;
    before.decoder_count = i;
    IC_TRY(add_text(&r.in, text, size));
    for (size_t j = 0; j < i && !r.matcher; j++)
        if (t->decoders[j].regex && !ic_regex_is_literal(t->decoders[j].regex))
            IC_TRY(ic_matcher_new(&r.matcher));
    IC_TRY(run_all(&r, &before));
    text = text_at(&r.in, 0, &size);
    rc = fallback_byte(text, size) >= 0;
done:
    ic_buffer_free(&r.in.data);
    ic_buffer_free(&r.out.data);
    ic_buffer_free(&r.shadow);
    ic_free(r.in.ends);
    ic_free(r.out.ends);
    ic_matcher_free(r.matcher);
    return rc;
}
