/*
 * fuzz_safetensors.c - any bytes as a safetensors file. What opens must have all its data inside.
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    void *copy = ic_alloc(size ? size : 1, 1);
    if (!copy)
        return 0;
    if (size > 0)
        memcpy(copy, data, size);
    ic_map map = {.data = copy, .size = size};
    ic_safetensors st;
    if (ic_safetensors_read(&st, &map, "fuzz") < 0)
        return 0;
    read_tensors(st.tensors, st.count);
    for (size_t i = 0; i < st.count; i++)
        if (ic_safetensors_find(&st, st.tensors[i].name) != &st.tensors[i])
            abort();
    for (size_t i = 0; i < st.metadata_count; i++)
        if (!ic_safetensors_metadata(&st, st.metadata[i].key))
            abort();
    ic_safetensors_close(&st);
    return 0;
}
