/*
 * test_format.c - src/format: data types, safetensors, GGUF, PyTorch files; above all hostile ones.
 */
#include "format/format.h"

#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = "/tmp/icae-test-format-XXXXXX";

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

static ic_map copy_to_map(const void *data, size_t size)
{
    void *copy = ic_alloc(size ? size : 1, 1);
    assert_non_null(copy);
    if (size > 0)
        memcpy(copy, data, size);
    return (ic_map){.data = copy, .size = size};
}

static const char *data_file(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", ICAE_TEST_DIR, name);
    return path;
}

/* ---- data types ------------------------------------------------------------------------------ */

static void test_half(void **state)
{
    (void)state;
    /* Every f16 against its definition, and back. */
    for (uint32_t v = 0; v < 0x10000; v++) {
        float f = ic_f16_to_f32((uint16_t)v);
        int exponent = (int)(v >> 10 & 31), fraction = (int)(v & 1023);
        if (exponent == 31 && fraction) {
            assert_true(isnan(f));
            assert_true(isnan(ic_f16_to_f32(ic_f32_to_f16(f))));
            continue;
        }
        double expected = exponent == 31  ? INFINITY
                          : exponent == 0 ? ldexp(fraction, -24)
                                          : ldexp(1024 + fraction, exponent - 25);
        assert_true(f == (float)(v & 0x8000 ? -expected : expected));
        assert_true(!signbit(f) == !(v & 0x8000));
        assert_int_equal(ic_f32_to_f16(f), v);
        if (exponent == 31 || (v & 0x8000))
            continue;
        /* Between neighbours: the middle goes to the even one, everything else to the nearer. */
        float next = v == 0x7bff ? 65536.0f : ic_f16_to_f32((uint16_t)(v + 1));
        float middle = (f + next) / 2;
        uint32_t even = v + (v & 1);
        assert_int_equal(ic_f32_to_f16(middle), even);
        assert_int_equal(ic_f32_to_f16(nextafterf(middle, 0)), v);
        assert_int_equal(ic_f32_to_f16(nextafterf(middle, INFINITY)), v + 1);
        assert_int_equal(ic_f32_to_f16(-middle), even | 0x8000);
    }
    assert_int_equal(ic_f32_to_f16(1e30f), 0x7c00);
    assert_int_equal(ic_f32_to_f16(1e-30f), 0);
}

static void test_plain_types(void **state)
{
    (void)state;
    static const float values[] = {0, -1, 2, 100};
    float out[4];
    unsigned char stored[4 * 8 + 1], *odd = stored + 1; /* not aligned */
    int8_t i8[] = {0, -1, 2, 100};
    int32_t i32[] = {0, -1, 2, 100};
    int64_t i64[] = {0, -1, 2, 100};
    double f64[] = {0, -1, 2, 100};
    const struct {
        const void *data;
        ic_dtype dtype;
    } cases[] = {{i8, IC_I8}, {i32, IC_I32}, {i64, IC_I64}, {f64, IC_F64}, {values, IC_F32}};
    for (size_t i = 0; i < IC_COUNT(cases); i++) {
        memcpy(odd, cases[i].data, ic_row_bytes(cases[i].dtype, 4));
        ic_to_f32(out, odd, cases[i].dtype, 4);
        assert_memory_equal(out, values, sizeof out);
    }
    const ic_dtype floats[] = {IC_F32, IC_F16, IC_BF16};
    for (size_t i = 0; i < 3; i++) {
        ic_from_f32(odd, values, floats[i], 4);
        memset(out, 0, sizeof out);
        ic_to_f32(out, odd, floats[i], 4);
        assert_memory_equal(out, values, sizeof out);
    }
    assert_int_equal(ic_f32_to_bf16(1.00390625f), 0x3f80); /* a tie, to even */
    assert_int_equal(ic_f32_to_bf16(1.01171875f), 0x3f82);
    assert_true(isnan(ic_bf16_to_f32(ic_f32_to_bf16(NAN))));
    assert_int_equal(ic_row_bytes(IC_Q6_K, 512), 420);
}

/* Blocks and the values gguf-py reads from them, bit for bit. */
static void test_dequantise(void **state)
{
    (void)state;
    static const ic_dtype types[] = {IC_Q8_0, IC_Q4_0, IC_Q4_K, IC_Q5_K, IC_Q6_K};
    ic_safetensors st;
    assert_ok(ic_safetensors_open(&st, data_file("data/dequant.safetensors")));
    for (size_t i = 0; i < IC_COUNT(types); i++) {
        char name[32];
        snprintf(name, sizeof name, "%s.blocks", ic_dtypes[types[i]].name);
        const ic_tensor *blocks = ic_safetensors_find(&st, name);
        snprintf(name, sizeof name, "%s.values", ic_dtypes[types[i]].name);
        const ic_tensor *values = ic_safetensors_find(&st, name);
        assert_non_null(blocks);
        assert_non_null(values);
        assert_int_equal(blocks->dim[1], ic_dtypes[types[i]].bytes);
        assert_int_equal(values->dim[1], ic_dtypes[types[i]].block);
        size_t n = values->bytes / 4;
        float *out = ic_alloc(n, sizeof *out);
        assert_non_null(out);
        ic_to_f32(out, blocks->data, types[i], n);
        for (size_t j = 0; j < n; j++) {
            float expected;
            memcpy(&expected, (const char *)values->data + 4 * j, 4);
            if (out[j] != expected) /* equal bits, but for the sign of zero */
                fail_msg("%s value %zu: %.9g, expected %.9g", ic_dtypes[types[i]].name, j,
                         (double)out[j], (double)expected);
        }
        ic_free(out);
    }
    ic_safetensors_close(&st);
}

