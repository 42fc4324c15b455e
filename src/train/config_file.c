/*
 * config_file.c - configuration files: the subset of TOML that a flat list of keys needs, and JSON.
 *
 * TOML: `key = value` lines; basic and literal strings, numbers, booleans, arrays of them over several
 * lines, comments. Sections are refused: every key has one name. Owns no setting; config.c does.
 */
#include "train/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int ic_value_add(ic_value *v, const char *text, size_t size)
{
    if (v->count == v->capacity) {
        size_t capacity = IC_MAX((size_t)8, v->capacity * 2);
        char **item = ic_resize(v->item, capacity, sizeof *item);
        if (!item)
            return ICAE_ENOMEM;
        v->item = item;
        v->capacity = capacity;
    }
    if (!(v->item[v->count] = ic_strndup(text, size)))
        return ICAE_ENOMEM;
    v->count++;
    return ICAE_OK;
}

void ic_value_free(ic_value *v)
{
    for (size_t i = 0; i < v->count; i++)
        ic_free(v->item[i]);
    ic_free(v->item);
    *v = (ic_value){0};
}

/* ---- TOML ------------------------------------------------------------------------------------- */

typedef struct cursor {
    const char *at, *end;
    const char *name;
    int line;
} cursor;

static int bad(const cursor *c, const char *what)
{
    return ic_fail(ICAE_EFORMAT, "%.300s: line %d: %s", c->name, c->line, what);
}

static void skip(cursor *c, bool lines)
{
    while (c->at < c->end) {
        if (*c->at == '#')
            while (c->at < c->end && *c->at != '\n')
                c->at++;
        else if (*c->at == ' ' || *c->at == '\t' || *c->at == '\r')
            c->at++;
        else if (lines && *c->at == '\n') {
            c->at++;
            c->line++;
        } else
            break;
    }
}

static int escape(cursor *c, ic_buffer *b)
{
    static const char from[] = "btnfr\"\\e", to[] = "\b\t\n\f\r\"\\\x1b";
    char kind = c->at < c->end ? *c->at++ : 0;
    const char *simple = kind ? strchr(from, kind) : NULL;
    if (simple)
        return ic_buffer_add(b, &to[simple - from], 1);
    int digits = kind == 'u' ? 4 : kind == 'U' ? 8 : 0;
    uint32_t code = 0;
    if (!digits || c->end - c->at < digits)
        return bad(c, "unknown escape in a string");
    for (int i = 0; i < digits; i++, c->at++) {
        const char *hex = "0123456789abcdef", *h = *c->at ? strchr(hex, *c->at | 32) : NULL;
        if (!h)
            return bad(c, "unknown escape in a string");
        code = code << 4 | (uint32_t)(h - hex);
    }
    char utf8[4];
    if (!code)
        return bad(c, "a 0 character in a string");
    return ic_buffer_add(b, utf8, (size_t)ic_utf8_encode(utf8, code));
}

static int parse_string(cursor *c, ic_value *out)
{
    int rc = ICAE_OK;
    ic_buffer b = {0};
    char quote = *c->at++;
    if (c->end - c->at >= 2 && c->at[0] == quote && c->at[1] == quote)
        return bad(c, "strings over several lines are not supported");
    for (;;) {
        if (c->at == c->end || *c->at == '\n') {
            rc = bad(c, "a string without end");
            goto done;
        }
        char ch = *c->at++;
        if (ch == quote)
            break;
        if (ch == 0) {
            rc = bad(c, "a 0 character in a string");
            goto done;
        }
        if (ch == '\\' && quote == '"')
            IC_TRY(escape(c, &b));
        else
            IC_TRY(ic_buffer_add(&b, &ch, 1));
    }
    rc = ic_value_add(out, b.data ? b.data : "", b.size);
done:
    ic_buffer_free(&b);
    return rc;
}

/* A string, number or boolean; *kind tells which. */
static int parse_scalar(cursor *c, ic_value *out, int *kind)
{
    if (c->at == c->end || *c->at == '\n')
        return bad(c, "a value is missing behind =");
    if (*c->at == '"' || *c->at == '\'') {
        *kind = IC_VALUE_STRING;
        return parse_string(c, out);
    }
    const char *start = c->at;
    while (c->at < c->end && !strchr(" \t\r\n,]#", *c->at))
        c->at++;
    size_t n = (size_t)(c->at - start);
    if ((n == 4 && memcmp(start, "true", 4) == 0) || (n == 5 && memcmp(start, "false", 5) == 0)) {
        *kind = IC_VALUE_BOOL;
    } else {
        char text[64], *end;
        snprintf(text, sizeof text, "%.*s", (int)IC_MIN(n, sizeof text - 1), start);
        for (char *u = strchr(text + (*text != 0), '_'); u; u = strchr(u, '_'))
            memmove(u, u + 1, strlen(u));
        (void)strtod(text, &end);
        if (!n || *end || end == text)
            return bad(c, "neither a number, true, false, nor a quoted string");
        *kind = IC_VALUE_NUMBER;
    }
    return ic_value_add(out, start, n);
}

