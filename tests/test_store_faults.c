/*
 * test_store_faults.c - what happens to a store from outside, on both databases: killed writers, full
 * disks, databases that are gone, busy, old, new, or none.
 */
#include "store_bed.h"

#include <sys/mount.h>
#include <sys/resource.h>

static void pause_ms(int ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

static void assert_consistent(void)
{
    assert_int_equal(bed_number("SELECT bytes FROM icae_store"),
                     bed_number("SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) FROM icae_blobs"));
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_blobs WHERE key NOT IN"
                                " (SELECT blob FROM icae_contexts)"),
                     0);
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_contexts WHERE blob NOT IN"
                                " (SELECT key FROM icae_blobs)"),
                     0);
    if (bed.driver == &ic_sqlite) {
        assert_int_equal(bed_number("SELECT COUNT(*) FROM pragma_integrity_check"
                                    " WHERE integrity_check <> 'ok'"),
                         0);
        assert_int_equal(bed_number("SELECT COUNT(*) FROM pragma_foreign_key_check"), 0);
    }
}

/* ---- killed writers --------------------------------------------------------------------------- */

enum { PUT, REPLACED, REMOVED };

/* What a writer was told to be done. */
typedef struct done {
    char id[IC_ID];
    int what, text;
} done;

enum { SLOTS = 50, OTHER = 1 << 20 };

static void tell(int fd, const char *id, int what, int text)
{
    done d = {.what = what, .text = text};
    memcpy(d.id, id, strlen(id) + 1);
    if (write(fd, &d, sizeof d) != (ssize_t)sizeof d)
        _exit(1);
}

/* Puts, replaces and removes until it is killed, or its database is; tells what is done. */
static void write_for_ever(int fd, int first)
{
    icae_store *s;
    icae_context c;
    if (icae_store_open(&s, bed.url, NULL) < 0) {
        fprintf(stderr, "%s\n", icae_error_message());
        _exit(2);
    }
    for (int i = first;; i++) {
        icae_slots *slots = bed_slots(i, SLOTS), *longer = bed_slots(OTHER + i, 2 * SLOTS);
        if (icae_store_put(&c, NULL, s, slots, NULL) < 0) {
            fprintf(stderr, "%s\n", icae_error_message());
            _exit(3);
        }
        tell(fd, c.id, PUT, i);
        if (i % 3 == 1) {
            if (icae_store_replace(&c, s, NULL, c.id, 1, longer) < 0)
                _exit(4);
            tell(fd, c.id, REPLACED, i);
        } else if (i % 3 == 2) {
            if (icae_store_remove(s, NULL, c.id) < 0)
                _exit(5);
            tell(fd, c.id, REMOVED, i);
        }
        icae_slots_free(slots);
        icae_slots_free(longer);
    }
}

/* `last`: nothing was told after it, so that what comes next may be done or not. */
static void check_done(icae_store *s, const done *d, bool last)
{
    icae_context c;
    int rc = icae_store_find(&c, s, NULL, d->id);
    bool removed = d->what == REMOVED, replaced = d->what == REPLACED;
    if (last && d->what == PUT && d->text % 3 == 2)
        removed = rc == ICAE_ENOTFOUND;
    if (last && d->what == PUT && d->text % 3 == 1)
        replaced = rc == ICAE_OK && c.version == 2;
    assert_code(rc, removed ? ICAE_ENOTFOUND : ICAE_OK);
    if (!removed)
        bed_assert_has(s, d->id, replaced ? OTHER + d->text : d->text,
                       replaced ? 2 * SLOTS : SLOTS);
}

