/*
 * contexts.c - /v1/contexts: made, listed, told about, appended to, forgotten.
 *
 * The store keeps them; texts become slots in the worker. Nothing is answered before the store has it.
 */
#include "serve/contexts.h"

#include "serve/fields.h"
#include "store/store.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- compression ------------------------------------------------------------------------------ */

typedef struct compressing {
    ic_compression *compression;
    ic_stage_fn progress;
    void *user;
    uint64_t told;
    int stage;
} compressing;

/* In the worker's thread. */
static int compress_step(void *user, int rows)
{
    static const char *const stages[] = {"compress", "refine", "check"};
    compressing *w = user;
    uint64_t done, total;
    int rc = ic_compression_step(w->compression, rows);
    int stage = ic_compression_stage(w->compression, &done, &total);
    if (w->progress && rc >= 0 && (done != w->told || stage != w->stage))
        w->progress(w->user, stages[stage], done, total);
    w->told = done;
    w->stage = stage;
    return rc;
}

int ic_serve_compress(icae_slots **out, ic_call *c, const char *text, size_t size,
                      const icae_compress_options *o, ic_stage_fn progress, void *user)
{
    int rc = ICAE_OK;
    compressing w = {.progress = progress, .user = user};
    ic_task task = {
        .client = c->client, .gone = ic_exchange_gone(c->x), .step = compress_step, .user = &w};
    IC_TRY(ic_compression_new(&w.compression, c->server->session, text, size, o));
    if (progress)
        progress(user, "waiting", 0, 0);
    IC_TRY(ic_worker_do(c->server->worker, &task, 1));
    IC_TRY(ic_compression_take(out, w.compression));
    ic_metrics *m = &c->server->metrics;
    atomic_fetch_add(&m->compressed_texts, 1);
    atomic_fetch_add(&m->compressed_tokens, (*out)->tokens);
    atomic_fetch_add(&m->compressed_slots, (*out)->count);
done:
    ic_compression_free(w.compression);
    return rc;
}

/* The first begins the stream: what can be refused has been by then. */
static void tell_progress(void *user, const char *stage, uint64_t done, uint64_t total)
{
    ic_call *c = user;
    ic_buffer b = {0};
    if (!ic_exchange_status(c->x))
        ic_exchange_begin(c->x, 200, "text/event-stream");
    if (ic_buffer_addf(&b,
                       "{\"object\":\"context.progress\",\"stage\":\"%s\",\"done\":%" PRIu64
                       ",\"total\":%" PRIu64 ",\"unit\":\"tokens\"}",
                       stage, done, total) == ICAE_OK)
        ic_call_event(c, "progress", &b);
    ic_buffer_free(&b);
}

/* ---- as JSON ---------------------------------------------------------------------------------- */

int ic_fidelity_json(ic_buffer *out, const icae_fidelity *f)
{
    if (!f->measured)
        return ic_buffer_addf(out, "null");
    return ic_buffer_addf(
        out,
        "{\"loss\":%.6g,\"perplexity\":%.6g,\"accuracy\":%.6g,\"exact_prefix\":%" PRIu64
        ",\"tokens\":%" PRIu64 "}",
        f->loss, fmin(exp(f->loss), 1e300), f->accuracy, f->exact_prefix, f->tokens);
}

static int context_json(ic_buffer *out, const icae_context *x, double seconds)
{
    int rc = ICAE_OK;
    IC_TRY(ic_buffer_addf(out, "{\"id\":\"%s\",\"object\":\"context\",\"created\":%" PRId64, x->id,
                          x->created));
    if (x->expires)
        IC_TRY(ic_buffer_addf(out, ",\"expires\":%" PRId64 ",\"name\":", x->expires));
    else
        IC_TRY(ic_buffer_addf(out, ",\"expires\":null,\"name\":"));
    if (*x->name)
        IC_TRY(ic_json_quote(out, x->name, strlen(x->name)));
    else
        IC_TRY(ic_buffer_addf(out, "null"));
    IC_TRY(ic_buffer_addf(
        out,
        ",\"tokens\":%" PRIu64 ",\"slots\":%" PRIu64 ",\"segments\":%" PRIu64
        ",\"rate\":%.6g,\"text_bytes\":%" PRIu64 ",\"slot_bytes\":%" PRIu64
        ",\"dtype\":\"%s\",\"exact\":%s,\"base\":\"%s\",\"adapter\":\"%s\",\"text_sha256\":\"%s\"",
        x->tokens, x->slots, x->segments, (double)x->tokens / (double)IC_MAX(x->slots, 1),
        x->text_size, x->slot_bytes, x->dtype, x->exact ? "true" : "false", x->base, x->adapter,
        x->text_sha256));
    IC_TRY(ic_buffer_addf(out, ",\"fidelity\":"));
    IC_TRY(ic_fidelity_json(out, &x->fidelity));
    if (seconds > 0)
        IC_TRY(ic_buffer_addf(out, ",\"seconds\":%.6g", seconds));
    rc = ic_buffer_addf(out, "}");
done:
    return rc;
}

