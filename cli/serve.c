/*
 * serve.c - icae serve: the HTTP server, until SIGTERM or Ctrl-C.
 */
#include "cli.h"

#include <string.h>

static int run(int argc, char **argv);

typedef struct settings {
    const char *host, *name, *store, *tokens, *cert, *key, *cors, *log;
    int port, sequences, queue, max_n, max_connections, max_per_ip;
    uint64_t max_tokens, max_body, prefixes, quota;
    float timeout, drain, gc;
    bool insecure;
} settings;

#define AT(member) offsetof(settings, member)
static const cli_option options[] = {
    {CLI_TEXT, 0, "host", "ADDRESS", "Where to listen (127.0.0.1)", AT(host)},
    {CLI_INT, 'p', "port", "PORT", "0: a free one, which is printed (8080)", AT(port)},
    {CLI_TEXT, 0, "store", "URL", "Contexts: an SQLite file, postgresql://…, or none (icae.db)",
     AT(store)},
    {CLI_SIZE, 0, "quota", "SIZE", "Bytes of slot files that the store may hold (no bound)",
     AT(quota)},
    {CLI_TEXT, 0, "name", "NAME", "Of the model, in /v1/models", AT(name)},
    {CLI_TEXT, 0, "tokens", "FILE", "Lines NAME TOKEN [REQUESTS A MINUTE [CONTEXTS]]", AT(tokens)},
    {CLI_FLAG, 0, "insecure", NULL, "Other machines may come in without a token", AT(insecure)},
    {CLI_TEXT, 0, "cert", "FILE", "Certificate chain for TLS (PEM)", AT(cert)},
    {CLI_TEXT, 0, "key", "FILE", "Its private key (PEM)", AT(key)},
    {CLI_TEXT, 0, "cors", "ORIGIN", "Pages of this origin may call (none)", AT(cors)},
    {CLI_INT, 0, "sequences", "N", "Replies at work at a time (32)", AT(sequences)},
    {CLI_INT, 0, "queue", "N", "Requests that may wait besides (64)", AT(queue)},
    {CLI_INT, 0, "max-n", "N", "Replies to one request (8)", AT(max_n)},
    {CLI_COUNT, 0, "max-reply", "TOKENS", "Of one reply (4096)", AT(max_tokens)},
    {CLI_SIZE, 0, "max-body", "SIZE", "Of a request (16M)", AT(max_body)},
    {CLI_INT, 0, "max-connections", "N", "At a time (2048)", AT(max_connections)},
    {CLI_INT, 0, "max-per-address", "N", "Connections of one address (no bound)", AT(max_per_ip)},
    {CLI_SIZE, 0, "prefixes", "SIZE", "Cached keys and values of slots (256M)", AT(prefixes)},
    {CLI_REAL, 0, "timeout", "SECONDS", "A client may be silent, or take for a head (60)",
     AT(timeout)},
    {CLI_REAL, 0, "drain", "SECONDS", "Running requests have at the end (30)", AT(drain)},
    {CLI_REAL, 0, "gc", "SECONDS", "Between removals of what has expired in the store (300)",
     AT(gc)},
    {CLI_TEXT, 0, "log", "FILE", "JSON lines; - is standard error, none is nowhere (-)", AT(log)},
    {.type = CLI_END},
};
#undef AT

const cli_command cli_serve = {
    .name = "serve",
    .arguments = "[OPTIONS]",
    .summary = "Serve chat over contexts by HTTP, as OpenAI's API",
    .details =
        "Prints the address when it is ready. Texts are compressed once (POST /v1/contexts) and\n"
        "asked about many times; there is a page at /. docs/openapi.yaml has every endpoint. Only "
        "this\n"
        "machine can reach the server unless --host says otherwise, which needs --tokens. SIGTERM "
        "lets\n"
        "running requests finish.\n",
    .options = options,
    .groups = CLI_MODEL_OPTIONS,
    .at_least = 0,
    .at_most = 0,
    .run = run,
};

static void print_address(void *user, const char *url)
{
    (void)user;
    printf("%s\n", url);
    fflush(stdout);
}

static bool is_stopped(void *user)
{
    (void)user;
    return cli_interrupted != 0;
}

static int serve(const settings *s, const cli_common *common)
{
    cli_engine e = {0};
    icae_store *store = NULL;
    int status = cli_engine_open(&e, common, NULL, CLI_ADAPTER_OPTIONAL);
    if (status != CLI_DONE)
        goto done;
    if (strcmp(s->store, "none") != 0 &&
        icae_store_open(&store, s->store,
                        &(icae_store_options){.quota = s->quota, .connections = 8}) < 0) {
        status = cli_library_failed();
        goto done;
    }
    icae_serve_options o = {
        .host = s->host,
        .port = s->port,
        .name = s->name,
        .store = store,
        .tokens = s->tokens,
        .insecure = s->insecure,
        .cert = s->cert,
        .key = s->key,
        .cors = s->cors,
        .sequences = s->sequences,
        .queue = s->queue,
        .max_n = s->max_n,
        .max_tokens = s->max_tokens,
        .max_body = s->max_body,
        .max_connections = s->max_connections,
        .max_per_ip = s->max_per_ip,
        .prefix_bytes = s->prefixes,
        .timeout = (double)s->timeout,
        .drain = (double)s->drain,
        .gc = (double)s->gc,
        .log = strcmp(s->log, "none") ? s->log : NULL,
        .ready = print_address,
        .stop = is_stopped,
    };
    int rc = icae_serve(e.session, &o);
    status = rc < 0 ? cli_fail("%s", icae_error_message()) : CLI_DONE;
    cli_interrupted = 0; /* that is how a server ends */
done:
    icae_store_close(store);
    cli_engine_close(&e);
    return status;
}

static int run(int argc, char **argv)
{
    settings s = {.port = 8080, .store = "icae.db", .log = "-"};
    cli_common common = {.quiet = true};
    int operands, status = cli_parse(&cli_serve, &s, &common, argc, argv, &operands);
    return status == CLI_GO ? serve(&s, &common) : status;
}
