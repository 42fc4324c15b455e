/*
 * test_store.c - what a store does, on both databases: contexts, sharing, expiry, quota, holds, lists,
 * damage. What happens to it from outside is in test_store_faults.c.
 */
#include "store_bed.h"

/* ---- put, get, remove ------------------------------------------------------------------------- */

static void test_round_trip(void **state)
{
    (void)state;
    icae_store *s = bed_open(NULL);
    icae_slots *slots = bed_slots(1, 9), *back = NULL;
    icae_context c, again;
    bool existed = true;
    char *data, *image;
    size_t size, image_size;
    assert_ok(icae_store_put(&c, &existed, s, slots, &(icae_put_options){"ann", "tea – 茶", 0}));
    assert_false(existed);
    assert_int_equal(strlen(c.id), 36);
    assert_string_equal(c.owner, "ann");
    assert_string_equal(c.name, "tea – 茶");
    assert_string_equal(c.base, slots->base);
    assert_string_equal(c.adapter, slots->adapter);
    assert_string_equal(c.text_sha256, slots->text_sha256);
    assert_string_equal(c.dtype, "bf16");
    assert_int_equal(c.version, 1);
    assert_true(c.created == bed_time && c.used == bed_time && c.expires == 0);
    assert_true(c.slots == 9 && c.tokens == 36 && c.segments == 3 && c.width == 16);
    assert_true(c.slot_bytes == 9 * 32 && c.text_size == 153 && (double)c.rate == 4.0);
    assert_true(!c.exact && !c.fidelity.measured && c.sharing == 1 && c.holds == 0);

    assert_ok(icae_store_get(&back, &again, s, "ann", c.id, NULL));
    assert_memory_equal(&again, &c, sizeof c);
    assert_int_equal(back->segments, 3);
    assert_memory_equal(back->values, slots->values, 9 * 32);
    assert_ok(icae_store_read(&data, &size, s, NULL, c.id)); /* exactly the .icae file */
    assert_ok(icae_slots_write(&image, &image_size, slots));
    assert_int_equal(size, image_size);
    assert_int_equal(size, c.bytes);
    assert_memory_equal(data, image, size);
    icae_free(data);
    icae_free(image);
    icae_slots_free(back);
    icae_slots_free(slots);

    assert_ok(icae_store_remove(s, "ann", c.id));
    assert_code(icae_store_remove(s, "ann", c.id), ICAE_ENOTFOUND);
    assert_code(icae_store_get(&back, NULL, s, NULL, c.id, NULL), ICAE_ENOTFOUND);
    assert_message(c.id);
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_blobs"), 0);
    assert_int_equal(bed_number("SELECT bytes FROM icae_store"), 0);
    icae_store_close(s);
}

/* What is told about slots: fidelity, int8, exactness. */
static void test_properties(void **state)
{
    (void)state;
    icae_store *s = bed_open(NULL);
    icae_slots *slots, *plain = bed_slots(2, 2), *back;
    icae_context c;
    float rows[2][16] = {{1, 2, 3}, {4, 5, 6}};
    assert_ok(ic_slots_new(&slots, 16, 2, 1, IC_I8));
    ic_slots_put(slots, 0, rows[0], 2);
    slots->segment[0] = (ic_segment){.tokens = 7, .slots = 2, .loss_sum = 1.75, .right = 6};
    slots->segment[0].prefix = 3;
    slots->prefix = 3;
    slots->measured = true;
    slots->tokens = 7;
    slots->text_size = 30;
    slots->rate = 3.5f;
    slots->span = 7;
    memcpy(slots->base, plain->base, 65);
    memcpy(slots->adapter, plain->adapter, 65);
    memcpy(slots->text_sha256, plain->text_sha256, 65);
    slots->doubtful = ic_alloc(1, sizeof *slots->doubtful);
    assert_ok(ic_exact_encode(&slots->corrections, (ic_correction[]){{3, 5}}, 1, "a", 1, "b", 1));
    assert_ok(icae_store_put(&c, NULL, s, slots, NULL));
    assert_string_equal(c.dtype, "int8");
    assert_true(c.slot_bytes == 2 * 20 && c.exact && (double)c.rate == 3.5);
    assert_true(c.fidelity.measured && c.fidelity.tokens == 7 && c.fidelity.exact_prefix == 3);
    assert_true(c.fidelity.loss == 0.25 && c.fidelity.accuracy == 6.0 / 7);
    assert_ok(icae_store_get(&back, &c, s, NULL, c.id, NULL));
    assert_true(back->measured && back->corrections.size == slots->corrections.size);
    assert_true(c.fidelity.loss == 0.25);
    icae_slots_free(back);
    /* the same text with other settings stands beside it */
    assert_ok(icae_store_put(&c, NULL, s, plain, NULL));
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_blobs"), 2);
    icae_slots_free(slots);
    icae_slots_free(plain);
    icae_store_close(s);
}

