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
        "Writes the text as the model makes it, on a terminal with the tokens in colour that the\n"
        "slots hold least surely (compress --check finds them); the last line, on standard error,\n"
        "says how far it is to be trusted. Slots with corrections (compress --exact) give the\n"
        "original byte for byte, or fail. With --diff, missing words are red and struck through,\n"
        "new ones green; or [-missing-]{+new+} without colours.\n",
    .options = options,
    .groups = CLI_MODEL_OPTIONS | CLI_SAMPLING_OPTIONS | CLI_OUTPUT_OPTIONS,
    .at_least = 1,
    .at_most = 1,
    .run = run,
};

/* The text as a whole, for differences and JSON, and on its way to a file or terminal. */
typedef struct restored {
    cli_answer answer;
    cli_output out;
    bool stream;
    const uint32_t *doubtful; /* tokens to colour, ascending */
    size_t left;              /* of them not yet seen */
    uint64_t token;           /* that the piece ends with */
} restored;

/* Whether a doubtful token has a part in the piece. */
static bool in_doubt(restored *r)
{
    size_t before = r->left;
    while (r->left && *r->doubtful <= r->token)
        r->doubtful++, r->left--;
    return r->left < before;
}

static int take(void *user, const char *text, size_t size)
{
    restored *r = user;
    if (r->answer.gather && cli_answer_text(&r->answer, text, size))
        return 1;
    if (!r->stream)
        return cli_interrupted != 0;
    bool doubt = in_doubt(r);
    if (doubt)
        cli_output_mark(&r->out, CLI_DOUBT);
    int stop = cli_output_text(&r->out, text, size);
    if (doubt)
        cli_output_mark(&r->out, CLI_PLAIN);
    return stop;
}

/* Colours for what is streamed to a terminal; corrected text is beyond doubt. */
static void colour_doubt(restored *r, const icae_slots *slots, const settings *s,
                         const cli_common *common)
{
    char a[32], b[32];
    icae_slots_info i = icae_slots_describe(slots);
    bool corrected = i.exact && !common->sampling.max_tokens;
    if (!r->stream || s->out || corrected || !cli_colours(stdout))
        return;
    r->doubtful = icae_slots_doubtful(slots, &r->left);
    if (r->left && !common->quiet)
        fprintf(stderr, "%s of %s tokens are doubtful: %s\n", cli_bytes(a, r->left),
                cli_bytes(b, i.tokens),
                cli_colours(stderr) ? "in " CLI_DOUBT "this colour" CLI_PLAIN : "in bold yellow");
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
        status = cli_diff_write(d, &out, &original, &r->answer.text, cli_colours(out.file));
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
    restored r = {.answer.gather = s->diff || common->json,
                  .stream = s->out || (!s->diff && !common->json)};
    icae_generate_options generate = {
        .sampling = common->sampling, .result = &result, .token = &r.token};
    int status = cli_engine_open(&e, common, "restoring", CLI_ADAPTER_NEEDED);
    if (status != CLI_DONE || (status = cli_output_open(&r.out, s->out)) != CLI_DONE)
        goto done;
    colour_doubt(&r, slots, s, common);
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