/* One life of a writer, `ms` long, which ends by its own death or that of its database. */
static size_t one_life(int round, int ms, bool crash)
{
    static done told[20000];
    size_t count = 0;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        write_for_ever(ends[1], round * 100000);
    }
    close(ends[1]);
    /* the life begins with the first thing done */
    assert_int_equal(read(ends[0], &told[count++], sizeof *told), sizeof *told);
    pause_ms(ms);
    if (crash)
        assert_int_equal(bed_server("crash", NULL, NULL), 0);
    else
        kill(child, SIGKILL);
    while (count < IC_COUNT(told) && read(ends[0], &told[count], sizeof *told) == sizeof *told)
        count++;
    close(ends[0]);
    waitpid(child, NULL, 0);
    if (crash)
        assert_int_equal(bed_server("start", NULL, NULL), 0);

    icae_store *s = bed_open(NULL);
    for (size_t i = 0; i < count; i++)
        if (i + 1 == count || strcmp(told[i].id, told[i + 1].id) != 0)
            check_done(s, &told[i], i + 1 == count);
    icae_store_close(s);
    assert_consistent();
    return count;
}

static void test_killed(void **state)
{
    (void)state;
    uint64_t seed = 1;
    size_t done_in_all = 0;
    icae_store_close(bed_open(NULL));
    for (int round = 0; round < 15; round++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        done_in_all += one_life(round, (int)(seed >> 33) % 60, false);
    }
    for (int round = 15; round < 18 && bed.driver == &ic_postgres; round++)
        done_in_all += one_life(round, 50, true);
    printf("           %zu acknowledged, all there\n", done_in_all);
}

/* ---- no room ---------------------------------------------------------------------------------- */

/* Puts until there is no room, then looks whether all that was put is there. */
static void fill(icae_store *s, int first, uint64_t count, int expected)
{
    icae_context c, last = {0};
    int rc = ICAE_OK, n = 0;
    for (; rc == ICAE_OK && n < 100; n++) {
        icae_slots *slots = bed_slots(first + n, count);
        rc = icae_store_put(&c, NULL, s, slots, NULL);
        icae_slots_free(slots);
        if (rc == ICAE_OK)
            last = c;
    }
    assert_code(rc, expected);
    assert_true(n > 1);
    bed_assert_has(s, last.id, first + n - 2, count);
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_contexts"), n - 1);
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_blobs"), n - 1);
}

static void test_file_limit(void **state)
{
    (void)state;
    struct rlimit old, small;
    icae_store *s;
    icae_context *page;
    size_t n;
    if (bed.driver == &ic_postgres) { /* the server's files, not ours */
        assert_int_equal(bed_server("stop", NULL, NULL), 0);
        assert_int_equal(bed_server("start", "12000", NULL), 0);
        s = bed_open(NULL);
        fill(s, 1, 50000, ICAE_EIO); /* the server does not say that it is the room */
    } else {
        s = bed_open(NULL);
        signal(SIGXFSZ, SIG_IGN);
        assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
        small = old;
        small.rlim_cur = 1 << 20;
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        fill(s, 1, 5000, ICAE_EFULL);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
        signal(SIGXFSZ, SIG_DFL);
    }
    assert_ok(icae_store_list(&page, &n, s, NULL));
    bed_assert_has(s, page[n - 1].id, 1, page[n - 1].slots);
    assert_ok(icae_store_remove(s, NULL, page[0].id)); /* this gives room */
    icae_free(page);
    if (bed.driver == &ic_postgres) {
        icae_store_close(s);
        assert_int_equal(bed_server("stop", NULL, NULL), 0);
        assert_int_equal(bed_server("start", NULL, NULL), 0);
        s = bed_open(NULL);
    }
    icae_context c = bed_put(s, 999, 5000, "", NULL, 0);
    bed_assert_has(s, c.id, 999, 5000);
    icae_store_close(s);
    assert_consistent();
}

/* Gives PostgreSQL's new tables a place of their own, which belongs to its user. */
static void use_tablespace(const char *place)
{
    char sql[256];
    struct stat user;
    snprintf(sql, sizeof sql, "%s/pg/data", bed.folder);
    assert_int_equal(stat(sql, &user), 0);
    assert_int_equal(chown(bed.folder, user.st_uid, user.st_gid), 0);
    assert_int_equal(chown(place, user.st_uid, user.st_gid), 0);
    snprintf(sql, sizeof sql, "CREATE TABLESPACE small LOCATION '%s'", place);
    bed_script(bed.server, sql);
    snprintf(sql, sizeof sql, "ALTER DATABASE store%d SET default_tablespace = small",
             bed.stores - 1);
    bed_script(bed.server, sql);
}

