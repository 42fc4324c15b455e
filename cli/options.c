/*
 * options.c - reads options from tables, and writes help pages from the same tables.
 *
 * Understands -o OUT, -oOUT, --output OUT, --output=OUT and `--`; options and operands may be mixed.
 */
#include "cli.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- tables that commands share -------------------------------------------------------------- */

#define AT(member) offsetof(cli_common, member)

static const cli_option output_options[] = {
    {CLI_FLAG, 0, "json", NULL, "Print one JSON object instead of text", AT(json)},
    {CLI_FLAG, 'q', "quiet", NULL, "No progress and no report, errors only", AT(quiet)},
    {CLI_TEXT, 0, "color", "WHEN", "Colours: auto, always or never (auto)", AT(color)},
    {.type = CLI_END},
};

static const cli_option model_options[] = {
    {CLI_TEXT, 'm', "model", "PATH",
     "Base model: Hugging Face folder or .gguf file ($ICAE_MODEL; else the bundled model)",
     AT(model)},
    {CLI_TEXT, 'a', "adapter", "PATH",
     "ICAE adapter: .safetensors or .pt ($ICAE_ADAPTER; else icae.safetensors beside the model)",
     AT(adapter)},
    {CLI_INT, 0, "k", "N", "Slots a segment, if the adapter file does not say (128)", AT(k)},
    {CLI_REAL, 0, "rate", "R", "Text tokens a slot, if the adapter leaves a choice (4)", AT(rate)},
    {CLI_REAL, 0, "alpha", "A", "LoRA alpha, if the adapter file does not say (32)", AT(alpha)},
    {CLI_TEXT, 0, "template", "NAME",
     "Chat template: mistral llama2 llama3 chatml gemma phi3 icae none (recognised)",
     AT(template_name)},
    {CLI_TEXT, 0, "compute", "KIND", "Arithmetic: auto, f32 or bf16 (auto)", AT(compute)},
    {CLI_INT, 0, "threads", "N", "Threads (one a physical core)", AT(threads)},
    {CLI_SIZE, 0, "memory", "SIZE", "Bound on scratch memory, such as 500M or 2G", AT(memory)},
    {.type = CLI_END},
};

static const cli_option reading_options[] = {
    {CLI_INT, 0, "expand", "N",
     "Read up to N segments as text: what a question is about, or the last (the adapter's; 0: "
     "none)",
     AT(expand)},
    {.type = CLI_END},
};

static const cli_option sampling_options[] = {
    {CLI_COUNT, 'n', "max-tokens", "N",
     "Stop after N tokens (0: at the end of text or the model's limit)", AT(sampling.max_tokens)},
    {CLI_REAL, 't', "temperature", "T", "Randomness; 0 takes the likeliest token (0)",
     AT(sampling.temperature)},
    {CLI_INT, 0, "top-k", "N", "Sample among the N likeliest tokens (off)", AT(sampling.top_k)},
    {CLI_REAL, 0, "top-p", "P", "Sample within the likeliest tokens of total probability P (off)",
     AT(sampling.top_p)},
    {CLI_REAL, 0, "min-p", "P", "Drop tokens less likely than P times the likeliest (off)",
     AT(sampling.min_p)},
    {CLI_COUNT, 0, "seed", "N", "Seed of the random numbers (0)", AT(sampling.seed)},
    {.type = CLI_END},
};

#undef AT

static const struct {
    unsigned group;
    const char *title;
    const cli_option *options;
} groups[] = {
    {CLI_READING_OPTIONS, "Reading", reading_options},
    {CLI_SAMPLING_OPTIONS, "Generation", sampling_options},
    {CLI_MODEL_OPTIONS, "Model", model_options},
    {CLI_OUTPUT_OPTIONS, "Output", output_options},
};

enum { GROUPS = sizeof groups / sizeof *groups, MAX_NAMES = 64, NAME_COLUMN = 24 };

/* ---- nearest name ---------------------------------------------------------------------------- */

