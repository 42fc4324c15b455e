/*
 * json.c - JSON by cJSON (the only file that includes it), made safe for hostile text.
 *
 * A first pass over the text bounds the depth and refuses what cJSON would read wrongly (control
 * and 0 bytes in strings), so that errors have a line number and the parser never recurses deeply.
 */
#include "base/base.h"

#include <cjson/cJSON.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 200

/* Tells "no memory" from "bad text", which cJSON does not. */
static _Thread_local bool no_memory;

/* cJSON's hooks belong to the whole process. These count, and otherwise are malloc and free, so
 * that a program that uses cJSON itself may still release its strings with free. */
static void *counted_malloc(size_t size)
{
    bool counted = ic_memory_count_in();
    void *memory = counted ? malloc(size) : NULL;
    if (!memory)
        no_memory = true;
    if (counted && !memory)
        ic_memory_count_out();
    return memory;
}

static void counted_free(void *memory)
{
    if (memory)
        ic_memory_count_out();
    free(memory);
}

static void set_hooks(void)
{
    cJSON_InitHooks(&(cJSON_Hooks){.malloc_fn = counted_malloc, .free_fn = counted_free});
}

static int fail_at(const char *name, const char *text, size_t at, const char *what)
{
    size_t line = 1, column = 1;
    for (size_t i = 0; i < at; i++) {
        column = text[i] == '\n' ? 1 : column + 1;
        line += text[i] == '\n';
    }
    return ic_fail(ICAE_EFORMAT, "%.300s: line %zu, column %zu (byte %zu): %s", name, line, column,
                   at, what);
}

/* One string, from behind its opening quote; returns NULL and leaves *at behind the closing one, or
 * what is wrong at *at. */
static const char *scan_string(const char *text, size_t size, size_t *at)
{
    for (size_t i = *at; i < size; i++) {
        *at = i;
        if (text[i] == '"') {
            *at = i + 1;
            return NULL;
        }
        if ((unsigned char)text[i] < 0x20)
            return "control character in a string";
        if (text[i] != '\\')
            continue;
        if (size - i >= 6 && memcmp(text + i, "\\u0000", 6) == 0)
            return "a string with a 0 character is not supported";
        i++;
    }
    *at = size;
    return "string without end";
}

static int scan(const char *text, size_t size, const char *name)
{
    size_t depth = 0;
    for (size_t i = 0; i < size;) {
        char c = text[i++];
        if (c == '"') {
            const char *wrong = scan_string(text, size, &i);
            if (wrong)
                return fail_at(name, text, i, wrong);
        } else if (c == '{' || c == '[') {
            if (++depth > MAX_DEPTH)
                return fail_at(name, text, i - 1, "JSON nested deeper than 200 levels");
        } else if (c == '}' || c == ']') {
            depth -= depth > 0;
        } else if ((unsigned char)c < 0x20 && c != '\n' && c != '\r' && c != '\t') {
            return fail_at(name, text, i - 1, "control character in JSON");
        }
    }
    return ICAE_OK;
}

int ic_json_parse(ic_json **root, const char *text, size_t size, const char *name)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    *root = NULL;
    pthread_once(&once, set_hooks);
    int rc = scan(text, size, name);
    if (rc < 0)
        return rc;
    if (size == 0)
        return ic_fail(ICAE_EFORMAT, "%.300s: empty where JSON was expected", name);

    const char *end = text;
    no_memory = false;
    cJSON *tree = cJSON_ParseWithLengthOpts(text, size, &end, 0);
    size_t at = IC_MIN((size_t)(end - text), size);
    if (!tree && no_memory)
        return ic_fail(ICAE_ENOMEM, "%.300s: out of memory for %zu bytes of JSON", name, size);
    if (!tree)
        return fail_at(name, text, at, "not valid JSON");
    while (at < size && strchr(" \t\r\n", text[at]))
        at++;
    if (at < size) {
        cJSON_Delete(tree);
        return fail_at(name, text, at, "something follows the JSON value");
    }
    *root = (ic_json *)tree;
    return ICAE_OK;
}

