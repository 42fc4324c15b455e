/* expand.h - icae.expand; see expand.c. */
#ifndef IC_SERVE_EXPAND_H
#define IC_SERVE_EXPAND_H

#include "serve/conversation.h"
#include "serve/serve.h"

/* Restores up to `most` segments of all slots in front and turns: those that make the last user's text, or
 * `prompt` if that is not NULL, likeliest. Free it also after a failure. */
int ic_serve_expand(ic_expansion *out, ic_call *c, const icae_part *front, size_t front_count,
                    const ic_turn *turns, size_t count, const char *prompt, int most);

#endif
