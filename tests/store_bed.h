/*
 * store_bed.h - what tests of the store stand on: both databases, fresh stores, slots of any size.
 *
 * The PostgreSQL server is the tests' own (postgres.sh). A test runs once for each database: `bed` says
 * which. To be included once, by a test program.
 */
#ifndef STORE_BED_H
#define STORE_BED_H

#include "store/store.h"

#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef struct test_bed {
    const ic_driver *driver;
    char folder[64];  /* all files of this program */
    char server[160]; /* address of the PostgreSQL server; "" if there is none */
    char url[256];    /* of the store that the running test has for itself */
    int stores;
} test_bed;

static test_bed bed;
static int64_t bed_time; /* what stores that bed_open opened take for the time */

static int64_t bed_now(void)
{
    return bed_time;
}

static void assert_message(const char *part)
{
    if (!strstr(icae_error_message(), part))
        fail_msg("message '%s' does not say '%s'", icae_error_message(), part);
}

static void assert_ok(int rc)
{
    if (rc < 0)
        fail_msg("%d: %s", rc, icae_error_message());
}

static void assert_code(int rc, int expected)
{
    if (rc != expected)
        fail_msg("returned %d, expected %d: %s", rc, expected, rc < 0 ? icae_error_message() : "");
}

/* ---- the server ------------------------------------------------------------------------------- */

/* Runs postgres.sh; its first line of output to `line` (may be NULL). Returns its exit status. */
static int bed_server(const char *verb, const char *more, char line[160])
{
    char command[512], ignored[160];
    snprintf(command, sizeof command, "bash '%s/postgres.sh' %s '%s/pg' %s%s%s", ICAE_TEST_DIR,
             verb, bed.folder, more ? "'" : "", more ? more : "", more ? "'" : "");
    FILE *f = popen(command, "r");
    assert_non_null(f);
    if (!line)
        line = ignored;
    line[0] = 0;
    if (fgets(line, 160, f))
        line[strcspn(line, "\n")] = 0;
    int status = pclose(f);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* False: there are no server programs on this machine. */
static bool bed_start_server(void)
{
    int status = bed_server("start", NULL, bed.server);
    if (status == 77)
        printf("SKIPPED: PostgreSQL: its server programs are not installed (postgresql)\n");
    else if (status != 0)
        exit(1);
    return status == 0;
}

/* Statements on a database behind the store's back. */
static void bed_script(const char *url, const char *sql)
{
    ic_db *db;
    assert_ok(bed.driver->connect(&db, url, 5));
    assert_ok(bed.driver->script(db, sql));
    bed.driver->disconnect(db);
}

static int64_t bed_number(const char *sql)
{
    ic_db *db;
    int64_t number = -1;
    assert_ok(bed.driver->connect(&db, bed.url, 5));
    assert_ok(bed.driver->run(db, sql, NULL, 0, ic_row_int, &number));
    bed.driver->disconnect(db);
    return number;
}

/* ---- stores ----------------------------------------------------------------------------------- */

/* A place where there is no store yet. */
static void bed_fresh(void)
{
    int n = bed.stores++;
    if (bed.driver == &ic_sqlite) {
        snprintf(bed.url, sizeof bed.url, "%s/store%d.db", bed.folder, n);
    } else {
        char sql[64];
        snprintf(sql, sizeof sql, "CREATE DATABASE store%d TEMPLATE template0", n);
        bed_script(bed.server, sql);
        snprintf(bed.url, sizeof bed.url, "postgresql://icae@/store%d?host=%s/pg", n, bed.folder);
    }
}

static icae_store *bed_open(const icae_store_options *options)
{
    icae_store *s;
    assert_ok(icae_store_open(&s, bed.url, options));
    s->now = bed_now;
    return s;
}

/* ---- slots ------------------------------------------------------------------------------------ */

/* Slots of text number `text`: `count` of width 16 in segments of at most 4. */
static icae_slots *bed_slots(int text, uint64_t count)
{
    icae_slots *s;
    uint32_t segments = (uint32_t)((count + 3) / 4);
    float row[16];
    char name[32];
    assert_ok(ic_slots_new(&s, 16, count, segments, IC_BF16));
    for (uint64_t i = 0; i < count; i++) {
        for (int j = 0; j < 16; j++)
            row[j] = (float)((text * 7 + (int)i * 3 + j) % 100) / 10;
        ic_slots_put(s, i, row, 1);
    }
    for (uint32_t i = 0; i < segments; i++) {
        uint32_t n = (uint32_t)IC_MIN(4, count - 4 * i);
        s->segment[i] = (ic_segment){.tokens = 4 * n, .slots = n};
    }
    s->tokens = 4 * count;
    s->text_size = 17 * count;
    s->rate = 4;
    s->span = 1000;
    memset(s->base, 'a', 64);
    memset(s->adapter, 'b', 64);
    snprintf(name, sizeof name, "text %d", text);
    assert_ok(icae_sha256(s->text_sha256, name, strlen(name)));
    return s;
}

static icae_context bed_put(icae_store *s, int text, uint64_t count, const char *owner,
                            const char *name, uint64_t ttl)
{
    icae_context c;
    icae_slots *slots = bed_slots(text, count);
    assert_ok(icae_store_put(&c, NULL, s, slots, &(icae_put_options){owner, name, ttl}));
    icae_slots_free(slots);
    return c;
}

/* That the store has these very slots under the id. */
static void bed_assert_has(icae_store *s, const char *id, int text, uint64_t count)
{
    icae_slots *slots = bed_slots(text, count), *back;
    assert_ok(icae_store_get(&back, NULL, s, NULL, id, NULL));
    assert_int_equal(back->count, count);
    assert_string_equal(back->text_sha256, slots->text_sha256);
    assert_memory_equal(back->values, slots->values, count * 32);
    icae_slots_free(back);
    icae_slots_free(slots);
}

/* ---- running ---------------------------------------------------------------------------------- */

static void bed_remove(const char *folder)
{
    char command[256];
    snprintf(command, sizeof command, "umount '%s/small' 2>/dev/null; rm -rf '%s'", folder, folder);
    assert_int_equal(system(command), 0);
}

/* All tests on both databases; returns the number of failures. */
#define bed_run(tests) (bed_begin(), bed_end(bed_run_tests(tests, IC_COUNT(tests))))

static void bed_begin(void)
{
    strcpy(bed.folder, "/tmp/icae-store-XXXXXX");
    /* the database server may be another user, in a folder of its own below */
    if (!mkdtemp(bed.folder) || chmod(bed.folder, 0711) < 0)
        exit(1);
}

static int bed_end(int failures)
{
    if (bed.server[0])
        bed_server("crash", NULL, NULL); /* the fastest */
    bed_remove(bed.folder);
    return failures;
}

static int bed_setup(void **state)
{
    (void)state;
    bed_time = 1700000000;
    bed_fresh();
    return 0;
}

static int bed_run_tests(const struct CMUnitTest *tests, size_t count)
{
    int failures = 0;
    struct CMUnitTest *own = calloc(count, sizeof *own);
    if (!own)
        return 1;
    for (size_t i = 0; i < count; i++) {
        own[i] = tests[i];
        own[i].setup_func = bed_setup;
    }
    bed.driver = &ic_sqlite;
    if (ic_sqlite.run) /* built in */
        failures += _cmocka_run_group_tests("sqlite", own, count, NULL, NULL);
    bed.driver = &ic_postgres;
    if (ic_postgres.run && bed_start_server())
        failures += _cmocka_run_group_tests("postgresql", own, count, NULL, NULL);
    free(own);
    return failures;
}

#endif