/* What has been made, as the answer or the last event. */
static void reply_context(ic_call *c, int status, const icae_context *x, double seconds)
{
    ic_buffer json = {0};
    int rc = context_json(&json, x, seconds);
    if (rc < 0) {
        ic_call_failed(c, rc, NULL);
    } else if (c->events && ic_exchange_status(c->x)) {
        ic_call_event(c, "done", &json);
        ic_exchange_end(c->x, true);
    } else {
        ic_buffer_addf(&json, "\n");
        ic_call_json(c, status, &json);
    }
    ic_buffer_free(&json);
}

void ic_context_failed(ic_call *c, int rc)
{
    if (rc == ICAE_EFORMAT)
        ic_call_error(c, 500, "storage_error", "context_damaged", NULL);
    else
        ic_call_failed(c, rc, NULL);
}

static bool has_store(ic_call *c)
{
    if (c->server->store)
        return true;
    ic_set_message("this server has no store: start it with --store");
    ic_call_error(c, 503, "server_error", "store_unavailable", NULL);
    return false;
}

/* ---- making ----------------------------------------------------------------------------------- */

static bool parse(ic_text_request *r, ic_call *c)
{
    size_t size;
    const char *body = ic_exchange_body(c->x, &size),
               *type = ic_exchange_header(c->x, "Content-Type");
    ic_text_query query = {
        .name = ic_exchange_query(c->x, "name"),
        .rate = ic_exchange_query(c->x, "rate"),
        .check = ic_exchange_query(c->x, "check"),
        .exact = ic_exchange_query(c->x, "exact"),
        .int8 = ic_exchange_query(c->x, "int8"),
        .refine = ic_exchange_query(c->x, "refine"),
        .ttl = ic_exchange_query(c->x, "ttl"),
    };
    const icae_adapter *adapter = c->server->session->adapter;
    int rc = ic_text_request_parse(r, type ? type : "", body, size, &query);
    if (rc == ICAE_EUNSUPPORTED)
        ic_call_error(c, 415, "invalid_request_error", "unsupported_media_type", NULL);
    else if (rc < 0)
        ic_call_failed(c, rc, r->param);
    if (r->options.refine == IC_ADAPTERS)
        r->options.refine = adapter ? IC_MIN(adapter->refine, IC_SERVE_REFINING) : 0;
    if (r->unknown.size)
        ic_buffer_add(&c->ignored, r->unknown.data, r->unknown.size);
    return rc == ICAE_OK;
}

/* A token's bound on contexts. False: reached, and the client knows. */
static bool check_bound(ic_call *c)
{
    uint64_t have = 0, bound = c->token.contexts;
    int rc = bound
                 ? icae_store_count(&have, c->server->store, &(icae_store_query){.owner = c->owner})
                 : ICAE_OK;
    if (rc < 0) {
        ic_context_failed(c, rc);
        return false;
    }
    if (!bound || have < bound)
        return true;
    ic_set_message("%s has %" PRIu64 " contexts already, as many as it may", c->client, have);
    ic_call_error(c, 429, "rate_limit_error", "context_limit", NULL);
    return false;
}

/* Slots of the request: compressed, or as they were sent. */
static int make(icae_slots **out, ic_call *c, const ic_text_request *r)
{
    if (!r->file)
        return ic_serve_compress(out, c, r->text, r->size, &r->options,
                                 c->events ? tell_progress : NULL, c);
    int rc = icae_slots_read(out, r->text, r->size, "the body");
    return rc < 0 ? rc : icae_slots_check(*out, c->server->session);
}

void ic_serve_context_new(ic_call *c)
{
    ic_text_request r = {0};
    icae_slots *slots = NULL;
    icae_context made;
    bool existed = false, admitted = false;
    if (!has_store(c) || !parse(&r, c) || !check_bound(c) || !(admitted = ic_call_admit(c)))
        goto done;
    double start = ic_seconds();
    int rc = make(&slots, c, &r);
    double seconds = ic_seconds() - start;
    if (rc == ICAE_OK)
        rc = icae_store_put(&made, &existed, c->server->store, slots,
                            &(icae_put_options){.owner = c->owner, .name = r.name, .ttl = r.ttl});
    if (rc < 0)
        ic_call_failed(c, rc, r.file ? "body" : "text");
    else
        reply_context(c, existed ? 200 : 201, &made, seconds);
done:
    if (admitted)
        ic_call_leave(c);
    icae_slots_free(slots);
    ic_text_request_free(&r);
}

