/*
 * test_slots.c - segments, slot values, slot files and corrections; above all hostile ones.
 */
#include "core/core.h"
#include "core/metadata.h"
#include "core/slots_file.h"

#include <setjmp.h>
#include <cmocka.h>

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[64];

static void assert_message(const char *part)
{
    if (!strstr(icae_error_message(), part))
        fail_msg("message '%s' does not say '%s'", icae_error_message(), part);
}

static void assert_ok(int rc)
{
    if (rc < 0)
        fail_msg("%s", icae_error_message());
}

static const char *file(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static uint32_t draw(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

/* ---- segments ---------------------------------------------------------------------------------
 */

static void assert_segments(int k, float rate, bool proportional, uint64_t tokens,
                            const int *expected)
{
    icae_adapter a = {.k = k, .proportional = proportional};
    int n = ic_segment_count(&a, rate, tokens), i = 0;
    for (; expected[2 * i]; i++) {
        int length = i < n ? ic_segment_tokens(&a, rate, tokens, i) : -1;
        if (length != expected[2 * i] || ic_segment_slots(&a, rate, length) != expected[2 * i + 1])
            fail_msg("k %d, rate %g, %d tokens: segment %d of %d has %d", k, (double)rate,
                     (int)tokens, i, n, length);
    }
    assert_int_equal(n, i);
}

static void test_segments(void **state)
{
    (void)state;
    assert_segments(128, 4, false, 512, (int[]){512, 128, 0});
    assert_segments(128, 4, false, 513, (int[]){257, 128, 256, 128, 0});
    assert_segments(8, 4, true, 74,
                    (int[]){25, 7, 25, 7, 24, 6, 0}); /* golden llama-spread-proportional */
    assert_segments(8, 3, true, 55, (int[]){19, 7, 19, 7, 17, 6, 0}); /* golden qwen3-… */
    assert_segments(16, 4, true, 1, (int[]){1, 1, 0});
    assert_segments(3, 2.5f, true, 15, (int[]){8, 3, 7, 3, 0});
    assert_segments(10, 3.3f, true, 33, (int[]){33, 10, 0}); /* 3.3 is a little less as a float */
    assert_segments(20, 3.3f, true, 33, (int[]){33, 10, 0});
    assert_segments(10, 3.3f, true, 34, (int[]){17, 6, 17, 6, 0});
    assert_segments(1, 1.5f, false, 9, (int[]){2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 0}); /* none empty */
    assert_segments(1, 1, true, 3, (int[]){1, 1, 1, 1, 1, 1, 0});

    icae_adapter a = {.k = 1};
    assert_int_equal(ic_segment_count(&a, 1, 0), 0);
    uint64_t huge = (uint64_t)1 << 40;
    int n = ic_segment_count(&a, 1, huge);
    assert_true((uint64_t)n * (uint64_t)ic_segment_tokens(&a, 1, huge, 0) >= huge);
    a.k = 1024;
    assert_int_equal(ic_segment_count(&a, 4, huge), 1 << 28);
    assert_int_equal(ic_segment_count(&a, 4, huge + 1), (1 << 28) + 1);
    assert_int_equal(ic_segment_tokens(&a, 4, huge + 1, 0), 4096);
    assert_int_equal(ic_segment_tokens(&a, 4, huge + 1, 1 << 28), 1);
}

/* Every text is covered once, nothing is empty, and whole rates give what the published code gives. */
static void test_segments_cover(void **state)
{
    (void)state;
    uint64_t seed = 1;
    for (int round = 0; round < 20000; round++) {
        icae_adapter a = {.k = 1 + (int)(draw(&seed) % 40), .proportional = round & 1};
        bool whole = round & 2;
        float rate = whole ? (float)(1 + draw(&seed) % 9) : 1 + (float)(draw(&seed) % 80) / 10;
        uint64_t tokens = 1 + draw(&seed) % 3000, sum = 0;
        int n = ic_segment_count(&a, rate, tokens), first = ic_segment_tokens(&a, rate, tokens, 0);
        for (int i = 0; i < n; i++) {
            int length = ic_segment_tokens(&a, rate, tokens, i),
                slots = ic_segment_slots(&a, rate, length);
            assert_true(length >= 1 && (i == n - 1 ? length <= first : length == first));
            assert_true(slots >= 1 && slots <= a.k);
            sum += (uint64_t)length;
        }
        assert_int_equal(sum, tokens);
        uint64_t most = (uint64_t)a.k * (uint64_t)rate, published = (tokens + most - 1) / most;
        if (whole) {
            assert_int_equal(n, published);
            assert_int_equal(first, (tokens + published - 1) / published);
        }
    }
}

static void test_positions(void **state)
{
    (void)state;
    assert_true(ic_slot_position(0, 4, 16) == 1.5);
    assert_true(ic_slot_position(3, 4, 16) == 13.5);
    assert_true(ic_slot_position(0, 1, 1) == 0);
    assert_true(ic_slot_position(2, 7, 25) == 2.5 * 25 / 7 - 0.5);
}

static void test_numbers(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool good;
        float value;
    } cases[] = {
        {"4", true, 4},
        {"2.5", true, 2.5f},
        {"1e3", true, 1000},
        {"-0.125", true, -0.125f},
        {"1.e1", true, 10},
        {".5", true, 0.5f},
        {"3.3", true, 3.3f},
        {"1e-2", true, 0.01f},
        {"", false, 0},
        {"-", false, 0},
        {"1,5", false, 0},
        {"nan", false, 0},
        {"inf", false, 0},
        {"1e", false, 0},
        {"1e400", false, 0},
        {" 1", false, 0},
        {"1 ", false, 0},
        {"0x10", false, 0},
        {"1e99999999999999999999", false, 0},
        {".", false, 0},
        {"16777217.00000000000000000000000001", true, 16777216},
        {"+1", false, 0},
    };
    for (size_t i = 0; i < IC_COUNT(cases); i++) {
        float v;
        bool good = ic_metadata_float(&v, cases[i].text);
        if (good != cases[i].good || (good && v != cases[i].value))
            fail_msg("'%s' is read as %d, %g", cases[i].text, good, (double)v);
    }
    uint64_t seed = 5, u;
    for (int i = 0; i < 100000; i++) {
        union {
            uint32_t u;
            float f;
        } x = {draw(&seed) << 1 | (i & 1)};
        if (!isfinite(x.f))
            continue;
        char text[32];
        float back;
        ic_metadata_print(text, x.f);
        if (!ic_metadata_float(&back, text) || memcmp(&back, &x.f, 4) != 0)
            fail_msg("%.9g is printed as %s", (double)x.f, text);
    }
    assert_true(ic_metadata_u64(&u, "18446744073709551615") && u == UINT64_MAX);
    assert_false(ic_metadata_u64(&u, "18446744073709551616"));
    assert_false(ic_metadata_u64(&u, ""));
    assert_false(ic_metadata_u64(&u, "-1"));
    assert_false(ic_metadata_u64(&u, "1x"));
}

/* ---- values -----------------------------------------------------------------------------------
 */

static void test_values(void **state)
{
    (void)state;
    icae_slots *s;
    float rows[3][4] = {{0.5f, -1, 3.14159f, 0}, {0, 0, 0, 0}, {1e-42f, -2e-42f, 0, 1e-45f}},
          *values;
    assert_int_equal(ic_slots_new(&s, 4, 3, 1, IC_BF16), ICAE_OK);
    ic_slots_put(s, 0, rows[0], 3);
    assert_ok(icae_slots_values(&values, s));
    for (int i = 0; i < 4; i++)
        assert_true(values[i] == ic_bf16_to_f32(ic_f32_to_bf16(rows[0][i])));
    icae_free(values);
    icae_slots_free(s);

    assert_int_equal(ic_slots_new(&s, 4, 3, 1, IC_I8), ICAE_OK);
    ic_slots_put(s, 0, rows[0], 1);
    ic_slots_put(s, 1, rows[1], 2);
    const int8_t *q = s->values;
    assert_int_equal(q[0], 20); /* 0.5 / (3.14159 / 127) = 20.2 */
    assert_int_equal(q[1], -40);
    assert_int_equal(q[2], 127);
    assert_ok(icae_slots_values(&values, s));
    for (int i = 0; i < 4; i++) {
        assert_true(fabsf(values[i] - rows[0][i]) <= 3.14159f / 254 * 1.0001f);
        assert_true(values[4 + i] == 0);
        assert_true(fabsf(values[8 + i] - rows[2][i]) <= 2e-42f);
    }
    icae_slots_info info = icae_slots_describe(s);
    assert_int_equal(info.bytes, 3 * 4 + 3 * 4);
    assert_string_equal(info.dtype, "int8");
    icae_free(values);
    icae_slots_free(s);
    icae_slots_free(NULL);
    assert_ok(ic_slots_new(&s, 4, 1, 1, IC_BF16));
    ic_slots_put(s, 0, rows[0], 1);
    assert_ok(ic_slots_to_int8(s));
    info = icae_slots_describe(s);
    assert_string_equal(info.dtype, "int8");
    assert_int_equal(((const int8_t *)s->values)[2], 127);
    /* 0.5 and 1 are off by 0.0054 and 0.0108 where one step is 0.0247 */
    assert_true(fabs(info.int8_error - 0.00363) < 0.00001);
    icae_slots_free(s);
    assert_int_equal(ic_slots_new(&s, 0, 3, 1, IC_I8), ICAE_EINVAL);
    assert_int_equal(ic_slots_new(&s, 4, 3, 1, IC_F16), ICAE_EINVAL);
    assert_ok(ic_slots_new(&s, 4, 3, 1, IC_F32));
    ic_slots_put(s, 1, rows[0], 1);
    ic_slots_get(rows[2], s, 1, 1);
    assert_memory_equal(rows[2], rows[0], sizeof rows[0]);
    assert_int_equal(icae_slots_save(s, file("f32.icae")), ICAE_EINVAL);
    icae_slots_free(s);
    assert_int_equal(ic_slots_new(&s, 1 << 20, (uint64_t)1 << 62, 1, IC_I8), ICAE_ENOMEM);
}

/* ---- files ------------------------------------------------------------------------------------
 */

static icae_slots *sample(ic_dtype dtype, bool measured, bool exact)
{
    icae_slots *s;
    float rows[5][3];
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 3; j++)
            rows[i][j] = (float)(i * 3 + j - 7) / 4;
    assert_ok(ic_slots_new(&s, 3, 5, 2, dtype));
    ic_slots_put(s, 0, rows[0], 5);
    s->segment[0] = (ic_segment){.tokens = 10, .slots = 3};
    s->segment[1] = (ic_segment){.tokens = 7, .slots = 2};
    s->tokens = 17;
    s->text_size = 61;
    s->rate = 3.5f;
    s->span = 1000;
    memset(s->base, 'a', 64);
    memset(s->adapter, 'b', 64);
    memset(s->text_sha256, '7', 64);
    if (measured) {
        s->measured = true;
        s->segment[0].loss_sum = 1.25;
        s->segment[0].right = 10;
        s->segment[0].prefix = 10;
        s->segment[1].loss_sum = 0.5;
        s->segment[1].right = 6;
        s->segment[1].prefix = 3;
        s->prefix = 13;
        s->doubtful = ic_alloc(2, sizeof *s->doubtful);
        s->doubtful[0] = 4;
        s->doubtful[1] = 13;
        s->doubtful_count = 2;
    }
    if (exact) {
        const ic_correction c[] = {{4, 77}, {13, 3}};
        assert_ok(ic_exact_encode(&s->corrections, c, 2, "decoded", 7, "original", 8));
        s->correction_count = 2;
    }
    return s;
}

