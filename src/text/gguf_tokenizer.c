/*
 * gguf_tokenizer.c - tokenizers from GGUF metadata: kinds "llama" (pieces merged by score) and "gpt2"
 * (byte-level BPE), token for token as llama.cpp.
 *
 * Owns the reading of what only these have: types of tokens, which are cut out of texts, the space in
 * front of a text, bos and eos. Merging and decoding are those of all tokenizers.
 */
#include "text/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* GGUF value types */
enum { TYPE_INT32 = 5, TYPE_FLOAT32 = 6, TYPE_STRING = 8, TYPE_ARRAY = 9 };

void ic_gguf_text_free(ic_gguf_text *g)
{
    if (!g)
        return;
    ic_free(g->types);
    ic_free(g->cut);
    ic_free(g);
}

/* ---- how kinds of byte-level BPE cut text ----------------------------------------------------- */

#define CONTRACTIONS "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
#define GPT2         "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define WORDS        "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
#define SYMBOLS      "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
#define SPACES       "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define LLAMA3       CONTRACTIONS WORDS "|\\p{N}{1,3}" SYMBOLS SPACES
#define QWEN2        CONTRACTIONS WORDS "|\\p{N}" SYMBOLS SPACES
#define UPPER_PART   "((?=[\\p{L}])([^a-z]))"
#define LOWER_PART   "((?=[\\p{L}])([^A-Z]))"
#define CASED(tail)                                             \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER_PART "*" LOWER_PART "+" tail \
    "|[^\\r\\n\\p{L}\\p{N}]?" UPPER_PART "+" LOWER_PART "*" tail

