/*
 * fuzz_slots.c - slot files and corrections from hostile bytes.
 *
 * The checksum of a slot file would keep a fuzzer at the door, but keeps no attacker there: it is made
 * right again before the second try. What opens is then used in every way that needs no model. The
 * input also serves as corrections, and as two texts to find a patch between.
 */
#include "core/core.h"
#include "core/slots_file.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool good)
{
    if (!good)
        abort();
}

static ic_map copy_of(const uint8_t *data, size_t size)
{
    unsigned char *copy = ic_alloc(size + 1, 1);
    check(copy);
    memcpy(copy, data, size);
    return (ic_map){.data = copy, .size = size};
}

static void use_corrections(const void *blob, size_t size, uint64_t tokens)
{
    char decoded[300];
    ic_correction *c;
    size_t count;
    ic_buffer out = {0};
    for (size_t i = 0; i < sizeof decoded; i++)
        decoded[i] = (char)('a' + i % 26);
    if (ic_exact_decode_corrections(&c, &count, blob, size, 5000, tokens) == ICAE_OK) {
        for (size_t i = 0; i < count; i++)
            check(c[i].at < tokens && c[i].id >= 0 && c[i].id < 5000 &&
                  (i == 0 || c[i].at > c[i - 1].at));
        ic_free(c);
    }
    for (size_t n = 0; n < sizeof decoded; n += n < 16 ? 1 : 57)
        for (uint64_t original = 0; original < 40; original += 3)
            if (ic_exact_apply_patch(&out, blob, size, decoded, n, original) == ICAE_OK)
                check(out.size >= original);
    ic_buffer_free(&out);
}

static void use(icae_slots *s)
{
    size_t count;
    float *values;
    icae_slots_info info = icae_slots_describe(s);
    const uint32_t *doubtful = icae_slots_doubtful(s, &count);
    for (size_t i = 0; i < count; i++)
        check(doubtful[i] < info.tokens);
    uint64_t tokens = 0, slots = 0;
    for (uint64_t i = 0; i < IC_MIN(info.segments, 200); i++) {
        icae_segment_info g = icae_slots_segment(s, i);
        check(g.first_token == tokens && g.first_slot == slots && g.tokens > 0 && g.slots > 0);
        tokens += g.tokens;
        slots += g.slots;
    }
    check(tokens <= info.tokens && slots <= info.slots);
    if (info.slots * (uint64_t)info.width < 1 << 20 && icae_slots_values(&values, s) == ICAE_OK) {
        for (uint64_t i = 0; i < info.slots * (uint64_t)info.width; i++)
            check(values[i] - values[i] == 0); /* finite */
        icae_free(values);
    }
    use_corrections(s->corrections.data, s->corrections.size, info.tokens);
    icae_slots_free(s);
}

static void try_file(const uint8_t *data, size_t size)
{
    icae_slots *s;
    ic_safetensors st;
    char sum[65] = "";
    ic_map map = copy_of(data, size), fixed = copy_of(data, size);
    if (ic_slots_read(&s, &map, "fuzz") == ICAE_OK)
        use(s);
    map = copy_of(data, size);
    if (ic_safetensors_read(&st, &map, "fuzz") == ICAE_OK) {
        if (ic_slots_checksum(sum, st.tensors, st.count, st.metadata, st.metadata_count) < 0)
            sum[0] = 0;
        ic_safetensors_close(&st);
    }
    static const char key[] = "\"checksum\":\"";
    char *at = memmem(fixed.data, fixed.size, key, sizeof key - 1);
    if (sum[0] && at && fixed.size - (size_t)(at - (char *)fixed.data) >= sizeof key - 1 + 64) {
        memcpy(at + sizeof key - 1, sum, 64);
        if (ic_slots_read(&s, &fixed, "fuzz") == ICAE_OK)
            use(s);
    } else {
        ic_map_close(&fixed);
    }
}

/* Whatever the two halves are, the patch must lead from one to the other. */
static void try_patch(const uint8_t *data, size_t size)
{
    ic_buffer blob = {0}, out = {0};
    size_t n = size ? data[0] * (size - 1) / 255 : 0, m = size ? size - 1 - n : 0;
    const char *decoded = size ? (const char *)data + 1 : "", *original = decoded + n;
    check(ic_exact_encode(&blob, NULL, 0, decoded, n, original, m) == ICAE_OK);
    check(ic_exact_apply_patch(&out, blob.data, blob.size, decoded, n, m) == ICAE_OK);
    check(out.size == m && (m == 0 || memcmp(out.data, original, m) == 0));
    ic_buffer_free(&blob);
    ic_buffer_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    try_file(data, size);
    use_corrections(data, size, 1000);
    try_patch(data, size);
    check(ic_memory_live() == 0);
    return 0;
}
