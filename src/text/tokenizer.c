/*
 * tokenizer.c - opening a tokenizer.json, and the way of a text through a tokenizer's parts.
 *
 * Owns the tokenizer. The parts read their own section of the file and do their own step; here is
 * only the order, and what concerns the whole: ids, special tokens, the hash.
 */
#include "text/internal.h"

#include <string.h>

/* ---- opening ---------------------------------------------------------------------------------- */

/* Collects what is hashed: the digest is slow on small pieces. */
static int hash_json(ic_buffer *b, const ic_json *node)
{
    const char *text = ic_json_string(node);
    int rc = ic_buffer_addf(b, "%d %d %.17g %zu:", ic_json_is_bool(node), ic_json_bool(node, false),
                            ic_json_number(node, 0), text ? strlen(text) : 0);
    if (rc >= 0 && text)
        rc = ic_buffer_add(b, text, strlen(text));
    for (const ic_json *i = ic_json_first(node); i && rc >= 0; i = ic_json_next(i)) {
        if (ic_json_is_object(node))
            rc = ic_buffer_addf(b, "%zu:%s", strlen(ic_json_key(i)), ic_json_key(i));
        if (rc >= 0)
            rc = hash_json(b, i);
    }
    return rc < 0 ? rc : ic_buffer_add(b, ";", 1);
}

int ic_tokenizer_hash_parts(ic_tokenizer *t, const void *extra, size_t extra_size)
{
    ic_hash *h;
    int rc = ic_hash_new(&h);
    if (rc < 0)
        return rc;
    for (int32_t id = 0; id < t->vocab.size; id++) {
        const ic_token_text *token = &t->vocab.tokens[id];
        if (token->used) { /* the text and the 0 byte behind it */
            ic_hash_add(h, &id, sizeof id);
            ic_hash_add(h, t->vocab.strings.data + token->start, token->size + 1u);
        }
    }
    ic_hash_add(h, t->bpe.merges, t->bpe.merge_slots * sizeof *t->bpe.merges);
    ic_hash_add(h, extra, extra_size);
    ic_hash_finish(h, t->hash);
    return ICAE_OK;
}

static int hash_file(ic_tokenizer *t, const ic_json *root)
{
    static const char *const parts[] = {"added_tokens", "normalizer", "pre_tokenizer",
                                        "post_processor"};
    static const char *const options[] = {"unk_token",     "continuing_subword_prefix",
                                          "fuse_unk",      "end_of_word_suffix",
                                          "byte_fallback", "ignore_merges"};
    ic_buffer b = {0};
    int rc = ICAE_OK;
    for (size_t i = 0; i < IC_COUNT(parts) && rc >= 0; i++)
        rc = hash_json(&b, ic_json_get(root, parts[i]));
    for (size_t i = 0; i < IC_COUNT(options) && rc >= 0; i++)
        rc = hash_json(&b, ic_json_get(ic_json_get(root, "model"), options[i]));
    if (rc >= 0)
        rc = ic_tokenizer_hash_parts(t, b.data, b.size);
    ic_buffer_free(&b);
    return rc;
}

/* Sizes, and what is special by id. */
static int index_added(ic_tokenizer *t)
{
    const ic_added *a = &t->added;
    t->size = IC_MAX(t->vocab.size, a->names.size);
    t->special = ic_alloc((size_t)t->size + 1, 1);
    t->decode_text = ic_alloc((size_t)t->size + 1, sizeof *t->decode_text);
    if (!t->special || !t->decode_text)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < a->count; i++)
        t->special[a->tokens[i].id] = a->tokens[i].special;
    for (size_t i = 0; i < a->count; i++) {
        const ic_added_token *token = &a->tokens[i];
        int32_t like = token->id;
        /* What is left out is decided by the text decoding starts from. */
        if (token->normal) {
            t->decode_text[token->id] = ic_strdup(token->normal);
            if (!t->decode_text[token->id])
                return ICAE_ENOMEM;
            like = ic_vocab_find(&a->names, token->normal, token->normal_size);
        }
        if (like >= 0 && t->special[like] & 1)
            t->special[token->id] |= 2;
    }
    return ICAE_OK;
}

