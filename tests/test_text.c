/*
 * test_text.c - tokenizers against Hugging Face's and llama.cpp's ids, streams, chat templates, and
 * what damaged files and missing memory do.
 */
#include "golden.h"

#include "text/text.h"

/* ---- helpers ---------------------------------------------------------------------------------- */

static void assert_message(const char *part)
{
    if (!strstr(icae_error_message(), part))
        fail_msg("message '%s' does not say '%s'", icae_error_message(), part);
}

/* Our JSON has no 0 characters; here they travel as U+F8FF. */
static ic_json *read_cases(const char *folder)
{
    ic_map map;
    ic_json *json;
    char *path = golden_path(folder, "cases.json");
    MUST(ic_map_open(&map, path));
    char *text = ic_strndup((const char *)map.data, map.size);
    assert_non_null(text);
    for (size_t i = 0; i + 6 <= map.size; i++) {
        if (text[i] == '\\' && memcmp(text + i, "\\u0000", 6) == 0)
            memcpy(text + i, "\\uf8ff", 6);
        i += text[i] == '\\';
    }
    MUST(ic_json_parse(&json, text, map.size, path));
    ic_map_close(&map);
    ic_free(text);
    ic_free(path);
    return json;
}

/* A text of a case with its 0 characters back, in place of the buffer's content. */
static void put_text(ic_buffer *out, const char *text)
{
    out->size = 0;
    for (; *text; text++) {
        bool zero = strncmp(text, "\xef\xa3\xbf", 3) == 0;
        MUST(ic_buffer_add(out, zero ? "" : text, 1));
        text += zero ? 2 : 0;
    }
    MUST(ic_buffer_grow(out, 1));
}

static void put_ids(ic_ids *out, const ic_json *list)
{
    out->count = 0;
    for (const ic_json *i = ic_json_first(list); i; i = ic_json_next(i))
        MUST(ic_ids_add(out, (int32_t)ic_json_number(i, -1)));
}

static void same_ids(const char *where, const char *text, const ic_ids *a, const ic_ids *b)
{
    bool same = a->count == b->count;
    for (size_t i = 0; i < a->count && same; i++)
        same = a->ids[i] == b->ids[i];
    if (same)
        return;
    print_error("%s: \"%s\" gives", where, text);
    for (size_t i = 0; i < a->count; i++)
        print_error(" %d", a->ids[i]);
    print_error(", expected");
    for (size_t i = 0; i < b->count; i++)
        print_error(" %d", b->ids[i]);
    print_error("\n");
    fail();
}

static void same_text(const char *where, const ic_buffer *a, const ic_buffer *b)
{
    if (a->size == b->size && (a->size == 0 || memcmp(a->data, b->data, a->size) == 0))
        return;
    fail_msg("%s: \"%.*s\", expected \"%.*s\"", where, (int)a->size, a->size ? a->data : "",
             (int)b->size, b->size ? b->data : "");
}

/* Everything a stream gives; every piece is whole characters. */
static void stream_all(ic_buffer *out, const ic_tokenizer *t, const ic_ids *ids, bool skip)
{
    ic_stream_decoder s;
    ic_stream_begin(&s, t, skip);
    out->size = 0;
    for (size_t i = 0; i <= ids->count; i++) {
        const char *piece;
        size_t size;
        if (i < ids->count)
            MUST(ic_stream_add(&s, ids->ids[i], &piece, &size));
        else
            MUST(ic_stream_end(&s, &piece, &size));
        assert_int_equal(ic_utf8_whole(piece, size), size);
        MUST(ic_buffer_add(out, piece, size));
    }
    ic_stream_free(&s);
}

static void check_decoding(const char *where, const ic_tokenizer *t, const ic_ids *ids, bool skip,
                           const char *expected)
{
    ic_buffer want = {0}, got = {0};
    put_text(&want, expected);
    MUST(ic_tokenizer_decode(&got, t, ids->ids, ids->count, skip));
    same_text(where, &got, &want);
    stream_all(&got, t, ids, skip);
    same_text(where, &got, &want);
    ic_buffer_free(&want);
    ic_buffer_free(&got);
}

