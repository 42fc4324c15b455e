/*
 * answer.c - text that a model makes for the user: streamed, or gathered into one JSON object.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

void cli_answer_open(cli_answer *a, const cli_common *common)
{
    *a = (cli_answer){.gather = common->json};
    cli_output_open(&a->out, NULL); /* standard output is always there */
}

int cli_answer_text(void *answer, const char *text, size_t size)
{
    cli_answer *a = answer;
    if (!a->gather)
        return cli_output_text(&a->out, text, size);
    if (a->text.size + size > a->capacity) {
        size_t capacity = 2 * (a->text.size + size);
        char *larger = realloc(a->text.data, capacity);
        if (!larger)
            return 1;
        a->text.data = larger;
        a->capacity = capacity;
    }
    memcpy(a->text.data + a->text.size, text, size);
    a->text.size += size;
    return cli_interrupted != 0;
}

int cli_answer_close(cli_answer *a, int rc, const char *key, const icae_result *result,
                     const cli_common *common)
{
    int status = CLI_DONE;
    if (rc < 0 && !a->out.error)
        status = cli_library_failed();
    if (!a->gather && a->out.last != '\n' && !a->out.error)
        cli_output_text(&a->out, "\n", 1);
    int closed = cli_output_close(&a->out, true);
    status = status == CLI_DONE ? closed : status;
    if (status == CLI_DONE && a->gather) {
        cli_json_open(NULL, '{');
        cli_json_bytes(key, a->text.data, a->text.size);
        cli_json_result(result);
        cli_json_close();
        status = cli_flush();
    } else if (status == CLI_DONE) {
        cli_print_result(result, common);
    }
    free(a->text.data);
    return status;
}