static void test_sharing(void **state)
{
    (void)state;
    icae_store *s = bed_open(NULL);
    icae_context a = bed_put(s, 1, 5, "ann", NULL, 0), b = bed_put(s, 1, 5, "bob", NULL, 0), c;
    icae_slots *slots = bed_slots(1, 5);
    bool existed;
    assert_string_not_equal(a.id, b.id);
    assert_int_equal(b.sharing, 2);
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_blobs"), 1);
    assert_int_equal(bed_number("SELECT bytes FROM icae_store"), (int64_t)a.bytes);
    assert_ok(icae_store_put(&c, &existed, s, slots, &(icae_put_options){.owner = "ann"}));
    assert_true(existed);
    assert_string_equal(c.id, a.id);
    assert_int_equal(c.sharing, 2);
    assert_ok(icae_store_put(&c, &existed, s, slots, &(icae_put_options){"ann", "again", 0}));
    assert_false(existed); /* under another name: another context */
    assert_int_equal(c.sharing, 3);
    icae_slots_free(slots);

    /* each sees its own only */
    assert_code(icae_store_find(&c, s, "bob", a.id), ICAE_ENOTFOUND);
    assert_code(icae_store_remove(s, "bob", a.id), ICAE_ENOTFOUND);
    assert_code(icae_store_find(&c, s, "", a.id), ICAE_ENOTFOUND);
    assert_ok(icae_store_find(&c, s, NULL, a.id));
    assert_ok(icae_store_remove(s, "ann", a.id));
    bed_assert_has(s, b.id, 1, 5);
    assert_ok(icae_store_find(&c, s, "bob", b.id));
    assert_int_equal(c.sharing, 2);
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_blobs"), 1);
    icae_store_close(s);
}

static void test_replace(void **state)
{
    (void)state;
    icae_store *s = bed_open(NULL);
    icae_context a = bed_put(s, 1, 4, "ann", "n", 0), b = bed_put(s, 1, 4, "bob", NULL, 0), c;
    icae_slots *longer = bed_slots(2, 8), *other = bed_slots(3, 4);
    memset(other->adapter, 'c', 64);
    assert_ok(icae_store_replace(&c, s, "ann", a.id, 1, longer));
    assert_true(c.version == 2 && c.slots == 8 && c.created == a.created);
    assert_string_equal(c.id, a.id);
    assert_string_equal(c.name, "n");
    bed_assert_has(s, a.id, 2, 8);
    bed_assert_has(s, b.id, 1, 4); /* who shares the old slots keeps them */
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_blobs"), 2);
    assert_code(icae_store_replace(&c, s, "ann", a.id, 1, longer), ICAE_EMISMATCH);
    assert_message("version 2, not 1");
    assert_code(icae_store_replace(&c, s, "bob", a.id, 2, longer), ICAE_ENOTFOUND);
    assert_code(icae_store_replace(&c, s, NULL, a.id, 2, other), ICAE_EMISMATCH);
    assert_message("bbbbbbbb");
    assert_message("cccccccc");
    assert_ok(icae_store_replace(&c, s, "ann", a.id, 2, longer)); /* the same again */
    assert_int_equal(c.version, 3);
    assert_ok(icae_store_replace(&c, s, "bob", b.id, 1, longer));
    assert_int_equal(c.sharing, 2);
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_blobs"), 1);
    assert_int_equal(bed_number("SELECT bytes FROM icae_store"), (int64_t)c.bytes);
    icae_slots_free(longer);
    icae_slots_free(other);
    icae_store_close(s);
}

/* ---- bad input -------------------------------------------------------------------------------- */