static void check_encoding(const char *where, const ic_tokenizer *t, const ic_json *item,
                           const char *key, bool special)
{
    ic_buffer text = {0};
    ic_ids want = {0}, got = {0};
    put_text(&text, ic_json_string(ic_json_get(item, "text")));
    put_ids(&want, ic_json_get(item, key));
    MUST(ic_tokenizer_encode(&got, t, text.data, text.size, special));
    same_ids(where, text.data, &got, &want);
    check_decoding(where, t, &got, special,
                   ic_json_string(ic_json_get(item, special ? "decoded_skip" : "decoded")));
    ic_buffer_free(&text);
    ic_ids_free(&want);
    ic_ids_free(&got);
}

/* ---- golden cases ----------------------------------------------------------------------------- */

static void golden_tokenizer(const char *folder)
{
    ic_tokenizer *t;
    char *path = golden_path(folder, "tokenizer.json");
    ic_json *cases = read_cases(folder);
    ic_ids ids = {0};
    MUST(ic_tokenizer_open(&t, path));
    const ic_json *item = ic_json_first(ic_json_get(cases, "encode"));
    assert_non_null(item);
    for (; item; item = ic_json_next(item)) {
        check_encoding(path, t, item, "ids", true);
        check_encoding(path, t, item, "ids_plain", false);
    }
    for (item = ic_json_first(ic_json_get(cases, "decode")); item; item = ic_json_next(item)) {
        put_ids(&ids, ic_json_get(item, "ids"));
        check_decoding(path, t, &ids, false, ic_json_string(ic_json_get(item, "decoded")));
        check_decoding(path, t, &ids, true, ic_json_string(ic_json_get(item, "decoded_skip")));
    }
    const ic_json *added = ic_json_get(cases, "added_tokens");
    for (item = ic_json_first(added); item; item = ic_json_next(item)) {
        int32_t id = (int32_t)ic_json_number(item, -1);
        assert_int_equal(ic_tokenizer_id(t, ic_json_key(item)), id);
        assert_string_equal(ic_tokenizer_token(t, id), ic_json_key(item));
    }
    ic_ids_free(&ids);
    ic_tokenizer_free(t);
    ic_json_free(cases);
    ic_free(path);
}

static void test_golden(void **state)
{
    (void)state;
    char *folder = golden_path(golden_folder(), "tokenizers");
    assert_true(golden_each(folder, "cases.json", golden_tokenizer) > 0);
    ic_free(folder);
}

static void golden_gguf_file(const char *path, const ic_json *cases)
{
    ic_gguf g;
    ic_tokenizer *t;
    ic_ids want = {0}, got = {0};
    MUST(ic_gguf_open(&g, path));
    MUST(ic_tokenizer_from_gguf(&t, &g));
    for (const ic_json *i = ic_json_first(cases); i; i = ic_json_next(i)) {
        const char *text = ic_json_string(ic_json_get(i, "text"));
        ic_buffer again = {0}, streamed = {0};
        put_ids(&want, ic_json_get(i, "ids"));
        got.count = 0;
        MUST(ic_tokenizer_encode_untrusted(&got, t, text, strlen(text), true));
        same_ids(path, text, &got, &want);
        MUST(ic_tokenizer_decode(&again, t, got.ids, got.count, true));
        /* Only U+2581 does not come back: it is how spaces are written. */
        if (!strstr(text, "\xe2\x96\x81"))
            same_text(path, &again, &(ic_buffer){.data = (char *)text, .size = strlen(text)});
        stream_all(&streamed, t, &got, true);
        same_text(path, &streamed, &again);
        ic_buffer_free(&streamed);
        ic_buffer_free(&again);
    }
    ic_ids_free(&want);
    ic_ids_free(&got);
    ic_tokenizer_free(t);
    ic_gguf_close(&g);
}

static void golden_gguf(const char *folder)
{
    struct dirent **list;
    ic_json *golden = golden_json(folder, "golden.json");
    const ic_json *cases = ic_json_get(golden, "tokenization");
    int n = cases ? scandir(folder, &list, NULL, alphasort) : -1;
    for (int i = 0; i < n; i++) {
        const char *name = list[i]->d_name;
        size_t size = strlen(name);
        char *path = golden_path(folder, name);
        if (size > 5 && strcmp(name + size - 5, ".gguf") == 0)
            golden_gguf_file(path, cases);
        ic_free(path);
        free(list[i]);
    }
    if (n >= 0)
        free(list);
    ic_json_free(golden);
}

