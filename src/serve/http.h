/*
 * http.h - HTTP/1.1 at its plainest: requests come whole, responses go whole or as streams.
 *
 * Every request is handed to `handle` in a thread of its own for as long as it is at work (crew.h), so
 * handlers are written straight on and may wait; connections that only idle cost no thread. Knows
 * nothing of what is served. Without libmicrohttpd ic_http_start says so.
 */
#ifndef IC_SERVE_HTTP_H
#define IC_SERVE_HTTP_H

#include "base/base.h"

#include <stdatomic.h>

typedef struct ic_http ic_http;
typedef struct ic_exchange ic_exchange; /* a request and its response */

typedef struct ic_http_options {
    const char *host;        /* a name or an address */
    int port;                /* 0: a free one */
    const char *cert, *key;  /* PEM files; NULL: no TLS */
    size_t body, header;     /* bytes of a request at most */
    int connections, per_ip; /* at most; per_ip 0: no bound */
    int threads;             /* handlers at work at most; more requests wait */
    double
        timeout; /* seconds: of silence on a connection, for a request's head, for 64 KiB of its body */
    void (*handle)(void *user, ic_exchange *x);    /* must reply, or begin and end */
    void (*too_large)(void *user, ic_exchange *x); /* must reply at once */
    void *user;
} ic_http_options;

int ic_http_start(ic_http **out, const ic_http_options *options);
int ic_http_port(const ic_http *h);
/* Notices clients that have gone, cuts slow ones. To be called some twenty times a second. */
void ic_http_tend(ic_http *h);
void ic_http_refuse(ic_http *h); /* no new connections from now on */
int ic_http_active(ic_http *h);  /* requests at work, or whose response is on its way */
void ic_http_stop(ic_http *h);   /* waits for handlers; NULL is fine */

/* ---- the request: valid until the handler returns --------------------------------------------- */

const char *ic_exchange_id(const ic_exchange *x);     /* "req_" and hex digits */
const char *ic_exchange_method(const ic_exchange *x); /* HEAD is told as GET */
const char *ic_exchange_path(const ic_exchange *x);
const char *ic_exchange_peer(const ic_exchange *x); /* its address */
/* NULL: absent. Headers kept: Content-Type, Accept, Authorization, Origin, Host,
 * Access-Control-Request-Method. */
const char *ic_exchange_header(const ic_exchange *x, const char *name);
const char *ic_exchange_query(const ic_exchange *x, const char *name); /* "" without value */
const char *ic_exchange_body(const ic_exchange *x, size_t *size);      /* never NULL */
const atomic_bool *ic_exchange_gone(const ic_exchange *x); /* the client does not listen any more */

/* ---- the response ----------------------------------------------------------------------------- */

/* Adds a header; before reply or begin. */
void ic_exchange_set(ic_exchange *x, const char *name, const char *value);
void ic_exchange_reply(ic_exchange *x, int status, const char *type, const void *data, size_t size);
/* A stream: write and end may be called from any thread, one at a time. */
void ic_exchange_begin(ic_exchange *x, int status, const char *type);
int ic_exchange_write(ic_exchange *x, const void *data, size_t size); /* ICAE_ECANCELLED: gone */
void ic_exchange_end(ic_exchange *x, bool whole); /* not whole: the client sees a broken stream */
int ic_exchange_status(const ic_exchange *x);     /* 0: no response yet */
uint64_t ic_exchange_bytes(const ic_exchange *x); /* of the response's body so far */

#endif