static void test_ids(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "ctx_",
                                      "ctx_' OR '1'='1",
                                      "../../etc/passwd",
                                      "ctx_0123456789abcdef0123456789abcdeg",
                                      "ctx_0123456789ABCDEF0123456789abcdef",
                                      "ctx_0123456789abcdef0123456789abcdef0",
                                      "xtx_0123456789abcdef0123456789abcdef",
                                      "ctx_%s%n",
                                      "\xff\xfe"};
    icae_store *s = bed_open(NULL);
    icae_context c, *page;
    icae_slots *slots = bed_slots(1, 1), *back;
    icae_holder *holders;
    char *data;
    size_t n;
    bed_put(s, 1, 1, "", NULL, 0);
    for (size_t i = 0; i < IC_COUNT(bad); i++) {
        assert_code(icae_store_find(&c, s, NULL, bad[i]), ICAE_ENOTFOUND);
        assert_code(icae_store_get(&back, &c, s, NULL, bad[i], NULL), ICAE_ENOTFOUND);
        assert_code(icae_store_read(&data, &n, s, NULL, bad[i]), ICAE_ENOTFOUND);
        assert_code(icae_store_remove(s, NULL, bad[i]), ICAE_ENOTFOUND);
        assert_code(icae_store_replace(&c, s, NULL, bad[i], 1, slots), ICAE_ENOTFOUND);
        assert_code(icae_store_hold(s, NULL, bad[i], "me", 9), ICAE_ENOTFOUND);
        assert_code(icae_store_release(s, bad[i], "me"), ICAE_ENOTFOUND);
        assert_code(icae_store_holders(&holders, &n, s, NULL, bad[i]), ICAE_ENOTFOUND);
        if (i > 0)
            assert_code(icae_store_list(&page, &n, s, &(icae_store_query){.after = bad[i]}),
                        ICAE_ENOTFOUND);
    }
    const char *unknown = "ctx_0123456789abcdef0123456789abcdef";
    assert_code(icae_store_find(&c, s, NULL, unknown), ICAE_ENOTFOUND);
    assert_message(unknown);
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_contexts"), 1);
    icae_slots_free(slots);
    icae_store_close(s);
}

static void test_labels(void **state)
{
    (void)state;
    icae_store *s = bed_open(NULL);
    icae_slots *slots = bed_slots(1, 1);
    icae_context c, *page;
    size_t n;
    char longest[300];
    memset(longest, 'x', sizeof longest);
    longest[256] = 0;
    static const char *const bad[] = {"\xff",    "a\nb",     "\xc3",
                                      "\x1b[2J", "\xc2\x9b", "\xed\xa0\x80"};
    for (size_t i = 0; i < IC_COUNT(bad); i++) {
        assert_code(icae_store_put(&c, NULL, s, slots, &(icae_put_options){"", bad[i], 0}),
                    ICAE_EINVAL);
        assert_code(icae_store_put(&c, NULL, s, slots, &(icae_put_options){bad[i], "", 0}),
                    ICAE_EINVAL);
    }
    assert_code(icae_store_put(&c, NULL, s, slots, &(icae_put_options){longest, "", 0}),
                ICAE_EINVAL);
    assert_message("64 bytes");
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_contexts"), 0);
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_blobs"), 0);
    /* what looks like SQL is a name as any other */
    static const char *const good[] = {"'); DROP TABLE icae_blobs; --", "%", "$1", "\"", "\\", "ß"};
    for (size_t i = 0; i < IC_COUNT(good); i++) {
        assert_ok(icae_store_put(&c, NULL, s, slots, &(icae_put_options){good[i], good[i], 0}));
        assert_string_equal(c.name, good[i]);
        assert_ok(
            icae_store_list(&page, &n, s, &(icae_store_query){.owner = good[i], .name = good[i]}));
        assert_int_equal(n, 1);
        icae_free(page);
    }
    assert_ok(icae_store_put(&c, NULL, s, slots, &(icae_put_options){"", longest, 0}));
    assert_string_equal(c.name, longest);
    slots->dtype = IC_F32; /* memory only */
    assert_code(icae_store_put(&c, NULL, s, slots, NULL), ICAE_EINVAL);
    slots->dtype = IC_BF16;
    icae_slots_free(slots);
    icae_store_close(s);
}

