/*
 * continue.c - icae continue: what the model writes behind slots and texts.
 */
#include "cli.h"

static int run(int argc, char **argv);

typedef struct settings {
    int expand;
} settings;

static const cli_option options[] = {
    {CLI_INT, 0, "expand", "N", "Read up to N segments at the end as text (the adapter's; 0: none)",
     offsetof(settings, expand)},
    {.type = CLI_END},
};

const cli_command cli_continue = {
    .name = "continue",
    .arguments = "FILE...",
    .summary = "Continue the text of slot files and texts",
    .details =
        "Slot files (.icae) are read as slots, other files as raw text (- is standard input), in\n"
        "the order given. Prints the continuation only. Stops after 128 tokens unless told\n"
        "otherwise. With --expand 2, the last two segments are first restored from their slots\n"
        "and then read as text, so that what follows fits the last words. Adapters may recommend\n"
        "it, as the bundled ones do: then --expand 0 reads slots alone.\n",
    .options = options,
    .groups = CLI_MODEL_OPTIONS | CLI_SAMPLING_OPTIONS | CLI_OUTPUT_OPTIONS,
    .at_least = 1,
    .at_most = -1,
    .run = run,
};

static int go_on(const cli_context *c, const settings *own, const cli_common *common)
{
    cli_engine e = {0};
    icae_result result = {0};
    cli_answer answer;
    icae_generate_options how = {.sampling = common->sampling, .result = &result};
    int status = cli_engine_open(&e, common, "reading",
                                 c->any_slots ? CLI_ADAPTER_NEEDED : CLI_ADAPTER_OPTIONAL);
    if (status != CLI_DONE)
        goto done;
    how.expand = cli_expand(&e, own->expand);
    cli_answer_open(&answer, common);
    int rc = icae_continue(e.session, c->parts, c->count, &how, cli_answer_text, &answer);
    status = cli_answer_close(&answer, rc, "continuation", &result, common);
done:
    cli_engine_close(&e);
    return status;
}

static int run(int argc, char **argv)
{
    cli_common common = {.sampling.max_tokens = 128};
    settings own = {.expand = CLI_ADAPTERS};
    cli_context context;
    int operands, status = cli_parse(&cli_continue, &own, &common, argc, argv, &operands);
    if (status != CLI_GO)
        return status;
    status = cli_context_open(&context, argv, (size_t)operands);
    if (status == CLI_DONE)
        status = go_on(&context, &own, &common);
    cli_context_close(&context);
    return status;
}