/* ---- safetensors ----------------------------------------------------------------------------- */

/* `header_size` -1: the true one. */
static int read_header(ic_safetensors *st, const char *header, long long header_size, size_t data)
{
    size_t n = strlen(header);
    unsigned char *file = ic_alloc(8 + n + data, 1);
    assert_non_null(file);
    uint64_t size = header_size < 0 ? n : (uint64_t)header_size;
    for (int i = 0; i < 8; i++)
        file[i] = (unsigned char)(size >> 8 * i);
    memcpy(file + 8, header, n);
    ic_map map = {.data = file, .size = 8 + n + data};
    int rc = ic_safetensors_read(st, &map, "t.safetensors");
    assert_null(map.data);
    return rc;
}

#define T(dtype, shape, offsets) \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void test_safetensors_hostile(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        long long header_size;
        size_t data;
        int code;
        const char *message;
    } cases[] = {
        /* the header's size */
        {"{}", 3, 0, ICAE_EFORMAT, "truncated"},
        {"{}", 1 << 20, 0, ICAE_EFORMAT, "truncated"},
        {"{}", 0x7fffffffffffffff, 0, ICAE_EFORMAT, "100 MiB"},
        {"{}", 104857601, 0, ICAE_EFORMAT, "100 MiB"},
        {"{}", 0, 0, ICAE_EFORMAT, "empty"},
        {"{}", 1, 0, ICAE_EFORMAT, "JSON"},
        {"{\"a\":" T("F32", "[1]", "[0,4]") "}", 20, 4, ICAE_EFORMAT, "JSON"},
        /* not what a header is */
        {"[]", -1, 0, ICAE_EFORMAT, "no JSON object"},
        {"{\"a\":3}", -1, 0, ICAE_EFORMAT, "'a' is no JSON object"},
        {"{\"a\":{}}", -1, 0, ICAE_EFORMAT, "'a' has no dtype"},
        {"{\"a\":{\"dtype\":\"F32\"}}", -1, 0, ICAE_EFORMAT, "'a' has no shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", -1, 4, ICAE_EFORMAT, "data_offsets"},
        {"{\"a\":" T("F8_E4M3", "[1]", "[0,1]") "}", -1, 1, ICAE_EUNSUPPORTED, "'F8_E4M3'"},
        {"{\"a\":" T("Q4_0", "[32]", "[0,18]") "}", -1, 18, ICAE_EUNSUPPORTED, "'Q4_0'"},
        {"{\"a\":" T("F32", "[1]", "[0]") "}", -1, 4, ICAE_EFORMAT, "two whole numbers"},
        {"{\"a\":" T("F32", "[1]", "[0,4,8]") "}", -1, 4, ICAE_EFORMAT, "two whole numbers"},
        {"{\"a\":" T("F32", "[1]", "[0,\"4\"]") "}", -1, 4, ICAE_EFORMAT, "two whole numbers"},
        {"{\"a\":" T("F32", "[1]", "[-4,0]") "}", -1, 4, ICAE_EFORMAT, "two whole numbers"},
        {"{\"a\":" T("F32", "[1]", "[0.5,4.5]") "}", -1, 4, ICAE_EFORMAT, "two whole numbers"},
        {"{\"a\":" T("F32", "[1]", "[0,1e999]") "}", -1, 4, ICAE_EFORMAT, "two whole numbers"},
        /* places */
        {"{\"a\":" T("F32", "[1]", "[4,0]") "}", -1, 4, ICAE_EFORMAT, "outside"},
        {"{\"a\":" T("F32", "[1]", "[0,4]") "}", -1, 3, ICAE_EFORMAT, "outside"},
        {"{\"a\":" T("F32", "[1]", "[0,4]") "}", -1, 5, ICAE_EFORMAT, "take 4 bytes"},
        {"{\"a\":" T("F32", "[1]", "[9007199254740988,9007199254740992]") "}", -1, 4, ICAE_EFORMAT,
         "outside"},
        {"{\"a\":" T("F32", "[1]", "[0,18446744073709551615]") "}", -1, 4, ICAE_EFORMAT,
         "two whole numbers"},
        {"{\"a\":" T("F32", "[1]", "[0,4]") ",\"b\":" T("F32", "[1]", "[2,6]") "}", -1, 6,
         ICAE_EFORMAT, "'a' and 'b' overlap"},
        {"{\"a\":" T("F32", "[1]", "[0,4]") ",\"b\":" T("F32", "[1]", "[0,4]") "}", -1, 4,
         ICAE_EFORMAT, "overlap"},
        {"{\"a\":" T("F32", "[1]", "[0,4]") ",\"b\":" T("F32", "[1]", "[8,12]") "}", -1, 12,
         ICAE_EFORMAT, "'b' starts at data offset 8, expected 4"},
        {"{\"a\":" T("F32", "[1]", "[4,8]") "}", -1, 8, ICAE_EFORMAT, "expected 0"},
        /* shapes */
        {"{\"a\":" T("F32", "[2]", "[0,4]") "}", -1, 4, ICAE_EFORMAT, "need 8"},
        {"{\"a\":" T("F16", "[1]", "[0,4]") "}", -1, 4, ICAE_EFORMAT, "need 2"},
        {"{\"a\":" T("F32", "[-1]", "[0,4]") "}", -1, 4, ICAE_EFORMAT, "dimension 0"},
        {"{\"a\":" T("F32", "[1.5]", "[0,4]") "}", -1, 4, ICAE_EFORMAT, "dimension 0"},
        {"{\"a\":" T("F32", "{}", "[0,4]") "}", -1, 4, ICAE_EFORMAT, "no shape"},
        {"{\"a\":" T("F32", "[1,1,1,1,1]", "[0,4]") "}", -1, 4, ICAE_EUNSUPPORTED, "4 dimensions"},
        {"{\"a\":" T("F32", "[4294967296,4294967296]", "[0,0]") "}", -1, 0, ICAE_EFORMAT,
         "larger than any memory"},
        {"{\"a\":" T("F64", "[4294967296,536870912]", "[0,0]") "}", -1, 0, ICAE_EFORMAT,
         "larger than any memory"},
        {"{\"a\":" T("F32", "[9007199254740992,9007199254740992,0]", "[0,0]") "}", -1, 0,
         ICAE_EFORMAT, "larger than any memory"},
        /* names and metadata */
        {"{\"a\":" T("F32", "[1]", "[0,4]") ",\"a\":" T("F32", "[1]", "[4,8]") "}", -1, 8,
         ICAE_EFORMAT, "two tensors are called 'a'"},
        {"{\"__metadata__\":[]}", -1, 0, ICAE_EFORMAT, "__metadata__"},
        {"{\"__metadata__\":{\"k\":1}}", -1, 0, ICAE_EFORMAT, "metadata 'k'"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", -1, 0, ICAE_EFORMAT, "twice"},
    };
    long before = ic_memory_live();
    for (size_t i = 0; i < IC_COUNT(cases); i++) {
        ic_safetensors st;
        int rc = read_header(&st, cases[i].header, cases[i].header_size, cases[i].data);
        if (rc != cases[i].code)
            fail_msg("case %zu gives %d (%s)", i, rc, icae_error_message());
        assert_message("t.safetensors");
        assert_message(cases[i].message);
        assert_null(st.tensors);
        assert_int_equal(ic_memory_live(), before);
    }
    for (size_t n = 0; n < 8; n++) {
        ic_map map = copy_to_map("\2\0\0\0\0\0\0\0", n);
        ic_safetensors st;
        assert_int_equal(ic_safetensors_read(&st, &map, "short"), ICAE_EFORMAT);
        assert_message("too few");
    }
}