static const struct {
    const char *names; /* each between commas */
    bool ignore_merges, add_bos;
    const char *patterns[4];
} cutters[] = {
    {",default,", false, false, {"[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
    {",llama-bpe,llama3,llama-v3,falcon3,falcon-h1,pixtral,midm-2.0,lfm2,", true, true, {LLAMA3}},
    {",dbrx,smaug-bpe,glm4,chatglm-bpe,", false, false, {LLAMA3}},
    {",qwen2,deepseek-r1-qwen,kormo,f2llmv2,megrez,stablelm2,hunyuan,solar-open,grok-2,",
     false,
     false,
     {QWEN2}},
    {",qwen35,",
     false,
     false,
     {CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}"
                   "| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*" SPACES}},
    {",gpt-2,phi-2,mpt,olmo,jais,trillion,exaone4,gigachat,a.x-4.0,mellum,granite-docling,",
     false,
     false,
     {GPT2}},
    {",smollm,starcoder,refact,command-r,codeshell,exaone,minerva-7b,",
     false,
     false,
     {"\\p{N}", GPT2}},
    {",tekken,", true, true, {CASED("") "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" SPACES}},
    {",gpt-4o,llama4,kanana2,",
     false,
     false,
     {CASED(CONTRACTIONS "?") "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" SPACES}},
    {",falcon,", false, false, {"[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2, "[0-9][0-9][0-9]"}},
    {",deepseek-v3,hunyuan-dense,",
     false,
     false,
     {"\\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
      "|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*" SPACES}},
};

static int unknown_cutter(const ic_gguf *g, const char *name, size_t size)
{
    ic_buffer known = {0};
    for (size_t i = 0; i < IC_COUNT(cutters); i++)
        if (ic_buffer_addf(&known, "%s%.*s", i ? ", " : "", (int)strlen(cutters[i].names) - 2,
                           cutters[i].names + 1) < 0)
            break;
    int rc =
        ic_fail(ICAE_EUNSUPPORTED, "%.200s: tokenizer.ggml.pre is \"%.*s\"; supported are %s",
                g->path, (int)IC_MIN(size, (size_t)50), name, known.data ? known.data : "others");
    ic_buffer_free(&known);
    return rc;
}

static int add_cutter(ic_tokenizer *t, const ic_gguf *g, const char *name, size_t size)
{
    char between[64];
    size_t i = IC_COUNT(cutters);
    if (size > 0 && size < 50 && !memchr(name, ',', size)) {
        between[0] = ',';
        memcpy(between + 1, name, size);
        memcpy(between + 1 + size, ",", 2);
        for (i = 0; i < IC_COUNT(cutters) && !strstr(cutters[i].names, between); i++)
            ;
    }
    if (i == IC_COUNT(cutters))
        return unknown_cutter(g, name, size);
    int rc = ICAE_OK;
    for (size_t j = 0; j < 4 && cutters[i].patterns[j] && rc >= 0; j++)
        rc = ic_tokenizer_add_split(t, cutters[i].patterns[j], IC_ISOLATED);
    t->bpe.ignore_merges = cutters[i].ignore_merges;
    t->bpe.keep_unknown = true;
    t->gguf->add_bos = cutters[i].add_bos;
    return rc < 0 ? rc : ic_tokenizer_add_byte_level(t);
}

/* ---- vocabulary ------------------------------------------------------------------------------- */

/* An array that has `count` elements at least; NULL and no error if it is absent and may be. */
static int need_array(const ic_gguf_value **out, const ic_gguf *g, const char *key, uint32_t type,
                      uint32_t other_type, uint64_t count, bool required)
{
    const ic_gguf_value *v = *out = ic_gguf_get(g, key);
    if (!v && !required)
        return ICAE_OK;
    if (!v)
        return ic_fail(ICAE_EFORMAT, "%.200s: no %s", g->path, key);
    if (v->type != TYPE_ARRAY || (v->array_type != type && v->array_type != other_type))
        return ic_fail(ICAE_EFORMAT, "%.200s: %s is of another type than expected", g->path, key);
    if (v->count < count)
        return ic_fail(ICAE_EFORMAT, "%.200s: %s has %llu elements for %llu tokens", g->path, key,
                       (unsigned long long)v->count, (unsigned long long)count);
    return ICAE_OK;
}

static bool is_utf8(const char *text, size_t size)
{
    for (size_t at = 0; at < size;) {
        uint32_t code;
        int length = ic_utf8_decode(&code, text + at, size - at);
        if (length <= 0)
            return false;
        at += (size_t)length;
    }
    return !memchr(text, 0, size);
}

static int read_tokens(ic_tokenizer *t, const ic_gguf *g)
{
    const ic_gguf_value *tokens;
    int rc = need_array(&tokens, g, "tokenizer.ggml.tokens", TYPE_STRING, TYPE_STRING, 1, true);
    if (rc < 0)
        return rc;
    if (tokens->count > IC_MAX_ID)
        return ic_fail(ICAE_ELIMIT, "%.200s: %llu tokens, more than %d", g->path,
                       (unsigned long long)tokens->count, IC_MAX_ID);
    t->size = (int32_t)tokens->count;
    if ((rc = ic_vocab_new(&t->vocab, tokens->count)) < 0)
        return rc;
    const unsigned char *cursor = tokens->data;
    for (int32_t id = 0; id < t->size && rc >= 0; id++) {
        size_t size;
        const char *text = ic_gguf_next_string(tokens, &cursor, &size);
        char name[32] = "\xef\xbf\xbd";
        /* What is not UTF-8 is in no text: it is never found, and shown as U+FFFD. */
        bool proper = is_utf8(text, size);
        if (size == 0)
            snprintf(name, sizeof name, "[EMPTY_%d]", id);
        if (!proper || size == 0) {
            text = name;
            size = strlen(name);
        }
        t->bpe.longest = IC_MAX(t->bpe.longest, size);
        if (proper && ic_vocab_find(&t->vocab, text, size) >= 0)
            return ic_fail(ICAE_EFORMAT, "%.200s: tokenizer.ggml.tokens has \"%.*s\" twice",
                           g->path, (int)IC_MIN(size, (size_t)50), text);
        rc = ic_vocab_set(&t->vocab, id, text, size, proper);
    }
    t->bpe.public_size = t->size;
    return rc;
}

static bool is_named(const char *text, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(names[i], text) == 0)
            return true;
    return false;
}

/* Some files call tokens normal that llama.cpp knows to be control tokens, by their text. */
static unsigned type_of(const char *text, int declared, bool harmony)
{
    static const char *const control[] = {"<|eot_id|>",
                                          "<|im_end|>",
                                          "<|end|>",
                                          "<|return|>",
                                          "<|call|>",
                                          "<|flush|>",
                                          "<|calls|>",
                                          "<end_of_turn>",
                                          "<|endoftext|>",
                                          "</s>",
                                          "<|eom_id|>",
                                          "<EOT>",
                                          "_<EOT>",
                                          "[EOT]",
                                          "[EOS]",
                                          "<|end_of_text|>",
                                          "<end_of_utterance>",
                                          "<eos>",
                                          "<｜end▁of▁sentence｜>",
                                          "<|fim_prefix|>",
                                          "<fim-prefix>",
                                          "<fim_prefix>",
                                          "<｜fim▁begin｜>",
                                          "<PRE>",
                                          "▁<PRE>",
                                          "<|code_prefix|>",
                                          "<|fim_suffix|>",
                                          "<fim-suffix>",
                                          "<fim_suffix>",
                                          "<｜fim▁hole｜>",
                                          "<SUF>",
                                          "▁<SUF>",
                                          "<|code_suffix|>",
                                          "<|fim_middle|>",
                                          "<fim-middle>",
                                          "<fim_middle>",
                                          "<｜fim▁end｜>",
                                          "<MID>",
                                          "▁<MID>",
                                          "<|code_middle|>",
                                          "<|fim_pad|>",
                                          "<fim-pad>",
                                          "<fim_pad>",
                                          "<PAD>",
                                          "[PAD]",
                                          "<|fim_repo|>",
                                          "<|repo_name|>",
                                          "<fim-repo>",
                                          "<REPO>",
                                          "<reponame>",
                                          "<|file_sep|>"};
    static const char *const user[] = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"};
    unsigned type = declared >= 1 && declared <= 6 ? 1u << declared : 0;
    if (is_named(text, control, IC_COUNT(control)))
        type |= IC_TOKEN_CONTROL;
    if (is_named(text, user, IC_COUNT(user)) || (harmony && strcmp(text, "<|end|>") == 0))
        type = IC_TOKEN_USER;
    return type;
}

static int read_types(ic_tokenizer *t, const ic_gguf *g)
{
    const ic_gguf_value *types;
    int rc = need_array(&types, g, "tokenizer.ggml.token_type", TYPE_INT32, TYPE_INT32,
                        (uint64_t)t->size, false);
    if (rc < 0)
        return rc;
    t->gguf->types = ic_alloc((size_t)t->size, 1);
    t->special = ic_alloc((size_t)t->size, 1);
    t->decode_text = ic_alloc((size_t)t->size, sizeof *t->decode_text);
    if (!t->gguf->types || !t->special || !t->decode_text)
        return ICAE_ENOMEM;
    bool call = ic_tokenizer_id(t, "<|call|>") >= 0 || ic_tokenizer_id(t, "<|calls|>") >= 0;
    bool harmony =
        call && (ic_tokenizer_id(t, "<|return|>") >= 0 || ic_tokenizer_id(t, "<|flush|>") >= 0);
    for (int32_t id = 0; id < t->size; id++) {
        int declared = types ? (int)ic_gguf_element(types, (uint64_t)id) : 1;
        unsigned type = type_of(ic_tokenizer_token(t, id), declared, harmony);
        t->gguf->types[id] = (unsigned char)type;
        if (type & (IC_TOKEN_CONTROL | IC_TOKEN_UNKNOWN))
            t->special[id] = 3;
    }
    return ICAE_OK;
}

static int32_t read_id(const ic_tokenizer *t, const ic_gguf *g, const char *key, int32_t otherwise)
{
    double id = ic_gguf_number(g, key, -1);
    if (id >= 0 && id < t->size)
        return (int32_t)id;
    return otherwise < t->size ? otherwise : IC_NO_TOKEN;
}

static int read_specials(ic_tokenizer *t, const ic_gguf *g)
{
    ic_gguf_text *x = t->gguf;
    bool spm = x->by_score;
    t->bos = read_id(t, g, "tokenizer.ggml.bos_token_id", spm ? 1 : 11);
    t->eos = read_id(t, g, "tokenizer.ggml.eos_token_id", spm ? 2 : 11);
    t->bpe.unknown_id = read_id(t, g, "tokenizer.ggml.unknown_token_id", spm ? 0 : IC_NO_TOKEN);
    x->add_bos = ic_gguf_number(g, "tokenizer.ggml.add_bos_token", x->add_bos) != 0;
    x->add_eos = ic_gguf_number(g, "tokenizer.ggml.add_eos_token", false) != 0;
    x->space_prefix = ic_gguf_number(g, "tokenizer.ggml.add_space_prefix", x->space_prefix) != 0;
    if ((x->add_bos && t->bos < 0) || (x->add_eos && t->eos < 0))
        return ic_fail(ICAE_EFORMAT,
                       "%.200s: the tokenizer adds a token (%s) that it does not name", g->path,
                       t->bos < 0 ? "bos" : "eos");
    return ICAE_OK;
}

/* ---- tokens that are cut out ------------------------------------------------------------------ */

typedef struct sized_id {
    size_t size;
    int32_t id;
} sized_id;

static int compare_sizes(const void *a, const void *b)
{
    const sized_id *x = a, *y = b;
    if (x->size != y->size)
        return x->size < y->size ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

/* Phi-3's tokens swallow the white space behind them, which GGUF does not say but by its name. */
static bool is_phi3(const ic_gguf *g)
{
    size_t size;
    const char *name = ic_gguf_string(g, "general.name", &size);
    for (size_t i = 0; name && i + 4 <= size; i++)
        if ((name[i] | 32) == 'p' && (name[i + 1] | 32) == 'h' && (name[i + 2] | 32) == 'i' &&
            (name[i + 3] == '3' || (name[i + 3] == '-' && i + 5 <= size && name[i + 4] == '3')))
            return true;
    return false;
}

static int index_cut(ic_tokenizer *t, const ic_gguf *g)
{
    static const char *const plain[] = {"<unk>", "<s>", "<|endoftext|>"};
    ic_gguf_text *x = t->gguf;
    sized_id *list = ic_alloc((size_t)t->size, sizeof *list);
    x->cut = ic_alloc((size_t)t->size, sizeof *x->cut);
    if (!list || !x->cut) {
        ic_free(list);
        return ICAE_ENOMEM;
    }
    bool phi3 = is_phi3(g);
    for (int32_t id = 0; id < t->size; id++) {
        size_t size;
        const char *text = ic_vocab_text(&t->vocab, id, &size);
        if (!(x->types[id] & (IC_TOKEN_CONTROL | IC_TOKEN_USER | IC_TOKEN_UNKNOWN)))
            continue;
        if (phi3 && !is_named(text, plain, IC_COUNT(plain)))
            x->types[id] |= IC_TOKEN_STRIPS_RIGHT;
        list[x->cut_count++] = (sized_id){size, id};
    }
    qsort(list, x->cut_count, sizeof *list, compare_sizes);
    for (size_t i = 0; i < x->cut_count; i++)
        x->cut[i] = list[i].id;
    ic_free(list);
    return ICAE_OK;
}

/* ---- the two kinds ---------------------------------------------------------------------------- */

/* The higher the score the earlier: floats in order as unsigned numbers. */
static uint32_t rank_of(float score)
{
    uint32_t bits;
    score += 0.0f; /* no -0 */
    memcpy(&bits, &score, sizeof bits);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return IC_MIN(~bits, UINT32_MAX - 1);
}

static int read_scores(ic_tokenizer *t, const ic_gguf *g)
{
    const ic_gguf_value *scores;
    int rc = need_array(&scores, g, "tokenizer.ggml.scores", TYPE_FLOAT32, TYPE_INT32,
                        (uint64_t)t->size, false);
    if (rc < 0)
        return rc;
    t->bpe.ranks = ic_alloc((size_t)t->size, sizeof *t->bpe.ranks);
    if (!t->bpe.ranks)
        return ICAE_ENOMEM;
    for (int32_t id = 0; id < t->size; id++)
        t->bpe.ranks[id] = rank_of(scores ? (float)ic_gguf_element(scores, (uint64_t)id) : 0.0f);
    return ic_bpe_index_joins(&t->bpe, &t->vocab);
}

static int build_by_score(ic_tokenizer *t, const ic_gguf *g)
{
    ic_decoder *d;
    int rc;
    t->gguf->space_prefix = t->gguf->add_bos = true;
    IC_TRY(read_specials(t, g));
    ic_vocab_index(&t->vocab);
    IC_TRY(read_scores(t, g));
    IC_TRY(ic_tokenizer_add_decoder(t, IC_DECODE_REPLACE, &d));
    IC_TRY(ic_regex_new_literal(&d->regex, "▁"));
    d->text = ic_strdup(" ");
    if (!d->text)
        return ICAE_ENOMEM;
    IC_TRY(ic_tokenizer_add_decoder(t, IC_DECODE_BYTE_FALLBACK, &d));
    IC_TRY(ic_tokenizer_add_decoder(t, IC_DECODE_FUSE, &d));
    if (t->gguf->space_prefix) {
        IC_TRY(ic_tokenizer_add_decoder(t, IC_DECODE_STRIP, &d));
        d->character[0] = ' ';
        d->start = 1;
    }
done:
    return rc;
}

/* The id of a text; a text that is no token gets one behind the tokens. */
static int intern(int32_t *id, ic_vocab *v, const char *text, size_t size)
{
    *id = ic_vocab_find(v, text, size);
    if (*id >= 0)
        return ICAE_OK;
    if (v->size >= 4 * IC_MAX_ID)
        return ic_fail(ICAE_ELIMIT, "tokenizer.ggml.merges needs too many texts");
    *id = v->size;
    return ic_vocab_set(v, *id, text, size, true);
}

static int read_merge(ic_tokenizer *t, const char *text, size_t size, uint32_t rank,
                      ic_buffer *joined)
{
    int32_t left, right, id;
    int rc;
    const char *space = size > 1 ? memchr(text + 1, ' ', size - 1) : NULL;
    size_t m = space ? (size_t)(space - text) : 0, n = space ? size - m - 1 : 0;
    if (n == 0 || !is_utf8(text, size)) /* of no symbols */
        return ICAE_OK;
    joined->size = 0;
    IC_TRY(ic_buffer_add(joined, text, m));
    IC_TRY(ic_buffer_add(joined, space + 1, n));
    IC_TRY(intern(&left, &t->vocab, text, m));
    IC_TRY(intern(&right, &t->vocab, space + 1, n));
    IC_TRY(intern(&id, &t->vocab, joined->data, joined->size));
    rc = ic_bpe_add_merge(&t->bpe, left, right, rank, id, false);
done:
    return rc;
}

static int read_merges(ic_tokenizer *t, const ic_gguf *g)
{
    const ic_gguf_value *merges;
    ic_buffer joined = {0};
    int rc = need_array(&merges, g, "tokenizer.ggml.merges", TYPE_STRING, TYPE_STRING, 0, true);
    if (rc < 0)
        return rc;
    if (merges->count > IC_MAX_ID)
        return ic_fail(ICAE_ELIMIT, "%.200s: %llu merges, more than %d", g->path,
                       (unsigned long long)merges->count, IC_MAX_ID);
    rc = ic_bpe_reserve(&t->bpe, merges->count);
    const unsigned char *cursor = merges->data;
    for (uint32_t rank = 0; rank < merges->count && rc >= 0; rank++) {
        size_t size;
        const char *text = ic_gguf_next_string(merges, &cursor, &size);
        rc = read_merge(t, text, size, rank, &joined);
    }
    ic_buffer_free(&joined);
    return rc;
}

/* Special tokens are not written in the byte-level alphabet: what decoding starts from is. */
static int spell_specials(ic_tokenizer *t)
{
    for (size_t i = 0; i < t->gguf->cut_count; i++) {
        int32_t id = t->gguf->cut[i];
        size_t size, at = 0;
        const char *text = ic_vocab_text(&t->vocab, id, &size);
        while (at < size && text[at] > 0x20 && text[at] < 0x7f)
            at++;
        if (at == size)
            continue;
        ic_buffer b = {0};
        int rc = ic_append_byte_level(&b, text, size);
        t->decode_text[id] = b.data ? ic_strndup(b.data, b.size) : NULL;
        ic_buffer_free(&b);
        if (rc < 0 || !t->decode_text[id])
            return ICAE_ENOMEM;
    }
    return ICAE_OK;
}

static int build_byte_level(ic_tokenizer *t, const ic_gguf *g)
{
    ic_decoder *d;
    size_t size = 0;
    const char *pre = ic_gguf_string(g, "tokenizer.ggml.pre", &size);
    int rc;
    IC_TRY(add_cutter(t, g, pre ? pre : "default", pre ? size : strlen("default")));
    IC_TRY(read_specials(t, g));
    IC_TRY(read_merges(t, g));
    ic_vocab_index(&t->vocab);
    IC_TRY(spell_specials(t));
    rc = ic_tokenizer_add_decoder(t, IC_DECODE_BYTE_LEVEL, &d);
done:
    return rc;
}

static int hash_all(ic_tokenizer *t, const ic_gguf *g)
{
    ic_buffer b = {0};
    const ic_gguf_text *x = t->gguf;
    size_t size = 0;
    const char *pre = ic_gguf_string(g, "tokenizer.ggml.pre", &size);
    int rc =
        ic_buffer_addf(&b, "%d %d %d %d ", x->by_score, x->space_prefix, x->add_bos, x->add_eos);
    if (rc >= 0)
        rc = ic_buffer_add(&b, x->types, (size_t)t->size);
    if (rc >= 0 && t->bpe.ranks)
        rc = ic_buffer_add(&b, t->bpe.ranks, (size_t)t->size * sizeof *t->bpe.ranks);
    if (rc >= 0 && pre && !x->by_score)
        rc = ic_buffer_add(&b, pre, size);
    if (rc >= 0)
        rc = ic_tokenizer_hash_parts(t, b.data, b.size);
    ic_buffer_free(&b);
    return rc;
}

static int build(ic_tokenizer *t, const ic_gguf *g)
{
    int rc;
    size_t size = 0;
    const char *model = ic_gguf_string(g, "tokenizer.ggml.model", &size);
    if (!model)
        return ic_fail(ICAE_EFORMAT, "%.200s: no tokenizer.ggml.model", g->path);
    bool score = size == 5 && memcmp(model, "llama", 5) == 0;
    if (!score && !(size == 4 && memcmp(model, "gpt2", 4) == 0))
        return ic_fail(ICAE_EUNSUPPORTED,
                       "%.200s: tokenizer.ggml.model is \"%.*s\"; supported are llama and gpt2",
                       g->path, (int)IC_MIN(size, (size_t)50), model);
    t->gguf = ic_alloc(1, sizeof *t->gguf);
    if (!t->gguf)
        return ICAE_ENOMEM;
    t->gguf->by_score = score;
    IC_TRY(read_tokens(t, g));
    IC_TRY(read_types(t, g));
    IC_TRY(index_cut(t, g));
    IC_TRY(score ? build_by_score(t, g) : build_byte_level(t, g));
    rc = hash_all(t, g);
done:
    return rc;
}

int ic_tokenizer_from_gguf(ic_tokenizer **out, const ic_gguf *g)
{
    *out = ic_tokenizer_new(g->path);
    int rc = *out ? build(*out, g) : ICAE_ENOMEM;
    if (rc < 0) {
        ic_tokenizer_free(*out);
        *out = NULL;
    }
    return rc;
}
