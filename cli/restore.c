/*
 * restore.c - icae restore: the text that slots stand for, as it is made or as differences.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

static int run(int argc, char **argv);

typedef struct settings {
    const char *out, *diff;
} settings;

static const cli_option options[] = {
    {CLI_TEXT, 'o', "output", "OUT", "Write the text to OUT (standard output)",
     offsetof(settings, out)},
    {CLI_TEXT, 'd', "diff", "ORIGINAL", "Show the words that differ from ORIGINAL",
     offsetof(settings, diff)},
    {.type = CLI_END},
};

const cli_command cli_restore = {
    .name = "restore",
    .arguments = "FILE.icae [-o OUT] [--diff ORIGINAL]",
    .summary = "Restore the text of a slot file",
    .details =
        "Writes the text as the model makes it; the last line, on standard error, says how far it\n"
        "is to be trusted. Slots with corrections (compress --exact) give the original byte for\n"
        "byte, or fail. With --diff, missing words are red and struck through, new ones green; or\n"
        "[-missing-]{+new+} without colours.\n",
    .options = options,
    .groups = CLI_MODEL_OPTIONS | CLI_SAMPLING_OPTIONS | CLI_OUTPUT_OPTIONS,
    .at_least = 1,
    .at_most = 1,
    .run = run,
};

/* The text as a whole, for differences and JSON, and on its way to a file. */
typedef struct restored {
    cli_answer answer;
    cli_output out;
    bool stream;
} restored;

static int take(void *user, const char *text, size_t size)
{
    restored *r = user;
    if (r->answer.gather && cli_answer_text(&r->answer, text, size))
        return 1;
    return r->stream ? cli_output_text(&r->out, text, size) : cli_interrupted != 0;
}

static void report(const icae_slots *slots, const icae_result *result)
{
    icae_slots_info i = icae_slots_describe(slots);
    char a[32], b[32];
    double made = result->seconds - result->prompt_seconds;
    cli_progress_clear();
    fprintf(stderr, "%s slots -> %s tokens in %.2f s (%.0f/s): ", cli_bytes(a, i.slots),
            cli_bytes(b, result->tokens), result->seconds,
            made > 0 ? (double)result->tokens / made : 0.0);
    if (result->exact)
        fputs("exact, SHA-256 verified\n", stderr);
    else if (i.fidelity.measured)
        cli_print_fidelity(stderr, &i.fidelity);
    else
        fputs("fidelity unknown (compress --check measures it)\n", stderr);
}

static void report_diff(const cli_diff *d, const char *original)
{
    char a[32], b[32], c[32];
    if (!d->gone && !d->added)
        fprintf(stderr, "all %s words as in %s\n", cli_bytes(a, d->words), original);
    else
        fprintf(stderr, "%s of %s words of %s missing, %s new\n", cli_bytes(a, d->gone),
                cli_bytes(b, d->words), original, cli_bytes(c, d->added));
}

static int show_diff(const restored *r, const settings *s, const cli_common *common, cli_diff *d)
{
    cli_text original;
    cli_output out;
    int status = cli_read(&original, s->diff);
    if (status == CLI_DONE &&
        (status = cli_output_open(&out, common->json ? "/dev/null" : NULL)) == CLI_DONE) {
        status = cli_diff_write(d, &out, &original, &r->answer.text, cli_is_terminal(out.file));
        if (out.last != '\n')
            cli_output_text(&out, "\n", 1);
        int closed = cli_output_close(&out, true);
        status = status == CLI_DONE ? closed : status;
    }
    free(original.data);
    if (status == CLI_DONE && !common->quiet && !common->json)
        report_diff(d, s->diff);
    return status;
}

static void report_json(const restored *r, const icae_slots *slots, const icae_result *result,
                        const settings *s, const cli_diff *d)
{
    icae_slots_info i = icae_slots_describe(slots);
    cli_json_open(NULL, '{');
    if (s->out)
        cli_json_text("output", s->out);
    else
        cli_json_bytes("text", r->answer.text.data, r->answer.text.size);
    cli_json_count("slots", i.slots);
    cli_json_flag("exact", result->exact);
    cli_json_fidelity("fidelity", &i.fidelity);
    cli_json_result(result);
    if (s->diff) {
        cli_json_open("diff", '{');
        cli_json_count("words", d->words);
        cli_json_count("missing", d->gone);
        cli_json_count("new", d->added);
        cli_json_close();
    }
    cli_json_close();
}

static int restore(const icae_slots *slots, const settings *s, const cli_common *common)
{
    cli_engine e = {0};
    cli_diff d = {0};
    icae_result result = {0};
    icae_generate_options generate = {.sampling = common->sampling, .result = &result};
    restored r = {.answer.gather = s->diff || common->json,
                  .stream = s->out || (!s->diff && !common->json)};
    int status = cli_engine_open(&e, common, "restoring", CLI_ADAPTER_NEEDED);
    if (status != CLI_DONE || (status = cli_output_open(&r.out, s->out)) != CLI_DONE)
        goto done;
    if (icae_restore(e.session, slots, &generate, take, &r) < 0 && !r.out.error)
        status = cli_library_failed();
    if (status == CLI_DONE && r.stream && r.out.terminal && r.out.last != '\n')
        cli_output_text(&r.out, "\n", 1);
    int closed = cli_output_close(&r.out, status == CLI_DONE);
    status = status == CLI_DONE ? closed : status;
    if (status == CLI_DONE && s->diff)
        status = show_diff(&r, s, common, &d);
    if (status == CLI_DONE && common->json)
        report_json(&r, slots, &result, s, &d);
    else if (status == CLI_DONE && !common->quiet)
        report(slots, &result);
done:
    free(r.answer.text.data);
    cli_engine_close(&e);
    return status;
}

static int run(int argc, char **argv)
{
    settings s = {0};
    cli_common common = {0};
    icae_slots *slots;
    int operands, status = cli_parse(&cli_restore, &s, &common, argc, argv, &operands);
    if (status != CLI_GO)
        return status;
    if (icae_slots_open(&slots, argv[0]) < 0)
        return cli_library_failed();
    status = restore(slots, &s, &common);
    icae_slots_free(slots);
    return status;
}