static void test_identity(void **state)
{
    (void)state;
    icae_store *s = bed_open(NULL);
    icae_context c = bed_put(s, 1, 3, "", NULL, 0);
    icae_model model = {.path = (char *)"the-base", .config = {.width = 16}};
    icae_adapter adapter = {.path = (char *)"the-adapter"};
    icae_session session = {.model = &model, .adapter = &adapter};
    icae_slots *back = NULL;
    memset(model.identity, 'a', 64);
    memset(adapter.identity, 'b', 64);
    assert_ok(icae_store_get(&back, NULL, s, NULL, c.id, &session));
    icae_slots_free(back);
    memset(adapter.identity, 'd', 64);
    assert_code(icae_store_get(&back, NULL, s, NULL, c.id, &session), ICAE_EMISMATCH);
    assert_message(c.id);
    assert_message("bbbbbbbb");
    assert_message("dddddddd");
    memset(model.identity, 'e', 64);
    assert_code(icae_store_get(&back, NULL, s, NULL, c.id, &session), ICAE_EMISMATCH);
    assert_message("aaaaaaaa");
    assert_message("eeeeeeee");
    icae_store_close(s);
}

/* Damage is found by whoever reads, named, hurts nothing else, and is mended by the next put. */
static void test_damage(void **state)
{
    (void)state;
    static const char *const damages[] = {
        "UPDATE icae_blobs SET bytes = CAST('short' AS BLOB) WHERE text_sha256 = '%s'",
        "UPDATE icae_blobs SET bytes = CAST('' AS BLOB) WHERE text_sha256 = '%s'",
        "UPDATE icae_blobs SET sha256 = 'nonsense' WHERE text_sha256 = '%s'"};
    icae_store *s = bed_open(NULL);
    icae_context a = bed_put(s, 1, 5, "ann", NULL, 0), c;
    icae_context b = bed_put(s, 2, 5, "ann", NULL, 0);
    icae_slots *slots = bed_slots(1, 5), *back;
    for (size_t i = 0; i < IC_COUNT(damages); i++) {
        char sql[256], *data;
        size_t size;
        snprintf(sql, sizeof sql, damages[i], a.text_sha256);
        char *type = strstr(sql, "BLOB)");
        if (type && bed.driver == &ic_postgres) {
            memmove(type + 1, type, strlen(type) + 1);
            memcpy(type, "BYTEA", 5);
        }
        bed_script(bed.url, sql);
        assert_code(icae_store_get(&back, NULL, s, NULL, a.id, NULL), ICAE_EFORMAT);
        assert_message(a.id);
        assert_code(icae_store_read(&data, &size, s, NULL, a.id), ICAE_EFORMAT);
        assert_message(a.id);
        bed_assert_has(s, b.id, 2, 5);
        assert_ok(icae_store_put(&c, NULL, s, slots, &(icae_put_options){.owner = "ann"}));
        assert_string_equal(c.id, a.id);
        bed_assert_has(s, a.id, 1, 5);
        assert_int_equal(bed_number("SELECT bytes FROM icae_store"),
                         bed_number("SELECT CAST(SUM(size) AS BIGINT) FROM icae_blobs"));
    }
    icae_slots_free(slots);
    icae_store_close(s);
}

/* ---- time and room ---------------------------------------------------------------------------- */

static void test_expiry(void **state)
{
    (void)state;
    icae_store *s = bed_open(NULL);
    icae_context a = bed_put(s, 1, 2, "", NULL, 100), b = bed_put(s, 2, 2, "", NULL, 0), c;
    icae_context *page;
    icae_gc_result gc;
    icae_store_info info;
    size_t n;
    assert_int_equal(a.expires, bed_time + 100);
    bed_time += 50;
    assert_ok(icae_store_gc(&gc, s, 0));
    assert_int_equal(gc.expired, 0);
    c = bed_put(s, 1, 2, "", NULL, 100); /* lives longer */
    assert_string_equal(c.id, a.id);
    assert_int_equal(c.expires, bed_time + 100);
    c = bed_put(s, 1, 2, "", NULL, 10); /* no shorter */
    assert_int_equal(c.expires, bed_time + 100);
    bed_time += 99;
    bed_assert_has(s, a.id, 1, 2);
    bed_time += 1;
    assert_code(icae_store_find(&c, s, NULL, a.id), ICAE_ENOTFOUND);
    assert_code(icae_store_remove(s, NULL, a.id), ICAE_ENOTFOUND);
    assert_ok(icae_store_list(&page, &n, s, NULL));
    assert_int_equal(n, 1);
    assert_string_equal(page[0].id, b.id);
    icae_free(page);
    assert_ok(icae_store_describe(&info, s));
    assert_true(info.contexts == 2 && info.expired == 1 && info.blobs == 2 && info.schema == 1);
    c = bed_put(s, 1, 2, "", NULL, 0); /* an expired one is not returned */
    assert_string_not_equal(c.id, a.id);
    assert_ok(icae_store_gc(&gc, s, 0));
    assert_true(gc.expired == 1 && gc.evicted == 0 && gc.bytes == 0);
    bed_assert_has(s, c.id, 1, 2);
    bed_assert_has(s, b.id, 2, 2);
    c = bed_put(s, 3, 2, "", NULL, UINT64_MAX);
    assert_int_equal(c.expires, 0);
    icae_store_close(s);
}

