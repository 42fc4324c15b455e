/*
 * data.c - the texts and questions that an evaluation reads.
 *
 * Files are hostile: a line that is no JSON or lacks a field is an error that names file and line.
 * Knows nothing of tokens.
 */
#include "eval/eval.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#define LARGEST ((size_t)1 << 30) /* bytes of one file, decompressed */

static char *name_of(const char *path)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    size_t begin = n;
    while (begin && path[begin - 1] != '/')
        begin--;
    const char *dot = memchr(path + begin + (begin < n), '.', n - begin - (begin < n));
    return ic_strndup(path + begin, dot ? (size_t)(dot - path) - begin : n - begin);
}

static int add_set(ic_data *d, const char *name)
{
    for (size_t i = 0; i < d->sets; i++)
        if (strcmp(d->set[i], name) == 0)
            return ICAE_OK;
    char **more = ic_resize(d->set, d->sets + 1, sizeof *more);
    if (!more)
        return ICAE_ENOMEM;
    d->set = more;
    if (!(d->set[d->sets] = ic_strdup(name)))
        return ICAE_ENOMEM;
    d->sets++;
    return ICAE_OK;
}

static int add_document(ic_data *d, const char *set, const char *text, size_t size)
{
    if (d->documents == d->document_capacity) {
        size_t n = IC_MAX((size_t)256, d->document_capacity * 2);
        ic_document *more = ic_resize(d->document, n, sizeof *more);
        if (!more)
            return ICAE_ENOMEM;
        d->document = more;
        d->document_capacity = n;
    }
    ic_document *o = &d->document[d->documents];
    *o = (ic_document){.set = ic_strdup(set), .text = ic_alloc(size + 1, 1), .size = size};
    d->documents++;
    if (o->text)
        memcpy(o->text, text, size); /* it may hold 0 bytes */
    return o->set && o->text ? add_set(d, set) : ICAE_ENOMEM;
}

static const char *either(const ic_json *line, const char *a, const char *b)
{
    const char *s = ic_json_string(ic_json_get(line, a));
    return s ? s : ic_json_string(ic_json_get(line, b));
}

static int add_question(ic_data *d, const ic_json *line, const char *where)
{
    const char *context = either(line, "context", "input"),
               *prompt = either(line, "prompt", "question");
    const char *answer = either(line, "answer", "response"),
               *summary = ic_json_string(ic_json_get(line, "summary"));
    if (!context || !prompt || !answer || !*context || !*prompt)
        return ic_fail(ICAE_EFORMAT,
                       "%s: expected `text`, or `context` (or `input`), `prompt` and `answer` (or "
                       "`response`), as strings that are not empty",
                       where);
    if (d->questions == d->question_capacity) {
        size_t n = IC_MAX((size_t)256, d->question_capacity * 2);
        ic_question *more = ic_resize(d->question, n, sizeof *more);
        if (!more)
            return ICAE_ENOMEM;
        d->question = more;
        d->question_capacity = n;
    }
    ic_question *q = &d->question[d->questions++];
    *q = (ic_question){ic_strdup(context), ic_strdup(prompt), ic_strdup(answer),
                       summary ? ic_strdup(summary) : NULL};
    return q->context && q->prompt && q->answer && (!summary || q->summary) ? ICAE_OK : ICAE_ENOMEM;
}

static int add_lines(ic_data *d, const char *set, const ic_buffer *text, const char *path)
{
    int rc = ICAE_OK;
    size_t number = 1;
    ic_json *line = NULL;
    for (size_t at = 0; at < text->size; number++) {
        const char *begin = text->data + at, *end = memchr(begin, '\n', text->size - at);
        size_t size = end ? (size_t)(end - begin) : text->size - at;
        at += size + 1;
        if (strspn(begin, " \t\r") >= size)
            continue;
        char *where = ic_format("%s:%zu", path, number);
        rc = where ? ic_json_parse(&line, begin, size, where) : ICAE_ENOMEM;
        const char *body = rc == ICAE_OK ? ic_json_string(ic_json_get(line, "text")) : NULL;
        if (rc == ICAE_OK)
            rc = body ? add_document(d, set, body, strlen(body)) : add_question(d, line, where);
        ic_json_free(line);
        line = NULL;
        ic_free(where);
        if (rc < 0)
            goto done;
    }
done:
    return rc;
}

