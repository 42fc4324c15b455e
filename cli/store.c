/*
 * store.c - icae store: contexts in a store listed, put, read back, removed; the store tidied and measured.
 */
#include "cli.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

typedef struct store_options {
    const char *url, *owner, *name, *out;
    uint64_t ttl, quota;
} store_options;

static int run(int argc, char **argv);

#define AT(member) offsetof(store_options, member)
static const cli_option options[] = {
    {CLI_TEXT, 0, "store", "URL",
     "SQLite file or postgresql://... ($ICAE_STORE; else a file among the user's data)", AT(url)},
    {CLI_TEXT, 0, "owner", "NAME", "put: whose it is; ls and others: only this owner's", AT(owner)},
    {CLI_TEXT, 0, "name", "NAME", "put: its name; ls and export: only of this name", AT(name)},
    {CLI_COUNT, 0, "ttl", "SECONDS", "put: forget it after so long (never)", AT(ttl)},
    {CLI_SIZE, 0, "quota", "SIZE",
     "gc: remove what was not used for longest beyond this, such as 20G", AT(quota)},
    {CLI_TEXT, 'o', "output", "FILE", "get: where to (standard output)", AT(out)},
    {.type = CLI_END},
};
#undef AT

const cli_command cli_store = {
    .name = "store",
    .arguments = "ls|put|get|rm|gc|export|stats [ARGUMENTS] [--store URL]",
    .summary = "Keep slots in a store, by id",
    .details = "  ls             lists contexts, newest first\n"
               "  put FILE...    stores slot files; prints their ids. Slots that are there are not "
               "stored twice\n"
               "  get ID         writes the slot file of a context\n"
               "  rm ID...       removes contexts\n"
               "  gc             removes what has expired and, with --quota, what was not used for "
               "longest\n"
               "  export FOLDER  writes every context as FOLDER/ID.icae\n"
               "  stats          how much there is\n",
    .options = options,
    .groups = CLI_OUTPUT_OPTIONS,
    .at_least = 1,
    .at_most = -1,
    .run = run,
};

/* What a verb works with. */
typedef struct call {
    icae_store *store;
    const store_options *own;
    const cli_common *common;
    char **operands;
    int count;
} call;

/* ---- lists ------------------------------------------------------------------------------------ */

static void print_json(const icae_context *c)
{
    cli_json_open(NULL, '{');
    cli_json_text("id", c->id);
    cli_json_text("owner", c->owner);
    cli_json_text("name", *c->name ? c->name : NULL);
    cli_json_count("version", c->version);
    cli_json_count("created", (uint64_t)c->created);
    cli_json_count("used", (uint64_t)c->used);
    if (c->expires)
        cli_json_count("expires", (uint64_t)c->expires);
    else
        cli_json_text("expires", NULL);
    cli_json_count("tokens", c->tokens);
    cli_json_count("slots", c->slots);
    cli_json_count("segments", c->segments);
    cli_json_count("text_size", c->text_size);
    cli_json_count("bytes", c->bytes);
    cli_json_text("dtype", c->dtype);
    cli_json_flag("exact", c->exact);
    cli_json_text("base", c->base);
    cli_json_text("adapter", c->adapter);
    cli_json_text("text_sha256", c->text_sha256);
    cli_json_count("sharing", c->sharing);
    cli_json_count("holds", c->holds);
    cli_json_fidelity("fidelity", &c->fidelity);
    cli_json_close();
}

static void print_line(const icae_context *c)
{
    char when[32] = "", bytes[32];
    time_t created = (time_t)c->created;
    struct tm t;
    if (localtime_r(&created, &t))
        strftime(when, sizeof when, "%Y-%m-%d %H:%M", &t);
    printf("%s  %s  %8" PRIu64 " tokens %7" PRIu64 " slots %14s bytes  %s%s%s\n", c->id, when,
           c->tokens, c->slots, cli_bytes(bytes, c->bytes), c->owner, *c->owner ? ": " : "",
           c->name);
}

