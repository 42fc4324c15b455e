/*
 * postgres.c - the store's database in PostgreSQL. The only file that includes libpq.
 *
 * Values travel in binary. Writers wait for each other at one advisory lock, so that what the store does
 * in a transaction is as safe as with SQLite's one writer. A connection that is lost marks itself
 * broken; the pool above makes a new one.
 */
#include "store/store.h"

#if ICAE_HAVE_POSTGRES

#include <inttypes.h>
#include <libpq-fe.h>
#include <stdio.h>
#include <string.h>

enum { STATEMENTS = 64, PARAMETERS = 20, COLUMNS = 32 };
enum { OID_BYTEA = 17, OID_INT8 = 20, OID_INT4 = 23, OID_TEXT = 25, OID_FLOAT8 = 701 };

/* The writers' lock: "icaestor" as a number. */
#define BEGIN \
    "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock(7593421857230418802)"

typedef struct postgres {
    ic_db db;
    PGconn *handle;
    char *kept[STATEMENTS]; /* statement i is prepared as "s<i>" */
    int kept_count;
} postgres;

/* ---- errors ----------------------------------------------------------------------------------- */

static int code_of(const char *state)
{
    static const struct {
        const char *state; /* the first letters */
        int code;
    } table[] = {
        {"08", ICAE_EUNAVAILABLE},    /* connection lost */
        {"57P", ICAE_EUNAVAILABLE},   /* shutting down, starting up */
        {"53300", ICAE_EUNAVAILABLE}, /* too many connections */
        {"55P03", ICAE_EUNAVAILABLE}, /* waited too long for a lock */
        {"57014", ICAE_EUNAVAILABLE}, /* took too long */
        {"25P", ICAE_EUNAVAILABLE},   /* transaction timed out */
        {"40", ICAE_EUNAVAILABLE},    /* deadlock, serialization */
        {"53100", ICAE_EFULL},        /* disk full */
        {"53200", ICAE_ENOMEM},       /* out of memory, there */
        {"54", ICAE_ELIMIT},          /* too large */
        {"XX001", ICAE_EFORMAT},      /* data corrupted */
        {"XX002", ICAE_EFORMAT},      /* index corrupted */
    };
    for (size_t i = 0; i < IC_COUNT(table); i++)
        if (strncmp(state, table[i].state, strlen(table[i].state)) == 0)
            return table[i].code;
    return ICAE_EIO;
}

/* libpq's messages have several lines. */
static const char *one_line(char out[400], const char *message)
{
    size_t n = 0;
    for (; *message && n < 399; message++)
        if (*message != '\n')
            out[n++] = *message;
        else if (message[1])
            out[n++] = ' ';
    out[n] = 0;
    return out;
}

static int failed(postgres *q, const PGresult *r)
{
    char line[400];
    const char *state = r ? PQresultErrorField(r, PG_DIAG_SQLSTATE) : NULL;
    const char *message = r ? PQresultErrorField(r, PG_DIAG_MESSAGE_PRIMARY) : NULL;
    int code = code_of(state ? state : "08");
    if (PQstatus(q->handle) == CONNECTION_BAD || (state && strncmp(state, "57P", 3) == 0)) {
        q->db.broken = true;
        code = ICAE_EUNAVAILABLE;
    }
    if (!message)
        message = PQerrorMessage(q->handle);
    const char *name = PQdb(q->handle);
    return ic_fail(code, "store in PostgreSQL database %.80s: %s", name ? name : "",
                   one_line(line, message));
}

/* ---- values ----------------------------------------------------------------------------------- */

static void put_big_endian(unsigned char out[8], uint64_t v)
{
    for (int i = 7; i >= 0; i--, v >>= 8)
        out[i] = (unsigned char)v;
}

static uint64_t get_big_endian(const char *data, int size)
{
    uint64_t v = 0;
    for (int i = 0; i < size; i++)
        v = v << 8 | (unsigned char)data[i];
    return v;
}

static Oid oid_of(const ic_value *v)
{
    return v->type == IC_INT    ? OID_INT8
           : v->type == IC_REAL ? OID_FLOAT8
           : v->type == IC_TEXT ? OID_TEXT
                                : OID_BYTEA;
}