static int parse_array(cursor *c, ic_value *out)
{
    int rc = ICAE_OK, kind;
    c->at++;
    for (;;) {
        skip(c, true);
        if (c->at == c->end) {
            rc = bad(c, "an array without end");
            goto done;
        }
        if (*c->at == ']')
            break;
        IC_TRY(parse_scalar(c, out, &kind));
        skip(c, true);
        if (c->at < c->end && *c->at == ',')
            c->at++;
        else if (c->at == c->end || *c->at != ']') {
            rc = bad(c, "expected , or ] in an array");
            goto done;
        }
    }
    c->at++;
    out->kind = IC_VALUE_ARRAY;
done:
    return rc;
}

int ic_settings_parse_array(ic_value *out, const char *text)
{
    cursor c = {text, text + strlen(text), "value", 1};
    int rc = parse_array(&c, out);
    skip(&c, true);
    if (rc == ICAE_OK && c.at != c.end)
        rc = bad(&c, "something follows the array");
    return rc;
}

static bool is_key_char(char ch)
{
    return (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') || (ch >= '0' && ch <= '9') ||
           ch == '_' || ch == '-';
}

static int parse_line(cursor *c, icae_train_config *config)
{
    int rc = ICAE_OK;
    char key[64];
    ic_value v = {0};
    if (*c->at == '[')
        return bad(c, "sections are not used here: write the keys without them");
    const char *start = c->at;
    while (c->at < c->end && is_key_char(*c->at))
        c->at++;
    size_t n = (size_t)(c->at - start);
    if (n == 0 || n >= sizeof key)
        return bad(c, "expected key = value");
    memcpy(key, start, n);
    key[n] = 0;
    skip(c, false);
    if (c->at == c->end || *c->at != '=')
        return bad(c, "expected = behind the key");
    c->at++;
    skip(c, false);
    int line = c->line;
    if (c->at < c->end && *c->at == '[')
        IC_TRY(parse_array(c, &v));
    else
        IC_TRY(parse_scalar(c, &v, &v.kind));
    skip(c, false);
    if (c->at < c->end && *c->at != '\n') {
        rc = bad(c, "something follows the value");
        goto done;
    }
    rc = ic_settings_put(config, key, &v, false);
    if (rc < 0)
        rc = ic_fail(rc, "%.300s: line %d: %s", c->name, line, icae_error_message());
done:
    ic_value_free(&v);
    return rc;
}

/* ---- JSON ------------------------------------------------------------------------------------- */

static int json_scalar(ic_value *v, const ic_json *node)
{
    char number[40];
    const char *text = ic_json_string(node);
    v->kind = text ? IC_VALUE_STRING : ic_json_is_bool(node) ? IC_VALUE_BOOL : IC_VALUE_NUMBER;
    if (ic_json_is_bool(node))
        text = ic_json_bool(node, false) ? "true" : "false";
    if (!text && !ic_json_is_number(node))
        return ic_fail(ICAE_EFORMAT, "neither a text, a number, true, false, nor a list of them");
    if (!text) {
        snprintf(number, sizeof number, "%.17g", ic_json_number(node, 0));
        text = number;
    }
    return ic_value_add(v, text, strlen(text));
}

static int read_json(icae_train_config *config, const char *text, size_t size, const char *path)
{
    int rc = ICAE_OK;
    ic_json *root = NULL;
    ic_value v = {0};
    IC_TRY(ic_json_parse(&root, text, size, path));
    for (const ic_json *n = ic_json_first(root); n; n = ic_json_next(n)) {
        ic_value_free(&v);
        rc = ICAE_OK;
        if (ic_json_is_array(n)) {
            for (const ic_json *i = ic_json_first(n); i && rc == ICAE_OK; i = ic_json_next(i))
                rc = json_scalar(&v, i);
            v.kind = IC_VALUE_ARRAY;
        } else {
            rc = json_scalar(&v, n);
        }
        if (rc == ICAE_OK)
            rc = ic_settings_put(config, ic_json_key(n), &v, false);
        if (rc < 0) {
            rc = ic_fail(rc, "%.300s: %.80s: %s", path, ic_json_key(n), icae_error_message());
            goto done;
        }
    }
done:
    ic_value_free(&v);
    ic_json_free(root);
    return rc;
}

int icae_train_config_read(icae_train_config *config, const char *path)
{
    ic_map map;
    int rc = ic_map_open(&map, path);
    if (rc < 0)
        return rc;
    cursor c = {(const char *)map.data, (const char *)map.data + map.size, path, 1};
    skip(&c, true);
    if (c.at < c.end && *c.at == '{') {
        rc = read_json(config, (const char *)map.data, map.size, path);
    } else {
        while (rc == ICAE_OK && c.at < c.end) {
            rc = parse_line(&c, config);
            skip(&c, true);
        }
    }
    ic_map_close(&map);
    return rc;
}
