/*
 * tokens.c - who may use the server, and how much.
 *
 * A file of lines `NAME TOKEN [REQUESTS A MINUTE [CONTEXTS]]`; # begins a comment, 0 or - is no bound. Only
 * hashes of tokens are kept, and all of them are compared in full at every look-up, so that neither time
 * nor memory tells a token.
 */
#include "serve/tokens.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { SHORTEST = 16 }; /* bytes of a token */

typedef struct holder {
    char name[65], hash[65];
    uint64_t minute, contexts;
    double allowance, since; /* requests left, as of `since` */
} holder;

struct ic_tokens {
    holder *holder;
    size_t count;
    pthread_mutex_t lock; /* of the allowances */
};

static bool read_bound(uint64_t *out, const char *word)
{
    *out = 0;
    if (!word || strcmp(word, "-") == 0)
        return true;
    size_t digits = strspn(word, "0123456789");
    if (!digits || digits > 9 || word[digits])
        return false;
    *out = strtoull(word, NULL, 10);
    return true;
}

static int read_line(ic_tokens *t, char *line, const char *path, int number)
{
    char *rest = NULL, *word[5] = {0};
    line[strcspn(line, "#")] = 0;
    for (int i = 0; i < 5; i++)
        word[i] = strtok_r(i ? NULL : line, " \t\r", &rest);
    if (!word[0])
        return ICAE_OK;
    holder h = {0};
    if (!word[1] || word[4] || !read_bound(&h.minute, word[2]) || !read_bound(&h.contexts, word[3]))
        return ic_fail(ICAE_EFORMAT,
                       "%s: line %d: expected NAME TOKEN [REQUESTS A MINUTE [CONTEXTS]]", path,
                       number);
    if (strlen(word[0]) > 64)
        return ic_fail(ICAE_EFORMAT, "%s: line %d: a name has at most 64 bytes", path, number);
    if (strlen(word[1]) < SHORTEST)
        return ic_fail(ICAE_EFORMAT, "%s: line %d: a token has at least %d characters", path,
                       number, SHORTEST);
    snprintf(h.name, sizeof h.name, "%s", word[0]);
    int rc = ic_hash_of(h.hash, word[1], strlen(word[1]));
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < t->count; i++)
        if (!strcmp(t->holder[i].name, h.name) || !strcmp(t->holder[i].hash, h.hash))
            return ic_fail(ICAE_EFORMAT, "%s: line %d: this name or token was there before", path,
                           number);
    holder *more = ic_resize(t->holder, t->count + 1, sizeof *more);
    if (!more)
        return ICAE_ENOMEM;
    h.allowance = (double)h.minute;
    h.since = ic_seconds();
    t->holder = more;
    t->holder[t->count++] = h;
    return ICAE_OK;
}

int ic_tokens_read(ic_tokens **out, const char *path)
{
    int rc = ICAE_OK, number = 0;
    ic_map map;
    char *text = NULL, *rest;
    ic_tokens *t = ic_alloc(1, sizeof *t);
    if (!t)
        return ICAE_ENOMEM;
    pthread_mutex_init(&t->lock, NULL);
    IC_TRY(ic_map_open(&map, path));
    text = ic_strndup((const char *)map.data, map.size);
    ic_map_close(&map);
    if (!text) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (char *line = rest = text; rc == ICAE_OK && line; line = rest) {
        if ((rest = strchr(line, '\n')))
            *rest++ = 0;
        rc = read_line(t, line, path, ++number);
    }
    if (rc == ICAE_OK && !t->count)
        rc = ic_fail(ICAE_EFORMAT, "%s: there is no token in it", path);
    if (rc == ICAE_OK) {
        *out = t;
        t = NULL;
    }
done:
    if (text)
        explicit_bzero(text, strlen(text));
    ic_free(text);
    ic_tokens_free(t);
    return rc;
}

void ic_tokens_free(ic_tokens *t)
{
    if (!t)
        return;
    pthread_mutex_destroy(&t->lock);
    ic_free(t->holder);
    ic_free(t);
}

bool ic_tokens_find(ic_token *out, const ic_tokens *t, const char *authorization)
{
    char hash[65];
    const holder *found = NULL;
    const char *token = authorization ? authorization : "";
    if (strncasecmp(token, "Bearer ", 7) == 0)
        token += 7;
    if (ic_hash_of(hash, token, strlen(token)) < 0)
        return false;
    for (size_t i = 0; i < t->count; i++) {
        unsigned differs = 0;
        for (int j = 0; j < 64; j++)
            differs |= (unsigned)(hash[j] ^ t->holder[i].hash[j]);
        found = differs ? found : &t->holder[i];
    }
    if (found)
        *out = (ic_token){.name = found->name, .contexts = found->contexts};
    return found != NULL;
}

int ic_tokens_charge(ic_tokens *t, const char *name)
{
    int wait = 0;
    pthread_mutex_lock(&t->lock);
    for (size_t i = 0; i < t->count; i++) {
        holder *h = &t->holder[i];
        if (!h->minute || strcmp(h->name, name))
            continue;
        double now = ic_seconds(), rate = (double)h->minute / 60;
        h->allowance = IC_MIN((double)h->minute, h->allowance + (now - h->since) * rate);
        h->since = now;
        if (h->allowance >= 1)
            h->allowance -= 1;
        else
            wait = (int)((1 - h->allowance) / rate) + 1;
    }
    pthread_mutex_unlock(&t->lock);
    return wait;
}
