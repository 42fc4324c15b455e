/*
 * messages.c - one line of trouble on stderr, and what Ctrl-C does.
 */
#include "cli.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

volatile sig_atomic_t cli_interrupted;

static void say(const char *who, const char *format, va_list arguments)
{
    cli_progress_clear();
    fflush(stdout); /* what came before stands before */
    fprintf(stderr, "icae: %s%s", who ? who : "", who ? ": " : "");
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

int cli_fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say(NULL, format, arguments);
    va_end(arguments);
    return CLI_FAILED;
}

int cli_wrong_use(const char *command, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say(command, format, arguments);
    va_end(arguments);
    fprintf(stderr, "see `icae help %s`\n", command);
    return CLI_USAGE;
}

int cli_library_failed(void)
{
    if (cli_interrupted)
        return CLI_FAILED;
    return cli_fail("%s", icae_error_message());
}

static void note_interrupt(int signal_number)
{
    cli_interrupted = signal_number;
}

void cli_catch_interrupts(void)
{
    struct sigaction action = {.sa_handler = note_interrupt};
    cli_interrupted = 0;
    sigemptyset(&action.sa_mask);
    action.sa_flags = (int)SA_RESETHAND; /* the second one finds the default: the end */
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

int cli_end(int status)
{
    if (!cli_interrupted)
        return status;
    cli_progress_clear();
    if (cli_interrupted == SIGINT)
        fputs("icae: interrupted\n", stderr);
    signal(cli_interrupted, SIG_DFL);
    raise(cli_interrupted);
    return CLI_FAILED;
}

bool cli_is_terminal(FILE *f)
{
    const char *term = getenv("TERM"), *no_colour = getenv("NO_COLOR");
    return isatty(fileno(f)) && term && strcmp(term, "dumb") != 0 && !(no_colour && *no_colour);
}

static enum { AUTO, ALWAYS, NEVER } colours;

int cli_set_color(const char *when)
{
    static const char *const names[] = {[AUTO] = "auto", [ALWAYS] = "always", [NEVER] = "never"};
    for (int i = AUTO; i <= NEVER; i++) {
        if (!when || strcmp(when, names[i]) == 0) {
            colours = i;
            return CLI_GO;
        }
    }
    cli_fail("--color %s: expected auto, always or never", when);
    return CLI_USAGE;
}

bool cli_colours(FILE *f)
{
    return colours == ALWAYS || (colours == AUTO && cli_is_terminal(f));
}

const char *cli_bytes(char text[32], uint64_t bytes)
{
    char digits[24];
    int n = snprintf(digits, sizeof digits, "%" PRIu64, bytes), at = 0;
    for (int i = 0; i < n; i++) {
        if (i > 0 && (n - i) % 3 == 0)
            text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = 0;
    return text;
}
