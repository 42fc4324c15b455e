/*
 * fuzz_tokenizer.c - any bytes as a tokenizer.json, a 0 byte and a text; or as a GGUF vocabulary.
 *
 * What opens must encode and decode without harm, give ids of its own, and stream what it decodes.
 */
#include "text/text.h"

#include <stdlib.h>
#include <string.h>

#define MAX_TEXT 64 /* patterns may be slow by intent */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_stream(const ic_tokenizer *t, const ic_ids *ids, bool skip)
{
    ic_buffer whole = {0}, pieces = {0};
    ic_stream_decoder s;
    const char *piece;
    size_t size;
    int rc = ic_tokenizer_decode(&whole, t, ids->ids, ids->count, skip);
    ic_stream_begin(&s, t, skip);
    for (size_t i = 0; i < ids->count && rc >= 0; i++) {
        rc = ic_stream_add(&s, ids->ids[i], &piece, &size);
        if (rc >= 0)
            rc = ic_buffer_add(&pieces, piece, size);
    }
    if (rc >= 0)
        rc = ic_stream_end(&s, &piece, &size);
    if (rc >= 0)
        rc = ic_buffer_add(&pieces, piece, size);
    /* A pattern may need too many steps; all else works. */
    if (rc < 0 && rc != ICAE_ELIMIT && rc != ICAE_EUNSUPPORTED)
        abort();
    if (rc >= 0 && (whole.size != pieces.size ||
                    (whole.size && memcmp(whole.data, pieces.data, whole.size) != 0)))
        abort();
    ic_stream_free(&s);
    ic_buffer_free(&whole);
    ic_buffer_free(&pieces);
}

static void use(const ic_tokenizer *t, const char *text, size_t size)
{
    ic_ids ids = {0};
    int n = ic_tokenizer_size(t);
    for (int untrusted = 0; untrusted < 2; untrusted++) {
        ids.count = 0;
        int rc = untrusted ? ic_tokenizer_encode_untrusted(&ids, t, text, size, true)
                           : ic_tokenizer_encode(&ids, t, text, size, false);
        if (rc < 0 && ids.count)
            abort();
        for (size_t i = 0; i < ids.count; i++)
            if (ids.ids[i] < 0 || ids.ids[i] >= n)
                abort();
        check_stream(t, &ids, untrusted);
    }
    ids.count = 0;
    for (size_t i = 0; i < size; i++)
        if (ic_ids_add(&ids, (unsigned char)text[i] * (int32_t)(i % 7) % 300) < 0)
            abort();
    check_stream(t, &ids, true);
    const ic_chat_template *c = ic_chat_template_recognise(text, size, t);
    if (ic_chat_left(&ids, c, t, 0, true) >= 0)
        ic_chat_right(&ids, c, t);
    ic_ids_free(&ids);
}

static void use_gguf(const uint8_t *data, size_t size)
{
    static const char text[] = "ab <s> caf\xc3\xa9 \xe4\xb8\xad 12 <|x|>\xff";
    ic_gguf g;
    ic_tokenizer *t;
    void *copy = ic_alloc(size, 1);
    if (!copy)
        abort();
    memcpy(copy, data, size);
    ic_map map = {.data = copy, .size = size};
    if (ic_gguf_read(&g, &map, "fuzz") < 0)
        return;
    if (ic_tokenizer_from_gguf(&t, &g) == ICAE_OK) {
        use(t, text, sizeof text - 1);
        ic_tokenizer_free(t);
    }
    ic_gguf_close(&g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    long before = ic_memory_live();
    ic_tokenizer *t;
    if (size >= 4 && memcmp(data, "GGUF", 4) == 0) {
        use_gguf(data, size);
    } else {
        const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
        size_t json = zero ? (size_t)(zero - data) : size;
        size_t text = zero ? IC_MIN(size - json - 1, (size_t)MAX_TEXT) : 0;
        if (ic_tokenizer_parse(&t, (const char *)data, json, "fuzz") == ICAE_OK) {
            use(t, text ? (const char *)zero + 1 : "", text);
            ic_tokenizer_free(t);
        }
    }
    if (ic_memory_live() != before)
        abort();
    return 0;
}
