/*
 * compress.c - icae compress: a text file becomes a slot file.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

static int run(int argc, char **argv);

typedef struct settings {
    const char *out;
    bool check, exact, int8;
    int span, refine;
} settings;

static const cli_option options[] = {
    {CLI_TEXT, 'o', "output", "OUT", "Slot file to write (FILE.icae)", offsetof(settings, out)},
    {CLI_FLAG, 'c', "check", NULL, "Measure how well the slots hold the text",
     offsetof(settings, check)},
    {CLI_FLAG, 'x', "exact", NULL, "Store corrections, so that restoring gives the very bytes",
     offsetof(settings, exact)},
    {CLI_FLAG, 0, "int8", NULL, "Keep slots as int8: half the size; says what it costs",
     offsetof(settings, int8)},
    {CLI_INT, 0, "refine", "N",
     "Improve the slots against the decoder, in up to N steps (the adapter's; 0: none)",
     offsetof(settings, refine)},
    {CLI_INT, 0, "span", "TOKENS",
     "Restore long texts TOKENS at a time (the adapter's; a segment if refined)",
     offsetof(settings, span)},
    {.type = CLI_END},
};

const cli_command cli_compress = {
    .name = "compress",
    .arguments = "FILE [-o OUT.icae] [--check] [--exact]",
    .summary = "Compress a text into memory slots",
    .details =
        "FILE is text; - is standard input. Slots take the place of the text in the model's\n"
        "context: they are few, but each is a vector, so the slot file may well be larger than\n"
        "the text. With --check, says which share of the tokens the model would restore rightly.\n"
        "--refine 10 makes that share larger: the slots take up to 10 steps of gradient descent,\n"
        "each of which takes some three times as long as a check. Adapters may recommend it,\n"
        "as the bundled ones do (`icae info ADAPTER`): then --refine 0 is the encoder alone.\n",
    .options = options,
    .groups = CLI_MODEL_OPTIONS | CLI_OUTPUT_OPTIONS,
    .at_least = 1,
    .at_most = 1,
    .run = run,
};

static void report_int8(FILE *to, const icae_slots_info *i)
{
    fprintf(to, "  int8      changes the slots by %.2f%%", 100 * i->int8_error);
    if (i->fidelity.measured)
        fprintf(to, "; tokens right %.1f%% -> %.1f%%, loss %.3f -> %.3f nats\n",
                100 * i->before_int8.accuracy, 100 * i->fidelity.accuracy, i->before_int8.loss,
                i->fidelity.loss);
    else
        fputs(" (--check shows what that costs)\n", to);
}

static void report(const char *in, const char *out, const cli_engine *e, const icae_slots *slots,
                   const cli_text *text, double seconds)
{
    char a[32], b[32], c[32];
    icae_slots_info i = icae_slots_describe(slots);
    FILE *to = strcmp(out, "-") == 0 ? stderr : stdout;
    fprintf(to, "%s -> %s\n", in, out);
    fprintf(to, "  text      %s tokens, %s bytes\n", cli_bytes(a, i.tokens),
            cli_bytes(b, i.text_size));
    fprintf(to, "  slots     %s in %s segment%s (%.1f tokens a slot), %s bytes %s\n",
            cli_bytes(a, i.slots), cli_bytes(b, i.segments), i.segments == 1 ? "" : "s",
            (double)i.tokens / (double)i.slots, cli_bytes(c, i.bytes), i.dtype);
    fprintf(to, "  time      %.2f s, %s tokens/s%s\n", seconds,
            cli_bytes(a, (uint64_t)((double)i.tokens / seconds)),
            i.fidelity.measured ? ", checking included" : "");
    if (i.refined) {
        fprintf(to, "  refined   in up to %d steps", i.refined);
        if (i.before_refining.measured)
            fprintf(to, "; before %.1f%% of the tokens right, loss %.3f nats",
                    100 * i.before_refining.accuracy, i.before_refining.loss);
        fputc('\n', to);
    }
    if (i.int8_error > 0)
        report_int8(to, &i);
    if (i.fidelity.measured) {
        fputs("  fidelity  ", to);
        cli_print_fidelity(to, &i.fidelity);
        cli_print_doubtful(to, e->model, slots, text);
    }
    if (i.exact)
        fprintf(to, "  exact     %s correction%s, %s bytes: `icae restore` gives the very bytes\n",
                cli_bytes(a, i.corrections), i.corrections == 1 ? "" : "s",
                cli_bytes(b, i.correction_bytes));
}

static void report_json(const char *in, const char *out, const icae_slots *slots, double seconds)
{
    icae_slots_info i = icae_slots_describe(slots);
    size_t doubtful;
    icae_slots_doubtful(slots, &doubtful);
    cli_json_open(NULL, '{');
    cli_json_text("input", in);
    cli_json_text("output", out);
    cli_json_count("tokens", i.tokens);
    cli_json_count("text_bytes", i.text_size);
    cli_json_count("slots", i.slots);
    cli_json_count("segments", i.segments);
    cli_json_count("slot_bytes", i.bytes);
    cli_json_text("dtype", i.dtype);
    cli_json_real("seconds", seconds);
    cli_json_fidelity("fidelity", &i.fidelity);
    if (i.fidelity.measured)
        cli_json_count("doubtful", doubtful);
    cli_json_count("refined", (uint64_t)i.refined);
    if (i.before_refining.measured)
        cli_json_fidelity("fidelity_before_refining", &i.before_refining);
    if (i.int8_error > 0) {
        cli_json_real("int8_error", i.int8_error);
        cli_json_fidelity("fidelity_before_int8", &i.before_int8);
    }
    cli_json_flag("exact", i.exact);
    if (i.exact) {
        cli_json_count("corrections", i.corrections);
        cli_json_count("correction_bytes", i.correction_bytes);
    }
    cli_json_close();
}

static int compress(const char *in, const char *out, const settings *s, const cli_common *common,
                    const cli_text *text)
{
    cli_engine e = {0};
    icae_slots *slots = NULL;
    int status = cli_engine_open(&e, common, "compressing", CLI_ADAPTER_NEEDED);
    if (status != CLI_DONE)
        goto done;
    icae_compress_options o = {
        .check = s->check,
        .exact = s->exact,
        .int8 = s->int8,
        .refine = s->refine == CLI_ADAPTERS ? icae_adapter_describe(e.adapter).refine : s->refine,
        .rate = common->rate,
        .span = (uint32_t)s->span};
    double start = cli_seconds();
    if (icae_compress(&slots, e.session, text->data, text->size, &o) < 0) {
        status = cli_library_failed();
        goto done;
    }
    double seconds = cli_seconds() - start;
    cli_progress_clear();
    if (icae_slots_save(slots, out) < 0) {
        status = cli_library_failed();
        goto done;
    }
    if (common->json)
        report_json(in, out, slots, seconds);
    else if (!common->quiet)
        report(in, out, &e, slots, text, seconds);
done:
    icae_slots_free(slots);
    cli_engine_close(&e);
    return status;
}

static int run(int argc, char **argv)
{
    settings s = {.refine = CLI_ADAPTERS};
    cli_common common = {0};
    cli_text text;
    int operands, status = cli_parse(&cli_compress, &s, &common, argc, argv, &operands);
    if (status != CLI_GO)
        return status;
    const char *in = argv[0];
    if (!s.out && strcmp(in, "-") == 0)
        return cli_wrong_use("compress", "text from standard input needs -o OUT");
    if (s.out && strcmp(s.out, "-") == 0 && common.json)
        return cli_wrong_use("compress", "--json and -o - cannot both have standard output");
    size_t size = strlen(in) + 8;
    char *out = malloc(size);
    if (!out)
        return cli_fail("no memory");
    snprintf(out, size, "%s.icae", in);
    status = CLI_FAILED;
    if (strcmp(in, "-") != 0 && cli_same_file(in, s.out ? s.out : out))
        cli_fail("%s is the text itself; give another name with -o", in);
    else if ((status = cli_read(&text, in)) == CLI_DONE)
        status = compress(in, s.out ? s.out : out, &s, &common, &text), free(text.data);
    free(out);
    return status;
}