static void assert_same(const icae_slots *a, const icae_slots *b)
{
    assert_int_equal(a->width, b->width);
    assert_int_equal(a->count, b->count);
    assert_int_equal(a->tokens, b->tokens);
    assert_int_equal(a->text_size, b->text_size);
    assert_int_equal(a->dtype, b->dtype);
    assert_int_equal(a->segments, b->segments);
    assert_int_equal(a->span, b->span);
    assert_int_equal(a->measured, b->measured);
    assert_int_equal(a->prefix, b->prefix);
    assert_true(a->rate == b->rate);
    assert_memory_equal(a->values, b->values, a->count * ic_row_bytes(a->dtype, (size_t)a->width));
    if (a->scales)
        assert_memory_equal(a->scales, b->scales, a->count * sizeof *a->scales);
    assert_string_equal(a->base, b->base);
    assert_string_equal(a->adapter, b->adapter);
    assert_string_equal(a->text_sha256, b->text_sha256);
    for (uint32_t i = 0; i < a->segments; i++)
        assert_memory_equal(&a->segment[i], &b->segment[i], sizeof a->segment[i]);
    assert_int_equal(a->doubtful_count, b->doubtful_count);
    if (a->doubtful_count)
        assert_memory_equal(a->doubtful, b->doubtful, a->doubtful_count * sizeof *a->doubtful);
    assert_int_equal(a->corrections.size, b->corrections.size);
    if (a->corrections.size)
        assert_memory_equal(a->corrections.data, b->corrections.data, a->corrections.size);
    assert_int_equal(a->correction_count, b->correction_count);
}

