/*
 * test_base.c - src/base: errors, memory, buffers, files, hashes, JSON, random numbers, UTF-8.
 */
#include "base/base.h"

#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/icae-test-base-XXXXXX";

static char *in_folder(const char *name)
{
    char *path = ic_path_join(folder, name);
    assert_non_null(path);
    return path;
}

static void assert_message(const char *part)
{
    if (!strstr(icae_error_message(), part))
        fail_msg("message '%s' does not say '%s'", icae_error_message(), part);
}

/* ---- errors ---------------------------------------------------------------------------------- */

static void test_error(void **state)
{
    (void)state;
    assert_int_equal(ic_fail(ICAE_EIO, "%s: %d", "file", 7), ICAE_EIO);
    assert_string_equal(icae_error_message(), "file: 7");
    ic_fail(ICAE_EIO, "again (%s)", icae_error_message());
    assert_string_equal(icae_error_message(), "again (file: 7)");

    /* Escape sequences, C1 controls and broken UTF-8 do not reach a terminal; text does. */
    ic_fail(ICAE_EIO, "a\x1b[31m\n\x7f\xc2\x9b\xff\xe2\x82 gr\xc3\xbc\xc3\x9f");
    assert_string_equal(icae_error_message(), "a?[31m????? gr\xc3\xbc\xc3\x9f");

    char *big = malloc(5001);
    assert_non_null(big);
    for (int i = 0; i < 5000; i += 2)
        memcpy(big + i, "\xc3\xbc", 2);
    big[5000] = 0;
    ic_fail(ICAE_EIO, "x%s", big);
    size_t n = strlen(icae_error_message());
    assert_true(n > 1000 && n < 1024);
    assert_string_equal(icae_error_message() + n - 3, "...");
    assert_int_equal(ic_utf8_whole(icae_error_message(), n), n);
    assert_null(strchr(icae_error_message(), '?'));
    free(big);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void test_memory(void **state)
{
    (void)state;
    long before = ic_memory_live();
    size_t sizes[] = {0, 1, 15, 63, 64, 65, 1000, 100000, 3000000};
    for (size_t i = 0; i < IC_COUNT(sizes); i++) {
        unsigned char *p = ic_alloc(sizes[i], 1);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        for (size_t j = 0; j < sizes[i]; j++)
            assert_int_equal(p[j], 0);
        for (size_t j = 0; j < sizes[i]; j++)
            p[j] = (unsigned char)(j * 7);
        for (size_t k = 0; k < IC_COUNT(sizes); k++) {
            unsigned char *q = ic_resize(p, sizes[k], 1);
            assert_non_null(q);
            assert_int_equal((uintptr_t)q % 64, 0);
            for (size_t j = 0; j < IC_MIN(sizes[i], sizes[k]); j++)
                assert_int_equal(q[j], (unsigned char)(j * 7));
            for (size_t j = 0; j < sizes[k]; j++)
                q[j] = (unsigned char)(j * 7);
            p = ic_resize(q, sizes[i], 1);
            assert_non_null(p);
            for (size_t j = IC_MIN(sizes[i], sizes[k]); j < sizes[i]; j++)
                p[j] = (unsigned char)(j * 7);
        }
        ic_free(p);
    }
    assert_null(ic_alloc(SIZE_MAX / 2, 3));
    assert_message("out of memory");
    assert_null(ic_alloc(SIZE_MAX - 8, 1));
    assert_message("18446744073709551607 bytes");
    assert_null(ic_resize(NULL, SIZE_MAX, SIZE_MAX));
    char *s = ic_strndup("abc", 2), *t = ic_format("%s-%d", s, 5), *u = ic_strdup("");
    assert_string_equal(s, "ab");
    assert_string_equal(t, "ab-5");
    assert_string_equal(u, "");
    ic_free(s);
    ic_free(t);
    ic_free(u);
    ic_free(NULL);
    assert_int_equal(ic_memory_live(), before);
}

static void test_memory_fails(void **state)
{
    (void)state;
    long before = ic_memory_fail_after(2);
    void *a = ic_alloc(1, 1), *b = ic_alloc(10, 10);
    assert_non_null(a);
    assert_non_null(b);
    assert_null(ic_alloc(3, 100));
    assert_message("3 times 100 bytes");
    assert_null(ic_resize(a, 100, 1)); /* and a stays */
    ic_arena arena = {0};
    assert_int_equal(ic_arena_reserve(&arena, 100), ICAE_ENOMEM);
    assert_message("100 bytes");
    ic_memory_fail_after(-1);
    ic_free(a);
    ic_free(b);
    assert_int_equal(ic_memory_live(), before);
}

static size_t use_arena(ic_arena *a)
{
    size_t mark = ic_arena_mark(a);
    char *p = ic_arena_take(a, 10), *q = ic_arena_take(a, 100);
    assert_non_null(p);
    assert_int_equal((uintptr_t)q % 64, 0);
    assert_true(q >= p + 10);
    size_t inner = ic_arena_mark(a);
    char *r = ic_arena_take(a, 5000);
    if (!a->measuring)
        memset(r, 1, 5000);
    ic_arena_release(a, inner);
    assert_ptr_equal(ic_arena_take(a, 1), r);
    ic_arena_release(a, mark);
    return a->peak;
}

static void test_arena(void **state)
{
    (void)state;
    long before = ic_memory_live();
    ic_arena a;
    memset(&a, 0, sizeof a);
    ic_arena_measure(&a);
    size_t peak = use_arena(&a);
    assert_int_equal(peak, 64 + 128 + 5000);
    assert_int_equal(ic_arena_reserve(&a, peak), ICAE_OK);
    assert_int_equal((uintptr_t)a.base % 4096, 0);
    assert_int_equal(use_arena(&a), peak);
    char *base = a.base;
    ic_arena_measure(&a); /* the memory stays for the next reservation */
    use_arena(&a);
    assert_int_equal(ic_arena_reserve(&a, 100), ICAE_OK);
    assert_ptr_equal(a.base, base);
    assert_int_equal(ic_arena_reserve(&a, 8 << 20), ICAE_OK);
    memset(ic_arena_take(&a, 8 << 20), 1, 8 << 20);

    /* More than there can be is measured without overflow, and refused. */
    ic_arena_measure(&a);
    ic_arena_take(&a, SIZE_MAX - 10);
    ic_arena_take(&a, SIZE_MAX / 2);
    assert_int_equal(ic_arena_reserve(&a, a.peak), ICAE_ENOMEM);
    assert_message("out of memory");
    assert_int_equal(ic_arena_reserve(&a, SIZE_MAX), ICAE_ENOMEM);
    ic_arena_free(&a);
    ic_arena_free(&a);
    assert_int_equal(ic_memory_live(), before);
}

static void test_buffer(void **state)
{
    (void)state;
    ic_buffer b = {0};
    for (int i = 0; i < 1000; i++)
        assert_int_equal(ic_buffer_addf(&b, "%d,", i), ICAE_OK);
    assert_int_equal(b.size, 10 * 2 + 90 * 3 + 900 * 4);
    assert_int_equal(strlen(b.data), b.size);
    assert_int_equal(ic_buffer_grow(&b, SIZE_MAX), ICAE_ENOMEM);
    ic_buffer_free(&b);

    b.limit = 5;
    assert_int_equal(ic_buffer_add(&b, "12345", 5), ICAE_OK);
    assert_int_equal(ic_buffer_add(&b, "6", 1), ICAE_ELIMIT);
    assert_int_equal(ic_buffer_add(&b, NULL, 0), ICAE_OK);
    assert_string_equal(b.data, "12345");
    ic_buffer_free(&b);
}

/* ---- files ----------------------------------------------------------------------------------- */

static void assert_content(const char *path, const char *content)
{
    ic_map map;
    assert_int_equal(ic_map_open(&map, path), ICAE_OK);
    assert_int_equal(map.size, strlen(content));
    assert_memory_equal(map.data ? (const char *)map.data : "", content, map.size);
    ic_map_close(&map);
}

static void write_file(const char *path, const char *content)
{
    ic_file f;
    assert_int_equal(ic_file_create(&f, path), ICAE_OK);
    assert_int_equal(ic_file_write(&f, content, strlen(content)), ICAE_OK);
    assert_int_equal(ic_file_commit(&f), ICAE_OK);
}

static void test_file_replace(void **state)
{
    (void)state;
    char *path = in_folder("a.txt"), *link = in_folder("link");
    ic_file f = {0};
    ic_file_abandon(&f); /* a zeroed one */
    write_file(path, "first");
    assert_content(path, "first");
    assert_int_equal(chmod(path, 0640), 0);

    /* Until the commit, and after abandoning, the old file is there and nothing else. */
    assert_int_equal(ic_file_create(&f, path), ICAE_OK);
    assert_int_equal(ic_file_write(&f, "second", 6), ICAE_OK);
    assert_content(path, "first");
    char *temporary = ic_strdup(f.temporary);
    assert_true(ic_path_exists(temporary));
    ic_file other;
    assert_int_equal(ic_file_create(&other, path), ICAE_OK); /* a second writer has its own */
    ic_file_abandon(&f);
    ic_file_abandon(&f);
    assert_false(ic_path_exists(temporary));
    ic_free(temporary);
    assert_int_equal(ic_file_write(&other, "third", 5), ICAE_OK);
    assert_int_equal(ic_file_commit(&other), ICAE_OK);
    ic_file_abandon(&other);
    assert_content(path, "third");
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);

    /* A link stays a link. */
    assert_int_equal(symlink("a.txt", link), 0);
    write_file(link, "fourth");
    assert_content(path, "fourth");
    assert_int_equal(lstat(link, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    ic_free(path);
    ic_free(link);
}

static void test_file_errors(void **state)
{
    (void)state;
    ic_map map;
    ic_file f;
    char *missing = in_folder("no/such/file"), *empty = in_folder("empty");
    assert_int_equal(ic_map_open(&map, missing), ICAE_ENOTFOUND);
    assert_message("no/such/file: No such file");
    assert_int_equal(ic_map_open(&map, folder), ICAE_EINVAL);
    assert_message("is a folder");
    assert_int_equal(ic_file_create(&f, folder), ICAE_EINVAL);
    assert_int_equal(ic_file_create(&f, missing), ICAE_ENOTFOUND);
    assert_null(f.path);
    write_file(empty, "");
    assert_content(empty, "");
    assert_true(ic_path_is_folder(folder));
    assert_false(ic_path_is_folder(empty));

    /* A full disk, as far as one byte is needed to see it. */
    assert_int_equal(ic_file_create(&f, "/dev/full"), ICAE_OK);
    assert_null(f.temporary);
    assert_int_equal(ic_file_write(&f, "x", 1), ICAE_EIO);
    assert_message("/dev/full: No space left");
    assert_int_equal(ic_file_commit(&f), ICAE_EIO);

    /* A file that cannot grow further: nothing is left behind. */
    struct rlimit old, small = {1000, RLIM_INFINITY};
    char *limited = in_folder("limited"), *data = ic_alloc(5000, 1);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    small.rlim_max = old.rlim_max;
    setrlimit(RLIMIT_FSIZE, &small);
    assert_int_equal(ic_file_create(&f, limited), ICAE_OK);
    int rc = ic_file_write(&f, data, 5000);
    char *temporary = ic_strdup(f.temporary);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(rc, ICAE_EIO);
    assert_message("limited: File too large");
    assert_int_equal(ic_file_commit(&f), ICAE_EIO);
    assert_false(ic_path_exists(temporary));
    assert_false(ic_path_exists(limited));

    /* A reader that went away. */
    int ends[2];
    char name[64];
    signal(SIGPIPE, SIG_IGN);
    assert_int_equal(pipe(ends), 0);
    snprintf(name, sizeof name, "/dev/fd/%d", ends[1]);
    assert_int_equal(ic_file_create(&f, name), ICAE_OK);
    close(ends[0]);
    assert_int_equal(ic_file_write(&f, "x", 1), ICAE_EIO);
    assert_message("Broken pipe");
    ic_file_abandon(&f);
    close(ends[1]);
    ic_free(missing);
    ic_free(empty);
    ic_free(limited);
    ic_free(temporary);
    ic_free(data);
}

static void test_file_pipe(void **state)
{
    (void)state;
    int ends[2];
    char name[64];
    ic_map map;
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(write(ends[1], "through a pipe", 14), 14);
    close(ends[1]);
    snprintf(name, sizeof name, "/dev/fd/%d", ends[0]);
    assert_int_equal(ic_map_open(&map, name), ICAE_OK);
    assert_false(map.mapped);
    assert_int_equal(map.size, 14);
    assert_memory_equal(map.data, "through a pipe", 14);
    ic_map_close(&map);
    close(ends[0]);

    /* Standard input, also when it is a file that was read in part. */
    char *path = in_folder("stdin");
    write_file(path, "0123456789");
    int saved = dup(STDIN_FILENO), fd = open(path, O_RDONLY);
    assert_int_equal(dup2(fd, STDIN_FILENO), STDIN_FILENO);
    assert_content("-", "0123456789");
    lseek(STDIN_FILENO, 4, SEEK_SET);
    assert_content("-", "456789");
    dup2(saved, STDIN_FILENO);
    close(saved);
    close(fd);
    ic_free(path);
}

static void test_path(void **state)
{
    (void)state;
    static const char *const cases[][3] = {
        {"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"", "b", "b"}, {"/", "b", "/b"}};
    for (size_t i = 0; i < IC_COUNT(cases); i++) {
        char *path = ic_path_join(cases[i][0], cases[i][1]);
        assert_string_equal(path, cases[i][2]);
        ic_free(path);
    }
}

/* ---- compression ----------------------------------------------------------------------------- */

static const unsigned char two_members[] = {
    0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0xcb, 0x48, 0xcd,
    0xc9, 0xc9, 0x57, 0x00, 0x00, 0xf6, 0xf9, 0x81, 0xed, 0x06, 0x00, 0x00, 0x00,
    0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0x2b, 0xcf, 0x2f,
    0xca, 0x49, 0x01, 0x00, 0x43, 0x11, 0x77, 0x3a, 0x05, 0x00, 0x00, 0x00}; /* "hello " and "world"
                                                                              */
static const unsigned char gzip_5000[] = {
    0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0xed, 0xc1, 0x31, 0x01,
    0x00, 0x00, 0x00, 0xc2, 0xa0, 0xac, 0xeb, 0x5f, 0xc2, 0x14, 0x7e, 0x40, 0x01, 0x00,
    0x00, 0x00, 0x00, 0x6f, 0x03, 0x76, 0x59, 0xf4, 0x4c, 0x88, 0x13, 0x00, 0x00}; /* 5000 a */
static const unsigned char zstd_5000[] = {0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x58, 0x4d, 0x00,
                                          0x00, 0x10, 0x61, 0x61, 0x01, 0x00, 0x83, 0xd3,
                                          0x03, 0x2c, 0xd6, 0x3c, 0x80, 0xd4};

static void check_5000(const unsigned char *data, size_t size)
{
    static const size_t limits[] = {0, 5000, 5001, 4999, 1};
    for (size_t i = 0; i < IC_COUNT(limits); i++) {
        ic_buffer b = {.limit = limits[i]};
        int rc = ic_decompress(&b, data, size, "text");
        if (limits[i] == 0 || limits[i] >= 5000) {
            assert_int_equal(rc, ICAE_OK);
            assert_int_equal(b.size, 5000);
            for (size_t j = 0; j < 5000; j++)
                assert_int_equal(b.data[j], 'a');
            assert_int_equal(b.data[5000], 0);
        } else {
            assert_int_equal(rc, ICAE_ELIMIT);
            assert_message("text: more than");
        }
        ic_buffer_free(&b);
    }
    /* Two in one file, and every truncation (but those that end before the format shows). */
    unsigned char *twice = ic_alloc(2 * size, 1);
    memcpy(twice, data, size);
    memcpy(twice + size, data, size);
    ic_buffer b = {0};
    assert_int_equal(ic_decompress(&b, twice, 2 * size, "text"), ICAE_OK);
    assert_int_equal(b.size, 10000);
    ic_buffer_free(&b);
    for (size_t n = 4; n < size; n++) {
        assert_int_equal(ic_decompress(&b, data, n, "text"), ICAE_EFORMAT);
        assert_message("truncated");
        ic_buffer_free(&b);
    }
    twice[size / 2] ^= 0x55;
    assert_int_equal(ic_decompress(&b, twice, size, "text"), ICAE_EFORMAT);
    assert_message("damaged");
    ic_buffer_free(&b);
    ic_free(twice);
}

static void test_decompress(void **state)
{
    (void)state;
    ic_buffer b = {0};
    assert_int_equal(ic_decompress(&b, two_members, sizeof two_members, "x"), ICAE_OK);
    assert_string_equal(b.data, "hello world");
    ic_buffer_free(&b);
    check_5000(gzip_5000, sizeof gzip_5000);
    check_5000(zstd_5000, sizeof zstd_5000);
    assert_int_equal(ic_decompress(&b, "plain", 5, "x"), ICAE_OK);
    assert_int_equal(ic_decompress(&b, NULL, 0, "x"), ICAE_OK);
    assert_string_equal(b.data, "plain");
    ic_buffer_free(&b);
    b.limit = 3;
    assert_int_equal(ic_decompress(&b, "plain", 5, "x"), ICAE_ELIMIT);
    ic_buffer_free(&b);
}

static void test_hash(void **state)
{
    (void)state;
    char hex[65], again[65];
    assert_int_equal(ic_hash_of(hex, "abc", 3), ICAE_OK);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    ic_hash *h;
    assert_int_equal(ic_hash_new(&h), ICAE_OK);
    for (int i = 0; i < 3; i++)
        ic_hash_add(h, "abc" + i, 1);
    ic_hash_add(h, NULL, 0);
    ic_hash_finish(h, again);
    assert_string_equal(hex, again);
    assert_int_equal(ic_hash_new(&h), ICAE_OK);
    ic_hash_finish(h, NULL);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static ic_json *parse(const char *text)
{
    ic_json *root;
    if (ic_json_parse(&root, text, strlen(text), "test.json") < 0)
        fail_msg("%s", icae_error_message());
    return root;
}

static void test_json(void **state)
{
    (void)state;
    long before = ic_memory_live();
    ic_json *root = parse(" {\"n\": -2.5e3, \"s\": \"a\\u00fc\\n\", \"b\": true, \"z\": null,\n"
                          "\"list\": [1, 2, 3], \"n\": 9, \"big\": 9007199254740991, \"o\": {}} ");
    assert_true(ic_json_is_object(root));
    assert_int_equal(ic_json_count(root), 8);
    assert_true(ic_json_number(ic_json_get(root, "n"), 0) == -2500); /* the first counts */
    assert_true(ic_json_number(ic_json_get(root, "big"), 0) == 9007199254740991.0);
    assert_string_equal(ic_json_string(ic_json_get(root, "s")), "a\xc3\xbc\n");
    assert_true(ic_json_bool(ic_json_get(root, "b"), false));
    assert_true(ic_json_is_null(ic_json_get(root, "z")));
    assert_true(ic_json_is_null(ic_json_get(root, "absent")));
    assert_null(ic_json_get(root, "N"));
    assert_null(ic_json_get(NULL, "N"));
    const ic_json *list = ic_json_get(root, "list");
    assert_true(ic_json_is_array(list));
    assert_null(ic_json_get(list, "n"));
    double sum = 0;
    for (const ic_json *v = ic_json_first(list); v; v = ic_json_next(v))
        sum += ic_json_number(v, 0);
    assert_true(sum == 6);
    assert_string_equal(ic_json_key(ic_json_first(root)), "n");
    assert_null(ic_json_first(ic_json_first(root)));
    assert_null(ic_json_string(list));
    assert_true(ic_json_number(list, 5) == 5);
    assert_true(ic_json_bool(list, true));
    assert_int_equal(ic_json_count(NULL), 0);
    ic_json_free(root);
    ic_json_free(NULL);
    assert_int_equal(ic_memory_live(), before);
}

static void test_json_errors(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "empty"},
        {"  ", "line 1"},
        {"{\"a\": 1,\n  \"b\": }", "line 2"},
        {"{\"a\": 1} x", "column 10 (byte 9): something follows"},
        {"[1, 2", "not valid JSON"},
        {"\"abc", "string without end"},
        {"\"abc\\", "string without end"},
        {"[\"a\nb\"]", "line 1, column 4 (byte 3): control character"},
        {"[\"a\\u0000b\"]", "0 character"},
        {"[1,]", "not valid JSON"},
        {"nul", "not valid JSON"},
        {"{1: 2}", "not valid JSON"},
        {"[\"\\ud800\"]", "not valid JSON"},
        {"]", "not valid JSON"},
    };
    for (size_t i = 0; i < IC_COUNT(cases); i++) {
        ic_json *root;
        const char *text = cases[i].text;
        /* The text must not be read beyond its size: no 0 byte follows it. */
        size_t size = strlen(text);
        char *copy = malloc(size ? size : 1);
        assert_non_null(copy);
        memcpy(copy, text, size);
        assert_int_equal(ic_json_parse(&root, copy, size, "test.json"), ICAE_EFORMAT);
        assert_null(root);
        assert_message("test.json");
        assert_message(cases[i].message);
        free(copy);
    }
    ic_json *root;
    assert_int_equal(ic_json_parse(&root, "[1]\0", 4, "test.json"), ICAE_EFORMAT);
    assert_int_equal(ic_json_parse(&root, "[\"\0\"]", 5, "test.json"), ICAE_EFORMAT);
}

static void test_json_depth(void **state)
{
    (void)state;
    static const size_t depths[] = {100000, 201, 200};
    for (size_t i = 0; i < IC_COUNT(depths); i++) {
        size_t n = depths[i];
        char *text = ic_alloc(2 * n, 1);
        assert_non_null(text);
        memset(text, '[', n);
        memset(text + n, ']', n);
        ic_json *root;
        int rc = ic_json_parse(&root, text, 2 * n, "deep.json");
        assert_int_equal(rc, n > 200 ? ICAE_EFORMAT : ICAE_OK);
        if (n > 200)
            assert_message("deep.json: line 1, column 201 (byte 200): JSON nested deeper");
        ic_json_free(root);
        ic_free(text);
    }
}

static void test_json_memory(void **state)
{
    (void)state;
    const char *text = "{\"a\": [1, {\"b\": \"c\"}], \"d\": null}";
    long before = ic_memory_live();
    for (long n = 0;; n++) {
        ic_json *root;
        ic_memory_fail_after(n);
        int rc = ic_json_parse(&root, text, strlen(text), "x");
        ic_memory_fail_after(-1);
        ic_json_free(root);
        assert_int_equal(ic_memory_live(), before);
        if (rc == ICAE_OK)
            break;
        assert_int_equal(rc, ICAE_ENOMEM);
        assert_true(n < 100);
    }
}

static void test_json_many(void **state)
{
    (void)state;
    ic_buffer b = {0};
    assert_int_equal(ic_buffer_add(&b, "{", 1), ICAE_OK);
    for (int i = 0; i < 100000; i++)
        assert_int_equal(ic_buffer_addf(&b, "%s\"k%d\":%d", i ? "," : "", i, i), ICAE_OK);
    assert_int_equal(ic_buffer_add(&b, "}", 1), ICAE_OK);
    ic_json *root = parse(b.data);
    double sum = 0;
    for (const ic_json *v = ic_json_first(root); v; v = ic_json_next(v))
        sum += ic_json_number(v, 0);
    assert_true(sum == 99999.0 * 50000);
    ic_json_free(root);
    ic_buffer_free(&b);
}

static void test_json_quote(void **state)
{
    (void)state;
    static const struct {
        const char *in;
        size_t size;
        const char *out;
    } cases[] = {
        {"plain", 5, "\"plain\""},
        {"", 0, "\"\""},
        {"a\"b\\c\n\r\t", 8, "\"a\\\"b\\\\c\\n\\r\\t\""},
        {"\x01\x1f\x7f", 3, "\"\\u0001\\u001f\\u007f\""},
        {"\0", 1, "\"\\u0000\""},
        {"\xc3\xbc\xf0\x9f\x98\x80", 6, "\"\xc3\xbc\xf0\x9f\x98\x80\""},
        {"a\xff\xe2\x82", 4, "\"a\xef\xbf\xbd\xef\xbf\xbd\""},
    };
    for (size_t i = 0; i < IC_COUNT(cases); i++) {
        ic_buffer b = {0};
        assert_int_equal(ic_json_quote(&b, cases[i].in, cases[i].size), ICAE_OK);
        assert_string_equal(b.data, cases[i].out);
        ic_buffer_free(&b);
    }
    /* What is written is read back. */
    char every[128];
    for (int i = 0; i < 127; i++)
        every[i] = (char)(i + 1);
    every[127] = 0;
    ic_buffer b = {0};
    assert_int_equal(ic_json_quote(&b, every, 127), ICAE_OK);
    ic_json *root = parse(b.data);
    assert_string_equal(ic_json_string(root), every);
    ic_json_free(root);
    ic_buffer_free(&b);
}

/* ---- random numbers, UTF-8 ------------------------------------------------------------------- */

static void test_random(void **state)
{
    (void)state;
    /* The published known answers of Philox 4x32-10. */
    static const struct {
        uint64_t index, stream, seed;
        uint32_t out[4];
    } cases[] = {
        {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {~0ull, ~0ull, ~0ull, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x85a308d3243f6a88,
         0x0370734413198a2e,
         0x299f31d0a4093822,
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < IC_COUNT(cases); i++) {
        uint32_t out[4];
        ic_random_block(out, cases[i].seed, cases[i].stream, cases[i].index);
        assert_memory_equal(out, cases[i].out, sizeof out);
    }
    enum { N = 200000 };
    double sum = 0, sum2 = 0, normal = 0, normal2 = 0, normal4 = 0;
    for (uint64_t i = 0; i < N; i++) {
        double u = ic_random_unit(1, IC_STREAM_SAMPLE, i);
        double z = ic_random_normal(1, IC_STREAM_INIT, i);
        assert_true(u >= 0 && u < 1 && isfinite(z));
        sum += u;
        sum2 += u * u;
        normal += z;
        normal2 += z * z;
        normal4 += z * z * z * z;
    }
    assert_true(fabs(sum / N - 0.5) < 0.003 && fabs(sum2 / N - 1.0 / 3) < 0.003);
    assert_true(fabs(normal / N) < 0.01 && fabs(normal2 / N - 1) < 0.015);
    assert_true(fabs(normal4 / N - 3) < 0.12);
}

static void test_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *s;
        size_t n;
        int length;
        uint32_t code;
    } cases[] = {
        {"a", 1, 1, 'a'},
        {"\0", 1, 1, 0},
        {"\xc2\x80", 2, 2, 0x80},
        {"\xdf\xbf", 2, 2, 0x7ff},
        {"\xe0\xa0\x80", 3, 3, 0x800},
        {"\xed\x9f\xbf", 3, 3, 0xd7ff},
        {"\xef\xbf\xbf", 3, 3, 0xffff},
        {"\xf0\x90\x80\x80", 4, 4, 0x10000},
        {"\xf4\x8f\xbf\xbf", 4, 4, 0x10ffff},
        {"\x80", 1, -1, 0xfffd},
        {"\xc0\x80", 2, -1, 0xfffd},
        {"\xc2", 1, -1, 0xfffd},
        {"\xc2g", 2, -1, 0xfffd},
        {"\xe0\x9f\x80", 3, -1, 0xfffd}, /* overlong */
        {"\xed\xa0\x80", 3, -1, 0xfffd}, /* surrogate */
        {"\xe2\x82", 2, -2, 0xfffd},
        {"\xe2\x82g", 3, -2, 0xfffd},
        {"\xf0\x9f\x98", 3, -3, 0xfffd},
        {"\xf0\x9f\x98g", 4, -3, 0xfffd},
        {"\xf4\x90\x80\x80", 4, -1, 0xfffd}, /* beyond U+10FFFF */
        {"\xf8\x88\x80\x80\x80", 5, -1, 0xfffd},
        {"\xff", 1, -1, 0xfffd},
        {"", 0, 0, 0xfffd},
    };
    for (size_t i = 0; i < IC_COUNT(cases); i++) {
        uint32_t code;
        assert_int_equal(ic_utf8_decode(&code, cases[i].s, cases[i].n), cases[i].length);
        assert_int_equal(code, cases[i].code);
    }
    for (uint32_t c = 0; c < 0x110000; c++) {
        char out[4];
        uint32_t back;
        int n = ic_utf8_encode(out, c), m = ic_utf8_decode(&back, out, (size_t)n);
        if (n != m || back != (c >= 0xd800 && c < 0xe000 ? 0xfffd : c))
            fail_msg("U+%04X comes back as U+%04X", c, back);
        for (int i = 1; i < n; i++) /* a beginning is not whole */
            assert_int_equal(ic_utf8_whole(out, (size_t)i), 0);
        assert_int_equal(ic_utf8_whole(out, (size_t)n), n);
    }
    static const struct {
        const char *s;
        size_t whole;
    } ends[] = {{"", 0},
                {"a\xe2\x82", 1},
                {"a\xe2", 1},
                {"a\xf0\x9f\x98", 1},
                {"a\x80\x80\x80", 4},
                {"a\xe0\x80", 3},
                {"a\xff", 2},
                {"\xf5\x80\x80", 3},
                {"a\xf0\x9f\x98\x80\x80", 6}};
    for (size_t i = 0; i < IC_COUNT(ends); i++)
        assert_int_equal(ic_utf8_whole(ends[i].s, strlen(ends[i].s)), ends[i].whole);
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
        cmocka_unit_test(test_error),        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_memory_fails), cmocka_unit_test(test_arena),
        cmocka_unit_test(test_buffer),       cmocka_unit_test(test_file_replace),
        cmocka_unit_test(test_file_errors),  cmocka_unit_test(test_file_pipe),
        cmocka_unit_test(test_path),         cmocka_unit_test(test_decompress),
        cmocka_unit_test(test_hash),         cmocka_unit_test(test_json),
        cmocka_unit_test(test_json_errors),  cmocka_unit_test(test_json_depth),
        cmocka_unit_test(test_json_memory),  cmocka_unit_test(test_json_many),
        cmocka_unit_test(test_json_quote),   cmocka_unit_test(test_random),
        cmocka_unit_test(test_utf8),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
