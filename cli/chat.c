/*
 * chat.c - icae chat: a conversation about slots and texts, a line at a time.
 *
 * Ctrl-C stops a reply; at the prompt it ends the conversation.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int run(int argc, char **argv);

const cli_command cli_chat = {
    .name = "chat",
    .arguments = "FILE...",
    .summary = "Talk about slot files and texts",
    .details = "Files as for `icae ask`. Every line is a message; what was read and said is kept.\n"
               "/reset forgets the conversation, /help lists the commands, /quit or Ctrl-D ends.\n"
               "With --json, every reply is one JSON object. --expand as of `icae ask`.\n",
    .groups = CLI_MODEL_OPTIONS | CLI_READING_OPTIONS | CLI_SAMPLING_OPTIONS | CLI_OUTPUT_OPTIONS,
    .at_least = 1,
    .at_most = -1,
    .run = run,
};

/* A line of input without its newline; NULL at the end or when interrupted. */
static char *read_message(char **line, size_t *capacity, bool prompt)
{
    if (prompt) {
        fputs(cli_colours(stdout) ? "\033[1m>\033[0m " : "> ", stdout);
        fflush(stdout);
    }
    ssize_t n = cli_interrupted ? -1 : getline(line, capacity, stdin);
    if (n < 0 || cli_interrupted)
        return NULL;
    while (n > 0 && ((*line)[n - 1] == '\n' || (*line)[n - 1] == '\r'))
        (*line)[--n] = 0;
    return *line;
}

static int say(icae_chat *chat, const char *message, const cli_engine *e, const cli_common *common)
{
    icae_result result = {0};
    cli_answer answer;
    icae_generate_options how = cli_reading(e, common, &result);
    cli_answer_open(&answer, common);
    int rc = icae_chat_say(chat, message, &how, cli_answer_text, &answer);
    if (rc == ICAE_ECANCELLED && cli_interrupted == SIGINT && !answer.out.error) {
        cli_catch_interrupts(); /* the reply was stopped, the conversation goes on */
        rc = ICAE_OK;
    }
    return cli_answer_close(&answer, rc, "reply", &result, common);
}

static int converse(cli_engine *e, const cli_context *c, const cli_common *common)
{
    icae_chat *chat = NULL;
    char *line = NULL, *message;
    size_t capacity = 0;
    bool terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) && !common->json;
    int status = CLI_DONE;
    if (icae_chat_new(&chat, e->session, c->parts, c->count) < 0)
        return cli_library_failed();
    while (status == CLI_DONE && (message = read_message(&line, &capacity, terminal))) {
        if (!message[strspn(message, " \t")])
            continue;
        if (strcmp(message, "/quit") == 0 || strcmp(message, "/exit") == 0)
            break;
        if (strcmp(message, "/help") == 0) {
            fputs("/reset  forget the conversation\n/quit   end it\n", stderr);
        } else if (strcmp(message, "/reset") == 0) {
            icae_chat_free(chat);
            chat = NULL;
            if (icae_chat_new(&chat, e->session, c->parts, c->count) < 0)
                status = cli_library_failed();
        } else if (message[0] == '/') {
            fprintf(stderr, "there is no %s; /help lists the commands\n", message);
        } else {
            status = say(chat, message, e, common);
        }
    }
    if (terminal && status == CLI_DONE && !message)
        putchar('\n');
    icae_chat_free(chat);
    free(line);
    return cli_interrupted ? CLI_FAILED : status;
}

static int run(int argc, char **argv)
{
    cli_common common = {.sampling.max_tokens = 512};
    cli_context context;
    cli_engine e = {0};
    int operands, status = cli_parse(&cli_chat, NULL, &common, argc, argv, &operands);
    if (status != CLI_GO)
        return status;
    for (int i = 0; i < operands; i++)
        if (strcmp(argv[i], "-") == 0)
            return cli_wrong_use("chat", "standard input is the conversation, not a text");
    status = cli_context_open(&context, argv, (size_t)operands);
    if (status == CLI_DONE)
        status = cli_engine_open(&e, &common, "reading",
                                 context.any_slots ? CLI_ADAPTER_NEEDED : CLI_ADAPTER_OPTIONAL);
    if (status == CLI_DONE)
        status = converse(&e, &context, &common);
    cli_engine_close(&e);
    cli_context_close(&context);
    return status;
}
