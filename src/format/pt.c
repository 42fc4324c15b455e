/*
 * pt.c - tensors of a file that torch.save wrote (1.6 and later: a zip with a pickle).
 *
 * Joins the zip (zip.c: where bytes are) and the pickle (pickle.c: what they mean) into a flat list
 * of named tensors; numbers, strings and other leaves beside tensors are passed over. Owns the map
 * and the names.
 */
#include "format/pt.h"

#include <inttypes.h>
#include <string.h>

#define MAX_DEPTH 64
#define MAX_NAME  1023

typedef struct owned {
    char *path;
    ic_index index; /* only to refuse names that stand twice */
} owned;

/* A walk over the pickle's values. Shared values can make an endless or exponentially large tree of
 * a small file: depth and visits are bounded. */
typedef struct walk {
    ic_pt *pt;
    const ic_zip *zip;
    const char *prefix; /* of the archive's entries, with its '/' */
    size_t capacity, visits_left;
    ic_buffer name;
} walk;

static bool is_contiguous(const ic_pickle_tensor *p, const ic_tensor *t)
{
    int64_t expected = 1;
    for (int i = p->rank - 1; i >= 0 && t->bytes > 0; i--) {
        if (p->dim[i] != 1 && p->stride[i] != expected)
            return false;
        expected *= p->dim[i]; /* cannot overflow: ic_tensor_measure has multiplied them all */
    }
    return true;
}

static int find_storage(const ic_zip_entry **out, const walk *w, const ic_pickle_storage *s,
                        const char *tensor)
{
    char *name =
        ic_format("%sdata/%.*s", w->prefix, (int)IC_MIN(s->key.size, (size_t)200), s->key.data);
    if (!name)
        return ICAE_ENOMEM;
    *out = ic_zip_find(w->zip, name);
    int rc = *out ? ICAE_OK
                  : ic_fail(ICAE_EFORMAT, "%.300s: tensor '%.200s': entry '%.200s' is missing",
                            w->pt->path, tensor, name);
    ic_free(name);
    return rc;
}

/* Points t->data into the storage, after checking that it lies there. */
static int place(ic_tensor *t, const walk *w, const ic_pickle_tensor *p)
{
    const ic_zip_entry *entry;
    int rc = ICAE_OK;
    IC_TRY(ic_tensor_measure(t, w->pt->path));
    if (!is_contiguous(p, t))
        return ic_fail(ICAE_EUNSUPPORTED,
                       "%.300s: tensor '%.200s' is not contiguous; save it with .contiguous()",
                       w->pt->path, t->name);
    IC_TRY(find_storage(&entry, w, p->storage, t->name));
    size_t value = (size_t)ic_dtypes[t->dtype].bytes, have = entry->size / value;
    if ((uint64_t)p->storage->values > have)
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: tensor '%.200s': its storage should have %" PRId64
                       " values, the file has %zu",
                       w->pt->path, t->name, p->storage->values, have);
    if (p->offset > p->storage->values ||
        t->bytes / value > (size_t)(p->storage->values - p->offset))
        return ic_fail(ICAE_EFORMAT,
                       "%.300s: tensor '%.200s': %zu values at offset %" PRId64
                       " of a storage of %" PRId64,
                       w->pt->path, t->name, t->bytes / value, p->offset, p->storage->values);
    t->data = entry->data + (size_t)p->offset * value;
done:
    return rc;
}

static int add_tensor(walk *w, const ic_pickle_tensor *p)
{
    ic_pt *pt = w->pt;
    if (pt->count == w->capacity) {
        size_t capacity = IC_MAX(w->capacity * 2, (size_t)64);
        ic_tensor *tensors = ic_resize(pt->tensors, capacity, sizeof *tensors);
        if (!tensors)
            return ICAE_ENOMEM;
        pt->tensors = tensors;
        w->capacity = capacity;
    }
    ic_tensor *t = &pt->tensors[pt->count];
    *t = (ic_tensor){.dtype = p->storage->dtype, .rank = p->rank};
    memcpy(t->dim, p->dim, sizeof t->dim);
    t->name = ic_strdup(w->name.size > 0 ? w->name.data : "tensor");
    if (!t->name)
        return ICAE_ENOMEM;
    pt->count++;
    return place(t, w, p);
}

/* Appends ".KEY" (KEY alone at the top) to the name. */
static int enter(walk *w, const ic_pickle_value *key, size_t position)
{
    int rc = ICAE_OK;
    if (w->name.size > 0)
        IC_TRY(ic_buffer_add(&w->name, ".", 1));
    if (!key)
        IC_TRY(ic_buffer_addf(&w->name, "%zu", position));
    else if (key->kind == IC_PICKLE_INT)
        IC_TRY(ic_buffer_addf(&w->name, "%" PRId64, key->integer));
    else if (key->kind == IC_PICKLE_STRING && !memchr(key->text.data, 0, key->text.size))
        IC_TRY(ic_buffer_add(&w->name, key->text.data, key->text.size));
    else
        return ic_fail(ICAE_EUNSUPPORTED, "%.300s: a dict key that is neither text nor number",
                       w->pt->path);
done:
    if (rc == ICAE_ELIMIT)
        rc = ic_fail(rc, "%.300s: the name of a tensor is longer than %d bytes", w->pt->path,
                     MAX_NAME);
    return rc;
}