static void test_safetensors_deep(void **state)
{
    (void)state;
    char *header = ic_alloc(200001, 1);
    assert_non_null(header);
    memset(header, '[', 100000);
    memset(header + 100000, ']', 100000);
    ic_safetensors st;
    assert_int_equal(read_header(&st, header, -1, 0), ICAE_EFORMAT);
    assert_message("nested deeper");
    ic_free(header);
}

static void test_safetensors_good(void **state)
{
    (void)state;
    ic_safetensors st;
    assert_ok(read_header(&st, "{}", -1, 0));
    assert_int_equal(st.count, 0);
    assert_null(ic_safetensors_find(&st, "a"));
    ic_safetensors_close(&st);
    ic_safetensors_close(&st);
    /* Out of order, empty tensors, a scalar, spaces behind the header. */
    assert_ok(read_header(
        &st,
        "{\"b\":" T("BOOL", "[2,3]", "[8,14]") ",\"a\":" T("I64", "[]", "[0,8]") ",\"e\":" T(
            "F32", "[0,7]",
            "[8,8]") ",\"f\":" T("F32", "[0]", "[14,14]") ",\"__metadata__\":{\"k\":\"v\\n\"}}   ",
        -1, 14));
    assert_int_equal(st.count, 4);
    const ic_tensor *a = ic_safetensors_find(&st, "a"), *b = ic_safetensors_find(&st, "b");
    assert_int_equal(a->rank, 0);
    assert_int_equal(a->bytes, 8);
    assert_int_equal(a->dim[0], 1);
    assert_int_equal(b->dtype, IC_U8);
    assert_int_equal(b->dim[1], 3);
    assert_int_equal((const char *)b->data - (const char *)a->data, 8);
    assert_int_equal(ic_safetensors_find(&st, "e")->bytes, 0);
    assert_string_equal(ic_safetensors_metadata(&st, "k"), "v\n");
    assert_null(ic_safetensors_metadata(&st, "K"));
    ic_safetensors_close(&st);
}

