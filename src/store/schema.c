/*
 * schema.c - the tables of a store, and the steps that led to them.
 *
 * A step, once released, is never changed: a new version is a new step. All steps run in one
 * transaction of the only writer, so that programs that start together bring the tables up to date once.
 */
#include "store/store.h"

/* icae_store    one row: version of the schema, bytes of all slot files
 * icae_blobs    slot files by what they stand for (`key`), with what lists show of them
 * icae_contexts ids, each with one blob
 * icae_holds    who uses a context at the moment
 *
 * Ids are compared byte by byte: their order is that of time. */
#define STEP_1(text, bytes)                                                               \
    "CREATE TABLE icae_blobs ("                                                           \
    "  key " text " PRIMARY KEY, sha256 TEXT NOT NULL, size BIGINT NOT NULL,"             \
    "  text_sha256 TEXT NOT NULL, dtype TEXT NOT NULL, width BIGINT NOT NULL,"            \
    "  slots BIGINT NOT NULL, tokens BIGINT NOT NULL, segments BIGINT NOT NULL,"          \
    "  text_size BIGINT NOT NULL, rate DOUBLE PRECISION NOT NULL, exact BIGINT NOT NULL," \
    "  measured BIGINT NOT NULL, loss DOUBLE PRECISION NOT NULL,"                         \
    "  accuracy DOUBLE PRECISION NOT NULL, exact_prefix BIGINT NOT NULL, bytes " bytes    \
    "  NOT NULL);"                                                                        \
    "CREATE INDEX icae_blobs_text ON icae_blobs (text_sha256);"                           \
    "CREATE TABLE icae_contexts ("                                                        \
    "  id " text " PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL,"                 \
    "  base TEXT NOT NULL, adapter TEXT NOT NULL,"                                        \
    "  blob " text " NOT NULL REFERENCES icae_blobs (key), version BIGINT NOT NULL,"      \
    "  created BIGINT NOT NULL, used BIGINT NOT NULL, expires BIGINT NOT NULL);"          \
    "CREATE INDEX icae_contexts_owner ON icae_contexts (owner, id);"                      \
    "CREATE INDEX icae_contexts_name ON icae_contexts (name, id);"                        \
    "CREATE INDEX icae_contexts_base ON icae_contexts (base, id);"                        \
    "CREATE INDEX icae_contexts_adapter ON icae_contexts (adapter, id);"                  \
    "CREATE INDEX icae_contexts_blob ON icae_contexts (blob, owner, id);"                 \
    "CREATE INDEX icae_contexts_used ON icae_contexts (used, id);"                        \
    "CREATE INDEX icae_contexts_expires ON icae_contexts (expires);"                      \
    "CREATE TABLE icae_holds ("                                                           \
    "  context " text " NOT NULL REFERENCES icae_contexts (id) ON DELETE CASCADE,"        \
    "  holder TEXT NOT NULL, holds BIGINT NOT NULL, expires BIGINT NOT NULL,"             \
    "  PRIMARY KEY (context, holder));"

/* PostgreSQL would try to compress vectors, at the price of a slow put. */
#define NOT_COMPRESSED "ALTER TABLE icae_blobs ALTER COLUMN bytes SET STORAGE EXTERNAL;"

const ic_schema_step ic_schema[] = {
    {{STEP_1("TEXT", "BLOB"), STEP_1("TEXT COLLATE \"C\"", "BYTEA") NOT_COMPRESSED}},
};
const int ic_schema_version = (int)IC_COUNT(ic_schema);

/* 0: there are no tables yet. */
static int read_version(int64_t *version, ic_db *db)
{
    int rc = ICAE_OK;
    int64_t tables = *version = 0;
    IC_TRY(db->driver->run(db, db->driver->exists, NULL, 0, ic_row_int, &tables));
    if (tables > 0)
        IC_TRY(db->driver->run(db, "SELECT schema FROM icae_store", NULL, 0, ic_row_int, version));
done:
    return rc < 0 ? rc : ICAE_OK;
}

static int refuse_newer(int64_t version, int known)
{
    if (version >= 0 && version <= known)
        return ICAE_OK;
    return ic_fail(
        ICAE_EUNSUPPORTED,
        "the store's tables are of version %lld, this program knows up to %d: use a newer "
        "icae, or another store",
        (long long)version, known);
}

static int migrate(ic_db *db, const ic_schema_step *steps, int count)
{
    int rc = ICAE_OK;
    int64_t version;
    IC_TRY(read_version(&version, db)); /* again: another program may have been faster */
    IC_TRY(refuse_newer(version, count));
    if (version == 0)
        IC_TRY(db->driver->script(db,
                                  "CREATE TABLE icae_store (one BIGINT PRIMARY KEY CHECK (one = 1),"
                                  "  schema BIGINT NOT NULL, bytes BIGINT NOT NULL);"
                                  "INSERT INTO icae_store VALUES (1, 0, 0);"));
    for (int64_t i = version; i < count; i++)
        IC_TRY(db->driver->script(db, steps[i].sql[db->driver->dialect]));
    if (version < count)
        IC_TRY(ic_run(db, "UPDATE icae_store SET schema = $1", NULL, NULL, ic_db_int(count)));
done:
    return rc < 0 ? rc : ICAE_OK;
}

int ic_schema_migrate(ic_db *db, const ic_schema_step *steps, int count)
{
    int rc = ICAE_OK;
    int64_t version;
    IC_TRY(read_version(&version, db));
    IC_TRY(refuse_newer(version, count));
    if (version == count)
        return ICAE_OK;
    IC_TRY(db->driver->begin(db));
    rc = migrate(db, steps, count);
    if (rc == ICAE_OK)
        rc = db->driver->commit(db);
    else
        db->driver->rollback(db);
done:
    return rc;
}
