/*
 * prefix.c - keys and values of the slots that many prompts begin with: read once, shared by all.
 *
 * Owns a list of caches, the last used first; what no longer fits goes from its end, and lives on as long
 * as replies read it. Keys are hashes of the rows. One thread's. Knows nothing of requests.
 */
#include "serve/prefix.h"

#include <string.h>

typedef struct entry entry;
struct entry {
    char key[65];
    ic_kv *kv; /* NULL: coming */
    uint64_t bytes;
    entry *next;
};

struct ic_prefixes {
    entry *first;
    uint64_t bytes, most;
};

int ic_prefixes_new(ic_prefixes **out, uint64_t bytes)
{
    ic_prefixes *p = ic_alloc(1, sizeof *p);
    if (!p)
        return ICAE_ENOMEM;
    p->most = bytes;
    *out = p;
    return ICAE_OK;
}

static void drop(ic_prefixes *p, entry **at)
{
    entry *e = *at;
    *at = e->next;
    p->bytes -= e->bytes;
    ic_kv_free(e->kv);
    ic_free(e);
}

void ic_prefixes_free(ic_prefixes *p)
{
    if (!p)
        return;
    while (p->first)
        drop(p, &p->first);
    ic_free(p);
}

static entry **where(ic_prefixes *p, const char *key)
{
    for (entry **at = &p->first; *at; at = &(*at)->next)
        if (strcmp((*at)->key, key) == 0)
            return at;
    return NULL;
}

ic_prefix_state ic_prefixes_find(const ic_kv **kv, ic_prefixes *p, const char *key)
{
    entry **at = where(p, key);
    if (!at)
        return IC_PREFIX_ABSENT;
    entry *e = *at;
    if (!e->kv)
        return IC_PREFIX_COMING;
    *at = e->next;
    e->next = p->first;
    p->first = e;
    *kv = e->kv;
    return IC_PREFIX_READY;
}

void ic_prefixes_promise(ic_prefixes *p, const char *key)
{
    entry *e = ic_alloc(1, sizeof *e);
    if (!e)
        return; /* then it is read again and again, which is only slow */
    memcpy(e->key, key, strlen(key) + 1);
    e->next = p->first;
    p->first = e;
}

void ic_prefixes_keep(ic_prefixes *p, const char *key, ic_kv *from, int rows)
{
    entry **at = where(p, key);
    if (!at || (*at)->kv)
        return;
    entry *e = *at;
    e->bytes = (uint64_t)from->layers * 2 * (uint64_t)rows * (uint64_t)from->width *
               (uint64_t)ic_dtypes[from->dtype].bytes;
    p->bytes += e->bytes;
    if (e->bytes > p->most || ic_kv_share(from, rows) < 0 || ic_kv_fork(&e->kv, from, rows) < 0) {
        drop(p, at);
        return;
    }
    while (p->bytes > p->most) {
        entry **last = NULL;
        for (at = &p->first; *at; at = &(*at)->next)
            if ((*at)->kv && *at != e)
                last = at;
        if (!last)
            return;
        drop(p, last);
    }
}

void ic_prefixes_break(ic_prefixes *p, const char *key)
{
    entry **at = where(p, key);
    if (at && !(*at)->kv)
        drop(p, at);
}

uint64_t ic_prefixes_bytes(const ic_prefixes *p)
{
    return p->bytes;
}
