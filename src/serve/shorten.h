/* shorten.h - icae.compress_over; see shorten.c. */
#ifndef IC_SERVE_SHORTEN_H
#define IC_SERVE_SHORTEN_H

#include "serve/conversation.h"
#include "serve/reply.h"
#include "serve/serve.h"

/* A conversation on its way to become shorter. */
typedef struct ic_shortening {
    ic_turn *turns; /* those that are left as they are: a part of the ones given */
    size_t count;
    icae_part *front; /* the given front, and slots of what was compressed */
    size_t front_count;
    /* owned */
    icae_slots **made;
    size_t made_count;
    icae_part last[2]; /* of a last message that was cut */
} ic_shortening;

/* Compresses messages until their text has at most `most` tokens; notes in `usage` what was done. */
int ic_shorten(ic_shortening *s, ic_call *c, const icae_part *front, size_t front_count,
               ic_turn *turns, size_t count, uint64_t most, ic_usage *usage);
void ic_shortening_free(ic_shortening *s);

#endif
