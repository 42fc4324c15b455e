/*
 * hold.c - who uses a context: holds keep it from expiring and from being evicted.
 *
 * A hold ends by itself after its time, so that a program that was killed holds nothing for ever.
 */
#include "store/store.h"

#include <stdio.h>
#include <string.h>

enum { HOLDERS = 1000 }; /* more are not listed */

typedef struct holding {
    const char *owner, *id, *holder;
    uint64_t seconds;
    icae_holder *holders;
    size_t count;
} holding;

static int check(const holding *h)
{
    int rc = ic_context_check_id(h->id);
    if (rc == ICAE_OK && h->holder)
        rc = ic_context_check_label("holder", h->holder, IC_OWNER);
    return rc;
}

static int hold(void *call, icae_store *s, ic_db *db)
{
    const holding *h = call;
    int rc = ICAE_OK;
    icae_context context;
    int64_t now = s->now();
    IC_TRY(ic_context_find(&context, s, db, h->owner, h->id));
    IC_TRY(
        ic_run(db,
               "INSERT INTO icae_holds (context, holder, holds, expires) VALUES ($1, $2, 1, $3)"
               " ON CONFLICT (context, holder) DO UPDATE SET"
               " holds = CASE WHEN icae_holds.expires > $4 THEN icae_holds.holds + 1 ELSE 1 END,"
               " expires = CASE WHEN icae_holds.expires > $3 THEN icae_holds.expires ELSE $3 END",
               NULL, NULL, ic_db_text(h->id), ic_db_text(h->holder),
               ic_db_int(now + (int64_t)IC_MIN(h->seconds, (uint64_t)INT32_MAX)), ic_db_int(now)));
done:
    return IC_MIN(rc, 0);
}

int icae_store_hold(icae_store *s, const char *owner, const char *id, const char *holder,
                    uint64_t seconds)
{
    holding h = {.owner = owner, .id = id, .holder = holder, .seconds = seconds};
    int rc = check(&h);
    return rc < 0 ? rc : ic_store_write(s, hold, &h);
}

static int release(void *call, icae_store *s, ic_db *db)
{
    const holding *h = call;
    int rc = ICAE_OK;
    (void)s;
    IC_TRY(ic_run(db, "UPDATE icae_holds SET holds = holds - 1 WHERE context = $1 AND holder = $2",
                  NULL, NULL, ic_db_text(h->id), ic_db_text(h->holder)));
    if (rc == 0)
        return ic_fail(ICAE_ENOTFOUND, "'%.80s' does not hold context %s", h->holder, h->id);
    IC_TRY(ic_run(db, "DELETE FROM icae_holds WHERE context = $1 AND holder = $2 AND holds <= 0",
                  NULL, NULL, ic_db_text(h->id), ic_db_text(h->holder)));
done:
    return IC_MIN(rc, 0);
}

int icae_store_release(icae_store *s, const char *id, const char *holder)
{
    holding h = {.id = id, .holder = holder};
    int rc = check(&h);
    return rc < 0 ? rc : ic_store_write(s, release, &h);
}

static int take_holder(void *user, const ic_value *row, int columns)
{
    holding *h = user;
    if (columns < 3 || row[0].type != IC_TEXT || h->count == HOLDERS)
        return ic_fail(ICAE_EFORMAT, "the store gives something else than a holder");
    icae_holder *to = &h->holders[h->count++];
    *to = (icae_holder){.holds = (uint64_t)row[1].i, .expires = row[2].i};
    memcpy(to->name, row[0].data, IC_MIN(row[0].size, sizeof to->name - 1));
    return ICAE_OK;
}

static int list(void *call, icae_store *s, ic_db *db)
{
    holding *h = call;
    int rc = ICAE_OK;
    icae_context context;
    h->count = 0;
    IC_TRY(ic_context_find(&context, s, db, h->owner, h->id));
    IC_TRY(ic_run(db,
                  "SELECT holder, holds, expires FROM icae_holds"
                  " WHERE expires > $1 AND context = $2 ORDER BY holder LIMIT $3",
                  take_holder, h, ic_db_int(s->now()), ic_db_text(h->id), ic_db_int(HOLDERS)));
done:
    return IC_MIN(rc, 0);
}

int icae_store_holders(icae_holder **holders, size_t *count, icae_store *s, const char *owner,
                       const char *id)
{
    int rc = ICAE_OK;
    holding h = {.owner = owner, .id = id};
    IC_TRY(check(&h));
    h.holders = ic_alloc(HOLDERS, sizeof *h.holders);
    if (!h.holders)
        return ICAE_ENOMEM;
    IC_TRY(ic_store_read(s, list, &h));
    *holders = h.holders;
    *count = h.count;
    h.holders = NULL;
done:
    ic_free(h.holders);
    return rc;
}