static void test_safetensors_write(void **state)
{
    (void)state;
    char *path = ic_path_join(folder, "w.safetensors");
    static const float f32[6] = {1, 2, 3, 4, 5, 6};
    static const uint16_t bf16[2] = {0x3f80, 0x4000};
    const ic_tensor tensors[] = {
        {"weight", IC_F32, 2, {2, 3, 1, 1}, f32, 24},
        {"odd \"name\"\n\xc3\xbc", IC_BF16, 1, {2, 1, 1, 1}, bf16, 4},
        {"empty", IC_I8, 1, {0, 1, 1, 1}, NULL, 0},
        {"scalar", IC_F32, 0, {1, 1, 1, 1}, f32, 4},
    };
    const ic_pair metadata[] = {{"format", "pt"}, {"text", "a \"b\" \\ \t\xe2\x82\xac"}};
    assert_ok(ic_safetensors_write(path, tensors, 4, metadata, 2));
    ic_safetensors st;
    assert_ok(ic_safetensors_open(&st, path));
    assert_int_equal(st.count, 4);
    assert_int_equal(st.metadata_count, 2);
    assert_string_equal(ic_safetensors_metadata(&st, "text"), metadata[1].value);
    for (size_t i = 0; i < 4; i++) {
        const ic_tensor *t = ic_safetensors_find(&st, tensors[i].name);
        assert_non_null(t);
        assert_ptr_equal(t, &st.tensors[i]);
        assert_int_equal(t->dtype, tensors[i].dtype);
        assert_int_equal(t->rank, tensors[i].rank);
        assert_memory_equal(t->dim, tensors[i].dim, sizeof t->dim);
        assert_int_equal(t->bytes, tensors[i].bytes);
        if (t->bytes > 0)
            assert_memory_equal(t->data, tensors[i].data, t->bytes);
    }
    assert_int_equal((uintptr_t)st.tensors[0].data % 64, 0);
    ic_safetensors_close(&st);

    ic_tensor wrong = tensors[0];
    wrong.bytes = 20;
    assert_int_equal(ic_safetensors_write(path, &wrong, 1, NULL, 0), ICAE_EINVAL);
    wrong = tensors[0];
    wrong.dtype = IC_Q8_0;
    assert_int_equal(ic_safetensors_write(path, &wrong, 1, NULL, 0), ICAE_EINVAL);
    const ic_tensor twice[] = {tensors[0], tensors[0]};
    assert_int_equal(ic_safetensors_write(path, twice, 2, NULL, 0), ICAE_EFORMAT);
    assert_int_equal(ic_safetensors_write("/dev/full", tensors, 4, NULL, 0), ICAE_EIO);
    assert_message("No space left");
    assert_ok(ic_safetensors_open(&st, path)); /* the old file is still there */
    assert_int_equal(st.count, 4);
    ic_safetensors_close(&st);
    ic_free(path);
}

/* Many tensors, to see that finding and checking stay quick. */
static void test_safetensors_many(void **state)
{
    (void)state;
    enum { N = 20000 };
    ic_tensor *tensors = ic_alloc(N, sizeof *tensors);
    char(*names)[16] = ic_alloc(N, sizeof *names);
    assert_non_null(tensors);
    assert_non_null(names);
    static const char byte[1] = {7};
    for (int i = 0; i < N; i++) {
        snprintf(names[i], sizeof names[i], "t%d", i * 7919 % N);
        tensors[i] = (ic_tensor){names[i], IC_U8, 1, {1, 1, 1, 1}, byte, 1};
    }
    char *path = ic_path_join(folder, "many.safetensors");
    ic_safetensors st;
    assert_ok(ic_safetensors_write(path, tensors, N, NULL, 0));
    assert_ok(ic_safetensors_open(&st, path));
    for (int i = 0; i < N; i++)
        assert_ptr_equal(ic_safetensors_find(&st, names[i]), &st.tensors[i]);
    assert_null(ic_safetensors_find(&st, "t20000"));
    ic_safetensors_close(&st);
    ic_free(path);
    ic_free(tensors);
    ic_free(names);
}

/* ---- GGUF ------------------------------------------------------------------------------------ */

static void add(ic_buffer *b, uint64_t v, size_t bytes)
{
    char le[8];
    for (size_t i = 0; i < 8; i++)
        le[i] = (char)(v >> 8 * i);
    assert_ok(ic_buffer_add(b, le, bytes));
}

static void add_string(ic_buffer *b, const char *s)
{
    add(b, strlen(s), 8);
    assert_ok(ic_buffer_add(b, s, strlen(s)));
}

static void add_head(ic_buffer *b, uint32_t version, uint64_t tensors, uint64_t values)
{
    assert_ok(ic_buffer_add(b, "GGUF", 4));
    add(b, version, 4);
    add(b, tensors, 8);
    add(b, values, 8);
}

static void add_u32(ic_buffer *b, const char *key, uint32_t v)
{
    add_string(b, key);
    add(b, 4, 4);
    add(b, v, 4);
}

static void add_tensor(ic_buffer *b, const char *name, uint64_t d0, uint64_t d1, uint32_t type,
                       uint64_t offset)
{
    add_string(b, name);
    add(b, 2, 4);
    add(b, d0, 8);
    add(b, d1, 8);
    add(b, type, 4);
    add(b, offset, 8);
}

static void add_data(ic_buffer *b, size_t bytes)
{
    while (b->size % 32 != 0)
        add(b, 0, 1);
    while (bytes-- > 0)
        add(b, bytes, 1);
}

/* Reads and frees what was built. */
static int read_gguf(ic_gguf *g, ic_buffer *b)
{
    ic_map map = copy_to_map(b->data, b->size);
    ic_buffer_free(b);
    return ic_gguf_read(g, &map, "t.gguf");
}

static void expect_gguf(ic_buffer *b, int code, const char *message)
{
    ic_gguf g;
    int rc = read_gguf(&g, b);
    if (rc != code)
        fail_msg("%d instead of %d with '%s' (%s)", rc, code, message, icae_error_message());
    assert_message("t.gguf");
    assert_message(message);
    assert_null(g.tensors);
}