/* A file system of its own that is full; only root may make one. */
static void test_full_disk(void **state)
{
    (void)state;
    char place[100], other[120];
    snprintf(place, sizeof place, "%s/small", bed.folder);
    assert_int_equal(mkdir(place, 0700), 0);
    if (mount("none", place, "tmpfs", 0, "size=2m") < 0) {
        rmdir(place);
        skip();
    }
    if (bed.driver == &ic_sqlite)
        snprintf(bed.url, sizeof bed.url, "%s/store.db", place);
    else
        use_tablespace(place);
    snprintf(other, sizeof other, "%s/other", place);
    FILE *f = fopen(other, "wb");
    assert_non_null(f);
    for (int i = 0; i < 300 << 10; i++)
        fputc('x', f);
    fclose(f);
    icae_store *s = bed_open(NULL);
    fill(s, 1, 2000, ICAE_EFULL);
    icae_context *page;
    size_t n;
    assert_ok(icae_store_list(&page, &n, s, NULL)); /* it can still be read */
    icae_free(page);
    remove(other);
    icae_context c = bed_put(s, 999, 2000, "", NULL, 0);
    bed_assert_has(s, c.id, 999, 2000);
    icae_store_close(s);
    assert_consistent();
    if (bed.driver == &ic_postgres) {
        char sql[64];
        snprintf(sql, sizeof sql, "DROP DATABASE store%d", bed.stores - 1);
        bed_script(bed.server, sql);
        bed_script(bed.server, "DROP TABLESPACE small");
    }
    umount(place);
    rmdir(place);
}

/* ---- versions of the tables ------------------------------------------------------------------- */

/* Several programs meet a store that is not there yet, or old: all can work with it. */
static void test_migrated_at_once(void **state)
{
    (void)state;
    enum { PROGRAMS = 5 };
    for (int round = 0; round < 3; round++) {
        pid_t child[PROGRAMS];
        int gate[2], status;
        bed_fresh();
        assert_int_equal(pipe(gate), 0);
        for (int i = 0; i < PROGRAMS; i++) {
            if ((child[i] = fork()) != 0)
                continue;
            char c;
            icae_store *s;
            icae_context context;
            icae_slots *slots = bed_slots(i, 3);
            close(gate[1]);
            (void)!read(gate[0], &c, 1); /* until the parent closes it */
            if (icae_store_open(&s, bed.url, &(icae_store_options){.timeout = 60}) < 0 ||
                icae_store_put(&context, NULL, s, slots, NULL) < 0) {
                fprintf(stderr, "%s\n", icae_error_message());
                _exit(1);
            }
            _exit(0);
        }
        close(gate[0]);
        close(gate[1]);
        for (int i = 0; i < PROGRAMS; i++) {
            waitpid(child[i], &status, 0);
            assert_int_equal(status, 0);
        }
        assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_contexts"), PROGRAMS);
        assert_int_equal(bed_number("SELECT schema FROM icae_store"), ic_schema_version);
    }
}

#define NEXT   "ALTER TABLE icae_contexts ADD COLUMN colour BIGINT NOT NULL DEFAULT 7"
#define BROKEN "CREATE TABLE icae_extra (a BIGINT); INSERT INTO icae_nowhere VALUES (1)"