/* Calls `each` for every context that the options ask for. CLI_DONE or an exit status. */
static int walk(const call *k, int (*each)(const call *k, const icae_context *c))
{
    char after[40] = "";
    size_t count = 1;
    int status = CLI_DONE;
    while (status == CLI_DONE && count > 0 && !cli_interrupted) {
        icae_context *page;
        icae_store_query q = {
            .owner = k->own->owner, .name = k->own->name, .after = after, .limit = 500};
        if (icae_store_list(&page, &count, k->store, &q) < 0)
            return cli_library_failed();
        for (size_t i = 0; i < count && status == CLI_DONE && !cli_interrupted; i++)
            status = each(k, &page[i]);
        if (count > 0)
            memcpy(after, page[count - 1].id, sizeof after);
        icae_free(page);
    }
    return status;
}

static int list_one(const call *k, const icae_context *c)
{
    (k->common->json ? print_json : print_line)(c);
    return CLI_DONE;
}

static int list(const call *k)
{
    if (k->common->json) {
        cli_json_open(NULL, '{');
        cli_json_open("contexts", '[');
    }
    int status = walk(k, list_one);
    if (k->common->json) {
        cli_json_close();
        cli_json_close();
    }
    return status;
}

/* ---- in and out ------------------------------------------------------------------------------- */

static int put_file(const call *k, const char *path)
{
    icae_slots *slots;
    icae_context c;
    bool existed;
    icae_put_options o = {.owner = k->own->owner, .name = k->own->name, .ttl = k->own->ttl};
    if (icae_slots_open(&slots, path) < 0)
        return cli_library_failed();
    int rc = icae_store_put(&c, &existed, k->store, slots, &o);
    icae_slots_free(slots);
    if (rc < 0)
        return cli_library_failed();
    if (k->common->json)
        print_json(&c);
    else
        printf("%s\n", c.id);
    return CLI_DONE;
}

static int put(const call *k)
{
    int status = CLI_DONE;
    if (k->common->json) {
        cli_json_open(NULL, '{');
        cli_json_open("contexts", '[');
    }
    for (int i = 0; i < k->count && status == CLI_DONE; i++)
        status = put_file(k, k->operands[i]);
    if (k->common->json) {
        cli_json_close();
        cli_json_close();
    }
    return status;
}

static int write_context(const call *k, const char *id, const char *path)
{
    char *data;
    size_t size;
    cli_output out;
    if (icae_store_read(&data, &size, k->store, k->own->owner, id) < 0)
        return cli_library_failed();
    int status = cli_output_open(&out, path);
    if (status == CLI_DONE && out.terminal) {
        cli_output_close(&out, false);
        status = cli_fail("slots are no text for a terminal: give -o FILE");
    } else if (status == CLI_DONE) {
        bool written = cli_output_text(&out, data, size) == 0;
        status = cli_output_close(&out, written);
        if (status == CLI_DONE && !written)
            status = CLI_FAILED;
    }
    icae_free(data);
    return status;
}

static int get(const call *k)
{
    return write_context(k, k->operands[0], k->own->out);
}

static int export_one(const call *k, const icae_context *c)
{
    size_t size = strlen(k->operands[0]) + sizeof c->id + 8;
    char *path = malloc(size);
    if (!path)
        return cli_fail("no memory");
    snprintf(path, size, "%s/%s.icae", k->operands[0], c->id);
    int status = write_context(k, c->id, path);
    if (status == CLI_DONE && k->common->json)
        print_json(c);
    else if (status == CLI_DONE && !k->common->quiet)
        printf("%s  %s\n", path, c->name);
    free(path);
    return status;
}

static int export_all(const call *k)
{
    if (mkdir(k->operands[0], 0700) < 0) {
        struct stat st;
        if (stat(k->operands[0], &st) < 0 || !S_ISDIR(st.st_mode))
            return cli_fail("cannot make the folder %s", k->operands[0]);
    }
    if (k->common->json) {
        cli_json_open(NULL, '{');
        cli_json_open("contexts", '[');
    }
    int status = walk(k, export_one);
    if (k->common->json) {
        cli_json_close();
        cli_json_close();
    }
    return status;
}