/* ---- appending -------------------------------------------------------------------------------- */

/* Another server may append at the same time: then it is done again, behind what that one did. */
static int append(icae_context *out, ic_call *c, const icae_slots *more)
{
    enum { TRIES = 8 };
    int rc = ICAE_OK;
    icae_store *store = c->server->store;
    icae_slots *old = NULL, *joined = NULL;
    icae_context context, now;
    for (int i = 0; i < TRIES; i++) {
        IC_TRY(icae_store_get(&old, &context, store, c->owner, c->id, c->server->session));
        IC_TRY(ic_slots_join(&joined, old, more));
        rc = icae_store_replace(out, store, c->owner, c->id, context.version, joined);
        if (rc != ICAE_EMISMATCH || icae_store_find(&now, store, c->owner, c->id) < 0 ||
            now.version == context.version)
            break;
        icae_slots_free(old);
        icae_slots_free(joined);
        old = joined = NULL;
    }
done:
    icae_slots_free(old);
    icae_slots_free(joined);
    return rc;
}

/* The context does not expire meanwhile. */
static int append_text(icae_context *out, ic_call *c, const ic_text_request *r)
{
    enum { LONGEST = 3600 }; /* seconds that the hold lasts if this server dies */
    icae_store *store = c->server->store;
    icae_slots *slots = NULL;
    char why[400];
    int rc = icae_store_hold(store, c->owner, c->id, c->server->holder, LONGEST);
    if (rc < 0)
        return rc;
    rc = make(&slots, c, r);
    if (rc == ICAE_OK)
        rc = append(out, c, slots);
    snprintf(why, sizeof why, "%s", icae_error_message());
    (void)icae_store_release(store, c->id, c->server->holder); /* else it ends by itself */
    if (rc < 0)
        ic_set_message("%s", why);
    icae_slots_free(slots);
    return rc;
}

void ic_serve_context_append(ic_call *c)
{
    ic_text_request r = {0};
    icae_slots *slots = NULL;
    icae_context context;
    bool admitted = false;
    if (!has_store(c) || !parse(&r, c))
        goto done;
    if (r.file) {
        ic_set_message("slots cannot be appended, only text");
        ic_call_error(c, 415, "invalid_request_error", "unsupported_media_type", NULL);
        goto done;
    }
    int rc =
        icae_store_get(&slots, &context, c->server->store, c->owner, c->id, c->server->session);
    if (rc < 0) {
        ic_context_failed(c, rc);
        goto done;
    }
    if (!(admitted = ic_call_admit(c)))
        goto done;
    /* new segments are as the old ones */
    r.options.rate = slots->rate;
    r.options.int8 = slots->dtype == IC_I8;
    r.options.refine = (int)IC_MIN(slots->refined, IC_SERVE_REFINING);
    r.options.exact = false;
    r.options.span = (uint32_t)IC_MIN(slots->span, UINT32_MAX);
    icae_slots_free(slots);
    slots = NULL;
    double start = ic_seconds();
    rc = append_text(&context, c, &r);
    double seconds = ic_seconds() - start;
    if (rc < 0)
        ic_call_failed(c, rc, "text");
    else
        reply_context(c, 200, &context, seconds);
done:
    if (admitted)
        ic_call_leave(c);
    icae_slots_free(slots);
    ic_text_request_free(&r);
}

/* ---- telling ---------------------------------------------------------------------------------- */

void ic_serve_context_get(ic_call *c)
{
    icae_context context;
    if (!has_store(c))
        return;
    int rc = icae_store_find(&context, c->server->store, c->owner, c->id);
    if (rc < 0)
        ic_context_failed(c, rc);
    else
        reply_context(c, 200, &context, 0);
}

static int list_json(ic_buffer *out, const icae_context *page, size_t count, bool more)
{
    int rc = ICAE_OK;
    IC_TRY(ic_buffer_addf(out, "{\"object\":\"list\",\"data\":["));
    for (size_t i = 0; i < count; i++) {
        if (i)
            IC_TRY(ic_buffer_addf(out, ","));
        IC_TRY(context_json(out, &page[i], 0));
    }
    if (count)
        IC_TRY(ic_buffer_addf(out, "],\"first_id\":\"%s\",\"last_id\":\"%s\"", page[0].id,
                              page[count - 1].id));
    else
        IC_TRY(ic_buffer_addf(out, "],\"first_id\":null,\"last_id\":null"));
    rc = ic_buffer_addf(out, ",\"has_more\":%s}\n", more ? "true" : "false");
done:
    return rc;
}