/* The steps we have, and one that is yet to come. */
static void test_versions(void **state)
{
    (void)state;
    enum { MOST = 8 };
    ic_schema_step steps[MOST] = {0};
    int known = ic_schema_version;
    ic_db *db;
    assert_true(known + 1 < MOST);
    memcpy(steps, ic_schema, (size_t)known * sizeof *steps);
    icae_store *s = bed_open(NULL), *refused;
    icae_context c = bed_put(s, 1, 2, "", NULL, 0);

    /* a step that fails leaves the store as it was */
    steps[known] = (ic_schema_step){{BROKEN, BROKEN}};
    assert_ok(bed.driver->connect(&db, bed.url, 5));
    assert_true(ic_schema_migrate(db, steps, known + 1) < 0);
    assert_message("icae_nowhere");
    assert_int_equal(bed_number("SELECT schema FROM icae_store"), known);
    bed_assert_has(s, c.id, 1, 2);

    steps[known] = (ic_schema_step){{NEXT, NEXT}};
    assert_ok(ic_schema_migrate(db, steps, known + 1));
    assert_ok(ic_schema_migrate(db, steps, known + 1)); /* once */
    bed.driver->disconnect(db);
    assert_int_equal(bed_number("SELECT schema FROM icae_store"), known + 1);
    assert_int_equal(bed_number("SELECT colour FROM icae_contexts"), 7);
    assert_int_equal(bed_number("SELECT COUNT(*) FROM icae_blobs"), 1);
    icae_store_close(s);

    assert_code(icae_store_open(&refused, bed.url, NULL), ICAE_EUNSUPPORTED);
    assert_message("use a newer icae");
    bed_script(bed.url, "UPDATE icae_store SET schema = -1");
    assert_code(icae_store_open(&refused, bed.url, NULL), ICAE_EUNSUPPORTED);
}

/* A store as the first version made it, before the current steps. */
static void test_from_the_first(void **state)
{
    (void)state;
    ic_db *db;
    assert_ok(bed.driver->connect(&db, bed.url, 5));
    assert_ok(ic_schema_migrate(db, ic_schema, 1));
    bed.driver->disconnect(db);
    icae_store *s = bed_open(NULL);
    icae_context c = bed_put(s, 1, 2, "", NULL, 0);
    bed_assert_has(s, c.id, 1, 2);
    assert_int_equal(bed_number("SELECT schema FROM icae_store"), ic_schema_version);
    icae_store_close(s);
}

/* ---- gone and back ---------------------------------------------------------------------------- */

/* Uses so many connections at once, so that they are idle afterwards. */
static int nest(void *call, icae_store *s, ic_db *db)
{
    int *depth = call;
    (void)db;
    return --*depth > 0 ? ic_store_read(s, nest, depth) : ICAE_OK;
}

static void test_gone_and_back(void **state)
{
    (void)state;
    if (bed.driver != &ic_postgres)
        skip();
    icae_store *s = bed_open(NULL), *other;
    icae_context c = bed_put(s, 1, 2, "", NULL, 0), found;
    icae_slots *slots = bed_slots(2, 2), *back;
    int depth = 4;
    assert_ok(ic_store_read(s, nest, &depth));
    assert_int_equal(s->connections, 4);

    /* connections that died while idle are replaced, unseen */
    bed_script(bed.server, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                           " WHERE pid <> pg_backend_pid() AND datname LIKE 'store%'");
    assert_ok(icae_store_put(&found, NULL, s, slots, NULL));
    depth = 4;
    assert_ok(ic_store_read(s, nest, &depth));
    bed_script(bed.server, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                           " WHERE pid <> pg_backend_pid() AND datname LIKE 'store%'");
    bed_assert_has(s, c.id, 1, 2);

    for (int round = 0; round < 2; round++) {
        assert_int_equal(bed_server(round ? "crash" : "stop", NULL, NULL), 0);
        assert_code(icae_store_ping(s), ICAE_EUNAVAILABLE);
        assert_code(icae_store_find(&found, s, NULL, c.id), ICAE_EUNAVAILABLE);
        assert_code(icae_store_get(&back, NULL, s, NULL, c.id, NULL), ICAE_EUNAVAILABLE);
        assert_code(icae_store_put(&found, NULL, s, slots, NULL), ICAE_EUNAVAILABLE);
        assert_code(icae_store_gc(NULL, s, 0), ICAE_EUNAVAILABLE);
        assert_code(icae_store_open(&other, bed.url, NULL), ICAE_EUNAVAILABLE);
        assert_int_equal(s->connections, 0);
        assert_int_equal(bed_server("start", NULL, NULL), 0);
        assert_ok(icae_store_ping(s));
        bed_assert_has(s, c.id, 1, 2);
        assert_ok(icae_store_put(&found, NULL, s, slots, NULL));
    }
    icae_slots_free(slots);
    icae_store_close(s);
    assert_consistent();
}