/* ---- the rest --------------------------------------------------------------------------------- */

static int remove_all(const call *k)
{
    for (int i = 0; i < k->count; i++)
        if (icae_store_remove(k->store, k->own->owner, k->operands[i]) < 0)
            return cli_library_failed();
    if (k->common->json) {
        cli_json_open(NULL, '{');
        cli_json_count("removed", (uint64_t)k->count);
        cli_json_close();
    }
    return CLI_DONE;
}

static int collect(const call *k)
{
    char bytes[32];
    icae_gc_result r;
    if (icae_store_gc(&r, k->store, k->own->quota) < 0)
        return cli_library_failed();
    if (k->common->json) {
        cli_json_open(NULL, '{');
        cli_json_count("expired", r.expired);
        cli_json_count("evicted", r.evicted);
        cli_json_count("bytes", r.bytes);
        cli_json_close();
    } else if (!k->common->quiet) {
        printf("%" PRIu64 " expired, %" PRIu64 " evicted, %s bytes freed\n", r.expired, r.evicted,
               cli_bytes(bytes, r.bytes));
    }
    return CLI_DONE;
}

static int stats(const call *k)
{
    char bytes[32];
    icae_store_info i;
    if (icae_store_describe(&i, k->store) < 0)
        return cli_library_failed();
    if (k->common->json) {
        cli_json_open(NULL, '{');
        cli_json_text("driver", i.driver);
        cli_json_count("schema", i.schema);
        cli_json_count("contexts", i.contexts);
        cli_json_count("expired", i.expired);
        cli_json_count("held", i.held);
        cli_json_count("blobs", i.blobs);
        cli_json_count("bytes", i.bytes);
        cli_json_close();
    } else {
        printf("%s, tables of version %" PRIu64 "\n", i.driver, i.schema);
        printf("  contexts  %" PRIu64 ", of them %" PRIu64 " expired, %" PRIu64 " in use\n",
               i.contexts, i.expired, i.held);
        printf("  slots     %" PRIu64 " different, %s bytes\n", i.blobs, cli_bytes(bytes, i.bytes));
    }
    return CLI_DONE;
}

static const struct {
    const char *name;
    int least, most; /* operands; -1: any number */
    int (*run)(const call *k);
} verbs[] = {
    {"ls", 0, 0, list},        {"put", 1, -1, put},   {"get", 1, 1, get},
    {"rm", 1, -1, remove_all}, {"gc", 0, 0, collect}, {"export", 1, 1, export_all},
    {"stats", 0, 0, stats},
};

enum { VERBS = sizeof verbs / sizeof *verbs };

static int run(int argc, char **argv)
{
    store_options own = {0};
    cli_common common = {0};
    const char *names[VERBS], *near;
    int operands, status = cli_parse(&cli_store, &own, &common, argc, argv, &operands), v = 0;
    if (status != CLI_GO)
        return status;
    while (v < VERBS && strcmp(verbs[v].name, argv[0]) != 0)
        v++;
    for (int i = 0; i < VERBS; i++)
        names[i] = verbs[i].name;
    if (v == VERBS && (near = cli_nearest(argv[0], names, VERBS)))
        return cli_wrong_use("store", "there is no `store %s`; did you mean `%s`?", argv[0], near);
    if (v == VERBS)
        return cli_wrong_use("store", "there is no `store %s`", argv[0]);
    call k = {.own = &own, .common = &common, .operands = argv + 1, .count = operands - 1};
    if (k.count < verbs[v].least || (verbs[v].most >= 0 && k.count > verbs[v].most))
        return cli_wrong_use("store", "`store %s` takes %s", verbs[v].name,
                             verbs[v].most == 0   ? "no argument"
                             : verbs[v].most == 1 ? "one argument"
                                                  : "one argument or more");
    if (icae_store_open(&k.store, own.url, NULL) < 0)
        return cli_library_failed();
    status = verbs[v].run(&k);
    icae_store_close(k.store);
    return status;
}