static int build(ic_tokenizer *t, const ic_json *root)
{
    int rc;
    bool cut = false;
    IC_TRY(ic_model_parse(t, ic_json_get(root, "model")));
    IC_TRY(ic_normalizers_parse(t, ic_json_get(root, "normalizer")));
    IC_TRY(ic_added_parse(t, ic_json_get(root, "added_tokens")));
    IC_TRY(index_added(t));
    IC_TRY(ic_pretokenizers_parse(t, ic_json_get(root, "pre_tokenizer")));
    IC_TRY(ic_posts_parse(t, ic_json_get(root, "post_processor")));
    IC_TRY(ic_decoders_parse(t, ic_json_get(root, "decoder")));
    for (size_t i = 0; i < t->pretokenizer_count; i++)
        cut |= t->pretokenizers[i].regex != NULL;
    if (!cut)
        IC_TRY(ic_bpe_index_joins(&t->bpe, &t->vocab));
    rc = hash_file(t, root);
done:
    return rc;
}

ic_tokenizer *ic_tokenizer_new(const char *name)
{
    ic_tokenizer *t = ic_alloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->bos = t->eos = IC_NO_TOKEN;
    t->bpe.unknown_id = IC_NO_TOKEN;
    t->name = ic_strdup(name);
    if (!t->name) {
        ic_free(t);
        return NULL;
    }
    return t;
}

/* Offset of the first ill-formed byte; `size` if there is none. */
static size_t valid_prefix(const char *text, size_t size)
{
    size_t at = 0;
    while (at < size) {
        uint32_t code;
        int length =
            (unsigned char)text[at] < 0x80 ? 1 : ic_utf8_decode(&code, text + at, size - at);
        if (length <= 0)
            break;
        at += (size_t)length;
    }
    return at;
}

int ic_tokenizer_parse(ic_tokenizer **out, const char *json, size_t size, const char *name)
{
    int rc;
    ic_json *root = NULL;
    *out = NULL;
    size_t valid = valid_prefix(json, size);
    if (valid < size)
        return ic_fail(ICAE_EFORMAT, "%.200s: not UTF-8 (byte %zu)", name, valid);
    IC_TRY(ic_json_parse(&root, json, size, name));
    *out = ic_tokenizer_new(name);
    rc = *out ? build(*out, root) : ICAE_ENOMEM;
done:
    ic_json_free(root);
    if (rc < 0) {
        ic_tokenizer_free(*out);
        *out = NULL;
    }
    return rc;
}

int ic_tokenizer_open(ic_tokenizer **out, const char *path)
{
    ic_map map;
    *out = NULL;
    int rc = ic_map_open(&map, path);
    if (rc < 0)
        return rc;
    rc = ic_tokenizer_parse(out, (const char *)map.data, map.size, path);
    ic_map_close(&map);
    return rc;
}

void ic_tokenizer_free(ic_tokenizer *t)
{
    if (!t)
        return;
    for (int32_t id = 0; t->decode_text && id < t->size; id++)
        ic_free(t->decode_text[id]);
    ic_free(t->decode_text);
    ic_free(t->special);
    ic_normalizers_free(t);
    ic_pretokenizers_free(t);
    ic_posts_free(t);
    ic_decoders_free(t);
    ic_added_free(&t->added);
    ic_bpe_free(&t->bpe);
    ic_vocab_free(&t->vocab);
    ic_gguf_text_free(t->gguf);
    ic_free(t->name);
    ic_free(t);
}

/* ---- encoding --------------------------------------------------------------------------------- */

/* A text being cut at added tokens; `base` is what offsets count from. */
typedef struct cutting {
    const ic_tokenizer *t;
    ic_ids *out;
    ic_scratch *scratch;
    const char *base;
    size_t origin;
    bool untrusted;
} cutting;

int ic_encode_piece(ic_ids *out, const ic_tokenizer *t, const char *text, size_t size,
                    size_t origin, ic_scratch *scratch)
{
    ic_pieces *p = &scratch->pieces;
    if (!t->pretokenizer_count)
        return ic_bpe_encode(out, &t->bpe, &t->vocab, text, size, scratch);
    ic_pieces_clear(p);
    int rc = ic_buffer_add(&p->text, text, size);
    if (rc < 0 || (rc = ic_pieces_add(p, 0, size)) < 0)
        return rc;
    p->origin = origin;
    rc = ic_pretokenizers_run(t, scratch);
    for (size_t i = 0; i < p->count && rc >= 0; i++)
        rc = ic_bpe_encode(out, &t->bpe, &t->vocab, p->text.data + p->spans[i].start,
                           p->spans[i].size, scratch);
    return rc;
}

static int normal_piece(void *user, int32_t id, size_t start, size_t size)
{
    const cutting *c = user;
    if (id >= 0)
        return ic_ids_add(c->out, id);
    return ic_encode_piece(c->out, c->t, c->base + start, size,
                           c->origin > start ? c->origin - start : 0, c->scratch);
}

