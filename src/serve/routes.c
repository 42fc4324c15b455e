/*
 * routes.c - who answers a request, and whether it may be answered at all: paths, methods, tokens, origins.
 *
 * Paths are compared with a fixed list; nothing of a request ever names a file.
 */
#include "serve/fields.h"
#include "serve/serve.h"
#include "store/store.h"

#include <stdio.h>
#include <string.h>

typedef struct route {
    const char *method, *path; /* * stands for the id of a context */
    void (*answer)(ic_call *c);
    bool open; /* without a token, too */
    bool json; /* its body is JSON */
} route;

static const route routes[] = {
    {"GET", "/", ic_serve_page, true, false},
    {"GET", "/healthz", ic_serve_health, true, false},
    {"GET", "/metrics", ic_serve_metrics, false, false},
    {"GET", "/v1/models", ic_serve_models, false, false},
    {"POST", "/v1/chat/completions", ic_serve_chat, false, true},
    {"POST", "/v1/completions", ic_serve_completion, false, true},
    {"GET", "/v1/contexts", ic_serve_context_list, false, false},
    {"POST", "/v1/contexts", ic_serve_context_new, false, false},
    {"GET", "/v1/contexts/*", ic_serve_context_get, false, false},
    {"DELETE", "/v1/contexts/*", ic_serve_context_delete, false, false},
    {"GET", "/v1/contexts/*/slots", ic_serve_context_slots, false, false},
    {"GET", "/v1/contexts/*/text", ic_serve_context_text, false, false},
    {"GET", "/v1/contexts/*/fidelity", ic_serve_context_fidelity, false, false},
    {"POST", "/v1/contexts/*/append", ic_serve_context_append, false, false},
};

/* Whether a path is the pattern's; what stands for * goes to id. */
static bool matches(const char *pattern, const char *path, char id[40])
{
    const char *star = strchr(pattern, '*');
    if (!star)
        return strcmp(pattern, path) == 0;
    size_t before = (size_t)(star - pattern);
    if (strncmp(pattern, path, before))
        return false;
    size_t size = strcspn(path + before, "/");
    if (!size || strcmp(star + 1, path + before + size))
        return false;
    snprintf(id, 40, "%.*s", (int)IC_MIN(size, 39), path + before);
    return true;
}

static void not_found(ic_call *c)
{
    ic_set_message("there is nothing at %.200s", ic_exchange_path(c->x));
    ic_call_error(c, 404, "not_found_error", "not_found", NULL);
}

static void wrong_method(ic_call *c, const char *allowed)
{
    ic_exchange_set(c->x, "Allow", allowed);
    ic_set_message("%.20s is not possible here, but %s", ic_exchange_method(c->x), allowed);
    ic_call_error(c, 405, "invalid_request_error", "method_not_allowed", NULL);
}

/* Pages of the one origin that is listed may call; others find no header and are stopped by the
 * browser. */
static void allow_origin(ic_call *c)
{
    const char *origin = ic_exchange_header(c->x, "Origin"), *listed = c->server->options.cors;
    if (!listed || !origin || (strcmp(listed, "*") && strcmp(listed, origin)))
        return;
    ic_exchange_set(c->x, "Access-Control-Allow-Origin", listed);
    ic_exchange_set(c->x, "Vary", "Origin");
    if (ic_exchange_header(c->x, "Access-Control-Request-Method")) {
        ic_exchange_set(c->x, "Access-Control-Allow-Methods", "GET, POST, DELETE");
        ic_exchange_set(c->x, "Access-Control-Allow-Headers", "Authorization, Content-Type");
        ic_exchange_set(c->x, "Access-Control-Max-Age", "600");
    }
}

/* Another site's page must not use a server that trusts whoever reaches it. */
static bool is_foreign(const ic_call *c)
{
    const char *origin = ic_exchange_header(c->x, "Origin"),
               *host = ic_exchange_header(c->x, "Host");
    const char *listed = c->server->options.cors;
    if (!origin || c->server->tokens)
        return false;
    if (listed && (!strcmp(listed, "*") || !strcmp(listed, origin)))
        return false;
    const char *at = strstr(origin, "://");
    return !at || !host || strcmp(at + 3, host);
}

