/*
 * info.c - icae info: what a file is - slots, an adapter, or a model - and what it says of itself.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int run(int argc, char **argv);

const cli_command cli_info = {
    .name = "info",
    .arguments = "[FILE]",
    .summary = "Show what a slot file, adapter or model is",
    .details =
        "FILE is a slot file, an adapter (.safetensors, .pt), a model folder or a .gguf file;\n"
        "without FILE, the model that other commands would use. An adapter is opened for the\n"
        "model of its own folder, or for --model.\n",
    .groups = CLI_MODEL_OPTIONS | CLI_OUTPUT_OPTIONS,
    .at_least = 0,
    .at_most = 1,
    .run = run,
};

/* ---- slots ----------------------------------------------------------------------------------- */

static void slots_json(const char *path, const icae_slots *slots)
{
    icae_slots_info i = icae_slots_describe(slots);
    cli_json_open(NULL, '{');
    cli_json_text("kind", "slots");
    cli_json_text("path", path);
    cli_json_count("slots", i.slots);
    cli_json_count("width", (uint64_t)i.width);
    cli_json_text("dtype", i.dtype);
    cli_json_count("slot_bytes", i.bytes);
    cli_json_count("tokens", i.tokens);
    cli_json_count("text_bytes", i.text_size);
    cli_json_text("text_sha256", i.text_sha256);
    cli_json_count("span", i.span);
    cli_json_count("refined", (uint64_t)i.refined);
    cli_json_text("base", i.base);
    cli_json_text("adapter", i.adapter);
    cli_json_flag("exact", i.exact);
    cli_json_count("corrections", i.corrections);
    cli_json_count("correction_bytes", i.correction_bytes);
    cli_json_fidelity("fidelity", &i.fidelity);
    cli_json_open("segments", '[');
    for (size_t s = 0; s < i.segments; s++) {
        icae_segment_info g = icae_slots_segment(slots, s);
        cli_json_open(NULL, '{');
        cli_json_count("tokens", g.tokens);
        cli_json_count("slots", g.slots);
        cli_json_fidelity("fidelity", &g.fidelity);
        cli_json_close();
    }
    cli_json_close();
    cli_json_close();
}

static void slots_text(const char *path, const icae_slots *slots)
{
    enum { SHOWN = 16 };
    char a[32], b[32];
    icae_slots_info i = icae_slots_describe(slots);
    printf("%s: memory slots\n", path);
    printf("  slots     %s of width %d, %s, %s bytes\n", cli_bytes(a, i.slots), i.width, i.dtype,
           cli_bytes(b, i.bytes));
    printf("  text      %s tokens, %s bytes, SHA-256 %.16s...\n", cli_bytes(a, i.tokens),
           cli_bytes(b, i.text_size), i.text_sha256);
    printf("  made by   base %.16s..., adapter %.16s...\n", i.base, i.adapter);
    if (i.refined)
        printf("  refined   in up to %d steps\n", i.refined);
    fputs("  fidelity  ", stdout);
    if (i.fidelity.measured)
        cli_print_fidelity(stdout, &i.fidelity);
    else
        puts("not measured");
    if (i.exact)
        printf("  exact     %s corrections, %s bytes\n", cli_bytes(a, i.corrections),
               cli_bytes(b, i.correction_bytes));
    for (size_t s = 0; s < i.segments && s < SHOWN; s++) {
        icae_segment_info g = icae_slots_segment(slots, s);
        printf("  %s %4zu: %s tokens in %s slots", s ? "       " : "segment", s,
               cli_bytes(a, g.tokens), cli_bytes(b, g.slots));
        if (g.fidelity.measured)
            printf(", %.1f%% right", 100 * g.fidelity.accuracy);
        putchar('\n');
    }
    if (i.segments > SHOWN)
        printf("          and %s more (--json shows all)\n", cli_bytes(a, i.segments - SHOWN));
}

static int slots_info(const char *path, const cli_common *common)
{
    icae_slots *slots;
    if (icae_slots_open(&slots, path) < 0)
        return cli_library_failed();
    (common->json ? slots_json : slots_text)(path, slots);
    icae_slots_free(slots);
    return CLI_DONE;
}

/* ---- adapters -------------------------------------------------------------------------------- */

static void adapter_members(const icae_adapter *adapter)
{
    icae_adapter_info i = icae_adapter_describe(adapter);
    cli_json_text("path", i.path);
    cli_json_text("layout", i.layout);
    cli_json_text("identity", i.identity);
    cli_json_count("k", (uint64_t)i.k);
    cli_json_real("rate", (double)i.rate);
    cli_json_count("rank", (uint64_t)i.rank);
    cli_json_real("alpha", (double)i.alpha);
    cli_json_text("targets", i.targets);
    cli_json_text("positions", i.positions);
    cli_json_text("slots", i.slots);
    cli_json_flag("lm_token", i.lm_token);
    cli_json_count("refine", (uint64_t)i.refine);
    cli_json_count("expand", (uint64_t)i.expand);
    cli_json_count("parameters", i.parameters);
}

static void adapter_text(const icae_adapter *adapter)
{
    char a[32];
    icae_adapter_info i = icae_adapter_describe(adapter);
    printf("%s: ICAE adapter (%s layout)\n", i.path, i.layout);
    printf("  memory    %d slots a segment, %g tokens a slot, %s slots, %s positions\n", i.k,
           (double)i.rate, i.slots, i.positions);
    printf("  LoRA      rank %d, alpha %g on %s\n", i.rank, (double)i.alpha, i.targets);
    printf("  trained   %s parameters; continuation token: %s\n", cli_bytes(a, i.parameters),
           i.lm_token ? "yes" : "no");
    if (i.refine || i.expand)
        printf("  advised   --refine %d, --expand %d (the default)\n", i.refine, i.expand);
    printf("  identity  %.16s...\n", i.identity);
}

