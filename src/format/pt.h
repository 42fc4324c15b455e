/*
 * pt.h - the two halves of a .pt file, for pt.c only: a zip of stored entries, and a pickle.
 */
#ifndef IC_FORMAT_PT_H
#define IC_FORMAT_PT_H

#include "format/format.h"

/* ---- zip (zip.c) ----------------------------------------------------------------------------- */

typedef struct ic_zip_entry {
    const char *name; /* in the map, not terminated */
    size_t name_size;
    const unsigned char *data; /* in the map, checked */
    size_t size;
} ic_zip_entry;

typedef struct ic_zip {
    ic_zip_entry *entries; /* sorted by name */
    size_t count;
} ic_zip;

/* Entries point into the map, which must stay. */
int ic_zip_read(ic_zip *out, const ic_map *map, const char *path);
const ic_zip_entry *ic_zip_find(const ic_zip *zip, const char *name);
void ic_zip_free(ic_zip *zip);

/* ---- pickle (pickle.c) ----------------------------------------------------------------------- */

typedef enum ic_pickle_kind {
    IC_PICKLE_NONE,
    IC_PICKLE_BOOL,
    IC_PICKLE_INT,
    IC_PICKLE_FLOAT,
    IC_PICKLE_STRING,
    IC_PICKLE_TUPLE,
    IC_PICKLE_LIST,
    IC_PICKLE_DICT, /* and OrderedDict */
    IC_PICKLE_CALLABLE,
    IC_PICKLE_STORAGE,
    IC_PICKLE_TENSOR
} ic_pickle_kind;

typedef struct ic_pickle_value ic_pickle_value;

typedef struct ic_pickle_item {
    struct ic_pickle_item *next;
    const ic_pickle_value *key; /* of dicts */
    const ic_pickle_value *value;
} ic_pickle_item;

typedef struct ic_pickle_text {
    const char *data; /* in the pickle, not terminated */
    size_t size;
} ic_pickle_text;

/* Data of tensors: an entry of the zip. */
typedef struct ic_pickle_storage {
    ic_dtype dtype;
    ic_pickle_text key;
    int64_t values;
} ic_pickle_storage;

typedef struct ic_pickle_tensor {
    const ic_pickle_storage *storage;
    int64_t offset; /* in values, as are the strides */
    int rank;
    int64_t dim[4], stride[4];
} ic_pickle_tensor;

struct ic_pickle_value {
    ic_pickle_kind kind;
    union {
        int64_t integer; /* and bools; which callable */
        double real;
        ic_pickle_text text;
        struct {
            ic_pickle_item *first, *last;
            size_t count;
        } items; /* of tuples, lists, dicts */
        ic_pickle_storage storage;
        ic_pickle_tensor tensor;
    };
};

/* Values lie in `pool` and may be shared, and may even contain themselves: whoever walks them must
 * bound depth and work. */
typedef struct ic_pickle {
    const ic_pickle_value *root;
    void *pool;
} ic_pickle;

int ic_pickle_read(ic_pickle *out, const unsigned char *data, size_t size, const char *path);
void ic_pickle_free(ic_pickle *pickle);

#endif
