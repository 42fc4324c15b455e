/*
 * parse.c - what the readers of tokenizer.json's parts share: members that must be there, patterns,
 * and nested sequences of components.
 */
#include "text/internal.h"

#include <math.h>
#include <string.h>

int ic_each_component(ic_tokenizer *t, const ic_json *node, const char *what, const char *list,
                      ic_component_fn fn)
{
    if (ic_json_is_null(node))
        return ICAE_OK;
    const char *type = ic_json_string(ic_json_get(node, "type"));
    if (!type)
        return ic_fail(ICAE_EFORMAT, "%.200s: a %s without \"type\"", t->name, what);
    if (strcmp(type, "Sequence") != 0)
        return fn(t, node, type);
    const ic_json *items = ic_json_get(node, list);
    if (!ic_json_is_array(items))
        return ic_fail(ICAE_EFORMAT, "%.200s: %s Sequence without \"%s\"", t->name, what, list);
    for (const ic_json *i = ic_json_first(items); i; i = ic_json_next(i)) {
        if (ic_json_is_null(i))
            return ic_fail(ICAE_EFORMAT, "%.200s: null in a %s Sequence", t->name, what);
        int rc = ic_each_component(t, i, what, list, fn);
        if (rc < 0)
            return rc;
    }
    return ICAE_OK;
}

int ic_json_need_string(const char **out, const ic_tokenizer *t, const ic_json *node,
                        const char *what, const char *key)
{
    *out = ic_json_string(ic_json_get(node, key));
    if (!*out)
        return ic_fail(ICAE_EFORMAT, "%.200s: %s needs a text \"%s\"", t->name, what, key);
    return ICAE_OK;
}

int ic_json_need_char(char out[8], const ic_tokenizer *t, const ic_json *node, const char *what,
                      const char *key)
{
    const char *text;
    uint32_t code;
    int rc = ic_json_need_string(&text, t, node, what, key);
    if (rc < 0)
        return rc;
    size_t size = strlen(text);
    if (size == 0 || (size_t)ic_next_char(&code, text, size) != size)
        return ic_fail(ICAE_EFORMAT, "%.200s: \"%s\" of %s is \"%.50s\", not one character",
                       t->name, key, what, text);
    memset(out, 0, 8);
    memcpy(out, text, size);
    return ICAE_OK;
}

int ic_json_need_pattern(ic_regex **out, const ic_tokenizer *t, const ic_json *node,
                         const char *what)
{
    const ic_json *pattern = ic_json_get(node, "pattern");
    const char *text = ic_json_string(ic_json_get(pattern, "String"));
    const char *regex = ic_json_string(ic_json_get(pattern, "Regex"));
    *out = NULL;
    if (!text == !regex)
        return ic_fail(ICAE_EFORMAT,
                       "%.200s: %s needs a \"pattern\" that is {\"String\": …} or {\"Regex\": …}",
                       t->name, what);
    if (text)
        return ic_regex_new_literal(out, text);
    char *where = ic_format("%.200s: %s", t->name, what);
    int rc = where ? ic_regex_new(out, regex, where) : ICAE_ENOMEM;
    ic_free(where);
    return rc;
}

int ic_json_need_count(size_t *out, const ic_tokenizer *t, const ic_json *node, const char *what,
                       const char *key, size_t max)
{
    double number = ic_json_number(ic_json_get(node, key), -1);
    if (!(number >= 0 && number <= (double)max) || number != floor(number))
        return ic_fail(ICAE_EFORMAT, "%.200s: %s needs a whole number \"%s\" from 0 to %zu",
                       t->name, what, key, max);
    *out = (size_t)number;
    return ICAE_OK;
}