static void test_round_trip(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        icae_slots *s = sample(i & 1 ? IC_I8 : IC_BF16, i & 2, i & 4), *back;
        if (i == 6)
            s->doubtful_count = 0; /* an empty tensor */
        assert_ok(icae_slots_save(s, file("round.icae")));
        assert_ok(icae_slots_open(&back, file("round.icae")));
        assert_same(s, back);
        icae_slots_free(back);
        icae_slots_free(s);
    }
}

static void test_describe(void **state)
{
    (void)state;
    icae_slots *s = sample(IC_BF16, true, true);
    icae_slots_info i = icae_slots_describe(s);
    assert_int_equal(i.slots, 5);
    assert_int_equal(i.bytes, 30);
    assert_int_equal(i.fidelity.exact_prefix, 13);
    assert_true(i.fidelity.measured && i.fidelity.tokens == 17);
    assert_true(fabs(i.fidelity.loss - 1.75 / 17) < 1e-15 &&
                fabs(i.fidelity.accuracy - 16.0 / 17) < 1e-15);
    assert_true(i.exact && i.corrections == 2 && i.correction_bytes == s->corrections.size);
    icae_segment_info g = icae_slots_segment(s, 1);
    assert_int_equal(g.first_token, 10);
    assert_int_equal(g.first_slot, 3);
    assert_int_equal(g.tokens, 7);
    assert_int_equal(g.fidelity.exact_prefix, 3);
    assert_int_equal(icae_slots_segment(s, 2).tokens, 0);
    size_t n;
    assert_int_equal(icae_slots_doubtful(s, &n)[1], 13);
    assert_int_equal(n, 2);
    icae_slots_free(s);
    s = sample(IC_BF16, false, false);
    assert_null(icae_slots_doubtful(s, &n));
    assert_int_equal(n, 0);
    assert_false(icae_slots_describe(s).fidelity.measured);
    icae_slots_free(s);
}

/* A good file whose one tensor or metadata entry is replaced, its checksum right again. */
typedef struct change {
    const char *key, *value; /* metadata; value NULL: left out */
    const char *tensor;      /* or a tensor: */
    bool absent;
    ic_dtype dtype;
    int rank;
    int64_t dim[2];
    const void *data;
    int code;
    const char *message;
} change;

