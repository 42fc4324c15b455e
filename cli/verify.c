/*
 * verify.c - icae verify: is a slot file whole, and does it stand for this text?
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

static int run(int argc, char **argv);

typedef struct settings {
    const char *text;
} settings;

static const cli_option options[] = {
    {CLI_TEXT, 't', "text", "FILE", "The text that the slots should stand for",
     offsetof(settings, text)},
    {.type = CLI_END},
};

const cli_command cli_verify = {
    .name = "verify",
    .arguments = "FILE.icae [--text FILE]",
    .summary = "Check a slot file, alone or against its text",
    .details =
        "Alone: structure and checksum, without a model. With --text: that the text is the very\n"
        "one that was compressed (SHA-256), and how well the slots predict it. Exit status 1 if\n"
        "not.\n",
    .options = options,
    .groups = CLI_MODEL_OPTIONS | CLI_OUTPUT_OPTIONS,
    .at_least = 1,
    .at_most = 1,
    .run = run,
};

static int measure(icae_fidelity *f, const icae_slots *slots, const cli_text *text,
                   const cli_common *common)
{
    cli_engine e = {0};
    int status = cli_engine_open(&e, common, "checking", CLI_ADAPTER_NEEDED);
    if (status == CLI_DONE && icae_verify(f, e.session, slots, text->data, text->size) < 0)
        status = cli_library_failed();
    cli_engine_close(&e);
    return status;
}

static void report(const char *path, const icae_slots *slots, const cli_common *common,
                   bool with_text, bool same, const icae_fidelity *f)
{
    char a[32], b[32];
    icae_slots_info i = icae_slots_describe(slots);
    if (common->json) {
        cli_json_open(NULL, '{');
        cli_json_text("file", path);
        cli_json_flag("whole", true);
        if (with_text) {
            cli_json_flag("same_text", same);
            cli_json_fidelity("fidelity", f);
        }
        cli_json_close();
    } else if (!common->quiet) {
        printf("%s: whole, %s slots of %s tokens\n", path, cli_bytes(a, i.slots),
               cli_bytes(b, i.tokens));
        if (same)
            puts("  text      the very text that was compressed (SHA-256)");
        if (f->measured) {
            fputs("  fidelity  ", stdout);
            cli_print_fidelity(stdout, f);
        }
    }
}

static int verify(const char *path, const icae_slots *slots, const settings *s,
                  const cli_common *common)
{
    cli_text text = {0};
    char sha[65];
    icae_fidelity f = {0};
    bool same = false;
    int status = CLI_DONE;
    if (s->text && (status = cli_read(&text, s->text)) == CLI_DONE) {
        if (icae_sha256(sha, text.data, text.size) < 0)
            status = cli_library_failed();
        else
            same = strcmp(sha, icae_slots_describe(slots).text_sha256) == 0;
        if (status == CLI_DONE && same)
            status = measure(&f, slots, &text, common);
    }
    if (status == CLI_DONE)
        report(path, slots, common, s->text, same, &f);
    if (status == CLI_DONE && s->text && !same)
        status =
            cli_fail("%s was not made from %s: the SHA-256 of the text differs", path, s->text);
    free(text.data);
    return status;
}

static int run(int argc, char **argv)
{
    settings s = {0};
    cli_common common = {0};
    icae_slots *slots;
    int operands, status = cli_parse(&cli_verify, &s, &common, argc, argv, &operands);
    if (status != CLI_GO)
        return status;
    if (icae_slots_open(&slots, argv[0]) < 0)
        return cli_library_failed();
    status = verify(argv[0], slots, &s, &common);
    icae_slots_free(slots);
    return status;
}