/* More than one batch. */
static void test_expiry_of_many(void **state)
{
    (void)state;
    icae_store *s = bed_open(NULL);
    icae_context a = bed_put(s, 1, 1, "", NULL, 10), b = bed_put(s, 2, 1, "", NULL, 0);
    icae_gc_result gc;
    ic_buffer sql = {0};
    assert_ok(ic_buffer_addf(
        &sql, "INSERT INTO icae_contexts SELECT v.column1, '', '', c.base, c.adapter,"
              " c.blob, 1, c.created, c.used, c.expires FROM icae_contexts c,"
              " (VALUES ('x')"));
    for (int i = 1; i < 600; i++)
        assert_ok(ic_buffer_addf(&sql, ", ('x%d')", i));
    assert_ok(ic_buffer_addf(&sql, ") v WHERE c.id = '%s'", a.id));
    bed_script(bed.url, sql.data);
    ic_buffer_free(&sql);
    bed_time += 10;
    assert_ok(icae_store_gc(&gc, s, 0));
    assert_true(gc.expired == 601 && gc.bytes == a.bytes);
    bed_assert_has(s, b.id, 2, 1);
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_blobs"), 1);
    assert_int_equal(bed_number("SELECT bytes FROM icae_store"), (int64_t)b.bytes);
    icae_store_close(s);
}

static void test_quota(void **state)
{
    (void)state;
    icae_store *s = bed_open(NULL);
    icae_context a = bed_put(s, 1, 20, "", NULL, 0), b = bed_put(s, 2, 20, "", NULL, 10), c;
    icae_slots *slots = bed_slots(3, 20), *huge = bed_slots(4, 400);
    icae_store_info info;
    icae_store_close(s);
    s = bed_open(&(icae_store_options){.quota = a.bytes + b.bytes + 10});
    assert_code(icae_store_put(&c, NULL, s, slots, NULL), ICAE_EFULL);
    assert_message("full");
    assert_code(icae_store_replace(&c, s, NULL, a.id, 1, huge), ICAE_EFULL);
    bed_assert_has(s, a.id, 1, 20);
    bed_assert_has(s, b.id, 2, 20);
    assert_ok(icae_store_describe(&info, s));
    assert_true(info.contexts == 2 && info.blobs == 2 && info.bytes == a.bytes + b.bytes);
    c = bed_put(s, 1, 20, "someone else", NULL, 0); /* takes no room */
    bed_time += 10;
    assert_ok(icae_store_put(&c, NULL, s, slots, NULL)); /* what has expired makes room */
    assert_code(icae_store_find(&b, s, NULL, b.id), ICAE_ENOTFOUND);
    icae_slots_free(slots);
    icae_slots_free(huge);
    icae_store_close(s);
}

