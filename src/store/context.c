/*
 * context.c - contexts read: found by id, listed, their slots; and removed.
 *
 * What comes from a request reaches the database as a parameter, never as part of a statement.
 */
#include "core/slots_file.h"
#include "store/store.h"

#include <stdio.h>
#include <string.h>

/* ---- at the door ------------------------------------------------------------------------------ */

int ic_context_check_id(const char *id)
{
    if (id && strncmp(id, "ctx_", 4) == 0 && strlen(id) == 36 &&
        strspn(id + 4, "0123456789abcdef") == 32)
        return ICAE_OK;
    return ic_fail(ICAE_ENOTFOUND, "there is no context '%.80s'", id ? id : "");
}

int ic_context_check_label(const char *what, const char *label, size_t most)
{
    size_t size = strnlen(label, most + 1), at = 0;
    if (size > most)
        return ic_fail(ICAE_EINVAL, "the %s '%.40s...' is longer than %zu bytes", what, label,
                       most);
    while (at < size) {
        uint32_t code;
        int n = ic_utf8_decode(&code, label + at, size - at);
        if (n <= 0 || code < 0x20 || (code >= 0x7f && code < 0xa0))
            return ic_fail(ICAE_EINVAL,
                           "the %s '%.80s' has a byte at %zu that is no printable UTF-8", what,
                           label, at);
        at += (size_t)n;
    }
    return ICAE_OK;
}

/* ---- rows ------------------------------------------------------------------------------------- */

#define COLUMNS                                                                             \
    "c.id, c.owner, c.name, c.base, c.adapter, c.version, c.created, c.used, c.expires,"    \
    " b.text_sha256, b.dtype, b.size, b.slots, b.tokens, b.segments, b.text_size, b.width," \
    " b.rate, b.exact, b.measured, b.loss, b.accuracy, b.exact_prefix,"                     \
    " (SELECT COUNT(*) FROM icae_contexts s WHERE s.blob = c.blob),"                        \
    " (SELECT CAST(COALESCE(SUM(h.holds), 0) AS BIGINT) FROM icae_holds h"                  \
    "   WHERE h.context = c.id AND h.expires > $1)"
#define FROM " FROM icae_contexts c JOIN icae_blobs b ON b.key = c.blob WHERE " IC_SQL_VISIBLE

enum { COLUMN_COUNT = 25 };

static void copy_text(char *to, size_t size, const ic_value *v)
{
    size_t n = v->type == IC_TEXT ? IC_MIN(v->size, size - 1) : 0;
    if (n > 0)
        memcpy(to, v->data, n);
    to[n] = 0;
}

#define TEXT(field, i) copy_text(c->field, sizeof c->field, &row[i])

static void read_row(icae_context *c, const ic_value *row)
{
    TEXT(id, 0);
    TEXT(owner, 1);
    TEXT(name, 2);
    TEXT(base, 3);
    TEXT(adapter, 4);
    c->version = (uint64_t)row[5].i;
    c->created = row[6].i;
    c->used = row[7].i;
    c->expires = row[8].i;
    TEXT(text_sha256, 9);
    TEXT(dtype, 10);
    c->bytes = (uint64_t)row[11].i;
    c->slots = (uint64_t)row[12].i;
    c->tokens = (uint64_t)row[13].i;
    c->segments = (uint64_t)row[14].i;
    c->text_size = (uint64_t)row[15].i;
    c->width = (int)row[16].i;
    c->rate = (float)row[17].r;
    c->exact = row[18].i;
    if (row[19].i)
        c->fidelity = (icae_fidelity){.measured = true,
                                      .loss = row[20].r,
                                      .accuracy = row[21].r,
                                      .exact_prefix = (uint64_t)row[22].i,
                                      .tokens = c->tokens};
    c->sharing = (uint64_t)row[23].i;
    c->holds = (uint64_t)row[24].i;
    bool int8 = strcmp(c->dtype, "int8") == 0;
    c->slot_bytes = c->slots * (int8 ? (uint64_t)c->width + 4 : 2 * (uint64_t)c->width);
}

/* Rows into an array that has room for them; a statement's LIMIT sees to that. */
typedef struct rows {
    icae_context *contexts;
    size_t count, room;
} rows;

static int add_row(void *user, const ic_value *row, int columns)
{
    rows *r = user;
    if (columns < COLUMN_COUNT || r->count == r->room)
        return ic_fail(ICAE_EFORMAT, "the store gives %d columns, expected %d", columns,
                       COLUMN_COUNT);
    r->contexts[r->count] = (icae_context){0};
    read_row(&r->contexts[r->count++], row);
    return ICAE_OK;
}

