/* golden.h - walking the golden cases: shared by the tests that compare against them. */
#ifndef GOLDEN_H
#define GOLDEN_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/core.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MUST(call) golden_must((call), #call, __FILE__, __LINE__)

static inline void golden_must(int rc, const char *call, const char *file, int line)
{
    if (rc < 0) {
        print_error("%s failed: %s\n", call, icae_error_message());
        _fail(file, line);
    }
}

/* The folder of golden cases: $ICAE_GOLDEN, or the project's own. */
static inline const char *golden_folder(void)
{
    const char *folder = getenv("ICAE_GOLDEN");
    return folder && *folder ? folder : ICAE_TEST_DIR "/golden";
}

static inline char *golden_path(const char *a, const char *b)
{
    char *p = ic_path_join(a, b);
    assert_non_null(p);
    return p;
}

static inline ic_json *golden_json(const char *folder, const char *name)
{
    ic_map map;
    ic_json *json;
    char *path = golden_path(folder, name);
    MUST(ic_map_open(&map, path));
    MUST(ic_json_parse(&json, (const char *)map.data, map.size, path));
    ic_map_close(&map);
    ic_free(path);
    return json;
}

/* Calls f for every subfolder that holds a file `marker`; returns how many there were. */
static inline int golden_each(const char *folder, const char *marker, void (*f)(const char *path))
{
    struct dirent **list;
    int n = scandir(folder, &list, NULL, alphasort), found = 0;
    for (int i = 0; i < n; i++) {
        char *path = golden_path(folder, list[i]->d_name), *file = golden_path(path, marker);
        if (list[i]->d_name[0] != '.' && ic_path_exists(file)) {
            f(path);
            found++;
        }
        ic_free(file);
        ic_free(path);
        free(list[i]);
    }
    if (n >= 0)
        free(list);
    return found;
}

/* A float tensor of the case; its number of elements goes to *count. */
static inline float *golden_floats(const ic_safetensors *st, const char *name, size_t *count)
{
    const ic_tensor *t = ic_safetensors_find(st, name);
    if (!t)
        return NULL;
    *count = t->bytes / (size_t)ic_dtypes[t->dtype].bytes;
    float *v = ic_alloc(IC_MAX(*count, 1), sizeof *v);
    assert_non_null(v);
    ic_to_f32(v, t->data, t->dtype, *count);
    return v;
}

static inline const int32_t *golden_ids(const ic_safetensors *st, const char *name, size_t *count)
{
    const ic_tensor *t = ic_safetensors_find(st, name);
    *count = 0;
    if (!t)
        return NULL;
    assert_int_equal(t->dtype, IC_I32);
    *count = t->bytes / 4;
    return t->data;
}

static inline double golden_max_error(const float *a, const float *b, size_t n)
{
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double e = fabs((double)a[i] - (double)b[i]);
        if (!(e <= worst))
            worst = e;
    }
    return worst;
}

static inline double golden_relative_l2(const float *a, const float *b, size_t n)
{
    double d = 0, s = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        s += (double)b[i] * (double)b[i];
    }
    return sqrt(d / (s > 0 ? s : 1));
}

/* Fails with a line that names case, quantity, value and limit. */
static inline void golden_limit(const char *what, const char *quantity, double value, double limit)
{
    if (!(value <= limit)) {
        print_error("%s: %s is %.3g, limit %.3g\n", what, quantity, value, limit);
        fail();
    }
}

#endif