static ic_value column(const PGresult *r, int row, int i)
{
    if (PQgetisnull(r, row, i))
        return (ic_value){0};
    const char *data = PQgetvalue(r, row, i);
    int size = PQgetlength(r, row, i);
    union {
        uint64_t u;
        double d;
    } x;
    switch (PQftype(r, i)) {
    case OID_INT4:
        return ic_db_int((int32_t)get_big_endian(data, size));
    case OID_INT8:
        return ic_db_int((int64_t)get_big_endian(data, size));
    case OID_FLOAT8:
        x.u = get_big_endian(data, size);
        return ic_db_real(x.d);
    case OID_TEXT:
        return (ic_value){.type = IC_TEXT, .data = data, .size = (size_t)size};
    case OID_BYTEA:
        return ic_db_bytes(data, (size_t)size);
    default:
        return (ic_value){0};
    }
}

/* ---- statements ------------------------------------------------------------------------------- */

static int script(ic_db *db, const char *sql)
{
    postgres *q = (postgres *)db;
    PGresult *r = PQexec(q->handle, sql);
    ExecStatusType status = PQresultStatus(r);
    int rc = status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK ? ICAE_OK : failed(q, r);
    PQclear(r);
    return rc;
}

static void forget(postgres *q)
{
    for (int i = 0; i < q->kept_count; i++)
        ic_free(q->kept[i]);
    q->kept_count = 0;
}

static int prepare(char name[8], postgres *q, const char *sql, const ic_value *v, int count)
{
    Oid types[PARAMETERS];
    int i = 0;
    while (i < q->kept_count && strcmp(q->kept[i], sql) != 0)
        i++;
    snprintf(name, 8, "s%d", i);
    if (i < q->kept_count)
        return ICAE_OK;
    if (count > PARAMETERS)
        return ic_fail(ICAE_ELIMIT, "a statement of %d parameters", count);
    if (i == STATEMENTS) {
        int rc = script(&q->db, "DEALLOCATE ALL");
        if (rc < 0)
            return rc;
        forget(q);
        snprintf(name, 8, "s0");
    }
    for (int p = 0; p < count; p++)
        types[p] = oid_of(&v[p]);
    char *copy = ic_strdup(sql);
    if (!copy)
        return ICAE_ENOMEM;
    PGresult *r = PQprepare(q->handle, name, sql, count, types);
    int rc = PQresultStatus(r) == PGRES_COMMAND_OK ? ICAE_OK : failed(q, r);
    PQclear(r);
    if (rc == ICAE_OK)
        q->kept[q->kept_count++] = copy;
    else
        ic_free(copy);
    return rc;
}

static PGresult *execute(postgres *q, const char *name, const ic_value *v, int count)
{
    const char *values[PARAMETERS];
    unsigned char numbers[PARAMETERS][8];
    int sizes[PARAMETERS], formats[PARAMETERS];
    for (int i = 0; i < count; i++) {
        union {
            uint64_t u;
            double d;
        } x = {(uint64_t)v[i].i};
        if (v[i].type == IC_REAL)
            x.d = v[i].r;
        bool number = v[i].type == IC_INT || v[i].type == IC_REAL;
        put_big_endian(numbers[i], x.u);
        values[i] = number ? (const char *)numbers[i] : v[i].data;
        sizes[i] = number ? 8 : (int)v[i].size;
        formats[i] = 1;
    }
    return PQexecPrepared(q->handle, name, count, values, sizes, formats, 1);
}

static int take_rows(const PGresult *r, ic_row_fn row, void *user)
{
    ic_value values[COLUMNS];
    int columns = IC_MIN(PQnfields(r), (int)COLUMNS), count = PQntuples(r), rc = ICAE_OK;
    for (int i = 0; row && i < count; i++) {
        for (int j = 0; j < columns; j++)
            values[j] = column(r, i, j);
        if ((rc = row(user, values, columns)) < 0)
            return rc;
    }
    return count;
}

/* "12" or "" for statements that change nothing */
static int changed(PGresult *r)
{
    int n = 0;
    for (const char *p = PQcmdTuples(r); *p >= '0' && *p <= '9' && n < INT32_MAX / 10 - 1; p++)
        n = n * 10 + (*p - '0');
    return n;
}

static int run(ic_db *db, const char *sql, const ic_value *parameters, int count, ic_row_fn row,
               void *user)
{
    postgres *q = (postgres *)db;
    char name[8];
    int rc = prepare(name, q, sql, parameters, count);
    if (rc < 0)
        return rc;
    PGresult *r = execute(q, name, parameters, count);
    if (PQresultStatus(r) == PGRES_TUPLES_OK)
        rc = take_rows(r, row, user);
    else if (PQresultStatus(r) == PGRES_COMMAND_OK)
        rc = changed(r);
    else
        rc = failed(q, r);
    PQclear(r);
    return rc;
}

