/*
 * journal.c - what was measured so far, one line a record, so that a run can be taken up again.
 *
 * The first line holds the settings that the records were made with. Records are appended as they are
 * made; a process that dies loses at most the line it was writing.
 */
#include "eval/eval.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct record {
    char *key;
    ic_json *root; /* {"key": …, "value": …} */
} record;

struct ic_journal {
    FILE *file;
    char *path;
    record *record;         /* open addressing */
    size_t count, capacity; /* a power of two, or 0 */
};

static size_t slot_of(const ic_journal *j, const char *key)
{
    uint64_t h = 1469598103934665603u;
    for (const char *c = key; *c; c++)
        h = (h ^ (unsigned char)*c) * 1099511628211u;
    size_t i = (size_t)h & (j->capacity - 1);
    while (j->record[i].key && strcmp(j->record[i].key, key))
        i = (i + 1) & (j->capacity - 1);
    return i;
}

static int grow(ic_journal *j)
{
    if (j->count * 2 < j->capacity)
        return ICAE_OK;
    ic_journal larger = *j;
    larger.capacity = IC_MAX((size_t)1024, j->capacity * 2);
    larger.record = ic_alloc(larger.capacity, sizeof *larger.record);
    if (!larger.record)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < j->capacity; i++)
        if (j->record[i].key)
            larger.record[slot_of(&larger, j->record[i].key)] = j->record[i];
    ic_free(j->record);
    *j = larger;
    return ICAE_OK;
}

/* Keeps one parsed line; takes `root` over. The last of equal keys counts. */
static int keep(ic_journal *j, ic_json *root, const char *key)
{
    int rc = grow(j);
    char *copy = rc == ICAE_OK ? ic_strdup(key) : NULL;
    if (!copy) {
        ic_json_free(root);
        return ICAE_ENOMEM;
    }
    record *r = &j->record[slot_of(j, key)];
    if (r->key) {
        ic_free(r->key);
        ic_json_free(r->root);
    } else {
        j->count++;
    }
    *r = (record){copy, root};
    return ICAE_OK;
}

/* Reads what an earlier run left; *valid: bytes of whole lines. */
static int load(ic_journal *j, const char *settings, size_t *valid)
{
    int rc = ICAE_OK;
    ic_map map = {0};
    size_t line = 0;
    *valid = 0;
    IC_TRY(ic_map_open(&map, j->path));
    const char *text = (const char *)map.data;
    for (size_t at = 0; at < map.size; line++) {
        const char *end = memchr(text + at, '\n', map.size - at);
        if (!end)
            break;
        size_t size = (size_t)(end - text) - at;
        char name[512];
        ic_json *root;
        snprintf(name, sizeof name, "%s:%zu", j->path, line + 1);
        IC_TRY(ic_json_parse(&root, text + at, size, name));
        const char *key = ic_json_string(ic_json_get(root, line ? "key" : "settings"));
        if (!key || (!line && strcmp(key, settings))) {
            rc = !key ? ic_fail(ICAE_EFORMAT, "%s: no journal of an evaluation", name)
                      : ic_fail(ICAE_EMISMATCH,
                                "%s was made with other settings, so it cannot be resumed; now: %s",
                                j->path, settings);
            ic_json_free(root);
            goto done;
        }
        if (line)
            IC_TRY(keep(j, root, key));
        else
            ic_json_free(root);
        at += size + 1;
        *valid = at;
    }
done:
    ic_map_close(&map);
    return rc;
}

static int failed(const ic_journal *j)
{
    return ic_fail(ICAE_EIO, "%s: %s", j->path, strerror(errno));
}

int ic_journal_open(ic_journal **out, const char *path, const char *settings, bool resume)
{
    int rc = ICAE_OK;
    size_t valid = 0;
    ic_buffer first = {0};
    ic_journal *j = ic_alloc(1, sizeof *j);
    if (!j)
        return ICAE_ENOMEM;
    if (!(j->path = ic_strdup(path))) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    IC_TRY(grow(j));
    if (resume && ic_path_exists(path))
        IC_TRY(load(j, settings, &valid));
    j->file = fopen(path, valid ? "r+" : "w");
    if (!j->file || ftruncate(fileno(j->file), (off_t)valid) || fseek(j->file, 0, SEEK_END)) {
        rc = failed(j);
        goto done;
    }
    if (!valid) {
        IC_TRY(ic_buffer_addf(&first, "{\"settings\":"));
        IC_TRY(ic_json_quote(&first, settings, strlen(settings)));
        IC_TRY(ic_buffer_addf(&first, "}\n"));
        if (fwrite(first.data, 1, first.size, j->file) != first.size || fflush(j->file)) {
            rc = failed(j);
            goto done;
        }
    }
    *out = j;
    j = NULL;
done:
    ic_buffer_free(&first);
    ic_journal_close(j);
    return rc;
}

const ic_json *ic_journal_get(const ic_journal *j, const char *key)
{
    const record *r = &j->record[slot_of(j, key)];
    return r->key ? ic_json_get(r->root, "value") : NULL;
}

int ic_journal_put(ic_journal *j, const char *key, const ic_buffer *json)
{
    int rc = ICAE_OK;
    ic_buffer line = {0};
    ic_json *root;
    IC_TRY(ic_buffer_addf(&line, "{\"key\":"));
    IC_TRY(ic_json_quote(&line, key, strlen(key)));
    IC_TRY(ic_buffer_addf(&line, ",\"value\":"));
    for (size_t i = 0; i < json->size; i++) /* a record is one line */
        if (json->data[i] != '\n')
            IC_TRY(ic_buffer_add(&line, json->data + i, 1));
    IC_TRY(ic_buffer_addf(&line, "}\n"));
    IC_TRY(ic_json_parse(&root, line.data, line.size - 1, key));
    IC_TRY(keep(j, root, key));
    if (fwrite(line.data, 1, line.size, j->file) != line.size || fflush(j->file))
        rc = failed(j);
done:
    ic_buffer_free(&line);
    return rc;
}

int ic_journal_close(ic_journal *j)
{
    int rc = ICAE_OK;
    if (!j)
        return rc;
    if (j->file && fclose(j->file))
        rc = failed(j);
    for (size_t i = 0; i < j->capacity && j->record; i++)
        if (j->record[i].key) {
            ic_free(j->record[i].key);
            ic_json_free(j->record[i].root);
        }
    ic_free(j->record);
    ic_free(j->path);
    ic_free(j);
    return rc;
}
