/*
 * sqlite.c - the store's database as one SQLite file. The only file that includes sqlite3.h.
 *
 * Write-ahead log, so that readers never wait for the writer; synchronous FULL, so that what was
 * committed is on disk. The file may come from outside: schema tricks are switched off.
 */
#include "store/store.h"

#if ICAE_HAVE_SQLITE

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STATEMENTS = 64 };

typedef struct sqlite {
    ic_db db;
    sqlite3 *handle;
    char *path;
    struct {
        char *sql;
        sqlite3_stmt *statement;
    } kept[STATEMENTS]; /* prepared once */
    int kept_count;
} sqlite;

/* ---- errors ----------------------------------------------------------------------------------- */

/* `system`: errno as the call left it, which SQLite keeps for itself only sometimes. */
static int code_of(int error, int system)
{
    switch (error & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return ICAE_EUNAVAILABLE;
    case SQLITE_FULL:
        return ICAE_EFULL;
    case SQLITE_NOMEM:
        return ICAE_ENOMEM;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return ICAE_EFORMAT;
    case SQLITE_TOOBIG:
        return ICAE_ELIMIT;
    case SQLITE_CANTOPEN:
        return system == ENOENT || system == ENOTDIR ? ICAE_ENOTFOUND : ICAE_EIO;
    default:
        return system == ENOSPC || system == EDQUOT || system == EFBIG ? ICAE_EFULL : ICAE_EIO;
    }
}

static int failed(const sqlite *q, int error)
{
    return ic_fail(code_of(error, errno), "store %.300s: %.300s", q->path,
                   q->handle ? sqlite3_errmsg(q->handle) : sqlite3_errstr(error));
}

/* ---- statements ------------------------------------------------------------------------------- */

static int script(ic_db *db, const char *sql)
{
    sqlite *q = (sqlite *)db;
    int error = sqlite3_exec(q->handle, sql, NULL, NULL, NULL);
    return error == SQLITE_OK ? ICAE_OK : failed(q, error);
}

static void forget(sqlite *q)
{
    for (int i = 0; i < q->kept_count; i++) {
        sqlite3_finalize(q->kept[i].statement);
        ic_free(q->kept[i].sql);
    }
    q->kept_count = 0;
}

static int prepare(sqlite3_stmt **out, sqlite *q, const char *sql)
{
    for (int i = 0; i < q->kept_count; i++) {
        if (strcmp(q->kept[i].sql, sql) == 0) {
            *out = q->kept[i].statement;
            return ICAE_OK;
        }
    }
    if (q->kept_count == STATEMENTS)
        forget(q);
    char *copy = ic_strdup(sql);
    if (!copy)
        return ICAE_ENOMEM;
    int error = sqlite3_prepare_v3(q->handle, sql, -1, SQLITE_PREPARE_PERSISTENT, out, NULL);
    if (error != SQLITE_OK) {
        ic_free(copy);
        return failed(q, error);
    }
    q->kept[q->kept_count].sql = copy;
    q->kept[q->kept_count++].statement = *out;
    return ICAE_OK;
}

static int bind(sqlite3_stmt *statement, int number, const ic_value *v)
{
    char name[] = {'$', (char)('0' + number / 10), (char)('0' + number % 10), 0};
    if (number < 10)
        memmove(name + 1, name + 2, 2);
    int at = sqlite3_bind_parameter_index(statement, name);
    if (at == 0)
        return SQLITE_OK; /* this statement does not use it */
    switch (v->type) {
    case IC_INT:
        return sqlite3_bind_int64(statement, at, v->i);
    case IC_REAL:
        return sqlite3_bind_double(statement, at, v->r);
    case IC_TEXT:
        return sqlite3_bind_text64(statement, at, v->data, v->size, SQLITE_STATIC, SQLITE_UTF8);
    case IC_BYTES:
        return sqlite3_bind_blob64(statement, at, v->data, v->size, SQLITE_STATIC);
    default:
        return sqlite3_bind_null(statement, at);
    }
}

static ic_value column(sqlite3_stmt *statement, int i)
{
    switch (sqlite3_column_type(statement, i)) {
    case SQLITE_INTEGER:
        return ic_db_int(sqlite3_column_int64(statement, i));
    case SQLITE_FLOAT:
        return ic_db_real(sqlite3_column_double(statement, i));
    case SQLITE_TEXT: {
        ic_value v = {.type = IC_TEXT, .data = sqlite3_column_text(statement, i)};
        v.size = (size_t)sqlite3_column_bytes(statement, i);
        return v.data ? v : (ic_value){0};
    }
    case SQLITE_BLOB: {
        ic_value v = {.type = IC_BYTES, .data = sqlite3_column_blob(statement, i)};
        v.size = (size_t)sqlite3_column_bytes(statement, i);
        return v.data ? v : (ic_value){0};
    }
    default:
        return (ic_value){0};
    }
}

enum { COLUMNS = 32 };

/* Steps through the rows; *count of them. A negative answer of `row` is *stopped. */
static int step(sqlite3_stmt *statement, ic_row_fn row, void *user, int *count, int *stopped)
{
    ic_value values[COLUMNS];
    int columns = IC_MIN(sqlite3_column_count(statement), (int)COLUMNS), error;
    while ((error = sqlite3_step(statement)) == SQLITE_ROW) {
        for (int i = 0; i < columns; i++)
            values[i] = column(statement, i);
        ++*count;
        if (row && (*stopped = row(user, values, columns)) < 0)
            return SQLITE_OK;
    }
    return error == SQLITE_DONE ? SQLITE_OK : error;
}

