/*
 * put.c - slots into the store: under a new id, or as the next version of a context.
 *
 * Slot files are stored once for each `key`: what they stand for (text, base, adapter, settings), not
 * the last bits of their numbers, which may differ between processors. Everything a call does is one
 * transaction.
 */
#include "store/store.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#define MAX_BYTES ((size_t)512 << 20) /* of a slot file: databases hold values in memory */

/* ---- ids and keys ----------------------------------------------------------------------------- */

/* "ctx_", 12 digits of milliseconds since 1970, 20 random ones (80 bits: nobody guesses an id). */
static int make_id(char id[IC_ID])
{
    struct timespec t;
    unsigned char r[10];
    if (getrandom(r, sizeof r, 0) != (ssize_t)sizeof r || clock_gettime(CLOCK_REALTIME, &t) < 0)
        return ic_fail(ICAE_EIO, "the system gives no random numbers for an id");
    uint64_t ms = (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
    int n = snprintf(id, IC_ID, "ctx_%012" PRIx64, ms & 0xffffffffffff);
    for (size_t i = 0; i < sizeof r; i++)
        n += snprintf(id + n, (size_t)(IC_ID - n), "%02x", r[i]);
    return ICAE_OK;
}

static int make_key(char key[IC_KEY], const icae_slots *slots)
{
    char settings[160];
    ic_hash *h;
    int rc = ic_hash_new(&h);
    if (rc < 0)
        return rc;
    snprintf(settings, sizeof settings, "icae-key-1 %a %" PRIu64 " %d %d %d %d",
             (double)slots->rate, slots->span, slots->width, (int)slots->dtype, slots->measured,
             slots->corrections.size > 0);
    ic_hash_add(h, settings, strlen(settings) + 1);
    if (slots->refined)
        ic_hash_add(h, &slots->refined, sizeof slots->refined);
    ic_hash_add(h, slots->base, 64);
    ic_hash_add(h, slots->adapter, 64);
    ic_hash_add(h, slots->text_sha256, 64);
    for (uint32_t i = 0; i < slots->segments; i++) {
        uint32_t counts[2] = {slots->segment[i].tokens, slots->segment[i].slots};
        ic_hash_add(h, counts, sizeof counts);
    }
    ic_hash_finish(h, key);
    return ICAE_OK;
}

/* ---- slot files ------------------------------------------------------------------------------- */

/* One call of put or replace. */
typedef struct writing {
    const icae_slots *slots;
    char *bytes;
    size_t size;
    char key[IC_KEY], sha256[IC_KEY];
    const char *owner, *name, *id; /* of the call */
    uint64_t ttl, version;
    icae_context context;
    bool existed;
} writing;

static int prepare(writing *w, const icae_slots *slots)
{
    int rc = ICAE_OK;
    w->slots = slots;
    IC_TRY(icae_slots_write(&w->bytes, &w->size, slots));
    if (w->size > MAX_BYTES)
        return ic_fail(ICAE_ELIMIT, "slots of %zu bytes: a store takes up to %zu for one context",
                       w->size, MAX_BYTES);
    IC_TRY(make_key(w->key, slots));
    IC_TRY(ic_hash_of(w->sha256, w->bytes, w->size));
done:
    return rc;
}

typedef struct stored {
    int64_t size;
    bool whole; /* its bytes have their SHA-256 */
} stored;

static int check_stored(void *user, const ic_value *row, int columns)
{
    stored *t = user;
    char hex[65];
    if (columns < 3 || row[0].type != IC_INT || row[1].type != IC_TEXT)
        return ic_fail(ICAE_EFORMAT, "the store gives something else than a slot file");
    t->size = row[0].i;
    int rc = ic_hash_of(hex, row[2].data, row[2].size);
    t->whole = row[1].size == 64 && memcmp(hex, row[1].data, 64) == 0;
    return rc;
}

static int add_size(ic_db *db, int64_t size)
{
    return ic_run(db, "UPDATE icae_store SET bytes = bytes + $1", NULL, NULL, ic_db_int(size));
}

static int insert_blob(const writing *w, ic_db *db)
{
    icae_slots_info i = icae_slots_describe(w->slots);
    int rc = ic_run(
        db,
        "INSERT INTO icae_blobs (key, sha256, size, text_sha256, dtype, width, slots, tokens,"
        " segments, text_size, rate, exact, measured, loss, accuracy, exact_prefix, bytes)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
        NULL, NULL, ic_db_text(w->key), ic_db_text(w->sha256), ic_db_int((int64_t)w->size),
        ic_db_text(i.text_sha256), ic_db_text(i.dtype), ic_db_int(i.width),
        ic_db_int((int64_t)i.slots), ic_db_int((int64_t)i.tokens), ic_db_int((int64_t)i.segments),
        ic_db_int((int64_t)i.text_size), ic_db_real((double)w->slots->rate), ic_db_int(i.exact),
        ic_db_int(i.fidelity.measured), ic_db_real(i.fidelity.loss),
        ic_db_real(i.fidelity.accuracy), ic_db_int((int64_t)i.fidelity.exact_prefix),
        ic_db_bytes(w->bytes, w->size));
    return rc < 0 ? rc : add_size(db, (int64_t)w->size);
}

/* Stores the slot file unless it is there; one that was damaged is made good. */
static int ensure_blob(const writing *w, ic_db *db)
{
    int rc = ICAE_OK;
    stored t = {0};
    IC_TRY(ic_run(db, "SELECT size, sha256, bytes FROM icae_blobs WHERE key = $1", check_stored, &t,
                  ic_db_text(w->key)));
    if (rc == 0)
        return insert_blob(w, db);
    if (t.whole)
        return ICAE_OK;
    IC_TRY(ic_run(db, "UPDATE icae_blobs SET bytes = $1, sha256 = $2, size = $3 WHERE key = $4",
                  NULL, NULL, ic_db_bytes(w->bytes, w->size), ic_db_text(w->sha256),
                  ic_db_int((int64_t)w->size), ic_db_text(w->key)));
    IC_TRY(add_size(db, (int64_t)w->size - t.size));
done:
    return rc;
}

/* ---- put -------------------------------------------------------------------------------------- */

static int64_t expiry(int64_t now, uint64_t ttl)
{
    return ttl == 0 ? 0 : ttl > INT32_MAX * (uint64_t)1000 ? 0 : now + (int64_t)ttl;
}

typedef struct known {
    char id[IC_ID];
    int64_t expires;
} known;

static int take_known(void *user, const ic_value *row, int columns)
{
    known *k = user;
    if (columns < 2 || row[0].type != IC_TEXT || row[0].size >= sizeof k->id)
        return ic_fail(ICAE_EFORMAT, "the store gives something else than a context");
    memcpy(k->id, row[0].data, row[0].size);
    k->id[row[0].size] = 0;
    k->expires = row[1].i;
    return ICAE_OK;
}

static int put_again(const known *k, ic_db *db, int64_t now, int64_t expires)
{
    if (k->expires == 0 || (expires != 0 && expires < k->expires))
        expires = k->expires;
    return ic_run(db, "UPDATE icae_contexts SET used = $1, expires = $2 WHERE id = $3", NULL, NULL,
                  ic_db_int(now), ic_db_int(expires), ic_db_text(k->id));
}

static int put(void *call, icae_store *s, ic_db *db)
{
    writing *w = call;
    int rc = ICAE_OK;
    known k = {0};
    int64_t now = s->now(), expires = expiry(now, w->ttl);
    IC_TRY(ensure_blob(w, db));
    IC_TRY(ic_run(db,
                  "SELECT c.id, c.expires FROM icae_contexts c WHERE " IC_SQL_VISIBLE
                  " AND c.blob = $2 AND c.owner = $3 AND c.name = $4 ORDER BY c.id LIMIT 1",
                  take_known, &k, ic_db_int(now), ic_db_text(w->key), ic_db_text(w->owner),
                  ic_db_text(w->name)));
    w->existed = rc > 0;
    if (w->existed) {
        IC_TRY(put_again(&k, db, now, expires));
    } else {
        IC_TRY(make_id(k.id));
        IC_TRY(ic_run(db,
                      "INSERT INTO icae_contexts (id, owner, name, base, adapter, blob, version,"
                      " created, used, expires) VALUES ($1, $2, $3, $4, $5, $6, 1, $7, $7, $8)",
                      NULL, NULL, ic_db_text(k.id), ic_db_text(w->owner), ic_db_text(w->name),
                      ic_db_text(w->slots->base), ic_db_text(w->slots->adapter), ic_db_text(w->key),
                      ic_db_int(now), ic_db_int(expires)));
        IC_TRY(ic_store_fit(s, db, k.id));
    }
    IC_TRY(ic_context_find(&w->context, s, db, NULL, k.id));
done:
    return IC_MIN(rc, 0);
}

int icae_store_put(icae_context *out, bool *existed, icae_store *s, const icae_slots *slots,
                   const icae_put_options *options)
{
    int rc = ICAE_OK;
    icae_put_options o = options ? *options : (icae_put_options){0};
    writing w = {.owner = o.owner ? o.owner : "", .name = o.name ? o.name : "", .ttl = o.ttl};
    IC_TRY(ic_context_check_label("owner", w.owner, IC_OWNER));
    IC_TRY(ic_context_check_label("name", w.name, IC_NAME));
    IC_TRY(prepare(&w, slots));
    IC_TRY(ic_store_write(s, put, &w));
    *out = w.context;
    if (existed)
        *existed = w.existed;
done:
    icae_free(w.bytes);
    return rc;
}

/* ---- replace ---------------------------------------------------------------------------------- */

static int check_successor(const writing *w, const icae_context *old)
{
    const icae_slots *n = w->slots;
    if (old->version != w->version)
        return ic_fail(ICAE_EMISMATCH,
                       "context %s was changed meanwhile: it is at version %" PRIu64
                       ", not %" PRIu64 "; read it again",
                       w->id, old->version, w->version);
    if (strcmp(old->base, n->base) != 0 || strcmp(old->adapter, n->adapter) != 0)
        return ic_fail(ICAE_EMISMATCH,
                       "context %s was made by base %.16s and adapter %.16s, its new slots by base "
                       "%.16s and adapter %.16s",
                       w->id, old->base, old->adapter, n->base, n->adapter);
    return ICAE_OK;
}

static int replace(void *call, icae_store *s, ic_db *db)
{
    writing *w = call;
    int rc = ICAE_OK;
    char old_key[IC_KEY];
    uint64_t freed = 0;
    IC_TRY(ic_context_find(&w->context, s, db, w->owner, w->id));
    IC_TRY(check_successor(w, &w->context));
    IC_TRY(ic_run(db, "SELECT blob FROM icae_contexts WHERE id = $1", ic_row_key, old_key,
                  ic_db_text(w->id)));
    IC_TRY(ensure_blob(w, db));
    IC_TRY(ic_run(db,
                  "UPDATE icae_contexts SET blob = $1, version = version + 1, used = $2"
                  " WHERE id = $3",
                  NULL, NULL, ic_db_text(w->key), ic_db_int(s->now()), ic_db_text(w->id)));
    IC_TRY(ic_blob_drop(db, old_key, &freed));
    IC_TRY(ic_store_fit(s, db, w->id));
    IC_TRY(ic_context_find(&w->context, s, db, NULL, w->id));
done:
    return IC_MIN(rc, 0);
}

int icae_store_replace(icae_context *out, icae_store *s, const char *owner, const char *id,
                       uint64_t version, const icae_slots *slots)
{
    int rc = ICAE_OK;
    writing w = {.owner = owner, .id = id, .version = version};
    IC_TRY(ic_context_check_id(id));
    IC_TRY(prepare(&w, slots));
    IC_TRY(ic_store_write(s, replace, &w));
    *out = w.context;
done:
    icae_free(w.bytes);
    return rc;
}
