/*
 * model.c - the "model" of tokenizer.json: vocabulary, merges and options of a BPE.
 *
 * Everything is checked here, so that encoding needs no checks: ids are in range and used once, every
 * merge is of known tokens and makes a known one.
 */
#include "text/internal.h"

#include <string.h>

static int parse_vocab(ic_tokenizer *t, const ic_json *node)
{
    if (!ic_json_is_object(node))
        return ic_fail(ICAE_EFORMAT, "%.200s: model.vocab is missing or no object", t->name);
    int rc = ic_vocab_new(&t->vocab, ic_json_count(node));
    for (const ic_json *i = ic_json_first(node); i && rc >= 0; i = ic_json_next(i)) {
        const char *text = ic_json_key(i);
        double number = ic_json_number(i, -1);
        size_t size = strlen(text);
        if (!(number >= 0 && number < IC_MAX_ID) || number != (double)(int32_t)number)
            return ic_fail(ICAE_EFORMAT,
                           "%.200s: model.vocab[\"%.50s\"] is not a whole number below %d", t->name,
                           text, IC_MAX_ID);
        int32_t id = (int32_t)number;
        const char *other = ic_vocab_text(&t->vocab, id, &(size_t){0});
        if (other)
            return ic_fail(ICAE_EFORMAT,
                           "%.200s: model.vocab gives id %d to \"%.50s\" and \"%.50s\"", t->name,
                           id, other, text);
        if (ic_vocab_find(&t->vocab, text, size) >= 0)
            return ic_fail(ICAE_EFORMAT, "%.200s: model.vocab has \"%.50s\" twice", t->name, text);
        rc = ic_vocab_set(&t->vocab, id, text, size, true);
    }
    return rc;
}

static int find_token(int32_t *id, const ic_tokenizer *t, const char *text, size_t size,
                      size_t rank)
{
    *id = ic_vocab_find(&t->vocab, text, size);
    if (*id < 0)
        return ic_fail(ICAE_EFORMAT,
                       "%.200s: model.merges[%zu] needs \"%.*s\", which is not in the vocabulary",
                       t->name, rank, (int)IC_MIN(size, (size_t)50), text);
    return ICAE_OK;
}

static int add_merge(ic_tokenizer *t, ic_buffer *joined, size_t rank, const char *left, size_t m,
                     const char *right, size_t n)
{
    int32_t left_id, right_id, id;
    size_t prefix = t->bpe.prefix ? strlen(t->bpe.prefix) : 0;
    int rc;
    if (n < prefix)
        return ic_fail(ICAE_EFORMAT,
                       "%.200s: model.merges[%zu] is shorter than continuing_subword_prefix",
                       t->name, rank);
    IC_TRY(find_token(&left_id, t, left, m, rank));
    IC_TRY(find_token(&right_id, t, right, n, rank));
    joined->size = 0;
    IC_TRY(ic_buffer_add(joined, left, m));
    IC_TRY(ic_buffer_add(joined, right + prefix, n - prefix));
    IC_TRY(find_token(&id, t, joined->data, joined->size, rank));
    rc = ic_bpe_add_merge(&t->bpe, left_id, right_id, (uint32_t)rank, id, true);
done:
    return rc;
}

/* "left right" or ["left", "right"]. */
static int parse_merge(ic_tokenizer *t, ic_buffer *joined, size_t rank, const ic_json *node)
{
    const char *left = ic_json_string(node), *right = NULL;
    if (left) {
        const char *space = strchr(left, ' ');
        if (!space || strchr(space + 1, ' '))
            return ic_fail(ICAE_EFORMAT,
                           "%.200s: model.merges[%zu] is \"%.100s\", not two tokens and a space",
                           t->name, rank, left);
        return add_merge(t, joined, rank, left, (size_t)(space - left), space + 1,
                         strlen(space + 1));
    }
    const ic_json *first = ic_json_first(node), *second = first ? ic_json_next(first) : NULL;
    left = ic_json_is_array(node) ? ic_json_string(first) : NULL;
    right = left && second ? ic_json_string(second) : NULL;
    if (!right || ic_json_next(second))
        return ic_fail(ICAE_EFORMAT, "%.200s: model.merges[%zu] is not a pair of tokens", t->name,
                       rank);
    return add_merge(t, joined, rank, left, strlen(left), right, strlen(right));
}

static int parse_merges(ic_tokenizer *t, const ic_json *node)
{
    if (!ic_json_is_array(node))
        return ic_fail(ICAE_EFORMAT, "%.200s: model.merges is missing or no list", t->name);
    size_t count = ic_json_count(node), rank = 0;
    if (count > INT32_MAX)
        return ic_fail(ICAE_ELIMIT, "%.200s: %zu merges", t->name, count);
    ic_buffer joined = {0};
    int rc = ic_bpe_reserve(&t->bpe, count);
    for (const ic_json *i = ic_json_first(node); i && rc >= 0; i = ic_json_next(i)) {
        const char *text = ic_json_string(i);
        if (text && strncmp(text, "#version", 8) == 0)
            continue;
        rc = parse_merge(t, &joined, rank++, i);
    }
    ic_buffer_free(&joined);
    return rc;
}

/* An optional text; empty is none. */
static int parse_option(char **out, const ic_tokenizer *t, const ic_json *model, const char *key)
{
    const ic_json *node = ic_json_get(model, key);
    const char *text = ic_json_string(node);
    if (!ic_json_is_null(node) && !text)
        return ic_fail(ICAE_EFORMAT, "%.200s: model.%s is neither a text nor null", t->name, key);
    if (!text || !*text)
        return ICAE_OK;
    *out = ic_strdup(text);
    return *out ? ICAE_OK : ICAE_ENOMEM;
}

int ic_model_parse(ic_tokenizer *t, const ic_json *node)
{
    int rc;
    ic_bpe *b = &t->bpe;
    const char *type = ic_json_string(ic_json_get(node, "type"));
    if (!ic_json_is_object(node))
        return ic_fail(ICAE_EFORMAT, "%.200s: no \"model\": is this a tokenizer.json?", t->name);
    if (type && strcmp(type, "BPE") != 0)
        return ic_fail(ICAE_EUNSUPPORTED, "%.200s: the model \"%.50s\" is not supported, BPE is",
                       t->name, type);
    if (ic_json_number(ic_json_get(node, "dropout"), 0) != 0)
        return ic_fail(ICAE_EUNSUPPORTED, "%.200s: model.dropout is not supported", t->name);
    IC_TRY(parse_option(&b->unknown, t, node, "unk_token"));
    IC_TRY(parse_option(&b->prefix, t, node, "continuing_subword_prefix"));
    IC_TRY(parse_option(&b->suffix, t, node, "end_of_word_suffix"));
    b->fuse_unknown = ic_json_bool(ic_json_get(node, "fuse_unk"), false);
    b->byte_fallback = ic_json_bool(ic_json_get(node, "byte_fallback"), false);
    b->ignore_merges = ic_json_bool(ic_json_get(node, "ignore_merges"), false);
    IC_TRY(parse_vocab(t, ic_json_get(node, "vocab")));
    IC_TRY(parse_merges(t, ic_json_get(node, "merges")));
    ic_vocab_index(&t->vocab);
    b->public_size = t->vocab.size;
    b->unknown_id =
        b->unknown ? ic_vocab_find(&t->vocab, b->unknown, strlen(b->unknown)) : IC_NO_TOKEN;
done:
    return rc;
}