static void apply_change(const change *c, const ic_safetensors *good)
{
    ic_tensor tensors[16];
    ic_pair pairs[32];
    size_t n = 0, m = 0;
    char sum[65];
    icae_slots *s;
    for (size_t i = 0; i < good->count; i++) {
        tensors[n] = good->tensors[i];
        if (c->tensor && strcmp(tensors[n].name, c->tensor) == 0) {
            if (c->absent)
                continue;
            ic_tensor t = {.name = c->tensor, .dtype = c->dtype, .rank = c->rank, .data = c->data};
            for (int d = 0; d < 4; d++)
                t.dim[d] = d < c->rank ? c->dim[d] : 1;
            assert_ok(ic_tensor_measure(&t, "test"));
            tensors[n] = t;
        }
        n++;
    }
    for (size_t i = 0; i < good->metadata_count; i++) {
        pairs[m] = good->metadata[i];
        if (strcmp(pairs[m].key, "checksum") == 0 || (c->key && strcmp(pairs[m].key, c->key) == 0))
            continue;
        m++;
    }
    if (c->key && c->value)
        pairs[m++] = (ic_pair){c->key, c->value};
    assert_ok(ic_slots_checksum(sum, tensors, n, pairs, m));
    pairs[m++] = (ic_pair){"checksum", sum};
    assert_ok(ic_safetensors_write(file("changed.icae"), tensors, n, pairs, m));
    int rc = icae_slots_open(&s, file("changed.icae"));
    if (rc != c->code)
        fail_msg("%s%s=%s: code %d (%s), expected %d", c->key ? c->key : "",
                 c->tensor ? c->tensor : "", c->value ? c->value : "", rc, icae_error_message(),
                 c->code);
    if (rc == ICAE_OK)
        icae_slots_free(s);
    else
        assert_message(c->message);
}

