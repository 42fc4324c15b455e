/*
 * json.c - prints JSON. The caller opens and closes; commas, quoting and indentation happen here.
 */
#include "cli.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { DEEPEST = 16 };

static char closing[DEEPEST];
static int depth;
static bool first = true;

static void begin(const char *key)
{
    if (depth > 0)
        printf("%s\n%*s", first ? "" : ",", 2 * depth, "");
    if (key)
        printf("\"%s\": ", key); /* keys are ours and need no quoting */
    first = false;
}

void cli_json_open(const char *key, char bracket)
{
    begin(key);
    putchar(bracket);
    closing[depth++] = bracket == '{' ? '}' : ']';
    first = true;
}

void cli_json_close(void)
{
    depth--;
    if (!first)
        printf("\n%*s", 2 * depth, "");
    putchar(closing[depth]);
    first = false;
    if (depth == 0) {
        putchar('\n');
        first = true;
    }
}

/* Bytes of the well-formed character at s, or 0. */
static size_t character(const unsigned char *s, size_t left)
{
    size_t n = s[0] < 0x80 ? 1 : s[0] >= 0xC2 && s[0] < 0xE0 ? 2 : (s[0] & 0xF0) == 0xE0 ? 3 : 4;
    if (n == 1)
        return 1;
    if (s[0] < 0xC2 || s[0] > 0xF4 || n > left)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xC0) != 0x80)
            return 0;
    if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F) ||
        (s[0] == 0xF0 && s[1] < 0x90) || (s[0] == 0xF4 && s[1] > 0x8F))
        return 0; /* overlong, surrogate, beyond U+10FFFF */
    return n;
}

void cli_json_bytes(const char *key, const char *text, size_t size)
{
    static const char plain[] = "\"\\\n\r\t", letters[] = "\"\\nrt";
    const unsigned char *s = (const unsigned char *)text;
    begin(key);
    putchar('"');
    for (size_t i = 0, n; i < size; i += n) {
        const char *escaped = s[i] ? strchr(plain, s[i]) : NULL;
        n = character(s + i, size - i);
        if (escaped)
            printf("\\%c", letters[escaped - plain]);
        else if (s[i] < 0x20 || s[i] == 0x7F)
            printf("\\u%04x", s[i]);
        else if (n)
            fwrite(s + i, 1, n, stdout);
        else
            fputs("\xEF\xBF\xBD", stdout);
        n += n == 0;
    }
    putchar('"');
}

void cli_json_text(const char *key, const char *text)
{
    if (text) {
        cli_json_bytes(key, text, strlen(text));
        return;
    }
    begin(key);
    fputs("null", stdout);
}

void cli_json_count(const char *key, uint64_t value)
{
    begin(key);
    printf("%" PRIu64, value);
}

void cli_json_real(const char *key, double value)
{
    begin(key);
    if (isfinite(value))
        printf("%.6g", value);
    else
        fputs("null", stdout);
}

void cli_json_flag(const char *key, bool value)
{
    begin(key);
    fputs(value ? "true" : "false", stdout);
}

void cli_json_fidelity(const char *key, const icae_fidelity *f)
{
    if (!f->measured) {
        cli_json_text(key, NULL);
        return;
    }
    cli_json_open(key, '{');
    cli_json_real("accuracy", f->accuracy);
    cli_json_real("loss", f->loss);
    cli_json_count("exact_prefix", f->exact_prefix);
    cli_json_count("tokens", f->tokens);
    cli_json_close();
}

void cli_json_result(const icae_result *r)
{
    cli_json_count("prompt_rows", r->prompt_rows);
    cli_json_count("prompt_slots", r->prompt_slots);
    cli_json_count("tokens", r->tokens);
    cli_json_real("prompt_seconds", r->prompt_seconds);
    cli_json_real("seconds", r->seconds);
    cli_json_text("stop", r->stop);
}