static void test_eviction(void **state)
{
    (void)state;
    icae_store *s = bed_open(NULL);
    icae_context c[5], found;
    for (int i = 0; i < 4; i++, bed_time += 100)
        c[i] = bed_put(s, i, 20, "", NULL, 0);
    bed_assert_has(s, c[0].id, 0, 20); /* used just now */
    assert_ok(icae_store_hold(s, NULL, c[1].id, "server", 1000));
    icae_store_close(s);
    s = bed_open(&(icae_store_options){.quota = 4 * c[0].bytes + 10, .evict = true});
    c[4] = bed_put(s, 4, 20, "", NULL, 0);
    assert_code(icae_store_find(&found, s, NULL, c[2].id),
                ICAE_ENOTFOUND); /* the oldest not held */
    bed_assert_has(s, c[4].id, 4, 20);
    icae_slots *huge = bed_slots(9, 4000);
    assert_code(icae_store_put(&found, NULL, s, huge, NULL), ICAE_EFULL);
    icae_slots_free(huge);
    for (int i = 0; i < 5; i++) /* the failed put has removed nothing */
        assert_code(icae_store_find(&found, s, NULL, c[i].id), i == 2 ? ICAE_ENOTFOUND : ICAE_OK);

    icae_gc_result gc;
    assert_ok(icae_store_gc(&gc, s, 2 * c[0].bytes + 10));
    assert_true(gc.evicted == 2 && gc.bytes == 2 * c[0].bytes);
    bed_assert_has(s, c[1].id, 1, 20);
    bed_assert_has(s, c[4].id, 4, 20);
    assert_ok(icae_store_gc(&gc, s, 1)); /* what is held stays even so */
    assert_int_equal(gc.evicted, 1);
    bed_assert_has(s, c[1].id, 1, 20);
    icae_store_close(s);
}

static void test_holds(void **state)
{
    (void)state;
    icae_store *s = bed_open(NULL);
    icae_context a = bed_put(s, 1, 2, "ann", NULL, 10), c;
    icae_holder *h;
    icae_gc_result gc;
    icae_store_info info;
    size_t n;
    assert_ok(icae_store_hold(s, "ann", a.id, "one:1", 60));
    assert_ok(icae_store_hold(s, NULL, a.id, "one:1", 30));
    assert_ok(icae_store_hold(s, NULL, a.id, "two:2", 30));
    assert_code(icae_store_hold(s, "bob", a.id, "two:2", 30), ICAE_ENOTFOUND);
    assert_code(icae_store_hold(s, NULL, a.id, "two\n", 30), ICAE_EINVAL);
    assert_ok(icae_store_holders(&h, &n, s, NULL, a.id));
    assert_int_equal(n, 2);
    assert_string_equal(h[0].name, "one:1");
    assert_true(h[0].holds == 2 && h[0].expires == bed_time + 60 && h[1].holds == 1);
    icae_free(h);
    bed_time += 20; /* expired, but in use */
    assert_ok(icae_store_find(&c, s, NULL, a.id));
    assert_int_equal(c.holds, 3);
    assert_ok(icae_store_gc(&gc, s, 0));
    assert_int_equal(gc.expired, 0);
    assert_ok(icae_store_describe(&info, s));
    assert_true(info.held == 1 && info.expired == 0);
    assert_ok(icae_store_release(s, a.id, "one:1"));
    assert_ok(icae_store_release(s, a.id, "one:1"));
    assert_code(icae_store_release(s, a.id, "one:1"), ICAE_ENOTFOUND);
    assert_message("one:1");
    assert_ok(icae_store_find(&c, s, NULL, a.id));
    bed_time += 10; /* whoever died holding it */
    assert_code(icae_store_find(&c, s, NULL, a.id), ICAE_ENOTFOUND);
    assert_ok(icae_store_gc(&gc, s, 0));
    assert_int_equal(gc.expired, 1);
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_holds"), 0);
    a = bed_put(s, 1, 2, "ann", NULL, 0);
    assert_ok(icae_store_hold(s, NULL, a.id, "one:1", 60));
    assert_ok(icae_store_remove(s, "ann", a.id)); /* its owner may */
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_holds"), 0);
    icae_store_close(s);
}

/* ---- lists ------------------------------------------------------------------------------------ */

/* Walks all pages; returns how many contexts they had, each older than the one before. */
static size_t walk(icae_store *s, icae_store_query q)
{
    size_t total = 0, n;
    char last[40] = "";
    do {
        icae_context *page;
        q.after = last;
        assert_ok(icae_store_list(&page, &n, s, &q));
        assert_true(n <= (size_t)(q.limit ? q.limit : 100));
        for (size_t i = 0; i < n; i++) {
            assert_true(!*last || strcmp(page[i].id, last) < 0);
            strcpy(last, page[i].id);
            if (q.owner)
                assert_string_equal(page[i].owner, q.owner);
        }
        total += n;
        icae_free(page);
    } while (n > 0);
    return total;
}

