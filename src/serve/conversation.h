/* conversation.h - from messages to the rows that the decoder reads; see conversation.c. */
#ifndef IC_SERVE_CONVERSATION_H
#define IC_SERVE_CONVERSATION_H

#include "core/core.h"
#include "serve/request.h"

/* A part of a message: text (borrowed), or slots. */
typedef struct ic_turn {
    ic_role role;
    icae_part *parts;
    size_t count;
} ic_turn;

typedef struct ic_conversation {
    ic_prompt prompt;
    char key[65]; /* of its first `shared` rows: up to the last slots */
    int shared;
    uint64_t context_tokens;       /* that the slots stand for */
    uint64_t expanded;             /* tokens that were restored from slots and are read as text */
    int32_t end_of_turn;           /* -1: none */
    ic_buffer seed;                /* what the key is the hash of */
    const ic_expansion *expansion; /* borrowed while it is laid out */
} ic_conversation;

/* `front`: slots that stand before the first user's message. x: segments that are read as text; with any, no
 * row is one that others begin with. */
int ic_conversation_chat(ic_conversation *c, icae_session *s, const icae_part *front,
                         size_t front_count, const ic_turn *turns, size_t count,
                         const ic_expansion *x);
/* Slots, then text to be continued. */
int ic_conversation_plain(ic_conversation *c, icae_session *s, const icae_part *front,
                          size_t front_count, const char *text, const ic_expansion *x);
void ic_conversation_free(ic_conversation *c);

/* Tokens of a text inside a conversation. */
int ic_conversation_count(uint64_t *tokens, const icae_session *s, const char *text, size_t size);

#endif
