/* tokens.h - who may use the server, and how much; see tokens.c. */
#ifndef IC_SERVE_TOKENS_H
#define IC_SERVE_TOKENS_H

#include "base/base.h"

typedef struct ic_tokens ic_tokens;
typedef struct ic_token {
    const char *name;
    uint64_t contexts; /* that it may have at most; 0: no bound */
} ic_token;

int ic_tokens_read(ic_tokens **out, const char *path);
void ic_tokens_free(ic_tokens *t);
/* Who sends "Bearer TOKEN" (NULL: no header); false: nobody we know. */
bool ic_tokens_find(ic_token *out, const ic_tokens *t, const char *authorization);
/* Counts one request. 0, or the seconds after which the token's next one will be accepted. */
int ic_tokens_charge(ic_tokens *t, const char *name);

#endif