/* A walk while nobody else is there: the count is the same. */
static size_t walk_and_count(icae_store *s, icae_store_query q)
{
    uint64_t count;
    size_t total = walk(s, q);
    assert_ok(icae_store_count(&count, s, &q));
    assert_int_equal(count, total);
    return total;
}

static void test_list(void **state)
{
    (void)state;
    icae_store *s = bed_open(NULL);
    char name[16];
    size_t n;
    icae_context *page, c = {0};
    assert_int_equal(walk_and_count(s, (icae_store_query){0}), 0);
    for (int i = 0; i < 130; i++) {
        snprintf(name, sizeof name, "name %d", i % 13);
        c = bed_put(s, i, 1, i % 2 ? "ann" : "bob", name, 0);
    }
    assert_int_equal(walk_and_count(s, (icae_store_query){0}), 130);
    assert_int_equal(walk_and_count(s, (icae_store_query){.limit = 7}), 130);
    assert_int_equal(walk_and_count(s, (icae_store_query){.limit = 1000}), 130);
    assert_int_equal(walk_and_count(s, (icae_store_query){.owner = "ann", .limit = 9}), 65);
    assert_int_equal(walk_and_count(s, (icae_store_query){.owner = "eve"}), 0);
    assert_int_equal(walk_and_count(s, (icae_store_query){.name = "name 3", .limit = 3}), 10);
    assert_int_equal(walk_and_count(s, (icae_store_query){.name = "name 3", .owner = "ann"}), 5);
    assert_int_equal(walk_and_count(s, (icae_store_query){.base = c.base, .adapter = c.adapter}),
                     130);
    assert_int_equal(walk_and_count(s, (icae_store_query){.base = c.adapter}), 0);
    assert_int_equal(walk_and_count(s, (icae_store_query){.adapter = c.base}), 0);
    assert_ok(icae_store_list(&page, &n, s,
                              &(icae_store_query){.text_sha256 = c.text_sha256,
                                                  .owner = c.owner,
                                                  .name = c.name,
                                                  .base = c.base,
                                                  .adapter = c.adapter}));
    assert_int_equal(n, 1);
    assert_memory_equal(page, &c, sizeof c);
    icae_free(page);
    /* every choice of conditions is a statement of its own; there are more than are kept */
    for (int i = 0; i < 128; i++) {
        icae_store_query q = {.owner = i & 1 ? c.owner : NULL,
                              .name = i & 2 ? c.name : NULL,
                              .base = i & 4 ? c.base : NULL,
                              .adapter = i & 8 ? c.adapter : NULL,
                              .text_sha256 = i & 16 ? c.text_sha256 : NULL,
                              .after = i & 32 ? c.id : NULL};
        assert_ok(icae_store_list(&page, &n, s, &q));
        assert_true(i & 32 ? n < 130 : n > 0);
        icae_free(page);
    }
    /* the cursor need not exist any more */
    assert_ok(icae_store_list(&page, &n, s, &(icae_store_query){.limit = 2}));
    assert_ok(icae_store_remove(s, NULL, page[0].id));
    assert_ok(icae_store_remove(s, NULL, page[1].id));
    icae_context *next;
    assert_ok(
        icae_store_list(&next, &n, s, &(icae_store_query){.after = page[1].id, .limit = 1000}));
    assert_int_equal(n, 128);
    icae_free(page);
    icae_free(next);
    assert_code(icae_store_list(&page, &n, s, &(icae_store_query){.limit = 1001}), ICAE_EINVAL);
    assert_code(icae_store_list(&page, &n, s, &(icae_store_query){.limit = -1}), ICAE_EINVAL);
    icae_store_close(s);
}

/* ---- threads ---------------------------------------------------------------------------------- */

enum { THREADS = 6, EACH = 20 };

typedef struct worker {
    icae_store *store;
    int number;
    char failure[300];
} worker;