static void test_gguf_values(void **state)
{
    (void)state;
    ic_buffer b = {0};
    ic_gguf g;
    size_t size;
    add_head(&b, 3, 1, 9);
    add_u32(&b, "u32", 4000000000u);
    add_string(&b, "i8");
    add(&b, 1, 4);
    add(&b, 0xfe, 1);
    add_string(&b, "f32");
    add(&b, 6, 4);
    add(&b, 0x3fc00000, 4);
    add_string(&b, "f64");
    add(&b, 12, 4);
    add(&b, 0xbff8000000000000, 8);
    add_string(&b, "bool");
    add(&b, 7, 4);
    add(&b, 1, 1);
    add_string(&b, "i64");
    add(&b, 11, 4);
    add(&b, (uint64_t)-5, 8);
    add_string(&b, "name");
    add(&b, 8, 4);
    add_string(&b, "llama");
    add_string(&b, "words");
    add(&b, 9, 4);
    add(&b, 8, 4);
    add(&b, 3, 8);
    add_string(&b, "one");
    add_string(&b, "");
    add_string(&b, "three");
    add_string(&b, "ids");
    add(&b, 9, 4);
    add(&b, 5, 4);
    add(&b, 2, 8);
    add(&b, (uint32_t)-7, 4);
    add(&b, 8, 4);
    add_tensor(&b, "w", 3, 2, 0, 0);
    add_data(&b, 24);
    assert_ok(read_gguf(&g, &b));
    assert_true(ic_gguf_number(&g, "u32", 0) == 4000000000.0);
    assert_true(ic_gguf_number(&g, "i8", 0) == -2);
    assert_true(ic_gguf_number(&g, "f32", 0) == 1.5);
    assert_true(ic_gguf_number(&g, "f64", 0) == -1.5);
    assert_true(ic_gguf_number(&g, "bool", 0) == 1);
    assert_true(ic_gguf_number(&g, "i64", 0) == -5);
    assert_true(ic_gguf_number(&g, "name", 9) == 9);
    assert_true(ic_gguf_number(&g, "words", 9) == 9);
    assert_true(ic_gguf_number(&g, "absent", 9) == 9);
    assert_memory_equal(ic_gguf_string(&g, "name", &size), "llama", 5);
    assert_int_equal(size, 5);
    assert_null(ic_gguf_string(&g, "u32", &size));
    const ic_gguf_value *words = ic_gguf_get(&g, "words"), *ids = ic_gguf_get(&g, "ids");
    const unsigned char *at = words->data;
    static const char *const expected[] = {"one", "", "three"};
    for (uint64_t i = 0; i < words->count; i++) {
        const char *s = ic_gguf_next_string(words, &at, &size);
        assert_int_equal(size, strlen(expected[i]));
        assert_memory_equal(s, expected[i], size);
    }
    assert_true(ic_gguf_element(ids, 0) == -7 && ic_gguf_element(ids, 1) == 8);
    const ic_tensor *w = ic_gguf_find(&g, "w");
    assert_true(w->rank == 2 && w->dim[0] == 2 && w->dim[1] == 3 && w->bytes == 24);
    assert_int_equal(*(const unsigned char *)w->data, 23);
    assert_null(ic_gguf_find(&g, "v"));
    ic_gguf_close(&g);
    ic_gguf_close(&g);
}

static void test_gguf_hostile_head(void **state)
{
    (void)state;
    ic_buffer b = {0};
    long before = ic_memory_live();
    add(&b, 0x12345678, 8);
    expect_gguf(&b, ICAE_EFORMAT, "no GGUF file");
    expect_gguf(&b, ICAE_EFORMAT, "no GGUF file"); /* an empty one */
    add_head(&b, 1, 0, 0);
    expect_gguf(&b, ICAE_EUNSUPPORTED, "version 1");
    add_head(&b, 0x03000000, 0, 0);
    expect_gguf(&b, ICAE_EUNSUPPORTED, "big endian");
    add_head(&b, 3, UINT64_MAX, 0);
    expect_gguf(&b, ICAE_EFORMAT, "do not fit");
    add_head(&b, 3, 0, UINT64_MAX);
    expect_gguf(&b, ICAE_EFORMAT, "do not fit");
    add_head(&b, 3, 1, 0);
    expect_gguf(&b, ICAE_EFORMAT, "do not fit");
    add_head(&b, 3, 0, 1); /* an array of far more than the file holds */
    add_string(&b, "a");
    add(&b, 9, 4);
    add(&b, 4, 4);
    add(&b, UINT64_MAX / 4, 8);
    expect_gguf(&b, ICAE_EFORMAT, "'a': 4611686018427387903 values do not fit");
    add_head(&b, 3, 0, 1); /* strings of which the second passes the end */
    add_string(&b, "a");
    add(&b, 9, 4);
    add(&b, 8, 4);
    add(&b, 2, 8);
    add_string(&b, "x");
    add(&b, UINT64_MAX - 8, 8);
    expect_gguf(&b, ICAE_EFORMAT, "passes the end");
    add_head(&b, 3, 0, 1);
    add_string(&b, "nested");
    add(&b, 9, 4);
    add(&b, 9, 4);
    add(&b, 0, 8);
    expect_gguf(&b, ICAE_EUNSUPPORTED, "array of arrays");
    add_head(&b, 3, 0, 1);
    add_string(&b, "odd");
    add(&b, 13, 4);
    add(&b, 0, 8);
    expect_gguf(&b, ICAE_EFORMAT, "value type 13");
    add_head(&b, 3, 0, 1); /* a key longer than the file */
    add(&b, UINT64_MAX, 8);
    add(&b, 0, 8);
    expect_gguf(&b, ICAE_EFORMAT, "a key at byte 32 passes");
    add_head(&b, 3, 0, 1);
    add(&b, 3, 8);
    assert_ok(ic_buffer_add(&b, "a\0b", 3));
    add(&b, 4, 8);
    expect_gguf(&b, ICAE_EFORMAT, "0 byte");
    add_head(&b, 3, 0, 2);
    add_u32(&b, "same", 1);
    add_u32(&b, "same", 2);
    expect_gguf(&b, ICAE_EFORMAT, "'same' stands twice");
    static const uint32_t alignments[] = {0, 3, 48};
    for (size_t i = 0; i < IC_COUNT(alignments); i++) {
        add_head(&b, 3, 0, 1);
        add_u32(&b, "general.alignment", alignments[i]);
        expect_gguf(&b, ICAE_EFORMAT, "power of two");
    }
    assert_int_equal(ic_memory_live(), before);
}