static void test_golden_gguf(void **state)
{
    (void)state;
    assert_true(golden_each(golden_folder(), "golden.json", golden_gguf) > 0);
}

/* ---- small tokenizers of our own -------------------------------------------------------------- */

#define BYTES                                                                             \
    "\"<0xE4>\":3,\"<0xB8>\":4,\"<0xAD>\":5,\"a\":6,\"b\":7,\"\xe2\x96\x81\":8,\"ab\":9," \
    "\"\xe2\x96\x81"                                                                      \
    "a\":10"
#define MODEL                                                                        \
    "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,"         \
    "\"byte_fallback\":true,\"vocab\":{\"<unk>\":0,\"<s>\":1,\"</s>\":2," BYTES "}," \
    "\"merges\":[\"a b\",\"\xe2\x96\x81 a\"]}"

static int parse(ic_tokenizer **t, const char *json)
{
    return ic_tokenizer_parse(t, json, strlen(json), "memory");
}

static void expect(const ic_tokenizer *t, const char *text, bool untrusted, const int32_t *ids,
                   size_t count)
{
    ic_ids got = {0}, want = {.ids = (int32_t *)ids, .count = count};
    MUST(untrusted ? ic_tokenizer_encode_untrusted(&got, t, text, strlen(text), true)
                   : ic_tokenizer_encode(&got, t, text, strlen(text), true));
    same_ids("memory", text, &got, &want);
    ic_ids_free(&got);
}

