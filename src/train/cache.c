/*
 * cache.c - text tokenised once: a safetensors file of token ids and document ends, named by the
 * content of the text and the tokenizer, mapped when used.
 *
 * Written as a stream, so that a text larger than memory works: the header's place is left free and
 * filled in at the end. Tokens are 16-bit numbers (U8 [n, 2]) where the vocabulary allows it, else I32.
 */
#include "train/run.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define HEADER     8192 /* bytes before the tokens */
#define FORMAT     "icae-tokens-1"
#define NARROW     65536             /* ids that two bytes hold */
#define SHOWN      10                /* bad lines that are named */
#define AT_A_TIME  256               /* documents tokenised in parallel, of */
#define BYTES      ((size_t)8 << 20) /* in all about */
#define PAD_TOKENS 32                /* the tensor behind starts aligned */

/* ---- folders ---------------------------------------------------------------------------------- */

int ic_make_folders(const char *path)
{
    char *copy = ic_strdup(path);
    if (!copy)
        return ICAE_ENOMEM;
    int error = 0;
    for (char *slash = copy; slash && !error;) {
        slash = strchr(slash + 1, '/');
        if (slash)
            *slash = 0;
        if (mkdir(copy, 0777) < 0 && errno != EEXIST && !ic_path_is_folder(copy))
            error = errno;
        if (slash)
            *slash = '/';
    }
    ic_free(copy);
    if (!error && !ic_path_is_folder(path))
        error = ENOTDIR;
    return error ? ic_fail(ICAE_EIO, "cannot make the folder %.400s: %s", path, strerror(error))
                 : ICAE_OK;
}

int ic_cache_folder(char **out, const char *wanted, const char *run_folder)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char *folder = *wanted         ? ic_strdup(wanted)
                   : xdg && *xdg   ? ic_path_join(xdg, "icae")
                   : home && *home ? ic_path_join(home, ".cache/icae")
                                   : ic_path_join(run_folder, "cache");
    if (!folder)
        return ICAE_ENOMEM;
    int rc = ic_make_folders(folder);
    if ((rc < 0 || access(folder, W_OK) < 0) && !*wanted) {
        ic_free(folder); /* a home that cannot be written: the run's own folder can */
        if (!(folder = ic_path_join(run_folder, "cache")))
            return ICAE_ENOMEM;
        rc = ic_make_folders(folder);
    }
    if (rc < 0) {
        ic_free(folder);
        return rc;
    }
    *out = folder;
    return ICAE_OK;
}

/* ---- what a file holds ------------------------------------------------------------------------ */

static int hash_file(char hex[65], const char *path)
{
    ic_map map;
    int rc = ic_map_open(&map, path);
    if (rc < 0)
        return rc;
    rc = ic_hash_of(hex, map.data, map.size);
    ic_map_close(&map);
    return rc;
}

/* The SHA-256 of a file's bytes. Remembered by path, size and time of change, so that a large corpus
 * is not read through at every start; not if it changed just now, when times may not tell. */
