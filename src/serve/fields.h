/* fields.h - members of JSON bodies and values of queries, checked; see fields.c. */
#ifndef IC_SERVE_FIELDS_H
#define IC_SERVE_FIELDS_H

#include "base/base.h"

enum { IC_ADAPTERS = -1 }; /* refine, expand: not given, so as the adapter recommends */

/* A JSON object from outside. What fails sets the message and `param`, the member that is wrong. */
typedef struct ic_fields {
    const ic_json *object;
    char param[64];
} ic_fields;

/* The body of a request: valid UTF-8, one object, not too many values. */
int ic_fields_parse(ic_json **root, const char *body, size_t size);
/* ICAE_EFORMAT, with the place, unless all of it is valid UTF-8. */
int ic_fields_utf8(const char *text, size_t size, const char *name);

/* Absent or null: *out stays, and the result is 0; else 1, or ICAE_EINVAL. */
int ic_fields_whole(ic_fields *f, const char *name, int64_t *out, int64_t least, int64_t most);
int ic_fields_real(ic_fields *f, const char *name, double *out, double least, double most);
int ic_fields_flag(ic_fields *f, const char *name, bool *out);
int ic_fields_text(ic_fields *f, const char *name, const char **out);
int ic_fields_object(ic_fields *f, const char *name, const ic_json **out);
int ic_fields_array(ic_fields *f, const char *name, const ic_json **out);
int ic_fields_wrong(ic_fields *f, const char *name, const char *expected); /* ICAE_EINVAL */

/* Appends the names of members that are not among `known` (ended by NULL), comma separated. */
int ic_fields_unknown(ic_buffer *out, const ic_json *object, const char *const *known,
                      const char *prefix);

/* The same for one value of a query (NULL: absent). */
int ic_query_whole(ic_fields *f, const char *name, const char *value, int64_t *out, int64_t least,
                   int64_t most);
int ic_query_real(ic_fields *f, const char *name, const char *value, double *out, double least,
                  double most);
int ic_query_flag(ic_fields *f, const char *name, const char *value, bool *out);

/* A Content-Type (NULL: none) is of this media type, whatever its parameters. */
bool ic_is_media_type(const char *type, const char *wanted);

#endif
