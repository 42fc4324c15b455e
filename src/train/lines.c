/*
 * lines.c - documents out of text files: a line of JSON each, or a plain text in pieces; and the ids
 * of their parts.
 *
 * Files may be larger than memory and packed (.gz, .zst); a piece or line is bounded. Owns the rule
 * of which JSON keys are what. Knows nothing of caches.
 */
#include "train/run.h"

#include <stdio.h>
#include <string.h>

#define READ_STEP    ((size_t)1 << 18)
#define PIECE        ((size_t)1 << 20) /* of plain text; ends at a blank line where there is one */
#define LONGEST_LINE ((size_t)1 << 28)

struct ic_lines {
    ic_reader *reader;
    ic_buffer have; /* read, not handed out yet from `at` on */
    size_t at;
    uint64_t line;
    bool ended, json;
};

static bool ends_in(const char *name, size_t n, const char *end)
{
    size_t m = strlen(end);
    return n >= m && strncmp(name + n - m, end, m) == 0;
}

/* What the name promises; else what the first character is. */
static bool is_json(const char *path, const char *data, size_t size)
{
    size_t n = strlen(path);
    static const char *const packed[] = {".gz", ".zst", ".zstd"};
    for (size_t i = 0; i < IC_COUNT(packed); i++)
        if (ends_in(path, n, packed[i])) {
            n -= strlen(packed[i]);
            break;
        }
    if (ends_in(path, n, ".jsonl") || ends_in(path, n, ".ndjson") || ends_in(path, n, ".json"))
        return true;
    if (ends_in(path, n, ".txt") || ends_in(path, n, ".md"))
        return false;
    while (size && strchr(" \t\r\n", *data))
        data++, size--;
    return size && *data == '{';
}

/* Reads on; what was handed out makes room. */
static int more_bytes(ic_lines *l)
{
    size_t got;
    if (l->at) {
        memmove(l->have.data, l->have.data + l->at, l->have.size - l->at);
        l->have.size -= l->at;
        l->at = 0;
    }
    int rc = ic_buffer_grow(&l->have, READ_STEP);
    if (rc == ICAE_OK)
        rc = ic_reader_read(l->reader, l->have.data + l->have.size, READ_STEP, &got);
    if (rc < 0)
        return rc;
    l->have.size += got;
    l->have.data[l->have.size] = 0;
    l->ended = got == 0;
    return ICAE_OK;
}

int ic_lines_open(ic_lines **out, const char *path)
{
    int rc = ICAE_OK;
    ic_lines *l = ic_alloc(1, sizeof *l);
    if (!l)
        return ICAE_ENOMEM;
    IC_TRY(ic_reader_open(&l->reader, path));
    IC_TRY(more_bytes(l));
    if (l->have.size >= 3 && memcmp(l->have.data, "\xef\xbb\xbf", 3) == 0)
        l->at = 3; /* a byte order mark is no text */
    l->json = is_json(path, l->have.data + l->at, l->have.size - l->at);
    *out = l;
    return ICAE_OK;
done:
    ic_lines_close(l);
    return rc;
}

void ic_lines_close(ic_lines *l)
{
    if (!l)
        return;
    ic_reader_close(l->reader);
    ic_buffer_free(&l->have);
    ic_free(l);
}

static int take(ic_lines *l, ic_document *out, size_t size)
{
    out->data = ic_alloc(size + 1, 1); /* a text may hold 0 bytes */
    if (!out->data)
        return ICAE_ENOMEM;
    memcpy(out->data, l->have.data + l->at, size);
    out->size = size;
    l->at += size;
    return ICAE_OK;
}

/* The next line that is not blank. One that is too long is passed over and said to be bad. */
static int next_line(ic_lines *l, ic_document *out, bool *more)
{
    int rc = ICAE_OK;
    size_t seen = 0;
    bool too_long = false;
    for (;;) {
        const char *start = l->have.data + l->at, *end = NULL;
        size_t left = l->have.size - l->at;
        if (left > seen)
            end = memchr(start + seen, '\n', left - seen);
        if (!end && !l->ended) {
            if (left > LONGEST_LINE) {
                too_long = true;
                l->at = l->have.size;
                left = 0;
            }
            seen = left;
            IC_TRY(more_bytes(l));
            continue;
        }
        size_t n = end ? (size_t)(end - start) : left;
        if (!n && !end && !too_long) {
            *more = false;
            return ICAE_OK;
        }
        l->line++;
        if (too_long) {
            out->bad = "the line is longer than 256 MB";
            l->at += n + (end != NULL);
            break;
        }
        if (strspn(start, " \t\r") < n) {
            IC_TRY(take(l, out, n));
            l->at += end != NULL;
            break;
        }
        l->at += n + (end != NULL);
        seen = 0;
    }
    out->line = l->line;
    out->json = *more = true;
done:
    return rc;
}

