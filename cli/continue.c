/*
 * continue.c - icae continue: what the model writes behind slots and texts.
 */
#include "cli.h"

static int run(int argc, char **argv);

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
    .groups = CLI_MODEL_OPTIONS | CLI_READING_OPTIONS | CLI_SAMPLING_OPTIONS | CLI_OUTPUT_OPTIONS,
    .at_least = 1,
    .at_most = -1,
    .run = run,
};

static int go_on(const cli_context *c, const cli_common *common)
{
    cli_engine e = {0};
    icae_result result = {0};
    cli_answer answer;
    int status = cli_engine_open(&e, common, "reading",
                                 c->any_slots ? CLI_ADAPTER_NEEDED : CLI_ADAPTER_OPTIONAL);
    if (status != CLI_DONE)
        goto done;
    icae_generate_options how = cli_reading(&e, common, &result);
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
    cli_context context;
    int operands, status = cli_parse(&cli_continue, NULL, &common, argc, argv, &operands);
    if (status != CLI_GO)
        return status;
    status = cli_context_open(&context, argv, (size_t)operands);
    if (status == CLI_DONE)
        status = go_on(&context, &common);
    cli_context_close(&context);
    return status;
}