/* The folder that an adapter lies in, if that is a model: it is then the adapter's base. */
static char *folder_model(const char *path)
{
    const char *slash = strrchr(path, '/');
    int n = slash ? (int)(slash - path) + (slash == path) : 1;
    size_t size = (size_t)n + 16;
    char *folder = malloc(size);
    if (!folder)
        return NULL;
    snprintf(folder, size, "%.*s/config.json", n, slash ? path : ".");
    if (access(folder, R_OK) < 0) {
        free(folder);
        return NULL;
    }
    folder[n] = 0;
    return folder;
}

static int adapter_info(const char *path, const cli_common *common)
{
    cli_common c = *common;
    icae_model *model = NULL;
    icae_adapter *adapter = NULL;
    icae_adapter_options options = {.k = c.k, .rate = c.rate, .alpha = c.alpha};
    char *folder = c.model ? NULL : folder_model(path);
    if (folder)
        c.model = folder;
    int status = cli_model_open(&model, &c);
    if (status == CLI_DONE && icae_adapter_open(&adapter, path, model, &options) < 0)
        status = cli_library_failed();
    if (status == CLI_DONE && c.json) {
        cli_json_open(NULL, '{');
        cli_json_text("kind", "adapter");
        adapter_members(adapter);
        cli_json_close();
    } else if (status == CLI_DONE) {
        adapter_text(adapter);
    }
    icae_adapter_free(adapter);
    icae_model_free(model);
    free(folder);
    return status;
}

/* ---- models ---------------------------------------------------------------------------------- */

static void model_json(const icae_model *model, const icae_adapter *adapter)
{
    icae_model_info i = icae_model_describe(model);
    cli_json_open(NULL, '{');
    cli_json_text("kind", "model");
    cli_json_text("path", i.path);
    cli_json_text("architecture", i.architecture);
    cli_json_text("dtype", i.dtype);
    cli_json_text("compute", i.compute);
    cli_json_text("chat_template", i.chat_template);
    cli_json_text("identity", i.identity);
    cli_json_count("parameters", i.parameters);
    cli_json_count("bytes", i.bytes);
    cli_json_count("layers", (uint64_t)i.layers);
    cli_json_count("width", (uint64_t)i.width);
    cli_json_count("heads", (uint64_t)i.heads);
    cli_json_count("kv_heads", (uint64_t)i.kv_heads);
    cli_json_count("head_width", (uint64_t)i.head_width);
    cli_json_count("ffn_width", (uint64_t)i.ffn_width);
    cli_json_count("vocabulary", (uint64_t)i.vocabulary);
    cli_json_count("max_positions", (uint64_t)i.max_positions);
    cli_json_count("sliding_window", (uint64_t)i.sliding_window);
    if (adapter) {
        cli_json_open("adapter", '{');
        adapter_members(adapter);
        cli_json_close();
    } else {
        cli_json_text("adapter", NULL);
    }
    cli_json_close();
}

static void model_text(const icae_model *model, const icae_adapter *adapter)
{
    char a[32], b[32];
    icae_model_info i = icae_model_describe(model);
    printf("%s: %s language model\n", i.path, i.architecture);
    printf("  weights   %s parameters, %s, %s bytes; computes in %s\n", cli_bytes(a, i.parameters),
           i.dtype, cli_bytes(b, i.bytes), i.compute);
    printf("  shape     %d layers, width %d, %d heads on %d of width %d, ffn %d, vocabulary %d\n",
           i.layers, i.width, i.heads, i.kv_heads, i.head_width, i.ffn_width, i.vocabulary);
    printf("  context   %s positions", cli_bytes(a, (uint64_t)i.max_positions));
    if (i.sliding_window)
        printf(", sliding window of %s", cli_bytes(a, (uint64_t)i.sliding_window));
    printf("\n  chat      %s\n  identity  %.16s...\n", i.chat_template ? i.chat_template : "none",
           i.identity);
    if (adapter)
        adapter_text(adapter);
}

/* Shows the adapter too, if one is given or lies beside the model. */
static int model_info(const char *path, const cli_common *common)
{
    cli_common c = *common;
    cli_engine e = {0};
    if (path)
        c.model = path;
    int status = cli_model_open(&e.model, &c);
    icae_adapter_options options = {.k = c.k, .rate = c.rate, .alpha = c.alpha};
    if (status == CLI_DONE) {
        int rc = icae_adapter_open(&e.adapter, c.adapter, e.model, &options);
        if (rc < 0 && !(rc == ICAE_ENOTFOUND && !c.adapter))
            status = cli_library_failed();
    }
    if (status == CLI_DONE)
        (c.json ? model_json : model_text)(e.model, e.adapter);
    cli_engine_close(&e);
    return status;
}

static int run(int argc, char **argv)
{
    cli_common common = {0};
    int operands, status = cli_parse(&cli_info, NULL, &common, argc, argv, &operands);
    if (status != CLI_GO)
        return status;
    const char *path = operands ? argv[0] : NULL;
    if (!path)
        return model_info(NULL, &common);
    if (access(path, R_OK) < 0)
        return cli_fail("cannot open %s: there is no such file, or it may not be read", path);
    if (cli_is_slots(path))
        return slots_info(path, &common);
    switch (cli_kind_of(path)) {
    case CLI_FILE_FOLDER:
    case CLI_FILE_GGUF:
        return model_info(path, &common);
    case CLI_FILE_SAFETENSORS:
    case CLI_FILE_ZIP:
        return adapter_info(path, &common);
    default:
        return cli_fail("%s is no slot file, adapter or model (a text?)", path);
    }
}