/* ---- transactions ----------------------------------------------------------------------------- */

static void rollback(ic_db *db)
{
    postgres *q = (postgres *)db;
    if (db->broken)
        return;
    PGresult *r = PQexec(q->handle, "ROLLBACK");
    if (PQresultStatus(r) != PGRES_COMMAND_OK)
        db->broken = true;
    PQclear(r);
}

static int begin(ic_db *db)
{
    int rc = script(db, BEGIN);
    if (rc < 0)
        rollback(db);
    return rc;
}

/* A transaction that had an error answers COMMIT with ROLLBACK and no error. */
static int commit(ic_db *db)
{
    postgres *q = (postgres *)db;
    PGresult *r = PQexec(q->handle, "COMMIT");
    int rc = ICAE_OK;
    if (PQresultStatus(r) != PGRES_COMMAND_OK)
        rc = failed(q, r);
    else if (strcmp(PQcmdStatus(r), "COMMIT") != 0)
        rc = ic_fail(ICAE_EIO, "store: the database has undone the transaction");
    PQclear(r);
    return rc;
}

static void shrink(ic_db *db)
{
    (void)db; /* autovacuum's work */
}

/* ---- connections ------------------------------------------------------------------------------ */

static void disconnect(ic_db *db)
{
    postgres *q = (postgres *)db;
    forget(q);
    PQfinish(q->handle);
    ic_free(q);
}

static void say_nothing(void *user, const PGresult *r)
{
    (void)user;
    (void)r;
}

/* The guarantees that the store gives, whatever the server's defaults are. */
static int set_up(postgres *q, double timeout)
{
    char sql[400];
    PQsetNoticeReceiver(q->handle, say_nothing, NULL);
    int ms = (int)(timeout * 1000);
    snprintf(sql, sizeof sql,
             "SET synchronous_commit = on; SET default_transaction_read_only = off;"
             "SET lock_timeout = %d; SET idle_in_transaction_session_timeout = %d;"
             "SET client_min_messages = error",
             ms, ms + 30000);
    return script(&q->db, sql);
}

static int connect_server(ic_db **out, const char *url, double timeout)
{
    int rc = ICAE_OK;
    char seconds[16], line[400];
    postgres *q = ic_alloc(1, sizeof *q);
    if (!q)
        return ICAE_ENOMEM;
    q->db.driver = &ic_postgres;
    snprintf(seconds, sizeof seconds, "%d", IC_MAX((int)(timeout + 0.5), 2));
    /* What stands in the address counts more. */
    const char *names[] = {"client_encoding",  "connect_timeout", "fallback_application_name",
                           "tcp_user_timeout", "dbname",          NULL};
    const char *values[] = {"UTF8", seconds, "icae", "30000", url, NULL};
    q->handle = PQconnectdbParams(names, values, 1);
    if (!q->handle)
        rc = ic_fail(ICAE_ENOMEM, "no memory for a connection to the store");
    else if (PQstatus(q->handle) != CONNECTION_OK)
        rc = ic_fail(ICAE_EUNAVAILABLE, "cannot reach the store: %s",
                     one_line(line, PQerrorMessage(q->handle)));
    else
        rc = set_up(q, timeout);
    if (rc < 0)
        disconnect(&q->db);
    else
        *out = &q->db;
    return rc;
}

#else

static int connect_server(ic_db **out, const char *url, double timeout)
{
    (void)out;
    (void)url;
    (void)timeout;
    return ic_fail(ICAE_EUNSUPPORTED,
                   "store postgresql://...: this icae was built without PostgreSQL (libpq-dev)");
}

#endif

const ic_driver ic_postgres = {
    .name = "postgresql",
    .dialect = IC_POSTGRES,
    .exists = "SELECT COUNT(*) FROM pg_class WHERE oid = to_regclass('icae_store')",
    .connect = connect_server,
#if ICAE_HAVE_POSTGRES
    .disconnect = disconnect,
    .run = run,
    .script = script,
    .begin = begin,
    .commit = commit,
    .rollback = rollback,
    .shrink = shrink,
#endif
};