/* Edits (insert, delete, replace, swap neighbours) between two short words. */
static size_t distance(const char *a, const char *b)
{
    enum { LIMIT = 32 };
    size_t n = strlen(a), m = strlen(b), rows[LIMIT + 1][LIMIT + 1];
    if (n > LIMIT || m > LIMIT)
        return LIMIT;
    for (size_t i = 0; i <= n; i++)
        for (size_t j = 0; j <= m; j++) {
            if (i == 0 || j == 0) {
                rows[i][j] = i + j;
                continue;
            }
            size_t best = rows[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (rows[i - 1][j] + 1 < best)
                best = rows[i - 1][j] + 1;
            if (rows[i][j - 1] + 1 < best)
                best = rows[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                rows[i - 2][j - 2] + 1 < best)
                best = rows[i - 2][j - 2] + 1;
            rows[i][j] = best;
        }
    return rows[n][m];
}

const char *cli_nearest(const char *word, const char *const *candidates, size_t count)
{
    const char *near = NULL;
    size_t best = 1 + strlen(word) / 3; /* one slip in three letters, and one more */
    if (best > 3)
        best = 3;
    for (size_t i = 0; i < count; i++) {
        size_t d = distance(word, candidates[i]);
        bool begun = strlen(word) >= 3 && strncmp(word, candidates[i], strlen(word)) == 0;
        if (begun)
            d = 0;
        if (d < best || (d == best && !near)) {
            best = d;
            near = candidates[i];
        }
    }
    return near;
}

/* ---- values ---------------------------------------------------------------------------------- */

static bool read_count(uint64_t *out, const char *text, uint64_t largest)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || *end || errno || v > largest)
        return false;
    *out = v;
    return true;
}

/* Bytes with an optional K, M, G or T (powers of 1024), as in 2G, 2GB, 2GiB, 1.5G. */
static bool read_size(uint64_t *out, const char *text)
{
    static const char units[] = "KMGT";
    char *end;
    double v = strtod(text, &end), factor = 1;
    const char *unit = *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
    if (end == text || text[0] == '-' || !isfinite(v))
        return false;
    if (unit) {
        for (const char *u = units; u <= unit; u++)
            factor *= 1024;
        end++;
        if (*end == 'i' && end[1] == 'B')
            end++;
    }
    if (*end == 'B')
        end++;
    if (*end || v * factor >= 9e18)
        return false;
    *out = (uint64_t)(v * factor);
    return true;
}

static int read_value(const cli_command *command, const cli_option *o, void *into, const char *text)
{
    void *at = (char *)into + o->at;
    uint64_t count = 0;
    char *end;
    switch (o->type) {
    case CLI_TEXT:
        *(const char **)at = text;
        return CLI_GO;
    case CLI_INT:
        if (!read_count(&count, text, 1 << 30))
            return cli_wrong_use(command->name, "--%s %s: expected a whole number", o->name, text);
        *(int *)at = (int)count;
        return CLI_GO;
    case CLI_COUNT:
        if (!read_count((uint64_t *)at, text, UINT64_MAX))
            return cli_wrong_use(command->name, "--%s %s: expected a whole number", o->name, text);
        return CLI_GO;
    case CLI_REAL:
        *(float *)at = strtof(text, &end);
        if (end == text || *end || !isfinite(*(float *)at))
            return cli_wrong_use(command->name, "--%s %s: expected a number", o->name, text);
        return CLI_GO;
    case CLI_SIZE:
        if (!read_size((uint64_t *)at, text))
            return cli_wrong_use(command->name, "--%s %s: expected a size such as 500M or 2G",
                                 o->name, text);
        return CLI_GO;
    default:
        return CLI_GO;
    }
}

/* ---- reading the arguments ------------------------------------------------------------------- */

/* Where an option was found. */
typedef struct found {
    const cli_option *option;
    void *into;
} found;

typedef struct reading {
    const cli_command *command;
    void *own;
    cli_common *common;
} reading;

/* The option of that name (size bytes), or of that letter if name is NULL. */
static found find_option(const reading *r, const char *name, size_t size, char letter)
{
    for (size_t g = 0; g <= GROUPS; g++) {
        const cli_option *o = g < GROUPS ? groups[g].options : r->command->options;
        if (!o || (g < GROUPS && !(groups[g].group & r->command->groups)))
            continue;
        for (; o->type != CLI_END; o++)
            if (name ? strlen(o->name) == size && strncmp(o->name, name, size) == 0
                     : o->letter && o->letter == letter)
                return (found){o, g < GROUPS ? (void *)r->common : r->own};
    }
    return (found){NULL, NULL};
}