static int content_hash(char hex[65], const char *path, const char *folder)
{
    int rc = ICAE_OK;
    char real[4096], name[65], stamp[160];
    struct stat st;
    char *memo = NULL;
    ic_map map = {0};
    ic_file f = {.fd = -1};
    if (!realpath(path, real) || stat(real, &st) < 0)
        return ic_fail(errno == ENOENT ? ICAE_ENOTFOUND : ICAE_EIO, "cannot open %.400s: %s", path,
                       strerror(errno));
    IC_TRY(ic_hash_of(name, real, strlen(real)));
    memcpy(name + 32, ".sum", 5);
    if (!(memo = ic_path_join(folder, name))) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    int n =
        snprintf(stamp, sizeof stamp, "%lld %lld.%09ld %llu ", (long long)st.st_size,
                 (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec, (unsigned long long)st.st_ino);
    if (ic_path_exists(memo) && ic_map_open(&map, memo) == ICAE_OK && map.size == (size_t)n + 64 &&
        memcmp(map.data, stamp, (size_t)n) == 0) {
        memcpy(hex, map.data + n, 64);
        hex[64] = 0;
        goto done;
    }
    IC_TRY(hash_file(hex, real));
    if (time(NULL) - st.st_mtim.tv_sec > 2 && ic_file_create(&f, memo) == ICAE_OK &&
        ic_file_write(&f, stamp, (size_t)n) == ICAE_OK && ic_file_write(&f, hex, 64) == ICAE_OK)
        (void)ic_file_commit(&f); /* only a saving: without it the file is read again */
done:
    ic_file_abandon(&f);
    ic_map_close(&map);
    ic_free(memo);
    return rc;
}

static int cache_key(char hex[65], const char *path, const ic_reading *r)
{
    char content[65];
    int rc = content_hash(content, path, r->folder);
    char *text = rc < 0 ? NULL
                        : ic_format("%s %s %s %d", FORMAT, content, ic_tokenizer_hash(r->tokenizer),
                                    r->vocabulary <= NARROW);
    if (rc == ICAE_OK)
        rc = text ? ic_hash_of(hex, text, strlen(text)) : ICAE_ENOMEM;
    ic_free(text);
    return rc;
}

/* ---- building --------------------------------------------------------------------------------- */

typedef struct job {
    ic_document d;
    ic_ids part[3];
    bool bad;
    char why[200], message[256];
    int rc;
} job;

typedef struct building {
    const ic_reading *r;
    const char *path;
    ic_file file;
    ic_buffer ends, raw;
    uint64_t tokens, documents, triples, lines, skipped;
    bool open; /* the last document goes on */
    char first_bad[320];
} building;

static void bad_line(building *b, const job *j)
{
    char line[800];
    if (b->skipped++ == 0)
        snprintf(b->first_bad, sizeof b->first_bad, "line %llu: %s", (unsigned long long)j->d.line,
                 j->why);
    if (!b->r->notice || b->skipped > SHOWN)
        return;
    snprintf(line, sizeof line, "%s:%llu: %s%s", b->path, (unsigned long long)j->d.line, j->why,
             b->skipped == SHOWN ? " (further bad lines are only counted)" : "");
    b->r->notice(b->r->user, true, line);
}

static int add_end(building *b)
{
    int64_t end = (int64_t)b->tokens;
    return ic_buffer_add(&b->ends, &end, sizeof end);
}

static int add_tokens(building *b, const ic_ids *ids)
{
    b->raw.size = 0;
    for (size_t i = 0; i < ids->count; i++) {
        uint16_t narrow = (uint16_t)ids->ids[i];
        int rc = b->r->vocabulary <= NARROW ? ic_buffer_add(&b->raw, &narrow, 2)
                                            : ic_buffer_add(&b->raw, &ids->ids[i], 4);
        if (rc < 0)
            return rc;
    }
    b->tokens += ids->count;
    return b->raw.size ? ic_file_write(&b->file, b->raw.data, b->raw.size) : ICAE_OK;
}

/* Adds a tokenised document, or what is wrong with it. */
static int add_job(building *b, job *j)
{
    int rc = ICAE_OK;
    if (j->rc < 0)
        return ic_fail(j->rc, "%s:%llu: %s", b->path, (unsigned long long)j->d.line, j->message);
    b->lines += j->d.json || !b->open;
    if (!j->bad && !b->open && !j->d.goes_on && !j->part[0].count) {
        j->bad = true;
        snprintf(j->why, sizeof j->why, "the text has no tokens");
    }
    for (int p = 0; p < 3 && !j->bad; p++)
        for (size_t i = 0; i < j->part[p].count; i++)
            if (j->part[p].ids[i] < 0 || j->part[p].ids[i] >= b->r->vocabulary)
                return ic_fail(ICAE_EMISMATCH,
                               "%s:%llu: the tokenizer gave id %d, the model's "
                               "vocabulary has %d: they do not belong together",
                               b->path, (unsigned long long)j->d.line, j->part[p].ids[i],
                               b->r->vocabulary);
    if (j->bad) {
        bad_line(b, j);
        if (b->r->strict)
            return ic_fail(ICAE_EFORMAT, "%s:%llu: %s", b->path, (unsigned long long)j->d.line,
                           j->why);
        return ICAE_OK;
    }
    IC_TRY(add_tokens(b, &j->part[0]));
    b->open = j->d.goes_on;
    if (b->open)
        return ICAE_OK;
    IC_TRY(add_end(b));
    IC_TRY(add_tokens(b, &j->part[1]));
    IC_TRY(add_end(b));
    IC_TRY(add_tokens(b, &j->part[2]));
    IC_TRY(add_end(b));
    b->documents++;
    b->triples += j->part[2].count > 0;
done:
    return rc;
}

static void run_job(job *j, const ic_tokenizer *t)
{
    j->rc = ic_document_tokenize(j->part, &j->bad, j->why, &j->d, t);
    if (j->rc < 0) /* messages belong to threads */
        snprintf(j->message, sizeof j->message, "%s", icae_error_message());
}

static void free_job(job *j)
{
    ic_free(j->d.data);
    for (int p = 0; p < 3; p++)
        ic_ids_free(&j->part[p]);
    *j = (job){0};
}

/* Some documents: read in order, tokenised side by side, added in order. */
static int add_some(building *b, ic_lines *lines, job *jobs, bool *more)
{
    int rc = ICAE_OK, count = 0;
    size_t bytes = 0;
    while (*more && count < AT_A_TIME && bytes < BYTES) {
        IC_TRY(ic_lines_next(lines, &jobs[count].d, more));
        if (*more)
            bytes += jobs[count++].d.size;
    }
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < count; i++)
        run_job(&jobs[i], b->r->tokenizer);
    for (int i = 0; i < count; i++)
        IC_TRY(add_job(b, &jobs[i]));
done:
    for (int i = 0; i < AT_A_TIME; i++)
        free_job(&jobs[i]);
    return rc;
}