int ic_context_find(icae_context *out, icae_store *s, ic_db *db, const char *owner, const char *id)
{
    rows r = {.contexts = out, .room = 1};
    int rc = ic_run(db, "SELECT " COLUMNS FROM " AND c.id = $2 AND ($3 = 1 OR c.owner = $4)",
                    add_row, &r, ic_db_int(s->now()), ic_db_text(id), ic_db_int(!owner),
                    ic_db_text(owner ? owner : ""));
    if (rc < 0 || rc == 1)
        return IC_MIN(rc, 0);
    return ic_fail(ICAE_ENOTFOUND, "there is no context %s", id);
}

/* ---- one context ------------------------------------------------------------------------------ */

typedef struct lookup {
    const char *owner, *id;
    icae_context context;
    char sha256[IC_KEY]; /* that the bytes should have */
    ic_buffer bytes;
} lookup;

static int find(void *call, icae_store *s, ic_db *db)
{
    lookup *l = call;
    return ic_context_find(&l->context, s, db, l->owner, l->id);
}

int icae_store_find(icae_context *out, icae_store *s, const char *owner, const char *id)
{
    lookup l = {.owner = owner, .id = id};
    int rc = ic_context_check_id(id);
    if (rc == ICAE_OK)
        rc = ic_store_read(s, find, &l);
    if (rc == ICAE_OK)
        *out = l.context;
    return rc;
}

static int take_bytes(void *user, const ic_value *row, int columns)
{
    lookup *l = user;
    if (columns < COLUMN_COUNT + 2)
        return ic_fail(ICAE_EFORMAT, "the store gives %d columns, expected %d", columns,
                       COLUMN_COUNT + 2);
    l->context = (icae_context){0};
    read_row(&l->context, row);
    copy_text(l->sha256, sizeof l->sha256, &row[COLUMN_COUNT]);
    l->bytes.size = 0;
    return ic_buffer_add(&l->bytes, row[COLUMN_COUNT + 1].data, row[COLUMN_COUNT + 1].size);
}

enum { TOUCH_AFTER = 60 }; /* seconds: reading a context again and again writes once a minute */

static int fetch(void *call, icae_store *s, ic_db *db)
{
    lookup *l = call;
    int64_t now = s->now();
    int rc = ic_run(db,
                    "SELECT " COLUMNS ", b.sha256, b.bytes" FROM
                    " AND c.id = $2 AND ($3 = 1 OR c.owner = $4)",
                    take_bytes, l, ic_db_int(now), ic_db_text(l->id), ic_db_int(!l->owner),
                    ic_db_text(l->owner ? l->owner : ""));
    if (rc == 0)
        return ic_fail(ICAE_ENOTFOUND, "there is no context %s", l->id);
    if (rc > 0 && l->context.used + TOUCH_AFTER <= now) /* a wish: a full disk can still be read */
        (void)ic_run(db, "UPDATE icae_contexts SET used = $1 WHERE id = $2 AND used < $1", NULL,
                     NULL, ic_db_int(now), ic_db_text(l->id));
    return IC_MIN(rc, 0);
}

/* The bytes of its slot file as they were put. */
static int fetch_checked(lookup *l, icae_store *s)
{
    int rc = ICAE_OK;
    char hex[65];
    IC_TRY(ic_context_check_id(l->id));
    IC_TRY(ic_store_read(s, fetch, l));
    IC_TRY(ic_hash_of(hex, l->bytes.data, l->bytes.size));
    if (strcmp(hex, l->sha256) != 0)
        rc = ic_fail(
            ICAE_EFORMAT,
            "context %s is damaged in the store: the SHA-256 of its slots is %.12s, it should "
            "be %.12s; compress its text again",
            l->id, hex, l->sha256);
done:
    return rc;
}

int icae_store_get(icae_slots **out, icae_context *context, icae_store *s, const char *owner,
                   const char *id, const icae_session *session)
{
    int rc = ICAE_OK;
    icae_slots *slots = NULL;
    lookup l = {.owner = owner, .id = id};
    IC_TRY(fetch_checked(&l, s));
    ic_map map = {.data = (unsigned char *)l.bytes.data, .size = l.bytes.size};
    l.bytes = (ic_buffer){0}; /* the map is taken over */
    IC_TRY(ic_slots_read(&slots, &map, id));
    if (session && (rc = icae_slots_check(slots, session)) < 0) {
        ic_set_message("context %s: %s", id, icae_error_message());
        goto done;
    }
    if (context)
        *context = l.context;
    *out = slots;
    slots = NULL;
done:
    icae_slots_free(slots);
    ic_buffer_free(&l.bytes);
    return rc;
}

int icae_store_read(char **data, size_t *size, icae_store *s, const char *owner, const char *id)
{
    lookup l = {.owner = owner, .id = id};
    int rc = fetch_checked(&l, s);
    if (rc < 0) {
        ic_buffer_free(&l.bytes);
        return rc;
    }
    *data = l.bytes.data;
    *size = l.bytes.size;
    return ICAE_OK;
}