void ic_json_free(ic_json *root)
{
    cJSON_Delete((cJSON *)root);
}

static const cJSON *node_of(const ic_json *node)
{
    return (const cJSON *)node;
}

const ic_json *ic_json_get(const ic_json *object, const char *key)
{
    if (!cJSON_IsObject(node_of(object)))
        return NULL;
    return (const ic_json *)cJSON_GetObjectItemCaseSensitive(node_of(object), key);
}

const ic_json *ic_json_first(const ic_json *node)
{
    bool inner = cJSON_IsObject(node_of(node)) || cJSON_IsArray(node_of(node));
    return inner ? (const ic_json *)node_of(node)->child : NULL;
}

const ic_json *ic_json_next(const ic_json *child)
{
    return child ? (const ic_json *)node_of(child)->next : NULL;
}

const char *ic_json_key(const ic_json *child)
{
    return child ? node_of(child)->string : NULL;
}

size_t ic_json_count(const ic_json *node)
{
    size_t count = 0;
    for (const ic_json *c = ic_json_first(node); c; c = ic_json_next(c))
        count++;
    return count;
}

bool ic_json_is_null(const ic_json *node)
{
    return !node || cJSON_IsNull(node_of(node));
}
bool ic_json_is_object(const ic_json *node)
{
    return cJSON_IsObject(node_of(node));
}
bool ic_json_is_array(const ic_json *node)
{
    return cJSON_IsArray(node_of(node));
}
bool ic_json_is_number(const ic_json *node)
{
    return cJSON_IsNumber(node_of(node));
}
bool ic_json_is_bool(const ic_json *node)
{
    return cJSON_IsBool(node_of(node));
}

const char *ic_json_string(const ic_json *node)
{
    return cJSON_GetStringValue((cJSON *)node);
}

double ic_json_number(const ic_json *node, double otherwise)
{
    return ic_json_is_number(node) ? node_of(node)->valuedouble : otherwise;
}

bool ic_json_bool(const ic_json *node, bool otherwise)
{
    return ic_json_is_bool(node) ? cJSON_IsTrue(node_of(node)) : otherwise;
}

/* ---- writing --------------------------------------------------------------------------------- */

static int quote_one(ic_buffer *b, uint32_t code, const char *s, int length)
{
    switch (code) {
    case '"':
        return ic_buffer_add(b, "\\\"", 2);
    case '\\':
        return ic_buffer_add(b, "\\\\", 2);
    case '\n':
        return ic_buffer_add(b, "\\n", 2);
    case '\r':
        return ic_buffer_add(b, "\\r", 2);
    case '\t':
        return ic_buffer_add(b, "\\t", 2);
    default:
        if (code < 0x20 || code == 0x7f)
            return ic_buffer_addf(b, "\\u%04x", (unsigned)code);
        return length > 0 ? ic_buffer_add(b, s, (size_t)length)
                          : ic_buffer_add(b, "\xef\xbf\xbd", 3);
    }
}

int ic_json_quote(ic_buffer *b, const char *s, size_t size)
{
    int rc = ic_buffer_add(b, "\"", 1);
    for (size_t i = 0; i < size && rc >= 0;) {
        /* Runs of plain ASCII, most of any text, in one piece. */
        size_t run = i;
        while (run < size && s[run] >= 0x20 && s[run] < 0x7f && s[run] != '"' && s[run] != '\\')
            run++;
        if (run > i) {
            rc = ic_buffer_add(b, s + i, run - i);
            i = run;
            continue;
        }
        uint32_t code;
        int length = ic_utf8_decode(&code, s + i, size - i);
        rc = quote_one(b, code, s + i, length);
        i += (size_t)(length < 0 ? -length : length);
    }
    return rc < 0 ? rc : ic_buffer_add(b, "\"", 1);
}
