/* request.h - what a request for a reply asks; see request.c. */
#ifndef IC_SERVE_REQUEST_H
#define IC_SERVE_REQUEST_H

#include "serve/fields.h"

/* Text, or a context by its id. Strings belong to the request's JSON. */
typedef struct ic_piece {
    const char *text, *context; /* one of them is NULL */
} ic_piece;

typedef enum { IC_SYSTEM, IC_USER, IC_ASSISTANT } ic_role;

typedef struct ic_message {
    ic_role role;
    size_t first, count; /* of the request's pieces */
} ic_message;

enum { IC_MOST_STOPS = 4, IC_MOST_TOP = 20, IC_MOST_CONTEXTS = 64, IC_MOST_EXPANDED = 1024 };

typedef struct ic_request {
    bool chat; /* else a completion: a piece for each prompt, and no messages */
    ic_message *messages;
    ic_piece *pieces;
    size_t message_count, piece_count;
    const char *contexts[IC_MOST_CONTEXTS];
    size_t context_count;
    uint64_t compress_over; /* 0: no */
    int expand;             /* segments that are restored and read as text; 0: none */
    icae_sampling sampling;
    bool seeded, stream, usage, echo, logprobs;
    int n, top; /* n replies to each prompt */
    const char *stop[IC_MOST_STOPS];
    size_t stops;
    const char *model; /* as asked for, or NULL */
    /* owned */
    ic_json *root;
    ic_buffer unknown; /* names of members that were ignored */
    char param[64];    /* what is wrong, if parsing failed */
} ic_request;

/* Replies to the request; reply i is to prompt i / n. */
static inline int ic_request_replies(const ic_request *r)
{
    return r->n * (r->chat ? 1 : (int)r->piece_count);
}

typedef struct ic_request_limits {
    int n;               /* replies */
    uint64_t max_tokens; /* of a reply */
} ic_request_limits;

/* Free it also after a failure: ICAE_EINVAL or ICAE_EFORMAT, with `param`. */
int ic_request_parse(ic_request *r, bool chat, const char *body, size_t size,
                     const ic_request_limits *limits);
void ic_request_free(ic_request *r);

#endif
