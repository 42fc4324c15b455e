/*
 * fuzz_json.c - any bytes as JSON: parsed, walked, written again, parsed again.
 */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int write_node(ic_buffer *b, const ic_json *node)
{
    const char *string = ic_json_string(node);
    int rc = ICAE_OK;
    if (string)
        return ic_json_quote(b, string, strlen(string));
    if (!ic_json_is_object(node) && !ic_json_is_array(node))
        return ic_buffer_addf(b, "%d", ic_json_bool(node, false));
    IC_TRY(ic_buffer_add(b, ic_json_is_object(node) ? "{" : "[", 1));
    for (const ic_json *c = ic_json_first(node); c; c = ic_json_next(c)) {
        if (c != ic_json_first(node))
            IC_TRY(ic_buffer_add(b, ",", 1));
        if (ic_json_is_object(node)) {
            const char *key = ic_json_key(c);
            IC_TRY(ic_json_quote(b, key, strlen(key)));
            IC_TRY(ic_buffer_add(b, ":", 1));
        }
        IC_TRY(write_node(b, c));
    }
    IC_TRY(ic_buffer_add(b, ic_json_is_object(node) ? "}" : "]", 1));
done:
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ic_json *root, *again;
    /* A copy of exactly this size: reading beyond it would be seen. */
    char *text = malloc(size ? size : 1);
    if (!text)
        return 0;
    if (size > 0)
        memcpy(text, data, size);
    if (ic_json_parse(&root, text, size, "fuzz") == ICAE_OK) {
        ic_buffer b = {0};
        if (write_node(&b, root) < 0 || ic_json_parse(&again, b.data, b.size, "again") < 0)
            abort();
        if (ic_json_count(root) != ic_json_count(again))
            abort();
        ic_json_free(again);
        ic_json_free(root);
        ic_buffer_free(&b);
    }
    free(text);
    return 0;
}