static void test_gguf_hostile_tensors(void **state)
{
    (void)state;
    static const struct {
        uint64_t d0, d1;
        uint32_t type;
        uint64_t offset;
        int code;
        const char *message;
    } cases[] = {
        {8, 1, 3, 0, ICAE_EUNSUPPORTED, "Q4_1"},
        {8, 1, 4, 0, ICAE_EUNSUPPORTED, "unknown type 4"},
        {8, 1, 1000, 0, ICAE_EUNSUPPORTED, "unknown type 1000"},
        {8, 1, UINT32_MAX, 0, ICAE_EUNSUPPORTED, "unknown type"},
        {31, 1, 8, 0, ICAE_EFORMAT, "whole blocks"},
        {128, 1, 12, 0, ICAE_EFORMAT, "whole blocks"},
        {UINT64_MAX, 1, 0, 0, ICAE_EFORMAT, "dimension"},
        {1ull << 62, 4, 0, 0, ICAE_EFORMAT, "larger than any memory"},
        {1ull << 62, 1, 0, 0, ICAE_EFORMAT, "larger than any memory"},
        {17, 1, 0, 0, ICAE_EFORMAT, "truncated: tensor 'w' has 68 bytes"},
        {8, 1, 0, 1, ICAE_EFORMAT, "no multiple of 32"},
        {8, 1, 0, 64, ICAE_EFORMAT, "truncated"},
        {8, 1, 0, UINT64_MAX - 31, ICAE_EFORMAT, "truncated"},
    };
    ic_buffer b = {0};
    for (size_t i = 0; i < IC_COUNT(cases); i++) {
        add_head(&b, 3, 1, 0);
        add_tensor(&b, "w", cases[i].d0, cases[i].d1, cases[i].type, cases[i].offset);
        add_data(&b, 64);
        expect_gguf(&b, cases[i].code, cases[i].message);
    }
    add_head(&b, 3, 1, 0);
    add_string(&b, "w");
    add(&b, 5, 4);
    add_data(&b, 100);
    expect_gguf(&b, ICAE_EUNSUPPORTED, "5 dimensions");
    add_head(&b, 2, 2, 0);
    add_tensor(&b, "v", 8, 2, 0, 0);
    add_tensor(&b, "w", 8, 1, 0, 32);
    add_data(&b, 64);
    expect_gguf(&b, ICAE_EFORMAT, "'v' and 'w' overlap");
    add_head(&b, 2, 2, 0);
    add_tensor(&b, "v", 8, 1, 0, 0);
    add_tensor(&b, "v", 8, 1, 0, 32);
    add_data(&b, 64);
    expect_gguf(&b, ICAE_EFORMAT, "two tensors are called 'v'");
}

static void test_gguf_golden(void **state)
{
    (void)state;
    static const char *const files[] = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M", "Q6_K"};
    ic_gguf full;
    assert_ok(ic_gguf_open(&full, data_file("golden/gguf/model-F32.gguf")));
    assert_true(full.count > 10 && full.value_count > 10);
    for (size_t i = 0; i < IC_COUNT(files); i++) {
        char name[64];
        snprintf(name, sizeof name, "golden/gguf/model-%s.gguf", files[i]);
        ic_gguf g;
        assert_ok(ic_gguf_open(&g, data_file(name)));
        assert_int_equal(g.count, full.count);
        size_t quantised = 0;
        for (size_t t = 0; t < g.count; t++) {
            const ic_tensor *a = &g.tensors[t], *b = ic_gguf_find(&full, a->name);
            assert_non_null(b);
            assert_memory_equal(a->dim, b->dim, sizeof a->dim);
            quantised += ic_dtypes[a->dtype].quantised;
            /* Every value close to the f32 model's: four bits leave about a tenth of the spread. */
            size_t n = b->bytes / 4;
            float *x = ic_alloc(n, 4), *y = ic_alloc(n, 4);
            ic_to_f32(x, a->data, a->dtype, n);
            ic_to_f32(y, b->data, b->dtype, n);
            double error = 0, norm = 0;
            for (size_t j = 0; j < n; j++) {
                error += ((double)x[j] - (double)y[j]) * ((double)x[j] - (double)y[j]);
                norm += (double)y[j] * (double)y[j];
            }
            if (error > 0.02 * norm)
                fail_msg("%s: tensor %s differs by %g", name, a->name, sqrt(error / norm));
            ic_free(x);
            ic_free(y);
        }
        assert_true((quantised > 0) == (i > 2));
        ic_gguf_close(&g);
    }
    ic_gguf_close(&full);
}