/* Where a piece of at most `n` bytes should end: behind a blank line, a line, or a whole character. */
static size_t cut(const char *text, size_t n)
{
    for (size_t i = n; i > n / 2; i--)
        if (text[i - 1] == '\n' && i >= 2 && text[i - 2] == '\n')
            return i;
    for (size_t i = n; i > n / 2; i--)
        if (text[i - 1] == '\n')
            return i;
    size_t whole = ic_utf8_whole(text, n);
    return whole ? whole : n;
}

static int next_piece(ic_lines *l, ic_document *out, bool *more)
{
    int rc = ICAE_OK;
    while (!l->ended && l->have.size - l->at <= PIECE)
        IC_TRY(more_bytes(l));
    size_t left = l->have.size - l->at;
    *more = left > 0;
    if (!left)
        return ICAE_OK;
    out->goes_on = left > PIECE;
    out->line = 1;
    IC_TRY(take(l, out, out->goes_on ? cut(l->have.data + l->at, PIECE) : left));
done:
    return rc;
}

int ic_lines_next(ic_lines *l, ic_document *out, bool *more)
{
    *out = (ic_document){0};
    *more = false;
    return l->json ? next_line(l, out, more) : next_piece(l, out, more);
}

/* ---- ids -------------------------------------------------------------------------------------- */

static const char *first_string(const ic_json *o, const char *a, const char *b, bool *wrong)
{
    const ic_json *node = ic_json_get(o, a);
    if (!node && b)
        node = ic_json_get(o, b);
    const char *text = ic_json_string(node);
    *wrong |= node && !text;
    return text;
}

/* The texts of the three parts, or what is wrong. */
static const char *find_parts(const char *text[3], const ic_json *root)
{
    bool wrong = false;
    if (!ic_json_is_object(root))
        return "no JSON object";
    text[1] = first_string(root, "prompt", NULL, &wrong);
    text[2] = first_string(root, "answer", "response", &wrong);
    text[0] = first_string(root, "context", "input", &wrong);
    const char *plain = first_string(root, "text", NULL, &wrong);
    if (wrong)
        return "a value that should be a text is none";
    if (!text[0] || !text[1] || !text[2]) {
        if (!plain && !text[0])
            return "neither \"text\" nor \"context\" with \"prompt\" and \"answer\"";
        if (!plain)
            return !text[1] ? "\"prompt\" is missing" : "\"answer\" is missing";
        text[0] = plain;
        text[1] = text[2] = NULL;
    }
    if (!*text[0])
        return "the text is empty";
    if (text[1] && (!*text[1] || !*text[2]))
        return !*text[1] ? "the prompt is empty" : "the answer is empty";
    return NULL;
}

int ic_document_tokenize(ic_ids part[3], bool *bad, char why[200], const ic_document *d,
                         const ic_tokenizer *t)
{
    int rc = ICAE_OK;
    const char *text[3] = {0}, *wrong = d->bad;
    ic_json *root = NULL;
    *bad = false;
    if (!wrong && !d->json)
        return ic_tokenizer_encode_untrusted(&part[0], t, d->data, d->size, false);
    if (!wrong) {
        rc = ic_json_parse(&root, d->data, d->size, "line");
        if (rc == ICAE_EFORMAT) {
            const char *what = strrchr(icae_error_message(), ':');
            snprintf(why, 200, "%s", what ? what + 2 : "not valid JSON");
            *bad = true;
            return ICAE_OK;
        }
        IC_TRY(rc);
        wrong = find_parts(text, root);
    }
    if (wrong) {
        snprintf(why, 200, "%s", wrong);
        *bad = true;
        goto done;
    }
    for (int i = 0; i < 3; i++)
        if (text[i])
            IC_TRY(ic_tokenizer_encode_untrusted(&part[i], t, text[i], strlen(text[i]), false));
done:
    ic_json_free(root);
    return rc;
}
