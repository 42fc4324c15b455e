/*
 * pretrain.c - icae pretrain: an adapter learns to restore and to continue texts from their slots.
 */
#include "cli.h"

static int run(int argc, char **argv)
{
    return cli_train(&cli_pretrain, ICAE_PRETRAIN, argc, argv);
}

const cli_command cli_pretrain = {
    .name = "pretrain",
    .arguments = "[CONFIG] [--KEY VALUE]... --data FILE --out FOLDER",
    .summary = "Train an adapter to restore and continue texts",
    .details = "The base model stays as it is. Text: .jsonl with \"text\", or plain text; .gz and "
               ".zst; patterns.\n"
               "Every key of the configuration file is an option as well; --print-config shows all "
               "of them with\n"
               "their values and meanings. Ctrl-C keeps everything, --resume goes on. Also: "
               "--estimate (memory\n"
               "and time), --json, -q. With `mpirun -n N` the work is shared by N processes.\n",
    .groups = 0,
    .at_least = 0,
    .at_most = 1,
    .run = run,
};