static int finish(building *b)
{
    int rc = ICAE_OK;
    static const char zeros[PAD_TOKENS * 4];
    ic_buffer h = {0};
    bool narrow = b->r->vocabulary <= NARROW;
    uint64_t width = narrow ? 2 : 4,
             padded = (b->tokens + PAD_TOKENS - 1) / PAD_TOKENS * PAD_TOKENS;
    IC_TRY(ic_file_write(&b->file, zeros, (size_t)((padded - b->tokens) * width)));
    IC_TRY(ic_file_write(&b->file, b->ends.data, b->ends.size));
    IC_TRY(ic_buffer_addf(
        &h,
        "{\"__metadata__\":{\"format\":\"%s\",\"tokens\":\"%llu\",\"triples\":\"%llu\","
        "\"lines\":\"%llu\",\"skipped\":\"%llu\",\"first_bad\":",
        FORMAT, (unsigned long long)b->tokens, (unsigned long long)b->triples,
        (unsigned long long)b->lines, (unsigned long long)b->skipped));
    IC_TRY(ic_json_quote(&h, b->first_bad, strlen(b->first_bad)));
    IC_TRY(ic_buffer_addf(
        &h, "},\"tokens\":{\"dtype\":\"%s\",\"shape\":[%llu%s],\"data_offsets\":[0,%llu]},",
        narrow ? "U8" : "I32", (unsigned long long)padded, narrow ? ",2" : "",
        (unsigned long long)(padded * width)));
    IC_TRY(ic_buffer_addf(
        &h, "\"ends\":{\"dtype\":\"I64\",\"shape\":[%llu,3],\"data_offsets\":[%llu,%llu]}}",
        (unsigned long long)b->documents, (unsigned long long)(padded * width),
        (unsigned long long)(padded * width + b->ends.size)));
    uint64_t size = HEADER - 8;
    assert(h.size < size);
    while (h.size < size)
        IC_TRY(ic_buffer_add(&h, " ", 1));
    if (pwrite(b->file.fd, &size, 8, 0) != 8 ||
        pwrite(b->file.fd, h.data, h.size, 8) != (ssize_t)h.size) {
        rc = ic_fail(ICAE_EIO, "cannot write %.400s: %s", b->file.path, strerror(errno));
        goto done;
    }
    rc = ic_file_commit(&b->file);
done:
    ic_buffer_free(&h);
    return rc;
}

/* Tokenises `path` into `cache`. Without a usable document nothing is written. */
static int build(building *b, const char *cache)
{
    int rc = ICAE_OK;
    bool more = true;
    ic_lines *lines = NULL;
    static const char zeros[HEADER];
    job *jobs = ic_alloc(AT_A_TIME, sizeof *jobs);
    if (!jobs)
        return ICAE_ENOMEM;
    IC_TRY(ic_lines_open(&lines, b->path));
    IC_TRY(ic_file_create(&b->file, cache));
    IC_TRY(ic_file_write(&b->file, zeros, HEADER));
    while (more) {
        IC_TRY(add_some(b, lines, jobs, &more));
        bool stop = b->r->stop && b->r->stop(b->r->user);
        if (stop || (b->r->progress && b->r->progress(b->r->user, "tokens", b->tokens, 0))) {
            rc = ic_fail(ICAE_ECANCELLED, "%s: tokenising was stopped", b->path);
            goto done;
        }
    }
    if (b->documents)
        rc = finish(b);
done:
    ic_file_abandon(&b->file);
    ic_lines_close(lines);
    ic_free(jobs);
    return rc;
}

/* ---- opening ---------------------------------------------------------------------------------- */

static uint64_t number(const ic_safetensors *st, const char *name)
{
    const char *text = ic_safetensors_metadata(st, name);
    return text ? strtoull(text, NULL, 10) : 0;
}

