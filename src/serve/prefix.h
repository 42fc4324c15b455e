/* prefix.h - keys and values of what many prompts begin with; see prefix.c. */
#ifndef IC_SERVE_PREFIX_H
#define IC_SERVE_PREFIX_H

#include "core/core.h"

typedef struct ic_prefixes ic_prefixes;
typedef enum { IC_PREFIX_ABSENT, IC_PREFIX_COMING, IC_PREFIX_READY } ic_prefix_state;

int ic_prefixes_new(ic_prefixes **out, uint64_t bytes); /* that are kept at most */
void ic_prefixes_free(ic_prefixes *p);

/* *kv (if ready) is to be read or forked, and valid until the next call. */
ic_prefix_state ic_prefixes_find(const ic_kv **kv, ic_prefixes *p, const char *key);
void ic_prefixes_promise(ic_prefixes *p, const char *key); /* ABSENT becomes COMING */
/* COMING becomes READY, or ABSENT; then *from shares its rows. */
void ic_prefixes_keep(ic_prefixes *p, const char *key, ic_kv *from, int rows);
void ic_prefixes_break(ic_prefixes *p, const char *key); /* COMING becomes ABSENT */
uint64_t ic_prefixes_bytes(const ic_prefixes *p);

#endif