/* ---- lists ------------------------------------------------------------------------------------ */

enum { PAGE = 100, LARGEST_PAGE = 1000, CONDITIONS = 8 };

typedef struct listing {
    const icae_store_query *query;
    ic_buffer sql;
    ic_value parameters[CONDITIONS];
    int count;
    rows rows;
} listing;

static int add_condition(listing *l, const char *condition, const char *value)
{
    if (!value)
        return ICAE_OK;
    l->parameters[l->count++] = ic_db_text(value);
    return ic_buffer_addf(&l->sql, condition, l->count);
}

/* Only the conditions that are asked for, so that the database can choose its index by them. */
static int add_conditions(listing *l)
{
    int rc = ICAE_OK;
    const icae_store_query *q = l->query;
    IC_TRY(add_condition(l, " AND c.owner = $%d", q->owner));
    IC_TRY(add_condition(l, " AND c.name = $%d", q->name));
    IC_TRY(add_condition(l, " AND c.base = $%d", q->base));
    IC_TRY(add_condition(l, " AND c.adapter = $%d", q->adapter));
    IC_TRY(add_condition(
        l, " AND c.blob IN (SELECT k.key FROM icae_blobs k WHERE k.text_sha256 = $%d)",
        q->text_sha256));
done:
    return rc;
}

/* The page before what is joined to it, so that the database need not guess how many rows that will be. */
static int build(listing *l)
{
    int rc = ICAE_OK;
    const char *after = l->query->after;
    l->count = 1; /* the time */
    IC_TRY(ic_buffer_addf(&l->sql, "SELECT " COLUMNS
                                   " FROM (SELECT c.* FROM icae_contexts c WHERE " IC_SQL_VISIBLE));
    IC_TRY(add_condition(l, " AND c.id < $%d", after && *after ? after : NULL));
    IC_TRY(add_conditions(l));
    l->parameters[l->count++] = ic_db_int((int64_t)l->rows.room);
    IC_TRY(ic_buffer_addf(&l->sql,
                          " ORDER BY c.id DESC LIMIT $%d) c"
                          " JOIN icae_blobs b ON b.key = c.blob ORDER BY c.id DESC",
                          l->count));
done:
    return rc;
}

static int list(void *call, icae_store *s, ic_db *db)
{
    listing *l = call;
    l->rows.count = 0;
    l->parameters[0] = ic_db_int(s->now());
    int rc = db->driver->run(db, l->sql.data, l->parameters, l->count, add_row, &l->rows);
    return IC_MIN(rc, 0);
}

int icae_store_list(icae_context **page, size_t *count, icae_store *s,
                    const icae_store_query *query)
{
    int rc = ICAE_OK;
    listing l = {.query = query ? query : &(icae_store_query){0}};
    int limit = l.query->limit;
    if (limit < 0 || limit > LARGEST_PAGE)
        return ic_fail(ICAE_EINVAL, "a page of %d contexts: expected 1 to %d", limit, LARGEST_PAGE);
    if (l.query->after && *l.query->after)
        IC_TRY(ic_context_check_id(l.query->after));
    l.rows.room = limit ? (size_t)limit : PAGE;
    l.rows.contexts = ic_alloc(l.rows.room, sizeof *l.rows.contexts);
    if (!l.rows.contexts)
        return ICAE_ENOMEM;
    IC_TRY(build(&l));
    IC_TRY(ic_store_read(s, list, &l));
    *page = l.rows.contexts;
    *count = l.rows.count;
    l.rows.contexts = NULL;
done:
    ic_free(l.rows.contexts);
    ic_buffer_free(&l.sql);
    return rc;
}

static int count(void *call, icae_store *s, ic_db *db)
{
    listing *l = call;
    int64_t n = 0;
    l->parameters[0] = ic_db_int(s->now());
    int rc = db->driver->run(db, l->sql.data, l->parameters, l->count, ic_row_int, &n);
    l->rows.count = (size_t)n;
    return IC_MIN(rc, 0);
}

int icae_store_count(uint64_t *out, icae_store *s, const icae_store_query *query)
{
    int rc = ICAE_OK;
    listing l = {.query = query ? query : &(icae_store_query){0}, .count = 1};
    IC_TRY(ic_buffer_addf(&l.sql, "SELECT COUNT(*) FROM icae_contexts c WHERE " IC_SQL_VISIBLE));
    IC_TRY(add_conditions(&l));
    IC_TRY(ic_store_read(s, count, &l));
    *out = l.rows.count;
done:
    ic_buffer_free(&l.sql);
    return rc;
}
