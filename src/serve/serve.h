/*
 * serve.h - a server at work, and one call of its interface.
 *
 * routes.c finds who answers a call; answers.c, contexts.c and restore.c do, each call in a thread of its
 * own. Everything that computes goes through the worker.
 */
#ifndef IC_SERVE_H
#define IC_SERVE_H

#include "serve/http.h"
#include "serve/log.h"
#include "serve/tokens.h"
#include "serve/worker.h"

#include <pthread.h>

enum { IC_MOST_ROUTES = 16 };

/* Counters since the start; see metrics.c. */
typedef struct ic_metrics {
    atomic_ullong requests[6]; /* by hundreds of the status */
    atomic_ullong prompt_text, prompt_slots, prompt_cached, completion;
    atomic_ullong compressed_texts, compressed_tokens, compressed_slots;
    atomic_ullong gone, refused;
    atomic_ullong seconds_us, first_token_us, first_tokens;
} ic_metrics;

typedef struct ic_server {
    icae_serve_options options; /* with defaults filled in */
    icae_session *session;
    icae_store *store; /* may be NULL: no contexts */
    ic_worker *worker;
    ic_http *http;
    ic_tokens *tokens; /* NULL: everyone */
    ic_log *log;
    ic_metrics metrics;
    char name[128]; /* of the model */
    char *page_policy;
    char holder[65]; /* under this name it holds contexts that it works on */
    int64_t started; /* Unix seconds */
    atomic_bool draining;
    /* keeping the store (serve.c) */
    pthread_t keeper;
    pthread_mutex_t lock;
    pthread_cond_t ended; /* `over` has become true */
    bool keeps, over;
    atomic_int admitted; /* calls that wait for the worker or are at work there */
} ic_server;

/* One request on its way. */
typedef struct ic_call {
    ic_server *server;
    ic_exchange *x;
    ic_token token;
    const char *client, *owner; /* for turns; of contexts (NULL: everybody's) */
    char id[40];                /* of the context that the path names */
    bool events;                /* the client wants an event stream */
    bool failed;                /* an error was the answer */
    double start;
    /* for the log */
    ic_buffer ignored;
    uint64_t rows, tokens;
    double waited, first;
    char message[400];
} ic_call;

/* ---- answers (call.c) ------------------------------------------------------------------------- */

void ic_call_json(ic_call *c, int status, ic_buffer *json); /* empties the buffer */
/* An OpenAI error. `type`, `code` and `param` as in docs/openapi.yaml; the message is this thread's. */
void ic_call_error(ic_call *c, int status, const char *type, const char *code, const char *param);
/* The same for a code of the library. */
void ic_call_failed(ic_call *c, int rc, const char *param);
void ic_call_retry(ic_call *c, int seconds); /* a Retry-After, before the error */
/* An event of a stream; name NULL: data alone. */
int ic_call_event(ic_call *c, const char *name, const ic_buffer *json);

/* Counts a call in that needs the worker. False: the queue is full, and the client knows. */
bool ic_call_admit(ic_call *c);
void ic_call_leave(ic_call *c);

/* ---- who answers ------------------------------------------------------------------------------ */

void ic_serve_route(void *server, ic_exchange *x); /* routes.c; both are ic_http_options' */
void ic_serve_too_large(void *server, ic_exchange *x);

void ic_serve_chat(ic_call *c); /* answers.c */
void ic_serve_completion(ic_call *c);
void ic_serve_context_new(ic_call *c); /* contexts.c */
void ic_serve_context_list(ic_call *c);
void ic_serve_context_get(ic_call *c);
void ic_serve_context_slots(ic_call *c);
void ic_serve_context_fidelity(ic_call *c);
void ic_serve_context_append(ic_call *c);
void ic_serve_context_delete(ic_call *c);
void ic_serve_context_text(ic_call *c); /* restore.c */
void ic_serve_models(ic_call *c);       /* state.c */
void ic_serve_health(ic_call *c);
void ic_serve_metrics(ic_call *c);
void ic_serve_page(ic_call *c);
int ic_page_policy(char **out); /* the page's Content-Security-Policy */

/* ---- compression for a call (contexts.c, answers.c) ------------------------------------------- */

/* A text through the worker; progress (may be NULL) is called in its thread. */
typedef void (*ic_stage_fn)(void *user, const char *stage, uint64_t done, uint64_t total);
int ic_serve_compress(icae_slots **out, ic_call *c, const char *text, size_t size,
                      const icae_compress_options *o, ic_stage_fn progress, void *user);

#endif