static int visit(walk *w, const ic_pickle_value *v, int depth)
{
    if (v->kind == IC_PICKLE_TENSOR)
        return add_tensor(w, &v->tensor);
    if (v->kind != IC_PICKLE_DICT && v->kind != IC_PICKLE_LIST && v->kind != IC_PICKLE_TUPLE)
        return ICAE_OK;
    if (depth == MAX_DEPTH)
        return ic_fail(ICAE_ELIMIT, "%.300s: containers nested deeper than %d levels", w->pt->path,
                       MAX_DEPTH);
    size_t name = w->name.size, position = 0;
    int rc = ICAE_OK;
    for (const ic_pickle_item *item = v->items.first; item; item = item->next) {
        if (w->visits_left-- == 0)
            return ic_fail(ICAE_ELIMIT, "%.300s: more values than its size can hold", w->pt->path);
        /* Leaves are passed over before their names are looked at. */
        if (item->value->kind == IC_PICKLE_TENSOR || item->value->kind == IC_PICKLE_DICT ||
            item->value->kind == IC_PICKLE_LIST || item->value->kind == IC_PICKLE_TUPLE) {
            IC_TRY(enter(w, item->key, position));
            IC_TRY(visit(w, item->value, depth + 1));
            w->name.size = name;
        }
        position++;
    }
done:
    return rc;
}

/* Entries are called ARCHIVE/data.pkl, ARCHIVE/data/0 and so on. Sets *prefix to "ARCHIVE/". */
static int find_pickle(const ic_zip_entry **out, char **prefix, const ic_zip *zip, const char *path)
{
    static const char name[] = "/data.pkl";
    size_t size = sizeof name - 1;
    *out = NULL;
    for (size_t i = 0; i < zip->count && !*out; i++) {
        const ic_zip_entry *e = &zip->entries[i];
        if (e->name_size < size || memcmp(e->name + e->name_size - size, name, size) != 0)
            continue;
        if (!memchr(e->name, 0, e->name_size) && !memchr(e->name, '/', e->name_size - size))
            *out = e;
    }
    if (!*out)
        return ic_fail(ICAE_EFORMAT, "%.300s: a zip archive without data.pkl: not from torch.save",
                       path);
    *prefix = ic_strndup((*out)->name, (*out)->name_size - size + 1);
    return *prefix ? ICAE_OK : ICAE_ENOMEM;
}

static int check_byte_order(const ic_zip *zip, const char *prefix, const char *path)
{
    char *name = ic_format("%sbyteorder", prefix);
    if (!name)
        return ICAE_ENOMEM;
    const ic_zip_entry *e = ic_zip_find(zip, name);
    ic_free(name);
    if (e && (e->size < 6 || memcmp(e->data, "little", 6) != 0))
        return ic_fail(ICAE_EUNSUPPORTED, "%.300s: its byte order is '%.*s', expected 'little'",
                       path, (int)IC_MIN(e->size, (size_t)20), (const char *)e->data);
    return ICAE_OK;
}

static int read_all(ic_pt *pt)
{
    owned *o = pt->owned;
    ic_zip zip = {0};
    ic_pickle pickle = {0};
    char *prefix = NULL;
    walk w = {.pt = pt, .zip = &zip, .name.limit = MAX_NAME};
    const ic_zip_entry *entry;
    int rc = ICAE_OK;
    if (pt->map.size < 4 || memcmp(pt->map.data, "PK\3\4", 4) != 0) {
        bool pickled = pt->map.size >= 2 && pt->map.data[0] == 0x80;
        return ic_fail(pickled ? ICAE_EUNSUPPORTED : ICAE_EFORMAT,
                       pickled
                           ? "%.300s: torch.save's format from before 1.6; save it again with a "
                             "newer torch"
                           : "%.300s: not a file of torch.save (no zip archive)",
                       pt->path);
    }
    IC_TRY(ic_zip_read(&zip, &pt->map, pt->path));
    IC_TRY(find_pickle(&entry, &prefix, &zip, pt->path));
    IC_TRY(check_byte_order(&zip, prefix, pt->path));
    IC_TRY(ic_pickle_read(&pickle, entry->data, entry->size, pt->path));
    w.prefix = prefix;
    w.visits_left = 16 * entry->size;
    IC_TRY(visit(&w, pickle.root, 0));
    IC_TRY(ic_index_build(&o->index, pt->tensors, pt->count, pt->path));
done:
    ic_buffer_free(&w.name);
    ic_free(prefix);
    ic_pickle_free(&pickle);
    ic_zip_free(&zip);
    return rc;
}

int ic_pt_read(ic_pt *out, ic_map *map, const char *path)
{
    *out = (ic_pt){.map = *map};
    *map = (ic_map){0};
    int rc = ICAE_ENOMEM;
    owned *o = out->owned = ic_alloc(1, sizeof *o);
    if (o)
        out->path = o->path = ic_strdup(path);
    if (out->path)
        rc = read_all(out);
    if (rc < 0)
        ic_pt_close(out);
    return rc;
}

int ic_pt_open(ic_pt *out, const char *path)
{
    *out = (ic_pt){0};
    ic_map map;
    int rc = ic_map_open(&map, path);
    return rc < 0 ? rc : ic_pt_read(out, &map, path);
}

void ic_pt_close(ic_pt *pt)
{
    owned *o = pt->owned;
    if (o) {
        ic_index_free(&o->index);
        ic_free(o->path);
    }
    ic_free(o);
    for (size_t i = 0; i < pt->count; i++)
        ic_free((char *)pt->tensors[i].name);
    ic_free(pt->tensors);
    ic_map_close(&pt->map);
    *pt = (ic_pt){0};
}
