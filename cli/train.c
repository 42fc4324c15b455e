/*
 * train.c - what `icae pretrain` and `icae finetune` share: options from the library's table of keys,
 * the progress line, and what is said before and after.
 */
#include "cli.h"

#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define AGAIN 0.2  /* seconds between two paintings of the progress line */
#define PLAIN 15.0 /* between two plain lines where there is no terminal */

typedef struct training {
    const cli_command *command;
    icae_train_config *config;
    bool json, quiet, print, estimate, terminal, follows;
    double painted;
    icae_train_report last, measured; /* the last step; the last evaluation */
} training;

/* ---- options --------------------------------------------------------------------------------- */

static bool key_named(icae_train_key *out, const icae_train_config *c, const char *name,
                      size_t size)
{
    for (size_t i = 0; icae_train_config_key(out, c, i); i++) {
        size_t n = 0;
        while (n < size && out->name[n] &&
               (out->name[n] == name[n] || (out->name[n] == '_' && name[n] == '-')))
            n++;
        if (n == size && !out->name[n])
            return true;
    }
    return false;
}

static void print_help(const training *t)
{
    icae_train_key k;
    cli_print_help(t->command, stdout);
    puts("\nKeys of the configuration, as options (--max-tokens 512) and in a file (max_tokens = "
         "512):");
    for (size_t i = 0; icae_train_config_key(&k, t->config, i); i++) {
        char left[64];
        snprintf(left, sizeof left, "--%s", k.name);
        for (char *c = left; *c; c++)
            if (*c == '_')
                *c = '-';
        printf("  %-24s %s%s%s%s%s\n", left, k.help, *k.fallback ? " (" : "", k.fallback,
               *k.fallback ? ")" : "", "");
    }
}

static bool is_truth(const char *text)
{
    static const char *const words[] = {"true", "false", "yes", "no", "on", "off"};
    for (size_t i = 0; text && i < sizeof words / sizeof *words; i++)
        if (strcmp(text, words[i]) == 0)
            return true;
    return false;
}

static int set(training *t, const char *name, size_t size, const char *value)
{
    char key[64];
    snprintf(key, sizeof key, "%.*s", (int)size, name);
    if (icae_train_config_set(t->config, key, value) < 0)
        return cli_wrong_use(t->command->name, "%s", icae_error_message());
    if (strcmp(key, "estimate") == 0)
        t->estimate =
            strcmp(value, "false") != 0 && strcmp(value, "no") != 0 && strcmp(value, "off") != 0;
    return CLI_GO;
}

/* One option of the command's own; CLI_GO + 1 if it is none. */
static int own_option(training *t, const char *word)
{
    struct {
        const char *name;
        bool *at;
    } own[] = {{"--json", &t->json},
               {"--quiet", &t->quiet},
               {"-q", &t->quiet},
               {"--print-config", &t->print}};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (strcmp(word, own[i].name) == 0) {
            *own[i].at = true;
            return CLI_GO;
        }
    return CLI_GO + 1;
}

static int read_option(training *t, int argc, char **argv, int *i)
{
    const char *word = argv[*i], *name = word + 2;
    icae_train_key k;
    if (strcmp(word, "-h") == 0 || strcmp(word, "--help") == 0) {
        print_help(t);
        return CLI_DONE;
    }
    if (own_option(t, word) == CLI_GO)
        return CLI_GO;
    if (strcmp(word, "-m") == 0 || strcmp(word, "-o") == 0)
        name = word[1] == 'm' ? "base" : "out";
    else if (word[1] != '-')
        return cli_wrong_use(t->command->name, "there is no option %s", word);
    size_t size = strcspn(name, "=");
    const char *value = name[size] ? name + size + 1 : NULL;
    if (size == 5 && strncmp(name, "model", 5) == 0)
        name = "base", size = 4;
    if (!key_named(&k, t->config, name, size))
        return set(t, name, size, value ? value : ""); /* says what is wrong with it */
    if (!value && strcmp(k.type, "yes/no") == 0)
        value = *i + 1 < argc && is_truth(argv[*i + 1]) ? argv[++*i] : "true";
    if (!value && *i + 1 >= argc)
        return cli_wrong_use(t->command->name, "%s needs a value: a %s", word, k.type);
    return set(t, name, size, value ? value : argv[++*i]);
}