static void test_hostile(void **state)
{
    (void)state;
    static const int32_t segments[] = {10, 3, 6, 2}, more[] = {10, 4, 7, 2},
                         negative[] = {-10, 3, 27, 2}, zero[] = {17, 5, 0, 0}, one[] = {17, 5},
                         late[] = {4, 17}, back[] = {13, 4}, below[] = {-1, 4},
                         right[] = {11, 10, 6, 3}, prefix[] = {10, 10, 6, 7};
    static const double infinite[] = {1, INFINITY};
    static const uint16_t nan[15] = {[7] = 0x7fc0}, fine[18] = {0};
    static const unsigned char version[] = {9, 1, 0, 0, 0}, cut[] = {1, 5, 0},
                               token[] = {1, 5, 1, 4, 0, 0xff, 0xff, 0, 0};
    const change changes[] = {
        {.key = "format",
         .value = "icae-slots-2",
         .code = ICAE_EUNSUPPORTED,
         .message = "icae-slots-2"},
        {.key = "format", .value = "pt", .code = ICAE_EFORMAT, .message = "not a slot file"},
        {.key = "format", .code = ICAE_EFORMAT, .message = "(absent)"},
        {.key = "base", .value = "abc", .code = ICAE_EFORMAT, .message = "hexadecimal"},
        {.key = "adapter", .code = ICAE_EFORMAT, .message = "'adapter'"},
        {.key = "text_sha256", .value = "", .code = ICAE_EFORMAT, .message = "text_sha256"},
        {.key = "tokens", .value = "18", .code = ICAE_EFORMAT, .message = "17 tokens"},
        {.key = "tokens", .value = "0", .code = ICAE_EFORMAT, .message = "'tokens'"},
        {.key = "tokens",
         .value = "99999999999999999999",
         .code = ICAE_EFORMAT,
         .message = "'tokens'"},
        {.key = "tokens", .value = "1e1", .code = ICAE_EFORMAT, .message = "'tokens'"},
        {.key = "text_size", .value = "-1", .code = ICAE_EFORMAT, .message = "text_size"},
        {.key = "span", .value = "0", .code = ICAE_EFORMAT, .message = "span"},
        {.key = "rate", .value = "nan", .code = ICAE_EFORMAT, .message = "rate"},
        {.key = "rate", .value = "0.5", .code = ICAE_EFORMAT, .message = "rate"},
        {.key = "exact_prefix", .value = "18", .code = ICAE_EFORMAT, .message = "exact_prefix"},
        {.key = "note", .value = "something else", .code = ICAE_OK},
        {.tensor = "slots", .absent = true, .code = ICAE_EFORMAT, .message = "'slots' is missing"},
        {.tensor = "slots",
         .dtype = IC_BF16,
         .rank = 2,
         .dim = {5, 3},
         .data = nan,
         .code = ICAE_EFORMAT,
         .message = "slot 2, element 1"},
        {.tensor = "slots",
         .dtype = IC_BF16,
         .rank = 2,
         .dim = {6, 3},
         .data = fine,
         .code = ICAE_EFORMAT,
         .message = "5 slots"},
        {.tensor = "slots",
         .dtype = IC_BF16,
         .rank = 1,
         .dim = {15},
         .data = fine,
         .code = ICAE_EFORMAT,
         .message = "rank 1"},
        {.tensor = "slots",
         .dtype = IC_BF16,
         .rank = 2,
         .dim = {0, 3},
         .data = fine,
         .code = ICAE_EFORMAT,
         .message = "0 x 3"},
        {.tensor = "slots",
         .dtype = IC_F16,
         .rank = 2,
         .dim = {5, 3},
         .data = fine,
         .code = ICAE_EFORMAT,
         .message = "F16"},
        {.tensor = "slots",
         .dtype = IC_I8,
         .rank = 2,
         .dim = {5, 3},
         .data = fine,
         .code = ICAE_EFORMAT,
         .message = "'scales' is missing"},
        {.tensor = "segments", .absent = true, .code = ICAE_EFORMAT, .message = "'segments'"},
        {.tensor = "segments",
         .dtype = IC_I32,
         .rank = 2,
         .dim = {2, 2},
         .data = segments,
         .code = ICAE_EFORMAT,
         .message = "16 tokens"},
        {.tensor = "segments",
         .dtype = IC_I32,
         .rank = 2,
         .dim = {2, 2},
         .data = more,
         .code = ICAE_EFORMAT,
         .message = "in 6 slots"},
        {.tensor = "segments",
         .dtype = IC_I32,
         .rank = 2,
         .dim = {2, 2},
         .data = negative,
         .code = ICAE_EFORMAT,
         .message = "segment 0"},
        {.tensor = "segments",
         .dtype = IC_I32,
         .rank = 2,
         .dim = {2, 2},
         .data = zero,
         .code = ICAE_EFORMAT,
         .message = "segment 1"},
        {.tensor = "segments",
         .dtype = IC_I32,
         .rank = 2,
         .dim = {0, 2},
         .data = zero,
         .code = ICAE_EFORMAT,
         .message = "0 segments"},
        {.tensor = "segments",
         .dtype = IC_I32,
         .rank = 2,
         .dim = {1, 2},
         .data = one,
         .code = ICAE_EFORMAT,
         .message = "fidelity"},
        {.tensor = "loss", .absent = true, .code = ICAE_EFORMAT, .message = "'loss'"},
        {.tensor = "loss",
         .dtype = IC_F64,
         .rank = 1,
         .dim = {2},
         .data = infinite,
         .code = ICAE_EFORMAT,
         .message = "segment 1"},
        {.tensor = "fidelity",
         .dtype = IC_I32,
         .rank = 2,
         .dim = {2, 2},
         .data = right,
         .code = ICAE_EFORMAT,
         .message = "11 right"},
        {.tensor = "fidelity",
         .dtype = IC_I32,
         .rank = 2,
         .dim = {2, 2},
         .data = prefix,
         .code = ICAE_EFORMAT,
         .message = "prefix 7"},
        {.tensor = "doubtful",
         .dtype = IC_I32,
         .rank = 1,
         .dim = {2},
         .data = late,
         .code = ICAE_EFORMAT,
         .message = "is 17"},
        {.tensor = "doubtful",
         .dtype = IC_I32,
         .rank = 1,
         .dim = {2},
         .data = back,
         .code = ICAE_EFORMAT,
         .message = "ascending"},
        {.tensor = "doubtful",
         .dtype = IC_I32,
         .rank = 1,
         .dim = {2},
         .data = below,
         .code = ICAE_EFORMAT,
         .message = "is -1"},
        {.tensor = "corrections",
         .dtype = IC_U8,
         .rank = 1,
         .dim = {0},
         .data = cut,
         .code = ICAE_EFORMAT,
         .message = "corrections"},
        {.tensor = "corrections",
         .dtype = IC_U8,
         .rank = 1,
         .dim = {5},
         .data = version,
         .code = ICAE_EUNSUPPORTED,
         .message = "version 9"},
        {.tensor = "corrections",
         .dtype = IC_U8,
         .rank = 1,
         .dim = {3},
         .data = cut,
         .code = ICAE_EFORMAT,
         .message = "cut off"},
        {.tensor = "corrections",
         .dtype = IC_U8,
         .rank = 1,
         .dim = {9},
         .data = token,
         .code = ICAE_EFORMAT,
         .message = "damaged"},
    };
    ic_safetensors good;
    icae_slots *s = sample(IC_BF16, true, true);
    assert_ok(icae_slots_save(s, file("good.icae")));
    assert_ok(ic_safetensors_open(&good, file("good.icae")));
    for (size_t i = 0; i < IC_COUNT(changes); i++)
        apply_change(&changes[i], &good);
    ic_safetensors_close(&good);
    icae_slots_free(s);

    const float scales[] = {1, 1, NAN, 1, 1}, large[] = {1, 1, 1, 1, 3e38f},
                minus[] = {-1, 1, 1, 1, 1};
    const float *bad[] = {scales, large, minus};
    s = sample(IC_I8, false, false);
    assert_ok(icae_slots_save(s, file("good.icae")));
    assert_ok(ic_safetensors_open(&good, file("good.icae")));
    for (size_t i = 0; i < IC_COUNT(bad); i++)
        apply_change(&(change){.tensor = "scales",
                               .dtype = IC_F32,
                               .rank = 1,
                               .dim = {5},
                               .data = bad[i],
                               .code = ICAE_EFORMAT,
                               .message = "the scale of slot"},
                     &good);
    ic_safetensors_close(&good);
    icae_slots_free(s);
}

/* Opens `size` bytes; they must not be a slot file. */
static void assert_refused(const char *data, size_t size, const char *what, size_t at)
{
    icae_slots *s;
    char *copy = ic_alloc(size + 1, 1);
    memcpy(copy, data, size);
    ic_map map = {.data = (unsigned char *)copy, .size = size};
    if (ic_slots_read(&s, &map, "memory") == ICAE_OK)
        fail_msg("%s at byte %zu of %zu was not noticed", what, at, size);
}