/* Binds and checks: ends must ascend within the tokens, for everything later relies on them. */
static int bind(ic_corpus *c, const char *cache, const ic_reading *r)
{
    const ic_tensor *t = ic_safetensors_find(&c->file, "tokens"),
                    *e = ic_safetensors_find(&c->file, "ends");
    const char *format = ic_safetensors_metadata(&c->file, "format");
    bool narrow = r->vocabulary <= NARROW;
    if (!t || !e || !format || strcmp(format, FORMAT) != 0 || e->dtype != IC_I64 || e->rank != 2 ||
        e->dim[1] != 3 || e->dim[0] < 1 || t->dtype != (narrow ? IC_U8 : IC_I32) ||
        (narrow ? t->rank != 2 || t->dim[1] != 2 : t->rank != 1) || (uintptr_t)e->data % 8 ||
        (uintptr_t)t->data % 4)
        return ic_fail(ICAE_EFORMAT, "%.400s: not a token cache", cache);
    c->narrow = narrow ? t->data : NULL;
    c->wide = narrow ? NULL : t->data;
    c->ends = e->data;
    c->documents = (uint64_t)e->dim[0];
    int64_t last = 0;
    for (uint64_t i = 0; i < 3 * c->documents; i++) {
        if (c->ends[i] < last || c->ends[i] > t->dim[0])
            return ic_fail(ICAE_EFORMAT, "%.400s: document %llu ends at token %lld of %lld", cache,
                           (unsigned long long)(i / 3), (long long)c->ends[i],
                           (long long)t->dim[0]);
        if (i % 3 == 0 && c->ends[i] == last)
            return ic_fail(ICAE_EFORMAT, "%.400s: document %llu is empty", cache,
                           (unsigned long long)(i / 3));
        last = c->ends[i];
    }
    for (uint64_t d = 0; d < c->documents; d++) {
        c->triples += ic_corpus_count(c, d, 2) > 0;
        c->longest = IC_MAX(c->longest, ic_corpus_count(c, d, 0));
    }
    c->tokens = (uint64_t)last;
    c->lines = number(&c->file, "lines");
    c->skipped = number(&c->file, "skipped");
    return ICAE_OK;
}

/* What was found bad when the cache was made holds for this run as well. */
static int tell_skipped(const ic_corpus *c, const ic_reading *r)
{
    char line[900];
    const char *first = ic_safetensors_metadata(&c->file, "first_bad");
    if (!c->skipped)
        return ICAE_OK;
    if (r->strict)
        return ic_fail(ICAE_EFORMAT, "%s: %s (%llu bad lines)", c->path, first ? first : "",
                       (unsigned long long)c->skipped);
    snprintf(line, sizeof line, "%s: %llu bad lines are skipped; the first: %s", c->path,
             (unsigned long long)c->skipped, first ? first : "");
    if (r->notice)
        r->notice(r->user, true, line);
    return ICAE_OK;
}

int ic_corpus_open(ic_corpus *out, const char *path, const ic_reading *r)
{
    int rc = ICAE_OK;
    ic_corpus c = {0};
    char name[96], *cache = NULL;
    building b = {.r = r, .path = path, .file = {.fd = -1}};
    IC_TRY(cache_key(c.key, path, r));
    snprintf(name, sizeof name, "tokens-%.32s.safetensors", c.key);
    cache = ic_path_join(r->folder, name);
    c.path = ic_strdup(path);
    if (!cache || !c.path) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    if (ic_path_exists(cache)) {
        rc = ic_safetensors_open(&c.file, cache);
        if (rc == ICAE_OK)
            rc = bind(&c, cache, r);
        if (rc == ICAE_OK) {
            IC_TRY(tell_skipped(&c, r));
            goto done;
        }
        if (rc != ICAE_EFORMAT)
            goto done;
        ic_safetensors_close(&c.file); /* damaged: made again */
        c = (ic_corpus){.path = c.path};
        IC_TRY(cache_key(c.key, path, r));
    }
    IC_TRY(build(&b, cache));
    if (b.documents) {
        IC_TRY(ic_safetensors_open(&c.file, cache));
        IC_TRY(bind(&c, cache, r));
    }
    c.lines = b.lines;
    c.skipped = b.skipped;
done:
    ic_buffer_free(&b.ends);
    ic_buffer_free(&b.raw);
    ic_free(cache);
    if (rc < 0)
        ic_corpus_close(&c);
    else
        *out = c;
    return rc;
}

void ic_corpus_close(ic_corpus *c)
{
    ic_safetensors_close(&c->file);
    ic_free(c->path);
    *c = (ic_corpus){0};
}

int ic_corpus_read(int32_t *ids, const ic_corpus *c, uint64_t first, int count, int vocabulary)
{
    for (int i = 0; i < count; i++) {
        ids[i] = c->narrow ? c->narrow[first + (uint64_t)i] : c->wide[first + (uint64_t)i];
        if (ids[i] < 0 || ids[i] >= vocabulary)
            return ic_fail(ICAE_EFORMAT,
                           "%s: the token cache holds id %d, the vocabulary has %d: "
                           "remove %s",
                           c->path, ids[i], vocabulary, c->file.path);
    }
    return ICAE_OK;
}
