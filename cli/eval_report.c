/*
 * eval_report.c - icae report: the reports of several evaluations side by side.
 */
#include "cli.h"

#include <string.h>

typedef struct report_options {
    const char *out;
} report_options;

static int run(int argc, char **argv);

static const cli_option options[] = {
    {CLI_TEXT, 'o', "output", "FILE", "The page to write (comparison.html)",
     offsetof(report_options, out)},
    {.type = CLI_END},
};

const cli_command cli_report = {
    .name = "report",
    .arguments = "REPORT.json... [-o FILE]",
    .summary = "Put the reports of evaluations side by side",
    .details = "Reads the report.json files that `icae eval` wrote and writes one page with the "
               "same tables and charts,\n"
               "run beside run.\n",
    .options = options,
    .groups = CLI_OUTPUT_OPTIONS,
    .at_least = 1,
    .at_most = -1,
    .run = run,
};

static int run(int argc, char **argv)
{
    report_options own = {.out = "comparison.html"};
    cli_common common = {0};
    int operands, status = cli_parse(&cli_report, &own, &common, argc, argv, &operands);
    if (status != CLI_GO)
        return status;
    if (icae_eval_compare(own.out, (const char *const *)argv, (size_t)operands) < 0)
        return cli_library_failed();
    if (common.json) {
        cli_json_open(NULL, '{');
        cli_json_text("output", own.out);
        cli_json_close();
    } else if (!common.quiet && strcmp(own.out, "-")) {
        printf("%s\n", own.out);
    }
    return cli_flush();
}
