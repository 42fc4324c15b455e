/*
 * fields.c - members of JSON bodies and values of queries, checked.
 *
 * Owns what is said when something from outside has the wrong type or an impossible value. Knows
 * nothing of what the values are for.
 */
#include "serve/fields.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { MOST_VALUES = 100000 };

int ic_fields_utf8(const char *text, size_t size, const char *name)
{
    for (size_t i = 0; i < size;) {
        uint32_t code;
        if ((unsigned char)text[i] < 0x80) {
            i++;
            continue;
        }
        int n = ic_utf8_decode(&code, text + i, size - i);
        if (n < 0)
            return ic_fail(ICAE_EFORMAT, "%s is not valid UTF-8 at byte %zu", name, i);
        i += (size_t)n;
    }
    return ICAE_OK;
}

/* Every value costs memory, however few bytes it takes: [[],[],[], … */
static int check_values(const char *text, size_t size)
{
    size_t values = 0;
    bool quoted = false;
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (c == '\\' && quoted)
            i++;
        else if (c == '"')
            quoted = !quoted;
        else if (!quoted && (c == ',' || c == '[' || c == '{') && ++values > MOST_VALUES)
            return ic_fail(ICAE_EINVAL, "the body has more than %d JSON values", MOST_VALUES);
    }
    return ICAE_OK;
}

int ic_fields_parse(ic_json **root, const char *body, size_t size)
{
    int rc = ICAE_OK;
    *root = NULL;
    IC_TRY(ic_fields_utf8(body, size, "the body"));
    IC_TRY(check_values(body, size));
    IC_TRY(ic_json_parse(root, body, size, "the body"));
    if (!ic_json_is_object(*root)) {
        ic_json_free(*root);
        *root = NULL;
        return ic_fail(ICAE_EINVAL, "the body is no JSON object");
    }
done:
    return rc;
}

int ic_fields_wrong(ic_fields *f, const char *name, const char *expected)
{
    snprintf(f->param, sizeof f->param, "%s", name);
    return ic_fail(ICAE_EINVAL, "%s: expected %s", name, expected);
}

static int check_real(ic_fields *f, const char *name, double *out, double v, double least,
                      double most, bool whole)
{
    char expected[96];
    if (v >= least && v <= most && (!whole || v == floor(v))) {
        *out = v;
        return 1;
    }
    snprintf(expected, sizeof expected, "a %snumber from %.15g to %.15g", whole ? "whole " : "",
             least, most);
    return ic_fields_wrong(f, name, expected);
}

int ic_fields_real(ic_fields *f, const char *name, double *out, double least, double most)
{
    const ic_json *node = ic_json_get(f->object, name);
    if (ic_json_is_null(node))
        return 0;
    return check_real(f, name, out, ic_json_number(node, NAN), least, most, false);
}

int ic_fields_whole(ic_fields *f, const char *name, int64_t *out, int64_t least, int64_t most)
{
    double v;
    const ic_json *node = ic_json_get(f->object, name);
    if (ic_json_is_null(node))
        return 0;
    int rc = check_real(f, name, &v, ic_json_number(node, NAN), (double)least, (double)most, true);
    if (rc > 0)
        *out = (int64_t)v;
    return rc;
}

int ic_fields_flag(ic_fields *f, const char *name, bool *out)
{
    const ic_json *node = ic_json_get(f->object, name);
    if (ic_json_is_null(node))
        return 0;
    if (!ic_json_is_bool(node))
        return ic_fields_wrong(f, name, "true or false");
    *out = ic_json_bool(node, false);
    return 1;
}

int ic_fields_text(ic_fields *f, const char *name, const char **out)
{
    const ic_json *node = ic_json_get(f->object, name);
    if (ic_json_is_null(node))
        return 0;
    if (!ic_json_string(node))
        return ic_fields_wrong(f, name, "a string");
    *out = ic_json_string(node);
    return 1;
}

int ic_fields_object(ic_fields *f, const char *name, const ic_json **out)
{
    const ic_json *node = ic_json_get(f->object, name);
    if (ic_json_is_null(node))
        return 0;
    if (!ic_json_is_object(node))
        return ic_fields_wrong(f, name, "an object");
    *out = node;
    return 1;
}

int ic_fields_array(ic_fields *f, const char *name, const ic_json **out)
{
    const ic_json *node = ic_json_get(f->object, name);
    if (ic_json_is_null(node))
        return 0;
    if (!ic_json_is_array(node))
        return ic_fields_wrong(f, name, "an array");
    *out = node;
    return 1;
}

int ic_fields_unknown(ic_buffer *out, const ic_json *object, const char *const *known,
                      const char *prefix)
{
    int rc = ICAE_OK;
    for (const ic_json *m = ic_json_first(object); m; m = ic_json_next(m)) {
        const char *name = ic_json_key(m);
        size_t i = 0;
        while (known[i] && strcmp(known[i], name))
            i++;
        if (!known[i] && out->size < 1000)
            IC_TRY(ic_buffer_addf(out, "%s%s%.64s", out->size ? "," : "", prefix, name));
    }
done:
    return rc;
}

/* ---- queries ---------------------------------------------------------------------------------- */

int ic_query_real(ic_fields *f, const char *name, const char *value, double *out, double least,
                  double most)
{
    if (!value)
        return 0;
    char *end;
    errno = 0;
    double v = strtod(value, &end);
    bool plain = strspn(value, "0123456789.+-eE") == strlen(value); /* no hexadecimal, no "inf" */
    return check_real(f, name, out, plain && *value && !*end && !errno ? v : NAN, least, most,
                      false);
}

int ic_query_whole(ic_fields *f, const char *name, const char *value, int64_t *out, int64_t least,
                   int64_t most)
{
    if (!value)
        return 0;
    size_t size = strlen(value);
    bool plain = size > 0 && size < 16 && strspn(value, "0123456789") == size;
    double v, read = plain ? (double)strtoll(value, NULL, 10) : NAN;
    int rc = check_real(f, name, &v, read, (double)least, (double)most, true);
    if (rc > 0)
        *out = (int64_t)v;
    return rc;
}

int ic_query_flag(ic_fields *f, const char *name, const char *value, bool *out)
{
    if (!value)
        return 0;
    bool yes = !*value || !strcmp(value, "true") || !strcmp(value, "1");
    if (!yes && strcmp(value, "false") && strcmp(value, "0"))
        return ic_fields_wrong(f, name, "true or false");
    *out = yes;
    return 1;
}

bool ic_is_media_type(const char *type, const char *wanted)
{
    size_t n = type ? strcspn(type, "; \t") : 0;
    return n == strlen(wanted) && strncasecmp(type, wanted, n) == 0;
}
