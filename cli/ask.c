/*
 * ask.c - icae ask: one question about slots and texts. Also gathers answers for --json.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

static int run(int argc, char **argv);

const cli_command cli_ask = {
    .name = "ask",
    .arguments = "FILE... \"QUESTION\"",
    .summary = "Ask a question about slot files and texts",
    .details =
        "Slot files (.icae) are read as slots, other files as raw text (- is standard input), in\n"
        "the order given. The last argument is the question. Stops after 512 tokens unless told\n"
        "otherwise. With --expand 4, the four segments that make the question likeliest are first\n"
        "restored from their slots and then read as text: better answers for a little more work.\n"
        "Adapters may recommend it, as the bundled ones do: then --expand 0 reads slots alone.\n",
    .groups = CLI_MODEL_OPTIONS | CLI_READING_OPTIONS | CLI_SAMPLING_OPTIONS | CLI_OUTPUT_OPTIONS,
    .at_least = 2,
    .at_most = -1,
    .run = run,
};

static int ask(const cli_context *c, const char *question, const cli_common *common)
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
    int rc = icae_ask(e.session, c->parts, c->count, question, &how, cli_answer_text, &answer);
    status = cli_answer_close(&answer, rc, "answer", &result, common);
done:
    cli_engine_close(&e);
    return status;
}

static int run(int argc, char **argv)
{
    cli_common common = {.sampling.max_tokens = 512};
    cli_context context;
    int operands, status = cli_parse(&cli_ask, NULL, &common, argc, argv, &operands);
    if (status != CLI_GO)
        return status;
    status = cli_context_open(&context, argv, (size_t)operands - 1);
    if (status == CLI_DONE)
        status = ask(&context, argv[operands - 1], &common);
    cli_context_close(&context);
    return status;
}
