/*
 * fuzz_gguf.c - any bytes as a GGUF file. What opens must have all its data inside.
 */
#include "format/format.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned sum; /* keeps the reads */

static void read_tensors(const ic_tensor *tensors, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const unsigned char *p = tensors[i].data;
        for (size_t j = 0; j < tensors[i].bytes; j++)
            sum += p[j];
        sum += (unsigned)strlen(tensors[i].name);
    }
}

static void read_values(const ic_gguf *g)
{
    for (size_t i = 0; i < g->value_count; i++) {
        const ic_gguf_value *v = &g->values[i];
        size_t size;
        if (ic_gguf_get(g, v->key) != v)
            abort();
        sum += ic_gguf_number(g, v->key, 0) > 1;
        const char *s = ic_gguf_string(g, v->key, &size);
        for (size_t j = 0; s && j < size; j++)
            sum += (unsigned char)s[j];
        const unsigned char *at = v->data;
        for (uint64_t j = 0; v->type == 9 && j < v->count; j++) {
            if (v->array_type != 8)
                sum += ic_gguf_element(v, j) > 1;
            else if (ic_gguf_next_string(v, &at, &size) && size > 0)
                sum += at[-1];
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    void *copy = ic_alloc(size ? size : 1, 1);
    if (!copy)
        return 0;
    if (size > 0)
        memcpy(copy, data, size);
    ic_map map = {.data = copy, .size = size};
    ic_gguf g;
    if (ic_gguf_read(&g, &map, "fuzz") < 0)
        return 0;
    read_values(&g);
    read_tensors(g.tensors, g.count);
    for (size_t i = 0; i < g.count; i++)
        if (ic_gguf_find(&g, g.tensors[i].name) != &g.tensors[i])
            abort();
    ic_gguf_close(&g);
    return 0;
}
