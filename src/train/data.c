/*
 * data.c - the training text of a run: files and patterns with weights, each file a token cache.
 *
 * Owns the meaning of an entry of `data`: PATH or PATTERN, perhaps with :WEIGHT. A weight multiplies
 * how often the text is read: a file of weight 2 is read twice in an epoch, one of 0.5 half.
 */
#include "train/run.h"

#include <glob.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "path:2.5" is a path and a weight unless a file has that very name. */
static int split_weight(char **pattern, double *weight, const char *entry)
{
    const char *colon = strrchr(entry, ':');
    char *end;
    *weight = 1;
    if (colon && colon[1] && !ic_path_exists(entry)) {
        double w = strtod(colon + 1, &end);
        if (!*end) {
            if (!(w > 0) || w > 1e6)
                return ic_fail(ICAE_EINVAL,
                               "data: %.300s: a weight is more than 0, at most 1000000", entry);
            *weight = w;
            *pattern = ic_strndup(entry, (size_t)(colon - entry));
            return *pattern ? ICAE_OK : ICAE_ENOMEM;
        }
    }
    *pattern = ic_strdup(entry);
    return *pattern ? ICAE_OK : ICAE_ENOMEM;
}

static int add_file(ic_source *s, const char *path, const ic_reading *r)
{
    ic_corpus *file = ic_resize(s->file, s->files + 1, sizeof *file);
    if (!file)
        return ICAE_ENOMEM;
    s->file = file;
    ic_corpus *c = &file[s->files];
    int rc = ic_corpus_open(c, path, r);
    if (rc < 0)
        return rc;
    s->skipped += c->skipped;
    s->found = true;
    if (!c->documents) {
        char line[900];
        snprintf(line, sizeof line, "%s: no usable document in %llu lines", path,
                 (unsigned long long)c->lines);
        if (r->notice)
            r->notice(r->user, true, line);
        ic_corpus_close(c);
        return ICAE_OK;
    }
    s->files++;
    s->tokens += c->tokens;
    s->documents += c->documents;
    s->triples += c->triples;
    return ICAE_OK;
}

static int open_source(ic_source *s, const char *entry, const ic_reading *r)
{
    int rc = ICAE_OK;
    glob_t found = {0};
    IC_TRY(split_weight(&s->pattern, &s->weight, entry));
    if (ic_path_exists(s->pattern)) {
        if (ic_path_is_folder(s->pattern)) {
            rc =
                ic_fail(ICAE_EINVAL, "data: %.300s is a folder; name its files, as in \"%.300s/*\"",
                        s->pattern, s->pattern);
            goto done;
        }
        return add_file(s, s->pattern, r);
    }
    int status = glob(s->pattern, GLOB_BRACE | GLOB_TILDE, NULL, &found);
    if (status == GLOB_NOSPACE) {
        rc = ic_fail(ICAE_ENOMEM, "data: out of memory for the files of %.300s", s->pattern);
        goto done;
    }
    for (size_t i = 0; i < found.gl_pathc; i++)
        if (!ic_path_is_folder(found.gl_pathv[i]))
            IC_TRY(add_file(s, found.gl_pathv[i], r));
    if (!s->found)
        rc = ic_fail(ICAE_ENOTFOUND, "data: there is no file %.300s", s->pattern);
done:
    globfree(&found);
    return rc;
}

static int identify(ic_data *d)
{
    ic_hash *h;
    int rc = ic_hash_new(&h);
    if (rc < 0)
        return rc;
    for (size_t s = 0; s < d->sources; s++) {
        const ic_source *source = &d->source[s];
        ic_hash_add(h, &source->weight, sizeof source->weight);
        for (size_t f = 0; f < source->files; f++)
            ic_hash_add(h, source->file[f].key, 64);
    }
    ic_hash_finish(h, d->identity);
    return ICAE_OK;
}

int ic_data_open(ic_data **out, const ic_list *entries, const ic_reading *r)
{
    int rc = ICAE_OK;
    *out = NULL;
    ic_data *d = ic_alloc(1, sizeof *d);
    if (!d)
        return ICAE_ENOMEM;
    if (!(d->source = ic_alloc(entries->count, sizeof *d->source))) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (size_t i = 0; i < entries->count; i++) {
        ic_source *s = &d->source[d->sources++];
        IC_TRY(open_source(s, entries->item[i], r));
        d->tokens += s->tokens;
        d->documents += s->documents;
        d->triples += s->triples;
        d->files += s->files;
        d->skipped += s->skipped;
    }
    if (!d->documents) {
        rc = ic_fail(ICAE_EINVAL, "data: %s%s: no usable document (%llu bad lines)",
                     entries->count ? entries->item[0] : "nothing", entries->count > 1 ? ", …" : "",
                     (unsigned long long)d->skipped);
        goto done;
    }
    IC_TRY(identify(d));
    *out = d;
    return ICAE_OK;
done:
    ic_data_close(d);
    return rc;
}

void ic_data_close(ic_data *d)
{
    if (!d)
        return;
    for (size_t s = 0; s < d->sources; s++) {
        for (size_t f = 0; f < d->source[s].files; f++)
            ic_corpus_close(&d->source[s].file[f]);
        ic_free(d->source[s].file);
        ic_free(d->source[s].pattern);
    }
    ic_free(d->source);
    ic_free(d);
}
