/*
 * report.c - fidelity in words, and the places of a text that its slots hold least surely.
 */
#include "cli.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { EXCERPTS = 4, CONTEXT = 26 };

void cli_print_fidelity(FILE *to, const icae_fidelity *f)
{
    char tokens[32], first[32];
    fprintf(to, "%.1f%% of %s tokens right, loss %.3f nats; ", 100 * f->accuracy,
            cli_bytes(tokens, f->tokens), f->loss);
    if (f->exact_prefix == f->tokens)
        fputs("no mistake\n", to);
    else
        fprintf(to, "first mistake at token %s\n", cli_bytes(first, f->exact_prefix + 1));
}

/* Where token `at` begins in the decoded text, in bytes; steps back to a whole character. */
static size_t token_start(const icae_model *model, const int32_t *ids, size_t at,
                          const char *decoded, size_t size)
{
    char *prefix;
    size_t n;
    if (icae_detokenize(&prefix, &n, model, ids, at, false) < 0)
        return size;
    if (n > size)
        n = size;
    while (n > 0 && memcmp(prefix, decoded, n) != 0) /* ended within a character */
        n--;
    icae_free(prefix);
    while (n > 0 && n < size && ((unsigned char)decoded[n] & 0xC0) == 0x80)
        n--;
    return n;
}

/* A stretch of the text on one line. */
static void print_flat(FILE *to, const char *text, size_t from, size_t until)
{
    for (size_t i = from; i < until; i++) {
        unsigned char c = (unsigned char)text[i];
        fputc(c < 0x20 || c == 0x7F ? ' ' : c, to);
    }
}

static void print_excerpt(FILE *to, const char *text, size_t size, size_t from, size_t until)
{
    bool colour = cli_colours(to);
    size_t left = from > CONTEXT ? from - CONTEXT : 0;
    size_t right = size - until > CONTEXT ? until + CONTEXT : size;
    while (left < from && ((unsigned char)text[left] & 0xC0) == 0x80)
        left++;
    while (right > until && right < size && ((unsigned char)text[right] & 0xC0) == 0x80)
        right--;
    fputs(left ? "            ..." : "            ", to);
    print_flat(to, text, left, from);
    fputs(colour ? CLI_DOUBT : "[", to);
    print_flat(to, text, from, until);
    fputs(colour ? CLI_PLAIN : "]", to);
    print_flat(to, text, until, right);
    fputs(right < size ? "...\n" : "\n", to);
}

/* The ids that the slots count: with or without what the tokenizer adds by itself. */
static int count_alike(int32_t **ids, const icae_model *model, const cli_text *text,
                       uint64_t tokens)
{
    size_t n;
    for (int special = 0; special < 2; special++) {
        if (icae_tokenize(ids, &n, model, text->data, text->size, special) < 0)
            return -1;
        if (n == tokens)
            return 0;
        icae_free(*ids);
    }
    return -1;
}

void cli_print_doubtful(FILE *to, const icae_model *model, const icae_slots *slots,
                        const cli_text *text)
{
    size_t count, size, shown = 0;
    const uint32_t *at = icae_slots_doubtful(slots, &count);
    uint64_t tokens = icae_slots_describe(slots).tokens;
    int32_t *ids;
    char *decoded;
    if (!count || count_alike(&ids, model, text, tokens) < 0)
        return;
    fprintf(to, "  doubtful  %zu token%s wrong or nearly so%s\n", count, count == 1 ? "" : "s",
            count > EXCERPTS ? ", such as" : "");
    if (icae_detokenize(&decoded, &size, model, ids, tokens, false) == 0) {
        for (size_t i = 0, j; i < count && shown < EXCERPTS; i = j, shown++) {
            for (j = i + 1; j < count && at[j] == at[j - 1] + 1;) /* neighbours are one place */
                j++;
            size_t from = token_start(model, ids, at[i], decoded, size);
            size_t until = token_start(model, ids, at[j - 1] + 1, decoded, size);
            print_excerpt(to, decoded, size, from, until < from ? from : until);
        }
        icae_free(decoded);
    }
    icae_free(ids);
}
