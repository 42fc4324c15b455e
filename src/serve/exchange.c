/*
 * exchange.c - a request as its handler sees it, and the response that the handler writes.
 *
 * The response is a buffer that the polling thread empties; both sides hold the exchange's lock. Knows
 * nothing of sockets: http.c moves the bytes.
 */
#include "serve/exchange.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

const char *const ic_exchange_headers[IC_EXCHANGE_HEADERS] = {
    "Content-Type", "Accept", "Authorization", "Origin", "Host", "Access-Control-Request-Method"};

static void clear_pair(ic_pair *p)
{
    ic_free(p->name);
    ic_free(p->value);
}

void ic_exchange_release(ic_exchange *x)
{
    pthread_mutex_lock(&x->lock);
    bool last = --x->references == 0;
    pthread_mutex_unlock(&x->lock);
    if (!last)
        return;
    for (int i = 0; i < x->queries; i++)
        clear_pair(&x->query[i]);
    for (int i = 0; i < IC_EXCHANGE_HEADERS; i++)
        ic_free(x->header[i]);
    for (int i = 0; i < x->sets; i++)
        clear_pair(&x->set[i]);
    ic_free(x->method);
    ic_free(x->path);
    ic_buffer_free(&x->body);
    ic_buffer_free(&x->out);
    pthread_mutex_destroy(&x->lock);
    ic_free(x);
}

void ic_exchange_set(ic_exchange *x, const char *name, const char *value)
{
    if (x->sets == IC_EXCHANGE_SET)
        return;
    ic_pair p = {ic_strdup(name), ic_strdup(value)};
    if (p.name && p.value)
        x->set[x->sets++] = p;
    else
        clear_pair(&p);
}

static void open_response(ic_exchange *x, int status, const char *type)
{
    x->status = status;
    snprintf(x->type, sizeof x->type, "%s", type);
}

void ic_exchange_reply(ic_exchange *x, int status, const char *type, const void *data, size_t size)
{
    pthread_mutex_lock(&x->lock);
    open_response(x, status, type);
    x->bytes = size;
    if (size && ic_buffer_add(&x->out, data, size) < 0)
        x->broken = true;
    x->ended = true;
    x->wake(x);
    pthread_mutex_unlock(&x->lock);
}

void ic_exchange_begin(ic_exchange *x, int status, const char *type)
{
    pthread_mutex_lock(&x->lock);
    open_response(x, status, type);
    x->stream = true;
    x->wake(x);
    pthread_mutex_unlock(&x->lock);
}

int ic_exchange_write(ic_exchange *x, const void *data, size_t size)
{
    pthread_mutex_lock(&x->lock);
    int rc = atomic_load(&x->gone) ? ic_fail(ICAE_ECANCELLED, "the client has gone")
                                   : ic_buffer_add(&x->out, data, size);
    x->bytes += size;
    x->wake(x);
    pthread_mutex_unlock(&x->lock);
    return rc;
}

void ic_exchange_end(ic_exchange *x, bool whole)
{
    pthread_mutex_lock(&x->lock);
    x->ended = true;
    x->broken = !whole;
    x->wake(x);
    pthread_mutex_unlock(&x->lock);
}

int ic_exchange_status(const ic_exchange *x)
{
    return x->status;
}

uint64_t ic_exchange_bytes(const ic_exchange *x)
{
    return x->bytes;
}

/* ---- the request ------------------------------------------------------------------------------ */

const char *ic_exchange_id(const ic_exchange *x)
{
    return x->id;
}

const char *ic_exchange_method(const ic_exchange *x)
{
    return x->method;
}

const char *ic_exchange_path(const ic_exchange *x)
{
    return x->path;
}

const char *ic_exchange_peer(const ic_exchange *x)
{
    return x->peer;
}

const char *ic_exchange_header(const ic_exchange *x, const char *name)
{
    for (int i = 0; i < IC_EXCHANGE_HEADERS; i++)
        if (strcasecmp(ic_exchange_headers[i], name) == 0)
            return x->header[i];
    return NULL;
}

const char *ic_exchange_query(const ic_exchange *x, const char *name)
{
    for (int i = 0; i < x->queries; i++)
        if (x->query[i].name && x->query[i].value && strcmp(x->query[i].name, name) == 0)
            return x->query[i].value;
    return NULL;
}

const char *ic_exchange_body(const ic_exchange *x, size_t *size)
{
    *size = x->body.size;
    return x->body.data ? x->body.data : "";
}

const atomic_bool *ic_exchange_gone(const ic_exchange *x)
{
    return &x->gone;
}
