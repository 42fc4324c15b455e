/*
 * call.c - what all answers share: JSON, errors in OpenAI's form, events, the bound on what waits.
 */
#include "serve/serve.h"

#include <stdio.h>
#include <string.h>

void ic_call_json(ic_call *c, int status, ic_buffer *json)
{
    ic_exchange_reply(c->x, status, "application/json", json->data, json->size);
    json->size = 0;
}

static int add_member(ic_buffer *b, const char *name, const char *text)
{
    int rc = ic_buffer_addf(b, ",\"%s\":", name);
    if (rc < 0)
        return rc;
    return text ? ic_json_quote(b, text, strlen(text)) : ic_buffer_addf(b, "null");
}

void ic_call_error(ic_call *c, int status, const char *type, const char *code, const char *param)
{
    ic_buffer b = {0};
    snprintf(c->message, sizeof c->message, "%s", icae_error_message());
    c->failed = true;
    ic_buffer_addf(&b, "{\"error\":{\"message\":");
    ic_json_quote(&b, c->message, strlen(c->message));
    add_member(&b, "type", type);
    add_member(&b, "param", param && *param ? param : NULL);
    add_member(&b, "code", code);
    ic_buffer_addf(&b, "}}");
    if (!ic_exchange_status(c->x)) {
        ic_buffer_addf(&b, "\n");
        ic_call_json(c, status, &b);
    } else { /* in the middle of a stream */
        ic_call_event(c, strncmp(ic_exchange_path(c->x), "/v1/contexts", 12) ? NULL : "error", &b);
        ic_exchange_end(c->x, true);
    }
    ic_buffer_free(&b);
}

void ic_call_retry(ic_call *c, int seconds)
{
    char text[16];
    snprintf(text, sizeof text, "%d", seconds);
    ic_exchange_set(c->x, "Retry-After", text);
}

void ic_call_failed(ic_call *c, int rc, const char *param)
{
    static const struct {
        int rc, status;
        const char *type, *code;
    } known[] = {
        {ICAE_EINVAL, 400, "invalid_request_error", NULL},
        {ICAE_EFORMAT, 400, "invalid_request_error", NULL},
        {ICAE_EUNSUPPORTED, 400, "invalid_request_error", "unsupported"},
        {ICAE_ELIMIT, 400, "invalid_request_error", "context_length_exceeded"},
        {ICAE_ENOTFOUND, 404, "not_found_error", "context_not_found"},
        {ICAE_EMISMATCH, 409, "conflict_error", "other_model"},
        {ICAE_EFULL, 507, "storage_error", "storage_full"},
        {ICAE_EUNAVAILABLE, 503, "server_error", "store_unavailable"},
        {ICAE_ENOMEM, 503, "server_error", "out_of_memory"},
        {ICAE_ECANCELLED, 503, "server_error", "stopped"},
    };
    for (size_t i = 0; i < IC_COUNT(known); i++) {
        if (known[i].rc != rc)
            continue;
        if (known[i].status == 503 && !ic_exchange_status(c->x))
            ic_call_retry(c, 2);
        ic_call_error(c, known[i].status, known[i].type, known[i].code, param);
        return;
    }
    ic_call_error(c, 500, "server_error", NULL, NULL);
}

int ic_call_event(ic_call *c, const char *name, const ic_buffer *json)
{
    int rc = ICAE_OK;
    ic_buffer b = {0};
    if (name)
        IC_TRY(ic_buffer_addf(&b, "event: %s\n", name));
    IC_TRY(ic_buffer_add(&b, "data: ", 6));
    IC_TRY(ic_buffer_add(&b, json->data, json->size));
    IC_TRY(ic_buffer_add(&b, "\n\n", 2));
    rc = ic_exchange_write(c->x, b.data, b.size);
done:
    ic_buffer_free(&b);
    return rc;
}

bool ic_call_admit(ic_call *c)
{
    ic_server *s = c->server;
    if (atomic_load(&s->draining)) {
        ic_call_retry(c, 5);
        ic_set_message("the server is going down");
        ic_call_error(c, 503, "server_error", "stopped", NULL);
        return false;
    }
    if (atomic_fetch_add(&s->admitted, 1) < s->options.sequences + s->options.queue)
        return true;
    atomic_fetch_sub(&s->admitted, 1);
    atomic_fetch_add(&s->metrics.refused, 1);
    ic_call_retry(c, 1);
    ic_set_message("%d requests are at work or wait already: try again later",
                   s->options.sequences + s->options.queue);
    ic_call_error(c, 429, "rate_limit_error", "queue_full", NULL);
    return false;
}

void ic_call_leave(ic_call *c)
{
    atomic_fetch_sub(&c->server->admitted, 1);
}
