/*
 * plot.c - icae plot: the curves of a training run as SVG, and as PNG where a converter is installed.
 */
#include "cli.h"

#include <errno.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

extern char **environ;

static int run(int argc, char **argv);

typedef struct settings {
    const char *output;
    bool png;
} settings;

static const cli_option options[] = {
    {CLI_TEXT, 'o', "output", "FILE", "The SVG (RUN/curves.svg)", offsetof(settings, output)},
    {CLI_FLAG, 0, "png", NULL, "Also a PNG beside it, by rsvg-convert", offsetof(settings, png)},
    {.type = CLI_END},
};

const cli_command cli_plot = {
    .name = "plot",
    .arguments = "RUN [-o FILE.svg] [--png]",
    .summary = "Draw the curves of a training run",
    .details = "Losses, restoration, perplexity, gradient norm and learning rate by step, from\n"
               "RUN/metrics.jsonl, as one self-contained SVG. Opens nothing.\n",
    .options = options,
    .groups = CLI_OUTPUT_OPTIONS,
    .at_least = 1,
    .at_most = 1,
    .run = run,
};

static int convert(const char *svg, char **png)
{
    size_t n = strlen(svg);
    pid_t child;
    int status = -1;
    if (!(*png = malloc(n + 5)))
        return cli_fail("out of memory");
    n -= n > 4 && strcmp(svg + n - 4, ".svg") == 0 ? 4 : 0;
    snprintf(*png, n + 5, "%.*s.png", (int)n, svg);
    char *arguments[] = {"rsvg-convert", "-z", "1.5", "-o", *png, (char *)svg, NULL};
    int error = posix_spawnp(&child, arguments[0], NULL, NULL, arguments, environ);
    if (error == 0)
        while (waitpid(child, &status, 0) < 0 && errno == EINTR)
            continue;
    if (error == 0 && status == 0)
        return CLI_DONE;
    return cli_fail("%s: no PNG, rsvg-convert is not installed or failed (librsvg2-bin)", *png);
}

static int run(int argc, char **argv)
{
    settings s = {0};
    cli_common common = {0};
    char *svg = NULL, *png = NULL;
    int operands, status = cli_parse(&cli_plot, &s, &common, argc, argv, &operands);
    if (status != CLI_GO)
        return status;
    size_t n = strlen(argv[0]);
    svg = malloc(n + 16 + (s.output ? strlen(s.output) : 0));
    if (!svg)
        return cli_fail("out of memory");
    if (s.output)
        snprintf(svg, strlen(s.output) + 1, "%s", s.output);
    else
        snprintf(svg, n + 16, "%s%scurves.svg", argv[0], n && argv[0][n - 1] == '/' ? "" : "/");
    status = icae_train_plot(argv[0], svg) < 0 ? cli_library_failed() : CLI_DONE;
    if (status == CLI_DONE && s.png)
        status = convert(svg, &png);
    if (status == CLI_DONE && common.json) {
        cli_json_open(NULL, '{');
        cli_json_text("svg", svg);
        cli_json_text("png", png);
        cli_json_close();
    } else if (status == CLI_DONE && !common.quiet) {
        printf("%s%s%s\n", svg, png ? " " : "", png ? png : "");
    }
    free(svg);
    free(png);
    return status;
}