static bool may_go_on(ic_call *c, const route *r)
{
    ic_server *s = c->server;
    const char *authorization = ic_exchange_header(c->x, "Authorization");
    if (!r->open && is_foreign(c)) {
        ic_set_message("requests of pages from elsewhere are not answered: see --cors");
        ic_call_error(c, 403, "authentication_error", "foreign_origin", NULL);
        return false;
    }
    if (r->open || !s->tokens)
        return true;
    if (!ic_tokens_find(&c->token, s->tokens, authorization)) {
        ic_exchange_set(c->x, "WWW-Authenticate", "Bearer");
        ic_set_message(authorization ? "this token is not known"
                                     : "a token is needed: "
                                       "Authorization: Bearer TOKEN");
        ic_call_error(c, 401, "authentication_error", "invalid_api_key", NULL);
        return false;
    }
    c->client = c->owner = c->token.name;
    int wait = ic_tokens_charge(s->tokens, c->token.name);
    if (wait) {
        ic_call_retry(c, wait);
        ic_set_message("%s has used up its requests for now", c->token.name);
        ic_call_error(c, 429, "rate_limit_error", "rate_limit", NULL);
    }
    return !wait;
}

static bool is_json(ic_call *c)
{
    const char *type = ic_exchange_header(c->x, "Content-Type");
    if (ic_is_media_type(type, "application/json"))
        return true;
    ic_set_message("Content-Type %.80s: expected application/json", type ? type : "(none)");
    ic_call_error(c, 415, "invalid_request_error", "unsupported_media_type", NULL);
    return false;
}

static void answer(ic_call *c)
{
    const char *path = ic_exchange_path(c->x), *method = ic_exchange_method(c->x);
    char allowed[64] = "";
    allow_origin(c);
    for (size_t i = 0; i < IC_COUNT(routes); i++) {
        const route *r = &routes[i];
        if (!matches(r->path, path, c->id))
            continue;
        if (strcmp(method, r->method)) {
            size_t n = strlen(allowed);
            snprintf(allowed + n, sizeof allowed - n, "%s%s", n ? ", " : "", r->method);
            continue;
        }
        if (!may_go_on(c, r) || (r->json && !is_json(c)))
            return;
        if (*c->id && ic_context_check_id(c->id) < 0) {
            ic_call_error(c, 404, "not_found_error", "context_not_found", NULL);
            return;
        }
        r->answer(c);
        return;
    }
    if (*allowed && strcmp(method, "OPTIONS") == 0)
        ic_exchange_reply(c->x, 204, "text/plain", NULL, 0);
    else if (*allowed)
        wrong_method(c, allowed);
    else
        not_found(c);
}

static void note(ic_call *c)
{
    ic_server *s = c->server;
    int status = ic_exchange_status(c->x);
    bool gone = atomic_load(ic_exchange_gone(c->x));
    double seconds = ic_seconds() - c->start;
    atomic_fetch_add(&s->metrics.requests[IC_MIN(status / 100, 5)], 1);
    atomic_fetch_add(&s->metrics.gone, gone);
    atomic_fetch_add(&s->metrics.seconds_us, (unsigned long long)(seconds * 1e6));
    ic_log_line l = ic_log_begin(s->log, "request");
    ic_log_text(&l, "id", ic_exchange_id(c->x));
    ic_log_text(&l, "client", c->client);
    ic_log_text(&l, "method", ic_exchange_method(c->x));
    ic_log_text(&l, "path", ic_exchange_path(c->x));
    ic_log_count(&l, "status", (uint64_t)status);
    ic_log_count(&l, "bytes", ic_exchange_bytes(c->x));
    ic_log_real(&l, "seconds", seconds);
    if (c->rows) {
        ic_log_count(&l, "rows", c->rows);
        ic_log_count(&l, "tokens", c->tokens);
        ic_log_real(&l, "waited", c->waited);
        ic_log_real(&l, "first", c->first);
    }
    ic_log_text(&l, "ignored", c->ignored.size ? c->ignored.data : NULL);
    ic_log_text(&l, "error", c->failed ? c->message : NULL);
    if (gone)
        ic_log_count(&l, "gone", 1);
    ic_log_end(&l);
}

static ic_call begin(void *server, ic_exchange *x)
{
    const char *accept = ic_exchange_header(x, "Accept");
    return (ic_call){.server = server,
                     .x = x,
                     .client = ic_exchange_peer(x),
                     .events = accept && strstr(accept, "text/event-stream"),
                     .start = ic_seconds()};
}

void ic_serve_route(void *server, ic_exchange *x)
{
    ic_call c = begin(server, x);
    answer(&c);
    if (!ic_exchange_status(x)) { /* no answer for want of memory */
        ic_set_message("no answer could be made");
        ic_call_error(&c, 500, "server_error", NULL, NULL);
    }
    note(&c);
    ic_buffer_free(&c.ignored);
}

void ic_serve_too_large(void *server, ic_exchange *x)
{
    ic_call c = begin(server, x);
    ic_set_message("the body is longer than %llu bytes",
                   (unsigned long long)c.server->options.max_body);
    ic_call_error(&c, 413, "invalid_request_error", "body_too_large", NULL);
    note(&c);
}