static void test_damage(void **state)
{
    (void)state;
    icae_slots *s = sample(IC_I8, true, true);
    ic_map map;
    assert_ok(icae_slots_save(s, file("damage.icae")));
    assert_ok(ic_map_open(&map, file("damage.icae")));
    char *data = malloc(map.size + 1);
    memcpy(data, map.data, map.size);
    for (size_t n = 0; n < map.size; n++)
        assert_refused(data, n, "a cut", n);
    for (size_t i = 0; i < map.size; i++) {
        for (int bit = 0; bit < 8; bit++) {
            data[i] = (char)(data[i] ^ 1 << bit);
            assert_refused(data, map.size, "a flipped bit", i);
            data[i] = (char)(data[i] ^ 1 << bit);
        }
    }
    data[map.size - 1] = (char)~data[map.size - 1];
    assert_refused(data, map.size, "damage", map.size - 1);
    assert_message("checksum");
    free(data);
    ic_map_close(&map);
    icae_slots_free(s);
}

/* In memory and in a file: the same bytes, the same value, the same refusals. */
static void test_memory_image(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        icae_slots *s = sample(i & 1 ? IC_I8 : IC_BF16, i & 2, i & 2), *back = NULL;
        char *data = NULL;
        size_t size;
        ic_map map;
        assert_ok(icae_slots_write(&data, &size, s));
        assert_ok(icae_slots_save(s, file("image.icae")));
        assert_ok(ic_map_open(&map, file("image.icae")));
        assert_int_equal(map.size, size);
        assert_memory_equal(map.data, data, size);
        assert_ok(icae_slots_read(&back, data, size, "image"));
        assert_same(s, back);
        icae_slots_free(back);
        data[size - 1] = (char)~data[size - 1];
        assert_int_equal(icae_slots_read(&back, data, size, "image 7"), ICAE_EFORMAT);
        assert_message("image 7");
        assert_int_equal(icae_slots_read(&back, data, size - 1, "image"), ICAE_EFORMAT);
        assert_int_equal(icae_slots_read(&back, NULL, 0, "image"), ICAE_EFORMAT);
        ic_map_close(&map);
        icae_free(data);
        long live = ic_memory_live();
        int rc = ICAE_ENOMEM;
        for (long n = 0; rc != ICAE_OK; n++) {
            ic_memory_fail_after(n);
            rc = icae_slots_write(&data, &size, s);
            ic_memory_fail_after(-1);
            assert_true(rc == ICAE_OK || rc == ICAE_ENOMEM);
            if (rc < 0)
                assert_int_equal(ic_memory_live(), live);
        }
        icae_free(data);
        icae_slots_free(s);
    }
}

static void test_io(void **state)
{
    (void)state;
    icae_slots *s = sample(IC_BF16, true, true), *back;
    assert_int_equal(icae_slots_open(&back, file("absent.icae")), ICAE_ENOTFOUND);
    assert_int_equal(icae_slots_open(&back, folder), ICAE_EINVAL);
    assert_int_equal(icae_slots_open(&back, "/dev/null"), ICAE_EFORMAT);
    assert_int_equal(icae_slots_save(s, file("absent/x.icae")), ICAE_ENOTFOUND);
    assert_int_equal(icae_slots_save(s, folder), ICAE_EINVAL);
    if (access("/dev/full", W_OK) == 0) {
        assert_int_equal(icae_slots_save(s, "/dev/full"), ICAE_EIO);
        assert_message("/dev/full");
    }
    icae_slots_free(s);
}

static void test_no_memory(void **state)
{
    (void)state;
    icae_slots *s = sample(IC_I8, true, true), *back = NULL;
    long live = ic_memory_live();
    int rc = ICAE_ENOMEM;
    for (long n = 0; rc != ICAE_OK; n++) {
        ic_memory_fail_after(n);
        rc = icae_slots_save(s, file("memory.icae"));
        ic_memory_fail_after(-1);
        assert_true(rc == ICAE_OK || rc == ICAE_ENOMEM);
        assert_int_equal(ic_memory_live(), live);
    }
    rc = ICAE_ENOMEM;
    for (long n = 0; rc != ICAE_OK; n++) {
        ic_memory_fail_after(n);
        rc = icae_slots_open(&back, file("memory.icae"));
        ic_memory_fail_after(-1);
        assert_true(rc == ICAE_OK || rc == ICAE_ENOMEM);
        if (rc < 0)
            assert_int_equal(ic_memory_live(), live);
    }
    assert_same(s, back);
    icae_slots_free(back);
    icae_slots_free(s);
}

