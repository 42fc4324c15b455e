/*
 * bench_store.c - how long pages, puts and gets take with many contexts.
 *
 * usage: bench_store URL [CONTEXTS]     an empty store, which is filled
 */
#include "store/store.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 64, SLOTS = 32 };

static void need(int rc)
{
    if (rc >= 0)
        return;
    fprintf(stderr, "%s\n", icae_error_message());
    exit(1);
}

static icae_slots *make(int text)
{
    icae_slots *s;
    float row[WIDTH];
    char name[32];
    need(ic_slots_new(&s, WIDTH, SLOTS, 1, IC_BF16));
    for (int i = 0; i < SLOTS; i++) {
        for (int j = 0; j < WIDTH; j++)
            row[j] = (float)((text + i * 31 + j * 7) % 1000) / 500;
        ic_slots_put(s, (uint64_t)i, row, 1);
    }
    s->segment[0] = (ic_segment){.tokens = 4 * SLOTS, .slots = SLOTS};
    s->tokens = 4 * SLOTS;
    s->text_size = 500;
    s->rate = 4;
    s->span = 1000;
    memset(s->base, 'a', 64);
    memset(s->adapter, 'b', 64);
    snprintf(name, sizeof name, "%d", text);
    need(icae_sha256(s->text_sha256, name, strlen(name)));
    return s;
}

typedef struct filling {
    int first, count;
} filling;

/* Rows as put makes them, many in one transaction: what is measured comes after. */
static int fill(void *call, icae_store *s, ic_db *db)
{
    const filling *f = call;
    char id[40], key[65], owner[16], name[16];
    (void)s;
    for (int i = f->first; i < f->first + f->count; i++) {
        snprintf(id, sizeof id, "ctx_%032x", i + 1);
        snprintf(key, sizeof key, "%064x", i + 1);
        snprintf(owner, sizeof owner, "owner %d", i % 10);
        snprintf(name, sizeof name, "name %d", i % 1000);
        need(
            ic_run(db,
                   "INSERT INTO icae_blobs SELECT $1, sha256, size, $1, dtype, width, slots,"
                   " tokens, segments, text_size, rate, exact, measured, loss, accuracy,"
                   " exact_prefix, bytes FROM icae_blobs WHERE text_sha256 = $2",
                   NULL, NULL, ic_db_text(key),
                   ic_db_text("5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9")));
        need(ic_run(db,
                    "INSERT INTO icae_contexts SELECT $1, $2, $3, base, adapter, $4, 1, created,"
                    " used, 0 FROM icae_contexts ORDER BY id DESC LIMIT 1",
                    NULL, NULL, ic_db_text(id), ic_db_text(owner), ic_db_text(name),
                    ic_db_text(key)));
    }
    return ICAE_OK;
}

/* What autovacuum does by itself within a minute. */
static int settle(void *call, icae_store *s, ic_db *db)
{
    (void)call;
    (void)s;
    return db->driver == &ic_postgres ? db->driver->script(db, "VACUUM ANALYZE") : ICAE_OK;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void walk(icae_store *s, const char *what, icae_store_query q)
{
    static double ms[20000];
    char after[40] = "";
    size_t n = 1, pages = 0, total = 0;
    while (n > 0 && pages < IC_COUNT(ms)) {
        icae_context *page;
        q.after = after;
        double start = ic_seconds();
        need(icae_store_list(&page, &n, s, &q));
        ms[pages++] = 1000 * (ic_seconds() - start);
        if (n > 0)
            memcpy(after, page[n - 1].id, sizeof after);
        total += n;
        icae_free(page);
    }
    qsort(ms, pages, sizeof *ms, by_value);
    printf("%-28s %7zu contexts, %5zu pages: median %6.2f ms, worst %6.2f ms\n", what, total, pages,
           ms[pages / 2], ms[pages - 1]);
}

int main(int argc, char **argv)
{
    icae_store *s;
    icae_context c = {0};
    int count = argc > 2 ? atoi(argv[2]) : 100000, puts = 200;
    if (argc < 2) {
        fputs("usage: bench_store URL [CONTEXTS]\n", stderr);
        return 2;
    }
    need(icae_store_open(&s, argv[1], NULL));
    double start = ic_seconds();
    for (int i = 0; i < puts; i++) {
        icae_slots *slots = make(i);
        need(icae_store_put(&c, NULL, s, slots, NULL));
        icae_slots_free(slots);
    }
    printf("%-28s %.2f ms each\n", "put", 1000 * (ic_seconds() - start) / puts);
    start = ic_seconds();
    for (int i = 0; i < 1000; i++) {
        icae_slots *slots;
        need(icae_store_get(&slots, NULL, s, NULL, c.id, NULL));
        icae_slots_free(slots);
    }
    printf("%-28s %.2f ms each\n", "get", ic_seconds() - start);
    for (int i = 0; i < count; i += 1000)
        need(ic_store_write(s, fill, &(filling){i, IC_MIN(1000, count - i)}));
    need(ic_store_read(s, settle, NULL));
    walk(s, "list, 100 a page", (icae_store_query){.limit = 100});
    walk(s, "list, 1000 a page", (icae_store_query){.limit = 1000});
    walk(s, "list of an owner", (icae_store_query){.limit = 100, .owner = "owner 3"});
    walk(s, "list of a name", (icae_store_query){.limit = 100, .name = "name 77"});
    walk(s, "list of owner and base",
         (icae_store_query){.limit = 100, .owner = "owner 3", .base = c.base});
    walk(s, "list of an owner and a text",
         (icae_store_query){.limit = 100, .owner = "", .text_sha256 = c.text_sha256});
    icae_store_info info;
    start = ic_seconds();
    need(icae_store_describe(&info, s));
    printf("%-28s %.2f ms, %" PRIu64 " contexts\n", "stats", 1000 * (ic_seconds() - start),
           info.contexts);
    icae_store_close(s);
    return 0;
}
