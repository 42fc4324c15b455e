/*
 * store.h - inside the slot store: a database as the store sees it, and the store's handle.
 *
 * The two drivers (sqlite.c, postgres.c) only connect, run statements and translate errors. What the
 * tables mean, and every statement, is above them: both databases take the same text.
 */
#ifndef IC_STORE_H
#define IC_STORE_H

#include "core/core.h"

#include <pthread.h>

/* ---- a database (sqlite.c, postgres.c) -------------------------------------------------------- */

/* A value of a row or of a parameter. */
typedef struct ic_value {
    enum { IC_NULL, IC_INT, IC_REAL, IC_TEXT, IC_BYTES } type;
    int64_t i;
    double r;
    const void *data; /* IC_TEXT: followed by a 0 byte */
    size_t size;
} ic_value;

static inline ic_value ic_db_int(int64_t i)
{
    return (ic_value){.type = IC_INT, .i = i};
}

static inline ic_value ic_db_real(double r)
{
    return (ic_value){.type = IC_REAL, .r = r};
}

static inline ic_value ic_db_bytes(const void *data, size_t size)
{
    return (ic_value){.type = IC_BYTES, .data = data, .size = size};
}

ic_value ic_db_text(const char *s);

/* Takes one row, whose values are borrowed until it returns; negative ends the statement. */
typedef int (*ic_row_fn)(void *user, const ic_value *row, int columns);

enum { IC_SQLITE, IC_POSTGRES }; /* dialects of the statements that make tables */

typedef struct ic_db ic_db; /* one connection; one thread at a time */

/* Errors: ICAE_EUNAVAILABLE gone or busy, ICAE_EFULL no room on disk, ICAE_EFORMAT damaged, ICAE_EIO
 * else; the message names the database without its password. */
typedef struct ic_driver {
    const char *name;
    int dialect;
    const char *exists; /* a statement that counts tables called icae_store */
    int (*connect)(ic_db **out, const char *url, double timeout);
    void (*disconnect)(ic_db *db);
    /* One statement with parameters $1 …; rows go to `row` if it is not NULL. Returns how many rows
     * it gave or changed. */
    int (*run)(ic_db *db, const char *sql, const ic_value *parameters, int count, ic_row_fn row,
               void *user);
    int (*script)(ic_db *db, const char *sql); /* several, without parameters */
    int (*begin)(ic_db *db);                   /* a transaction of the only writer */
    int (*commit)(ic_db *db);                  /* when it returns, all is on disk */
    void (*rollback)(ic_db *db);               /* keeps the error message */
    void (*shrink)(ic_db *db); /* gives free pages back to the file system; may do nothing */
} ic_driver;

struct ic_db {
    const ic_driver *driver;
    ic_db *next; /* idle connections of a store */
    bool used;   /* has worked before: if it is broken now, a new one may do */
    bool broken; /* of no use any more */
};

extern const ic_driver ic_sqlite, ic_postgres;

#define ic_run(db, sql, row, user, ...)                         \
    (db)->driver->run(db, sql, (const ic_value[]){__VA_ARGS__}, \
                      (int)IC_COUNT(((const ic_value[]){__VA_ARGS__})), row, user)

/* Row functions: the first column as an int64_t, or as a key into char[IC_KEY]. */
int ic_row_int(void *i64, const ic_value *row, int columns);
int ic_row_key(void *key, const ic_value *row, int columns);

/* ---- the handle (store.c) --------------------------------------------------------------------- */

struct icae_store {
    const ic_driver *driver;
    char *url;
    icae_store_options options;
    int64_t (*now)(void); /* seconds since 1970; tests set it */
    pthread_mutex_t lock; /* of the rest */
    pthread_cond_t returned;
    ic_db *idle;
    int connections; /* idle and in use */
};

/* What a call does with a connection. */
typedef int (*ic_store_fn)(void *call, icae_store *s, ic_db *db);
/* Runs `body`: in a transaction of the only writer, which is kept if it returns 0 or more, or outside
 * one. A connection that broke while idle is replaced, unseen by the caller. */
int ic_store_read(icae_store *s, ic_store_fn body, void *call);
int ic_store_write(icae_store *s, ic_store_fn body, void *call);

/* ---- tables (schema.c) ------------------------------------------------------------------------ */

/* Step i leads from version i to version i + 1; one text for each dialect. */
typedef struct ic_schema_step {
    const char *sql[2];
} ic_schema_step;

extern const ic_schema_step ic_schema[];
extern const int ic_schema_version;

/* Brings the tables up to version `count`; refuses what is newer. */
int ic_schema_migrate(ic_db *db, const ic_schema_step *steps, int count);

/* ---- contexts (context.c, put.c) -------------------------------------------------------------- */

enum { IC_ID = 40, IC_KEY = 65, IC_OWNER = 64, IC_NAME = 256 };

/* True for contexts, aliased c, that are there at time $1. */
#define IC_SQL_HELD    "EXISTS (SELECT 1 FROM icae_holds h WHERE h.context = c.id AND h.expires > $1)"
#define IC_SQL_VISIBLE "(c.expires = 0 OR c.expires > $1 OR " IC_SQL_HELD ")"

/* ICAE_ENOTFOUND unless `id` has the form of one: nothing else reaches a database. */
int ic_context_check_id(const char *id);
/* ICAE_EINVAL unless it is UTF-8 without control characters, and not too long. */
int ic_context_check_label(const char *what, const char *label, size_t most);
/* One context as it is now; ICAE_ENOTFOUND. */
int ic_context_find(icae_context *out, icae_store *s, ic_db *db, const char *owner, const char *id);

/* ---- removing (gc.c) -------------------------------------------------------------------------- */

/* Removes a stored slot file that no context has any more; adds its size to *freed. */
int ic_blob_drop(ic_db *db, const char *key, uint64_t *freed);
/* After something was added: expires and, if the store may, evicts (but not `id`) until the quota
 * holds; ICAE_EFULL if it cannot. */
int ic_store_fit(icae_store *s, ic_db *db, const char *id);

#endif
