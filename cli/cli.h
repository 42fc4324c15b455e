/*
 * cli.h - what the subcommands share: options, the engine they open, files, output, progress, JSON.
 *
 * The program stands on icae.h only. A subcommand is one file that defines a cli_command, and one
 * row in main.c. Exit statuses: 0 done, 1 failed, 2 wrong use.
 */
#ifndef ICAE_CLI_H
#define ICAE_CLI_H

#include "icae.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>

#define CLI_PRINTF(a, b) __attribute__((format(printf, a, b)))

enum { CLI_GO = -1, CLI_DONE = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

/* ---- options (options.c) --------------------------------------------------------------------- */

typedef enum { CLI_END, CLI_FLAG, CLI_TEXT, CLI_INT, CLI_COUNT, CLI_REAL, CLI_SIZE } cli_type;

/* One option; `at` is the offset of its value in the struct that the table fills: bool, const char *,
 * int, uint64_t, float, uint64_t (bytes) in the order of the types above. */
typedef struct cli_option {
    cli_type type;
    char letter; /* 0: none */
    const char *name, *argument, *help;
    size_t at;
} cli_option;

/* Options that several commands have; a command names its groups. */
enum {
    CLI_OUTPUT_OPTIONS = 1,
    CLI_MODEL_OPTIONS = 2,
    CLI_SAMPLING_OPTIONS = 4,
    CLI_READING_OPTIONS = 8
};
enum { CLI_ADAPTERS = -1 }; /* --refine, --expand: not given, so as the adapter recommends */

typedef struct cli_common {
    bool json, quiet;
    const char *color; /* "auto", "always", "never"; NULL: auto */
    const char *model, *adapter, *template_name, *compute;
    int k, threads;
    float rate, alpha;
    uint64_t memory;
    icae_sampling sampling;
    int expand; /* or CLI_ADAPTERS, which cli_parse begins with */
} cli_common;

typedef struct cli_command {
    const char *name;
    const char *arguments;     /* "FILE [-o OUT]" */
    const char *summary;       /* one line */
    const char *details;       /* paragraphs of the help page */
    const cli_option *options; /* its own, ended by CLI_END; NULL: none */
    unsigned groups;
    int at_least, at_most; /* operands; at_most -1: any number */
    int (*run)(int argc, char **argv);
} cli_command;

/* Reads the command's arguments into `own` and `common`; what is no option stays, in order, in
 * argv[0 … *operands - 1]. CLI_GO, or the exit status (after --help: 0). */
int cli_parse(const cli_command *command, void *own, cli_common *common, int argc, char **argv,
              int *operands);
void cli_print_help(const cli_command *command, FILE *to);
/* The candidate nearest to `word`, or NULL if none is near. */
const char *cli_nearest(const char *word, const char *const *candidates, size_t count);

/* ---- messages and signals (messages.c) ------------------------------------------------------- */

/* One line on stderr, "icae: …". Return the exit status that goes with them. */
int cli_fail(const char *format, ...) CLI_PRINTF(1, 2);
int cli_wrong_use(const char *command, const char *format, ...) CLI_PRINTF(2, 3);
int cli_library_failed(void); /* what icae_error_message() says; silent if Ctrl-C was the reason */

extern volatile sig_atomic_t cli_interrupted; /* the signal, or 0 */
void cli_catch_interrupts(void);              /* the first is noted, the second ends the program */
int cli_end(int status); /* ends by the signal if there was one, so that shells see it */

bool cli_is_terminal(FILE *f); /* one that understands colours, and NO_COLOR does not forbid them */
/* Whether to colour what goes to f: what --color says, else cli_is_terminal. */
int cli_set_color(const char *when); /* CLI_GO, or CLI_USAGE with the message printed */
bool cli_colours(FILE *f);
#define CLI_DOUBT "\033[1;33m" /* tokens that slots hold least surely */
#define CLI_PLAIN "\033[0m"
const char *cli_bytes(char text[32], uint64_t bytes); /* "31,232" */

/* ---- files (files.c) ------------------------------------------------------------------------- */

typedef struct cli_text {
    char *data;
    size_t size;
} cli_text;

/* The whole file; "-" is standard input. 0, or CLI_FAILED with the message printed. */
int cli_read(cli_text *out, const char *path);
/* What a file is, by its first bytes. */
typedef enum {
    CLI_FILE_OTHER,
    CLI_FILE_FOLDER,
    CLI_FILE_SAFETENSORS,
    CLI_FILE_ZIP,
    CLI_FILE_GGUF
} cli_kind;
cli_kind cli_kind_of(const char *path);
bool cli_is_slots(
    const char *path); /* ends in .icae, or is a safetensors file that is no adapter */
bool cli_same_file(const char *a, const char *b);

/* Text on its way out: to the terminal as it is made, or to a file that appears when it is whole. */
typedef struct cli_output {
    FILE *file;
    char *path, *temporary;
    int error; /* errno of the first failed write */
    bool terminal;
    char last; /* byte written */
    uint64_t bytes;
} cli_output;

int cli_output_open(cli_output *o, const char *path);             /* NULL or "-": standard output */
int cli_output_text(void *output, const char *text, size_t size); /* an icae_text_fn */
void cli_output_mark(cli_output *o, const char *mark); /* a colour: as it is, on terminals too */
/* Closes; the file appears if `keep`. CLI_DONE, or CLI_FAILED with the message printed (but a closed
 * pipe needs none). */
int cli_output_close(cli_output *o, bool keep);
int cli_flush(void); /* standard output, at the end: the same results */

/* ---- progress (progress.c) ------------------------------------------------------------------- */

typedef struct cli_progress {
    const char *label;
    bool quiet;
    double start, painted;
    uint64_t last;
} cli_progress;

int cli_progress_step(void *progress, const char *unit, uint64_t done, uint64_t total);
void cli_progress_clear(void); /* takes a bar off the terminal before other output */
/* On a terminal: paints this line in the place of the one before. */
void cli_progress_paint(const char *line);
double cli_seconds(void);

/* ---- the engine (engine.c) ------------------------------------------------------------------- */

typedef struct cli_engine {
    icae_model *model;
    icae_adapter *adapter;
    icae_session *session;
    cli_progress progress;
} cli_engine;

enum { CLI_ADAPTER_NEEDED, CLI_ADAPTER_OPTIONAL };

/* Opens model, adapter and session as the options say. CLI_DONE or an exit status. */
int cli_engine_open(cli_engine *e, const cli_common *common, const char *label, int adapter);
void cli_engine_close(cli_engine *e);
int cli_model_open(icae_model **model, const cli_common *common);
int cli_read_compute(icae_compute *out, const char *name); /* --compute; CLI_DONE or CLI_USAGE */

/* How slots and texts are read: sampling, and what is expanded. */
icae_generate_options cli_reading(const cli_engine *e, const cli_common *common,
                                  icae_result *result);

/* A context made of files: slots and raw texts in their order. */
typedef struct cli_context {
    icae_part *parts;
    cli_text *texts;
    icae_slots **slots;
    size_t count;
    bool any_slots;
} cli_context;

int cli_context_open(cli_context *c, char **paths, size_t count);
void cli_context_close(cli_context *c);
/* On a terminal: what was read and made, and how fast. */
void cli_print_result(const icae_result *r, const cli_common *common);

/* ---- JSON (json.c) --------------------------------------------------------------------------- */

/* Prints one JSON value to standard output. `key` NULL: in an array, or the outermost. */
void cli_json_open(const char *key, char bracket); /* '{' or '[' */
void cli_json_close(void);
void cli_json_text(const char *key, const char *text);               /* NULL gives null */
void cli_json_bytes(const char *key, const char *text, size_t size); /* not UTF-8: U+FFFD */
void cli_json_count(const char *key, uint64_t value);
void cli_json_real(const char *key, double value); /* not finite gives null */
void cli_json_flag(const char *key, bool value);
void cli_json_fidelity(const char *key, const icae_fidelity *f); /* null if not measured */
void cli_json_result(const icae_result *r); /* members of the object that is open */

/* ---- answers (answer.c) ---------------------------------------------------------------------- */

/* What a model says: to standard output as it is made, or gathered for --json. */
typedef struct cli_answer {
    cli_output out;
    bool gather;
    cli_text text;
    size_t capacity;
} cli_answer;

void cli_answer_open(cli_answer *a, const cli_common *common);
int cli_answer_text(void *answer, const char *text, size_t size); /* an icae_text_fn */
/* Ends the text after a call that returned `rc`: reports, or prints {key: text, …}. Exit status. */
int cli_answer_close(cli_answer *a, int rc, const char *key, const icae_result *result,
                     const cli_common *common);

/* ---- reports (report.c) ---------------------------------------------------------------------- */

/* "98.8% of 241 tokens right, loss 0.017 nats; first mistake at token 132", and a newline */
void cli_print_fidelity(FILE *to, const icae_fidelity *f);
/* Short excerpts of the text around the first doubtful tokens. */
void cli_print_doubtful(FILE *to, const icae_model *model, const icae_slots *slots,
                        const cli_text *text);

/* ---- differences (diff.c) -------------------------------------------------------------------- */

typedef struct cli_diff {
    size_t words, gone, added; /* of the original; of them missing; new in the other */
} cli_diff;

/* Writes `now` with its word differences from `before`: coloured, or [-gone-]{+new+}. */
int cli_diff_write(cli_diff *out, cli_output *to, const cli_text *before, const cli_text *now,
                   bool colour);

/* ---- training (train.c) ---------------------------------------------------------------------- */

/* `icae pretrain` and `icae finetune`: every key of the configuration is an option. */
int cli_train(const cli_command *command, icae_train_stage stage, int argc, char **argv);

/* ---- the commands ---------------------------------------------------------------------------- */

extern const cli_command cli_compress, cli_restore, cli_ask, cli_chat, cli_continue, cli_info,
    cli_verify, cli_pretrain, cli_finetune, cli_plot, cli_eval, cli_report, cli_serve, cli_store;

#endif
