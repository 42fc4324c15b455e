/*
 * engine.c - opens what a command works with: model, adapter, session, and the files of a context.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

static const char *from_environment(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

int cli_read_compute(icae_compute *out, const char *name)
{
    static const char *const names[] = {"auto", "f32", "bf16"};
    for (int i = 0; i < 3; i++)
        if (!name || strcmp(name, names[i]) == 0) {
            *out = (icae_compute)i;
            return CLI_DONE;
        }
    cli_fail("--compute %s: expected auto, f32 or bf16", name);
    return CLI_USAGE;
}

int cli_model_open(icae_model **model, const cli_common *common)
{
    const char *path = common->model ? common->model : from_environment("ICAE_MODEL");
    icae_model_options options = {.template_name = common->template_name};
    int status = cli_read_compute(&options.compute, common->compute);
    if (status != CLI_DONE)
        return status;
    return icae_model_open(model, path, &options) < 0 ? cli_library_failed() : CLI_DONE;
}

/* $ICAE_ADAPTER goes with $ICAE_MODEL: a model named on the command line comes with its own. */
static int open_adapter(cli_engine *e, const cli_common *common, bool optional)
{
    const char *path = common->adapter;
    if (!path && !common->model)
        path = from_environment("ICAE_ADAPTER");
    icae_adapter_options options = {.k = common->k, .rate = common->rate, .alpha = common->alpha};
    int rc = icae_adapter_open(&e->adapter, path, e->model, &options);
    if (rc == ICAE_ENOTFOUND && optional && !path)
        return CLI_DONE;
    return rc < 0 ? cli_library_failed() : CLI_DONE;
}

int cli_engine_open(cli_engine *e, const cli_common *common, const char *label, int adapter)
{
    *e = (cli_engine){.progress = {.label = label, .quiet = common->quiet}};
    int status = cli_model_open(&e->model, common);
    if (status == CLI_DONE)
        status = open_adapter(e, common, adapter == CLI_ADAPTER_OPTIONAL);
    if (status != CLI_DONE)
        return status;
    icae_session_options options = {.threads = common->threads,
                                    .memory = common->memory,
                                    .progress = cli_progress_step,
                                    .user = &e->progress};
    return icae_session_new(&e->session, e->model, e->adapter, &options) < 0 ? cli_library_failed()
                                                                             : CLI_DONE;
}

void cli_engine_close(cli_engine *e)
{
    cli_progress_clear();
    icae_session_free(e->session);
    icae_adapter_free(e->adapter);
    icae_model_free(e->model);
    *e = (cli_engine){0};
}

icae_generate_options cli_reading(const cli_engine *e, const cli_common *common,
                                  icae_result *result)
{
    icae_generate_options o = {
        .sampling = common->sampling, .result = result, .expand = common->expand};
    if (o.expand == CLI_ADAPTERS)
        o.expand = e->adapter ? icae_adapter_describe(e->adapter).expand : 0;
    return o;
}

/* ---- contexts -------------------------------------------------------------------------------- */

static int open_part(cli_context *c, size_t i, const char *path)
{
    if (cli_is_slots(path)) {
        if (icae_slots_open(&c->slots[i], path) < 0)
            return cli_library_failed();
        c->parts[i].slots = c->slots[i];
        c->any_slots = true;
        return CLI_DONE;
    }
    int status = cli_read(&c->texts[i], path);
    c->parts[i].text = c->texts[i].data;
    c->parts[i].size = c->texts[i].size;
    if (status == CLI_DONE && c->texts[i].size == 0)
        return cli_fail("%s is empty", path);
    return status;
}

int cli_context_open(cli_context *c, char **paths, size_t count)
{
    *c = (cli_context){.parts = calloc(count + 1, sizeof *c->parts),
                       .texts = calloc(count + 1, sizeof *c->texts),
                       .slots = calloc(count + 1, sizeof(icae_slots *)),
                       .count = count};
    if (!c->parts || !c->texts || !c->slots)
        return cli_fail("no memory");
    for (size_t i = 0; i < count; i++) {
        int status = open_part(c, i, paths[i]);
        if (status != CLI_DONE)
            return status;
    }
    return CLI_DONE;
}

void cli_context_close(cli_context *c)
{
    for (size_t i = 0; i < c->count; i++) {
        if (c->texts)
            free(c->texts[i].data);
        if (c->slots)
            icae_slots_free(c->slots[i]);
    }
    free(c->parts);
    free(c->texts);
    free(c->slots);
    *c = (cli_context){0};
}

void cli_print_result(const icae_result *r, const cli_common *common)
{
    char read[32], slots[32], made[32];
    uint64_t tokens = r->prompt_rows - r->prompt_slots;
    double seconds = r->seconds - r->prompt_seconds;
    if (common->quiet || common->json || !cli_is_terminal(stderr))
        return;
    fputs("\033[2m(read ", stderr);
    if (r->prompt_slots)
        fprintf(stderr, "%s slots and ", cli_bytes(slots, r->prompt_slots));
    fprintf(stderr, "%s token%s in %.2f s; wrote %s, %.0f/s%s)\033[0m\n", cli_bytes(read, tokens),
            tokens == 1 ? "" : "s", r->prompt_seconds, cli_bytes(made, r->tokens),
            seconds > 0 ? (double)r->tokens / seconds : 0.0,
            r->stop && strcmp(r->stop, "length") == 0 ? ", stopped by --max-tokens" : "");
}