/* ---- PyTorch --------------------------------------------------------------------------------- */

static const ic_tensor *find_pt(const ic_pt *pt, const char *name)
{
    for (size_t i = 0; i < pt->count; i++)
        if (strcmp(pt->tensors[i].name, name) == 0)
            return &pt->tensors[i];
    fail_msg("no tensor '%s'", name);
    return NULL;
}

static void test_pt_good(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        ic_dtype dtype;
        int rank;
        int64_t d0, d1;
        float first, last;
    } cases[] = {
        {"f32", IC_F32, 2, 2, 3, 0, 5},
        {"f16", IC_F16, 1, 2, 1, 1.5f, -2},
        {"bf16", IC_BF16, 2, 2, 1, 3, -0.5f},
        {"f64", IC_F64, 1, 1, 1, 1e-3f, 1e-3f},
        {"i64", IC_I64, 1, 2, 1, -(float)(1ll << 40), 7},
        {"i32", IC_I32, 1, 1, 1, -5, -5},
        {"i8", IC_I8, 1, 2, 1, -128, 127},
        {"u8", IC_U8, 1, 1, 1, 255, 255},
        {"flag", IC_U8, 1, 2, 1, 1, 0},
        {"scalar", IC_F32, 0, 1, 1, 2.5f, 2.5f},
        {"shared", IC_F32, 2, 4, 6, 0, 23},
        {"rows", IC_F32, 2, 2, 6, 6, 17},
        {"parameter", IC_F32, 1, 2, 1, 1, 1},
        {"nested.list.0", IC_F32, 1, 1, 1, 0, 0},
        {"nested.list.1.deep", IC_F32, 1, 1, 1, 9, 9},
        {"nested.3", IC_F32, 1, 1, 1, 1, 1},
        {"nested.tuple.0", IC_F32, 1, 1, 1, 4, 4},
    };
    ic_pt pt;
    assert_ok(ic_pt_open(&pt, data_file("data/good.pt")));
    assert_int_equal(pt.count, IC_COUNT(cases) + 1);
    assert_int_equal(find_pt(&pt, "empty")->bytes, 0);
    for (size_t i = 0; i < IC_COUNT(cases); i++) {
        const ic_tensor *t = find_pt(&pt, cases[i].name);
        size_t n = t->bytes / (size_t)ic_dtypes[t->dtype].bytes;
        float values[32];
        assert_true(n > 0 && n <= 32);
        ic_to_f32(values, t->data, t->dtype, n);
        if (t->dtype != cases[i].dtype || t->rank != cases[i].rank || t->dim[0] != cases[i].d0 ||
            t->dim[1] != cases[i].d1 || values[0] != cases[i].first ||
            values[n - 1] != cases[i].last)
            fail_msg("%s is wrong", cases[i].name);
    }
    ic_pt_close(&pt);
    ic_pt_close(&pt);

    assert_ok(ic_pt_open(&pt, data_file("data/state_dict.pt")));
    assert_int_equal(pt.count, 2);
    assert_int_equal(find_pt(&pt, "weight")->dim[1], 3);
    ic_pt_close(&pt);
    assert_ok(ic_pt_open(&pt, data_file("data/single.pt")));
    assert_int_equal(pt.count, 1);
    ic_pt_close(&pt);
    assert_ok(ic_pt_open(&pt, data_file("data/many.pt")));
    assert_int_equal(pt.count, 41);
    assert_true(*(const float *)find_pt(&pt, "1.39")->data == 39);
    ic_pt_close(&pt);
}

static void test_pt_bad(void **state)
{
    (void)state;
    static const struct {
        const char *file;
        int code;
        const char *message;
    } cases[] = {
        {"bad_system.pt", ICAE_EUNSUPPORTED, "'posix.system'"},
        {"bad_transposed.pt", ICAE_EUNSUPPORTED, "'w' is not contiguous"},
        {"bad_rank5.pt", ICAE_EUNSUPPORTED, "5 dimensions"},
        {"bad_i16.pt", ICAE_EUNSUPPORTED, "'torch.ShortStorage'"},
        {"bad_legacy.pt", ICAE_EUNSUPPORTED, "before 1.6"},
        {"bad_deflated.pt", ICAE_EUNSUPPORTED, "compressed"},
        {"bad_byteorder.pt", ICAE_EUNSUPPORTED, "'big'"},
        {"bad_nodata.pt", ICAE_EFORMAT, "truncated"},
        {"bad_protocol.pt", ICAE_EUNSUPPORTED, "protocol 4"},
        {"bad_cycle.pt", ICAE_ELIMIT, "nested deeper"},
        {"bad_bomb.pt", ICAE_ELIMIT, "more values"},
        {"bad_shape.pt", ICAE_EFORMAT, "3 values at offset 0 of a storage of 2"},
        {"bad_storage.pt", ICAE_EFORMAT, "should have 9 values, the file has 2"},
        {"bad_key.pt", ICAE_EFORMAT, "entry 'single/data/7' is missing"},
        {"dequant.safetensors", ICAE_EFORMAT, "not a file of torch.save"},
    };
    long before = ic_memory_live();
    for (size_t i = 0; i < IC_COUNT(cases); i++) {
        char name[64];
        snprintf(name, sizeof name, "data/%s", cases[i].file);
        ic_pt pt;
        int rc = ic_pt_open(&pt, data_file(name));
        if (rc != cases[i].code)
            fail_msg("%s gives %d (%s)", name, rc, rc < 0 ? icae_error_message() : "read");
        assert_message(cases[i].file);
        assert_message(cases[i].message);
        assert_null(pt.tensors);
    }
    assert_int_equal(ic_memory_live(), before);
}

