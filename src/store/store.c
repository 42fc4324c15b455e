/*
 * store.c - the handle of a store: which database, its connections, transactions.
 *
 * Owns the pool of connections. Knows nothing of contexts (context.c, put.c, gc.c).
 */
#include "store/store.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

ic_value ic_db_text(const char *s)
{
    return (ic_value){.type = IC_TEXT, .data = s, .size = strlen(s)};
}

int ic_row_int(void *i64, const ic_value *row, int columns)
{
    if (columns < 1 || row[0].type != IC_INT)
        return ic_fail(ICAE_EFORMAT, "the store gives something else where a number was expected");
    *(int64_t *)i64 = row[0].i;
    return ICAE_OK;
}

int ic_row_key(void *key, const ic_value *row, int columns)
{
    if (columns < 1 || row[0].type != IC_TEXT || row[0].size != IC_KEY - 1)
        return ic_fail(ICAE_EFORMAT, "the store gives something else where a key was expected");
    memcpy(key, row[0].data, IC_KEY);
    return ICAE_OK;
}

/* ---- connections ------------------------------------------------------------------------------ */

/* An idle connection, or a new one, or what another thread gives back. */
static int acquire(ic_db **out, icae_store *s)
{
    pthread_mutex_lock(&s->lock);
    while (!s->idle && s->connections >= s->options.connections)
        pthread_cond_wait(&s->returned, &s->lock);
    *out = s->idle;
    if (*out)
        s->idle = (*out)->next;
    else
        s->connections++;
    pthread_mutex_unlock(&s->lock);
    if (*out)
        return ICAE_OK;
    int rc = s->driver->connect(out, s->url, s->options.timeout);
    if (rc < 0) {
        pthread_mutex_lock(&s->lock);
        s->connections--;
        pthread_cond_signal(&s->returned);
        pthread_mutex_unlock(&s->lock);
    }
    return rc;
}

static void give_back(icae_store *s, ic_db *db)
{
    bool keep = !db->broken;
    if (!keep)
        s->driver->disconnect(db);
    pthread_mutex_lock(&s->lock);
    if (keep) {
        db->used = true;
        db->next = s->idle;
        s->idle = db;
    } else {
        s->connections--;
    }
    pthread_cond_signal(&s->returned);
    pthread_mutex_unlock(&s->lock);
}

/* *begun: the body may have had an effect. */
static int attempt(ic_db *db, icae_store *s, ic_store_fn body, void *call, bool write, bool *begun)
{
    int rc = write ? s->driver->begin(db) : ICAE_OK;
    *begun = write && rc == ICAE_OK;
    if (rc == ICAE_OK)
        rc = body(call, s, db);
    if (!*begun)
        return rc;
    int committed = rc < 0 ? rc : s->driver->commit(db);
    if (committed < 0)
        s->driver->rollback(db);
    return committed < 0 ? committed : rc;
}

/* A database that was restarted has broken all idle connections: each is found out when it is used, and
 * the next taken, until one works or a new one does not. */
static int run(icae_store *s, ic_store_fn body, void *call, bool write)
{
    for (;;) {
        ic_db *db;
        bool begun, again;
        int rc = acquire(&db, s);
        if (rc < 0)
            return rc;
        rc = attempt(db, s, body, call, write, &begun);
        again = rc == ICAE_EUNAVAILABLE && db->broken && db->used && !begun;
        give_back(s, db);
        if (!again)
            return rc;
    }
}

int ic_store_read(icae_store *s, ic_store_fn body, void *call)
{
    return run(s, body, call, false);
}

int ic_store_write(icae_store *s, ic_store_fn body, void *call)
{
    return run(s, body, call, true);
}

/* ---- open and close --------------------------------------------------------------------------- */

static int64_t clock_now(void)
{
    return (int64_t)time(NULL);
}

/* Makes the folders above a file that is icae's own. */
static void make_folders(char *path)
{
    for (char *p = path + 1; (p = strchr(p, '/')); p++) {
        *p = 0;
        mkdir(path, 0700); /* what does not work shows when the file is opened */
        *p = '/';
    }
}

static char *default_url(void)
{
    const char *url = getenv("ICAE_STORE"), *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    char *path;
    if (url && *url)
        return ic_strdup(url);
    if (data && data[0] == '/')
        path = ic_format("%s/icae/store.db", data);
    else
        path = ic_format("%s/.local/share/icae/store.db", home && *home ? home : ".");
    if (path)
        make_folders(path);
    return path;
}

static const ic_driver *driver_of(const char *url)
{
    bool postgres = strncmp(url, "postgresql://", 13) == 0 || strncmp(url, "postgres://", 11) == 0;
    return postgres ? &ic_postgres : &ic_sqlite;
}

static int migrate(void *call, icae_store *s, ic_db *db)
{
    (void)call;
    (void)s;
    return ic_schema_migrate(db, ic_schema, ic_schema_version);
}

int icae_store_open(icae_store **out, const char *url, const icae_store_options *options)
{
    int rc = ICAE_ENOMEM;
    icae_store *s = ic_alloc(1, sizeof *s);
    if (!s)
        return ICAE_ENOMEM;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->returned, NULL);
    s->now = clock_now;
    if (options)
        s->options = *options;
    if (s->options.connections <= 0)
        s->options.connections = 4;
    if (!(s->options.timeout > 0))
        s->options.timeout = 5;
    s->options.timeout = IC_MIN(s->options.timeout, 3600);
    s->url = url ? ic_strdup(url) : default_url();
    if (!s->url)
        goto done;
    s->driver = driver_of(s->url);
    IC_TRY(ic_store_read(s, migrate, NULL));
    *out = s;
    s = NULL;
done:
    icae_store_close(s);
    return rc;
}

void icae_store_close(icae_store *s)
{
    if (!s)
        return;
    while (s->idle) {
        ic_db *next = s->idle->next;
        s->driver->disconnect(s->idle);
        s->idle = next;
    }
    pthread_cond_destroy(&s->returned);
    pthread_mutex_destroy(&s->lock);
    ic_free(s->url);
    ic_free(s);
}

static int ping(void *call, icae_store *s, ic_db *db)
{
    (void)s;
    return db->driver->run(db, "SELECT schema FROM icae_store", NULL, 0, ic_row_int, call);
}

int icae_store_ping(icae_store *s)
{
    int64_t schema;
    int rc = ic_store_read(s, ping, &schema);
    return rc < 0 ? rc : ICAE_OK;
}