/* Everything at once: own texts, one text of all, reads, lists, removals. */
static void *work(void *argument)
{
    worker *w = argument;
    char owner[16];
    snprintf(owner, sizeof owner, "owner %d", w->number);
    for (int i = 0; i < EACH && !w->failure[0]; i++) {
        icae_slots *own = bed_slots(1000 * (w->number + 1) + i, 3), *common = bed_slots(7, 3),
                   *back = NULL;
        icae_context a, b, *page = NULL;
        size_t n;
        int rc = icae_store_put(&a, NULL, w->store, own, &(icae_put_options){.owner = owner});
        if (rc == ICAE_OK)
            rc = icae_store_put(&b, NULL, w->store, common, &(icae_put_options){.owner = owner});
        if (rc == ICAE_OK)
            rc = icae_store_get(&back, NULL, w->store, owner, b.id, NULL);
        if (rc == ICAE_OK)
            rc = icae_store_list(&page, &n, w->store, &(icae_store_query){.owner = owner});
        if (rc == ICAE_OK)
            rc = icae_store_remove(w->store, owner, b.id);
        if (rc == ICAE_OK && i % 2)
            rc = icae_store_remove(w->store, owner, a.id);
        if (rc < 0)
            snprintf(w->failure, sizeof w->failure, "%s", icae_error_message());
        icae_free(page);
        icae_slots_free(back);
        icae_slots_free(own);
        icae_slots_free(common);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    icae_store *s = bed_open(&(icae_store_options){.connections = 3, .timeout = 60});
    pthread_t thread[THREADS];
    worker w[THREADS];
    for (int i = 0; i < THREADS; i++) {
        w[i] = (worker){.store = s, .number = i};
        assert_int_equal(pthread_create(&thread[i], NULL, work, &w[i]), 0);
    }
    size_t least = 0; /* what is there stays in every walk, whatever else comes and goes */
    for (int i = 0; i < 5; i++) {
        size_t n = walk(s, (icae_store_query){.limit = 5, .owner = "owner 0"});
        assert_true(n + 2 >= least); /* one of each kind may be about to go */
        least = n;
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(thread[i], NULL);
    for (int i = 0; i < THREADS; i++)
        if (w[i].failure[0])
            fail_msg("thread %d: %s", i, w[i].failure);
    assert_int_equal(walk(s, (icae_store_query){0}), THREADS * EACH / 2);
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_blobs"), THREADS * EACH / 2);
    assert_int_equal(bed_number("SELECT bytes FROM icae_store"),
                     bed_number("SELECT CAST(SUM(size) AS BIGINT) FROM icae_blobs"));
    icae_store_close(s);
}

/* ---- no memory -------------------------------------------------------------------------------- */

/* The n-th allocation fails, for every n: nothing leaks, nothing is half-stored, and it works after. */
static void test_no_memory(void **state)
{
    (void)state;
    icae_store *s = NULL;
    icae_slots *slots = bed_slots(1, 3), *back = NULL;
    icae_context c = {0}, *page = NULL;
    size_t count;
    long live = ic_memory_live();
    int rc;
    for (int call = 0; call < 5; call++) {
        long before = ic_memory_live(), n = 0;
        do {
            ic_memory_fail_after(n++);
            rc = call == 0   ? icae_store_open(&s, bed.url, NULL)
                 : call == 1 ? icae_store_put(&c, NULL, s, slots, NULL)
                 : call == 2 ? icae_store_get(&back, NULL, s, NULL, c.id, NULL)
                 : call == 3 ? icae_store_list(&page, &count, s, NULL)
                             : icae_store_remove(s, NULL, c.id);
            ic_memory_fail_after(-1);
            assert_true(rc == ICAE_OK || rc == ICAE_ENOMEM);
            /* statements that were prepared stay with their connection */
            if (rc < 0 && call == 0)
                assert_int_equal(ic_memory_live(), before);
        } while (rc < 0);
        if (call == 0)
            s->now = bed_now;
        icae_slots_free(back);
        back = NULL;
    }
    assert_int_equal(count, 1);
    icae_free(page);
    icae_store_close(s);
    assert_int_equal(ic_memory_live(), live);
    icae_slots_free(slots);
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_blobs"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_properties),
        cmocka_unit_test(test_sharing),    cmocka_unit_test(test_replace),
        cmocka_unit_test(test_ids),        cmocka_unit_test(test_labels),
        cmocka_unit_test(test_identity),   cmocka_unit_test(test_damage),
        cmocka_unit_test(test_expiry),     cmocka_unit_test(test_expiry_of_many),
        cmocka_unit_test(test_quota),      cmocka_unit_test(test_eviction),
        cmocka_unit_test(test_holds),      cmocka_unit_test(test_list),
        cmocka_unit_test(test_threads),    cmocka_unit_test(test_no_memory),
    };
    return bed_run(tests);
}