/* docs/formats.md in Python: the checksum, and that the safetensors package reads our files. */
static void test_python(void **state)
{
    (void)state;
    if (system("python3 -c 'import safetensors' 2>/dev/null") != 0)
        skip();
    static const char script[] =
        "import hashlib, json, struct, sys, safetensors\n"
        "raw = open(sys.argv[1], 'rb').read()\n"
        "meta = json.loads(raw[8:8 + struct.unpack('<Q', raw[:8])[0]])['__metadata__']\n"
        "tensors = dict(safetensors.deserialize(raw))\n"
        "h = hashlib.sha256()\n"
        "for key in sorted(meta):\n"
        "    if key != 'checksum':\n"
        "        h.update(f'{key}\\0{meta[key]}\\0'.encode())\n"
        "for name in sorted(tensors):\n"
        "    t = tensors[name]\n"
        "    shape = ','.join(map(str, t['shape']))\n"
        "    h.update(f\"{name}\\0{t['dtype']}\\0{shape}\\0\".encode() + bytes(t['data']))\n"
        "assert h.hexdigest() == meta['checksum'], 'checksum'\n"
        "assert tensors['slots']['shape'] == [5, 3] and meta['format'] == 'icae-slots-1'\n"
        "assert struct.unpack('<4i', bytes(tensors['segments']['data'])) == (10, 3, 7, 2)\n";
    char script_path[256], command[600];
    snprintf(script_path, sizeof script_path, "%s/check.py", folder);
    FILE *f = fopen(script_path, "w");
    assert_non_null(f);
    fputs(script, f);
    fclose(f);
    icae_slots *s = sample(IC_I8, true, true);
    assert_ok(icae_slots_save(s, file("python.icae")));
    snprintf(command, sizeof command, "python3 %s %s", script_path, file("python.icae"));
    assert_int_equal(system(command), 0);
    icae_slots_free(s);
}

/* ---- corrections ------------------------------------------------------------------------------
 */

/* Returns the bytes that the patch takes. */
static size_t patch_round_trip(const char *decoded, size_t n, const char *original, size_t m)
{
    ic_buffer blob = {0}, out = {0};
    assert_ok(ic_exact_encode(&blob, NULL, 0, decoded, n, original, m));
    assert_ok(ic_buffer_add(&out, "before", 6));
    int rc = ic_exact_apply_patch(&out, blob.data, blob.size, decoded, n, m);
    if (rc < 0 || out.size != m + 6 || memcmp(out.data + 6, original, m) != 0)
        fail_msg("%zu bytes to %zu bytes: %s", n, m,
                 rc < 0 ? icae_error_message() : "not the original");
    assert_int_equal(ic_exact_apply_patch(&out, blob.data, blob.size, "", n + 1, m), ICAE_EINEXACT);
    size_t size = blob.size;
    ic_buffer_free(&blob);
    ic_buffer_free(&out);
    return size;
}

static void test_patches(void **state)
{
    (void)state;
    static const struct {
        const char *decoded, *original;
        size_t most;
    } cases[] = {
        {"", "", 6},
        {"the same", "the same", 6},
        {"", "everything is missing", 40},
        {"nothing is left", "", 12},
        {"one line\ntwo lines\nthree lines\n", "one line\r\ntwo lines\r\nthree lines\r\n", 20},
        {"a \xef\xbf\xbd b \xef\xbf\xbd\xef\xbf\xbd", "a \xff b \xe2\x82\xc0", 18},
        {"caf\xc3\xa9 is open today", "cafe\xcc\x81 is open today", 16},
        {"leading space is lost", "  leading space is lost", 12},
        {"completely different", "0123456789012345678901234567890", 50},
        {"\xef\xbf\xbd", "\xef\xbf\xbd", 6},
    };
    for (size_t i = 0; i < IC_COUNT(cases); i++) {
        size_t size = patch_round_trip(cases[i].decoded, strlen(cases[i].decoded),
                                       cases[i].original, strlen(cases[i].original));
        if (size > cases[i].most)
            fail_msg("case %zu takes %zu bytes", i, size);
    }
}

/* Texts of all kinds of damage; also that the time stays linear and the patch small. */
static void test_random_patches(void **state)
{
    (void)state;
    enum { SIZE = 1 << 20 };
    uint64_t seed = 3;
    char *a = malloc(3 * SIZE), *b = malloc(SIZE);
    for (int round = 0; round < 3000; round++) {
        size_t n = draw(&seed) % 400, m = 0;
        uint32_t rarity = 1 + draw(&seed) % 60, letters = 1 + draw(&seed) % 40;
        for (size_t i = 0; i < n; i++)
            a[i] = (char)('A' + draw(&seed) % letters);
        for (size_t i = 0; i < n && m < SIZE - 3; i++) {
            uint32_t what = draw(&seed) % (4 * rarity);
            if (what == 0)
                continue;
            b[m++] = what == 1 ? (char)draw(&seed) : a[i];
            if (what == 2)
                b[m++] = (char)draw(&seed);
        }
        patch_round_trip(a, n, b, m);
    }
    /* A binary file, as a tokenizer hands it back: every broken byte is U+FFFD; then text. */
    size_t n = 0;
    for (size_t i = 0; i < SIZE; i++)
        b[i] = i < SIZE / 2 ? (char)draw(&seed) : (char)('a' + draw(&seed) % 26);
    for (size_t i = 0; i < SIZE;) {
        uint32_t code;
        int length = ic_utf8_decode(&code, b + i, SIZE - i);
        if (length < 0)
            n += (size_t)ic_utf8_encode(a + n, 0xfffd);
        else
            n += (size_t)ic_utf8_encode(a + n, code);
        i += (size_t)abs(length);
    }
    size_t size = patch_round_trip(a, n, b, SIZE);
    if (size > SIZE * 6 / 10)
        fail_msg("a binary half takes %zu bytes", size);
    /* Another text altogether. */
    for (size_t i = 0; i < SIZE; i++)
        a[i] = (char)('a' + draw(&seed) % 3);
    assert_true(patch_round_trip(a, SIZE / 2, b, SIZE) < SIZE + 100);
    free(a);
    free(b);
}