static int read_arguments(training *t, int argc, char **argv)
{
    const char *file = NULL;
    for (int i = 0; i < argc; i++) {
        if (argv[i][0] == '-' && argv[i][1]) {
            int status = read_option(t, argc, argv, &i);
            if (status != CLI_GO)
                return status;
        } else if (file) {
            return cli_wrong_use(t->command->name, "one argument too many: %s", argv[i]);
        } else {
            file = argv[i];
        }
    }
    if (!file)
        return CLI_GO;
    int rc = icae_train_config_read(t->config, file);
    if (rc == ICAE_EINVAL)
        return cli_wrong_use(t->command->name, "%s", icae_error_message());
    return rc < 0 ? cli_library_failed() : CLI_GO;
}

/* ---- what is said ---------------------------------------------------------------------------- */

static void add(char *line, size_t size, const char *format, ...) CLI_PRINTF(3, 4);

static void add(char *line, size_t size, const char *format, ...)
{
    va_list arguments;
    size_t n = strlen(line);
    va_start(arguments, format);
    vsnprintf(line + n, size - n, format, arguments);
    va_end(arguments);
}

static void format_time(char text[32], double seconds)
{
    int s = seconds < 1e9 ? (int)seconds : 1000000000;
    if (s < 60)
        snprintf(text, 32, "%d s", s);
    else if (s < 3600)
        snprintf(text, 32, "%d:%02d min", s / 60, s % 60);
    else
        snprintf(text, 32, "%d:%02d h", s / 3600, s / 60 % 60);
}

static void format_step(char *line, size_t size, const icae_train_report *r)
{
    static const char *const names[3] = {"ae", "lm", "ft"};
    char left[32];
    line[0] = 0;
    add(line, size, "step %" PRIu64, r->step);
    if (r->steps)
        add(line, size, "/%" PRIu64, r->steps);
    for (int i = 0; i < 3; i++)
        if (isfinite(r->average[i]))
            add(line, size, "  %s %.3f", names[i], r->average[i]);
    add(line, size, "  %.0f tokens/s", r->tokens_per_second);
    if (isfinite(r->share_of_peak))
        add(line, size, "  %.0f%% of peak", 100 * r->share_of_peak);
    if (isfinite(r->seconds_left)) {
        format_time(left, r->seconds_left);
        add(line, size, "  %s left", left);
    }
}

static void print_evaluation(const icae_train_report *r)
{
    char line[320] = "";
    add(line, sizeof line, "step %" PRIu64 ", held-out:", r->step);
    if (isfinite(r->eval_loss[0]))
        add(line, sizeof line, "  restoring: loss %.4f, %.1f%% right, exact prefix %.1f%%",
            r->eval_loss[0], 100 * r->accuracy, 100 * r->exact_prefix);
    if (isfinite(r->eval_loss[1]))
        add(line, sizeof line, "  continuing: perplexity %.2f (full text %.2f, none %.2f)",
            r->perplexity, r->perplexity_full, r->perplexity_none);
    if (isfinite(r->eval_loss[2]))
        add(line, sizeof line, "  answering: loss %.4f", r->eval_loss[2]);
    cli_progress_clear();
    fprintf(stderr, "%s%s\n", line, r->best ? "  (best)" : "");
}

static void report(void *user, const icae_train_report *r)
{
    training *t = user;
    char line[240];
    double now = cli_seconds();
    t->last = *r;
    if (r->evaluated)
        t->measured = *r;
    if (t->quiet)
        return;
    if (r->evaluated)
        print_evaluation(r);
    if (now - t->painted < (t->terminal ? AGAIN : PLAIN) && t->painted > 0)
        return;
    t->painted = now;
    format_step(line, sizeof line, r);
    if (t->terminal)
        cli_progress_paint(line);
    else
        fprintf(stderr, "%s\n", line);
}

static void notice(void *user, bool warning, const char *line)
{
    const training *t = user;
    if (t->quiet && !warning)
        return;
    cli_progress_clear();
    fprintf(stderr, "%s%s\n", warning ? "icae: warning: " : "", line);
}

static bool stop(void *user)
{
    (void)user;
    return cli_interrupted != 0;
}

static int progress(void *user, const char *unit, uint64_t done, uint64_t total)
{
    training *t = user;
    char line[80];
    double now = cli_seconds();
    (void)total;
    if (!t->quiet && t->terminal && now - t->painted >= AGAIN) {
        t->painted = now;
        snprintf(line, sizeof line, "reading text: %" PRIu64 " %s", done, unit);
        cli_progress_paint(line);
    }
    return cli_interrupted != 0;
}

/* ---- what is done ---------------------------------------------------------------------------- */

static void print_size(const char *what, uint64_t bytes)
{
    printf("  %-12s %8.1f MB\n", what, (double)bytes / 1048576);
}