void ic_serve_context_list(ic_call *c)
{
    ic_fields f = {0};
    ic_buffer json = {0};
    int64_t limit = 20;
    size_t count = 0;
    icae_context *page = NULL;
    const char *after = ic_exchange_query(c->x, "after");
    if (!has_store(c))
        return;
    int rc = ic_query_whole(&f, "limit", ic_exchange_query(c->x, "limit"), &limit, 1, 100);
    if (rc >= 0 && after && ic_context_check_id(after) < 0)
        rc = ic_fields_wrong(&f, "after", "the id of a context");
    if (rc < 0) {
        ic_call_failed(c, rc, f.param);
        return;
    }
    icae_store_query q = {.owner = c->owner, .after = after, .limit = (int)limit + 1};
    rc = icae_store_list(&page, &count, c->server->store, &q);
    if (rc == ICAE_OK)
        rc = list_json(&json, page, IC_MIN(count, (size_t)limit), count > (size_t)limit);
    if (rc < 0)
        ic_context_failed(c, rc);
    else
        ic_call_json(c, 200, &json);
    icae_free(page);
    ic_buffer_free(&json);
}

void ic_serve_context_slots(ic_call *c)
{
    char *data = NULL;
    size_t size = 0;
    if (!has_store(c))
        return;
    int rc = icae_store_read(&data, &size, c->server->store, c->owner, c->id);
    if (rc < 0)
        ic_context_failed(c, rc);
    else
        ic_exchange_reply(c->x, 200, "application/vnd.icae", data, size);
    icae_free(data);
}

static int fidelity_report(ic_buffer *out, const char *id, const icae_slots *slots)
{
    int rc = ICAE_OK;
    icae_slots_info info = icae_slots_describe(slots);
    IC_TRY(ic_buffer_addf(out,
                          "{\"object\":\"context.fidelity\",\"id\":\"%s\",\"measured\":%s,"
                          "\"fidelity\":",
                          id, info.fidelity.measured ? "true" : "false"));
    IC_TRY(ic_fidelity_json(out, &info.fidelity));
    IC_TRY(ic_buffer_addf(out, ",\"segments\":["));
    uint64_t first = 0;
    for (size_t i = 0; i < slots->segments; i++) {
        icae_fidelity f = {0};
        const ic_segment *g = &slots->segment[i];
        if (slots->measured)
            f = (icae_fidelity){true, g->loss_sum / g->tokens, (double)g->right / g->tokens,
                                g->prefix, g->tokens};
        IC_TRY(ic_buffer_addf(out,
                              "%s{\"first_token\":%" PRIu64 ",\"tokens\":%" PRIu32
                              ",\"slots\":%" PRIu32 ",\"fidelity\":",
                              i ? "," : "", first, g->tokens, g->slots));
        IC_TRY(ic_fidelity_json(out, &f));
        IC_TRY(ic_buffer_addf(out, "}"));
        first += g->tokens;
    }
    IC_TRY(ic_buffer_addf(out, "],\"doubtful\":["));
    size_t count;
    const uint32_t *doubtful = icae_slots_doubtful(slots, &count);
    for (size_t i = 0; i < count; i++)
        IC_TRY(ic_buffer_addf(out, "%s%" PRIu32, i ? "," : "", doubtful[i]));
    rc = ic_buffer_addf(out, "]}\n");
done:
    return rc;
}

void ic_serve_context_fidelity(ic_call *c)
{
    icae_slots *slots = NULL;
    ic_buffer json = {0};
    if (!has_store(c))
        return;
    int rc = icae_store_get(&slots, NULL, c->server->store, c->owner, c->id, NULL);
    if (rc == ICAE_OK)
        rc = fidelity_report(&json, c->id, slots);
    if (rc < 0)
        ic_context_failed(c, rc);
    else
        ic_call_json(c, 200, &json);
    icae_slots_free(slots);
    ic_buffer_free(&json);
}

void ic_serve_context_delete(ic_call *c)
{
    ic_buffer json = {0};
    if (!has_store(c))
        return;
    int rc = icae_store_remove(c->server->store, c->owner, c->id);
    if (rc == ICAE_OK)
        rc = ic_buffer_addf(
            &json, "{\"id\":\"%s\",\"object\":\"context.deleted\",\"deleted\":true}\n", c->id);
    if (rc < 0)
        ic_context_failed(c, rc);
    else
        ic_call_json(c, 200, &json);
    ic_buffer_free(&json);
}
