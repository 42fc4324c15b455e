/*
 * eval.c - icae eval: measures a base with its adapter and writes a report.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

enum { MOST = 64 };

typedef struct eval_options {
    const char *suite, *out, *text, *adapters, *judge, *judge_model;
    uint64_t samples, seed;
    float judge_timeout;
    int judge_parallel, refine, expand;
    bool resume;
} eval_options;

static int run(int argc, char **argv);

#define AT(member) offsetof(eval_options, member)

static const cli_option options[] = {
    {CLI_TEXT, 's', "suite", "NAME", "quick, paper, or a JSON file (quick)", AT(suite)},
    {CLI_TEXT, 'o', "out", "DIR", "Folder of the report (icae-eval)", AT(out)},
    {CLI_TEXT, 0, "text", "PATHS", "Files and folders to read, separated by commas; as TEXT",
     AT(text)},
    {CLI_COUNT, 'n', "samples", "N", "Samples of each measurement (the suite's)", AT(samples)},
    {CLI_COUNT, 0, "seed", "N", "Chooses the samples (1)", AT(seed)},
    {CLI_INT, 0, "refine", "N", "Improve all slots in up to N steps (the suite's)", AT(refine)},
    {CLI_INT, 0, "expand", "N", "Read up to N segments as text again (the suite's)", AT(expand)},
    {CLI_FLAG, 0, "resume", NULL, "Go on where a run with the same settings stopped", AT(resume)},
    {CLI_TEXT, 0, "adapters", "PATHS",
     "Several adapters of the model to compare, separated by commas", AT(adapters)},
    {CLI_TEXT, 0, "judge", "URL",
     "OpenAI-compatible server that compares answers (key: $ICAE_JUDGE_KEY)", AT(judge)},
    {CLI_TEXT, 0, "judge-model", "NAME", "Model to ask there", AT(judge_model)},
    {CLI_REAL, 0, "judge-timeout", "S", "Seconds to wait for a judgement (60)", AT(judge_timeout)},
    {CLI_INT, 0, "judge-parallel", "N", "Judgements asked for at a time (4)", AT(judge_parallel)},
    {.type = CLI_END},
};

#undef AT

const cli_command cli_eval = {
    .name = "eval",
    .arguments = "[TEXT...] [--suite NAME] [--out DIR]",
    .summary = "Measure how much the slots keep, and write a report",
    .details = "Restoration by length and kind of text, perplexity of continuations, answers from "
               "slots against the\n"
               "full text, latency and memory. TEXT: files and folders, .txt or .jsonl (`text`, or "
               "`context`, `prompt`\n"
               "and `answer`), also .gz and .zst; without, a bundled sample. Writes report.html, "
               "report.json and\n"
               "report.csv, and records.jsonl, from which --resume goes on.\n",
    .options = options,
    .groups = CLI_MODEL_OPTIONS | CLI_OUTPUT_OPTIONS,
    .at_least = 0,
    .at_most = -1,
    .run = run,
};

/* Splits at commas, in place; returns the number of parts, MOST + 1 if there are more. */
static size_t split(const char **out, size_t count, char *list)
{
    for (char *at = list, *comma; at && *at; at = comma) {
        comma = strchr(at, ',');
        if (comma)
            *comma++ = 0;
        if (count == MOST)
            return MOST + 1;
        out[count++] = at;
    }
    return count;
}

static void note(void *user, const char *line)
{
    const cli_common *common = user;
    if (common->quiet)
        return;
    cli_progress_clear();
    fprintf(stderr, "note: %s\n", line);
}

/* The model, its adapter, or several adapters. */
static size_t systems_of(icae_eval_system *out, const cli_common *c, const char **adapters,
                         size_t count)
{
    const char *model = c->model ? c->model : getenv("ICAE_MODEL");
    const char *adapter = c->adapter || c->model ? c->adapter : getenv("ICAE_ADAPTER");
    for (size_t i = 0; i < count; i++)
        out[i] = (icae_eval_system){.model = model, .adapter = adapters[i]};
    if (!count && (model || adapter)) {
        out[0] = (icae_eval_system){.model = model, .adapter = adapter};
        return 1;
    }
    return count;
}

static int evaluate(const eval_options *own, cli_common *common, const char **texts,
                    size_t text_count, const icae_eval_system *systems, size_t system_count)
{
    cli_progress progress = {.label = "measuring", .quiet = common->quiet};
    icae_eval_options o = {
        .suite = own->suite,
        .out = own->out ? own->out : "icae-eval",
        .systems = systems,
        .system_count = system_count,
        .texts = texts,
        .text_count = text_count,
        .samples = own->samples,
        .seed = own->seed,
        .refine = own->refine,
        .expand = own->expand,
        .resume = own->resume,
        .judge = own->judge,
        .judge_model = own->judge_model,
        .judge_timeout = (double)own->judge_timeout,
        .judge_parallel = own->judge_parallel,
        .model = {.template_name = common->template_name},
        .adapter = {.k = common->k, .rate = common->rate, .alpha = common->alpha},
        .session = {.threads = common->threads,
                    .memory = common->memory,
                    .progress = cli_progress_step,
                    .user = &progress},
        .note = note,
        .user = common,
    };
    int status = cli_read_compute(&o.model.compute, common->compute);
    if (status != CLI_DONE)
        return status;
    cli_catch_interrupts();
    int rc = icae_eval(&o);
    cli_progress_clear();
    if (rc < 0)
        return cli_library_failed();
    if (common->json) {
        cli_text report;
        char path[4096];
        snprintf(path, sizeof path, "%s/report.json", o.out);
        if (cli_read(&report, path) != CLI_DONE)
            return CLI_FAILED;
        fwrite(report.data, 1, report.size, stdout);
        fputc('\n', stdout);
        free(report.data);
    } else if (!common->quiet) {
        printf("%s/report.html\n", o.out);
    }
    return cli_flush();
}

static int run(int argc, char **argv)
{
    eval_options own = {0};
    cli_common common = {0};
    const char *texts[MOST], *adapters[MOST];
    icae_eval_system systems[MOST];
    int operands, status = cli_parse(&cli_eval, &own, &common, argc, argv, &operands);
    if (status != CLI_GO)
        return status;
    if (own.judge && !own.judge_model)
        return cli_wrong_use("eval", "--judge needs --judge-model");
    char *text_list = strdup(own.text ? own.text : ""),
         *adapter_list = strdup(own.adapters ? own.adapters : "");
    size_t text_count = 0, adapter_count = 0;
    if (!text_list || !adapter_list) {
        status = cli_fail("out of memory");
        goto done;
    }
    for (int i = 0; i < operands && text_count < MOST; i++)
        texts[text_count++] = argv[i];
    text_count = operands > MOST ? MOST + 1 : split(texts, text_count, text_list);
    adapter_count = split(adapters, 0, adapter_list);
    if (text_count > MOST || adapter_count > MOST) {
        status =
            cli_wrong_use("eval", "at most %d texts and adapters; put files into a folder", MOST);
        goto done;
    }
    size_t system_count = systems_of(systems, &common, adapters, adapter_count);
    status = evaluate(&own, &common, texts, text_count, systems, system_count);
done:
    free(text_list);
    free(adapter_list);
    return status;
}
