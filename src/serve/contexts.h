/* contexts.h - what contexts look like outside; see contexts.c. */
#ifndef IC_SERVE_CONTEXTS_H
#define IC_SERVE_CONTEXTS_H

#include "serve/serve.h"

/* Fails for the client: an error of the store, of which a damaged context is the server's own. */
void ic_context_failed(ic_call *c, int rc);
int ic_fidelity_json(ic_buffer *out, const icae_fidelity *f); /* null if not measured */

enum { IC_SERVE_REFINING = 100 /* steps: one text must not take the model for hours */ };

/* A text to be compressed, and how. */
typedef struct ic_text_request {
    const char *text; /* belongs to `root` or the exchange */
    size_t size;
    bool file; /* it is a slots file */
    const char *name;
    icae_compress_options options;
    uint64_t ttl;
    ic_json *root;
    ic_buffer unknown;
    char param[64];
} ic_text_request;

/* Values of a request's query; NULL: absent. */
typedef struct ic_text_query {
    const char *name, *rate, *check, *exact, *int8, *refine, *ttl;
} ic_text_query;

/* Pure, as ic_request_parse. ICAE_EUNSUPPORTED: the content type is none of ours. Free it always. */
int ic_text_request_parse(ic_text_request *r, const char *type, const char *body, size_t size,
                          const ic_text_query *query);
void ic_text_request_free(ic_text_request *r);

#endif