static void test_corrections(void **state)
{
    (void)state;
    uint64_t seed = 9;
    for (int round = 0; round < 2000; round++) {
        ic_correction c[64], *back;
        size_t n = draw(&seed) % 65, count;
        uint32_t gap = 1 + draw(&seed) % 3000, id = 1 + draw(&seed) % 200000;
        uint32_t at = draw(&seed) % gap;
        for (size_t i = 0; i < n; i++, at += 1 + draw(&seed) % gap)
            c[i] = (ic_correction){at, (int32_t)(draw(&seed) % id)};
        ic_buffer blob = {0};
        assert_ok(ic_exact_encode(&blob, c, n, "x", 1, "x", 1));
        assert_ok(
            ic_exact_decode_corrections(&back, &count, blob.data, blob.size, (int)id, at + 1));
        assert_int_equal(count, n);
        for (size_t i = 0; i < n; i++)
            assert_true(back[i].at == c[i].at && back[i].id == c[i].id);
        ic_free(back);
        if (n > 0) {
            assert_int_equal(ic_exact_decode_corrections(&back, &count, blob.data, blob.size,
                                                         (int)id, c[n - 1].at),
                             ICAE_EFORMAT);
            assert_null(back);
        }
        /* Nothing may be believed. */
        for (size_t i = 0; i < blob.size; i++) {
            char old = blob.data[i];
            blob.data[i] = (char)draw(&seed);
            if (ic_exact_decode_corrections(&back, &count, blob.data, blob.size, (int)id, at + 1) ==
                ICAE_OK) {
                for (size_t j = 0; j < count; j++)
                    assert_true(back[j].at <= at && back[j].id >= 0 && back[j].id < (int)id &&
                                (j == 0 || back[j].at > back[j - 1].at));
                ic_free(back);
            }
            ic_buffer out = {0};
            (void)ic_exact_apply_patch(&out, blob.data, blob.size, "x", 1, 1);
            ic_buffer_free(&out);
            blob.data[i] = old;
        }
        for (size_t size = 0; size < blob.size; size++) {
            ic_buffer out = {0};
            assert_true(ic_exact_apply_patch(&out, blob.data, size, "x", 1, 1) < 0);
            ic_buffer_free(&out);
        }
        ic_buffer_free(&blob);
    }
    ic_buffer blob = {0};
    const ic_correction extreme[] = {{0, 0}, {UINT32_MAX - 1, INT32_MAX}};
    ic_correction *back;
    size_t count;
    assert_ok(ic_exact_encode(&blob, extreme, 2, "", 0, "", 0));
    assert_int_equal(
        ic_exact_decode_corrections(&back, &count, blob.data, blob.size, INT32_MAX, UINT64_MAX),
        ICAE_EFORMAT); /* the id is the vocabulary's size */
    ic_buffer_free(&blob);
    assert_int_equal(ic_exact_encode(&blob, (ic_correction[]){{3, 1}, {3, 1}}, 2, "", 0, "", 0),
                     ICAE_EINVAL);
    assert_int_equal(ic_exact_encode(&blob, (ic_correction[]){{3, -1}}, 1, "", 0, "", 0),
                     ICAE_EINVAL);
    assert_int_equal(blob.size, 0);
    ic_buffer_free(&blob);
}

static void test_corrections_no_memory(void **state)
{
    (void)state;
    const ic_correction c[] = {{1, 5}, {900, 6}};
    long live = ic_memory_live();
    int rc = ICAE_ENOMEM;
    for (long n = 0; rc != ICAE_OK; n++) {
        ic_buffer blob = {0}, out = {0};
        ic_correction *back = NULL;
        size_t count;
        ic_memory_fail_after(n);
        rc = ic_exact_encode(&blob, c, 2, "decoded text", 12, "original text, longer", 21);
        if (rc == ICAE_OK)
            rc = ic_exact_decode_corrections(&back, &count, blob.data, blob.size, 10, 1000);
        if (rc == ICAE_OK)
            rc = ic_exact_apply_patch(&out, blob.data, blob.size, "decoded text", 12, 21);
        ic_memory_fail_after(-1);
        assert_true(rc == ICAE_OK || rc == ICAE_ENOMEM);
        ic_free(back);
        ic_buffer_free(&blob);
        ic_buffer_free(&out);
        assert_int_equal(ic_memory_live(), live);
    }
}

static int set_up(void **state)
{
    (void)state;
    /* in memory where that can be: the library syncs what it writes */
    static const char *const places[] = {"/dev/shm", "/tmp"};
    for (size_t i = 0; i < IC_COUNT(places); i++) {
        snprintf(folder, sizeof folder, "%s/icae-test-slots-XXXXXX", places[i]);
        if (mkdtemp(folder))
            return 0;
    }
    return -1;
}

static int tear_down(void **state)
{
    (void)state;
    char command[300];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_segments),
        cmocka_unit_test(test_segments_cover),
        cmocka_unit_test(test_positions),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_memory_image),
        cmocka_unit_test(test_describe),
        cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_io),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_python),
        cmocka_unit_test(test_patches),
        cmocka_unit_test(test_random_patches),
        cmocka_unit_test(test_corrections),
        cmocka_unit_test(test_corrections_no_memory),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