/* ---- all containers -------------------------------------------------------------------------- */

typedef struct opened {
    ic_safetensors st;
    ic_gguf gguf;
    ic_pt pt;
} opened;

static int open_st(opened *o, ic_map *m)
{
    return ic_safetensors_read(&o->st, m, "x");
}
static int open_gguf(opened *o, ic_map *m)
{
    return ic_gguf_read(&o->gguf, m, "x");
}
static int open_pt(opened *o, ic_map *m)
{
    return ic_pt_read(&o->pt, m, "x");
}
static void close_st(opened *o)
{
    ic_safetensors_close(&o->st);
}
static void close_gguf(opened *o)
{
    ic_gguf_close(&o->gguf);
}
static void close_pt(opened *o)
{
    ic_pt_close(&o->pt);
}

static const struct {
    const char *file;
    int (*open)(opened *, ic_map *);
    void (*close)(opened *);
} containers[] = {
    {"golden/llama/icae.safetensors", open_st, close_st},
    {"golden/gguf/model-Q4_0.gguf", open_gguf, close_gguf},
    {"data/good.pt", open_pt, close_pt},
};

/* Every truncation is an error, never a crash; near the start each length, later every few. */
static void test_truncated(void **state)
{
    (void)state;
    for (size_t i = 0; i < IC_COUNT(containers); i++) {
        ic_map map;
        opened o;
        assert_ok(ic_map_open(&map, data_file(containers[i].file)));
        size_t step = map.size / 2000 + 1;
        for (size_t n = 0; n < map.size; n += n < 500 ? 1 : step) {
            ic_map cut = copy_to_map(map.data, n);
            int rc = containers[i].open(&o, &cut);
            if (rc == ICAE_OK)
                containers[i].close(&o);
            if (rc != ICAE_EFORMAT)
                fail_msg("%s cut to %zu bytes gives %d", containers[i].file, n, rc);
        }
        ic_map_close(&map);
    }
}

/* Each allocation fails once: the right code, no leak. */
static void test_out_of_memory(void **state)
{
    (void)state;
    for (size_t i = 0; i < IC_COUNT(containers); i++) {
        long before = ic_memory_live(), n;
        for (n = 0; n < 100000; n++) {
            opened o;
            ic_map map;
            assert_ok(ic_map_open(&map, data_file(containers[i].file)));
            ic_memory_fail_after(n);
            int rc = containers[i].open(&o, &map);
            ic_memory_fail_after(-1);
            if (rc == ICAE_OK)
                containers[i].close(&o);
            assert_int_equal(ic_memory_live(), before);
            if (rc == ICAE_OK)
                break;
            if (rc != ICAE_ENOMEM)
                fail_msg("%s: allocation %ld gives %d (%s)", containers[i].file, n, rc,
                         icae_error_message());
        }
        assert_true(n > 3 && n < 100000);
    }
    /* Writing: nothing is left behind either. */
    char *path = ic_path_join(folder, "oom.safetensors");
    const ic_tensor t = {"w", IC_U8, 1, {1, 1, 1, 1}, "x", 1};
    const ic_pair pair = {"k", "v"};
    long before = ic_memory_live();
    for (long n = 0;; n++) {
        ic_memory_fail_after(n);
        int rc = ic_safetensors_write(path, &t, 1, &pair, 1);
        ic_memory_fail_after(-1);
        assert_int_equal(ic_memory_live(), before);
        if (rc == ICAE_OK)
            break;
        assert_int_equal(rc, ICAE_ENOMEM);
        assert_true(n < 100);
    }
    ic_free(path);
}

static void test_missing(void **state)
{
    (void)state;
    ic_safetensors st;
    ic_gguf g;
    ic_pt pt;
    assert_int_equal(ic_safetensors_open(&st, "/no/such"), ICAE_ENOTFOUND);
    assert_int_equal(ic_gguf_open(&g, "/no/such"), ICAE_ENOTFOUND);
    assert_int_equal(ic_pt_open(&pt, "/no/such"), ICAE_ENOTFOUND);
    assert_message("/no/such: No such file");
    assert_null(st.map.data);
    ic_safetensors_close(&st); /* closing what never opened is fine */
    ic_gguf_close(&g);
    ic_pt_close(&pt);
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_half),
        cmocka_unit_test(test_plain_types),
        cmocka_unit_test(test_dequantise),
        cmocka_unit_test(test_safetensors_hostile),
        cmocka_unit_test(test_safetensors_deep),
        cmocka_unit_test(test_safetensors_good),
        cmocka_unit_test(test_safetensors_write),
        cmocka_unit_test(test_safetensors_many),
        cmocka_unit_test(test_gguf_values),
        cmocka_unit_test(test_gguf_hostile_head),
        cmocka_unit_test(test_gguf_hostile_tensors),
        cmocka_unit_test(test_gguf_golden),
        cmocka_unit_test(test_pt_good),
        cmocka_unit_test(test_pt_bad),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_missing),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