#define EXPECT(t, text, untrusted, ...)                        \
    expect(t, text, untrusted, (const int32_t[]){__VA_ARGS__}, \
           sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static void test_small(void **state)
{
    (void)state;
    ic_tokenizer *t, *same, *other;
    MUST(parse(&t, "{\"added_tokens\":[{\"id\":1,\"content\":\"<s>\",\"special\":true},"
                   "{\"id\":11,\"content\":\"<x>\",\"normalized\":false}]," MODEL "}"));
    assert_int_equal(ic_tokenizer_size(t), 12);
    assert_int_equal(ic_tokenizer_id(t, "<x>"), 11);
    assert_int_equal(ic_tokenizer_id(t, "<y>"), -1);
    assert_string_equal(ic_tokenizer_token(t, 9), "ab");
    assert_null(ic_tokenizer_token(t, 12));
    assert_null(ic_tokenizer_token(t, -1));
    assert_true(ic_tokenizer_is_special(t, 1));
    assert_false(ic_tokenizer_is_special(t, 11));
    assert_false(ic_tokenizer_is_special(t, 99));
    assert_int_equal(ic_tokenizer_bos(t), -1);
    assert_int_equal(ic_tokenizer_eos(t), -1);

    EXPECT(t, "ab<s>ab<x>a", false, 9, 1, 9, 11, 6);
    /* Special tokens are text for the untrusted; others are not. Unknown ones in a row are one. */
    EXPECT(t, "ab<s>ab<x>a", true, 9, 0, 9, 11, 6);
    EXPECT(t, "\xe4\xb8\xad", false, 3, 4, 5);
    EXPECT(t, "xyza", false, 0, 6);
    /* What is not UTF-8 is U+FFFD, one for each part; that is unknown here. */
    EXPECT(t,
           "a\xff\xe4\xb8"
           "b",
           false, 6, 0, 7);

    MUST(parse(&same, "{ \"added_tokens\" : [{\"id\":1,\"content\":\"<s>\",\"special\":true}, "
                      "{\"id\":11,\"content\":\"<x>\",\"normalized\":false}]," MODEL ",\"x\":1}"));
    MUST(parse(&other, "{" MODEL "}"));
    assert_int_equal(strlen(ic_tokenizer_hash(t)), 64);
    assert_string_equal(ic_tokenizer_hash(t), ic_tokenizer_hash(same));
    assert_string_not_equal(ic_tokenizer_hash(t), ic_tokenizer_hash(other));
    ic_tokenizer_free(t);
    ic_tokenizer_free(same);
    ic_tokenizer_free(other);
    ic_tokenizer_free(NULL);
}

/* Run of bytes that is held back, then given whole; a broken one is U+FFFD each. */
static void test_stream(void **state)
{
    (void)state;
    ic_tokenizer *t;
    ic_stream_decoder s;
    const char *piece;
    size_t size;
    MUST(parse(&t, "{\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\","
                   "\"pattern\":{\"String\":\"\xe2\x96\x81\"},\"content\":\" \"},"
                   "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\","
                   "\"content\":\" \",\"start\":1,\"stop\":0}]}," MODEL "}"));
    static const struct {
        int32_t id;
        const char *text;
    } steps[] = {{8, ""},
                 {8, " "},
                 {3, ""},
                 {4, ""},
                 {5, ""},
                 {10, "\xe4\xb8\xad a"},
                 {99, ""},
                 {3, ""},
                 {5, ""},
                 {6, "\xef\xbf\xbd\xef\xbf\xbd"
                     "a"},
                 {4, ""}};
    ic_stream_begin(&s, t, true);
    for (size_t i = 0; i < IC_COUNT(steps); i++) {
        MUST(ic_stream_add(&s, steps[i].id, &piece, &size));
        assert_int_equal(size, strlen(steps[i].text));
        assert_memory_equal(piece, steps[i].text, size);
    }
    MUST(ic_stream_end(&s, &piece, &size));
    assert_int_equal(size, 3);
    assert_memory_equal(piece, "\xef\xbf\xbd", 3);
    MUST(ic_stream_end(&s, &piece, &size));
    assert_int_equal(size, 0);
    ic_stream_free(&s);
    ic_tokenizer_free(t);
}

/* Linear in time where a file or text would like it otherwise. */
static void test_long(void **state)
{
    (void)state;
    ic_tokenizer *t;
    MUST(parse(&t, "{\"normalizer\":{\"type\":\"NFC\"}," MODEL "}"));
    const size_t n = 400000;
    char *text = ic_alloc(n, 4);
    assert_non_null(text);
    memset(text, 'a', n);
    ic_ids ids = {0};
    double start = ic_seconds();
    MUST(ic_tokenizer_encode(&ids, t, text, n, true));
    assert_int_equal(ids.count, n);
    for (size_t i = 0; i < n; i++) /* marks of falling class */
        memcpy(text + 2 * i, i < n / 2 ? "\xcc\x81" : "\xcc\xa3", 2);
    MUST(ic_tokenizer_encode(&ids, t, text, 2 * n, true));
    assert_true(ic_seconds() - start < 60);

    ic_stream_decoder s;
    const char *piece;
    size_t size;
    ic_stream_begin(&s, t, true);
    for (size_t i = 0; i < 100000; i++)
        MUST(ic_stream_add(&s, i % 3 ? 3 : 6, &piece, &size));
    MUST(ic_stream_end(&s, &piece, &size));
    ic_stream_free(&s);
    assert_true(ic_seconds() - start < 90);
    ic_ids_free(&ids);
    ic_free(text);
    ic_tokenizer_free(t);
}

static void test_pattern_limit(void **state)
{
    (void)state;
    ic_tokenizer *t;
    ic_ids ids = {0};
    char text[200];
    memset(text, 'a', sizeof text);
    MUST(parse(&t, "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a|aa)+[bc]\"},"
                   "\"behavior\":\"Isolated\"}," MODEL "}"));
    assert_int_equal(ic_tokenizer_encode(&ids, t, text, sizeof text, true), ICAE_ELIMIT);
    assert_message("too many steps");
    assert_int_equal(ids.count, 0);
    ic_tokenizer_free(t);

    /* Steps that lengthen a text, again and again. */
    ic_buffer json = {0};
    char long_text[401];
    memset(long_text, 'a', 400);
    long_text[400] = 0;
    MUST(ic_buffer_addf(&json,
                        "{" MODEL ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":["));
    for (int i = 0; i < 50; i++)
        MUST(ic_buffer_addf(&json,
                            "%s{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},"
                            "\"content\":\"%s\"}",
                            i ? "," : "", long_text));
    MUST(ic_buffer_addf(&json, "]}}"));
    MUST(parse(&t, json.data));
    assert_int_equal(ic_tokenizer_encode(&ids, t, "a", 1, true), ICAE_ELIMIT);
    ic_tokenizer_free(t);
    ic_buffer_free(&json);
    ic_ids_free(&ids);
}

/* ---- files that are refused ------------------------------------------------------------------- */

#define BPE(vocab, merges) \
    "{\"model\":{\"type\":\"BPE\",\"vocab\":" vocab ",\"merges\":" merges "}}"
#define WITH(part) "{" part "," MODEL "}"
#define SPLIT(pattern) \
    WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":" pattern "}")

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        int code;
        const char *says;
    } cases[] = {
        {"", ICAE_EFORMAT, "memory"},
        {"[]", ICAE_EFORMAT, "model"},
        {"{\"model\":{\"type\":\"Unigram\"}}", ICAE_EUNSUPPORTED, "Unigram"},
        {"{\"model\":{\"type\":\"BPE\"}}", ICAE_EFORMAT, "vocab"},
        {"{\"model\":{\"dropout\":0.1,\"vocab\":{},\"merges\":[]}}", ICAE_EUNSUPPORTED, "dropout"},
        {BPE("{\"a\":-1}", "[]"), ICAE_EFORMAT, "\"a\""},
        {BPE("{\"a\":1.5}", "[]"), ICAE_EFORMAT, "\"a\""},
        {BPE("{\"a\":1e300}", "[]"), ICAE_EFORMAT, "\"a\""},
        {BPE("{\"a\":4194304}", "[]"), ICAE_EFORMAT, "4194304"},
        {BPE("{\"a\":null}", "[]"), ICAE_EFORMAT, "\"a\""},
        {BPE("{\"a\":0,\"b\":0}", "[]"), ICAE_EFORMAT, "id 0"},
        {BPE("{\"a\":0,\"a\":1}", "[]"), ICAE_EFORMAT, "twice"},
        {BPE("{\"a\":0}", "null"), ICAE_EFORMAT, "merges"},
        {BPE("{\"a\":0}", "[\"a\"]"), ICAE_EFORMAT, "merges[0]"},
        {BPE("{\"a\":0}", "[\"a  a\"]"), ICAE_EFORMAT, "merges[0]"},
        {BPE("{\"a\":0}", "[\"a a\"]"), ICAE_EFORMAT, "\"aa\""},
        {BPE("{\"a\":0,\"aa\":1}", "[\"a a\",[\"a\",\"x\"]]"), ICAE_EFORMAT, "merges[1]"},
        {BPE("{\"a\":0}", "[[\"a\"]]"), ICAE_EFORMAT, "pair"},
        {BPE("{\"a\":0}", "[[\"a\",\"a\",\"a\"]]"), ICAE_EFORMAT, "pair"},
        {BPE("{\"a\":0}", "[3]"), ICAE_EFORMAT, "pair"},
        {WITH("\"added_tokens\":{}"), ICAE_EFORMAT, "added_tokens"},
        {WITH("\"added_tokens\":[{\"id\":1}]"), ICAE_EFORMAT, "content"},
        {WITH("\"added_tokens\":[{\"content\":\"a\"}]"), ICAE_EFORMAT, "id"},
        {WITH("\"added_tokens\":[{\"content\":\"a\",\"id\":9999999}]"), ICAE_EFORMAT, "id"},
        {WITH("\"normalizer\":{\"type\":\"Precompiled\"}"), ICAE_EUNSUPPORTED, "Precompiled"},
        {WITH("\"normalizer\":{}"), ICAE_EFORMAT, "type"},
        {WITH("\"normalizer\":{\"type\":\"Sequence\"}"), ICAE_EFORMAT, "normalizers"},
        {WITH("\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[null]}"), ICAE_EFORMAT,
         "null"},
        {WITH("\"normalizer\":{\"type\":\"Prepend\"}"), ICAE_EFORMAT, "prepend"},
        {WITH("\"normalizer\":{\"type\":\"Replace\",\"content\":\"\"}"), ICAE_EFORMAT, "pattern"},
        {WITH("\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"}"), ICAE_EUNSUPPORTED,
         "UnicodeScripts"},
        {WITH("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"ab\"}"), ICAE_EFORMAT,
         "one character"},
        {WITH("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"a\","
              "\"prepend_scheme\":\"last\"}"),
         ICAE_EFORMAT, "last"},
        {WITH("\"pre_tokenizer\":{\"type\":\"Punctuation\",\"behavior\":\"Eaten\"}"), ICAE_EFORMAT,
         "Eaten"},
        {SPLIT("\"a\""), ICAE_EFORMAT, "pattern"},
        {SPLIT("{\"Regex\":\"(\"}"), ICAE_EFORMAT, "group"},
        {SPLIT("{\"Regex\":\"a)\"}"), ICAE_EFORMAT, "parenthesis"},
        {SPLIT("{\"Regex\":\"[a\"}"), ICAE_EFORMAT, "class"},
        {SPLIT("{\"Regex\":\"[b-a]\"}"), ICAE_EFORMAT, "range"},
        {SPLIT("{\"Regex\":\"(*UTF)a\"}"), ICAE_EUNSUPPORTED, "(*"},
        {SPLIT("{\"Regex\":\"(?~a)\"}"), ICAE_EUNSUPPORTED, "group"},
        {SPLIT("{\"Regex\":\"\\\\p{Klingon}\"}"), ICAE_EUNSUPPORTED, "Klingon"},
        {SPLIT("{\"Regex\":\"\\\\\"}"), ICAE_EFORMAT, "backslash"},
        {WITH("\"post_processor\":{\"type\":\"Magic\"}"), ICAE_EUNSUPPORTED, "Magic"},
        {WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
              "{\"id\":\"<s>\"}}],\"special_tokens\":{}}"),
         ICAE_EFORMAT, "<s>"},
        {WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
              "{\"id\":\"<s>\"}}],\"special_tokens\":{\"<s>\":{\"ids\":[11]}}}"),
         ICAE_EFORMAT, "below 11"},
        {WITH("\"post_processor\":{\"type\":\"BertProcessing\",\"cls\":[\"<s>\",1]}"), ICAE_EFORMAT,
         "sep"},
        {WITH("\"decoder\":{\"type\":\"CTC\"}"), ICAE_EUNSUPPORTED, "CTC"},
        {WITH("\"decoder\":{\"type\":\"Strip\",\"content\":\" \",\"start\":-1,\"stop\":0}"),
         ICAE_EFORMAT, "start"},
    };
    for (size_t i = 0; i < IC_COUNT(cases); i++) {
        ic_tokenizer *t;
        int rc = parse(&t, cases[i].json);
        if (rc != cases[i].code || t)
            fail_msg("%s: %d (%s), expected %d", cases[i].json, rc, icae_error_message(),
                     cases[i].code);
        assert_message(cases[i].says);
    }
    ic_tokenizer *t;
    assert_int_equal(ic_tokenizer_parse(&t, "{\xff}", 3, "memory"), ICAE_EFORMAT);
    assert_message("UTF-8");
    assert_int_equal(ic_tokenizer_open(&t, "/nonexistent/tokenizer.json"), ICAE_ENOTFOUND);
}