static int run(ic_db *db, const char *sql, const ic_value *parameters, int parameter_count,
               ic_row_fn row, void *user)
{
    sqlite *q = (sqlite *)db;
    sqlite3_stmt *statement;
    int rc = prepare(&statement, q, sql), error = SQLITE_OK, count = 0, stopped = 0;
    if (rc < 0)
        return rc;
    for (int i = 0; i < parameter_count && error == SQLITE_OK; i++)
        error = bind(statement, i + 1, &parameters[i]);
    if (error == SQLITE_OK)
        error = step(statement, row, user, &count, &stopped);
    if (error != SQLITE_OK)
        rc = failed(q, error);
    sqlite3_reset(statement); /* repeats the error that is already known */
    sqlite3_clear_bindings(statement);
    if (rc < 0 || stopped < 0)
        return rc < 0 ? rc : stopped;
    return sqlite3_column_count(statement) ? count : sqlite3_changes(q->handle);
}

/* ---- transactions ----------------------------------------------------------------------------- */

static int begin(ic_db *db)
{
    return script(db, "BEGIN IMMEDIATE");
}

static int commit(ic_db *db)
{
    return script(db, "COMMIT");
}

static void rollback(ic_db *db)
{
    sqlite *q = (sqlite *)db;
    /* Some errors have rolled back already. */
    if (!sqlite3_get_autocommit(q->handle) &&
        sqlite3_exec(q->handle, "ROLLBACK", NULL, NULL, NULL) != SQLITE_OK)
        db->broken = true;
}

static void shrink(ic_db *db)
{
    sqlite *q = (sqlite *)db;
    sqlite3_exec(q->handle, "PRAGMA incremental_vacuum", NULL, NULL, NULL);
    sqlite3_wal_checkpoint_v2(q->handle, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
}

/* ---- connections ------------------------------------------------------------------------------ */

static void disconnect(ic_db *db)
{
    sqlite *q = (sqlite *)db;
    forget(q);
    sqlite3_close_v2(q->handle);
    ic_free(q->path);
    ic_free(q);
}

/* The file is the owner's only: contexts are what people wrote. The log gets the same rights. Returns
 * whether the file is still empty. */
static bool create(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    bool empty = fd >= 0 && fstat(fd, &st) == 0 && st.st_size == 0;
    if (fd >= 0)
        close(fd);
    return empty;
}

/* SQLite does not wait here for others that do the same, whatever its timeout. */
static int use_log(sqlite *q, double timeout)
{
    double until = ic_seconds() + timeout;
    int error;
    while ((error = sqlite3_exec(q->handle, "PRAGMA journal_mode = WAL", NULL, NULL, NULL)) ==
               SQLITE_BUSY &&
           ic_seconds() < until)
        sqlite3_sleep(5);
    return error == SQLITE_OK ? ICAE_OK : failed(q, error);
}

static int set_up(sqlite *q, bool empty, double timeout)
{
    int rc = ICAE_OK;
    sqlite3_db_config(q->handle, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(q->handle, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    if (empty) /* it is a write, which a full disk must not be asked for */
        IC_TRY(script(&q->db, "PRAGMA auto_vacuum = INCREMENTAL"));
    IC_TRY(use_log(q, timeout));
    IC_TRY(script(&q->db, "PRAGMA synchronous = FULL;"
                          "PRAGMA foreign_keys = ON;"
                          "PRAGMA cell_size_check = ON;"
                          "PRAGMA journal_size_limit = 67108864"));
done:
    return rc;
}

static int connect_file(ic_db **out, const char *path, double timeout)
{
    int rc = ICAE_ENOMEM;
    if (!*path)
        return ic_fail(ICAE_EINVAL, "a store needs a path or a postgresql:// address");
    sqlite *q = ic_alloc(1, sizeof *q);
    if (!q)
        return ICAE_ENOMEM;
    q->db.driver = &ic_sqlite;
    /* A name that SQLite would not take for a file's is one here. */
    q->path = ic_format("%s%s", *path == ':' ? "./" : "", path);
    if (!q->path)
        goto done;
    bool empty = create(q->path);
    int error =
        sqlite3_open_v2(q->path, &q->handle, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
    if (error != SQLITE_OK) {
        rc = failed(q, error);
        goto done;
    }
    sqlite3_extended_result_codes(q->handle, 1);
    sqlite3_busy_timeout(q->handle, (int)(timeout * 1000));
    IC_TRY(set_up(q, empty, timeout));
    *out = &q->db;
    return ICAE_OK;
done:
    disconnect(&q->db);
    return rc;
}

#else

static int connect_file(ic_db **out, const char *path, double timeout)
{
    (void)out;
    (void)timeout;
    return ic_fail(ICAE_EUNSUPPORTED,
                   "store %.300s: this icae was built without SQLite (libsqlite3-dev)", path);
}

#endif

const ic_driver ic_sqlite = {
    .name = "sqlite",
    .dialect = IC_SQLITE,
    .exists = "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'icae_store'",
    .connect = connect_file,
#if ICAE_HAVE_SQLITE
    .disconnect = disconnect,
    .run = run,
    .script = script,
    .begin = begin,
    .commit = commit,
    .rollback = rollback,
    .shrink = shrink,
#endif
};