static int estimate(training *t, const icae_train_callbacks *callbacks)
{
    icae_train_estimate e;
    char step[32], all[32];
    int rc = icae_train_measure(&e, t->config, callbacks);
    if (t->follows)
        return CLI_DONE;
    if (rc < 0)
        return cli_library_failed();
    cli_progress_clear();
    if (t->json) {
        cli_json_open(NULL, '{');
        cli_json_count("weights", e.weights);
        cli_json_count("trained", e.trained);
        cli_json_count("scratch", e.scratch);
        cli_json_count("total", e.total);
        cli_json_count("available", e.available);
        cli_json_count("parameters", e.parameters);
        cli_json_count("disk", e.disk);
        cli_json_count("recompute", (uint64_t)e.recompute);
        cli_json_count("batch_tokens", (uint64_t)e.batch_tokens);
        cli_json_real("step_seconds", e.step_seconds);
        cli_json_real("seconds", e.seconds);
        cli_json_real("tokens_per_second", e.tokens_per_second);
        cli_json_count("documents", e.documents);
        cli_json_count("tokens", e.tokens);
        cli_json_close();
        return CLI_DONE;
    }
    puts("Memory");
    print_size("weights", e.weights);
    print_size("adapter", e.trained);
    print_size("activations", e.scratch);
    print_size("together", e.total);
    print_size("available", e.available);
    printf("  recompute %d, %d tokens at a time\nOn disk\n", e.recompute, e.batch_tokens);
    print_size("run folder", e.disk);
    snprintf(step, sizeof step, "%.3g s", e.step_seconds);
    format_time(all, e.seconds);
    printf("Time\n  a step       %s (%.0f tokens/s)\n  the run      %s\n", step,
           e.tokens_per_second, all);
    return CLI_DONE;
}

static void print_summary(const training *t)
{
    const icae_train_report *r = &t->last, *m = &t->measured;
    if (!t->json)
        return;
    cli_json_open(NULL, '{');
    cli_json_count("step", r->step);
    cli_json_count("tokens", r->tokens);
    cli_json_count("samples", r->samples);
    cli_json_real("seconds", r->seconds);
    cli_json_real("tokens_per_second", r->tokens_per_second);
    cli_json_real("ae", r->average[0]);
    cli_json_real("lm", r->average[1]);
    cli_json_real("ft", r->average[2]);
    if (m->evaluated) {
        cli_json_open("eval", '{');
        cli_json_count("step", m->step);
        cli_json_real("ae", m->eval_loss[0]);
        cli_json_real("lm", m->eval_loss[1]);
        cli_json_real("ft", m->eval_loss[2]);
        cli_json_real("accuracy", m->accuracy);
        cli_json_real("exact_prefix", m->exact_prefix);
        cli_json_real("perplexity", m->perplexity);
        cli_json_real("perplexity_full", m->perplexity_full);
        cli_json_real("perplexity_none", m->perplexity_none);
        cli_json_close();
    }
    cli_json_close();
}

static int write_text(void *user, const char *text, size_t size)
{
    (void)user;
    return fwrite(text, 1, size, stdout) != size;
}

/* One of several processes but not the first, which speaks for all: it tells what went wrong and gives the
 * exit status. A launcher ends all as soon as one fails, so the others, who fail with it, must not do so
 * before it has spoken. */
static bool is_follower(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *rank = getenv(names[i]);
        if (rank && strcmp(rank, "0") != 0)
            return true;
    }
    return false;
}

static int train(training *t)
{
    icae_train_callbacks callbacks = {report, notice, stop, progress, t};
    t->terminal = cli_is_terminal(stderr);
    t->follows = is_follower();
    if (t->print)
        return icae_train_config_print(t->config, write_text, NULL) < 0 ? cli_library_failed()
                                                                        : CLI_DONE;
    if (icae_train_config_check(t->config) < 0)
        return cli_wrong_use(t->command->name, "%s", icae_error_message());
    if (t->estimate)
        return estimate(t, &callbacks);
    int rc = icae_train_run(t->config, &callbacks);
    if (t->follows)
        return CLI_DONE;
    cli_progress_clear();
    print_summary(t);
    return rc < 0 ? cli_library_failed() : CLI_DONE;
}

int cli_train(const cli_command *command, icae_train_stage stage, int argc, char **argv)
{
    training t = {.command = command};
    if (icae_train_config_new(&t.config, stage) < 0)
        return cli_library_failed();
    int status = read_arguments(&t, argc, argv);
    if (status == CLI_GO)
        status = train(&t);
    icae_train_config_free(t.config);
    return status;
}
