/*
 * main.c - the command `icae`: the table of subcommands, help and version.
 *
 * A new subcommand is a file that defines a cli_command and a row here.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const cli_command *const commands[] = {
    &cli_compress, &cli_restore,  &cli_ask,  &cli_chat, &cli_continue, &cli_info,  &cli_verify,
    &cli_pretrain, &cli_finetune, &cli_plot, &cli_eval, &cli_report,   &cli_serve, &cli_store,
};

enum { COMMANDS = sizeof commands / sizeof *commands };

static int overview(FILE *to, int status)
{
    fputs(
        "usage: icae COMMAND [ARGUMENTS]\n\n"
        "An In-context Autoencoder: compresses text into memory slots that a language model reads\n"
        "in place of the text, and restores, continues or questions the text from them.\n\n",
        to);
    for (size_t i = 0; i < COMMANDS; i++)
        fprintf(to, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fputs("  help       Show the help page of a command\n"
          "  version    Show the version\n\n"
          "Without --model, the small bundled model is used. `icae help COMMAND` tells more.\n",
          to);
    return status;
}

static const cli_command *find(const char *name)
{
    for (size_t i = 0; i < COMMANDS; i++)
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    return NULL;
}

static int unknown(const char *name)
{
    const char *names[COMMANDS + 2] = {"help", "version"};
    for (size_t i = 0; i < COMMANDS; i++)
        names[i + 2] = commands[i]->name;
    const char *near = cli_nearest(name, names, COMMANDS + 2);
    fprintf(stderr, "icae: there is no command `%s`", name);
    if (near)
        fprintf(stderr, "; did you mean `%s`?\n", near);
    else
        fputs("; `icae help` lists them\n", stderr);
    return CLI_USAGE;
}

static int help(int argc, char **argv)
{
    if (argc == 0)
        return overview(stdout, CLI_DONE);
    const cli_command *command = find(argv[0]);
    if (!command && (strcmp(argv[0], "help") == 0 || strcmp(argv[0], "version") == 0))
        return overview(stdout, CLI_DONE);
    if (!command)
        return unknown(argv[0]);
    cli_print_help(command, stdout);
    return CLI_DONE;
}

static int run(int argc, char **argv)
{
    if (argc < 2)
        return overview(stderr, CLI_USAGE);
    const char *name = argv[1];
    if (strcmp(name, "help") == 0 || strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        return help(argc - 2, argv + 2);
    if (strcmp(name, "version") == 0 || strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        puts("icae " ICAE_VERSION);
        return CLI_DONE;
    }
    if (name[0] == '-') {
        fprintf(stderr, "icae: the command comes first, then options such as %s; `icae help`\n",
                name);
        return CLI_USAGE;
    }
    const cli_command *command = find(name);
    if (!command)
        return unknown(name);
    return command->run(argc - 2, argv + 2);
}

/* OpenMP threads that wait for work spin, by default for milliseconds; beside other programs they steal
 * the time that the working thread needs, and everything takes ten times as long. Threads that sleep between
 * products cost a fifth of the speed of training; some 20 microseconds avoid both. The runtime reads its
 * settings before main, so this program starts itself once more. */
static void spin_briefly(char **argv)
{
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY"))
        return;
    if (setenv("GOMP_SPINCOUNT", "2000", 1) == 0)
        execv("/proc/self/exe", argv); /* returns only if it fails: then without */
}

int main(int argc, char **argv)
{
    spin_briefly(argv);
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is a failed write, and reported as one */
    cli_catch_interrupts();
    int status = run(argc, argv);
    int flushed = cli_flush();
    return cli_end(status != CLI_DONE ? status : flushed);
}