/* The same bytes in other order, cut or with others between, never crash (sanitizers look on). */
static void mangle(const char *folder)
{
    ic_map map;
    char *path = golden_path(folder, "tokenizer.json");
    MUST(ic_map_open(&map, path));
    char *copy = ic_alloc(map.size, 1);
    assert_non_null(copy);
    for (uint64_t i = 0; i < 40; i++) {
        ic_tokenizer *t;
        ic_ids ids = {0};
        uint32_t r[4];
        memcpy(copy, map.data, map.size);
        ic_random_block(r, 7, IC_STREAM_DATA, i);
        for (size_t j = 0; j < 4; j++)
            copy[r[j] % IC_MIN(map.size, (size_t)1 << (8 + i % 12))] ^= (char)(1 << (r[j] >> 29));
        size_t size = i % 5 ? map.size : r[0] % map.size;
        if (ic_tokenizer_parse(&t, copy, size, "mangled") == ICAE_OK) {
            ic_buffer text = {0};
            if (ic_tokenizer_encode(&ids, t, "Hello <s> w\xc3\xb6rld 123", 22, true) == ICAE_OK)
                ic_tokenizer_decode(&text, t, ids.ids, ids.count, false);
            ic_buffer_free(&text);
            ic_ids_free(&ids);
            ic_tokenizer_free(t);
        }
    }
    ic_free(copy);
    ic_map_close(&map);
    ic_free(path);
}