static int raw_piece(void *user, int32_t id, size_t start, size_t size)
{
    const cutting *c = user;
    ic_scratch *s = c->scratch;
    if (id >= 0)
        return ic_ids_add(c->out, id);
    cutting inner = *c;
    uint32_t code;
    inner.base = c->base + start;
    inner.origin = start == 0 ? (size_t)ic_next_char(&code, inner.base, size) : 0;
    if (c->t->normalizer_count) {
        s->normal.size = 0;
        int rc = ic_buffer_add(&s->normal, inner.base, size);
        if (rc < 0 || (rc = ic_normalizers_run(c->t, s, &inner.origin, start == 0)) < 0)
            return rc;
        inner.base = s->normal.data;
        size = s->normal.size;
    }
    return ic_added_split(&c->t->added, 1, inner.base, size, c->untrusted, s->matcher, normal_piece,
                          &inner);
}

/* The text itself if it is UTF-8, else a copy with U+FFFD for what is not. */
static int make_valid(const char **text, size_t *size, ic_scratch *s)
{
    size_t at = valid_prefix(*text, *size), rest = *size;
    if (at == rest)
        return ICAE_OK;
    const char *from = *text;
    int rc = ic_buffer_add(&s->valid, from, at);
    while (at < rest && rc >= 0) {
        uint32_t code;
        int length = ic_utf8_decode(&code, from + at, rest - at);
        rc = length > 0 ? ic_buffer_add(&s->valid, from + at, (size_t)length)
                        : ic_buffer_add(&s->valid, "\xef\xbf\xbd", 3);
        at += (size_t)(length > 0 ? length : -length);
    }
    *text = s->valid.data;
    *size = s->valid.size;
    return rc;
}

static int encode(ic_ids *out, const ic_tokenizer *t, const char *text, size_t size, bool special,
                  bool untrusted)
{
    int rc;
    ic_scratch s = {0};
    size_t before = out->count;
    if (size == 0)
        text = "";
    IC_TRY(make_valid(&text, &size, &s));
    ic_scratch_limit(&s, size);
    IC_TRY(ic_matcher_new(&s.matcher));
    if (t->gguf) {
        rc = ic_gguf_encode(out, t, text, size, special, untrusted, &s);
        goto done;
    }
    cutting c = {.t = t, .scratch = &s, .base = text, .untrusted = untrusted};
    c.out = t->post_count ? &s.ids : out;
    IC_TRY(ic_added_split(&t->added, 0, text, size, untrusted, s.matcher, raw_piece, &c));
    if (t->post_count)
        rc = ic_posts_run(out, t, &s.ids, special);
done:
    ic_scratch_free(&s);
    if (rc < 0)
        out->count = before;
    return rc;
}

int ic_tokenizer_encode(ic_ids *out, const ic_tokenizer *t, const char *text, size_t size,
                        bool special)
{
    return encode(out, t, text, size, special, false);
}

int ic_tokenizer_encode_untrusted(ic_ids *out, const ic_tokenizer *t, const char *text, size_t size,
                                  bool special)
{
    return encode(out, t, text, size, special, true);
}

int ic_tokenizer_decode(ic_buffer *out, const ic_tokenizer *t, const int32_t *ids, size_t count,
                        bool skip_special)
{
    return ic_decoders_run(out, t, ids, count, skip_special,
                           (ic_decode_part){.first = true, .last = true});
}

/* ---- questions -------------------------------------------------------------------------------- */

int ic_tokenizer_size(const ic_tokenizer *t)
{
    return t->size;
}

int32_t ic_tokenizer_id(const ic_tokenizer *t, const char *token)
{
    size_t size = strlen(token);
    int32_t id = t->gguf ? IC_NO_TOKEN : ic_vocab_find(&t->added.names, token, size);
    if (id < 0)
        id = ic_vocab_find(&t->vocab, token, size);
    return id < t->size ? id : IC_NO_TOKEN;
}

const char *ic_tokenizer_token(const ic_tokenizer *t, int32_t id)
{
    size_t size;
    if (id < 0 || id >= t->size)
        return NULL;
    const char *text = ic_vocab_text(&t->added.names, id, &size);
    return text ? text : ic_vocab_text(&t->vocab, id, &size);
}

bool ic_tokenizer_is_special(const ic_tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->size && t->special[id] & 1;
}

int32_t ic_tokenizer_bos(const ic_tokenizer *t)
{
    return t->bos;
}

int32_t ic_tokenizer_eos(const ic_tokenizer *t)
{
    return t->eos;
}

const char *ic_tokenizer_hash(const ic_tokenizer *t)
{
    return t->hash;
}
