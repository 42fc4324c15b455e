/*
 * finetune.c - icae finetune: an adapter learns to answer prompts about texts from their slots.
 */
#include "cli.h"

static int run(int argc, char **argv)
{
    return cli_train(&cli_finetune, ICAE_FINETUNE, argc, argv);
}

const cli_command cli_finetune = {
    .name = "finetune",
    .arguments = "[CONFIG] [--KEY VALUE]... --adapter FILE --data FILE --out FOLDER",
    .summary = "Train an adapter to answer prompts about texts",
    .details = "As pretrain, from .jsonl lines with \"context\" (or \"input\"), \"prompt\" and "
               "\"answer\" (or\n"
               "\"response\"). Start from a pretrained adapter: --adapter RUN/best.safetensors, or "
               "demo.\n",
    .groups = 0,
    .at_least = 0,
    .at_most = 1,
    .run = run,
};
