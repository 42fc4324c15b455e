/* reply.h - the replies of one request, from token ids to OpenAI's JSON; see reply.c. */
#ifndef IC_SERVE_REPLY_H
#define IC_SERVE_REPLY_H

#include "core/core.h"
#include "serve/request.h"

typedef struct ic_reply ic_reply;

/* What a request has cost: the usage member. */
typedef struct ic_usage {
    uint64_t text_rows, slot_rows, cached_rows, context_tokens, completion;
    uint64_t expanded; /* of the text rows: tokens restored from slots */
    bool compressed;   /* compress_over did something: */
    uint64_t messages, tokens, slots;
} ic_usage;

typedef struct ic_reply_options {
    const ic_request *request;
    const icae_model *model;
    const char *id, *name; /* of the request; of the model */
    int64_t created;
    /* Where events of a stream go; NULL: the reply is gathered. Nonzero stops. */
    int (*write)(void *user, const char *data, size_t size);
    void *user;
} ic_reply_options;

int ic_reply_new(ic_reply **out, const ic_reply_options *options);
void ic_reply_free(ic_reply *r);
/* Prepares the generation of choice `index`: its take, look, and stop texts. */
void ic_reply_generation(ic_reply *r, int index, ic_generation *g);

/* Streams: what each choice begins with (chat), and its end; then usage, if asked for, and [DONE]. */
int ic_reply_begin(ic_reply *r);
int ic_reply_end(ic_reply *r, int index, const icae_result *result);
int ic_reply_close(ic_reply *r, const ic_usage *usage);
/* Else: all of it, after ic_reply_end for each choice. */
int ic_reply_whole(ic_buffer *out, ic_reply *r, const ic_usage *usage);

#endif
