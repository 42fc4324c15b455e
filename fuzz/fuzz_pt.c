/*
 * fuzz_pt.c - any bytes as a torch.save file; what opens must have all its data inside. Bytes that
 * start as a pickle go to the pickle machine directly: few mutations of an archive reach it.
 */
#include "format/pt.h"

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
    if (size > 0 && data[0] == 0x80) {
        ic_pickle pickle;
        if (ic_pickle_read(&pickle, data, size, "fuzz") == ICAE_OK)
            sum += (unsigned)pickle.root->kind;
        ic_pickle_free(&pickle);
        return 0;
    }
    void *copy = ic_alloc(size ? size : 1, 1);
    if (!copy)
        return 0;
    if (size > 0)
        memcpy(copy, data, size);
    ic_map map = {.data = copy, .size = size};
    ic_pt pt;
    if (ic_pt_read(&pt, &map, "fuzz") < 0)
        return 0;
    /* Tensors may share data: few of them are enough to see whether they lie inside. */
    read_tensors(pt.tensors, IC_MIN(pt.count, (size_t)64));
    ic_pt_close(&pt);
    return 0;
}