static void test_mangled(void **state)
{
    (void)state;
    long before = ic_memory_live();
    char *folder = golden_path(golden_folder(), "tokenizers");
    golden_each(folder, "cases.json", mangle);
    ic_free(folder);
    assert_int_equal(ic_memory_live(), before);
}

/* ---- memory ----------------------------------------------------------------------------------- */

#define PARTS                                                                                    \
    "\"added_tokens\":[{\"id\":1,\"content\":\"<s>\",\"special\":true,\"lstrip\":true},"         \
    "{\"id\":11,\"content\":\"xx\",\"single_word\":true,\"normalized\":true}],"                  \
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":"       \
    "\"Replace\",\"pattern\":{\"Regex\":\" +\"},\"content\":\" \"},{\"type\":\"Lowercase\"}]},"  \
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","           \
    "\"pattern\":{\"Regex\":\"\\\\s?\\\\w+|\\\\W\"},\"behavior\":\"MergedWithNext\"},"           \
    "{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\"}]},"                               \
    "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":" \
    "\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"<s>\":{\"ids\":[1]}}},"      \
    "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":"        \
    "{\"Regex\":\"\xe2\x96\x81\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":"     \
    "\"Fuse\"}]}"

static const char fault_text[] = "ab \xff <s> XX e\xcc\x81 ab \xe4\xb8\xad ab ab ab ab ab ab ab ab "
                                 "ababababababababababababababababababababababababababababababab";

static int everything(const char *json, const char *gguf)
{
    ic_tokenizer *t = NULL;
    ic_gguf g = {0};
    ic_ids ids = {0};
    ic_buffer text = {0};
    ic_stream_decoder s = {0};
    const char *piece;
    size_t size;
    int rc;
    if (gguf)
        IC_TRY(ic_gguf_open(&g, gguf));
    IC_TRY(gguf ? ic_tokenizer_from_gguf(&t, &g) : parse(&t, json));
    IC_TRY(ic_tokenizer_encode(&ids, t, fault_text, sizeof fault_text - 1, true));
    IC_TRY(ic_tokenizer_decode(&text, t, ids.ids, ids.count, true));
    ic_stream_begin(&s, t, true);
    for (size_t i = 0; i < ids.count && i < 12; i++)
        IC_TRY(ic_stream_add(&s, ids.ids[i], &piece, &size));
    IC_TRY(ic_stream_end(&s, &piece, &size));
    IC_TRY(ic_chat_left(&ids, ic_chat_template_named("llama2"), t, 1, true));
    rc = ic_chat_right(&ids, ic_chat_template_named("llama2"), t);
done:
    ic_stream_free(&s);
    ic_buffer_free(&text);
    ic_ids_free(&ids);
    ic_tokenizer_free(t);
    if (gguf)
        ic_gguf_close(&g);
    return rc;
}

static void fail_each(const char *json, const char *gguf)
{
    long before = ic_memory_live();
    MUST(everything(json, gguf));
    assert_int_equal(ic_memory_live(), before);
    int rc = ICAE_ENOMEM;
    for (long n = 0; rc < 0; n++) {
        ic_memory_fail_after(n);
        rc = everything(json, gguf);
        ic_memory_fail_after(-1);
        if (rc < 0 && rc != ICAE_ENOMEM)
            fail_msg("allocation %ld fails with %d (%s)", n, rc, icae_error_message());
        assert_int_equal(ic_memory_live(), before);
    }
}

static void test_memory(void **state)
{
    (void)state;
    fail_each("{" PARTS "," MODEL "}", NULL);
    char *folder = golden_path(golden_folder(), "gguf");
    char *path = golden_path(folder, "model-Q4_0.gguf");
    if (ic_path_exists(path))
        fail_each(NULL, path);
    ic_free(path);
    ic_free(folder);
}

/* ---- chat templates --------------------------------------------------------------------------- */

static void recognise(const char *jinja, const char *name)
{
    assert_string_equal(ic_chat_template_recognise(jinja, jinja ? strlen(jinja) : 0, NULL)->name,
                        name);
}

static void test_chat_recognise(void **state)
{
    (void)state;
    recognise("{{ bos_token }}[INST] {{ content }} [/INST]", "mistral");
    recognise("{{ '<<SYS>>' }}[INST] {{ content }} [/INST]", "llama2");
    recognise("<|start_header_id|>{{ role }}<|end_header_id|>", "llama3");
    recognise("<|im_start|>{{ role }}", "chatml");
    recognise("<start_of_turn>", "gemma");
    recognise("<|user|>\n{{ content }}<|end|>", "phi3");
    recognise("{{ bos_token }}<|user|>{{ content }}<|assistant|>", "icae");
    recognise("{{ content }}", "none");
    recognise(NULL, "none");
    assert_null(ic_chat_template_named("klingon"));
    assert_non_null(strstr(ic_chat_template_names(), "mistral"));
    assert_false(ic_chat_template_recognise("<|user|><|end|>", 15, NULL)->bos);
    assert_true(ic_chat_template_named("phi3")->bos);
}

/* The pieces of Mistral's vocabulary that matter, under its ids. */
#define U "\xe2\x96\x81"
static const char mistral[] =
    "{\"added_tokens\":[{\"id\":1,\"content\":\"<s>\",\"special\":true,\"normalized\":false}],"
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"" U
    "\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"" U "\"}]},"
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"<unk>\":0,\"<s>\":1,\"</s>\":2,\"" U "\":28705,"
    "\"[\":28792,\"]\":28793,\"/\":28748,\"I\":28737,\"N\":28759,\"S\":28735,\"T\":28738,\"" U
    "[\":733,\"IN\":704,\"ST\":1081,\"INST\":16289},\"merges\":[\"" U
    " [\",\"I N\",\"S T\",\"IN ST\"]}}";

static void test_chat_ids(void **state)
{
    (void)state;
    ic_tokenizer *t;
    ic_ids ids = {0};
    MUST(ic_tokenizer_parse(&t, mistral, sizeof mistral - 1, "mistral"));
    const ic_chat_template *c = ic_chat_template_named("mistral");
    MUST(ic_chat_left(&ids, c, t, 1, true));
    same_ids("left", "", &ids, &(ic_ids){.ids = (int32_t[]){1, 733, 16289, 28793}, .count = 4});
    ids.count = 0;
    MUST(ic_chat_right(&ids, c, t));
    same_ids("right", "", &ids,
             &(ic_ids){.ids = (int32_t[]){733, 28748, 16289, 28793}, .count = 4});
    ids.count = 0;
    MUST(ic_chat_left(&ids, c, t, 1, false));
    MUST(ic_chat_reply_end(&ids, c, t, 2));
    same_ids("later", "", &ids, &(ic_ids){.ids = (int32_t[]){733, 16289, 28793, 2}, .count = 4});
    ids.count = 0;
    MUST(ic_chat_left(&ids, ic_chat_template_named("llama2"), t, 1, false));
    same_ids("llama2", "", &ids, &(ic_ids){.ids = (int32_t[]){1, 733, 16289, 28793}, .count = 4});
    ids.count = 0;
    MUST(ic_chat_left(&ids, ic_chat_template_named("none"), t, 1, true));
    MUST(ic_chat_right(&ids, ic_chat_template_named("none"), t));
    assert_int_equal(ids.count, 0);
    ic_ids_free(&ids);
    ic_tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),   cmocka_unit_test(test_golden_gguf),
        cmocka_unit_test(test_small),    cmocka_unit_test(test_stream),
        cmocka_unit_test(test_long),     cmocka_unit_test(test_pattern_limit),
        cmocka_unit_test(test_refused),  cmocka_unit_test(test_mangled),
        cmocka_unit_test(test_memory),   cmocka_unit_test(test_chat_recognise),
        cmocka_unit_test(test_chat_ids),
    };
    return cmocka_run_group_tests_name("text", tests, NULL, NULL);
}