/* Another program keeps the writers' lock for too long. */
static void test_busy(void **state)
{
    (void)state;
    icae_store *s = bed_open(&(icae_store_options){.timeout = 0.2});
    icae_context c = bed_put(s, 1, 2, "", NULL, 0), found;
    icae_slots *slots = bed_slots(2, 2);
    ic_db *db;
    assert_ok(bed.driver->connect(&db, bed.url, 5));
    assert_ok(bed.driver->begin(db));
    assert_code(icae_store_put(&found, NULL, s, slots, NULL), ICAE_EUNAVAILABLE);
    assert_code(icae_store_remove(s, NULL, c.id), ICAE_EUNAVAILABLE);
    bed_assert_has(s, c.id, 1, 2); /* readers do not care */
    bed.driver->rollback(db);
    assert_ok(icae_store_put(&found, NULL, s, slots, NULL));
    bed.driver->disconnect(db);
    icae_slots_free(slots);
    icae_store_close(s);
}

/* ---- no store --------------------------------------------------------------------------------- */

static void test_no_store(void **state)
{
    (void)state;
    icae_store *s;
    char path[300];
    if (bed.driver == &ic_postgres) {
        snprintf(path, sizeof path, "postgresql://icae:secret@/nowhere?host=%s/pg", bed.folder);
        assert_code(icae_store_open(&s, path, NULL), ICAE_EUNAVAILABLE);
        assert_message("nowhere");
        assert_null(strstr(icae_error_message(), "secret"));
        assert_true(icae_store_open(&s, "postgresql://%zz", NULL) < 0);
        assert_true(icae_store_open(&s, "postgresql://127.0.0.1:1/x", NULL) < 0);
        return;
    }
    assert_code(icae_store_open(&s, "", NULL), ICAE_EINVAL);
    snprintf(path, sizeof path, "%s/no/folder/store.db", bed.folder);
    assert_code(icae_store_open(&s, path, NULL), ICAE_ENOTFOUND);
    assert_message(path);
    assert_true(icae_store_open(&s, bed.folder, NULL) < 0);
    FILE *f = fopen(bed.url, "wb");
    for (int i = 0; i < 1000; i++)
        fputs("This is no database. ", f);
    fclose(f);
    assert_code(icae_store_open(&s, bed.url, NULL), ICAE_EFORMAT);
    assert_message(bed.url);
    /* a name that SQLite would take for a database in memory */
    assert_int_equal(chdir(bed.folder), 0);
    assert_ok(icae_store_open(&s, ":memory:", NULL));
    icae_store_close(s);
    struct stat st;
    assert_int_equal(stat(":memory:", &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600); /* nobody else reads it */
    assert_int_equal(chdir("/"), 0);
}

/* Without an address: $ICAE_STORE, or a file among the user's data. */
static void test_default_place(void **state)
{
    (void)state;
    icae_store *s;
    char path[200];
    if (bed.driver != &ic_sqlite)
        skip();
    unsetenv("ICAE_STORE");
    setenv("XDG_DATA_HOME", bed.folder, 1);
    assert_ok(icae_store_open(&s, NULL, NULL));
    icae_store_close(s);
    snprintf(path, sizeof path, "%s/icae/store.db", bed.folder);
    assert_int_equal(access(path, R_OK), 0);
    setenv("ICAE_STORE", bed.url, 1);
    assert_ok(icae_store_open(&s, NULL, NULL));
    icae_store_close(s);
    assert_int_equal(access(bed.url, R_OK), 0);
    unsetenv("ICAE_STORE");
    unsetenv("XDG_DATA_HOME");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_killed),        cmocka_unit_test(test_file_limit),
        cmocka_unit_test(test_full_disk),     cmocka_unit_test(test_migrated_at_once),
        cmocka_unit_test(test_versions),      cmocka_unit_test(test_from_the_first),
        cmocka_unit_test(test_gone_and_back), cmocka_unit_test(test_busy),
        cmocka_unit_test(test_no_store),      cmocka_unit_test(test_default_place),
    };
    return bed_run(tests);
}
