/*
 * gc.c - what leaves the store: removed, expired, evicted; and how much is in it.
 */
#include "store/store.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { BATCH = 256 }; /* contexts removed in one transaction: others get their turn */

/* ---- blobs ------------------------------------------------------------------------------------ */

int ic_blob_drop(ic_db *db, const char *key, uint64_t *freed)
{
    int64_t size = 0;
    int rc = ic_run(db,
                    "DELETE FROM icae_blobs WHERE key = $1"
                    " AND NOT EXISTS (SELECT 1 FROM icae_contexts WHERE blob = $1) RETURNING size",
                    ic_row_int, &size, ic_db_text(key));
    if (rc <= 0)
        return rc;
    *freed += (uint64_t)size;
    rc = ic_run(db, "UPDATE icae_store SET bytes = bytes - $1", NULL, NULL, ic_db_int(size));
    return IC_MIN(rc, 0);
}

static int stored_bytes(uint64_t *bytes, ic_db *db)
{
    int64_t n = 0;
    int rc = db->driver->run(db, "SELECT bytes FROM icae_store", NULL, 0, ic_row_int, &n);
    *bytes = (uint64_t)n;
    return IC_MIN(rc, 0);
}

/* ---- expiry and eviction ---------------------------------------------------------------------- */

/* Keys of the blobs that removed contexts had. */
typedef struct keys {
    char key[BATCH][IC_KEY];
    int count;
} keys;

static int add_key(void *user, const ic_value *row, int columns)
{
    keys *k = user;
    if (k->count == BATCH)
        return ic_fail(ICAE_EFORMAT, "the store gives more rows than it was asked for");
    return ic_row_key(k->key[k->count++], row, columns);
}

/* Removes up to BATCH expired contexts; *removed of them. */
static int expire(ic_db *db, int64_t now, uint64_t *removed, uint64_t *freed)
{
    keys *k = ic_alloc(1, sizeof *k);
    if (!k)
        return ICAE_ENOMEM;
    int rc = ic_run(db,
                    "DELETE FROM icae_contexts WHERE id IN (SELECT c.id FROM icae_contexts c"
                    " WHERE c.expires > 0 AND c.expires <= $1 AND NOT " IC_SQL_HELD
                    " LIMIT $2) RETURNING blob",
                    add_key, k, ic_db_int(now), ic_db_int(BATCH));
    *removed = (uint64_t)IC_MAX(rc, 0);
    for (int i = 0; rc >= 0 && i < k->count; i++)
        rc = ic_blob_drop(db, k->key[i], freed);
    ic_free(k);
    return IC_MIN(rc, 0);
}

/* Removes the context that was not used for longest, but not `id` and none that is held. */
static int evict(ic_db *db, int64_t now, const char *id, uint64_t *removed, uint64_t *freed)
{
    char key[IC_KEY];
    int rc = ic_run(db,
                    "DELETE FROM icae_contexts WHERE id IN (SELECT c.id FROM icae_contexts c"
                    " WHERE c.id <> $2 AND NOT " IC_SQL_HELD
                    " ORDER BY c.used, c.id LIMIT 1) RETURNING blob",
                    ic_row_key, key, ic_db_int(now), ic_db_text(id));
    *removed = (uint64_t)IC_MAX(rc, 0);
    if (rc > 0)
        rc = ic_blob_drop(db, key, freed);
    return IC_MIN(rc, 0);
}

int ic_store_fit(icae_store *s, ic_db *db, const char *id)
{
    int rc = ICAE_OK;
    uint64_t quota = s->options.quota, bytes, removed, freed = 0;
    int64_t now = s->now();
    if (!quota)
        return ICAE_OK;
    IC_TRY(stored_bytes(&bytes, db));
    do {
        if (bytes <= quota)
            return ICAE_OK;
        IC_TRY(expire(db, now, &removed, &freed));
        if (removed == 0 && s->options.evict)
            IC_TRY(evict(db, now, id, &removed, &freed));
        IC_TRY(stored_bytes(&bytes, db));
    } while (removed > 0);
    if (bytes > quota)
        rc = ic_fail(ICAE_EFULL,
                     "the store is full: with these slots it would have %" PRIu64 " of %" PRIu64
                     " bytes; remove contexts or raise its quota",
                     bytes, quota);
done:
    return rc;
}

typedef struct collection {
    icae_gc_result result;
    uint64_t quota;
    bool more;
} collection;

