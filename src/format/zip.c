/*
 * zip.c - the table of contents of a zip archive whose entries are stored, as torch.save writes it.
 *
 * Reads the central directory at the end of the file (with its 64-bit form). Knows nothing of what
 * the entries mean.
 */
#include "format/pt.h"

#include <stdlib.h>
#include <string.h>

enum { END_SIZE = 22, LOCATOR_SIZE = 20, END64_SIZE = 56, CENTRAL_SIZE = 46, LOCAL_SIZE = 30 };

#define MAX_COMMENT 65535
#define IN_64       0xffffffffu /* "look in the 64-bit field" */

typedef struct directory {
    uint64_t count, size, offset;
} directory;

static uint64_t number(const unsigned char *p, int bytes)
{
    uint64_t v = 0;
    while (bytes-- > 0)
        v = v << 8 | p[bytes];
    return v;
}

static bool has_signature(const unsigned char *p, const char signature[3])
{
    return p[0] == 'P' && p[1] == 'K' && p[2] == signature[0] && p[3] == signature[1];
}

static int damaged(const char *path, const char *what)
{
    return ic_fail(ICAE_EFORMAT, "%.300s: damaged zip archive: %s", path, what);
}

static int find_directory(directory *d, const ic_map *map, const char *path)
{
    const unsigned char *end = NULL;
    for (size_t back = END_SIZE; back <= map->size && back <= END_SIZE + MAX_COMMENT; back++) {
        const unsigned char *p = map->data + map->size - back;
        if (has_signature(p, "\5\6") && number(p + 20, 2) == back - END_SIZE) {
            end = p;
            break;
        }
    }
    if (!end)
        return damaged(path, "no end record (is the file truncated?)");
    *d = (directory){number(end + 10, 2), number(end + 12, 4), number(end + 16, 4)};

    size_t before = (size_t)(end - map->data);
    if (before >= LOCATOR_SIZE && has_signature(end - LOCATOR_SIZE, "\6\7")) {
        uint64_t at = number(end - LOCATOR_SIZE + 8, 8);
        if (before < END64_SIZE || at > before - END64_SIZE ||
            !has_signature(map->data + at, "\6\6"))
            return damaged(path, "its 64-bit end record is missing");
        const unsigned char *p = map->data + at;
        *d = (directory){number(p + 32, 8), number(p + 40, 8), number(p + 48, 8)};
    }
    if (d->offset > map->size || d->size > map->size - d->offset ||
        d->count > d->size / CENTRAL_SIZE)
        return damaged(path, "the directory does not lie in the file");
    return ICAE_OK;
}

/* Replaces those of the three numbers that say so by the 64-bit ones of the extra field. */
static bool widen(uint64_t *size, uint64_t *stored, uint64_t *offset, const unsigned char *extra,
                  size_t extra_size)
{
    uint64_t *fields[] = {size, stored, offset};
    size_t wanted = 0;
    for (size_t i = 0; i < 3; i++)
        wanted += *fields[i] == IN_64;
    while (wanted > 0 && extra_size >= 4) {
        size_t length = (size_t)number(extra + 2, 2);
        if (length > extra_size - 4)
            return false;
        if (number(extra, 2) == 1) {
            const unsigned char *p = extra + 4;
            if (length < wanted * 8)
                return false;
            for (size_t i = 0; i < 3; i++) {
                if (*fields[i] == IN_64) {
                    *fields[i] = number(p, 8);
                    p += 8;
                }
            }
            return true;
        }
        extra += 4 + length;
        extra_size -= 4 + length;
    }
    return wanted == 0;
}

/* One entry of the directory at *p; advances it. */
static int read_entry(ic_zip_entry *e, const unsigned char **p, const unsigned char *end,
                      const ic_map *map, const char *path)
{
    const unsigned char *c = *p;
    if (end - c < CENTRAL_SIZE || !has_signature(c, "\1\2"))
        return damaged(path, "a directory entry is missing");
    unsigned flags = (unsigned)number(c + 8, 2), method = (unsigned)number(c + 10, 2);
    uint64_t stored = number(c + 20, 4), size = number(c + 24, 4), offset = number(c + 42, 4);
    size_t name_size = (size_t)number(c + 28, 2), extra_size = (size_t)number(c + 30, 2);
    size_t total = CENTRAL_SIZE + name_size + extra_size + (size_t)number(c + 32, 2);
    if ((size_t)(end - c) < total)
        return damaged(path, "a directory entry passes its end");
    e->name = (const char *)c + CENTRAL_SIZE;
    e->name_size = name_size;
    *p = c + total;
    if (!widen(&size, &stored, &offset, c + CENTRAL_SIZE + name_size, extra_size))
        return damaged(path, "an entry has no 64-bit sizes");
    if (method != 0 || (flags & 1) != 0 || stored != size)
        return ic_fail(ICAE_EUNSUPPORTED, "%.300s: entry '%.*s' is compressed or encrypted", path,
                       (int)IC_MIN(name_size, (size_t)200), e->name);
    if (offset > map->size || map->size - offset < LOCAL_SIZE ||
        !has_signature(map->data + offset, "\3\4"))
        return damaged(path, "an entry is not where the directory says");
    const unsigned char *local = map->data + offset;
    size_t skip = LOCAL_SIZE + (size_t)number(local + 26, 2) + (size_t)number(local + 28, 2);
    size_t room = map->size - (size_t)offset;
    if (skip > room || size > room - skip)
        return damaged(path, "an entry passes the end of the file");
    e->data = local + skip;
    e->size = (size_t)size;
    return ICAE_OK;
}

static int compare(const char *a, size_t a_size, const char *b, size_t b_size)
{
    int order = memcmp(a, b, IC_MIN(a_size, b_size));
    return order ? order : (a_size > b_size) - (a_size < b_size);
}

static int by_name(const void *a, const void *b)
{
    const ic_zip_entry *e = a, *f = b;
    return compare(e->name, e->name_size, f->name, f->name_size);
}

int ic_zip_read(ic_zip *out, const ic_map *map, const char *path)
{
    *out = (ic_zip){0};
    directory d;
    int rc = ICAE_OK;
    IC_TRY(find_directory(&d, map, path));
    out->entries = ic_alloc((size_t)d.count + 1, sizeof *out->entries);
    if (!out->entries)
        return ICAE_ENOMEM;
    const unsigned char *p = map->data + d.offset, *end = p + d.size;
    for (; out->count < d.count; out->count++)
        IC_TRY(read_entry(&out->entries[out->count], &p, end, map, path));
    qsort(out->entries, out->count, sizeof *out->entries, by_name);
done:
    if (rc < 0)
        ic_zip_free(out);
    return rc;
}

const ic_zip_entry *ic_zip_find(const ic_zip *zip, const char *name)
{
    ic_zip_entry wanted = {.name = name, .name_size = strlen(name)};
    if (zip->count == 0)
        return NULL;
    return bsearch(&wanted, zip->entries, zip->count, sizeof wanted, by_name);
}

void ic_zip_free(ic_zip *zip)
{
    ic_free(zip->entries);
    *zip = (ic_zip){0};
}