static int unknown_option(const reading *r, const char *argument, size_t size)
{
    const char *names[MAX_NAMES] = {"help"}, *near = NULL;
    char word[64];
    size_t count = 1;
    for (size_t g = 0; g <= GROUPS; g++) {
        const cli_option *o = g < GROUPS ? groups[g].options : r->command->options;
        if (!o || (g < GROUPS && !(groups[g].group & r->command->groups)))
            continue;
        for (; o->type != CLI_END && count < MAX_NAMES; o++)
            names[count++] = o->name;
    }
    if (size > 3 && size < sizeof word) {
        snprintf(word, sizeof word, "%.*s", (int)size - 2, argument + 2);
        near = cli_nearest(word, names, count);
    }
    if (near)
        return cli_wrong_use(r->command->name, "there is no option %.*s; did you mean --%s?",
                             (int)size, argument, near);
    return cli_wrong_use(r->command->name, "there is no option %.*s", (int)size, argument);
}

/* Reads the option argv[*i]; moves *i on past its value. */
static int read_option(const reading *r, int argc, char **argv, int *i)
{
    const char *argument = argv[*i], *value = NULL;
    bool word = argument[1] == '-';
    size_t size = word ? strcspn(argument, "=") : 2;
    found f =
        word ? find_option(r, argument + 2, size - 2, 0) : find_option(r, NULL, 0, argument[1]);
    if ((word && size == 6 && strncmp(argument, "--help", 6) == 0) || strcmp(argument, "-h") == 0) {
        cli_print_help(r->command, stdout);
        return CLI_DONE;
    }
    if (!f.option)
        return unknown_option(r, argument, size);
    if (argument[size])
        value = argument + size + (word ? 1 : 0);
    if (f.option->type == CLI_FLAG) {
        if (value)
            return cli_wrong_use(r->command->name, "%.*s takes no value", (int)size, argument);
        *(bool *)((char *)f.into + f.option->at) = true;
        return CLI_GO;
    }
    if (!value) {
        if (*i + 1 >= argc)
            return cli_wrong_use(r->command->name, "%s needs a value: %s", argument,
                                 f.option->argument);
        value = argv[++*i];
    }
    return read_value(r->command, f.option, f.into, value);
}

int cli_parse(const cli_command *command, void *own, cli_common *common, int argc, char **argv,
              int *operands)
{
    reading r = {command, own, common};
    int count = 0;
    bool only_operands = false;
    common->expand = CLI_ADAPTERS;
    for (int i = 0; i < argc; i++) {
        if (!only_operands && strcmp(argv[i], "--") == 0) {
            only_operands = true;
        } else if (only_operands || argv[i][0] != '-' || !argv[i][1]) {
            argv[count++] = argv[i];
        } else {
            int status = read_option(&r, argc, argv, &i);
            if (status != CLI_GO)
                return status;
        }
    }
    *operands = count;
    if (count < command->at_least)
        return cli_wrong_use(command->name, "expected %s", command->arguments);
    if (command->at_most >= 0 && count > command->at_most)
        return cli_wrong_use(command->name, "one argument too many: %s", argv[command->at_most]);
    return cli_set_color(common ? common->color : NULL);
}

/* ---- help pages ------------------------------------------------------------------------------ */

static void print_options(const char *title, const cli_option *options, FILE *to)
{
    fprintf(to, "\n%s options:\n", title);
    for (const cli_option *o = options; o->type != CLI_END; o++) {
        char left[64], letter[8] = "    ";
        if (o->letter)
            snprintf(letter, sizeof letter, "-%c, ", o->letter);
        snprintf(left, sizeof left, "%s--%s %s", letter, o->name, o->argument ? o->argument : "");
        fprintf(to, "  %-*s %s\n", NAME_COLUMN, left, o->help);
    }
}

void cli_print_help(const cli_command *command, FILE *to)
{
    fprintf(to, "usage: icae %s %s\n\n%s.\n", command->name, command->arguments, command->summary);
    if (command->details)
        fprintf(to, "\n%s", command->details);
    if (command->options)
        print_options("Command", command->options, to);
    for (size_t g = 0; g < GROUPS; g++)
        if (groups[g].group & command->groups)
            print_options(groups[g].title, groups[g].options, to);
}