static int collect_expired(void *call, icae_store *s, ic_db *db)
{
    collection *c = call;
    uint64_t removed;
    int rc = expire(db, s->now(), &removed, &c->result.bytes);
    c->result.expired += removed;
    c->more = removed > 0;
    return rc;
}

static int collect_unused(void *call, icae_store *s, ic_db *db)
{
    collection *c = call;
    int rc = ICAE_OK;
    uint64_t bytes, removed = 1;
    IC_TRY(stored_bytes(&bytes, db));
    for (int i = 0; i < BATCH && bytes > c->quota && removed > 0; i++) {
        IC_TRY(evict(db, s->now(), "", &removed, &c->result.bytes));
        IC_TRY(stored_bytes(&bytes, db));
        c->result.evicted += removed;
    }
    c->more = bytes > c->quota && removed > 0;
done:
    return rc;
}

static int forget_holds(void *call, icae_store *s, ic_db *db)
{
    (void)call;
    int rc =
        ic_run(db, "DELETE FROM icae_holds WHERE expires <= $1", NULL, NULL, ic_db_int(s->now()));
    return IC_MIN(rc, 0);
}

static int shrink(void *call, icae_store *s, ic_db *db)
{
    (void)call;
    (void)s;
    db->driver->shrink(db);
    return ICAE_OK;
}

int icae_store_gc(icae_gc_result *out, icae_store *s, uint64_t quota)
{
    int rc = ICAE_OK;
    collection c = {.quota = quota ? quota : s->options.quota};
    IC_TRY(ic_store_write(s, forget_holds, NULL));
    do
        IC_TRY(ic_store_write(s, collect_expired, &c));
    while (c.more);
    if (c.quota)
        do
            IC_TRY(ic_store_write(s, collect_unused, &c));
        while (c.more);
    if (c.result.bytes > 0)
        IC_TRY(ic_store_read(s, shrink, NULL));
done:
    if (out)
        *out = c.result;
    return rc;
}

/* ---- one context ------------------------------------------------------------------------------ */

typedef struct target {
    const char *owner, *id;
} target;

static int remove_context(void *call, icae_store *s, ic_db *db)
{
    const target *t = call;
    int rc = ICAE_OK;
    char key[IC_KEY];
    uint64_t freed = 0;
    icae_context context;
    IC_TRY(ic_context_find(&context, s, db, t->owner, t->id));
    IC_TRY(ic_run(db, "DELETE FROM icae_contexts WHERE id = $1 RETURNING blob", ic_row_key, key,
                  ic_db_text(t->id)));
    IC_TRY(ic_blob_drop(db, key, &freed));
done:
    return IC_MIN(rc, 0);
}

int icae_store_remove(icae_store *s, const char *owner, const char *id)
{
    target t = {.owner = owner, .id = id};
    int rc = ic_context_check_id(id);
    return rc < 0 ? rc : ic_store_write(s, remove_context, &t);
}

/* ---- how much is there ------------------------------------------------------------------------ */

static int take_counts(void *user, const ic_value *row, int columns)
{
    icae_store_info *i = user;
    if (columns < 6)
        return ic_fail(ICAE_EFORMAT, "the store gives %d numbers, expected 6", columns);
    i->schema = (uint64_t)row[0].i;
    i->bytes = (uint64_t)row[1].i;
    i->contexts = (uint64_t)row[2].i;
    i->expired = (uint64_t)row[3].i;
    i->held = (uint64_t)row[4].i;
    i->blobs = (uint64_t)row[5].i;
    return ICAE_OK;
}

static int describe(void *call, icae_store *s, ic_db *db)
{
    int rc = ic_run(db,
                    "SELECT s.schema, s.bytes, (SELECT COUNT(*) FROM icae_contexts),"
                    " (SELECT COUNT(*) FROM icae_contexts c WHERE c.expires > 0 AND c.expires <= $1"
                    "   AND NOT " IC_SQL_HELD "),"
                    " (SELECT COUNT(DISTINCT h.context) FROM icae_holds h WHERE h.expires > $1),"
                    " (SELECT COUNT(DISTINCT blob) FROM icae_contexts) FROM icae_store s",
                    take_counts, call, ic_db_int(s->now()));
    return IC_MIN(rc, 0);
}

int icae_store_describe(icae_store_info *out, icae_store *s)
{
    *out = (icae_store_info){.driver = s->driver->name, .quota = s->options.quota};
    return ic_store_read(s, describe, out);
}