static bool has_ending(const char *path, const char *ending)
{
    const char *at = strstr(path, ending);
    while (at) {
        const char *rest = at + strlen(ending);
        if (!*rest || !strcmp(rest, ".gz") || !strcmp(rest, ".zst"))
            return true;
        at = strstr(at + 1, ending);
    }
    return false;
}

static int add_file(ic_data *d, const char *set, const char *path)
{
    int rc = ICAE_OK;
    ic_map map = {0};
    ic_buffer text = {.limit = LARGEST};
    IC_TRY(ic_map_open(&map, path));
    IC_TRY(ic_decompress(&text, map.data, map.size, path));
    if (!text.size)
        goto done; /* nothing in it: run.c notices if there is nothing at all */
    if (has_ending(path, ".jsonl"))
        IC_TRY(add_lines(d, set, &text, path));
    else
        IC_TRY(add_document(d, set, text.data, text.size));
done:
    ic_map_close(&map);
    ic_buffer_free(&text);
    return rc;
}

/* Files of a folder are one set; folders in it are sets of their own. */
static int add_folder(ic_data *d, const char *path, const char *set)
{
    int rc = ICAE_OK;
    struct dirent **list = NULL;
    int n = scandir(path, &list, NULL, alphasort);
    if (n < 0)
        return ic_fail(ICAE_EIO, "%s: the folder cannot be read", path);
    for (int i = 0; i < n; i++) {
        bool about =
            !strncmp(list[i]->d_name, "README", 6) || !strncmp(list[i]->d_name, "LICENSE", 7);
        if (rc == ICAE_OK && list[i]->d_name[0] != '.' && !about) {
            char *file = ic_path_join(path, list[i]->d_name), *inner = name_of(list[i]->d_name);
            if (!file || !inner)
                rc = ICAE_ENOMEM;
            else if (ic_path_is_folder(file))
                rc = add_folder(d, file, inner);
            else
                rc = add_file(d, has_ending(file, ".jsonl") ? inner : set, file);
            ic_free(file);
            ic_free(inner);
        }
        free(list[i]);
    }
    free(list);
    return rc;
}

int ic_data_add(ic_data *d, const char *path)
{
    char *set = name_of(path);
    if (!set)
        return ICAE_ENOMEM;
    int rc = ic_path_is_folder(path) ? add_folder(d, path, set) : add_file(d, set, path);
    ic_free(set);
    return rc;
}

void ic_data_free(ic_data *d)
{
    for (size_t i = 0; i < d->documents; i++) {
        ic_free(d->document[i].set);
        ic_free(d->document[i].text);
    }
    for (size_t i = 0; i < d->questions; i++) {
        ic_free(d->question[i].context);
        ic_free(d->question[i].prompt);
        ic_free(d->question[i].answer);
        ic_free(d->question[i].summary);
    }
    for (size_t i = 0; i < d->sets; i++)
        ic_free(d->set[i]);
    ic_free(d->document);
    ic_free(d->question);
    ic_free(d->set);
    *d = (ic_data){0};
}

int ic_data_hash(char hex[65], const ic_data *d)
{
    ic_hash *h;
    int rc = ic_hash_new(&h);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < d->documents; i++) {
        ic_hash_add(h, d->document[i].set, strlen(d->document[i].set) + 1);
        ic_hash_add(h, d->document[i].text, d->document[i].size + 1);
    }
    for (size_t i = 0; i < d->questions; i++) {
        const char *part[] = {d->question[i].context, d->question[i].prompt, d->question[i].answer,
                              d->question[i].summary ? d->question[i].summary : ""};
        for (size_t k = 0; k < IC_COUNT(part); k++)
            ic_hash_add(h, part[k], strlen(part[k]) + 1);
    }
    ic_hash_finish(h, hex);
    return ICAE_OK;
}
